"""The signal line: how SIGTERM at a script reaches its agent although the script cannot run.

Theory. A Python signal handler runs between two instructions of the main thread. A function that
spends a minute in one of them (a library that keeps the interpreter's lock) delays it by a minute.
The *C* handler of Python runs at once, though, and writes the number of the signal to a descriptor
that a program may name (`signal.set_wakeup_fd`). So that descriptor is a socket whose other end
is the agent's, which knows of the signal at once and drains the node. What the script wants to say
by itself goes the same way, under numbers that no signal has.

Rules of this file. 1) A forked child of the user's code must not speak for the node: there the
line is closed and the handlers are gone, or a terminated child of a `multiprocessing.Pool` would
stop the node, and survive. 2) Only the main thread can tie the line to signals.

Source. signal(7); the documentation of `signal.set_wakeup_fd`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Iterator

from .process import close_in_forked_children

STOP_SIGNALS = frozenset({int(signal.SIGINT), int(signal.SIGTERM)})
SAY_DRAIN = 200
"""Drain the node and end; again and again means the same."""
SAY_END = 201
"""End the node at once."""

_tied: list[SignalLine] = []
"""The line that this process has tied to its signals. A matter of the whole process."""


class SignalLine:
    """The script's end of the line."""

    def __init__(self, sock: socket.socket) -> None:
        """Take over our end of a socket pair."""
        sock.setblocking(False)
        close_in_forked_children(sock)
        self._sock = sock

    def say(self, what: int) -> None:
        """Say something; without effect if the agent is gone."""
        with contextlib.suppress(OSError):
            self._sock.send(bytes([what]))

    @contextlib.contextmanager
    def tied(self) -> Iterator[None]:
        """Let signals with a Python handler be said on the line while the block runs."""
        if threading.current_thread() is not threading.main_thread() or self._sock.fileno() < 0:
            yield
            return
        before = signal.set_wakeup_fd(self._sock.fileno(), warn_on_full_buffer=False)
        _tied.append(self)
        try:
            yield
        finally:
            _tied.remove(self)
            signal.set_wakeup_fd(before)

    def close(self) -> None:
        """Say nothing more."""
        self._sock.close()


def _untie_in_child() -> None:
    """In a forked child: signals mean what they mean in any other program."""
    if not _tied:
        return
    _tied.clear()
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_untie_in_child)
