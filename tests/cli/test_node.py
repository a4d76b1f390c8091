"""`easyremote node FILE.py`: the script, its arguments, its end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from easyremote.gateway.server import Server

from .conftest import Run

ROOT = Path(__file__).resolve().parent.parent.parent
START_S = 60.0
STOP_S = 40.0

SCRIPT = """
import sys
from collections.abc import Iterator

from easyremote import ComputeNode

node = ComputeNode(sys.argv[1], node_id="node-1")


@node.register
def add(a: int, b: int = 10) -> int:
    '''Add two numbers.'''
    return a + b


@node.register
def said(**what):
    return what


@node.register
def count(stop: int) -> Iterator[int]:
    yield from range(stop)


@node.register
def fail(text: str) -> None:
    raise KeyError(text)


@node.register
def arguments() -> list[str]:
    return sys.argv[2:]


node.serve()
"""


def start(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "easyremote", *words],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@contextmanager
def node_running(gateway: Server, script: Path, *words: str) -> Iterator[subprocess.Popen[str]]:
    """Run `easyremote node SCRIPT` until its functions are offered."""
    script.write_text(SCRIPT, encoding="utf-8")
    process = start("node", str(script), f"127.0.0.1:{gateway.port}", *words)
    try:
        until = time.monotonic() + START_S
        while len(gateway.functions()) < 5:
            if process.poll() is not None or time.monotonic() > until:
                process.kill()
                raise AssertionError(process.communicate()[1])
            time.sleep(0.02)
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.communicate(timeout=STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
        process.communicate()


@pytest.mark.slow
def test_a_script_runs_as_a_node_and_drains_on_sigterm(
    run: Run, gateway: Server, tmp_path: Path
) -> None:
    """Its functions are listed while it runs; the command ends with it, cleanly."""
    with node_running(gateway, tmp_path / "node.py") as process:
        table = run("status")
        seen = json.loads(run("status", "--json").stdout)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=STOP_S)

    assert "node-1.add" in table.stdout
    assert "Add two numbers." in table.stdout
    assert [one["node_id"] for one in seen["nodes"]] == ["node-1"]
    assert process.returncode == 0, err
    assert out == ""
    assert "Traceback" not in err


def test_a_script_that_is_missing_is_one_sentence() -> None:
    """A mistyped name is told before anything is started."""
    process = start("node", "missing.py")
    _, err = process.communicate(timeout=START_S)

    assert process.returncode == 1
    assert err == "Error: there is no file missing.py; name the script that calls node.serve()\n"


@pytest.mark.slow
def test_the_exit_code_of_a_script_that_ends_is_kept(tmp_path: Path) -> None:
    """A script that ends by itself, before it serves, is not hidden by the command around it."""
    script = tmp_path / "node.py"
    script.write_text("import sys\nprint(sys.argv[1:])\nsys.exit(7)\n", encoding="utf-8")
    process = start("node", str(script), "--debug", "-x", "forget", "--help")
    out, err = process.communicate(timeout=START_S)

    assert process.returncode == 7, err
    assert out == "['--debug', '-x', 'forget', '--help']\n"


@pytest.mark.slow
def test_functions_are_called_from_the_shell(run: Run, gateway: Server, tmp_path: Path) -> None:
    """Arguments in order and by name, results as text, streams by line, failures as a sentence."""
    with node_running(gateway, tmp_path / "node.py", "one", "--two"):
        added = run("call", "node-1.add", "1", "b=2")
        default = run("call", "add", "-5")
        named = run("call", "node-1.said", "name=Ada", "list=[1, 2]")
        counted = run("call", "node-1.count", "3", "--timeout", "30s")
        arguments = run("call", "node-1.arguments")
        failed = run("call", "node-1.fail", "no such key")
        traced = run("call", "--debug", "node-1.fail", "x")
        unknown = run("call", "node-1.ad", "1")
        nobody = run("call", "node-2.add", "1")
        wrong = run("call", "node-1.add", "1", "c=2")

    assert (added.exit_code, added.stdout) == (0, "3\n"), added.stderr
    assert default.stdout == "5\n"
    assert json.loads(named.stdout) == {"name": "Ada", "list": [1, 2]}
    assert counted.stdout == "0\n1\n2\n"
    assert json.loads(arguments.stdout) == ["one", "--two"]
    assert (failed.exit_code, failed.stdout) == (1, "")
    assert failed.stderr == "Error: the function raised KeyError: 'no such key'\n"
    assert "raise KeyError(text)" in traced.stderr
    for done in (unknown, nobody, wrong):
        assert (done.exit_code, done.stdout) == (1, "")
        assert done.stderr.count("\n") == 1
        assert "mistake in EasyRemote" not in done.stderr
    assert "add" in unknown.stderr
