"""The same work on other systems, where they are installed: Ray and RPyC.

Theory. A peer runs in a process of its own that imports it, starts what it needs and answers
orders through a pipe, so that it can take turns with ours. It is used as its documentation shows,
on plain TCP or shared memory, which is its default; ours is always on TLS with a gateway between.

Rules of this file. A peer that cannot do an order says so, and takes no part in that row.
"""

from __future__ import annotations

import importlib.util
import multiprocessing as mp
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from .harness import Measure, median_us

ORDER_S = 120.0
"""Longest time for one order."""

Work = Callable[[int], float]


class Peer:
    """Another system, running."""

    def __init__(self, name: str, pipe: Connection) -> None:
        self.name = name
        self._pipe = pipe

    def ask(self, what: str, number: int) -> float | str:
        """Return what an order gave: a value, or why there is none."""
        self._pipe.send((what, number))
        if not self._pipe.poll(ORDER_S):
            return f"no answer within {ORDER_S:g} s"
        answer: float | str = self._pipe.recv()
        return answer

    def can(self, what: str, number: int) -> bool:
        """Return whether the peer can do this, by trying."""
        return isinstance(self.ask(what, number), float)

    def measure(self, what: str, number: int) -> Measure:
        """Return a measurement for `alternate`."""

        def run() -> float:
            answer = self.ask(what, number)
            if isinstance(answer, str):
                raise TypeError(f"{self.name}, {what} {number}: {answer}")
            return answer

        return run


def installed() -> list[str]:
    """Return the names of the peers that can be imported."""
    return [name for name in _MAINS if importlib.util.find_spec(name) is not None]


@contextmanager
def running_peers(names: list[str]) -> Iterator[tuple[Peer, ...]]:
    """Start peers; end them afterwards."""
    context = mp.get_context("spawn")
    with ExitStack() as stack:
        peers = []
        for name in names:
            near, far = context.Pipe()
            process = context.Process(target=_answer, args=(name, far))
            process.start()
            far.close()
            stack.callback(_end, process, near)
            peers.append(Peer(name, near))
        yield tuple(peers)


def _end(process: Any, pipe: Connection) -> None:
    pipe.close()
    process.join(15)
    if process.is_alive():
        process.kill()
        process.join()


def _answer(name: str, pipe: Connection) -> None:
    """Answer orders until the pipe is closed."""
    with ExitStack() as stack:
        works = _MAINS[name](stack)
        while True:
            try:
                what, number = pipe.recv()
            except EOFError:
                return
            try:
                pipe.send(float(works[what](number)))
            except Exception as error:  # noqa: BLE001  # Whatever a peer raises is its answer.
                pipe.send(f"{type(error).__name__}: {error}"[:500])


def _gigabytes_per_s(size_bytes: int, work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return size_bytes / (time.perf_counter() - begin) / 1e9


def _ray(stack: ExitStack) -> dict[str, Work]:
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    stack.callback(ray.shutdown)

    def noop_there() -> None:
        return None

    def keep_there(array: Any) -> int:
        return int(array.nbytes)

    def give_there(size: int) -> Any:
        return np.zeros(size, np.uint8)

    noop, keep, give = (ray.remote(body) for body in (noop_there, keep_there, give_there))

    def pipelined(count: int) -> float:
        begin = time.perf_counter()
        ray.get([noop.remote() for _ in range(count)])
        return count / (time.perf_counter() - begin)

    def send(size: int) -> float:
        array = np.ones(size, np.uint8)
        return _gigabytes_per_s(size, lambda: ray.get(keep.remote(array)))

    return {
        "round_trip": lambda calls: median_us(lambda: ray.get(noop.remote()), calls),
        "pipelined": pipelined,
        "send": send,
        "receive": lambda size: _gigabytes_per_s(size, lambda: ray.get(give.remote(size)).sum()),
    }


def _rpyc_server(pipe: Connection) -> None:
    import rpyc
    from rpyc.utils.server import ThreadedServer

    class Service(rpyc.Service):  # type: ignore[misc]  # RPyC has no type information.
        def exposed_noop(self) -> None:
            return None

        def exposed_keep(self, data: bytes) -> int:
            return len(data)

        def exposed_give(self, size: int) -> bytes:
            return bytes(size)

    server = ThreadedServer(Service, hostname="127.0.0.1", port=0)
    pipe.send(server.port)
    threading.Thread(target=server.start, daemon=True).start()
    try:
        pipe.recv()
    except EOFError:
        server.close()


def _rpyc(stack: ExitStack) -> dict[str, Work]:
    import rpyc

    context = mp.get_context("spawn")
    near, far = context.Pipe()
    process = context.Process(target=_rpyc_server, args=(far,))
    process.start()
    far.close()
    stack.callback(_end, process, near)
    connection = rpyc.connect("127.0.0.1", near.recv(), config={"sync_request_timeout": ORDER_S})
    stack.callback(connection.close)
    root = connection.root
    noop_later = rpyc.async_(root.noop)

    def pipelined(count: int) -> float:
        begin = time.perf_counter()
        for result in [noop_later() for _ in range(count)]:
            result.wait()
        return count / (time.perf_counter() - begin)

    def send(size: int) -> float:
        array = np.ones(size, np.uint8)
        return _gigabytes_per_s(size, lambda: root.keep(array.tobytes()))

    def receive(size: int) -> float:
        return _gigabytes_per_s(size, lambda: np.frombuffer(root.give(size), np.uint8).copy())

    def round_trip(calls: int) -> float:
        return median_us(root.noop, calls)

    return {"round_trip": round_trip, "pipelined": pipelined, "send": send, "receive": receive}


_MAINS: dict[str, Callable[[ExitStack], dict[str, Work]]] = {"ray": _ray, "rpyc": _rpyc}
