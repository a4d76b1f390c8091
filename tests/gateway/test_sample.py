"""Samples of telemetry at the gateway: put together from deltas, checked value by value."""

from __future__ import annotations

import math
from typing import Any

import pytest
import trio

from easyremote.gateway.sample import GPUS_MAX, REPLICAS_MAX, VALUES_MAX, merged
from easyremote.values import plain
from easyremote.wire.message import Telemetry, Update

from .peers import World, function

GPU = {
    "index": 0, "memory_total_bytes": 100, "memory_free_bytes": 60, "memory_foreign_bytes": 10,
    "utilisation": 0.5, "temperature_c": 40, "processes": 1,
}  # fmt: skip


def test_deltas_are_laid_over_what_was_said_before() -> None:
    """What a sample does not name is as it was; an empty one changes nothing."""
    kept = merged({}, {"full": True, "cpu_percent": 10.0, "calls_running": 3, "gpus": [GPU]})
    later = merged(kept, {"cpu_percent": 90.0})

    assert later == {"cpu_percent": 90.0, "calls_running": 3, "gpus": [GPU]}
    assert merged(later, {}) == later
    assert kept["cpu_percent"] == 10.0


def test_a_whole_sample_forgets_the_rest() -> None:
    """A device that has gone is gone."""
    kept = merged({}, {"cpu_percent": 10.0, "gpus": [GPU]})

    assert merged(kept, {"full": True, "cpu_percent": 20.0}) == {"cpu_percent": 20.0}
    assert merged(kept, {"full": 1, "cpu_percent": 20.0})["gpus"] == [GPU]


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf, 2.0**63, "1", True, None, [1]])
def test_a_wrong_value_hides_neither_the_old_one_nor_others(wrong: Any) -> None:
    """It is dropped alone."""
    kept = merged({"cpu_percent": 5.0}, {"cpu_percent": wrong, "memory_percent": 7.0})

    assert kept == {"cpu_percent": 5.0, "memory_percent": 7.0}


def test_what_is_kept_of_a_node_is_bounded() -> None:
    """However often it invents names, and however many devices and replicas it names."""
    kept: dict[str, Any] = {}
    for turn in range(5):
        kept = merged(kept, {f"x{turn}.{i}": i for i in range(50)})
    kept = merged(kept, {"gpus": [{**GPU, "index": i} for i in range(500)], "k" * 65: 1})
    kept = merged(kept, {"replicas": {f"f{i}": 1 for i in range(REPLICAS_MAX + 9)}, "x0.0": 7})

    assert len(kept) == VALUES_MAX + 2
    assert len(kept["gpus"]) == GPUS_MAX
    assert len(kept["replicas"]) == REPLICAS_MAX
    assert kept["x0.0"] == 7


@pytest.mark.parametrize(
    "entry",
    [
        None, 7, [], {}, {**GPU, "index": -1}, {**GPU, "index": GPUS_MAX}, {**GPU, "index": True},
        {**GPU, "index": 0.0}, {"index": 1}, {**GPU, "memory_total_bytes": math.nan},
        {**GPU, "memory_total_bytes": -1},
    ],
)  # fmt: skip
def test_what_is_no_device_is_dropped_alone(entry: Any) -> None:
    """The other devices of the sample are kept."""
    other = {**GPU, "index": 5}

    assert merged({}, {"gpus": [entry, other]})["gpus"] == [other]


@pytest.mark.parametrize(
    ("key", "wrong"),
    [
        ("memory_free_bytes", 101), ("memory_free_bytes", -1), ("utilisation", 1.5),
        ("utilisation", math.nan), ("temperature_c", 5000), ("processes", "x"),
    ],
)  # fmt: skip
def test_an_absurd_reading_of_a_device_is_unknown(key: str, wrong: Any) -> None:
    """What cannot be is not kept, and the rest of the device is."""
    (device,) = merged({}, {"gpus": [{**GPU, key: wrong, "more": 1}]})["gpus"]

    assert device == {k: v for k, v in GPU.items() if k != key}


@pytest.mark.parametrize("said", [None, 101, -1, "x"])
def test_foreign_memory_is_a_number_or_unknown(said: Any) -> None:
    """A node that cannot tell, or tells nonsense, has said nothing."""
    (device,) = merged({}, {"gpus": [{**GPU, "memory_foreign_bytes": said}]})["gpus"]

    assert device["memory_foreign_bytes"] is None


def test_an_index_that_is_said_twice_counts_once() -> None:
    """Two devices are never one."""
    assert merged({}, {"gpus": [GPU, {**GPU, "processes": 9}]})["gpus"] == [GPU]
    assert merged({}, {"gpus": "all"})["gpus"] == []


def test_replicas_are_counts_by_name() -> None:
    """Anything else is dropped."""
    said = {"f": 2, "g": -1, "h": 1.5, "i" * 65: 1, 3: 1, "j": True}

    assert merged({}, {"replicas": said})["replicas"] == {"f": 2}
    assert merged({}, {"replicas": [1]})["replicas"] == {}


async def test_a_node_says_deltas_and_hears_what_is_wanted(world: World) -> None:
    """Both on the stream of its registration."""
    node = await world.node("n", function("f"))
    stream = node.registration.stream
    assert stream is not None
    stream.send(Telemetry({"full": True, "cpu_percent": 10.0, "gpus": [GPU]}))
    stream.send(Telemetry({"cpu_percent": 20.0}))
    stream.send(Telemetry({}))
    record = world.gateway.registry.nodes["n"]
    with trio.fail_after(10):
        while record.sample.get("cpu_percent") != 20.0:
            await trio.sleep(0.01)
    assert record.sample == {"cpu_percent": 20.0, "gpus": [GPU]}

    (session,) = [one for one in world.gateway.sessions if one.node is record]
    session.tell({"replicas": {"f": 2}})
    await node.registration.until(lambda: len(node.registration.messages) == 2)
    message = node.registration.messages[1]
    assert isinstance(message, Update)
    assert message.info is not None
    assert plain.decode(message.info, []) == {"replicas": {"f": 2}}
