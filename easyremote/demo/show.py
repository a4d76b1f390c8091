"""The demo itself: start a gateway and two nodes, draw a picture across them, send an array.

Theory. Everything is what a user would do: `easyremote gateway run`, a node script, `connect`,
`remote`, `gather`. Only the folder for keys and profiles is a temporary one, so that the demo
leaves nothing behind but the picture.

Rules of this file. 1) Every process that is started is ended, by its own pid, also after an error
or Ctrl-C. 2) Every wait has a limit and says what it waited for.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from easyremote import as_completed, connect, gather, remote, shutdown
from easyremote.client.client import Client
from easyremote.client.future import Future
from easyremote.demo.picture import Pixels, View, write_png
from easyremote.errors import EasyRemoteError

NODES = ("demo-1", "demo-2")
ROWS_PER_TILE = 16
ARRAY_BYTES = 256_000_000
START_LIMIT_S = 15.0
STOP_LIMIT_S = 8.0


class DemoError(EasyRemoteError):
    """The demo could not run; the message says which part did not come up."""


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(command: list[str], environment: dict[str, str], log: Path) -> Iterator[None]:
    """Run a process as long as the block lasts; then ask it to end, and insist if it does not."""
    with log.open("wb") as sink:
        process = subprocess.Popen(  # noqa: S603 (our own interpreter and modules)
            command, env=environment, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink
        )
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def connected(address: str, logs: Path) -> Client:
    """Connect and wait until both nodes offer their functions.

    Raises:
        DemoError: They did not within the limit; the logs are quoted.
    """
    until = time.monotonic() + START_LIMIT_S
    while True:
        try:
            client = connect(address)
            while time.monotonic() < until:
                offers = {(f.node_id, f.function_name) for f in client.functions()}
                if {(node, name) for node in NODES for name in ("draw", "mirror")} <= offers:
                    return client
                time.sleep(0.05)
            break
        except (EasyRemoteError, OSError):
            if time.monotonic() > until:
                break
            time.sleep(0.05)
    tails = "\n".join(f"{f.name}:\n{f.read_text()[-800:]}" for f in sorted(logs.glob("*.log")))
    raise DemoError(f"gateway and nodes were not ready within {START_LIMIT_S:g} s\n{tails}")


def draw_picture(console: Console, view: View) -> tuple[Pixels, Counter[str], float]:
    """Draw the picture across all nodes; return it, each node's tiles, and the seconds taken."""

    @remote
    def draw(view: View, top: int, rows: int) -> tuple[str, Pixels]:
        raise NotImplementedError

    begin = time.perf_counter()
    tops = range(0, view.height, ROWS_PER_TILE)
    calls: list[Future[tuple[str, Pixels]]] = [
        draw(tuple(view), top, min(ROWS_PER_TILE, view.height - top))  # type: ignore[arg-type]
        for top in tops
    ]
    columns = (
        TextColumn("drawing"), BarColumn(), MofNCompleteColumn(), TextColumn("tiles"),
        TimeElapsedColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("drawing", total=len(calls))
        for _ in as_completed(calls):
            bar.advance(task)
        tiles = gather(*calls).result()
    share = Counter(node for node, _ in tiles)
    return np.concatenate([pixels for _, pixels in tiles]), share, time.perf_counter() - begin


def send_array(node_id: str) -> float:
    """Send a large array to a node and back; return GB/s, both ways counted.

    Raises:
        DemoError: What came back is not what was sent.
    """

    @remote(node_id=node_id)
    def mirror(array: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> object:
        raise NotImplementedError

    array = np.random.default_rng(1).random(ARRAY_BYTES // 8)
    mirror(array[:1000]).result(timeout=10)
    begin = time.perf_counter()
    back = mirror(array).result(timeout=20)
    seconds = time.perf_counter() - begin
    if not isinstance(back, np.ndarray) or not np.array_equal(array, back):
        raise DemoError("the array did not come back as it was sent")
    return 2 * array.nbytes / seconds / 1e9


def run(picture: Path, console: Console | None = None) -> None:
    """Run the whole demo and write the picture.

    Args:
        picture: Where the PNG goes.
        console: Where to write; standard output by default.

    Raises:
        DemoError: Something did not work; every process has been ended.
    """
    console = console or Console()
    view = View()
    began = time.perf_counter()
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="easyremote-demo-")))
        environment = {
            key: value for key, value in os.environ.items() if not key.startswith("EASYREMOTE_")
        } | {"EASYREMOTE_HOME": str(home)}
        stack.callback(_restore, {k: os.environ.get(k) for k in _OURS})
        for key in _OURS:
            os.environ.pop(key, None)
        os.environ["EASYREMOTE_HOME"] = str(home)
        port = free_port()
        address = f"127.0.0.1:{port}"
        python = [sys.executable, "-m"]
        gateway = [*python, "easyremote", "gateway", "run", "--port", str(port)]
        gateway += ["--host", "127.0.0.1"]
        stack.enter_context(running(gateway, environment, home / "gateway.log"))
        for name in NODES:
            node = [*python, "easyremote.demo.node", address, name]
            # One thread for each node's arithmetic: two nodes share this one machine.
            lean = environment | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
            stack.enter_context(running(node, lean, home / f"{name}.log"))
        stack.callback(shutdown)
        connected(address, home)
        ready_s = time.perf_counter() - began
        console.print(f"a gateway and {len(NODES)} nodes are up on {address} ({ready_s:.1f} s)")
        pixels, share, draw_s = draw_picture(console, view)
        write_png(picture, pixels)
        console.print(f"sending {ARRAY_BYTES // 10**6} MB to each node and back ...")
        speed = {name: send_array(name) for name in NODES}
    console.print(_table(share, speed, sum(share.values())))
    console.print(
        f"{view.width} x {view.height} pixels in {draw_s:.1f} s: {picture.resolve()}",
        soft_wrap=True,
    )


_OURS = ("EASYREMOTE_HOME", "EASYREMOTE_GATEWAY", "EASYREMOTE_JOIN")


def _restore(values: dict[str, str | None]) -> None:
    for key, value in values.items():
        if value is None:
            os.environ.pop(key, None)
        else:
            os.environ[key] = value


def _table(share: Counter[str], speed: dict[str, float], tiles: int) -> Table:
    table = Table(title="who did what")
    table.add_column("node")
    table.add_column("tiles", justify="right")
    table.add_column("share", justify="right")
    table.add_column(f"{ARRAY_BYTES // 10**6} MB there and back", justify="right")
    for name in NODES:
        percent = f"{100 * share[name] / tiles:.0f} %"
        table.add_row(name, str(share[name]), percent, f"{speed[name]:.2f} GB/s")
    return table
