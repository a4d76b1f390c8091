"""The four kinds of bodies: function, generator, and both as `async def`.

Theory. Every kind does the same in its own way: decode the arguments where the body runs, run the
provider's code in a context of its own, and turn what came of it into one outcome. A generator
makes one item at a time, and only while its caller allows more: it can never be further ahead
than its credit.

Rules of this file. 1) Whatever the provider's code raises becomes the outcome of its own call:
`SystemExit` too. 2) A call that was told to stop ends as stopped if its body raised, or returned
after it had been told; a body that returned without having looked has a result. 3) A generator
that is left early is closed, so that its `finally` runs.
"""

from __future__ import annotations

import contextvars
import time
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from .. import seam, values
from ..errors import SerializationError
from ..wire.errors import ErrorCode
from ..wire.message import CODEC_PICKLE
from . import forked, inputs, visible
from . import outcome as outcomes
from .context import current_task
from .outcome import Outcome

if TYPE_CHECKING:
    from .slots import Seat
    from .task import Task


def run_in_seat(seat: Seat, task: Task) -> Outcome:
    """Run the body of a sync function on the thread of `seat`. Never raises."""
    try:
        value = task.call.context.get(visible.VISIBLE_KEY)
        if value is None:
            return _run_in_seat(seat, task)
        with visible.during(value):
            return _run_in_seat(seat, task)
    except BaseException as error:  # noqa: BLE001 - the task boundary: encoding runs user code, too
        return unencodable(error)


def _run_in_seat(seat: Seat, task: Task) -> Outcome:
    begun_at = time.perf_counter()
    context = contextvars.copy_context()
    value, error = seat.attempt(task, context.run, _run, task)
    if error is not None:
        return of_error(task, error) if task.entered else _undecoded(task, error)
    if task.function.shape.stream:
        return _iterate(seat, task, context, value, begun_at)
    return of_value(task, value, time.perf_counter() - begun_at)


def _run(task: Task) -> Any:
    """Decode the arguments and call the function; its large arguments are gone with this frame."""
    args, kwargs = _arguments(task, task)
    task.entered = True
    return task.function.fn(*args, **kwargs)


def _arguments(
    task: Task, lender: seam.SlotLender | None
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Say in the context variables which call runs here, and decode its arguments."""
    timeout_s = task.function.options.timeout
    if timeout_s is not None:
        deadline = time.monotonic() + timeout_s
        if task.deadline is None or deadline < task.deadline:
            task.deadline = deadline
    current_task.set(task)
    seam.current_ticket.set(task.call.call_id)
    seam.current_lender.set(lender)
    seam.current_deadline.set(task.deadline)
    call, buffers = task.call, task.buffers
    task.buffers = []
    body: bytes | memoryview | None = call.body
    if body is None:
        if not buffers:
            raise SerializationError("the call carries no arguments: its body is missing")
        body, buffers = buffers[0], buffers[1:]
    args, kwargs = values.decode_call(body, buffers, allow_pickle=call.codec == CODEC_PICKLE)
    return inputs.bind(task, args, kwargs)


def _undecoded(task: Task, error: BaseException) -> Outcome:
    """Return the outcome of a call whose arguments could not be decoded."""
    if task.stop_code is not None:
        return stopped(task)
    if isinstance(error, SerializationError):
        # The function did not begin; code in a pickle may have run.
        pickled = task.call.codec == CODEC_PICKLE
        return outcomes.refusal(error.code, str(error), maybe_executed=pickled)
    return outcomes.raised(error)


# ---- from what happened to an outcome ----------------------------------------------------------


def of_value(task: Task, value: Any, seconds: float) -> Outcome:
    """Return the outcome of a body that returned."""
    if task.stop_code is not None and task.stop_seen:
        return stopped(task)
    return outcomes.result(value, seconds, task.may_ship)


def of_error(task: Task, error: BaseException) -> Outcome:
    """Return the outcome of a body that raised."""
    if task.stop_code is not None:
        return stopped(task)
    try:
        return outcomes.raised(error)
    except BaseException as worse:  # noqa: BLE001 - the task boundary: describing it runs its code
        return unencodable(worse)


def stopped(task: Task) -> Outcome:
    """Return the outcome of a body that ended because it was told to."""
    assert task.stop_code is not None
    return outcomes.refusal(task.stop_code, task.stop_reason, maybe_executed=True)


def unencodable(error: BaseException) -> Outcome:
    """Return the outcome of a call whose result or exception broke its own encoding."""
    name = type(error).__name__
    return outcomes.refusal(
        ErrorCode.BAD_ARGUMENT, f"the result cannot be encoded: {name}", maybe_executed=True
    )


def _unsendable(error: SerializationError) -> Outcome:
    return outcomes.refusal(ErrorCode.BAD_ARGUMENT, str(error), maybe_executed=True)


# ---- generators --------------------------------------------------------------------------------


def _iterate(
    seat: Seat, task: Task, context: contextvars.Context, iterable: Any, begun_at: float
) -> Outcome:
    """Send what `iterable` yields, as the caller allows it."""
    iterator, error = seat.attempt(task, context.run, _iter, iterable)
    if error is not None:
        return of_error(task, error)
    produced = 0
    while True:
        if not task.can_yield(produced):
            task.gate.wait(partial(task.can_yield, produced))
        if task.stop_code is not None:
            _close(seat, task, context, iterator)
            return stopped(task)
        value, error = seat.attempt(task, context.run, next, iterator)
        if error is None:
            try:
                item, buffers = outcomes.item(value, task.may_ship, produced)
            except SerializationError as unsendable:
                _close(seat, task, context, iterator)
                return _unsendable(unsendable)
            task.say(item, buffers)
            produced += 1
        elif isinstance(error, StopIteration):
            return of_value(task, error.value, time.perf_counter() - begun_at)
        else:
            return of_error(task, error)


def _iter(iterable: Any) -> Iterator[Any]:
    try:
        return iter(iterable)
    except TypeError:
        raise TypeError(
            f"a function that was registered with stream=True returned a "
            f"{type(iterable).__name__}, which cannot be iterated"
        ) from None


def _close(seat: Seat, task: Task, context: contextvars.Context, iterator: Any) -> None:
    """Let a generator that is left early clean up; what it raises then has no reader."""
    close = getattr(iterator, "close", None)
    if close is not None:
        task.interrupt_due = False  # It is ending already.
        seat.attempt(task, context.run, close)


# ---- async def ---------------------------------------------------------------------------------


async def run_async(task: Task) -> Outcome:
    """Run the body of an async function in the running task, whose context is its own.

    What stops the body (`CancelledError`, `trio.Cancelled`) passes through to the loop, which
    knows what it means.
    """
    with visible.during(task.call.context.get(visible.VISIBLE_KEY)):
        return await _run_async(task)


async def _run_async(task: Task) -> Outcome:
    begun_at, pid = time.perf_counter(), forked.current_pid()
    error: BaseException | None = None
    try:
        args, kwargs = _arguments(task, None)
        task.entered = True
        value = task.function.fn(*args, **kwargs)
        del args, kwargs
        if hasattr(value, "__await__"):
            value = await value
        if task.function.shape.stream:
            return await _iterate_async(task, value, begun_at)
    except Exception as raised:  # noqa: BLE001 - the task boundary
        error = raised
        return of_error(task, error) if task.entered else _undecoded(task, error)
    except BaseException as raised:
        error = raised
        raise
    finally:
        if forked.current_pid() != pid:
            forked.end_child(error)
    return of_value(task, value, time.perf_counter() - begun_at)


async def _iterate_async(task: Task, iterable: Any, begun_at: float) -> Outcome:
    """Send what an async generator, or what an async function returned, yields."""
    iterator = _aiter(iterable)
    produced = 0
    try:
        while True:
            if not task.can_yield(produced):
                await task.gate.wait_async(partial(task.can_yield, produced))
            if task.stop_code is not None:
                return stopped(task)
            try:
                value = await iterator.__anext__()
            except StopAsyncIteration as end:
                returned = end.args[0] if end.args else None
                return of_value(task, returned, time.perf_counter() - begun_at)
            try:
                item, buffers = outcomes.item(value, task.may_ship, produced)
            except SerializationError as unsendable:
                return _unsendable(unsendable)
            task.say(item, buffers)
            produced += 1
    finally:
        close = getattr(iterator, "aclose", None)
        if close is not None:
            await close()


def _aiter(iterable: Any) -> Any:
    if hasattr(iterable, "__aiter__"):
        return iterable.__aiter__()
    return _FromSync(_iter(iterable))


class _FromSync:
    """An async iterator over a plain one, for an async function that returned a list."""

    def __init__(self, iterator: Iterator[Any]) -> None:
        self._iterator = iterator

    async def __anext__(self) -> Any:
        try:
            return next(self._iterator)
        except StopIteration as end:
            raise StopAsyncIteration(end.value) from None
