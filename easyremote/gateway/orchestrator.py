"""The gateway's inner parts as classes to use and derive from: registry, orchestrator, API.

Theory. A program that runs a gateway may look at what is registered, choose nodes and run functions
by the same classes that explain how a gateway works. They are views and handles of the gateway that
runs: what they show is asked for when it is looked at, and what they run is a call like any other,
in the name of the gateway's owner, with its place in the queue and its outcome in the metrics.

Rules of this file. 1) No copy of the registry is kept. 2) Methods that wait are coroutines, for
asyncio and trio. 3) What belongs to REST says that it is not here yet, and when it is tried.

Source. The roles of the project, "VPS Gateway"; features.md G5, G8, G10, G17.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NoReturn

from ..errors import (
    EasyRemoteError,
    FunctionNotFoundError,
    NodeNotFoundError,
    NoHealthyNodesError,
)
from ..facts import NodeInfo
from . import describe
from .balancing import PREFERRED, WISHED, LoadBalancer, amounts, needs_of
from .inside import call_inside
from .live import OfServer, outcome_of
from .offer import BadOffer, NodeOffer, plain

if TYPE_CHECKING:
    from .core import Gateway
    from .pool import NodeRecord, Offer
    from .server import Server

USABLE = ("healthy", "degraded")
"""Health of nodes that are given calls; `degraded` ones get fewer."""
REQUIREMENTS = "requirements"
"""The key of a request that is no argument, unless the function has a parameter of that name."""


class NotAvailableError(EasyRemoteError, NotImplementedError):
    """What was asked for is not part of this version."""


class FunctionRegistry(OfServer):
    """What is registered at a gateway, by the path `node_id.function`."""

    @property
    def registered_functions(self) -> dict[str, dict[str, Any]]:
        """A record for each function of each node.

        Its keys are `node_id`, `function_name`, `metadata`, `requirements`, `registered_at` (UTC)
        and `health_status`.
        """
        return self._ask(_records)

    @property
    def node_capabilities(self) -> dict[str, dict[str, Any]]:
        """What the owner of each node declared, by node id."""
        return self._ask(
            lambda gateway: {
                record.node_id: dict(record.capabilities)
                for record in gateway.registry.nodes.values()
            }
        )

    async def register_function(self, node_id: str, function_info: Mapping[str, Any]) -> None:
        """Say more about a function that a connected node offers.

        A gateway cannot offer what a node does not: nodes register their functions themselves. What
        it can do is to add `metadata`, which discovery shows, and `requirements`, which each call
        reserves on that node from then on. It holds until the node registers again.

        Args:
            node_id: The node.
            function_info: `name`, and `metadata`, `requirements` or both.

        Raises:
            NodeNotFoundError: The node is not connected.
            FunctionNotFoundError: It offers no function of this name.
            ValueError: What is said cannot be read.
        """
        await self._look(lambda gateway: _say_more(gateway, node_id, dict(function_info)))

    async def create_api_endpoint(self, function_path: str) -> NoReturn:
        """Make a REST endpoint for a function: not in this version.

        Raises:
            NotAvailableError: Always.
        """
        raise _no_rest(function_path)

    def get_connected_node(self, node_id: str) -> ConnectedNode:
        """Return a handle of a node that is connected.

        Raises:
            NodeNotFoundError: It is not.
        """
        self._ask(lambda gateway: _connected(gateway, node_id))
        return ConnectedNode(node_id, self.server)


class ConnectedNode:
    """A node that was connected when this handle was made.

    Attributes:
        node_id: Its id.
    """

    def __init__(self, node_id: str, server: Server) -> None:
        self.node_id = node_id
        self._server = server

    @property
    def info(self) -> NodeInfo:
        """What `server.nodes()` says of it now.

        Raises:
            NodeNotFoundError: It is not connected any more.
        """
        return NodeInfo.from_plain(
            self._server.ask(
                lambda gateway: describe.node_info(_connected(gateway, self.node_id), None)
            )
        )

    async def execute_function(self, function_name: str, request: Mapping[str, Any]) -> Any:
        """Run one of its functions there; as `GatewayOrchestrator.execute_on_node`."""
        return await _execute(self._server, self.node_id, function_name, request)


class GatewayOrchestrator(OfServer):
    """Chooses a node for a request and runs the function there.

    Attributes:
        load_balancer: Chooses; set another one in a class of your own.
    """

    load_balancer: LoadBalancer

    def __init__(self, server: Server | None = None) -> None:
        """Belong to a server; None for the only one that runs in this process."""
        super().__init__(server)
        self.load_balancer = LoadBalancer(server=server)

    @property
    def node_health(self) -> dict[str, str]:
        """The health of each node: healthy, degraded, unhealthy, draining, paused or offline."""
        return self._ask(
            lambda gateway: {
                record.node_id: record.health for record in gateway.registry.nodes.values()
            }
        )

    def find_function_providers(self, function_name: str) -> list[str]:
        """Return the ids of all nodes that offer a function, the least recently used one first."""
        return self._ask(lambda gateway: _providers(gateway, function_name))

    async def route_request(self, function_name: str, request: Mapping[str, Any]) -> Any:
        """Run a function on the best of the healthy nodes that offer it, and return its result.

        Args:
            function_name: The function.
            request: Its arguments by name; under `requirements` what the call needs.

        Raises:
            FunctionNotFoundError: No node offers it.
            NoHealthyNodesError: Nodes do, and none is healthy.
            EasyRemoteError: The call has an error for an outcome.
        """
        providers, health = await self._look(
            lambda gateway: (
                _providers(gateway, function_name),
                {node.node_id: node.health for node in gateway.registry.nodes.values()},
            )
        )
        if not providers:
            raise FunctionNotFoundError(f"No function {function_name!r} is registered")
        usable = [node for node in providers if health[node] in USABLE]
        why = "; ".join(f"{node} is {health[node]}" for node in providers[:5])
        if not usable:
            raise NoHealthyNodesError(f"No healthy nodes for {function_name}: {why}")
        chosen = await self.load_balancer.select_node(
            usable, request_requirements=request.get(REQUIREMENTS, {})
        )
        if chosen is None:
            raise NoHealthyNodesError(f"No healthy nodes for {function_name}: none was chosen")
        return await self.execute_on_node(chosen, function_name, request)

    async def execute_on_node(
        self, node_id: str, function_name: str, request: Mapping[str, Any]
    ) -> Any:
        """Run a function on one node, as the gateway's owner, and return its result.

        Args:
            node_id: The node.
            function_name: A function of it that does not yield.
            request: Its arguments by name: plain data and arrays. Under `requirements`, unless the
                function has a parameter of that name, what the call needs.

        Raises:
            EasyRemoteError: The call has an error for an outcome.
        """
        return await _execute(self.server, node_id, function_name, request)


class APIGenerator(OfServer):
    """Makes REST endpoints of functions: not in this version.

    Attributes:
        app: The application that would have them.
    """

    def __init__(self, app: Any = None, server: Server | None = None) -> None:
        """Keep the application."""
        super().__init__(server)
        self.app = app

    async def auto_generate_api(self, function_info: Mapping[str, Any]) -> NoReturn:
        """Make an endpoint for a function.

        Raises:
            NotAvailableError: Always.
        """
        raise _no_rest(f"{function_info.get('node_id')}.{function_info.get('name')}")

    async def route_to_node(self, function_path: str, request: Mapping[str, Any]) -> Any:
        """Run the function behind a path, and return its result.

        Args:
            function_path: `node_id.function`; a node id may have dots in it.
            request: As for `GatewayOrchestrator.execute_on_node`.
        """
        node_id, _, name = function_path.rpartition(".")
        return await _execute(self.server, node_id, name, request)


def _no_rest(path: str) -> NotAvailableError:
    return NotAvailableError(
        f"no endpoint was made for {path}: this version serves no REST yet. Call the function with "
        "@remote, or with GatewayOrchestrator().route_request(...)"
    )


async def _execute(server: Server, node_id: str, name: str, request: Mapping[str, Any]) -> Any:
    arguments = dict(request)
    options: dict[str, Any] = {}

    async def run(gateway: Gateway) -> Any:
        offer = _offered(_connected(gateway, node_id), name)
        if REQUIREMENTS in arguments and not _has_parameter(offer, REQUIREMENTS):
            options.update(_options(arguments.pop(REQUIREMENTS)))
        return await call_inside(gateway, name, node_id, arguments, options)

    return await outcome_of(server.begin(run))


def _options(requirements: Mapping[str, Any]) -> dict[str, Any]:
    """Return requirements as the options of a call."""
    options = {key: requirements[key] for key in (WISHED, PREFERRED) if key in requirements}
    reserved = amounts(needs_of(requirements))
    return {**options, "resources": reserved} if reserved else options


def _has_parameter(offer: Offer, name: str) -> bool:
    parameters = offer.entry.facts.get("parameters", [])
    return any(isinstance(one, Mapping) and one.get("name") == name for one in parameters)


def _records(gateway: Gateway) -> dict[str, dict[str, Any]]:
    return {
        offer.path: {
            "node_id": record.node_id,
            "function_name": offer.name,
            "metadata": offer.entry.facts.get("metadata", {}),
            "requirements": dict(offer.requirements),
            "registered_at": offer.registered_at,
            "health_status": record.health,
        }
        for record in gateway.registry.nodes.values()
        for offer in record.offers.values()
    }


def _providers(gateway: Gateway, name: str) -> list[str]:
    offers = [
        offer
        for record in gateway.registry.nodes.values()
        if (offer := record.offers.get(name)) is not None
    ]
    return [offer.record.node_id for offer in sorted(offers, key=lambda one: one.group.used)]


def _connected(gateway: Gateway, node_id: str) -> NodeRecord:
    record = gateway.registry.nodes.get(node_id)
    if record is None or record.link is None:
        raise NodeNotFoundError(f"No node {node_id!r} is connected; see server.nodes()")
    return record


def _offered(record: NodeRecord, name: str) -> Offer:
    offer = record.offers.get(name)
    if offer is None:
        raise FunctionNotFoundError(
            f"{record.node_id} offers no function {name!r}; it registers its functions itself"
        )
    return offer


def _say_more(gateway: Gateway, node_id: str, said: dict[str, Any]) -> None:
    record = _connected(gateway, node_id)
    entry = _offered(record, str(said.get("name"))).entry
    more = {key: plain(said[key], key) for key in ("metadata", REQUIREMENTS) if key in said}
    if not all(isinstance(one, dict) for one in more.values()):
        raise BadOffer("metadata and requirements are maps")
    needs_of(more.get(REQUIREMENTS, {}))
    changed = replace(entry, facts={**entry.facts, **more})
    gateway.registry.announce(record, NodeOffer(functions=[changed]), whole=False)
    gateway.dispatcher.placer.pump_node(record)
