"""The gateway, nodes and clients of a simulation: product code on a stage.

Theory. What survives the death of a host is what the product keeps on its disk: the gateway's
database; a node's secret and token; a client's token. Everything else is made anew at each boot.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import trio

from easyremote.client.client import Client
from easyremote.client.dialer import ClientLink
from easyremote.client.session import Session
from easyremote.config import Address
from easyremote.gateway.core import Gateway
from easyremote.gateway.database import StoreError
from easyremote.gateway.state import GatewayState
from easyremote.gateway.store import Store
from easyremote.identity.credential import Credential
from easyremote.link import Link
from easyremote.node.agent import Agent
from easyremote.node.process import ExitStatus
from easyremote.node.restart import RestartIntensity
from easyremote.node.spec import NodeSpec
from easyremote.node.worker import Worker
from easyremote.node.worker_link import worker_link_settings
from easyremote.node.workers import WorkerProcess
from easyremote.supervise import Backoff
from easyremote.timers import Timers
from easyremote.transport import MemoryStream, memory_stream_pair
from tests.sim import functions
from tests.sim.bridge import BodyLoop, LoopBridge
from tests.sim.machines import Held, Machine
from tests.sim.network import End
from tests.sim.seeded import child
from tests.sim.stage import HOST, Host

if TYPE_CHECKING:
    from .world import World

ADDRESS = Address("gateway.sim", 8080)
PIN = b"p" * 32
LOOP_CAPACITY_BYTES = 256 * 1024


class SimStore(Store):
    """The gateway's store, on a disk that may be full."""

    full = False

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Do what a store does; a full disk shows when it commits, as with SQLite."""
        with super().transaction() as connection:
            yield connection
            if self.full and self._depth == 1:
                raise StoreError("database or disk is full")


class GatewayHost(Host):
    """The gateway."""

    gateway: Gateway | None = None
    store: SimStore | None = None

    async def main(self) -> None:
        """Serve until killed."""
        world = self.world
        rng = child(world.seed, f"store{self.boots}")
        store = self.store = SimStore(
            world.database, clock=world.wall_now, random_bytes=rng.randbytes
        )
        store._connection.execute("PRAGMA synchronous=OFF")  # No power fails here.
        store.full = world.disk_full
        state = GatewayState(
            world.database.parent, cast("Any", SimpleNamespace(pin=PIN)), store, (ADDRESS.host,),
            ADDRESS.port, store.get_meta("gateway_id") or "", b"g" * 32, 0, "owner",
        )  # fmt: skip
        try:
            state.begin(None)
        except StoreError:
            world.log.say(self.name, "cannot start: the disk is full")
            return
        async with trio.open_nursery() as self.nursery:
            self.gateway = Gateway(state, world.scenario.limits, inline=True)
            cluster = self.gateway.registry.cluster
            object.__setattr__(cluster, "lots", child(world.seed, f"lots{self.boots}"))
            await self.nursery.start(self.gateway.run)
            await self._accept(self.gateway, self.nursery)

    async def _accept(self, gateway: Gateway, nursery: trio.Nursery) -> None:
        network = self.world.network
        while True:
            while not network.backlog:
                await network.came.park()
            nursery.start_soon(self._serve, gateway, network.backlog.popleft())

    async def _serve(self, gateway: Gateway, end: End) -> None:
        """Do what the listener does with a connection: what a handler raises ends it alone."""
        try:
            await gateway.serve_peer(end)
        except* StoreError:
            self.world.log.say(self.name, "a session ended: the disk is full")
        finally:
            end.close_now()

    def torn(self) -> None:
        """Close the file; what was not committed is lost."""
        store, self.store = self.store, None
        self.gateway = None
        if store is not None:
            store.close()


class SimProcess:
    """A worker process, as its agent watches it."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.scope = trio.CancelScope()
        self.status: ExitStatus | None = None
        self.stream: MemoryStream | None = None
        self._over = trio.Event()

    async def wait(self) -> ExitStatus:
        """Wait until it is gone."""
        await self._over.wait()
        assert self.status is not None
        return self.status

    def kill(self) -> None:
        """End it at once."""
        self.die(ExitStatus(None, 9))

    def terminate(self) -> None:
        """Ask it to end; it does."""
        self.die(ExitStatus(None, 15))

    def die(self, status: ExitStatus) -> None:
        """It is gone, with everything that it held."""
        if self.status is None:
            self.status = status
            if self.stream is not None:
                self.stream.close_now()
            self.scope.cancel()
            self._over.set()


class SimWorkerProcess(WorkerProcess):
    """The agent's view of a worker whose link is a stream in memory."""

    def __init__(
        self, agent: Agent, process: SimProcess, stream: MemoryStream, group: str | None,
        devices: tuple[int, ...],
    ) -> None:  # fmt: skip
        super().__init__(
            agent, process, cast("Any", None), cast("Any", None), group=group, announces=False,
            devices=devices,
        )  # fmt: skip
        self._stream = stream

    async def _watch_signals(self) -> None:
        """No signals here."""

    async def _run_link(self) -> None:
        with self._scope:
            self.link = Link(
                self._stream, self, dialer=False, outbox=self._owner.outbox,
                settings=worker_link_settings(),
            )  # fmt: skip
            await self.link.run()


class Script:
    """The user's script in a worker process: the product's `Worker`, and the bodies."""

    def __init__(self, host: NodeHost, process: SimProcess, stream: MemoryStream) -> None:
        self.host = host
        self.process = process
        process.stream = stream
        self.stream = stream
        self.worker: Worker | None = None

    session: Session

    async def run(self, group: str | None) -> None:
        """Start, serve, and exit."""
        functions.SCRIPT.set(self)
        with self.process.scope:
            await trio.sleep(self.host.rng.uniform(0.02, 0.3))
            async with trio.open_nursery() as nursery:
                bridge = LoopBridge(nursery)
                self.worker = worker = Worker(
                    self.stream, self.host.table, self.host.spec, group=group, io=bridge
                )
                worker._executor._loops["trio"] = BodyLoop(worker._executor, nursery, bridge)
                self.session = session = Session(worker.calls, injected=True)
                session.timers = Timers(trio.current_time, start=nursery.start_soon)
                session.start()
                nursery.start_soon(worker._timers.run)
                await worker._run_link()
                nursery.cancel_scope.cancel()
        self.process.die(ExitStatus(0, None))

    def die(self) -> None:
        """Crash."""
        self.process.die(ExitStatus(None, 11))


class SimAgent(Agent):
    """An agent that looks at no machine."""

    async def _detect(self) -> None:
        self._detected.set()


class NodeHost(Host):
    """A node: its agent and its workers.

    Attributes:
        machine: What it has.
        held: What its running bodies use of that.
    """

    agent: Agent | None = None

    def __init__(self, world: World, name: str, slots: int | None, machine: Machine) -> None:
        super().__init__(world, name)
        self.rng = child(world.seed, name)
        self.table = functions.table(slots)
        self.machine = machine
        self.held: dict[int, Held] = {}
        declared = machine.capabilities()
        self.spec = NodeSpec(str(ADDRESS), name, declared, join=world.joins["node"])
        self.scripts: list[Script] = []

    async def main(self) -> None:
        """Run the agent until it ends or is killed."""
        world = self.world
        async with trio.open_nursery() as self.nursery:
            self.agent = agent = SimAgent(
                cast("Any", object()), connect=self._dial, rng=child(world.seed, f"{self.name}!"),
                intensity=RestartIntensity(restarts_max=world.scenario.restarts_max),
            )  # fmt: skip
            agent._orphans.ttl_s = world.scenario.orphan_s
            agent.family._run_script = self._start_script  # type: ignore[method-assign]
            await agent.serve(lambda: self._start_script(None), self.spec)
            self.nursery.cancel_scope.cancel()

    async def drain(self) -> None:
        """Stop as a program does that is asked to."""
        await trio.lowlevel.checkpoint()
        if self.agent is not None:
            self.agent.stop_signal("SIGTERM")

    async def _dial(self, address: Address, pin: bytes | None) -> End:
        return await self.world.network.dial(self.name, address, self.world.scenario.dial_s)

    def _start_script(self, group: str | None, devices: tuple[int, ...] = ()) -> WorkerProcess:
        assert self.nursery is not None and self.agent is not None
        ours, theirs = memory_stream_pair(LOOP_CAPACITY_BYTES, peers=("worker", "agent"))
        process = SimProcess(self.world.next_pid())
        script = Script(self, process, theirs)
        self.scripts = [one for one in self.scripts if one.process.status is None]
        self.scripts.append(script)
        self.nursery.start_soon(script.run, group)
        return SimWorkerProcess(self.agent, process, ours, group, devices)

    def torn(self) -> None:
        """Forget the agent, and what bodies use."""
        self.agent = None
        self.held = {}
        self.scripts = []


class HostNetwork:
    """The network as one client sees it."""

    def __init__(self, host: Host) -> None:
        self._host = host

    async def dial(self, address: Address, *, pin: bytes | None, timeout_s: float = 10.0) -> End:
        """Connect to the gateway."""
        world = self._host.world
        return await world.network.dial(self._host.name, address, world.scenario.dial_s)

    async def listen(self, host: str, port: int, *, tls: Any) -> Any:
        """Clients do not listen."""
        raise NotImplementedError


class ClientHost(Host):
    """A client program.

    Attributes:
        session: Its calls; None while it has no link yet.
    """

    session: Session | None = None
    link: ClientLink | None = None

    def __init__(self, world: World, name: str, user: str) -> None:
        super().__init__(world, name)
        self.user = user

    @property
    def connected(self) -> bool:
        """Whether the gateway has taken it in, now."""
        return self.session is not None and self.link is not None and self.link._link is not None

    async def main(self) -> None:
        """Connect, and stay until killed; a program that cannot connect ends and is run again."""
        world = self.world
        self._refused = trio.Event()
        credential = Credential(world.tokens[self.user], PIN, (ADDRESS,))
        async with trio.open_nursery() as self.nursery:
            client = Client(auth=credential, network=cast("Any", HostNetwork(self)))
            session, self.link = client._make()
            session.timers = Timers(trio.current_time, start=self.nursery.start_soon)
            self._listen(self.link, session)
            await self._refused.wait()
            self.nursery.cancel_scope.cancel()

    def make_link(self, resolve: Any, hello: Any, *, network: Any) -> ClientLink:
        """Make the link of this host; the product's `Client` calls this in place of the class."""
        world = self.world
        assert self.nursery is not None
        return ClientLink(
            resolve, hello, network=network, io=LoopBridge(self.nursery),
            backoff=Backoff(rng=child(world.seed, f"{self.name}{self.boots}")),
            settings=world.scenario.link,
        )  # fmt: skip

    def _listen(self, link: ClientLink, session: Session) -> None:
        """Hear what the session hears."""
        taken_in, refused = link._taken_in, link._refused
        assert taken_in is not None and refused is not None

        def hear_taken_in(info: dict[str, object]) -> None:
            taken_in(info)
            self.session = session

        def hear_refused(error: Any) -> None:
            self.world.log.say(self.name, "is refused", error=type(error).__name__)
            refused(error)
            self._refused.set()

        link.tell(hear_taken_in, hear_refused)

    def torn(self) -> None:
        """Forget everything."""
        self.session = self.link = None


def this_node() -> NodeHost:
    """Return the node on which this is called."""
    host = HOST.get()
    assert isinstance(host, NodeHost)
    return host


def client_link(resolve: Any, hello: Any, *, network: Any) -> ClientLink:
    """Make the link of the client on whose host this is called."""
    host = HOST.get()
    assert isinstance(host, ClientHost)
    return host.make_link(resolve, hello, network=network)
