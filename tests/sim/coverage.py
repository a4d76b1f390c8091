"""What must have been reached over many seeds: a run that never gets there proves nothing.

Theory. An assertion that holds "always" is worth what the runs reached. These are the assertions
that must hold "sometimes": every kind of trouble was made, every outcome that callers can see was
seen, and every rare branch of the product was taken.

Rules of this file. 1) The list is explicit. 2) A probe counts and changes nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any

import trio

from easyremote.client.call import OutgoingCall
from easyremote.client.dialer import ClientLink
from easyremote.gateway.accounting import Accounting
from easyremote.gateway.accounts import Accounts
from easyremote.gateway.charge import Charge
from easyremote.gateway.dispatcher import Dispatcher
from easyremote.gateway.parking import Parking
from easyremote.gateway.placing import Placer
from easyremote.gateway.registry import Registry
from easyremote.gateway.session import Session
from easyremote.node.agent_calls import DispatchedCall
from easyremote.node.agent_session import GatewaySession
from easyremote.node.executor import Executor
from easyremote.node.pools import ReplicaPool
from easyremote.relay import Relay
from easyremote.writer import Writer

from .scenario import ALL_KINDS
from .seeded import Replacement

if TYPE_CHECKING:
    from .world import World

BRANCHES: dict[str, tuple[type[Any], str]] = {
    "a call goes again after a loss": (Relay, "attach_up"),
    "an outcome is kept for a caller that is away": (Parking, "keep"),
    "a call waits for its caller": (Parking, "away"),
    "a node takes over its old session": (Session, "replaced"),
    "a node id is asked for proof of life": (Session, "proves_alive"),
    "a call is placed again": (Placer, "place_again"),
    "a call waits at the gateway": (Placer, "_enqueue"),
    "the gateway gives a call up": (Dispatcher, "_settle"),
    "a body is told to stop": (Executor, "stop"),
    "a body does not stop": (Executor, "_abandon"),
    "a worker dies under a call": (DispatchedCall, "crashed"),
    "a call waits for a worker": (DispatchedCall, "hold"),
    "a client gives a call up at its deadline": (OutgoingCall, "_expire"),
    "a client loses a call": (OutgoingCall, "lose"),
    "a node comes back": (GatewaySession, "taken"),
    "a client comes back": (ClientLink, "on_welcome"),
    "a link is full": (Writer, "_becomes_full"),
    "a call comes back with a node and reserves again": (Placer, "_take_over"),
    "a call waits for the disk": (Accounting, "put"),
    "a charge is taken up after a restart": (Accounts, "_charge_of"),
    "a quota is looked at before a start": (Charge, "refusal"),
    "a quota cuts a call off": (Charge, "cut"),
    "a node gives a charged call back": (Charge, "taken_back"),
    "a hard quota leaves so much": (Charge, "seconds_allowed"),
    "a call on its quota fails for the system": (Charge, "decided"),
    "a pool of named nodes is made": (Registry, "pool_of_nodes"),
    "an idle replica ends": (ReplicaPool, "shrink"),
    "a replica is asked for": (ReplicaPool, "wanted"),
}
"""Rare branches of the product, by the method that takes them."""

WATCHED = (
    "a call reserves what it needs", "a node was kept for a call", "several replicas are wanted",
    "several users wait for one place", "several queues wait for one place",
    "a user loses patience", "a priority matters",
    "a node says nothing", "a node says nonsense", "a node lies",
    "row ok", "row never", "row lost", "row cancelled", "row unknown", "row deadline",
    "a steady user beside a crowd",
)  # fmt: skip
"""What watchers and checkers must have seen."""

RARE = frozenset({"a call is placed again", "a node gives a charged call back"})
"""Branches that take more seeds than continuous integration runs."""
RARE_FROM_SEEDS = 1000

OUTCOMES = (
    "result", "PlannedError", "TaskCancelledError", "TaskTimeoutError", "NodeLostError",
    "WorkerCrashedError", "GatewayUnreachableError", "NoHealthyNodesError", "OverloadedError",
    "QuotaExceededError", "InfeasibleError", "NoCapableNodeError",
)  # fmt: skip
"""What callers must have been told at least once over the seeds."""


class Probes:
    """Counts branches, and watches what only the inside shows.

    Attributes:
        world: The running one.
    """

    def __init__(self) -> None:
        self.world: World | None = None

    def replacements(self) -> list[Replacement]:
        """Return the product's methods with a count in front of them."""
        counted = [(kind, name, self._counted(what, getattr(kind, name)))
                   for what, (kind, name) in BRANCHES.items()]  # fmt: skip
        return [*counted, (Placer, "_dispatch", self._dispatch(Placer._dispatch))]

    def _counted(self, what: str, method: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(method)
        def counting(*args: Any, **kwargs: Any) -> Any:
            if self.world is not None:
                self.world.reached[what] += 1
            return method(*args, **kwargs)

        return counting

    def _dispatch(self, method: Callable[..., Any]) -> Callable[..., Any]:
        """P11: a call that has expired is not given to a node."""

        @wraps(method)
        def watched(placer: Placer, call: Any, *where: Any) -> Any:
            world, now = self.world, trio.current_time()
            late = call.deadline is not None and call.deadline < now
            given = method(placer, call, *where)
            if given and late and world is not None:
                world.violation("P11", f"call {call.message.call_id.hex()[:8]} dispatched late")
            return given

        return watched


def missing(faults: Counter[str], reached: Counter[str], seeds: int) -> list[str]:
    """Return what was never reached in so many seeds, and should have been."""
    kinds = [f"fault {kind.value}" for kind in ALL_KINDS if not faults[kind.value]]
    wanted = [name for name in BRANCHES if name not in RARE or seeds >= RARE_FROM_SEEDS]
    branches = [name for name in (*wanted, *WATCHED) if not reached[name]]
    outcomes = [f"outcome {name}" for name in OUTCOMES if not reached[f"outcome {name}"]]
    return [*kinds, *branches, *outcomes]
