"""Telemetry of a node: GPUs through NVML, samples of the machine, and what of them is news."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from easyremote.node import memory, probe, telemetry
from easyremote.node.nvml import UNSEEN_BYTES_MAX, Nvml, token_of
from easyremote.node.telemetry import Delta, Sampler, Sampling, own_bytes, transferred_bytes

GB = 10**9


class NVMLError(Exception):
    """As in NVML."""


class FakeNvml:
    """NVML with as many devices of 24 GB as a test wants, and what it wants them to say."""

    NVMLError = NVMLError

    def __init__(self, count: int = 2) -> None:
        self.count = count
        self.used = [0] * count
        self.processes: list[Any] = [[] for _ in range(count)]
        self.broken: set[str] = set()
        self.open = 0

    def nvmlInit(self) -> None:  # noqa: N802
        self._maybe("init")
        self.open += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.open -= 1

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        self._maybe("count")
        return self.count

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        if index >= self.count:
            raise NVMLError
        return index

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> int:  # noqa: N802
        if uuid != "MIG-slice":
            raise NVMLError
        return 0

    def nvmlDeviceGetUUID(self, handle: int) -> bytes:  # noqa: N802
        return f"GPU-{handle}aa-{handle}".encode()

    def nvmlDeviceGetName(self, handle: int) -> bytes:  # noqa: N802
        return b"RTX"

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> SimpleNamespace:  # noqa: N802
        self._maybe(f"memory{handle}")
        used = self.used[handle]
        return SimpleNamespace(total=24 * GB, free=24 * GB - used, used=used)

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> SimpleNamespace:  # noqa: N802
        self._maybe("utilisation")
        return SimpleNamespace(gpu=50)

    def nvmlDeviceGetTemperature(self, handle: int, sensor: int) -> int:  # noqa: N802
        self._maybe("temperature")
        return 61

    def nvmlDeviceGetComputeRunningProcesses(self, handle: int) -> list[Any]:  # noqa: N802
        self._maybe("processes")
        return [SimpleNamespace(pid=pid, usedGpuMemory=n) for pid, n in self.processes[handle]]

    def nvmlDeviceGetGraphicsRunningProcesses(self, handle: int) -> list[Any]:  # noqa: N802
        return []

    def _maybe(self, what: str) -> None:
        if what in self.broken:
            raise NVMLError(what)


# ---- which devices there are ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("visible", "tokens"),
    [
        (None, ["0", "1", "2"]), ("", []), ("2,0", ["2", "0"]), ("-1", []), ("1,-1,0", ["1"]),
        ("1,7,0", ["1"]), ("GPU-1aa,2", ["GPU-1aa", "2"]), ("GPU-,0", []),
        ("MIG-slice", ["MIG-slice"]), ("MIG-other,0", []), ("NoDevFiles", []),
    ],
)  # fmt: skip
def test_devices_are_those_that_are_visible(visible: str | None, tokens: list[str]) -> None:
    """As CUDA has it: in their order, up to the first entry that names none."""
    nvml = Nvml(FakeNvml(3), visible)

    assert [gpu.token for gpu in nvml.gpus] == tokens
    assert [gpu.index for gpu in nvml.gpus] == list(range(len(tokens)))
    assert [token_of(gpu.index, visible) for gpu in nvml.gpus] == tokens


def test_the_entry_that_a_worker_gets_means_the_same_device() -> None:
    """Numbers are translated to what the owner made visible; others stand for themselves."""
    nvml = Nvml(FakeNvml(3), "2,GPU-0aa")

    assert [gpu.handle for gpu in nvml.gpus] == [2, 0]
    assert token_of(5, "2,3") == "5"


@pytest.mark.parametrize("broken", ["init", "count"])
def test_no_driver_is_no_error(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without a working driver has no GPUs, and the library is let go."""
    module = FakeNvml()
    module.broken = {broken}
    monkeypatch.setitem(sys.modules, "pynvml", module)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    assert Nvml.open() is None
    assert probe.detect_gpus() == []
    assert module.open == 0


def test_detected_devices_are_described_as_owners_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Model, memory, count; each device; and those that the owner withholds are not there."""
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml())
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    found = probe.detect()
    less = probe.with_gpus(found, (1,))

    assert found["gpu"]["count"] == 2
    assert found["gpu"]["model"] == "RTX"
    assert found["gpu"]["memory"] == "22.35GiB"
    assert [one["memory_bytes"] for one in found["gpu"]["devices"]] == [24 * GB, 24 * GB]
    assert [one["index"] for one in less["gpu"]["devices"]] == [1]
    assert "gpu" not in probe.with_gpus(found, ())
    assert less["cpu"] == found["cpu"]


def test_a_card_as_it_is_sold_is_no_exaggeration() -> None:
    """24 GB on the box are a little less in the driver; 80 are not."""
    detected = {"gpu": {"memory": "22.35GiB", "count": 2}}

    assert "declared_exceeds_detected" not in probe.merge(detected, {"gpu": {"memory": "24GB"}})
    for more in ({"memory": "80GB"}, {"count": 3}):
        (path,) = probe.merge(detected, {"gpu": more})["declared_exceeds_detected"]
        assert path == f"gpu.{next(iter(more))}"


# ---- how busy they are ---------------------------------------------------------------------------


def test_memory_of_others_is_foreign() -> None:
    """What the node's own processes use is reserved already; the rest is gone for us."""
    module = FakeNvml()
    module.used = [10 * GB, 0]
    module.processes = [[(1, 4 * GB), (2, 5 * GB)], []]
    first, second = Nvml(module, None).sample(lambda pid: pid == 1)

    assert first["memory_foreign_bytes"] == 6 * GB
    assert first["memory_free_bytes"] == 14 * GB
    assert (first["processes"], first["utilisation"], first["temperature_c"]) == (2, 0.5, 61)
    assert second["memory_foreign_bytes"] == 0


@pytest.mark.parametrize("reason", ["hidden", "elsewhere", "no number", "no list"])
def test_foreign_memory_that_cannot_be_told_is_unknown(reason: str) -> None:
    """It is said as None, and never guessed."""
    module = FakeNvml(1)
    module.used = [UNSEEN_BYTES_MAX + 1]
    if reason == "no list":
        module.broken = {"processes"}
    elif reason != "hidden":
        module.processes = [[(1, None if reason == "no number" else 5)]]
    (sample,) = Nvml(module, None).sample(lambda _: None if reason == "elsewhere" else True)

    assert sample["memory_foreign_bytes"] is None


def test_a_device_that_fails_is_left_out_alone() -> None:
    """The other one is sampled; what a device has not got is not made up."""
    module = FakeNvml()
    nvml = Nvml(module, None)
    module.broken = {"memory0", "utilisation", "temperature"}
    (sample,) = nvml.sample(lambda _: True)

    assert sample["index"] == 1
    assert not {"utilisation", "temperature_c"} & sample.keys()


# ---- samples of the machine ----------------------------------------------------------------------


def test_a_sample_tells_what_the_kernel_says() -> None:
    """Every number is there, and can be."""
    sample = Sampler(nvml=Nvml(FakeNvml(), None)).sample()

    assert 0.0 <= sample["cpu_percent"] <= 100.0
    assert 0 < sample["memory_available_bytes"] < sample["memory_total_bytes"]
    assert 0 < sample["memory_own_bytes"] < sample["memory_total_bytes"]
    assert 0 <= sample["disk_free_bytes"] <= sample["disk_total_bytes"]
    assert min(sample["load_1m"], sample["net_sent_bytes"], sample["net_received_bytes"]) >= 0
    assert sample["cpu_count"] == len(os.sched_getaffinity(0))
    assert [gpu["index"] for gpu in sample["gpus"]] == [0, 1]
    assert Sampler().sample()["gpus"] == []


def test_a_confined_node_tells_how_busy_its_own_processors_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Others are not its business; if the numbers of processors have gaps, all of them count."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1, 3}, raising=False)

    assert telemetry.usable_share([100.0, 10.0, 100.0, 20.0]) == 15.0
    assert telemetry.usable_share([100.0, 10.0, 100.0]) == 70.0
    assert telemetry.usable_share([]) == 0.0


@pytest.mark.parametrize(
    ("inner", "outer", "total", "available"),
    [
        (("max", 5), ("max", 5), None, None), (("1000", 700), ("max", 5), 1000, 400),
        (("5000", 700), ("1000", 1200), 1000, 0), (("1000", 700), ("5000", 4999), 1000, 101),
        ((str(2**62), 5), ("", 0), None, None),
    ],
)  # fmt: skip
def test_memory_in_a_container_is_what_its_limit_leaves(
    inner: tuple[str, int], outer: tuple[str, int], total: int | None, available: int | None,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The tightest limit around the process counts; cached files can be given up for it."""
    own = tmp_path / "cgroup"
    own.write_text("1:name=x:/other\n0::/outer/inner\n")
    for folder, (limit, used) in (("outer/inner", inner), ("outer", outer)):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / "memory.max").write_text(f"{limit}\n")
        (tmp_path / folder / "memory.current").write_text(f"{used}\n")
        (tmp_path / folder / "memory.stat").write_text("anon 7\ninactive_file 100\n")
    monkeypatch.setattr(telemetry, "_OWN_GROUPS", own)
    monkeypatch.setattr(telemetry, "_GROUPS", tmp_path)
    found = telemetry.usable_memory()
    monkeypatch.setattr(telemetry, "_OWN_GROUPS", tmp_path / "none")

    assert found[0] == (telemetry.usable_memory()[0] if total is None else total)
    assert available is None or found[1] == available


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    """A process below this one, which has one below it."""
    program = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'input()'])"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE) as process:
        deadline = time.monotonic() + 20
        while not memory.children_of(process.pid):
            assert time.monotonic() < deadline
        yield process
        process.kill()  # Its own child ends with its stdin.


def test_own_memory_counts_each_process_once(
    child: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it is named as a root or found below one."""
    (grandchild,) = memory.children_of(child.pid)
    assert own_bytes([grandchild]) > 0
    monkeypatch.setattr(memory, "resident_bytes", lambda _: 1000)

    assert own_bytes([grandchild]) == 1000
    assert own_bytes([child.pid, grandchild]) == own_bytes([child.pid]) == 2000


def test_own_processes_on_a_gpu_are_known_by_their_ancestors(
    child: subprocess.Popen[bytes],
) -> None:
    """A grandchild of ours is ours, pid 1 is not, and a number that nobody has is unknown."""
    (grandchild,) = memory.children_of(child.pid)
    sampler = Sampler()

    assert sampler._is_own(grandchild) is True
    assert sampler._is_own(1) is False
    assert sampler._is_own(2**22 + 1) is None


def test_the_cost_of_a_sample_does_not_grow_with_its_number(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One in five walks over our own processes; no sample asks for anything else of them."""
    walks: list[int] = []

    def walk(pid: int) -> list[int]:
        walks.append(pid)
        return []

    monkeypatch.setattr(memory, "children_of", walk)
    sampler = Sampler()
    threads = threading.active_count()
    for _ in range(2 * telemetry.TREE_EVERY + 1):
        sampler.sample()

    assert len(walks) == 3 * len(sampler.roots)
    assert threading.active_count() == threads


def test_a_sample_reads_a_bounded_number_of_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some files of /proc, whatever runs on this machine."""
    sampler = Sampler()
    sampler.sample()
    opened: list[str] = []
    original = open

    def counted(path: Any, *args: Any, **kwargs: Any) -> Any:
        opened.append(str(path))
        return original(path, *args, **kwargs)

    monkeypatch.setattr("builtins.open", counted)
    sampler.sample()
    monkeypatch.undo()

    assert 0 < len(opened) <= 12
    assert all(path.startswith(("/proc/", "/sys/fs/cgroup")) for path in opened)


async def test_what_hangs_costs_telemetry_and_not_the_node(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A driver that hangs is asked no more; never do more than a few threads wait for it."""
    stuck = threading.Event()

    class Hanging:
        @classmethod
        def open(cls) -> None:
            stuck.wait(30)

    monkeypatch.setattr(telemetry, "Nvml", Hanging)
    monkeypatch.setattr(telemetry, "SAMPLE_WAIT_S", 0.3)
    sampling = Sampling()
    try:
        assert await sampling.take() == {}
        sample: dict[str, Any] = {}
        with trio.fail_after(20):
            while not sample:
                sample = await sampling.take()
        assert "gpus" not in sample
        assert sample["cpu_count"] >= 1
    finally:
        stuck.set()


async def test_a_machine_that_cannot_be_asked_ends_no_node(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a library raises, there is no sample, and the next one is tried."""
    failures = ["first"]

    def usable_memory() -> tuple[int, int]:
        if failures:
            raise RuntimeError(failures.pop())
        return 1000, 400

    monkeypatch.setattr(telemetry, "usable_memory", usable_memory)
    monkeypatch.setattr(telemetry, "Nvml", SimpleNamespace(open=lambda: None))
    sampling = Sampling()

    assert await sampling.take() == {}
    assert (await sampling.take())["memory_percent"] == 60.0


# ---- deltas --------------------------------------------------------------------------------------


async def test_what_has_not_changed_is_not_said_again(autojump_clock: MockClock) -> None:
    """All at first, then what has changed by more than a grain, and all again now and then."""
    delta = Delta(trio.current_time)
    sample = {"cpu_percent": 50.0, "memory_available_bytes": 1000, "calls_running": 1}
    assert delta.of(sample) == {"full": True, **sample}
    assert delta.of({**sample, "cpu_percent": 50.5, "memory_available_bytes": 1004}) == {}
    assert delta.of({**sample, "cpu_percent": 51.0}) == {"cpu_percent": 51.0}
    assert delta.of({**sample, "cpu_percent": 51.5, "calls_running": 2}) == {"calls_running": 2}
    await trio.sleep(telemetry.FULL_EVERY_S)
    assert delta.of(sample) == {"full": True, **sample}
    assert delta.of(sample) == {}
    delta.restart()
    assert delta.of(sample) == {"full": True, **sample}


def test_small_steps_add_up() -> None:
    """A number that creeps is said when it has come far, whatever the size of its steps."""
    delta = Delta(lambda: 0.0)
    delta.of({"cpu_percent": 0.0})
    said = [delta.of({"cpu_percent": step / 4}) for step in range(1, 13)]

    assert [one["cpu_percent"] for one in said if one] == [1.0, 2.0, 3.0]


def test_what_is_gone_is_told_by_saying_all() -> None:
    """A key cannot be taken back by leaving it out."""
    delta = Delta(lambda: 0.0)
    delta.of({"cpu_percent": 1.0, "gpus": []})

    assert delta.of({"cpu_percent": 1.0}) == {"full": True, "cpu_percent": 1.0}


@pytest.mark.parametrize(
    ("change", "is_news"),
    [
        ({"utilisation": 0.51}, False), ({"utilisation": 0.53}, True),
        ({"memory_free_bytes": 24 * GB - 1}, False), ({"memory_free_bytes": 20 * GB}, True),
        ({"memory_foreign_bytes": None}, True), ({"processes": 2}, True), ({}, False),
    ],
)  # fmt: skip
def test_devices_are_said_together_when_one_has_changed(
    change: dict[str, Any], is_news: bool
) -> None:
    """A list is said whole: an index alone would need the rest to be understood."""
    gpu = {
        "index": 0, "utilisation": 0.5, "memory_free_bytes": 24 * GB, "memory_foreign_bytes": 0,
        "processes": 1,
    }  # fmt: skip
    delta = Delta(lambda: 0.0)
    delta.of({"gpus": [gpu, {**gpu, "index": 1}]})
    now = {"gpus": [gpu, {**gpu, "index": 1, **change}]}

    assert delta.of(now) == (now if is_news else {})
    assert delta.of({"gpus": [gpu]}) == {"gpus": [gpu]}
    assert delta.of({"gpus": [{"index": 0}]}) == {"gpus": [{"index": 0}]}


# ---- the link ------------------------------------------------------------------------------------


def test_the_kernel_counts_the_bytes_of_a_connection() -> None:
    """Both ways, once they are acknowledged; what is no connection has no count."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        near = socket.create_connection(server.getsockname())
        far, _ = server.accept()
    with near, far:
        before = transferred_bytes(near.fileno())
        near.sendall(b"x" * 1000)
        assert len(far.recv(1000, socket.MSG_WAITALL)) == 1000
        far.sendall(b"y" * 500)
        assert len(near.recv(500, socket.MSG_WAITALL)) == 500
        after = transferred_bytes(near.fileno())
        assert before is not None
        assert after is not None
        assert after - before == 1500
        assert transferred_bytes(near.fileno()) == after
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert transferred_bytes(ours.fileno()) is None
    assert transferred_bytes(-1) is None
