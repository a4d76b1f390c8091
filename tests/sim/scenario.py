"""What a seed draws: how large the cluster is, how short its timers, and what may go wrong.

Theory. A swarm: each seed turns on only some kinds of trouble, and each with an intensity of its
own, for bugs hide behind combinations, and a run with everything on finds the same few again and
again. Timers are short, so that a minute of virtual time passes each of them several times.

Rules of this file. 1) Whatever is drawn is drawn here, before the run, from the seed alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from easyremote.client import again
from easyremote.client import client as client_module
from easyremote.client import session as client_session
from easyremote.gateway import accounts, placing, recovery
from easyremote.gateway.limits import GatewayLimits
from easyremote.node import agent_nested, agent_orphans, agent_session
from easyremote.scheduler import pending
from easyremote.wire.settings import Settings
from tests.faults import Fault

from .machines import Machine, draw_machine
from .seeded import Replacement, child


class Trouble(StrEnum):
    """What may go wrong with a host, or with several things at once."""

    GATEWAY_KILL = "gateway_kill"
    NODE_KILL = "node_kill"
    CLIENT_KILL = "client_kill"
    WORKER_KILL = "worker_kill"
    GATEWAY_FREEZE = "gateway_freeze"
    NODE_FREEZE = "node_freeze"
    NODE_DRAIN = "node_drain"
    DISK_FULL = "disk_full"
    CLOCK_STEP = "clock_step"
    SWIZZLE = "swizzle"


LINE_FAULTS = tuple(fault for fault in Fault if fault is not Fault.CORRUPT)
"""There is no TLS in here, which in life turns a flipped bit into a cut."""

Kind = Fault | Trouble
ALL_KINDS: tuple[Kind, ...] = (*LINE_FAULTS, *Trouble)


@dataclass(frozen=True, slots=True)
class Scenario:
    """One run. Durations are virtual."""

    nodes: int
    clients: int
    slots: int | None
    safety_s: float
    faults: int
    kinds: tuple[Kind, ...]
    calls: int
    latency_s: float
    capacity_bytes: int
    link: Settings
    limits: GatewayLimits
    dial_s: float
    patience_s: float
    sent_patience_s: float
    orphan_s: float
    restarts_max: int
    flood: bool
    machines: tuple[Machine, ...]
    market: bool
    """Calls ask for resources, and are counted and billed."""
    crowd: bool
    """One user wants more than there is, and others want something, too."""
    large_bytes: int
    """How large the largest results are."""
    patience_queue_s: float
    pass_s: float

    @property
    def calm(self) -> bool:
        """Nothing goes wrong: every call has its known answer."""
        return not self.faults

    @property
    def notice_s(self) -> float:
        """Time after which everybody knows of every link that was lost: a lease and a ping."""
        return self.link.lease_s + self.link.ping_every_s + 1.0

    @property
    def recovery_s(self) -> float:
        """Time after which everybody is back once nothing is wrong any more.

        Both sides notice a dead link within a lease, a node id is free a ping later, attempts to
        come back are at most `PAUSE_MAX_S` apart, and a dial or greeting may hang once.
        """
        return 2 * self.link.lease_s + 10.0 + self.dial_s + self.link.handshake_timeout_s + 5.0

    @property
    def decision_s(self) -> float:
        """Time after which every call has an outcome once nothing is wrong any more."""
        waits = (
            self.sent_patience_s, self.orphan_s, recovery.RETURN_S,
            self.limits.client_grace_s, self.limits.offline_grace_s,
            self.limits.stall_s + 1.0, 2 * self.link.lease_s,
        )  # fmt: skip
        # Calls of one function may wait for one another: that is what the flood is about.
        work_s = FLOOD_CALLS * FLOOD_BODY_S if self.flood else 0.0
        work_s += CROWD_CALLS * CROWD_BODY_S if self.crowd else 0.0
        return self.recovery_s + max(waits) + work_s + self.calls * 2.0

    @property
    def forget_s(self) -> float:
        """Time after which nothing is remembered of calls that are over."""
        kept_s = max(self.limits.result_ttl_s, self.limits.client_grace_s)
        return kept_s + self.orphan_s + 2 * self.link.lease_s + 5.0

    @property
    def asked_s(self) -> float:
        """How long a restarted gateway is asked for calls of its past."""
        return self.sent_patience_s + 10.0

    @property
    def return_s(self) -> float:
        """How long what a call used before a restart may still be told."""
        return self.asked_s + 15.0

    def replacements(self, seed: int) -> list[Replacement]:
        """Return the timers that are constants of the product, as this run has them."""

        def settings() -> Settings:
            return self.link

        def secret(gateway_key: str, node_id: str) -> bytes:
            return child(seed, f"secret {node_id}").randbytes(32)

        return [
            (client_session, "PATIENCE_S", self.patience_s),
            (again, "SENT_PATIENCE_S", self.sent_patience_s),
            (recovery, "ASKED_S", self.asked_s),
            (accounts, "RETURN_S", self.return_s),
            (pending, "PATIENCE_S", self.patience_queue_s),
            (pending, "PATIENCE_CALLS", 16 if self.patience_queue_s > SHORT_S else 1),
            (placing, "PASS_S", self.pass_s),
            (agent_orphans, "RESULT_TTL_S", self.limits.result_ttl_s),
            (agent_orphans, "SPENT_S", self.asked_s + 10.0),
            (agent_nested, "ORPHAN_TTL_S", self.orphan_s),
            (client_module, "_retire", _nothing),
            (client_module, "_live", client_module._Live()),
            (agent_session, "gateway_link_settings", settings),
            (agent_session, "node_secret", secret),
        ]


def _nothing(*_: object) -> None:
    """Nobody collects the clients of a run before it is over."""


BODY_S_MAX = 8.0
"""The longest body."""
FLOOD_CALLS = 60
FLOOD_BODY_S = 1.0
"""What one client asks for at once in some runs: more than may wait."""

CROWD_CALLS = 24
CROWD_BODY_S = 0.5
"""What one user asks for at once in others."""
SHORT_S = 1.0
"""Patience of users in some runs: so short that it is lost now and then."""
SCALED_CALLS = 6
"""What asks for more replicas at the same time."""
STEADY_CALLS = 8
STEADY_EVERY_S = 1.5
"""What another user asks for meanwhile."""
LARGE_BYTES = 3_000_000


def draw(seed: int) -> Scenario:
    """Return the run of a seed."""
    rng = child(seed, "scenario")
    ping_s = rng.choice((1.0, 2.0))
    link = Settings(
        ping_every_s=ping_s, lease_s=3 * ping_s, handshake_timeout_s=rng.choice((2.0, 4.0)),
        write_deadline_s=rng.choice((2.0, 4.0)),
        abuse_burst=1e6, abuse_refill_per_s=1e6,
        slice_bytes_while_busy=rng.choice((1024, 64 * 1024)),
        streams_credit=rng.choice((8, 64, 256)), streams_credit_max=1024,
    )  # fmt: skip
    flood = rng.random() < 0.15
    limits = GatewayLimits(
        link=link,
        queued_max=40 if flood else 10_000, queued_user_max=30 if flood else 4096,
        stall_s=rng.choice((4.0, 8.0)), client_grace_s=rng.choice((4.0, 12.0)),
        offline_grace_s=rng.choice((3.0, 8.0)), cancel_slack_s=rng.choice((0.5, 2.0)),
        result_ttl_s=rng.choice((5.0, 10.0)),
    )  # fmt: skip
    calm = rng.random() < 0.1
    latency_s = rng.choice((0.0, 0.0, 0.001, 0.02, 0.1))
    # A line that holds little and is long carries too little for its timers.
    capacities = (1024, 8192, 65536, 65536) if latency_s <= 0.001 else (32768, 65536)
    kinds = tuple(rng.sample(ALL_KINDS, rng.randint(2, 6)))
    nodes, clients = rng.randint(1, 3), rng.randint(1, 3)
    more, capacity_bytes = child(seed, "market"), rng.choice(capacities)
    market = more.random() < 0.7
    crowd = market and not flood and (calm or more.random() < 0.3)
    wide = latency_s <= 0.001 and capacity_bytes >= 65536 and more.random() < 0.5
    return Scenario(
        nodes=nodes, clients=clients,
        slots=rng.choice((None, 1, 2)), safety_s=30.0,
        faults=0 if calm else rng.randint(3, 10), kinds=kinds,
        calls=rng.randint(15, 45), latency_s=latency_s,
        capacity_bytes=capacity_bytes, link=link, limits=limits,
        dial_s=rng.choice((2.0, 5.0)), patience_s=rng.choice((6.0, 12.0)),
        sent_patience_s=rng.choice((21.0, 40.0)), orphan_s=rng.choice((6.0, 12.0)),
        restarts_max=rng.choice((5, 1000, 1000)), flood=flood,
        machines=tuple(draw_machine(more, plain=not market, calm=calm) for _ in range(nodes)),
        market=market, crowd=crowd, large_bytes=LARGE_BYTES if wide else 400_000,
        patience_queue_s=more.choice((SHORT_S, 60.0)), pass_s=more.choice((1.0, 5.0)),
    )  # fmt: skip
