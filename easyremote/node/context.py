"""What a running function may ask about its own call.

Rules of this file. 1) `context()` works in the thread or task that runs the body, and wherever a
copy of its context variables travels (`asyncio.to_thread`, tasks that it starts). 2) Everything
here may be used from any thread; nothing blocks.
"""

from __future__ import annotations

import time
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from ..errors import EasyRemoteError
from .visible import GPUS_KEY

if TYPE_CHECKING:
    from .task import Task

current_task: ContextVar[Task | None] = ContextVar("current_task", default=None)
"""The call whose body runs here."""


class CallContext:
    """One running call, seen from inside.

    >>> context().principal  # doctest: +SKIP
    'alice'
    """

    __slots__ = ("_task",)

    def __init__(self, task: Task) -> None:
        self._task = task

    @property
    def principal(self) -> str:
        """Who calls, as the gateway authenticated it. Never taken from an argument."""
        return self._task.call.principal

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles of the token that the caller used."""
        return tuple(self._task.call.roles)

    @property
    def call_id(self) -> str:
        """The identity of the call, the same in every log along its way."""
        return self._task.call.call_id.hex()

    @property
    def node_id(self) -> str:
        """The node that runs the call."""
        return self._task.executor.node_id

    @property
    def function(self) -> str:
        """The name under which the function was called."""
        return self._task.call.function

    @property
    def attempt(self) -> int:
        """0 for the first attempt; more only where the call was declared idempotent."""
        call = self._task.call
        made_before: int = call.context.get("attempt", 0)
        return made_before + call.attempt - 1

    @property
    def deadline(self) -> float | None:
        """When the caller stops waiting, on the clock `time.monotonic()`; None means never."""
        return self._task.deadline

    @property
    def remaining_s(self) -> float | None:
        """Seconds until the deadline, not negative; None means no deadline."""
        deadline = self._task.deadline
        return None if deadline is None else max(0.0, deadline - time.monotonic())

    @property
    def gpu_ids(self) -> tuple[int, ...]:
        """The GPUs that this call may use, by their indexes among those that the node sees.

        `CUDA_VISIBLE_DEVICES` says the same, so to CUDA they are the devices 0, 1 and so on.
        """
        gpus = self._task.call.context.get(GPUS_KEY)
        return tuple(one for one in gpus if type(one) is int) if type(gpus) is list else ()

    def cancelled(self) -> bool:
        """Whether the call should stop: it was cancelled, or its deadline has passed.

        A function that has asked and was told so counts as cancelled when it returns.
        """
        task = self._task
        if task.stop_code is None:
            return False
        task.stop_seen = True
        return True

    def progress(self, value: Any) -> None:
        """Tell the caller how far the call is; any plain value.

        Only the newest value is kept while an earlier one has not left yet, so calling it often
        costs little.

        Raises:
            SerializationError: The value cannot travel.
        """
        self._task.report_progress(value)

    def __repr__(self) -> str:
        return f"<CallContext {self.function} of {self.principal} call_id={self.call_id}>"


def context() -> CallContext:
    """Return the context of the call that runs here.

    Raises:
        EasyRemoteError: No call runs here; the message says what to do.
    """
    task = current_task.get()
    if task is None:
        raise EasyRemoteError(
            "context() works inside a function that a node runs for a caller. In a thread that "
            "the function starts, pass the object that context() returned."
        )
    return CallContext(task)
