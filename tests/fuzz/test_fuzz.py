"""The fuzzer finds what it is for, and what it has found stays mended."""

from __future__ import annotations

import random
import time
from pathlib import Path

import numpy as np
import pytest

from easyremote import values
from easyremote.errors import SerializationError
from easyremote.gateway.offer import BadOffer, plain
from easyremote.scheduler.capability import TooMuch, matches, read_wishes
from easyremote.wire import array
from easyremote.wire.errors import CodecError
from easyremote.wire.frame import HEADER, HEADER_SIZE, FrameType
from fuzz import __main__ as command
from fuzz import engine as engine_module
from fuzz.engine import Engine, Finding, judge
from fuzz.mutate import mutate_bytes, mutate_frames, split
from fuzz.target import Target
from fuzz.targets import TARGETS


def untold(_executions: int, _passed_s: float) -> None:
    """Nobody watches."""


@pytest.mark.parametrize("name", TARGETS)
def test_every_target_takes_its_seeds_and_some_mutations(name: str) -> None:
    """Seeds are valid, each target does several different things, and none finds a bug."""
    engine = Engine(TARGETS[name], name, command.corpus(name))

    report = engine.run(300, None, untold)

    assert report.executions == 300
    assert report.features >= 3


def test_the_same_seed_gives_the_same_inputs() -> None:
    """A run can be made again, on another machine, and no two jobs do the same."""

    def inputs(seed: str) -> list[bytes]:
        seen: list[bytes] = []
        target = Target(seen.append, lambda: [b"seed", b"other"], mutate_bytes)
        Engine(target, seed, []).run(500, None, untold)
        return seen

    assert inputs("a") == inputs("a")
    assert inputs("a")[2:] != inputs("b")[2:]


def fails_on_a_high_byte(data: bytes) -> object:
    if max(data, default=0) > 0xF0:
        raise KeyError("a bug")
    return len(data)


def test_an_exception_is_a_finding_with_its_input(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is printed runs the input again, by itself; the exit code says that there is one."""
    target = Target(fails_on_a_high_byte, lambda: [b"\x00" * 8], mutate_bytes)
    monkeypatch.setitem(TARGETS, "tokens", target)

    code = command.main(["tokens", "--executions", "5000"])

    told = capsys.readouterr().out
    replay = next(line for line in told.splitlines() if line.startswith("replay: "))
    arguments = replay.split(" -m fuzz ")[1].split()
    assert code == 1
    assert "KeyError" in told
    assert max(bytes.fromhex(arguments[-1])) > 0xF0
    assert command.main(arguments) == 1
    assert command.main(["tokens", "--input", "00"]) == 0


def test_jobs_share_the_executions(capfd: pytest.CaptureFixture[str]) -> None:
    """Together they run exactly as many as were asked for."""
    assert command.main(["tokens", "--executions", "301", "--jobs", "2"]) == 0

    told = [line.split() for line in capfd.readouterr().out.splitlines()]
    assert sorted(int(words[1]) for words in told if words[0] == "tokens") == [150, 151]


def test_an_input_that_is_slow_three_times_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time is that of the processor: an input that only waits is not slow."""
    monkeypatch.setattr(engine_module, "SLOW_S", 0.01)

    def spins(data: bytes) -> object:
        until = time.process_time() + (0.03 if data == b"slow" else 0.0)
        while time.process_time() < until:
            pass
        return None

    def sleeps(_data: bytes) -> object:
        time.sleep(0.02)
        return None

    with pytest.raises(Finding) as caught:
        Engine(Target(spins, lambda: [b"fast", b"slow"]), 1, []).run(10, None, untold)
    assert caught.value.data == b"slow"
    assert "too slow" in caught.value.what
    assert judge(Target(sleeps, list), b"") is None


def test_an_input_that_takes_much_memory_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a batch that took too much, the hungriest input is told."""
    monkeypatch.setattr(engine_module, "MEMORY_MIB_MAX", 1)
    monkeypatch.setattr(engine_module, "memory_mib", lambda: 2.0)

    def takes(data: bytes) -> object:
        return len(bytearray(1 << 22 if data == b"much" else 16))

    with pytest.raises(Finding) as caught:
        Engine(Target(takes, lambda: [b"little", b"much"]), 1, []).run(2, None, untold)

    assert caught.value.data == b"much"
    assert "MiB" in caught.value.what


def test_mutations_keep_the_shape_of_their_input() -> None:
    """Mutated frames can be cut apart again, most of the time."""
    rng = random.Random(1)
    row = b"".join(HEADER.pack(3, FrameType.MESSAGE, 0, 1, 1) + b"\x81\x18\x20" for _ in range(4))
    made = [split(mutate_frames(rng, row)) for _ in range(400)]

    whole = [
        frames
        for frames in made
        if all(int.from_bytes(frame[:4], "big") == len(frame) - HEADER_SIZE for frame in frames)
    ]

    assert len(whole) > 200
    assert len({b"".join(frames) for frames in whole}) > 100


def test_the_corpus_is_text_and_small() -> None:
    """What was found once is kept as one line of hex, with the reason above it."""
    folder = Path(command.__file__).parent / "corpus"

    for path in folder.iterdir():
        assert path.suffix == ".txt"
        assert path.stem in TARGETS
        assert command.corpus(path.stem), f"{path.name} keeps nothing"
        assert path.stat().st_size < 64 * 1024


# ---- what it has found -------------------------------------------------------------------------


def test_an_array_where_a_value_should_end_is_a_typed_refusal() -> None:
    """Numpy compares element by element; the end of a value is compared by type first."""
    buffer = memoryview(bytearray(16))
    header = values.encode(np.zeros(2), allow_pickle=False).body

    with pytest.raises(SerializationError):
        values.decode(b"\x00" + header, [buffer], allow_pickle=False)


@pytest.mark.parametrize("flags", [[], {}, 2, True, None, 1.0])
def test_flags_of_an_array_that_are_no_flags_are_refused(flags: object) -> None:
    """Whatever stands in the place of the flags gives the codec's own error."""
    with pytest.raises(CodecError):
        array.parse([0, [1], flags])


def test_a_node_describes_itself_without_integers_that_cannot_be_printed() -> None:
    """Python refuses to print integers of many digits: one would break whoever lists the node."""
    for value in (1 << 1024, -(1 << 1024), 10**5000):
        with pytest.raises(BadOffer):
            plain({"memory": [value]}, "capabilities")
    assert plain([(1 << 1024) - 1], "capabilities") == [(1 << 1024) - 1]


def test_long_wishes_against_long_lists_are_given_up() -> None:
    """Node and caller may be one stranger: a list of each costs the gateway no second."""
    held = {"specialization": [f"x{n}" for n in range(4000)]}

    assert matches(read_wishes("x3999"), held)
    with pytest.raises(TooMuch):
        matches(read_wishes(["X3999"] * 200), held)
    with pytest.raises(TooMuch):
        matches(read_wishes({"specialization": ["x3999"] * 200}), held)
    with pytest.raises(ValueError, match="name fewer"):
        read_wishes(["X3999"] * 10_000)
    assert matches(read_wishes([["a", "x1"], {"specialization": ["X2"]}]), held, ["a"])
