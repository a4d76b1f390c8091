"""`multiprocessing` inside a registered function, in a script without an import guard."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from .harness import ScriptedAgent

SCRIPT = """
# The descriptor of the socket to the (scripted) agent is the first argument.
import contextlib
import multiprocessing
import os
import socket
import sys
from types import SimpleNamespace
from typing import Any

from easyremote import seam
from easyremote.node import ComputeNode, launch
from easyremote.node.process import close_in_forked_children


def enter(*_: Any) -> Any:
    print("entered", flush=True)
    sock = socket.socket(fileno=int(sys.argv[1]))
    close_in_forked_children(sock)
    agent = SimpleNamespace(
        pid=0, stop=lambda: None, wait=lambda *_: True, signals=contextlib.nullcontext,
        household=contextlib.nullcontext, end_family=lambda: None,
    )
    return SimpleNamespace(socket=sock, agent=agent, rerun=False, group=None)


launch.enter = enter

node = ComputeNode("localhost", "n1")


def square(x: int) -> tuple[int, int, bool]:
    return x * x, os.getpid(), seam.injected() is None


@node.register
def pool(method: str, count: int) -> list[Any]:
    with multiprocessing.get_context(method).Pool(2) as workers:
        return [list(found) for found in workers.map(square, range(count))]


@node.register
def pid() -> int:
    return os.getpid()


node.serve()
if __name__ == "__main__":
    print("served", flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
def test_pool_inside_a_function_works(method: str, tmp_path: Path) -> None:
    """Children compute and never serve: `serve()` in their copy of the script returns at once."""
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    ours, theirs = socket.socketpair()
    environment = {
        **os.environ,
        "EASYREMOTE_HOME": str(tmp_path),
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "PYTHONWARNINGS": "ignore",
    }
    script = subprocess.Popen(
        [sys.executable, str(path), str(theirs.fileno())],
        pass_fds=[theirs.fileno()], stdout=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip
    theirs.close()
    agent = ScriptedAgent(ours)
    try:
        agent.offer()
        pid = agent.call("pid").result()
        found = agent.call("pool", method, 6).result(timeout_s=60)
        agent.close()
        output, _ = script.communicate(timeout=30)
    finally:
        script.kill()
        with script:
            pass
        agent.stop()

    assert [square for square, _, _ in found] == [0, 1, 4, 9, 16, 25]
    assert pid not in {worker for _, worker, _ in found}
    assert all(forgotten for _, _, forgotten in found)
    assert output.split() == ["entered", "served"]
    assert script.returncode == 0
