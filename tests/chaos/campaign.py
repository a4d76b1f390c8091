"""A campaign: one gateway, some nodes, some clients, and somebody who kills them.

Theory. One loop does everything that happens to the processes: it starts again what died, as a
service manager would; it ends stops; it waits for the point of the next shot, and fires. Clients
call all the time and notice nothing but what they are told. At the end all faults are healed, and
then a *liveness phase* begins: everybody must be there again, and every open call must come to an
outcome in a bounded time. Only then are processes asked to end, and the logs are compared.

Rules of this file. 1) Every wait is bounded. 2) What must be true of processes (nobody outlives
their agent, nobody is left at the end) is checked here, what must be true of calls in `history`.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path

from easyremote import Client, EasyRemoteError, NodeInfo

from .links import Links
from .shots import SIGNALS, Killer, Point, Shot
from .watch import Tail
from .world import Proc, Role, World

TICK_S = 0.01
LOOK_S = 0.003
KEEP_EVERY_S = 0.25
POINT_WAIT_S = 1.0
"""A shot whose point does not come is fired anyway."""
LIFE_WAIT_S = 8.0
"""Before each shot something must run again: who only shoots at the dead learns nothing."""
OUTLIVE_S = 12.0
"""A worker is gone this long after its agent, at most: its bodies have 5 s to end."""
START_LIMIT_S = 30.0
BACK_LIMIT_S = 45.0
"""In the liveness phase everybody is back by then."""
SETTLE_S = 60.0
"""And every open call has an outcome by then: twice the patience of a client."""
END_LIMIT_S = 45.0
ASK_S = 3.0
OBSERVER = "observer"
GATEWAY_DRAIN_S = 3.0
BY_COMMAND = ("node-1", "node-3", "node-5", "node-7")
"""Nodes that `easyremote node` runs; the scripts of the others start their agents."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What a campaign is."""

    seed: int
    kills: int
    limit_s: float
    targets: Collection[Role] = tuple(Role)
    nodes: int = 4
    clients: int = 8
    rate: float = 8.0
    """Calls that each client makes in a second."""
    lease_s: float = 3.0
    gap_s: tuple[float, float] = (0.2, 2.0)
    faults: bool = True
    """Whether the links of one node and of one client have faults, too."""
    whole: bool = False
    """Each shot waits until every node is back at the gateway, so that it hits a whole cluster."""
    kills_only: bool = False
    """No stops, no SIGTERM: every shot is kill -9."""


@dataclass(frozen=True, slots=True)
class Fired:
    """A shot that hit."""

    t: float
    shot: Shot
    proc: Proc
    at_point: bool


@dataclass
class Campaign:
    """One run. See the module."""

    settings: Settings
    world: World
    links: Links
    fired: list[Fired] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    progress: Callable[[Campaign], None] | None = None
    joins: dict[str, str] = field(default_factory=dict)
    _conts: list[tuple[float, Proc]] = field(default_factory=list)
    _orphaned: dict[str, float] = field(default_factory=dict)
    _gateway_due: float | None = None
    _generations: Counter[str] = field(default_factory=Counter)
    _procs: list[Proc] = field(default_factory=list)

    @property
    def kills(self) -> int:
        """How many processes were killed with signal 9."""
        return sum(one.shot.number is signal.SIGKILL for one in self.fired)

    @property
    def faults(self) -> Counter[str]:
        """How often the links had which fault."""
        return Counter({str(fault): count for fault, count in self.links.applied.items()})

    # ---- from the beginning to the end -----------------------------------------------------------

    def run(self) -> None:
        """Start everything, shoot, heal, wait for everybody, and end everything."""
        try:
            self._begin()
            self._shoot()
            self._heal()
        finally:
            self._end()

    def _begin(self) -> None:
        self.world.start_gateway()
        assert self.world.wait_port(START_LIMIT_S), "the gateway did not start"
        self.joins[OBSERVER] = make_join(self.world, "member")
        for member in self.links.ports:
            role = ["node", "--node", member] if member.startswith("node") else ["member"]
            self.joins[member] = make_join(self.world, *role)
        for node_id in self._node_ids():
            self._start_node(node_id)
        if not self._wait_nodes(START_LIMIT_S):
            raise AssertionError("the nodes did not come up")
        for n in range(1, self.settings.clients + 1):
            self._start_client(f"client-{n}")

    def _shoot(self) -> None:
        settings = self.settings
        killer = Killer(
            settings.seed, settings.targets, lease_s=settings.lease_s, gap_s=settings.gap_s,
            signals={signal.SIGKILL: 1} if settings.kills_only else SIGNALS,
        )  # fmt: skip
        until = time.monotonic() + settings.limit_s
        keep_at = time.monotonic()
        fire_at = keep_at + settings.gap_s[0]
        fault_at = time.monotonic() if self.links.ports else until
        alive = Tail(self.world.markers)
        while self.kills < settings.kills and time.monotonic() < until:
            now = time.monotonic()
            if now >= keep_at:
                self.keep()
                keep_at = now + KEEP_EVERY_S
                if self.progress is not None:
                    self.progress(self)
            if now >= fault_at:
                gap_s, step = killer.step(list(self.links.ports))
                self.links.apply(step)
                self._note(f"{step.link} {step.fault} {step.duration_s:g} {step.direction}")
                fault_at = now + gap_s
            if now >= fire_at and (alive.marks() or now >= fire_at + LIFE_WAIT_S):
                if settings.whole and not self._wait_nodes(BACK_LIMIT_S):
                    self.violations.append(f"not every node was back within {BACK_LIMIT_S:g} s")
                shot = killer.shot()
                self._aim_and_fire(shot)
                fire_at = time.monotonic() + shot.pause_s
                alive.skip()
            time.sleep(TICK_S)

    def _heal(self) -> None:
        """End all faults; everybody must come back, and every call to an outcome."""
        self.links.heal()
        for _, proc in self._conts:
            self.world.hit(proc, signal.SIGCONT)
        self._conts.clear()
        if not self._wait_nodes(BACK_LIMIT_S):
            self.violations.append(f"not every node was back within {BACK_LIMIT_S:g} s")
        for proc in self.world.scan():
            if proc.role is Role.CLIENT:
                self.world.hit(proc, signal.SIGTERM)
        until = time.monotonic() + SETTLE_S + 10.0
        while any(proc.role is Role.CLIENT for proc in self.world.scan()):
            if time.monotonic() > until:
                self.violations.append("a client did not end")
                break
            self.keep(revive_clients=False)
            time.sleep(KEEP_EVERY_S)

    def _end(self) -> None:
        """Ask everybody to end, nodes first; nobody may be left.

        The gateway is asked twice: calls of killed clients may still wait in it, and their grace
        is longer than anybody wants to wait here.
        """
        for role, limit_s in (
            (Role.AGENT, END_LIMIT_S),
            (Role.GATEWAY, GATEWAY_DRAIN_S),
            (Role.GATEWAY, END_LIMIT_S),
        ):
            for proc in self.world.scan():
                if proc.role is role:
                    self.world.hit(proc, signal.SIGTERM)
            gone = {Role.AGENT, Role.WORKER, Role.REPLICA} if role is Role.AGENT else {role}
            until = time.monotonic() + limit_s
            while time.monotonic() < until and any(p.role in gone for p in self.world.scan()):
                time.sleep(0.05)
        self.violations += [
            f"left behind: {proc.role} of {proc.member} (pid {proc.pid})"
            for proc in self.world.end()
        ]

    # ---- keeping everybody alive -----------------------------------------------------------------

    def keep(self, *, revive_clients: bool = True) -> None:
        """Start again what died, as a service manager would; end stops that are over."""
        now = time.monotonic()
        for due, proc in list(self._conts):
            if now >= due:
                self.world.hit(proc, signal.SIGCONT)
                self._conts.remove((due, proc))
        self._procs = procs = self.world.scan()
        alive = {proc.member for proc in procs}
        if "gateway" not in alive:
            if self._gateway_due is None:
                self._gateway_due = now + (self.fired[-1].shot.down_s if self.fired else 0.0)
            if now >= self._gateway_due:
                self._gateway_due = None
                self.world.start_gateway()
        for node_id in self._node_ids():
            self._keep_node(node_id, [proc for proc in procs if proc.member == node_id], now)
        if revive_clients:
            for n in range(1, self.settings.clients + 1):
                if f"client-{n}" not in alive:
                    self._start_client(f"client-{n}")

    def _keep_node(self, node_id: str, procs: list[Proc], now: float) -> None:
        if not procs:
            self._orphaned.pop(node_id, None)
            self._start_node(node_id)
            return
        if any(proc.role is Role.AGENT for proc in procs) or self._young(node_id, procs):
            self._orphaned.pop(node_id, None)
            return
        if any(proc in procs for _, proc in self._conts):  # Who is stopped cannot end.
            self._orphaned.pop(node_id, None)
            return
        since = self._orphaned.setdefault(node_id, now)
        if now - since > OUTLIVE_S:
            for proc in procs:
                self.violations.append(
                    f"{proc.role} of {node_id} (pid {proc.pid}) outlived its agent"
                )
                self.world.hit(proc, signal.SIGKILL)

    def _young(self, node_id: str, procs: list[Proc]) -> bool:
        """Return whether a script that was started just now has no agent yet."""
        newest = max(self.world.born.get(proc.pid, 0.0) for proc in procs)
        return node_id not in BY_COMMAND and time.monotonic() - newest < START_LIMIT_S

    def _start_node(self, node_id: str) -> None:
        by_command = node_id in BY_COMMAND
        port, env = self._way_of(node_id)
        self.world.start_node(node_id, by_command=by_command, port=port, env=env)

    def _start_client(self, member: str) -> None:
        self._generations[member] += 1
        generation = self._generations[member]
        port, env = self._way_of(member)
        self.world.start_client(
            f"{member}.{generation}", member, rate=self.settings.rate, settle_s=SETTLE_S,
            seed=self.settings.seed, port=port, env=env,
        )  # fmt: skip

    def _way_of(self, member: str) -> tuple[int | None, dict[str, str]]:
        """Return the port that a member dials, and what it needs to be let in there."""
        port = self.links.ports.get(member)
        return port, {} if port is None else {"EASYREMOTE_JOIN": self.joins[member]}

    def _node_ids(self) -> list[str]:
        return [f"node-{n}" for n in range(1, self.settings.nodes + 1)]

    def _wait_nodes(self, limit_s: float) -> bool:
        """Wait until the gateway knows every node as connected, keeping everybody alive."""
        until = time.monotonic() + limit_s
        while time.monotonic() < until:
            self.keep(revive_clients=False)
            if healthy_nodes(self.joins[OBSERVER]) >= set(self._node_ids()):
                return True
            time.sleep(KEEP_EVERY_S)
        return False

    # ---- shooting --------------------------------------------------------------------------------

    def _aim_and_fire(self, shot: Shot) -> None:
        victim, at_point = self._aim(shot)
        if victim is None:
            return
        if shot.delay_s:
            time.sleep(shot.delay_s)
        if self.world.hit(victim, shot.number):
            now = time.monotonic()
            self.fired.append(Fired(now, shot, victim, at_point))
            self._note(f"{victim.member} {shot.describe()} {victim.pid} {shot.point} {at_point}")
            if shot.number is signal.SIGSTOP:
                self._conts.append((now + shot.stop_s, victim))

    def _note(self, text: str) -> None:
        """Write down what was done, for whoever reads the logs."""
        wall = time.strftime("%H:%M:%S", time.gmtime())
        with (self.world.folder / "events").open("a") as file:
            file.write(f"{time.monotonic():.3f} {wall} {text}\n")

    def _aim(self, shot: Shot) -> tuple[Proc | None, bool]:
        """Wait for the point of a shot, and choose who is hit."""
        if shot.point is not Point.RANDOM:
            tails = self._tails(shot.point)
            for tail in tails:
                tail.skip()
            until = time.monotonic() + POINT_WAIT_S
            keep_at = time.monotonic() + KEEP_EVERY_S
            while time.monotonic() < until:
                victim = self._victim_at_point(shot, tails)
                if victim is not None:
                    return victim, True
                if time.monotonic() >= keep_at:
                    self.keep()
                    keep_at = time.monotonic() + KEEP_EVERY_S
                time.sleep(LOOK_S)
        procs = [proc for proc in self._procs if proc.role is shot.role]
        return (procs[int(shot.draw * len(procs))] if procs else None), False

    def _tails(self, point: Point) -> list[Tail]:
        if point is Point.BEFORE:
            return [Tail(path) for path in self.world.folder.glob("client-*.jsonl")]
        return [Tail(self.world.markers)]

    def _victim_at_point(self, shot: Shot, tails: list[Tail]) -> Proc | None:
        if shot.point is Point.BEFORE:
            if not any('"submit"' in tail.lines() for tail in tails):
                return None
            procs = [proc for proc in self._procs if proc.role is shot.role]
            return procs[int(shot.draw * len(procs))] if procs else None
        for mark in tails[0].marks():
            if mark.ended is not (shot.point is Point.RESULT):
                continue
            member = mark.key.partition(".")[0] if shot.role is Role.CLIENT else mark.node_id
            if shot.role is Role.GATEWAY:
                member = "gateway"
            for proc in self._procs:
                if proc.role is not shot.role or proc.member != member:
                    continue
                if shot.role not in (Role.WORKER, Role.REPLICA) or proc.pid == mark.pid:
                    return proc
        return None


def make_join(world: World, role: str, *words: str) -> str:
    """Make a token of this role by the command line and return its join string."""
    done = subprocess.run(
        [sys.executable, "-m", "easyremote", "token", "create", "--role", role, "--user", "chaos",
         *words],
        env={**world.environment("command"), "EASYREMOTE_GATEWAY": world.address},
        capture_output=True, text=True, timeout=30, check=True,
    )  # fmt: skip
    return done.stdout.split()[-1]


def takes_calls(node: NodeInfo) -> bool:
    """Return whether a node has registered and is healthy."""
    return node.health == "healthy" and bool(node.functions)


def healthy_nodes(join: str) -> set[str]:
    """Return the nodes that take calls, as the gateway says; none if it cannot be reached."""
    with Client(join=join) as client:
        try:
            client.connect(ASK_S)
            return {node.node_id for node in client.nodes() if takes_calls(node)}
        except EasyRemoteError:
            return set()


def run_campaign(
    folder: Path, settings: Settings, progress: Callable[[Campaign], None] | None = None
) -> Campaign:
    """Run a campaign in a folder, with proxies if its links are to have faults."""
    world = World(folder, settings.lease_s)
    names = (f"node-{settings.nodes}", f"client-{settings.clients}") if settings.faults else ()
    with Links(names, world.port, settings.seed) as links:
        campaign = Campaign(settings, world, links, progress=progress)
        campaign.run()
    return campaign
