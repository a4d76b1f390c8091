"""The workers of a node: started, kept running, started again, and ended.

Theory. Supervision in the sense of Erlang: the script is one permanent child, the replicas are
transient ones that are wanted by calls. What dies is started again, as often as `RestartIntensity`
allows; what dies more often is reported upwards and takes the node down (the script) or fails the
calls that wait for it (a replica). A script that says goodbye meant to end, and is left alone.

Rules of this file. 1) Only scripts that can be run again are; `rerun_plan` says which. 2) A script
that is run again must reach its `serve()` in `READY_S`. 3) No process outlives `end`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

import trio

from ..log import Log
from ..wire.errors import ErrorCode
from . import leash, memory
from .agent_calls import DispatchedCall
from .pools import MainPool, Pool, ReplicaPool
from .process import Child, Process, end_process, has_terminal, kill_descendants, reap
from .replica_plan import Devices, ReplicaPlan
from .rerun_plan import RerunPlan
from .restart import RestartIntensity, Restarts
from .spec import NodeSpec
from .starter import start_script
from .visible import environment_for
from .workers import WorkerEnd, WorkerOwner, WorkerProcess, WorkerState

_log = Log("node")

READY_S = 60.0
"""Time in which a script that is run again must reach its `serve()`."""
REPLICA_END_S = 2.0
SCRIPT_END_S = 10.0
"""Time that the script has for what stands after its `serve()`, once the node has ended."""
EXIT_FAILED = 1


class FamilyOwner(WorkerOwner, Protocol):
    """Who is told about the workers, and about the end of the one that matters."""

    def start_task(self, async_fn: Callable[..., Awaitable[object]], *args: Any) -> None:
        """Run a task that ends with the agent."""

    def call_gone(self, call: DispatchedCall) -> None:
        """A call is no longer anywhere here."""

    def script_ended(self, exit_code: int, reason: str) -> None:
        """The node cannot go on: the script ended, or dies too often."""


class Family:
    """The workers of one node.

    Attributes:
        main: The calls of the worker that serves everything.
        spec: The node; None until a script under `easyremote node` has announced it.
        serve: Which `serve()` of that node in the script it is.
        obstacle: Why the script cannot be run as a replica; empty if it can.
        leash: What the labels of the workers begin with; empty if they wear none.
    """

    def __init__(
        self, owner: FamilyOwner, plan: RerunPlan | None, *,
        obstacle: str, restarts: bool, intensity: RestartIntensity,
    ) -> None:  # fmt: skip
        self.main = MainPool(owner.call_gone, self.restart_stuck)
        self.spec: NodeSpec | None = None
        self.serve = 1
        self.obstacle = obstacle
        self.leash = ""
        self._owner = owner
        self._plan = plan
        self._may_restart = restarts
        self._intensity = intensity
        self._replicas: dict[str, ReplicaPool] = {}
        self._replica_restarts: dict[str, Restarts] = {}
        self._script: Process | None = None
        self._children: list[Child] = []
        self._workers: list[WorkerProcess] = []
        self._all_gone = trio.Event()
        self._ending = False
        self._had_terminal = has_terminal()
        self._said_no_replicas = False
        self._watches_all = False
        self._number = 0

    # ---- the script ------------------------------------------------------------------------------

    async def supervise(self, first: Callable[[], WorkerProcess]) -> None:
        """Keep the script running until it ends on purpose or cannot be kept running.

        Args:
            first: Makes the first worker.
        """
        restarts = Restarts(self._intensity)
        try:
            worker: WorkerProcess | None = first()
        except OSError as error:
            self._give_up(f"the script cannot be started: {error}")
            return
        ready_s = None
        while worker is not None:
            self.main.worker = worker
            self._script = worker.process
            end = await self._see_through(worker, ready_s)
            self.main.worker = None
            if self._ending:
                return
            if end.goodbye:
                self._owner.script_ended(0, "the script said goodbye")
                return
            worker, ready_s = await self._again(worker, end, restarts), READY_S

    async def _see_through(self, worker: WorkerProcess, ready_s: float | None) -> WorkerEnd:
        """Run a worker from its start to its end."""
        if isinstance(worker.process, Child):
            self._children.append(worker.process)
        self._workers.append(worker)
        try:
            return await worker.run(ready_s)
        finally:
            self._workers.remove(worker)
            if self._ending and not self._workers:
                self._all_gone.set()
            self._children = [child for child in self._children if child.status is None]
            if self.leash and not self._ending:
                self._owner.start_task(self._sweep, worker)

    async def _sweep(self, worker: WorkerProcess) -> None:
        """End what a worker left that has ended."""
        label = leash.label(self.leash, worker.number)
        spared = {worker.process.pid}  # A script that said goodbye may live on.
        killed = await trio.to_thread.run_sync(leash.sweep, label, spared)
        if killed:
            _log.info("ended what a worker left", pid=worker.process.pid, processes=killed)

    async def _again(
        self, worker: WorkerProcess, end: WorkerEnd, restarts: Restarts
    ) -> WorkerProcess | None:
        """Start the script again after it died; None if the node ends instead."""
        if self.spec is None:
            self._never_served(end)
            return None
        facts: dict[str, Any] = {
            "node_id": self.spec.node_id, "pid": worker.process.pid, "how": end.why,
        }  # fmt: skip
        obstacle = self._restart_obstacle(end)
        if obstacle is not None:
            _log.error("the script died and is not started again", **facts, reason=obstacle)
            self._give_up(f"the script {end.why}")
            return None
        pause_s = restarts.next_pause_s(trio.current_time())
        if pause_s is None:
            _log.error("the script keeps dying", **facts, limit=restarts.describe())
            self._give_up(f"the script {end.why}, after {restarts.describe()}")
            return None
        _log.warning("the script died, starting it again", **facts)
        await trio.sleep(pause_s)
        if self._ending:
            return None
        try:
            started = self._run_script(None)
        except OSError as error:
            self._give_up(f"the script cannot be started again: {error}")
            return None
        _log.info("script started", node_id=self.spec.node_id, pid=started.process.pid)
        return started

    def _restart_obstacle(self, end: WorkerEnd) -> str | None:
        """Return why the script cannot or should not be started again, or None."""
        if self._plan is None:
            return self.obstacle
        if not self._may_restart:
            return "its service manager does that, or a gateway ran in it"
        if end.status is None:
            return "it is still there"
        if self._had_terminal and not has_terminal():
            return "its terminal was closed"
        return None

    def restart_stuck(self, worker: WorkerProcess) -> None:
        """Every slot of the script is held by a body that does not stop: start it again."""
        if self._plan is not None and self._may_restart:
            worker.replace("every slot is held by a function that does not stop")

    def _never_served(self, end: WorkerEnd) -> None:
        """The first run of a script that we started ended before it called `serve()`."""
        status = end.status
        code = status.exit_code if status is not None and status.exit_code else EXIT_FAILED
        _log.error("the script ended without calling serve()", how=end.why)
        self._owner.script_ended(code, "no node")

    def _give_up(self, reason: str) -> None:
        self.main.fail_held(ErrorCode.WORKER_DIED, f"{reason}; the call did not begin")
        self._owner.script_ended(EXIT_FAILED, reason)

    def _run_script(self, group: str | None, devices: Devices = ()) -> WorkerProcess:
        """Run the script again, as a worker of `group`, pinned to devices if there are any.

        Raises:
            OSError: It cannot be started.
        """
        assert self._plan is not None and self.spec is not None
        self._number += 1
        started = start_script(
            self._plan, node_id=self.spec.node_id, serve=self.serve, group=group,
            label=leash.label(self.leash, self._number) if self.leash else "",
            more_env=environment_for(devices),
        )  # fmt: skip
        return WorkerProcess(
            self._owner, *started, group=group, number=self._number, devices=devices
        )

    # ---- replicas --------------------------------------------------------------------------------

    @property
    def replicable(self) -> bool:
        """Whether the script can be run as a replica."""
        return self._plan is not None and not self.obstacle

    def pool_of(self, entry: dict[str, Any], plan: ReplicaPlan | None) -> Pool:
        """Return where calls of a function go.

        Args:
            entry: What the script says of it.
            plan: How it runs in replicas, None if it does not.
        """
        if plan is None:
            if entry.get("isolation") == "process" and not self._said_no_replicas:
                self._said_no_replicas = True
                _log.warning(
                    "isolated functions run in the script's own process: it cannot be run again",
                    reason=self.obstacle,
                )  # fmt: skip
            return self.main
        return self.replica_pool(entry, plan)

    def replica_pool(self, entry: dict[str, Any], plan: ReplicaPlan) -> ReplicaPool:
        """Return the pool of a function that runs in replicas, as it is declared now."""
        pool = self._replicas.get(plan.group)
        if pool is None:
            pool = self._replicas[plan.group] = ReplicaPool(
                entry["name"], plan.group, plan.slots, self._owner.call_gone,
                self._start_replica, self._end_replica,
            )  # fmt: skip
            pool.kept = plan.least
            self._replica_restarts[plan.group] = Restarts(self._intensity)
        pool.sets = plan.devices
        pool.kept = plan.bound(pool.kept)
        pool.slots = max(1, pool.kept) if plan.scaling is not None else plan.slots
        isolated = entry.get("isolation") == "process"
        pool.memory_bytes_max = memory.limit_of(entry.get("requirements")) if isolated else None
        return pool

    def replica_pools(self) -> list[ReplicaPool]:
        """Return the pools of all functions that run, or ran, in replicas."""
        return list(self._replicas.values())

    def replicas(self) -> dict[str, int]:
        """Return how many replicas serve each function that has some."""
        return {pool.function: pool.alive for pool in self._replicas.values() if pool.alive}

    def _end_replica(self, worker: WorkerProcess) -> None:
        """End a replica that has no call."""
        worker.retire()
        self._owner.start_task(worker.end, REPLICA_END_S)

    def _start_replica(self, pool: ReplicaPool, devices: Devices) -> None:
        """Start one more replica of the script for a function."""
        if self._ending:
            return
        try:
            worker = self._run_script(pool.group, devices)
        except OSError as error:
            pool.fail_held(ErrorCode.WORKER_DIED, f"no process can be started: {error}")
            return
        pool.workers.append(worker)
        self._owner.start_task(self._run_replica, pool, worker)
        if not self._watches_all and "memory" in self._limits:
            self._watches_all = True
            self._owner.start_task(self._watch_all_memory)

    async def _run_replica(self, pool: ReplicaPool, worker: WorkerProcess) -> None:
        async with trio.open_nursery() as nursery:
            if pool.memory_bytes_max is not None:
                nursery.start_soon(self._watch_memory, pool, worker)
            end = await self._see_through(worker, READY_S)
            nursery.cancel_scope.cancel()
        pool.worker_gone(worker)
        if self._ending:
            return
        if not end.was_ready or (pool.kept and not end.told):
            _log.error(
                "a replica of the script died before it could serve"
                if not end.was_ready
                else "a replica of the script died",
                function=pool.function, how=end.why,
            )  # fmt: skip
            pause_s = self._replica_restarts[pool.group].next_pause_s(trio.current_time())
            if pause_s is None:
                pool.kept = 0
                pool.fail_held(
                    ErrorCode.WORKER_DIED,
                    f"the processes for {pool.function} do not start: the script {end.why}",
                )
                return
            await trio.sleep(pause_s)
        pool.wanted()

    # ---- their memory ----------------------------------------------------------------------------

    @property
    def _limits(self) -> Mapping[str, Any]:
        return {} if self.spec is None else self.spec.limits

    async def _watch_memory(self, pool: ReplicaPool, worker: WorkerProcess) -> None:
        """Kill a replica that uses more than its function asked for."""
        while (limit_bytes := pool.memory_bytes_max) is not None:
            used = memory.used_bytes(worker.process.pid, limit_bytes)
            if used > limit_bytes:
                self._over(worker, used, limit_bytes, f"the memory that {pool.function} requires")
                return
            busy = worker.calls or worker.state is WorkerState.STARTING
            await trio.sleep(memory.LOOK_EVERY_S if busy else memory.LOOK_IDLE_S)

    async def _watch_all_memory(self) -> None:
        """Kill the largest replica when all workers together use more than the owner allows."""
        limit_bytes = memory.parse_size(self._limits["memory"])[1]
        warned = False
        while True:
            sizes = {w: memory.used_bytes(w.process.pid, 0) for w in self._workers}
            used = sum(sizes.values())
            replicas = [worker for worker in sizes if worker.group is not None]
            if any(worker.state is WorkerState.ENDING for worker in replicas):
                pass  # One was told to go just now: look again when it is gone.
            elif used > limit_bytes and replicas:
                largest = max(replicas, key=lambda worker: sizes[worker])
                self._over(largest, used, limit_bytes, "limits.memory, all workers together")
            elif used > limit_bytes and not warned:
                warned = True
                _log.warning(
                    "the script alone uses more memory than limits.memory; it is never killed",
                    used=memory.human(used), limit=memory.human(limit_bytes),
                )  # fmt: skip
            await trio.sleep(memory.LOOK_EVERY_S if replicas else memory.LOOK_IDLE_S)

    def _over(self, worker: WorkerProcess, used: int, limit_bytes: int, whose: str) -> None:
        worker.kill("it used too much memory", why=memory.over(used, limit_bytes, whose))

    # ---- all of them -----------------------------------------------------------------------------

    def worker_ready(self, worker: WorkerProcess) -> None:
        """A worker takes calls."""
        if worker.group is None:
            self.main.pump()
        elif (pool := self._replicas.get(worker.group)) is not None:
            pool.worker_ready(worker)

    def worker_credit(self, worker: WorkerProcess) -> None:
        """A worker takes more calls than before."""
        pool: Pool | None = self.main
        if worker.group is not None:
            pool = self._replicas.get(worker.group)
        if pool is not None:
            pool.pump()

    def reap(self) -> None:
        """Collect what has ended below us, inherited orphans included."""
        reap(self._children)

    async def end(self, *, at_once: bool) -> None:
        """Say goodbye to every worker and see the processes that we started to their end."""
        self._ending = True
        alive = [worker.process for worker in self._workers]
        async with trio.open_nursery() as nursery:
            for worker in self._workers:
                grace_s = SCRIPT_END_S if worker.group is None else REPLICA_END_S
                nursery.start_soon(worker.end, 0.0 if at_once else grace_s)
            for child in self._children:
                if child not in alive:  # It said goodbye before we did.
                    nursery.start_soon(end_process, child, 0.0 if at_once else SCRIPT_END_S)
        if self._workers:
            await self._all_gone.wait()

    @property
    def script_exit_code(self) -> int:
        """What the script exited with last, as far as we can see that; 0 if it was killed."""
        status = self._script.status if isinstance(self._script, Child) else None
        return 0 if status is None else status.exit_code or 0

    def kill_rest(self) -> None:
        """Kill whatever is left below this process, and what the script left beside it."""
        kill_descendants(self._children)
        if self.leash:
            leash.sweep(self.leash, () if self._script is None else {self._script.pid})
