"""Balancers to derive from: `Server(scheduler=MyBalancer())`.

Theory. A balancer chooses a node in a few steps, each a method: who could run the call, how good
each of them is, which is the best. The steps are those of the gateway's own strategy and give the
same scores, so whoever overrides one step changes that step alone:

    class Cheapest(SmartLoadBalancer):
        async def calculate_node_score(self, node, requirements):
            return -(await self.get_node_status(node)).price

The gateway asks on its own thread, in the middle of a call's way, so a step that really waits is
given up (`strategies.py`). Beside that, a program may ask a balancer itself, from any thread and
under asyncio or trio; then it answers of the nodes as they are.

A call that found no free place waits, and is taken by the first place that becomes free; a
balancer is asked for calls that come in.

Rules of this file. 1) Nothing is copied but what is returned; everything is read from what the
gateway places calls by. 2) A score is that of `scheduler/score.py`.

Source. The roles of the project, "Load Balancing"; features.md G17, I3 to I9.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

from ..errors import NodeNotFoundError
from ..scheduler import score
from ..scheduler.capability import Effort, TooMuch, Wish, Wishes, degree, matches, read_wishes
from ..scheduler.filter import Request, rejection
from ..scheduler.model import NO_NEEDS, Needs, NodeSnapshot, Rejection, Scores
from ..scheduler.needs import read_needs
from ..scheduler.policy import DEFAULT, Policy, ScoreWeights
from .live import OfServer

if TYPE_CHECKING:
    from ..scheduler.host import Place
    from ..scheduler.reserve import Ledger
    from .core import Gateway
    from .pool import NodeRecord, Pool
    from .server import Server

R = TypeVar("R")
WISHED, PREFERRED = "capability", "prefer"
"""Keys of requirements that are no amounts: what a node must have, and what it should have."""
TAGS = "tags"
"""Where a status shows the labels of a node and the tags of its functions."""


class Requirements(dict[str, Any]):
    """What one call needs, as its balancer is told: amounts by name, and what it prefers."""


class Question(NamedTuple):
    """One call for which a node is to be chosen."""

    function: str
    requirements: Requirements
    nodes: tuple[str, ...]
    """Ids of the nodes that could run it now, the least recently used one first."""
    places: Mapping[str, Place]
    """By node id; empty where the pool is not known."""
    pool: Pool | None

    @classmethod
    def of(cls, snapshots: Sequence[NodeSnapshot], needs: Needs, pool: Pool | None) -> Question:
        """Put what the scheduler asks into the words of a balancer."""
        requirements = Requirements(amounts(needs))
        ids = [one.node_id for one in snapshots]
        if pool is None:
            return cls("", requirements, tuple(ids), {}, None)
        if pool.kind.prefers:
            requirements[PREFERRED] = pool.kind.prefers
        shown = set(ids)
        places = {p.host.node_id: p for p in pool.ranked if p.host.node_id in shown}
        ids.sort(key=lambda node_id: places[node_id].used)
        return cls(pool.name, requirements, tuple(ids), places, pool)


_asked: ContextVar[Question | None] = ContextVar("_asked", default=None)
"""The question that is being answered by code that runs on the gateway's thread."""


@dataclass(frozen=True)
class NodeResources:
    """What a node has free.

    Attributes:
        cpu_free: Share of its processors, None if unknown; less what was placed since it said so.
        memory_free: Share of its memory.
        ledger: What it has in all, and what is reserved of that.
        needs: What the call that is placed reserves there; None if none is.
    """

    cpu_free: float | None
    memory_free: float | None
    ledger: Ledger
    needs: Needs | None = None


@dataclass(frozen=True)
class NodeStatus:
    """How a node is.

    Attributes:
        node_id: Its id.
        resources: What it has free.
        avg_latency: Seconds: the round trip to it and the usual body there, as far as known.
        current_load: Calls that it has.
        max_capacity: Calls that it runs at once.
        capabilities: What its owner declared; under `tags` its labels and its functions' tags.
        price: What a call costs there, as its owner declared.
        doubt: How little it is trusted, in [0, 1]: it is silent, or lost calls.
        health: As `server.nodes()` shows it.
        usual_s: The usual body there alone, 0.0 if unknown.
    """

    node_id: str
    resources: NodeResources
    avg_latency: float
    current_load: int
    max_capacity: int
    capabilities: dict[str, Any]
    price: float = 0.0
    doubt: float = 0.0
    health: str = "healthy"
    usual_s: float = 0.0


class LoadBalancer(OfServer):
    """Chooses one of several nodes. Override `select_node`, or derive from `SmartLoadBalancer`.

    Attributes:
        policy: Weights and references of the scores; those of the server that it serves.
    """

    policy: Policy = DEFAULT
    _weights: ScoreWeights | None = None

    def __init__(
        self, weights: ScoreWeights | None = None, *, server: Server | None = None
    ) -> None:
        """Make a balancer.

        Args:
            weights: Of the scores; None for those of the server.
            server: The server whose nodes it knows; None for the one that it is given to, or the
                only one that runs in this process.
        """
        super().__init__(server)
        self._weights = weights

    @property
    def weights(self) -> ScoreWeights | None:
        """The weights that it was made with."""
        return self._weights

    async def select_node(
        self, healthy_nodes: Sequence[str], request_requirements: Mapping[str, Any] | None = None
    ) -> str | None:
        """Return the best of some nodes, None if there is none.

        Args:
            healthy_nodes: Ids; of equal ones the first is chosen.
            request_requirements: What the call needs, by name, as `resource_requirements` says it.
        """
        scores = SmartLoadBalancer(self._weights, server=self._server)
        scores.policy = self.policy
        return await scores.select_node(healthy_nodes, request_requirements)

    async def answer(self, question: Question) -> str | None:
        """Choose for a call that the gateway places, on the gateway's thread."""
        token = _asked.set(question)
        try:
            return await self._answer(question)
        finally:
            _asked.reset(token)

    async def _answer(self, question: Question) -> str | None:
        return await self.select_node(
            list(question.nodes), request_requirements=question.requirements
        )


class SmartLoadBalancer(LoadBalancer):
    """Chooses the node with the highest score, the same score as the gateway's own strategy.

    Attributes:
        epsilon: Scores so close to the best one are equal, and the least recently used node wins.
    """

    epsilon: float = DEFAULT.epsilon

    async def select_best_node(
        self, function_name: str, requirements: Mapping[str, Any]
    ) -> str | None:
        """Return the best node for a call, None if none could run it now."""
        candidates = await self.find_capable_nodes(function_name, requirements)
        return await self.select_node(candidates, requirements)

    async def select_node(
        self, healthy_nodes: Sequence[str], request_requirements: Mapping[str, Any] | None = None
    ) -> str | None:
        """Return the best of some nodes; of equal ones the first."""
        requirements = {} if request_requirements is None else request_requirements
        scores = {
            node: await self.calculate_node_score(node, requirements) for node in healthy_nodes
        }
        if not scores:
            return None
        least = max(scores.values()) - self.epsilon
        return next((node for node, one in scores.items() if one >= least), None)

    async def find_capable_nodes(
        self, function_name: str, requirements: Mapping[str, Any]
    ) -> list[str]:
        """Return the nodes that could run a call now, the least recently used one first.

        Args:
            function_name: The function.
            requirements: Amounts by name; under `capability` what a node must have.
        """
        question = _asked.get()
        if question is not None and question.function in ("", function_name):
            return list(question.nodes)
        wished = wishes_of(requirements, WISHED)
        needs = needs_of(requirements)
        return await self._see(lambda gateway: _capable(gateway, function_name, needs, wished))

    async def calculate_node_score(self, node: str, requirements: Mapping[str, Any]) -> float:
        """Return how good a node is for a call, the more the better; about 0 to 1."""
        status = await self.get_node_status(node)
        reference_s = self.policy.latency_ref_s
        scores = Scores(
            self.score_resources(status.resources, requirements),
            score.latency(status.avg_latency, None, reference_s),
            score.load(status.current_load, status.max_capacity),
            self.score_capabilities(status.capabilities, requirements),
            score.cheap(status.price),
            score.ahead(status.current_load, status.max_capacity),
            score.slow(score.latency(None, status.usual_s, reference_s)),
            status.doubt,
        )
        return score.total(scores, self._weights or self.policy.weights)

    async def get_node_status(self, node: str) -> NodeStatus:
        """Return how a node is.

        Raises:
            NodeNotFoundError: No node of this id is known.
        """
        question = _asked.get()
        if question is not None and (place := question.places.get(node)) is not None:
            return _status_of_place(question, place)
        return await self._see(lambda gateway: _status_of_node(gateway, node))

    def score_resources(self, resources: NodeResources, requirements: Mapping[str, Any]) -> float:
        """Return the smallest share of what is required that stays free, in [0, 1].

        Without requirements it is the mean of the free shares of processors and memory.
        """
        own = isinstance(requirements, Requirements) and resources.needs is not None
        needs = cast("Needs", resources.needs) if own else needs_of(requirements)
        if not needs:
            return score.resources(resources.cpu_free, resources.memory_free)
        devices = resources.ledger.fits(needs)
        if isinstance(devices, Rejection):
            return 0.0
        return resources.ledger.free_after(needs, devices)

    def score_capabilities(
        self, capabilities: Mapping[str, Any], requirements: Mapping[str, Any]
    ) -> float:
        """Return how much of what is preferred (`prefer`) a node has, in [0, 1]."""
        preferred = wishes_of(requirements, PREFERRED)
        if not preferred:
            return 1.0
        tags = capabilities.get(TAGS)
        try:
            return degree(
                preferred, dict(capabilities), tags if isinstance(tags, list) else (), Effort()
            )
        except TooMuch:
            return 0.0

    async def _answer(self, question: Question) -> str | None:
        return await self.select_best_node(question.function, question.requirements)

    async def _see(self, look: Callable[[Gateway], R]) -> R:
        """Look at the gateway: at once where its thread asks, else without holding up a loop."""
        return self._ask(look) if _asked.get() is not None else await self._look(look)


# ---- requirements ------------------------------------------------------------------------------


def amounts(needs: Needs) -> dict[str, Any]:
    """Return needs by the names that `read_needs` reads."""
    if not needs:
        return {}
    found = {
        "cpu": needs.cpus,
        "memory": needs.memory_bytes,
        "disk": needs.disk_bytes,
        "gpu": needs.gpus,
        "gpu_memory": needs.gpu_memory_bytes,
        "gpu_model": needs.gpu_model,
        **dict(needs.custom),
    }
    return {name: amount for name, amount in found.items() if amount}


def needs_of(requirements: Mapping[str, Any]) -> Needs:
    """Return what is to be reserved of requirements.

    Raises:
        ValueError: An amount cannot be read.
    """
    plain = {k: v for k, v in requirements.items() if k not in (WISHED, PREFERRED)}
    return read_needs(plain) if plain else NO_NEEDS


def wishes_of(requirements: Mapping[str, Any], key: str) -> Wishes:
    """Return what requirements say of capabilities.

    Raises:
        ValueError: It cannot be read.
    """
    given = requirements.get(key)
    if given is None:
        return ()
    if isinstance(given, tuple) and all(isinstance(one, Wish) for one in given):
        return cast("Wishes", given)
    return read_wishes(given)


# ---- what the gateway knows ----------------------------------------------------------------------


def _capable(gateway: Gateway, name: str, needs: Needs, wished: Wishes) -> list[str]:
    effort = Effort()
    found: list[tuple[int, str]] = []
    for record in gateway.registry.nodes.values():
        offer = record.offers.get(name)
        if offer is None or not record.takes_calls:
            continue
        own = offer.needs(tuple(sorted(amounts(needs).items())))
        if isinstance(own, Rejection) or rejection(offer.group, Request(own)) is not None:
            continue
        if matches(wished, record.capabilities, _tags(record), effort):
            found.append((offer.group.used, record.node_id))
    return [node_id for _, node_id in sorted(found)]


def _status_of_place(question: Question, place: Place) -> NodeStatus:
    """Return the status of a node as the call that is placed sees it."""
    pool, host = question.pool, place.host
    assert pool is not None
    record = pool.places[place].record
    resources = NodeResources(
        place.cpu_free, host.view.memory_free, host.ledger, pool.ranked.needs_at(place)
    )
    usual_s = place.usual_s or 0.0
    return NodeStatus(
        host.node_id, resources, (host.rtt_s or 0.0) + usual_s, place.busy, place.slots,
        {**record.capabilities, TAGS: _tags(record, question.function)},
        host.price, host.doubt, record.health, usual_s,
    )  # fmt: skip


def _status_of_node(gateway: Gateway, node_id: str) -> NodeStatus:
    """Return the status of a node as a whole, of which nothing changes any more."""
    record = gateway.registry.nodes.get(node_id)
    if record is None:
        raise NodeNotFoundError(f"No node {node_id!r} is known; see server.nodes()")
    host, groups = record.host, list(record.groups.values())
    known = [group.usual_s for group in groups if group.usual_s is not None]
    usual_s = sum(known) / len(known) if known else 0.0
    free = [group.cpu_free for group in groups if group.cpu_free is not None]
    resources = NodeResources(
        min(free, default=None), host.view.memory_free, copy.deepcopy(host.ledger)
    )
    return NodeStatus(
        node_id, resources, (host.rtt_s or 0.0) + usual_s,
        sum(group.busy for group in groups), max(1, sum(group.slots for group in groups)),
        {**record.capabilities, TAGS: _tags(record)}, host.price, host.doubt, record.health,
        usual_s,
    )  # fmt: skip


def _tags(record: NodeRecord, function: str | None = None) -> list[str]:
    """Return the labels of a node, and the tags of its functions or of one of them."""
    from .pool import function_tags

    found = list(record.labels)
    for name, offer in record.offers.items():
        if function in (None, name):
            found += function_tags(offer)
    return found
