"""A client of a campaign: submits calls all the time, and writes down what came of each.

Theory. A line of JSON says that a call is about to be made, another one what its outcome was; both
are one `write` with O_APPEND, so a killed client leaves a true log. On SIGTERM it submits no more,
waits for what is open, and says what never came.

    client.py GATEWAY CLIENT_ID LOG RATE SEED SETTLE_S
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import easyremote
from easyremote import EasyRemoteError, remote

OPEN_MAX = 150
"""Calls that one client has open at most: a campaign is no flood."""
CONNECT_PAUSE_S = 0.2
SIZES_BYTES = (100, 100_000, 3_000_000)

FUNCTIONS = {"nap": 40, "work": 25, "bulk": 12, "numbers": 10, "again": 8, "alone": 5}
"""What is called, and how often of a hundred."""


@remote
def nap(key: str, seconds: float) -> str:
    raise NotImplementedError


@remote(idempotent=True)
def again(key: str, seconds: float) -> str:
    raise NotImplementedError


@remote
def work(key: str, seconds: float) -> str:
    raise NotImplementedError


@remote
def alone(key: str, seconds: float) -> str:
    raise NotImplementedError


@remote
def bulk(key: str, size_bytes: int) -> bytes:
    raise NotImplementedError


@remote
def numbers(key: str, count: int) -> Iterator[int]:
    raise NotImplementedError


TIMED: dict[str, Any] = {"nap": nap, "again": again, "work": work, "alone": alone}


class Log:
    """The log of one client."""

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def write(self, event: str, key: str, **facts: Any) -> None:
        """Write one line."""
        line = {"event": event, "key": key, "t": time.monotonic(), **facts}
        os.write(self._fd, (json.dumps(line) + "\n").encode())


class Caller:
    """Makes calls and writes their outcomes down."""

    def __init__(self, client_id: str, log: Log, rng: random.Random) -> None:
        self.open: set[str] = set()
        self._client_id = client_id
        self._log = log
        self._rng = rng
        self._made = 0
        self._lock = threading.Lock()

    def make(self) -> None:
        """Make one call."""
        rng = self._rng
        (name,) = rng.choices(list(FUNCTIONS), list(FUNCTIONS.values()))
        key = f"{self._client_id}.{self._made}"
        self._made += 1
        timeout_s = rng.choice((None, None, 8.0))
        seconds = round(rng.expovariate(4.0), 3)
        with self._lock:
            self.open.add(key)
        self._log.write("submit", key, function=name, timeout_s=timeout_s)
        options: dict[str, Any] = {} if timeout_s is None else {"timeout": timeout_s}
        if name == "numbers":
            words = key, numbers.options(**options), rng.randint(1, 30)
            threading.Thread(target=self._consume, args=words, daemon=True).start()
            return
        size = rng.choice(SIZES_BYTES)
        try:
            if name == "bulk":
                wanted: Any = key.encode().ljust(size, b".")
                future = bulk.options(**options)(key, size)
            else:
                wanted = key
                future = TIMED[name].options(**options)(key, seconds)
        except EasyRemoteError as error:
            self._ended(key, error, right=False)
            return
        future.add_done_callback(lambda done: self._done(key, done, wanted))

    def _consume(self, key: str, function: Any, count: int) -> None:
        """Take the items of a stream; they must be the numbers from 0, to the last one."""
        got = 0
        error: BaseException | None = None
        in_order = True
        try:
            for item in function(key, count):
                in_order = in_order and item == got
                got += 1
        except EasyRemoteError as caught:
            error = caught
        whole = in_order and (got == count if error is None else got <= count)
        if not in_order or (error is None and not whole):
            self._log.write("broken", key, got=got, count=count)
        self._ended(key, error, right=whole)

    def _done(self, key: str, done: Any, wanted: Any) -> None:
        error = done.exception()
        self._ended(key, error, right=error is None and done.result() == wanted)

    def _ended(self, key: str, error: BaseException | None, *, right: bool) -> None:
        facts: dict[str, Any] = {"right": right}
        if error is not None:
            facts = {
                "error": type(error).__name__,
                "text": str(error)[:200],
                "typed": isinstance(error, EasyRemoteError),
                "may_have_run": getattr(error, "may_have_run", None),
                "code": str(getattr(getattr(error, "code", None), "name", "")),
            }
        self._log.write("outcome", key, **facts)
        with self._lock:
            self.open.discard(key)


def connect(gateway: str, stop: threading.Event) -> None:
    """Connect, however long the gateway is away."""
    while not stop.is_set():
        try:
            easyremote.connect(gateway)
        except EasyRemoteError:
            stop.wait(CONNECT_PAUSE_S)
        else:
            return


def main(gateway: str, client_id: str, path: str, rate: float, seed: int, settle_s: float) -> None:
    """Submit until SIGTERM, then wait for what is open."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    log = Log(path)
    caller = Caller(client_id, log, random.Random(f"{seed} {client_id}"))
    connect(gateway, stop)
    log.write("begun", client_id)
    due = time.monotonic()
    while not stop.is_set():
        due += caller._rng.expovariate(rate)
        stop.wait(max(0.0, due - time.monotonic()))
        if len(caller.open) < OPEN_MAX:
            caller.make()
    until = time.monotonic() + settle_s
    while caller.open and time.monotonic() < until:
        time.sleep(0.05)
    log.write("over", client_id, open=sorted(caller.open))
    os._exit(0)


if __name__ == "__main__":
    gateway_, client_id_, path_, rate_, seed_, settle_ = sys.argv[1:7]
    main(gateway_, client_id_, path_, float(rate_), int(seed_), float(settle_))
