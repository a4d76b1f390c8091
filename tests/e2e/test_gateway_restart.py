"""A gateway that dies and is started again, with real processes: running calls live on."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator

import pytest

import easyremote
from easyremote import Future

from .conftest import Cluster, cluster_in

BODY = """
    import time
    from easyremote import remote

    def mark(name):
        with open("marks", "a") as file:
            file.write(name + "\\n")

    @node.register(max_concurrency=32)
    def slow(name, seconds):
        mark(name)
        time.sleep(seconds)
        return name + " done"

    @node.register(max_concurrency=4)
    def outer(name, seconds):
        mark(name)
        return remote(node_id="n1")(slow)(name + " inner", seconds).result() + " outside"

    @node.register
    def same(number):
        return number

    @node.register(max_concurrency=4)
    def count(n):
        for i in range(n):
            time.sleep(0.05)
            yield i
"""


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Yield a gateway and one node."""
    with cluster_in(tmp_path_factory.mktemp("restart")) as made:
        made.start_gateway()
        made.start_node("n1", BODY)
        yield made


def marks(running: Cluster) -> list[str]:
    """Return what bodies wrote when they began, in order."""
    path = running.folder / "marks"
    return path.read_text().split("\n")[:-1] if path.exists() else []


def wait_for_mark(running: Cluster, name: str) -> None:
    """Wait until a body has begun."""
    until = time.monotonic() + 10.0
    while name not in marks(running):
        assert time.monotonic() < until, f"{name} did not begin"
        time.sleep(0.01)


def kill_gateway(running: Cluster) -> None:
    """End the gateway as a power cut would."""
    assert running.gateway is not None
    running.gateway.send_signal(signal.SIGKILL)
    running.gateway.wait()


def restart(running: Cluster) -> None:
    """Kill the gateway and start it again."""
    kill_gateway(running)
    running.start_gateway()


def test_running_calls_return_their_results(running: Cluster) -> None:
    """Calls that run while the gateway is gone are not begun again, and nothing of them is lost."""
    client = easyremote.connect(running.address)
    ending = [client.submit("slow", f"during {i}", 0.5) for i in range(5)]
    lasting = [client.submit("slow", f"after {i}", 4.0) for i in range(5)]
    nested = client.submit("outer", "nested", 4.0)
    for name in [f"during {i}" for i in range(5)] + [f"after {i}" for i in range(5)]:
        wait_for_mark(running, name)
    wait_for_mark(running, "nested inner")
    kill_gateway(running)
    time.sleep(1.0)
    running.start_gateway()

    assert [f.result(60) for f in lasting] == [f"after {i} done" for i in range(5)]
    assert nested.result(60) == "nested inner done outside"
    assert [f.result(60) for f in ending] == [f"during {i} done" for i in range(5)]
    seen = marks(running)
    assert len(seen) == len(set(seen))


def test_new_calls_wait_for_the_nodes(running: Cluster) -> None:
    """What is called right after a restart does not fail because its node is still on the way."""
    client = easyremote.connect(running.address)
    restart(running)

    assert client.submit("slow", "early", 0.0).result(60) == "early done"


def test_a_node_that_had_many_calls_comes_back(running: Cluster) -> None:
    """Beyond some thousand, their ids are a long value in what the node says of itself."""
    client = easyremote.connect(running.address)
    client.gather([client.submit("same", number) for number in range(5000)])
    restart(running)

    assert client.submit("same", 7).result(60) == 7


def test_a_detached_call_is_found_again(running: Cluster) -> None:
    """Its program ends, the gateway is restarted, and another program fetches the result."""
    client = easyremote.Client(running.address)
    spawned = client.submit(easyremote.remote(function="slow", detached=True)(_slow), "kept", 3.0)
    wait_for_mark(running, "kept")
    call_id = spawned.id
    client.close()
    restart(running)
    easyremote.connect(running.address)

    assert Future.from_id(call_id).result(60) == "kept done"
    assert marks(running).count("kept") == 1


def test_a_stream_is_cut_honestly(running: Cluster) -> None:
    """Items cannot be had again: an error that says so, never a short success."""
    client = easyremote.connect(running.address)
    got = []
    with pytest.raises(easyremote.EasyRemoteError) as caught:  # noqa: PT012, SIM117
        with client.stream("count", 100) as items:
            for item in items:
                got.append(item)
                if item == 3:
                    restart(running)
    assert got == list(range(len(got)))
    assert getattr(caught.value, "may_have_run", None) is True


def _slow(name: str, seconds: float) -> str:
    raise NotImplementedError
