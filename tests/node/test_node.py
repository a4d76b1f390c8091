"""`ComputeNode` as a provider uses it; the agent is the test's own, at the end of a real socket."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio

from easyremote.errors import AuthenticationError, EasyRemoteError
from easyremote.node import ComputeNode, NodeLimits, launch
from easyremote.node.spec import NodeSpec
from easyremote.wire.errors import ErrorCode

from .harness import WAIT_S, ScriptedAgent


class FakeAgentProcess:
    """An agent that ends when it is asked to, as far as a worker can see."""

    pid = 0

    def __init__(self, agent: ScriptedAgent) -> None:
        self.agent = agent
        self.stopped = threading.Event()

    def stop(self) -> None:
        self.stopped.set()
        self.agent.close()

    def wait(self, timeout_s: float | None = None) -> bool:
        return True

    def signals(self) -> AbstractContextManager[None]:
        return nullcontext()

    def household(self) -> AbstractContextManager[None]:
        return nullcontext()

    def end_family(self) -> None:
        pass


class Agents:
    """Stands in for `launch.enter`: every `serve()` gets a scripted agent."""

    def __init__(self) -> None:
        self.specs: list[NodeSpec] = []
        self.made: list[ScriptedAgent] = []
        self.inert = False
        self.on_made: Callable[[ScriptedAgent], None] | None = None

    def enter(self, spec: NodeSpec, blocking: bool) -> Any:
        if self.inert:
            return None
        ours, theirs = socket.socketpair()
        agent = ScriptedAgent(theirs)
        self.specs.append(spec)
        self.made.append(agent)
        if self.on_made is not None:
            self.on_made(agent)
        return SimpleNamespace(socket=ours, agent=FakeAgentProcess(agent), rerun=False, group=None)


@pytest.fixture
def agents(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Agents]:
    monkeypatch.setenv("EASYREMOTE_HOME", str(tmp_path))
    made = Agents()
    monkeypatch.setattr(launch, "enter", made.enter)
    yield made
    for agent in made.made:
        agent.stop()


# ---- constructing --------------------------------------------------------------------------------


def test_constructing_does_no_io(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A node is described without a file, a socket or a thread."""
    monkeypatch.setenv("EASYREMOTE_HOME", str(tmp_path / "none"))
    threads = threading.active_count()
    ComputeNode("vps.example.org:8080", capabilities={"gpu": {"memory": "24GB"}})

    assert threading.active_count() == threads
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("text", ["a b", "http://x", "host:99999", "", "er1_abcdef", "[::1"])
def test_bad_address_is_refused_at_once(text: str) -> None:
    """An address that cannot be one is a ValueError in the constructor, under every spelling."""
    for keyword in ("vps_address", "gateway_address", "gateway"):
        with pytest.raises(ValueError, match=r"gateway|port|join"):
            ComputeNode(**{keyword: text})  # type: ignore[arg-type]


def test_aliases_of_the_address_must_agree(agents: Agents) -> None:
    """Two spellings may name the same gateway, not different ones."""
    node = ComputeNode("vps:8080", "n", gateway_address="er://VPS")
    with pytest.raises(ValueError, match="different gateways"):
        ComputeNode("a:1", gateway="b:1")
    handle = node.serve(blocking=False)
    assert handle is not None
    handle.stop()

    assert agents.specs[0].gateway == "vps:8080"


@pytest.mark.parametrize(
    "keywords",
    [
        {"node_id": "a b"},
        {"node_id": ""},
        {"node_id": ".a"},
        {"capabilities": ["gpu"]},
        {"capabilities": {"gpu": object()}},
        {"max_concurrency": 0},
        {"accept_code": "everybody"},
        {"accept_code": 3},
        {"accept_code": [1]},
        {"limits": {"memory": 1}},
    ],
)
def test_wrong_argument_is_refused_at_once(keywords: dict[str, Any]) -> None:
    """What cannot be right is said by the constructor."""
    with pytest.raises((ValueError, TypeError)):
        ComputeNode("localhost", **keywords)


def test_default_node_id_is_stable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A node without a name gets one that it keeps over restarts."""
    monkeypatch.setenv("EASYREMOTE_HOME", str(tmp_path))
    first, second = ComputeNode("localhost").node_id, ComputeNode("localhost").node_id

    assert first == second
    assert first.rpartition("-")[2] == f"{int(first.rpartition('-')[2], 16):04x}"


# ---- registering ---------------------------------------------------------------------------------


def test_register_returns_the_function_itself() -> None:
    """Both forms leave the function as it was, callable here."""
    node = ComputeNode("localhost")

    def add(a: int, b: int) -> int:
        return a + b

    assert node.register(add) is add
    assert node.register(name="plus", timeout=3)(add) is add
    assert node.functions == ["add", "plus"]
    assert add(1, 2) == 3


def test_duplicate_name_needs_replace() -> None:
    """A second function of the same name is an error, unless it says that it replaces."""
    node = ComputeNode("localhost")
    node.register(name="f")(lambda: 1)
    with pytest.raises(ValueError, match="replace=True"):
        node.register(name="f")(lambda: 2)
    node.register(name="f", replace=True)(lambda: 2)

    assert node.functions == ["f"]


def test_unregister_takes_away() -> None:
    """A function that was taken away is gone; one that is not there is a LookupError."""
    node = ComputeNode("localhost")
    node.register(name="f")(lambda: 1)
    node.unregister("f")
    with pytest.raises(LookupError, match="'f'"):
        node.unregister("f")

    assert node.functions == []


def test_unknown_keyword_and_classes_are_type_errors() -> None:
    """A typo, a class or a value is refused when it is written."""
    node: Any = ComputeNode("localhost")
    with pytest.raises(TypeError, match="did you mean 'timeout'"):
        node.register(timeot=3)
    with pytest.raises(TypeError, match="class Agents"):
        node.register(Agents)
    with pytest.raises(TypeError):
        node.register(3)
    with pytest.raises(ValueError, match="name="):
        node.register(lambda: 1)


def test_subclass_may_declare_keywords() -> None:
    """A keyword of a subclass becomes metadata and a capability tag of the function."""

    class QuantumNode(ComputeNode):
        extra_keywords = ("quantum_backend",)

    node: Any = QuantumNode("localhost")
    node.register(name="run", quantum_backend="ibm_q")(lambda: None)

    entry = node._table.entries()[0]
    assert entry["metadata"]["quantum_backend"] == "ibm_q"
    assert "quantum_backend:ibm_q" in entry["tags"]


# ---- serving -------------------------------------------------------------------------------------


def test_background_serving_answers_calls_and_stops(agents: Agents) -> None:
    """`serve(blocking=False)` returns when the gateway has the node; `stop` ends it."""
    node = ComputeNode("localhost", "n1")
    node.register(name="one")(lambda: 1)
    with node.serve(blocking=False) as handle:  # type: ignore[union-attr]
        agent = agents.made[0]
        assert agent.offer()["functions"][0]["name"] == "one"
        assert handle.running
        assert agent.call("one").result() == 1
        node.register(name="two")(lambda: 2)
        agent.offer()
        assert agent.call("two").result() == 2
        with pytest.raises(EasyRemoteError, match="serves already"):
            node.serve(blocking=False)

    assert not handle.running
    assert handle.wait(0)
    with pytest.raises(EasyRemoteError, match="does not serve"):
        node.pause()


def test_pause_resume_and_drain_reach_the_agent(agents: Agents) -> None:
    """The owner's hand: what it asks for is told to the agent, and drain waits for what runs."""
    node = ComputeNode("localhost", "n1")
    go = threading.Event()
    node.register(name="hold")(lambda: go.wait(WAIT_S))
    with node.serve(blocking=False):  # type: ignore[union-attr]
        agent = agents.made[0]
        agent.offer()
        node.pause()
        assert agent.offer()["paused"] is True
        node.resume()
        assert agent.offer()["paused"] is False
        call = agent.call("hold")
        call.next("started")
        with pytest.raises(TimeoutError, match="1 calls"):
            node.drain(timeout=0.01)
        assert agent.offer()["draining"] is True
        go.set()
        node.drain(timeout=WAIT_S)
        assert call.result() is True


def test_unenforced_settings_are_named_in_one_line(
    agents: Agents, caplog: pytest.LogCaptureFixture
) -> None:
    """What nothing enforces yet is named when serving begins, in one line, and nothing else is."""
    assert not agents.made
    node = ComputeNode("localhost", "n1", limits=NodeLimits(memory="8GB", hours="20:00-07:00"))
    node.register(name="f", billing="per_request", timeout=3, auth_required=True)(lambda: 1)
    node.register(name="g", split="rows", cache=True)(lambda: 1)
    with caplog.at_level(logging.WARNING, "easyremote"):
        node.serve(blocking=False).stop()  # type: ignore[union-attr]
    lines = [record.getMessage() for record in caplog.records if "enforces" in record.getMessage()]

    assert len(lines) == 1
    assert 'settings="cache, split, limits.hours"' in lines[0]


def test_refused_registration_is_raised(agents: Agents) -> None:
    """When the gateway refuses the node, `serve` raises what it meant."""
    agents.on_made = lambda agent: setattr(
        agent, "refuse", (ErrorCode.AUTH_INVALID, "the token is not valid")
    )
    node = ComputeNode("localhost", "n1")

    with pytest.raises(AuthenticationError, match="not valid"):
        node.serve(blocking=False)
    with pytest.raises(AuthenticationError, match="not valid"):
        node.serve()
    assert len(agents.made) == 2


def test_blocking_serve_runs_sync_calls_on_the_calling_thread(agents: Agents) -> None:
    """`serve()` turns its own thread into the one that runs sync functions, until a goodbye."""
    node = ComputeNode("localhost", "n1")
    node.register(name="ident")(threading.get_ident)
    seen: list[int] = []

    def script(agent: ScriptedAgent) -> None:
        def run() -> None:
            agent.offer()
            seen.append(agent.call("ident").result())
            agent.close()

        threading.Thread(target=run, daemon=True).start()

    agents.on_made = script
    assert node.serve() is None

    assert seen == [threading.get_ident()]


def test_vanished_agent_ends_a_blocking_serve_with_a_sentence(agents: Agents) -> None:
    """A worker whose agent is gone exits non-zero and says why in one sentence."""
    node = ComputeNode("localhost", "n1")

    def script(agent: ScriptedAgent) -> None:
        def run() -> None:
            agent.offer()
            agent.vanish()

        threading.Thread(target=run, daemon=True).start()

    agents.on_made = script
    with pytest.raises(SystemExit, match="the agent of node n1 is gone") as caught:
        node.serve()

    assert isinstance(caught.value.code, str)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_drains_a_blocking_serve(agents: Agents, number: signal.Signals) -> None:
    """SIGTERM and Ctrl-C ask the agent to drain; `serve()` returns and puts the handlers back."""
    node = ComputeNode("localhost", "n1")
    node.register(name="kill")(lambda: os.kill(os.getpid(), number))
    before = signal.getsignal(number)
    calls = []

    def script(agent: ScriptedAgent) -> None:
        def run() -> None:
            agent.offer()
            calls.append(agent.call("kill"))

        threading.Thread(target=run, daemon=True).start()

    agents.on_made = script
    assert node.serve() is None

    assert signal.getsignal(number) is before
    assert len(calls) == 1


def test_inert_serve_does_nothing(agents: Agents) -> None:
    """Where launch says that this `serve()` is not meant, nothing is served and nothing fails."""
    agents.inert = True
    node = ComputeNode("localhost", "n1")
    handle = node.serve(blocking=False)
    assert handle is not None
    assert not handle.running
    assert handle.wait_ready(0)
    assert handle.wait(0)
    handle.stop()

    assert node.serve() is None


def test_serving_under_trio(agents: Agents) -> None:
    """`async with node.serving()` serves while the block runs, under trio."""
    node = ComputeNode("localhost", "n1")
    node.register(name="one")(lambda: 1)

    async def main() -> int:
        async with node.serving() as served:
            assert served is node
            call = agents.made[0].call("one")
            result: int = await trio.to_thread.run_sync(call.result)
            return result

    assert trio.run(main) == 1
    assert agents.made[0].io is not None


def test_serving_under_asyncio(agents: Agents) -> None:
    """`async with node.serving()` serves while the block runs, under asyncio, also if it fails."""
    import asyncio

    node = ComputeNode("localhost", "n1")
    node.register(name="one")(lambda: 1)

    async def main() -> None:
        async with node.serving():
            assert await asyncio.to_thread(agents.made[0].call("one").result) == 1
            raise ValueError("block")

    with pytest.raises(ValueError, match="block"):
        asyncio.run(main())
    with pytest.raises(EasyRemoteError, match="does not serve"):
        node.drain()


def test_import_is_lean() -> None:
    """Importing the node loads no event loop, no numpy and no process library."""
    code = (
        "import sys; import easyremote.node;"
        "print([m for m in ('asyncio', 'torch', 'fastapi', 'psutil', 'pynvml', 'ctypes.wintypes')"
        " if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )

    assert done.stdout.strip() == "[]", done.stderr
