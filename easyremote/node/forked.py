"""Children that the provider's code forks: they must not go on as if they were the worker.

Theory. After `os.fork()` the child has a copy of everything but the threads. If it returns from
the function in which it was forked, it comes back to our code, which belongs to the parent: there
is no io thread in the child, its sockets are closed, and an event loop would share the kernel's
side of the parent's. So a child that comes back ends, as it would at the end of a program.

Rules of this file. 1) Knowing the process costs an attribute, not a system call. 2) A child that
ends here flushes what it printed and runs nothing else: handlers of exit are the parent's.
"""

from __future__ import annotations

import contextlib
import os
import sys
import traceback

_pid = os.getpid()


def current_pid() -> int:
    """Return the id of this process; correct in forked children, too."""
    return _pid


def _note() -> None:
    global _pid  # noqa: PLW0603 - which process this is is a matter of the whole process
    _pid = os.getpid()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note)


def end_child(error: BaseException | None) -> None:
    """End this forked child, whose body is over, with the exit code that Python would give it."""
    code = 0
    if isinstance(error, SystemExit):
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    elif error is not None:
        code = 1
        with contextlib.suppress(Exception):
            traceback.print_exception(error)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(code)
