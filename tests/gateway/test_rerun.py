"""Telling the first run of a script from the others."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
from easyremote.rerun import inert, is_spawn_child
print("inert" if inert() else "first", flush=True)

def late(_: int) -> bool:
    return is_spawn_child()

if __name__ == "__main__":
    import multiprocessing
    with multiprocessing.get_context({method!r}).Pool(1) as pool:
        print("late", pool.map(late, [0]), flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_children_of_multiprocessing_are_no_first_run(tmp_path: Path, method: str) -> None:
    """While a child imports the script, calls that start things are inert; afterwards not."""
    script = tmp_path / "script.py"
    script.write_text(PROGRAM.format(method=method))
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=60, check=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    lines = done.stdout.splitlines()

    assert lines[0] == "first"
    assert set(lines[1:-1]) == {"inert"}
    assert lines[-1] == "late [False]"


def test_marker_of_an_agent_leaves_the_environment() -> None:
    """A program that the user's function starts is not taken for a worker."""
    code = (
        "from easyremote.rerun import inert, is_rerun, worker_marker; import os\n"
        "print(inert(), is_rerun(), worker_marker(), 'EASYREMOTE_WORKER' in os.environ)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True,
        env={**os.environ, "EASYREMOTE_WORKER": "7"},
    )  # fmt: skip

    assert done.stdout == "True True 7 False\n"
