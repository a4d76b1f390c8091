"""A client that is interrupted, or dropped, is over at once, and so are its calls."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from easyremote import remote

from .conftest import Cluster

pytestmark = pytest.mark.slow

LIMIT_S = 2.0
WAIT_S = 20.0

NODE = """
import time

@node.register(max_concurrency=8)
def naps(seconds):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        time.sleep(0.01)
    return seconds

@node.register(max_concurrency=2)
def numbers():
    i = 0
    while True:
        yield i
        i += 1

@node.register(max_concurrency=2)
def silence():
    yield 0
    while True:
        time.sleep(0.01)

"""

CLIENT = """
import asyncio, gc, os, sys, time, trio
import easyremote
from easyremote import as_completed, gather, remote, wait

naps = remote("n1", "naps")

@remote(node_id="n1", stream=True)
def numbers():
    raise NotImplementedError

@remote(node_id="n1", stream=True)
def silence():
    raise NotImplementedError

async def awaits():
    await naps(60)

def begun():
    sys.stdout.write("begun\\n")
    sys.stdout.flush()
"""

BODIES = {
    "result": "f = naps(60); begun(); f.result()",
    "result with a timeout": "f = naps(60); begun(); f.result(50)",
    "gather": "f = gather(naps(60), naps(60)); begun(); f.result()",
    "wait": "f = naps(60); begun(); wait([f])",
    "as_completed": "f = naps(60); begun(); list(as_completed([f]))",
    "map": "m = naps.map([60, 60]); begun(); list(m)",
    "a stream that flows": "s = numbers(); begun(); [0 for _ in s]",
    "a stream that is silent": "s = silence(); next(s); begun(); next(s)",
    "asyncio": "begun(); asyncio.run(awaits())",
    "trio": "begun(); trio.run(awaits)",
    "more calls than the credit": "f = [naps(60) for _ in range(600)]; begun(); f[-1].result()",
}


@pytest.fixture(scope="module")
def cluster(cluster_factory: Callable[[], Cluster]) -> Iterator[Cluster]:
    """A gateway and a node."""
    made = cluster_factory()
    made.start_gateway()
    made.start_node("n1", NODE)
    yield made
    made.end_nodes()


def _start(cluster: Cluster, body: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", f"{CLIENT}\n{body}\n"],
        env=cluster.environment | {"EASYREMOTE_GATEWAY": cluster.address},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def _is_idle_again(cluster: Cluster) -> None:
    """The node takes calls of every group at once: nothing of the client is left there."""
    calls = [remote("n1", "naps")(0.01) for _ in range(8)]

    assert [call.result(WAIT_S) for call in calls] == [0.01] * 8


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES.keys())
def test_interrupted_client_ends_at_once(cluster: Cluster, body: str) -> None:
    """Ctrl-C ends a program that waits for calls, in whatever way, within two seconds."""
    client = _start(cluster, body)
    try:
        assert client.stdout is not None
        assert client.stdout.readline() == "begun\n"
        time.sleep(0.2)  # It waits by then; if it does not yet, it is interrupted all the same.
        began = time.monotonic()
        client.send_signal(signal.SIGINT)
        _, said = client.communicate(timeout=WAIT_S)
        took_s = time.monotonic() - began
    finally:
        client.kill()

    assert took_s < LIMIT_S
    assert client.returncode == -signal.SIGINT
    assert said.rstrip().endswith("KeyboardInterrupt")
    _is_idle_again(cluster)


DROPS = {
    "future": "f = naps(60); del f; gc.collect()",
    "client": "c = easyremote.Client(); f = c.submit('naps', 60); del c, f; gc.collect()",
    "client in a cycle": "c = easyremote.Client(); c.me = c; c.submit('naps', 60); del c",
    "stream": "s = numbers(); next(s); del s; gc.collect()",
    "client that never connected": "c = easyremote.Client('127.0.0.1:1', token='erc_x'); del c",
}


@pytest.mark.parametrize("body", DROPS.values(), ids=DROPS.keys())
def test_dropped_client_ends_at_once(cluster: Cluster, body: str) -> None:
    """A program that drops what it holds and ends is over within two seconds; its calls end."""
    client = _start(cluster, f"{body}\nbegun()")
    try:
        assert client.stdout is not None
        assert client.stdout.readline() == "begun\n", client.communicate()[1]
        began = time.monotonic()
        _, said = client.communicate(timeout=WAIT_S)
        took_s = time.monotonic() - began
    finally:
        client.kill()

    assert took_s < LIMIT_S
    assert (client.returncode, "Traceback" in said) == (0, False)
    _is_idle_again(cluster)
