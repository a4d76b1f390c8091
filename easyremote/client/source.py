"""What is behind a future: a call, or other futures; and who notices a failure that nobody saw.

Rules of this file. 1) A future asks its source for everything but its outcome. 2) `request_cancel`
may be called from any thread and never blocks.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from ..log import Log
from .ids import ID_BYTES

if TYPE_CHECKING:
    from ..facts import Placement, Usage
    from .future import Future
    from .info import Whereabouts

_log = Log("client")

ASK, INTERRUPT, KILL = 0, 1, 2
"""Strengths of a cancel on the wire."""


class Source(Protocol):
    """The work behind a future: a call, or other futures."""

    @property
    def call_id(self) -> bytes:
        """Identity of the call; empty of what is no call."""
        ...

    @property
    def function(self) -> str:
        """What runs, for people."""
        ...

    def request_cancel(self, strength: int, grace_ms: int) -> None:
        """Ask for the work to be stopped. Thread-safe, never blocks."""

    def on_io_thread(self) -> bool:
        """Whether the caller runs where nothing may block."""
        ...

    def was_accepted(self) -> bool:
        """Whether the gateway has taken responsibility."""
        ...

    def may_have_run(self) -> bool:
        """Whether user code may have started."""
        ...

    def whereabouts(self) -> Whereabouts | None:
        """Ask where the call is; blocks for a round trip where that is allowed."""
        ...

    def usage(self) -> Usage | None:
        """Return what the call has cost so far as is known."""
        ...

    def watch_progress(self, callback: Callable[[Any], object]) -> None:
        """Call `callback` with every progress report from now on."""

    def last_progress(self) -> Any:
        """Return the last progress report, None before the first."""


class CallFacts:
    """What can be asked about the call behind a future."""

    _source: Source | None

    if TYPE_CHECKING:

        def done(self) -> bool:
            """Return whether there is an outcome."""
            ...

    @property
    def id(self) -> str:
        """The identity of the call, the same in all logs; empty of what is no call."""
        return "" if self._source is None else self._source.call_id.hex()

    @classmethod
    def from_id(cls, call_id: str, *, gateway: str | None = None) -> Future[Any]:
        """Return a future of a call that was made before, perhaps by another program.

        A detached call goes on when its caller is gone, and its result waits for ten minutes. Only
        the user who made the call finds it. It has one waiting future at a time: the program that
        waited for it before loses it to this one.

        Args:
            call_id: The `id` of its future.
            gateway: Address of the gateway; the one of `connect()` by default.

        Raises:
            ValueError: `call_id` is no id of a call.
        """
        from .default import defaults
        from .options import Where

        found = bytes.fromhex(call_id)
        if len(found) != ID_BYTES:
            raise ValueError(f"the id of a call has {2 * ID_BYTES} hex digits: {call_id!r}")
        if gateway is None:
            return defaults.client().session.attach(found)
        return defaults.client_for(Where(gateway, None, None)).session.attach(found)

    @property
    def queue_position(self) -> int | None:
        """Its place among the calls that wait at the gateway: 1 is the next one.

        None if it does not wait there. Whoever looks waits for one round trip at most, and one
        answer is good for 0.2 s, so that looking in a loop is cheap. Inside an event loop it waits
        at most half a second, and then gives what was known before. (`why_waiting` counts the calls
        that are before it, as the protocol does.)
        """
        found = self._whereabouts()
        return None if found is None or self.done() else found.queue_position

    @property
    def eta(self) -> float | None:
        """Seconds until it begins, as the gateway estimates; None if that is not known.

        It is asked for like `queue_position`.
        """
        found = self._whereabouts()
        return None if found is None or self.done() else found.eta_s

    @property
    def placement(self) -> Placement | None:
        """The node that has the call, its scores, and why others were excluded; None before.

        `print(f.placement)` explains it. It is asked for like `queue_position`; of a call that is
        over the gateway knows it for a while, and the last answer is kept here.
        """
        found = self._whereabouts()
        return None if found is None else found.placement

    def _whereabouts(self) -> Whereabouts | None:
        return None if self._source is None else self._source.whereabouts()

    @property
    def usage(self) -> Usage | None:
        """What the call has used and what it costs; None before its outcome.

        Seconds and bytes are measured here; GPU seconds and cost come from the account that the
        gateway keeps of it, if it is billed or has a quota. Asked for like `queue_position`.
        """
        return None if self._source is None else self._source.usage()

    @property
    def progress(self) -> Any:
        """The last thing that the body said with `context().progress(...)`; None before."""
        return None if self._source is None else self._source.last_progress()

    def on_progress(self, callback: Callable[[Any], object]) -> None:
        """Call `callback` with each progress report from now on, on a thread for callbacks."""
        if self._source is not None:
            self._source.watch_progress(callback)


class Derived:
    """The source of a future that follows from other futures."""

    call_id = b""
    function = "then"

    def __init__(self, parents: tuple[Future[Any], ...]) -> None:
        self.parents = parents

    def request_cancel(self, strength: int, grace_ms: int) -> None:
        """Cancel the futures that this one follows from, unless others wait for them."""
        for parent in self.parents:
            others = len(parent._callbacks or ()) > 1 or parent._wakes or parent._waiters
            if not others:
                parent.cancel(force=strength > ASK, grace=grace_ms / 1000)

    def on_io_thread(self) -> bool:
        """Whether the caller runs where nothing may block."""
        return any(p._source is not None and p._source.on_io_thread() for p in self.parents)

    def was_accepted(self) -> bool:
        """Whether the gateway has taken responsibility for what this follows from."""
        return any(p._source is not None and p._source.was_accepted() for p in self.parents)

    def may_have_run(self) -> bool:
        """Whether user code may have started."""
        return any(p._source is not None and p._source.may_have_run() for p in self.parents)

    def whereabouts(self) -> Whereabouts | None:
        """A future that is no call is nowhere."""
        return None

    def usage(self) -> Usage | None:
        """A future that is no call costs nothing."""
        return None

    def watch_progress(self, callback: Callable[[Any], object]) -> None:
        """Hear of the progress of what this follows from."""
        for parent in self.parents:
            parent.on_progress(callback)

    def last_progress(self) -> Any:
        """The progress of what this follows from, if it is one thing."""
        return self.parents[0].progress if len(self.parents) == 1 else None


class Unseen:
    """Logs, when it is collected, a failure that nobody looked at."""

    __slots__ = ("call_id", "error", "function", "tell")

    def __init__(self, source: Source | None, error: BaseException) -> None:
        self.tell = True
        self.function = "" if source is None else source.function
        self.call_id = b"" if source is None else source.call_id
        self.error = error

    def __del__(self) -> None:
        if not self.tell or sys.is_finalizing():
            return
        try:
            text = str(self.error)
        except Exception:  # noqa: BLE001 - it may be code of a user
            text = "(its text could not be made)"
        _log.error(
            "a call failed and nobody asked for its outcome", function=self.function,
            call_id=self.call_id, error=f"{type(self.error).__name__}: {text}",
        )  # fmt: skip


class NoCall:
    """The source of a future that is no call of a function: an answer, say."""

    call_id = b""

    def __init__(self, what: str, on_io_thread: Callable[[], bool]) -> None:
        self.function = what
        self.on_io_thread = on_io_thread

    def request_cancel(self, strength: int, grace_ms: int) -> None:
        """There is nothing to stop."""

    def was_accepted(self) -> bool:
        """Nobody runs it."""
        return False

    def may_have_run(self) -> bool:
        """No user code is involved."""
        return False

    def whereabouts(self) -> Whereabouts | None:
        """It is nowhere."""
        return None

    def usage(self) -> Usage | None:
        """It costs nothing."""
        return None

    def watch_progress(self, callback: Callable[[Any], object]) -> None:
        """It makes no progress."""

    def last_progress(self) -> Any:
        """It makes no progress."""
        return None
