"""Random programs of clients, nodes and faults: one outcome each, no lie, nothing left."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from easyremote.wire.errors import ErrorCode
from easyremote.wire.message import FLAG_STREAM, Failure, Item, Result

from .peers import Client, Given, Node, Probe, World, function, new_id, open_world

STEPS = 150


class Program:
    """One random run against one gateway."""

    def __init__(self, world: World, seed: int) -> None:
        self.world = world
        self.random = random.Random(seed)
        self.clients: list[Client] = []
        self.nodes: list[Node] = []
        self.probes: dict[bytes, list[Probe]] = {}
        self.began: set[bytes] = set()
        self.tokens = [world.token("member", f"user{n}") for n in range(2)]
        self.left: list[Node] = []

    async def run(self) -> None:
        for _ in range(2):
            await self.node_comes()
            await self.client_comes()
        steps = [
            self.call, self.call, self.call, self.call, self.answer, self.answer, self.answer,
            self.start, self.say_item, self.refuse, self.fail, self.cancel, self.reset,
            self.time_passes, self.node_comes, self.node_goes, self.client_comes,
            self.client_goes, self.pause,
        ]  # fmt: skip
        for _ in range(STEPS):
            await self.random.choice(steps)()
            if self.random.random() < 0.5:
                await trio.testing.wait_all_tasks_blocked()

    async def finish(self) -> None:
        """Heal everything, and let every call come to its end."""
        for node in self.nodes:
            node.auto = self.finish_one
            await node.update(paused=False)
        if not self.nodes:
            await self.node_comes()
            self.nodes[-1].auto = self.finish_one
        for _ in range(30):
            for given in self.open_calls():
                self.finish_one(given)
            await trio.sleep(5)

    def open_calls(self) -> list[Given]:
        return [
            given
            for node in self.nodes
            for given in node.given
            if given.stream is not None and given.stream.is_open and not self.is_done(given)
        ]

    def is_done(self, given: Given) -> bool:
        return getattr(given, "done", False) or given.reset is not None or given.lost is not None

    def finish_one(self, given: Given) -> None:
        self.began.add(given.dispatch.call_id)
        given.answer(b"r" * self.random.choice([1, 100, 20_000]))
        given.done = True  # type: ignore[attr-defined]

    def some_call(self) -> Given | None:
        found = self.open_calls()
        return self.random.choice(found) if found else None

    # ---- steps ---------------------------------------------------------------------------------

    async def call(self) -> None:
        if not self.clients:
            return
        client = self.random.choice(self.clients)
        if client.link.streams_available <= 0 or not client.link.ready:
            return
        call_id = new_id()
        if self.probes and self.random.random() < 0.1:
            call_id = self.random.choice(list(self.probes))
        name = self.random.choice(["f", "g", "f", "nowhere"])
        probe = client.call(
            name,
            self.random.choice([b"", b"x" * 1000]),
            call_id=call_id,
            deadline_ms=self.random.choice([None, None, 50, 3000]),
            flags=self.random.choice([0, 0, FLAG_STREAM]),
            segments=self.random.choice([None, None, [b"y" * 200_000], [b"y" * 2_500_000]]),
            stalled=self.random.random() < 0.1,
        )
        self.probes.setdefault(call_id, []).append(probe)

    async def answer(self) -> None:
        given = self.some_call()
        if given is None:
            return
        self.began.add(given.dispatch.call_id)
        given.done = True  # type: ignore[attr-defined]
        if self.random.random() < 0.3:
            size = self.random.choice([70_000, 3_000_000])
            given.say(Result(0, 0.1, None, [size]), [memoryview(bytes(size))], end=True)
            given.release()
        else:
            given.answer(b"ok", seconds=self.random.choice([1e-5, 0.01, 5.0]))

    async def start(self) -> None:
        if (given := self.some_call()) is not None and given.stream is not None:
            self.began.add(given.dispatch.call_id)
            given.stream.started()

    async def say_item(self) -> None:
        if (given := self.some_call()) is not None:
            self.began.add(given.dispatch.call_id)
            given.say(Item(0, 0, b"i" * self.random.choice([1, 30_000]), []))

    async def refuse(self) -> None:
        given = self.some_call()
        if given is not None and given.dispatch.call_id not in self.began:
            given.done = True  # type: ignore[attr-defined]
            given.fail(ErrorCode.OVERLOADED)

    async def fail(self) -> None:
        if (given := self.some_call()) is not None:
            self.began.add(given.dispatch.call_id)
            given.done = True  # type: ignore[attr-defined]
            given.fail(ErrorCode.REMOTE_ERROR, maybe=True)

    def some_probe(self) -> Probe | None:
        found = [
            probe
            for probes in self.probes.values()
            for probe in probes
            if probe.stream is not None and probe.stream.is_open and not (probe.ended or probe.lost)
        ]
        return self.random.choice(found) if found else None

    async def cancel(self) -> None:
        if (probe := self.some_probe()) is not None and probe.stream is not None:
            probe.stream.cancel(self.random.choice([0, 1, 2]), self.random.choice([0, 500]))

    async def reset(self) -> None:
        if (probe := self.some_probe()) is not None and probe.stream is not None:
            probe.stream.reset(ErrorCode.CANCELLED, "enough")
            probe.reset = (0, "by ourselves")

    async def time_passes(self) -> None:
        await trio.sleep(self.random.choice([0.01, 0.1, 2.0, 10.0]))

    async def node_comes(self) -> None:
        if len(self.nodes) < 4:
            slots = self.random.choice([1, 1, 3])
            self.nodes.append(
                await self.world.node(
                    f"n{len(self.left) + len(self.nodes)}",
                    function("f", slots=slots),
                    function("g", group="own", slots=2),
                )
            )

    async def node_goes(self) -> None:
        if self.nodes and self.random.random() < 0.5:
            node = self.nodes.pop(self.random.randrange(len(self.nodes)))
            self.left.append(node)
            await self.random.choice([node.cut, node.goodbye])()

    async def client_comes(self) -> None:
        if len(self.clients) < 4:
            self.clients.append(await self.world.client(token=self.random.choice(self.tokens)))

    async def client_goes(self) -> None:
        if self.clients and self.random.random() < 0.5:
            client = self.clients.pop(self.random.randrange(len(self.clients)))
            await self.random.choice([client.cut, client.goodbye])()

    async def pause(self) -> None:
        if self.nodes and not (node := self.random.choice(self.nodes)).over.is_set():
            await node.update(paused=self.random.random() < 0.5)


def check_outcomes(program: Program) -> None:
    for call_id, probes in program.probes.items():
        for probe in probes:
            ends = [probe.ended, probe.reset is not None, probe.lost is not None]

            assert sum(ends) == 1, f"{ends} for {call_id.hex()}: {probe.messages}"

            outcomes = [m for m in probe.messages if isinstance(m, Result | Failure)]
            assert len(outcomes) == (1 if probe.ended or outcomes else 0)
            for outcome in outcomes:
                if isinstance(outcome, Failure) and not outcome.maybe_executed:
                    honest = len(probes) > 1 or call_id not in program.began

                    assert honest, f"{outcome} and yet it began"


def check_nothing_is_left(world: World) -> None:
    gateway = world.gateway
    dispatcher = gateway.dispatcher
    status = gateway.status()
    assert (status["calls_pending"], status["calls_running"], status["calls_queued"]) == (0, 0, 0)
    assert dispatcher.buffers.used_bytes == status["bytes_buffered"] == 0
    assert not dispatcher.leaving
    assert len(dispatcher.parking) == 0
    assert dispatcher.parking.bytes_kept == 0
    for record in gateway.registry.nodes.values():
        for group in record.groups.values():
            assert (group.busy, group.pools) == (0, {})
    for session in gateway.sessions:
        connection = session.link.connection
        assert connection.inflow.consumed == connection.inflow.received
        if session.node is None:
            assert connection.streams_in.released == connection.streams_in.opened
            assert not connection.streams


@pytest.mark.parametrize("seed", range(25))
@pytest.mark.trio
async def test_random_programs(
    home: Path, tmp_path: Path, autojump_clock: MockClock, seed: int
) -> None:
    """Whatever happens in whatever order: one outcome per call, honest, and nothing left."""
    async with open_world(tmp_path / "state") as world:
        program = Program(world, seed)
        await program.run()
        await program.finish()
        await trio.sleep(1000)
        check_outcomes(program)
        check_nothing_is_left(world)
