"""Where a call may run, or why nowhere: who calls, what it names, and what it may see.

Theory. Three answers are kept apart. What the caller may not know of does not exist: the answer
to a name outside its scopes is, to the letter, the answer to a name that nobody ever registered.
What it may know of and not call is forbidden, and it is told which level is missing. What it may
call and nobody can run now is unavailable, and it is told about each provider.

Rules of this file. 1) Nothing changes here; a refusal is raised as `Refused`. 2) Suggestions are
made of names that the caller may see.

Source. decisions.md 14; features.md G10.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection
from typing import Any

from ..identity.role import Operation, Principal
from ..scheduler.capability import Effort, TooMuch, Wishes, lacks, matches
from ..scheduler.explain import offers as each_lacks
from ..scheduler.explain import sentence
from ..scheduler.model import Rejection, Unplaceable
from ..scheduler.units import shown
from ..wire.errors import ErrorCode
from ..wire.message import CODEC_PICKLE, Call
from .demands import BadDemand, Demand, Demands
from .offer import FUNCTION_NAME
from .pool import Class, NodeRecord, Offer, Pool, class_of, tags_of
from .registry import Registry, sees_node, visible

NAMED_NODES_MAX = 256
"""Node ids and labels in one call."""
REASON_CHARS_MAX = 4096
"""A reason may repeat what a peer sent; the answer must fit into one frame."""
ROUTES_MAX = 1024
"""Routes that are remembered for one principal on one link."""


class Refused(Exception):
    """The gateway does not take a call; what is said to the caller.

    Attributes:
        code: The kind of error.
        reason: One sentence that says what to do next.
        detail: Plain data for `errors.from_wire`.
    """

    def __init__(
        self, code: ErrorCode, reason: str, *, cls: str | None = None,
        retry_after_s: float | None = None, may_have_run: bool = False,
    ) -> None:  # fmt: skip
        if len(reason) > REASON_CHARS_MAX:
            reason = reason[: REASON_CHARS_MAX - 3] + "..."
        super().__init__(reason)
        self.code = code
        self.reason = reason
        self.detail: dict[str, Any] = {} if cls is None else {"class": cls}
        self.retry_after_s = retry_after_s
        self.may_have_run = may_have_run


def check_codec(principal: Principal, codec: int) -> None:
    """Refuse a pickle of a caller whose role may not ship any.

    Raises:
        Refused: Only plain data is taken from this caller.
    """
    if codec == CODEC_PICKLE and not principal.may(Operation.SHIP):
        raise Refused(
            ErrorCode.UNSUPPORTED_CODEC,
            f"a {principal.role.value} may send plain data and arrays only; this argument needs a "
            "pickle. Send plain data, or ask for a token of role member",
        )


class Routes:
    """Remembers where the calls of one principal go, until the registry changes."""

    __slots__ = ("_known", "_principal", "_registry", "_version")

    def __init__(self, registry: Registry, principal: Principal) -> None:
        self._registry = registry
        self._principal = principal
        self._version = -1
        self._known: dict[tuple[Any, ...], Pool] = {}

    def find(self, message: Call) -> Pool:
        """Return the pool of places where a call may run.

        Raises:
            Refused: There is none; see `route`.
        """
        registry = self._registry
        demand = demand_of(message) if message.options else None
        if self._version != registry.version:
            self._version = registry.version
            self._known.clear()
        node_ids = message.node_ids
        key: tuple[Any, ...] = (
            (message.function,) if node_ids is None else (message.function, *node_ids)
        )
        if demand is not None:
            key = (demand, *key)
        pool = self._known.get(key)
        if pool is None or pool.guarded or not pool.places:
            pool = route(registry, self._principal, message)
            if len(self._known) < ROUTES_MAX:
                self._known[key] = pool
        return pool


def route(registry: Registry, principal: Principal, message: Call) -> Pool:
    """Return the pool of places where a call may run.

    Raises:
        Refused: There is none; see the module.
    """
    if not principal.may(Operation.CALL):
        raise Refused(
            ErrorCode.FORBIDDEN, f"a token of role {principal.role.value} cannot call functions"
        )
    name, node_ids = message.function, message.node_ids
    if node_ids is None and "." in name:
        node_id, _, name = name.rpartition(".")
        node_ids = [node_id]
    demand = demand_of(message)
    kind = class_of(demand)
    if node_ids is not None:
        pool = _named_pool(registry, principal, name, node_ids, kind)
    else:
        found = registry.pool_by_name(name, principal, kind)
        if found is None:
            raise not_found(registry, principal, name)
        pool = found
    if demand is not None and demand.wishes:
        pool = _capable(registry, principal, pool, demand, message.options)
    if not pool.places or pool.guarded:
        return _checked(registry, principal, pool)
    return pool


_demands = Demands()
"""What options mean is the same for everybody, and is worked out once."""


def demand_of(message: Call) -> Demand | None:
    """Return what the options of a call ask of its place.

    Raises:
        Refused: They cannot be read.
    """
    try:
        return _demands.read(message.options)
    except BadDemand as error:
        raise Refused(ErrorCode.BAD_ARGUMENT, str(error)) from None


def priority_of(message: Call) -> int:
    """Return which of its user's calls goes first: higher is earlier.

    Raises:
        Refused: The options cannot be read.
    """
    demand = demand_of(message)
    return 0 if demand is None else demand.priority


def _named_pool(
    registry: Registry, principal: Principal, name: str, node_ids: list[str], kind: Class
) -> Pool:
    if not 0 < len(node_ids) <= NAMED_NODES_MAX:
        raise Refused(
            ErrorCode.BAD_ARGUMENT, f"a call names 1 to {NAMED_NODES_MAX} nodes or labels"
        )
    nodes = registry.named(node_ids, principal)
    if not nodes:
        raise _no_node(registry, principal, node_ids)
    able = [node for node in nodes if name in node.offers and visible(node.offers[name], principal)]
    if not able:
        raise not_found(registry, principal, name, nodes)
    return registry.pool_of_nodes(name, frozenset(node.node_id for node in able), kind)


def _capable(
    registry: Registry, principal: Principal, pool: Pool, demand: Demand, options: dict[str, Any]
) -> Pool:
    offers = _offers(registry, principal, pool)
    effort = Effort()
    try:
        able = [o for o in offers if has_all(demand.wishes, o, effort)]
        misses = [] if able else _near_misses(demand.wishes, offers, effort)
    except TooMuch:
        raise Refused(
            ErrorCode.BAD_ARGUMENT, "the capability that is wanted has too many parts; name fewer"
        ) from None
    if not able:
        raise Refused(
            ErrorCode.NO_NODE,
            f"No node that provides {pool.name} has the capability "
            f"{shown(options['capability'])}. {'. '.join(misses)}",
            cls="NoCapableNodeError",
        )
    return registry.pool_of_nodes(pool.name, frozenset(o.record.node_id for o in able), pool.kind)


def has_all(wishes: Wishes, offer: Offer, effort: Effort) -> bool:
    """Return whether a function on a node has all that is wanted.

    Raises:
        TooMuch: Finding out would take too long.
    """
    return matches(wishes, offer.record.capabilities, tags_of(offer), effort)


NEAR_MISSES_MAX = 5
LACKS_SHOWN_MAX = 3


def _near_misses(wishes: Wishes, offers: list[Offer], effort: Effort) -> list[str]:
    """Say of the first few providers what they lack; those that lack least come first."""
    missing = [
        (offer.record.node_id, lacks(wishes, offer.record.capabilities, tags_of(offer), effort))
        for offer in offers
    ]
    missing.sort(key=lambda one: (len(one[1]), one[0]))
    lines = [
        f"{node_id}: {', '.join(lines[:LACKS_SHOWN_MAX])}"
        for node_id, lines in missing[:NEAR_MISSES_MAX]
    ]
    more = len(missing) - NEAR_MISSES_MAX
    return lines if more <= 0 else [*lines, f"And {more} more"]


def _offers(registry: Registry, principal: Principal, pool: Pool) -> list[Offer]:
    return [o for o in registry.providers(pool.name, principal) if pool.covers(o.record)]


def _checked(registry: Registry, principal: Principal, pool: Pool) -> Pool:
    """Return the part of a pool that the caller may call and that takes calls."""
    offers = _offers(registry, principal, pool)
    able = [offer for offer in offers if denial(principal, offer) is None]
    if not able:
        reason = denial(principal, offers[0])
        assert reason is not None
        raise Refused(ErrorCode.FORBIDDEN, reason)
    _check_feasible(pool, able)
    if not any(offer.record.takes_calls for offer in able):
        why = "; ".join(f"{o.record.node_id} is {o.record.health}" for o in able[:5])
        raise Refused(
            ErrorCode.NO_NODE, f"No healthy nodes for {pool.name}: {why}",
            cls="NoHealthyNodesError", retry_after_s=5.0,
        )  # fmt: skip
    if len(able) == len(offers):
        return pool
    return registry.pool_of_nodes(pool.name, frozenset(o.record.node_id for o in able), pool.kind)


def _check_feasible(pool: Pool, offers: list[Offer]) -> None:
    """Refuse a call that no node that is known could run, even if all were empty."""
    if not pool.needy:
        return
    reasons: dict[str, Rejection] = {}
    for offer in offers:
        why = pool.misfit(offer)
        if why is None:
            return
        reasons[offer.record.node_id] = why
    never = Unplaceable(reasons)
    raise Refused(
        ErrorCode.NO_NODE,
        f"No node can ever run {pool.name} as it is asked for: {sentence(never)}. "
        f"{'; '.join(each_lacks(never))}. Ask for less, or start a node that has it",
        cls="InfeasibleError",
    )


def denial(principal: Principal, offer: Offer) -> str | None:
    """Return why a principal may not call a function that it may see, or None."""
    entry = offer.entry
    if entry.access_level is not None and not principal.has_level(entry.access_level):
        return (
            f"{offer.path} needs the access level {entry.access_level!r}, which your token does "
            "not carry; ask the gateway's operator for one that does"
        )
    if entry.auth_required and principal.shared:
        return (
            f"{offer.path} is for individual users; your token is shared by several people. "
            "Ask the gateway's operator for a token of your own"
        )
    return None


SUGGEST_FROM_MAX = 500
"""Names among which similar ones are looked for: comparing with more would stop everybody else."""


def _similar(name: str, known: Collection[str]) -> list[str]:
    if len(known) > SUGGEST_FROM_MAX:
        return []
    return difflib.get_close_matches(name, sorted(known), n=3)


def not_found(
    registry: Registry, principal: Principal, name: str, nodes: list[NodeRecord] | None = None
) -> Refused:
    """Return the refusal of a function that the caller cannot see, or that does not exist."""
    if FUNCTION_NAME.fullmatch(name) is None:
        return Refused(
            ErrorCode.NOT_FOUND, "No such function: a name has letters, digits and underscores"
        )
    searched = registry.nodes.values() if nodes is None else nodes
    known = {
        offer.name
        for record in searched
        for offer in record.offers.values()
        if visible(offer, principal)
    }
    close = _similar(name, known)
    hint = f"; did you mean {', '.join(close)}?" if close else ""
    where = "" if nodes is None else " on " + ", ".join(node.node_id for node in nodes[:3])
    return Refused(ErrorCode.NOT_FOUND, f"No function {name!r} is registered{where}{hint}")


def _no_node(registry: Registry, principal: Principal, node_ids: list[str]) -> Refused:
    known = [r.node_id for r in registry.nodes.values() if sees_node(r, principal)]
    named = ", ".join(repr(node_id[:128]) for node_id in node_ids[:3])
    close = _similar(node_ids[0][:128], known)
    hint = f"; did you mean {', '.join(close)}?" if close else ""
    return Refused(ErrorCode.NOT_FOUND, f"No node {named} is known{hint}", cls="NodeNotFoundError")
