"""A gateway that relays pickles never looks into one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import pickle, sys
from pathlib import Path
import trio
from tests.gateway.peers import function, open_world
from easyremote.wire.message import CODEC_PICKLE, Item, Result

found = []
sys.addaudithook(lambda event, args: found.append(args) if event == "pickle.find_class" else None)

class Evil:
    def __reduce__(self):
        return (print, ("executed",))

async def main():
    async with open_world(Path(sys.argv[1])) as world:
        node = await world.node("n1", function("f"))
        client = await world.client("member", "bob")
        evil = pickle.dumps(Evil())
        call = client.call("f", evil, codec=CODEC_PICKLE, end=False)
        given = await node.wait_given()
        assert given.dispatch.body == evil
        call.stream.send(Item(1, CODEC_PICKLE, evil, []))
        await given.until(lambda: given.messages)
        given.say(Item(0, CODEC_PICKLE, evil, []))
        given.say(Result(CODEC_PICKLE, 0.1, None, [len(evil)]), [memoryview(evil)], end=True)
        await call.outcome()
        guest = await world.client("guest", "eve")
        refused = await guest.call("f", evil, codec=CODEC_PICKLE).outcome()
        assert refused.code == 17, refused

trio.run(main)
assert "cloudpickle" not in sys.modules, "the gateway imported cloudpickle"
assert "easyremote.values.pickled" not in sys.modules
print("found", found)
"""


@pytest.mark.slow
def test_gateway_unpickles_nothing_while_members_ship_pickles(tmp_path: Path) -> None:
    """An audit hook in a live gateway sees no class looked up, and no unpickler is imported."""
    env = {**os.environ, "EASYREMOTE_HOME": str(tmp_path / "home")}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "state")], env=env, capture_output=True,
        text=True, timeout=60, cwd=Path(__file__).parents[2], check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert done.stdout == "found []\n"


@pytest.mark.slow
def test_importing_the_gateway_brings_no_unpickler_along() -> None:
    """The whole gateway loads without cloudpickle and without our one module that imports it."""
    code = (
        "import sys, easyremote.gateway.server\n"
        "print(sorted(m for m in sys.modules if 'cloudpickle' in m or m.endswith('.pickled')))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )

    assert done.stdout == "[]\n"
