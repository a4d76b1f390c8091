"""The stage on which hosts live: started, frozen, thawed, killed and started again.

Theory. A host is a tree of tasks. To kill it is to cancel the tree after its connections were torn
from it, so that nothing which its `finally` blocks do is seen by others. To freeze it (SIGSTOP, a
laptop that sleeps) is to keep its tasks from being scheduled while the clock goes on: its timers
run out unnoticed, bytes pile up, and when it thaws it finds all of that at once.

Rules of this file. 1) A task belongs to the host in whose context it was started. 2) An exception
that leaves the tasks of a host that nobody killed is a bug of the product.
"""

from __future__ import annotations

import contextvars
import traceback
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import trio
from trio._core._run import GLOBAL_RUN_CONTEXT

if TYPE_CHECKING:
    from .world import World

HOST: contextvars.ContextVar[Host | None] = contextvars.ContextVar("HOST", default=None)


class RunQueue(deque[Any]):
    """Trio's queue of runnable tasks, without those of frozen hosts."""

    def append(self, task: Any) -> None:
        """A task could run: let it, or keep it until its host thaws."""
        host = task.context.get(HOST)
        if host is not None and host.frozen:
            host.withheld.append(task)
        else:
            super().append(task)


def install_queue() -> None:
    """Let hosts be frozen in this trio run."""
    runner = GLOBAL_RUN_CONTEXT.runner
    runner.runq = RunQueue(runner.runq)


class Host:
    """A machine or process of the cluster; `main` is what runs on it.

    Attributes:
        name: What the log and the network call it.
        up: It runs, frozen or not.
        frozen: Its tasks get no time.
        boots: How often it was started.
        started_at: When it was last started.
        nursery: Of its tasks, while it is up and has opened one.
    """

    restart_s = 1.0
    """After it ended by itself, it is started again this much later: a service manager."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.up = False
        self.frozen = False
        self.boots = 0
        self.started_at = 0.0
        self.withheld: deque[Any] = deque()
        self.nursery: trio.Nursery | None = None
        self._context: contextvars.Context | None = None
        self._scope = trio.CancelScope()
        self._gone = trio.Event()
        self._wanted = False

    async def main(self) -> None:
        """Run until it ends by itself."""
        raise NotImplementedError

    def torn(self) -> None:
        """It is killed: what is left of it in memory must not touch what outlives it."""

    # ---- its life ------------------------------------------------------------------------------

    def start(self) -> None:
        """Boot it; without effect if it is up."""
        self._wanted = True
        if self.up:
            return
        self.up = True
        self.boots += 1
        self.started_at = trio.current_time()
        self._scope, self._gone = trio.CancelScope(), trio.Event()
        self.world.log.say(self.name, "starts", boot=self.boots)
        self.world.nursery.start_soon(self._live, self._scope, self._gone)

    async def _live(self, scope: trio.CancelScope, gone: trio.Event) -> None:
        HOST.set(self)
        self._context = contextvars.copy_context()
        try:
            with scope:
                await self.main()
            if not scope.cancelled_caught and not scope.cancel_called:
                self._ended()
        except Exception as error:  # noqa: BLE001 - the boundary of a host
            if not scope.cancel_called:
                text = "".join(traceback.format_exception(error))
                self.world.violation("CRASH", f"{self.name} broke", detail=text)
                self._ended()
        finally:
            gone.set()

    def _ended(self) -> None:
        self.up = False
        self.nursery = None
        self.world.network.abort(self)
        self.world.log.say(self.name, "ended")
        self.torn()
        self.world.timers.after(self.restart_s, self._again)

    def _again(self) -> None:
        if self._wanted:
            self.start()

    async def kill(self) -> None:
        """End it at once, as SIGKILL does; return when nothing of it is left."""
        self._wanted = False
        if not self.up:
            return
        self.world.log.say(self.name, "is killed")
        self.up = False
        self.nursery = None
        self.world.network.abort(self)
        self.torn()
        self._release()
        self._scope.cancel()
        await self._gone.wait()

    def freeze(self) -> None:
        """Give it no time until `thaw`."""
        if self.up and not self.frozen:
            self.world.log.say(self.name, "freezes")
            self.frozen = True

    def thaw(self) -> None:
        """Let it go on."""
        if self.frozen:
            self.world.log.say(self.name, "thaws")
            self._release()

    def _release(self) -> None:
        self.frozen = False
        runq = GLOBAL_RUN_CONTEXT.runner.runq
        while self.withheld:
            runq.append(self.withheld.popleft())

    def spawn(self, async_fn: Callable[..., Any], *args: Any) -> None:
        """Start a task on it, while it is up."""
        assert self._context is not None and self.nursery is not None
        self._context.run(self.nursery.start_soon, async_fn, *args)
