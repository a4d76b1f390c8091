"""The scripts of the README, typed as they stand, as processes of their own.

The only change is the port, because 8080 may be taken on the machine that runs the tests.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
START_S = 60.0
STOP_S = 40.0

_SCRIPT = re.compile(
    r"^```python\n# (?P<name>\w+\.py)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)
_DEMO = re.compile(r"<!-- demo -->\n```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_PYTHON = re.compile(r"^```python$", re.MULTILINE)

CLIENTS = {
    "client.py": "3\n[0, 2, 4, 6, 8]\n1.0\n0\n1\n2\n",
    "client_trio.py": "3\n",
    "client_sync.py": "3\n7\n0\n2\n4\n",
    "client_needs.py": "3 None\nmy-computer\n['my-computer']\n1\n",
}
"""What each client prints."""


def scripts() -> dict[str, str]:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return {found["name"]: found["text"] for found in _SCRIPT.finditer(text)}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environment(home: Path) -> dict[str, str]:
    """A user of the machine who has set nothing but where keys are kept."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("EASYREMOTE_")}
    return kept | {"EASYREMOTE_HOME": str(home), "PYTHONPATH": str(ROOT)}


@contextmanager
def running(script: Path, home: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a script; at the end tell it to stop, and fail if it does not."""
    log = script.with_suffix(".log")
    with log.open("wb") as sink:
        process = subprocess.Popen(
            [sys.executable, script.name],
            cwd=script.parent, env=environment(home), stdin=subprocess.DEVNULL,
            stdout=sink, stderr=sink,
        )  # fmt: skip
    try:
        yield process
        assert process.poll() is None, log.read_text()
        process.send_signal(signal.SIGTERM)
        assert process.wait(STOP_S) == 0, log.read_text()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def easyremote(home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "easyremote", *words],
        env=environment(home), capture_output=True, text=True, timeout=START_S, check=False,
    )  # fmt: skip


def wait_for_functions(home: Path, port: int, folder: Path) -> None:
    until = time.monotonic() + START_S
    while True:
        seen = easyremote(home, "status", "--gateway", f"localhost:{port}")
        if "my-computer.count" in seen.stdout and "gpu-01.render" in seen.stdout:
            return
        logs = "\n".join(path.read_text() for path in folder.glob("*.log"))
        assert time.monotonic() < until, f"{seen.stderr}\n{logs}"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """Run gateway.py and node.py; give the folder of the scripts and the user's home."""
    folder = tmp_path_factory.mktemp("quickstart")
    home = folder / "home"
    port = free_port()
    for name, text in scripts().items():
        (folder / name).write_text(text.replace("8080", str(port)), encoding="utf-8")
    with ExitStack() as stack:
        stack.enter_context(running(folder / "gateway.py", home))
        stack.enter_context(running(folder / "node.py", home))
        stack.enter_context(running(folder / "shared_node.py", home))
        wait_for_functions(home, port, folder)
        yield folder, home


def test_every_python_block_is_a_script_that_is_run() -> None:
    """No Python of the README is only for show."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")

    assert set(scripts()) == {"gateway.py", "node.py", "shared_node.py", *CLIENTS}
    assert len(_PYTHON.findall(text)) == len(scripts())


def test_the_first_command_of_the_readme_runs_the_demo() -> None:
    """Whoever copies the block marked `demo` sees the product work, from a fresh clone."""
    (block,) = _DEMO.findall((ROOT / "README.md").read_text(encoding="utf-8"))

    assert block.splitlines()[-1] == "easyremote demo"
    assert "python3 -m venv" in block


@pytest.mark.slow
@pytest.mark.parametrize("name", CLIENTS)
def test_a_client_of_the_readme_prints_what_it_should(
    cluster: tuple[Path, Path], name: str
) -> None:
    """await under asyncio and under trio, and .result(), without any other setting."""
    folder, home = cluster
    done = subprocess.run(
        [sys.executable, name],
        cwd=folder, env=environment(home), capture_output=True, text=True, timeout=START_S,
        check=False,
    )  # fmt: skip

    assert done.stdout == CLIENTS[name], done.stderr
    assert done.returncode == 0
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_the_shell_commands_of_the_readme_work(cluster: tuple[Path, Path]) -> None:
    """status, call, top and doctor find the gateway of this user by themselves."""
    _, home = cluster
    shown = easyremote(home, "status")
    called = easyremote(home, "call", "my-computer.add", "1", "2")
    watched = easyremote(home, "top")
    examined = easyremote(home, "doctor")

    assert "my-computer.normalise" in shown.stdout
    assert (called.returncode, called.stdout) == (0, "3\n"), called.stderr
    assert "my-computer" in watched.stdout
    assert examined.returncode == 0, examined.stdout
    assert "2 nodes connected, with 4 functions" in examined.stdout
