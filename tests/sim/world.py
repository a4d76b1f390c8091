"""One cluster, everything that is known about it, and what was found wrong with it."""

from __future__ import annotations

import shutil
from collections import Counter
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from easyremote.gateway.store import Store
from easyremote.identity.join import JoinString
from easyremote.identity.role import Role
from easyremote.timers import Timers

from .functions import Start
from .hosts import ADDRESS, PIN, ClientHost, GatewayHost, NodeHost
from .log import EventLog
from .network import SimNetwork
from .scenario import Scenario
from .seeded import WALL_EPOCH_S, child

if TYPE_CHECKING:
    from .workload import CallPlan, CallRecord

USERS = ("alice", "bob", "carol")


class Template:
    """A database with tokens in it, made once and copied for each run."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "template.db"
        rng = child("all", "template")
        store = Store(self.path, clock=lambda: WALL_EPOCH_S, random_bytes=rng.randbytes)
        self.tokens = {user: store.create_token(Role.MEMBER, user).text() for user in USERS}
        node = store.create_token(Role.NODE, "owner")
        self.joins = {"node": JoinString((ADDRESS.host,), ADDRESS.port, PIN, node).encode()}
        store.close()

    def copy_to(self, path: Path) -> None:
        """Make a fresh database."""
        for old in path.parent.glob(f"{path.name}*"):
            old.unlink()
        shutil.copyfile(self.path, path)


class World:
    """One run. Made inside the trio run.

    Attributes:
        seed: Of the run.
        scenario: What the seed drew.
        log: What happened.
        violations: (promise, sentence): what should not have happened.
        plans: The calls that clients will make, by number.
        calls: The calls that clients made.
        starts: Every start of a body, by the number of the call.
        faults: How often each kind of trouble was made.
        reached: What rare things happened.
        wall_offset_s: How far the gateway's wall clock is off.
    """

    def __init__(
        self, seed: int, scenario: Scenario, template: Template, folder: Path,
        nursery: trio.Nursery, *, echo: bool = False,
    ) -> None:  # fmt: skip
        self.seed = seed
        self.scenario = scenario
        self.nursery = nursery
        self.tokens, self.joins = template.tokens, template.joins
        self.database = folder / "gateway.db"
        template.copy_to(self.database)
        self.log = EventLog(trio.current_time, echo=echo)
        self.timers = Timers(trio.current_time)
        self.network = SimNetwork(self.timers)
        self.violations: list[tuple[str, str]] = []
        self.plans: dict[int, CallPlan] = {}
        self.calls: list[CallRecord] = []
        self.starts: dict[int, list[Start]] = {}
        self.faults: Counter[str] = Counter()
        self.reached: Counter[str] = Counter()
        self.disk_full = False
        self.wall_offset_s = 0.0
        self.healed_at: float | None = None
        self._pids = count(1000)
        self._build()

    def _build(self) -> None:
        scenario, network = self.scenario, self.network
        self.gateway = GatewayHost(self, "gateway")
        network.gateway = self.gateway
        self.nodes = [
            NodeHost(self, f"node-{number}", scenario.slots, machine)
            for number, machine in enumerate(scenario.machines, 1)
        ]
        self.clients = [
            ClientHost(self, f"client-{number}", USERS[number - 1])
            for number in range(1, scenario.clients + 1)
        ]
        for host in (*self.nodes, *self.clients):
            line = network.add_line(host.name, child(self.seed, f"line {host.name}"))
            line.base_latency_s = line.latency_s = scenario.latency_s
            line.capacity_bytes = scenario.capacity_bytes

    @property
    def hosts(self) -> list[GatewayHost | NodeHost | ClientHost]:
        """Everybody."""
        return [self.gateway, *self.nodes, *self.clients]

    def missing_hosts(self) -> list[GatewayHost | NodeHost | ClientHost]:
        """Return who is not up and at the gateway."""
        gateway = self.gateway.gateway
        if gateway is None:
            return list(self.hosts)
        missing: list[GatewayHost | NodeHost | ClientHost] = []
        for node in self.nodes:
            session = None if node.agent is None else node.agent._session
            if session is None or not session.registered or not gateway.node_session(node.name):
                missing.append(node)
        missing += [client for client in self.clients if not client.connected]
        return missing

    def wall_now(self) -> float:
        """What the gateway's wall clock shows."""
        return WALL_EPOCH_S + trio.current_time() + self.wall_offset_s

    def next_pid(self) -> int:
        """Return the number of a new process."""
        return next(self._pids)

    def violation(self, promise: str, sentence: str, *, detail: str = "") -> None:
        """Something happened that was promised not to."""
        self.log.say("VIOLATION", promise, said=sentence)
        self.violations.append((promise, f"{sentence}\n{detail}" if detail else sentence))
