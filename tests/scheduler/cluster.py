"""Nodes for tests of placement: hosts that said what a healthy machine says."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from easyremote.scheduler.fleet import Fleet
from easyremote.scheduler.host import Host, Place
from easyremote.scheduler.model import NO_NEEDS, Needs
from easyremote.scheduler.place import Places
from easyremote.scheduler.policy import DEFAULT, Policy

GB = 10**9


def gpu(index: int = 0, total: int = 24 * GB, **more: Any) -> dict[str, Any]:
    return {
        "index": index, "model": "RTX 4090", "memory_total_bytes": total,
        "memory_free_bytes": total, "memory_foreign_bytes": 0, "utilisation": 0.0, **more,
    }  # fmt: skip


def sample(cpu: float = 0.0, free: float = 1.0, **more: Any) -> dict[str, Any]:
    """What a machine with 8 processors and 64 GB says."""
    return {
        "cpu_percent": cpu, "cpu_count": 8, "memory_total_bytes": 64 * GB,
        "memory_available_bytes": int(64 * GB * free), "memory_own_bytes": 0,
        "disk_total_bytes": 1000 * GB, "disk_free_bytes": 500 * GB, "gpus": [], **more,
    }  # fmt: skip


def host(node_id: str = "a", policy: Policy = DEFAULT, **more: Any) -> Host:
    made = Host(node_id, policy)
    made.heard(sample(**more), 0.0)
    return made


def place(
    node_id: str = "a", slots: int = 1, busy: int = 0, policy: Policy = DEFAULT, **more: Any
) -> Place:
    made = Place(host(node_id, policy, **more), "default", slots)
    for _ in range(busy):
        made.take_back()
    return made


def pool(
    *places: Place, policy: Policy = DEFAULT, needs: Needs = NO_NEEDS, fleet: Fleet | None = None,
    **more: Any,
) -> Places:  # fmt: skip
    made = Places(fleet or Fleet(), policy, needs, **more)
    for one in places:
        made.add(one)
    return made


@st.composite
def clusters(
    draw: st.DrawFn, min_size: int = 0, max_size: int = 8, policy: Policy = DEFAULT
) -> list[Place]:
    """Places of different nodes in all states that a node may be in."""
    made: list[Place] = []
    for number in range(draw(st.integers(min_size, max_size))):
        gpus = [
            gpu(index, draw(st.sampled_from([8, 16, 24])) * GB)
            for index in range(draw(st.integers(0, 2)))
        ]
        one = host(
            f"n{number}", policy, cpu=draw(st.floats(0, 100)), free=draw(st.floats(0, 1)),
            gpus=gpus,
        )  # fmt: skip
        slots = draw(st.integers(1, 4))
        spot = Place(one, "default", slots)
        if draw(st.booleans()):
            spot.learn(draw(st.sampled_from([0.0001, 0.01, 3.0])))
        for _ in range(draw(st.integers(0, spot.limit))):
            spot.take_back()
        spot.used = draw(st.sampled_from([spot.used, number + 1]))
        if draw(st.integers(0, 5)) == 0:
            one.tick(draw(st.sampled_from([5.0, 100.0])))
        one.refresh()
        made.append(spot)
    return made


wants = st.sampled_from(
    [
        NO_NEEDS,
        Needs(cpus=2.0),
        Needs(memory_bytes=20 * GB),
        Needs(gpus=1.0, gpu_memory_bytes=10 * GB),
        Needs(gpus=2.0),
        Needs(gpus=0.5, cpus=1.0),
        Needs(cpus=99.0),
    ]
)
