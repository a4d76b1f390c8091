"""What a call returns: a future of `concurrent.futures` that can also be awaited.

Theory. A call is submitted when it is made, and its `Future` is the one handle on it: `result()`
blocks a thread, `await` suspends a task of asyncio or trio, callbacks and `then()` go on from it.
It *is* a `concurrent.futures.Future`, so whatever takes those takes these. Its life is theirs:

    PENDING --START--> RUNNING --SETTLE--> FINISHED
       |                  +-----CANCEL---> CANCELLED_AND_NOTIFIED
       +--SETTLE--> FINISHED
       +--CANCEL--> CANCELLED_AND_NOTIFIED

A call that somebody else cancelled has an *exception* (`TaskCancelledError`); a future is
*cancelled* only if its own `cancel()` did it.

Rules of this file. 1) The state changes in `_step` alone, under `_lock`, and under the condition,
too, if one exists. The condition that `concurrent.futures` expects costs more than the rest of
a small call, so it is made when somebody asks for it. 2) Callbacks of users never run on the io
thread. 3) Cancelling a wait cancels the call only if nobody else waits for it.

Source. decisions.md 24; concurrent/futures/_base.py, whose waiters this file serves.
"""

from __future__ import annotations

import concurrent.futures as cf
import os
import threading
import warnings
from collections.abc import Callable, Generator
from concurrent.futures import _base
from contextvars import copy_context
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from .. import seam
from ..errors import EasyRemoteError, TaskCancelledError
from ..log import Log
from ..waiting import Wake, block, park, running_library
from .offload import offload
from .source import ASK, INTERRUPT, KILL, CallFacts, Derived, Source, Unseen

_log = Log("client")

T = TypeVar("T")
R = TypeVar("R")

State = Literal["submitted", "queued", "running", "done", "failed", "cancelled"]

PENDING, RUNNING, FINISHED = _base.PENDING, _base.RUNNING, _base.FINISHED
CANCELLED = _base.CANCELLED_AND_NOTIFIED

SLICE_S = 0.2
"""A body that waits inside a worker looks up this often, so that an interrupt reaches it."""


class Input(IntEnum):
    """What may happen to a future."""

    START = 0
    """User code runs."""
    SETTLE = 1
    """There is a result or an error."""
    CANCEL = 2
    """Its own `cancel()` took effect."""


TRANSITIONS: dict[tuple[str, Input], str] = {
    (PENDING, Input.START): RUNNING,
    (PENDING, Input.SETTLE): FINISHED,
    (PENDING, Input.CANCEL): CANCELLED,
    (RUNNING, Input.START): RUNNING,
    (RUNNING, Input.SETTLE): FINISHED,
    (RUNNING, Input.CANCEL): CANCELLED,
}
"""The whole life of a future. What comes after its end is late, and changes nothing."""

_lock = threading.RLock()
"""Guards the state of every future. Held for a few assignments, never while anything waits.

Reentrant: a collection may run a finaliser of a user in between.
"""


class Future(CallFacts, cf.Future[T], Generic[T]):
    """The outcome of a call, now or later. Made by calling a remote function.

    It is eager: the call is on its way whether or not anybody waits. Wait for it with `await`
    (asyncio or trio) or with `result()`; both may be done from several places.

    asyncio wants futures of its own in two places: `asyncio.wait([asyncio.wrap_future(f)])`, and
    `asyncio.ensure_future(f)` instead of `asyncio.create_task(f)`.
    """

    # All that most futures never need is a default of the class: making one is an assignment.
    _state: str = PENDING
    _result: Any = None
    _exception: BaseException | None = None
    _made_condition: threading.Condition | None = None
    _wakes: list[Wake] | None = None
    _callbacks: list[Callable[[Any], object]] | None = None
    _unseen: Unseen | None = None
    _cancelling: bool = False

    def __init__(self, source: Source | None = None) -> None:
        self._source = source

    # ---- what concurrent.futures looks at ------------------------------------------------------

    if not TYPE_CHECKING:  # Checkers see the attributes of the base, as its functions expect.
        _waiters = ()

        @property
        def _condition(self) -> threading.Condition:
            return self._made_condition or self._make_condition()

    def _make_condition(self) -> threading.Condition:
        condition = threading.Condition()
        with _lock:
            if self._made_condition is None:
                self._waiters = []
                self._made_condition = condition
            return self._made_condition

    def cancelled(self) -> bool:
        """Return whether its own `cancel()` ended it."""
        return self._state is CANCELLED

    def running(self) -> bool:
        """Return whether user code runs, as far as is known here."""
        return self._state is RUNNING

    def done(self) -> bool:
        """Return whether there is an outcome."""
        return self._state is FINISHED or self._state is CANCELLED

    def set_running_or_notify_cancel(self) -> bool:
        """Say that the work begins; False if it was cancelled. For executors, as in the base."""
        return self._step(Input.START)

    def set_result(self, result: T) -> None:
        """Give it its result; for executors, as in the base."""
        if not self._step(Input.SETTLE, result):
            raise cf.InvalidStateError(f"{self._state}: {self!r}")

    def set_exception(self, exception: BaseException | None) -> None:
        """Give it its error; for executors, as in the base."""
        if not self._step(Input.SETTLE, None, exception):
            raise cf.InvalidStateError(f"{self._state}: {self!r}")

    # ---- its one way through life --------------------------------------------------------------

    def _step(self, what: Input, result: Any = None, error: BaseException | None = None) -> bool:
        """Move along the table, tell whoever waits; False if the table does not have this pair."""
        moved = False
        with _lock:
            condition = self._made_condition
            if condition is None:
                moved = self._enter(what, result, error)
        if condition is not None:
            with condition:
                with _lock:
                    moved = self._enter(what, result, error)
                if moved and what is not Input.START:
                    self._tell_waiters(what, error)
                    condition.notify_all()
        if moved and what is not Input.START:
            self._tell()
        return moved

    def _enter(self, what: Input, result: Any, error: BaseException | None) -> bool:
        after = _AFTER[what].get(self._state)
        if after is None:
            return False
        if what is not Input.START:
            self._result = result
            self._exception = error
            if error is not None and what is Input.SETTLE:
                self._unseen = Unseen(self._source, error)
        self._state = after
        return True

    def _tell_waiters(self, what: Input, error: BaseException | None) -> None:
        """Tell `concurrent.futures.wait` and `as_completed`."""
        for waiter in self._waiters:
            if what is Input.CANCEL:
                waiter.add_cancelled(self)
            elif error is not None:
                waiter.add_exception(self)
            else:
                waiter.add_result(self)

    def _tell(self) -> None:
        """Wake whoever waits; there is an outcome, so nobody comes to these lists any more."""
        wakes, self._wakes = self._wakes, None
        if wakes is not None:
            for wake in wakes:
                wake()
        callbacks, self._callbacks = self._callbacks, None
        if callbacks is not None:
            self._hand_over(callbacks)

    def _hand_over(self, callbacks: list[Callable[[Any], object]]) -> None:
        """Run callbacks here, or elsewhere if this is the io thread."""
        if self._source is not None and self._source.on_io_thread():
            offload.run(lambda: self._call_back(callbacks))
        else:
            self._call_back(callbacks)

    def _call_back(self, callbacks: list[Callable[[Any], object]]) -> None:
        for callback in callbacks:
            try:
                callback(self)
            except Exception as error:  # noqa: BLE001 - the task boundary
                _log.error("a callback of a future raised", exception=error)

    def _outcome(self) -> T:
        """Return the result or raise the error; only when there is one."""
        error = self._exception
        if error is None:
            result: T = self._result
            return result
        self._seen()
        try:
            # Without what earlier waiters added: a traceback must not grow with each of them.
            raise error.with_traceback(None)
        finally:
            del error, self  # Or the frame would keep itself alive through the traceback.

    def _seen(self) -> None:
        """Somebody has looked at the failure."""
        unseen, self._unseen = self._unseen, None
        if unseen is not None:
            unseen.tell = False

    # ---- waiting -------------------------------------------------------------------------------

    def __await__(self) -> Generator[Any, None, T]:
        """Wait in a task of asyncio or trio; cancelling the only wait cancels the call."""
        if self._state is FINISHED or self._state is CANCELLED:
            return self._outcome()
        mine: list[Wake] = []
        try:
            yield from park(lambda wake: self._add_wake(wake, mine))
        except BaseException:
            self._left(mine)
            raise
        return self._outcome()

    def _add_wake(self, wake: Wake, mine: list[Wake]) -> bool:
        with _lock:
            if self._state is FINISHED or self._state is CANCELLED:
                return False
            mine.append(wake)
            if self._wakes is None:
                self._wakes = [wake]
            else:
                self._wakes.append(wake)
            return True

    def _remove_wakes(self, mine: list[Wake]) -> None:
        with _lock:
            if self._wakes is not None:
                self._wakes = [wake for wake in self._wakes if wake not in mine] or None

    def _left(self, mine: list[Wake]) -> None:
        """A wait was cancelled: with the last one goes the call."""
        self._remove_wakes(mine)
        if not self.has_waiters:
            self.cancel()

    @property
    def has_waiters(self) -> bool:
        """Whether anything waits for the outcome: tasks, threads, callbacks, other futures."""
        return bool(self._wakes or self._callbacks or self._waiters)

    def result(self, timeout: float | None = None) -> T:
        """Block until there is an outcome; return the result or raise the error.

        Args:
            timeout: Give up waiting after this many seconds; the call goes on.

        Raises:
            TimeoutError: There is no outcome yet.
            TaskCancelledError: The call was cancelled.
        """
        if self._state is not FINISHED and self._state is not CANCELLED:
            self._block(timeout)
        return self._outcome()

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Block until there is an outcome; return the error, None if there is a result.

        Raises:
            TimeoutError: There is no outcome yet.
            TaskCancelledError: Its own `cancel()` ended it.
        """
        if self._state is not FINISHED and self._state is not CANCELLED:
            self._block(timeout)
        if self._state is CANCELLED:
            self._outcome()
        self._seen()
        return self._exception

    def _block(self, timeout_s: float | None) -> None:
        source = self._source
        if source is not None and source.on_io_thread():
            raise EasyRemoteError(
                "this thread delivers the outcomes of all calls, so it cannot wait for one; move "
                "the waiting to a thread of your own, or use then() or add_done_callback()"
            )
        if running_library() is not None:
            warnings.warn(
                "a call is waited for with result() inside an event loop, which stands still "
                "meanwhile; write `await` instead",
                RuntimeWarning,
                stacklevel=3,
            )
        lender = seam.current_lender.get()
        if lender is None:
            settled = self._block_until(timeout_s)
        else:
            with lender.lend():
                settled = self._block_in_slices(timeout_s)
        if not settled:
            raise TimeoutError(f"no outcome within {timeout_s:g} s; the call goes on: {self!r}")

    def _block_until(self, timeout_s: float | None) -> bool:
        mine: list[Wake] = []
        try:
            return block(lambda wake: self._add_wake(wake, mine), timeout_s) or self.done()
        finally:
            if self._wakes is not None:
                self._remove_wakes(mine)

    def _block_in_slices(self, timeout_s: float | None) -> bool:
        """Wait so that a body inside a worker can be interrupted while it waits."""
        left_s = timeout_s
        while left_s is None or left_s > SLICE_S:
            if self._block_until(SLICE_S):
                return True
            left_s = None if left_s is None else left_s - SLICE_S
        return self._block_until(left_s)

    def add_done_callback(self, fn: Callable[[Future[T]], object]) -> None:
        """Call `fn` with this future when there is an outcome; at once if there is one already.

        It runs on a thread for callbacks, where it may block, never on the io thread.
        """
        with _lock:
            if self._state is not FINISHED and self._state is not CANCELLED:
                if self._callbacks is None:
                    self._callbacks = []
                self._callbacks.append(fn)
                return
        self._hand_over([fn])

    def then(self, fn: Callable[[T], R]) -> Future[R]:
        """Return a future of `fn(result)`; `fn` runs here, on a thread for callbacks.

        An error of this future is the error of that one. Cancelling that one cancels this one if
        nobody else waits for it.
        """
        derived: Future[R] = Future(Derived((self,)))
        context = copy_context()

        def follow(done: Future[T]) -> None:
            try:
                value = context.run(fn, done._outcome())
            except BaseException as error:  # noqa: BLE001 - whatever it is, it is the outcome
                derived._step(Input.SETTLE, None, error)
            else:
                derived._step(Input.SETTLE, value)

        self.add_done_callback(follow)
        return derived

    # ---- cancelling ----------------------------------------------------------------------------

    def cancel(self, *, force: bool = False, grace: float = 5.0) -> bool:
        """Ask for the call to be stopped.

        A call whose body is not known to run is cancelled at once. A running body is told
        (`context().cancelled()`), interrupted after `grace` seconds, and its process is killed
        where that is possible; the future is cancelled when the node confirms.

        Args:
            force: Interrupt the body at once, and kill after the grace.
            grace: Seconds that the body has to end by itself.

        Returns:
            False if there is an outcome already; else True, and the outcome may still be a result.
        """
        source = self._source
        if self.done():
            return False
        self._cancelling = True
        if self._state is not RUNNING:
            error = TaskCancelledError("the call was cancelled by its caller")
            error.may_have_run = source is not None and source.may_have_run()
            if not self._step(Input.CANCEL, None, error):
                return False
        if source is not None:
            strength = ASK if not force else INTERRUPT if grace > 0 else KILL
            source.request_cancel(strength, int(max(0.0, grace) * 1000))
        return True

    # ---- what is known of the call -------------------------------------------------------------

    @property
    def state(self) -> State:
        """Where the call is, as far as is known here."""
        if self._state is CANCELLED or isinstance(self._exception, TaskCancelledError):
            return "cancelled"
        if self._state is FINISHED:
            return "done" if self._exception is None else "failed"
        if self._state is RUNNING:
            return "running"
        accepted = self._source is not None and self._source.was_accepted()
        return "queued" if accepted else "submitted"

    def __repr__(self) -> str:
        about = "" if self._source is None else f" {self._source.function} {self.id}"
        return f"<Future{about} {self.state}>"


_AFTER: list[dict[str, str]] = [
    {state: after for (state, what), after in TRANSITIONS.items() if what is wanted}
    for wanted in Input
]
"""The same table, looked up twice per call."""


def fail_in_child(future: Future[Any], error: EasyRemoteError) -> None:
    """Settle a future in a forked child, where whoever held its locks is gone."""
    future._made_condition = None
    future._waiters = []
    future._wakes = future._callbacks = None
    future._step(Input.SETTLE, None, error)
    future._seen()


def _forget_lock() -> None:
    global _lock  # noqa: PLW0603 - in a forked child its owner may be a thread that is not there
    _lock = threading.RLock()
    offload.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_lock)
