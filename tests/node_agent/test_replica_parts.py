"""The small parts of replicas, devices and metrics: plans, pools, variables, books."""

from __future__ import annotations

import dataclasses
import math
import os
import typing
from typing import Any, cast

import pytest

from easyremote import ClientMetrics, ComputeNodeMetrics, GatewayMetrics
from easyremote.errors import EasyRemoteError, OverloadedError
from easyremote.node import visible
from easyremote.node.asking import Question, ask
from easyremote.node.ledger import Average, Ledger
from easyremote.node.offer import NodeOffer
from easyremote.node.options import parse
from easyremote.node.pools import ReplicaPool
from easyremote.node.replica_plan import Devices, chosen, devices_of, plan_of
from easyremote.node.spec import NodeSpec
from easyremote.node.workers import WorkerProcess, WorkerState
from easyremote.scheduler.model import Device
from easyremote.wire.errors import ErrorCode
from easyremote.wire.message import Failure, Kind, Reply, encode

GB = 10**9
TWO = (Device(0, "RTX 4090", 24 * GB), Device(1, "RTX 4090", 24 * GB))
MIXED = (Device(0, "RTX 4090", 24 * GB), Device(1, "A100", 80 * GB))


def entry(**more: Any) -> dict[str, Any]:
    return {"name": "f", "group": "main", "slots": 1, "isolation": "thread", **more}


def gpu(**requirements: Any) -> dict[str, Any]:
    return entry(requirements=requirements)


# ---- plans ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("described", "devices", "slots", "sets"),
    [
        (gpu(gpu_memory="16GB"), TWO, 2, ((0,), (1,))),
        (gpu(gpu=True), TWO, 2, ((0,), (1,))),
        (gpu(num_gpus=2), TWO, 1, ((0, 1),)),
        (gpu(gpu=0.5), TWO, 4, ((0,), (0,), (1,), (1,))),
        (gpu(gpu_memory="40GB"), MIXED, 1, ((1,),)),
        (gpu(gpu_model="a100"), MIXED, 1, ((1,),)),
        ({**gpu(gpu=1), "max_concurrency": 5}, TWO, 5, ((0,), (1,))),
        ({**gpu(gpu=1), "isolation": "process"}, TWO, 2, ((0,), (1,))),
    ],
)  # fmt: skip
def test_a_function_has_a_slot_for_each_device_that_fits(
    described: dict[str, Any], devices: tuple[Device, ...], slots: int, sets: tuple[Devices, ...]
) -> None:
    """In a group of its own, pinned; what its owner declares counts more."""
    plan = plan_of(described, devices, 8)

    assert plan is not None
    assert (plan.group, plan.slots, plan.devices) == ("fn:f", slots, sets)


@pytest.mark.parametrize(
    ("described", "devices"),
    [
        (entry(), TWO), (gpu(gpu=1), TWO[:1]), (gpu(gpu=1), ()), (gpu(cpu=4), TWO),
        (gpu(gpu_memory="80GB"), TWO), (gpu(gpu="plenty"), TWO), (gpu(gpu=3), TWO),
        (entry(scaling="much"), TWO),
    ],
)  # fmt: skip
def test_other_functions_stay_in_the_script(
    described: dict[str, Any], devices: tuple[Device, ...]
) -> None:
    """Without GPU needs, on one GPU, where nothing fits, and where nobody can read what is said."""
    assert plan_of(described, devices, 8) is None


def test_an_isolated_function_runs_in_replicas_as_before() -> None:
    """On the slots that the script gave it, and not pinned."""
    plan = plan_of(entry(isolation="process", slots=3), (), 8)

    assert plan is not None
    assert (plan.slots, plan.devices, plan.scaling, plan.least) == (3, (), None, 0)


@pytest.mark.parametrize(
    ("described", "least", "most"),
    [
        (entry(scaling="auto"), 0, 8), (entry(scaling=3), 3, 3), (entry(scaling=30), 30, 30),
        (entry(scaling={"min": 2, "max": 4}), 2, 4), (entry(scaling={"min": 9}), 9, 9),
        (entry(scaling="auto", max_concurrency=5), 0, 5),
        ({**gpu(gpu=1), "scaling": "auto"}, 0, 2),
    ],
)  # fmt: skip
def test_scaling_is_bounded_by_the_owner_or_by_the_machine(
    described: dict[str, Any], least: int, most: int
) -> None:
    """A wish from outside is bent to these bounds."""
    plan = plan_of(described, TWO, 8)

    assert plan is not None
    assert (plan.least, plan.slots) == (least, most)
    assert [plan.bound(count) for count in (-5, least, most, 10_000)] == [least, least, most, most]


def test_devices_that_only_the_owner_knows_count() -> None:
    """What was detected counts more than what is declared."""
    declared = {"gpu": {"memory": "80GB", "count": 2}}
    found = {"gpu": {"devices": [{"index": 1, "model": "X", "memory_bytes": 5}]}}

    assert [one.index for one in devices_of({}, declared)] == [0, 1]
    assert devices_of(found, declared) == (Device(1, "X", 5),)
    assert devices_of({}, {}) == ()


@pytest.mark.parametrize(
    ("said", "known", "expected"),
    [
        ([1], (0, 1), (1,)), ((1, 0), (0, 1), (1, 0)), ([5], (0, 1), None), ([5], (), (5,)),
        ([0, 5], (0,), (0,)), (None, (0,), None), ([], (0,), None), ("0", (0,), None),
        ([True, -1, 64, 1.0, "0"], (), None),
    ],
)  # fmt: skip
def test_the_gateway_chooses_among_the_devices_that_there_are(
    said: Any, known: tuple[int, ...], expected: Devices | None
) -> None:
    """Where this machine sees none, the gateway is believed, within reason."""
    assert chosen(said, known) == expected


def test_an_offer_is_rewritten_where_functions_run_in_replicas() -> None:
    """Only there, and only where the script can be run again."""
    offer = NodeOffer()
    described = [{**gpu(gpu=1), "name": "g"}, entry(scaling="auto"), {**entry(), "name": "h"}]
    offer.take({"functions": described, "capabilities": {}}, whole=True)
    assert offer.told("g")["group"] == "main"

    devices = [{"index": n, "model": "X", "memory_bytes": GB, "memory": "1GB"} for n in range(3)]
    offer.bound({"gpus": (0, 2)}, replicable=True)
    offer.know({"gpu": {"devices": devices}}, {})
    said = {one["name"]: one for one in offer.to_plain(NodeSpec(None, "n"))["functions"]}
    assert (said["g"]["group"], said["g"]["slots"]) == ("fn:g", 2)
    assert (said["f"]["group"], said["f"]["slots"]) == ("fn:f", 1)
    assert said["f"]["scaling"]["min"] == 0
    assert said["f"]["scaling"]["max"] >= 1
    assert said["h"] == described[2]
    assert offer.functions["g"]["group"] == "main"  # What the script said is as it was.

    offer.take({"removed": ["f"]}, whole=False)
    assert set(offer.plans) == {"g"}


@pytest.mark.parametrize("wrong", [{"most": 3}, {"min": 4, "max": 2}, {"min": -1}, 300, "always"])
def test_scaling_that_cannot_be_meant_is_refused_where_it_is_written(wrong: Any) -> None:
    """At registration, with a sentence."""
    with pytest.raises(ValueError, match="scaling"):
        parse({"scaling": wrong})
    assert parse({"scaling": {"min": 1, "max": 2}}).unenforced() == []


# ---- pools ---------------------------------------------------------------------------------------


class Link:
    streams_available = 1


class Replica:
    """What a pool sees of a worker."""

    def __init__(self, devices: Devices) -> None:
        self.devices = devices
        self.state = WorkerState.STARTING
        self.link = Link()

    @property
    def ready(self) -> bool:
        return self.state is WorkerState.READY


class Call:
    """What a pool sees of a call."""

    def __init__(self, *devices: int) -> None:
        self.devices = devices or None
        self.seen: Devices = ()
        self.worker: Replica | None = None

    def hold(self) -> None:
        pass

    def see(self, devices: Devices) -> None:
        self.seen = devices

    def give(self, worker: Replica, link: Link) -> None:
        self.worker = worker


class Pool:
    """A pool, and replicas that start and end when a test says so."""

    def __init__(self, slots: int, *sets: Devices) -> None:
        self.ended: list[Replica] = []
        self.pool = ReplicaPool(
            "f", "fn:f", slots, lambda _: None, self._start, cast("Any", self._end)
        )
        self.pool.sets = sets

    def _start(self, pool: ReplicaPool, devices: Devices) -> None:
        pool.workers.append(cast("WorkerProcess", Replica(devices)))

    def _end(self, worker: Replica) -> None:
        worker.state = WorkerState.ENDING
        self.ended.append(worker)

    @property
    def workers(self) -> list[Replica]:
        return cast("list[Replica]", self.pool.workers)

    def submit(self, *devices: int) -> Call:
        call = Call(*devices)
        self.pool.submit(cast("Any", call))
        return call

    def ready(self) -> None:
        """Every starting replica is ready."""
        for worker in self.workers:
            if worker.state is WorkerState.STARTING:
                worker.state = WorkerState.READY
                self.pool.worker_ready(cast("WorkerProcess", worker))

    def free(self, call: Call) -> None:
        self.pool.worker_freed(cast("WorkerProcess", call.worker))

    def gone(self) -> None:
        """Every replica that was ended is gone."""
        for worker in self.ended:
            self.pool.worker_gone(cast("WorkerProcess", worker))
            self.pool.wanted()
        self.ended.clear()


def test_replicas_spread_over_the_devices_where_the_gateway_chose_none() -> None:
    """Each call gets all devices of its replica."""
    pool = Pool(2, (0,), (1,))
    calls = [pool.submit(), pool.submit()]
    pool.ready()

    assert sorted(call.seen for call in calls) == [(0,), (1,)]


def test_one_idle_replica_makes_room_for_one_call() -> None:
    """However often the pool is looked at while the old one ends."""
    pool = Pool(2, (0,), (1,))
    calls = [pool.submit(0), pool.submit(1)]
    pool.ready()
    for call in calls:
        pool.free(call)
    both = pool.submit(0, 1)
    pool.pool.wanted()
    pool.pool.wanted()

    assert len(pool.ended) == 1
    pool.gone()
    pool.ready()
    assert both.seen == (0, 1)


def test_a_busy_pool_makes_room_when_a_call_ends() -> None:
    """The replica that falls free has other devices than the call that waits."""
    pool = Pool(1, (0,), (1,))
    first, second = pool.submit(0), pool.submit(1)
    pool.ready()
    assert pool.ended == []
    pool.free(first)
    pool.gone()
    pool.ready()

    assert second.seen == (1,)
    assert len(pool.workers) == 1


def test_what_is_idle_leaves_a_device_that_is_needed() -> None:
    """Those on other devices stay."""
    pool = Pool(2, (0,), (1,))
    calls = [pool.submit(0), pool.submit(1)]
    pool.ready()
    pool.free(calls[0])
    pool.free(calls[1])
    assert pool.pool.can_serve((1,))
    pool.pool.leave((1, 2))

    assert [worker.devices for worker in pool.ended] == [(1,)]
    assert not pool.pool.can_serve((1,))
    assert pool.pool.can_serve((0,))


def test_as_many_replicas_are_kept_as_are_wanted() -> None:
    """They start without a call, and idle ones end; what is busy ends after its call."""
    pool = Pool(1)
    pool.pool.keep(3, 3)
    assert len(pool.workers) == 3
    pool.ready()
    calls = [pool.submit(), pool.submit()]
    pool.pool.keep(1, 1)
    assert len(pool.ended) == 1
    pool.free(calls[0])
    assert len(pool.ended) == 2
    pool.free(calls[1])
    assert len(pool.ended) == 2
    assert pool.pool.alive == 1
    pool.gone()
    assert len(pool.workers) == 1


def test_replicas_that_are_no_longer_wanted_when_they_are_ready_end() -> None:
    """The queue was gone before they had started."""
    pool = Pool(1)
    pool.pool.keep(3, 3)
    pool.pool.keep(1, 1)
    pool.ready()

    assert len(pool.ended) == 2
    assert pool.pool.alive == 1


def test_a_replica_that_died_while_it_was_idle_can_be_given_up() -> None:
    """Its pool may still list it for a moment."""
    worker = WorkerProcess(*cast("Any", (None, None, None, None)))
    worker.state = WorkerState.DEAD
    worker.retire()

    assert worker.state is WorkerState.DEAD


# ---- CUDA_VISIBLE_DEVICES ------------------------------------------------------------------------


@pytest.mark.parametrize("before", [None, "7"])
def test_the_variable_is_put_back_after_the_last_call(
    before: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calls may overlap; a call without devices changes nothing."""
    if before is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", before)
    first, second = visible.during("0"), visible.during("1")
    with visible.during(None):
        assert os.environ.get("CUDA_VISIBLE_DEVICES") == before
    first.__enter__()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0"
    second.__enter__()
    first.__exit__(None, None, None)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "1"
    second.__exit__(None, None, None)

    assert os.environ.get("CUDA_VISIBLE_DEVICES") == before


def test_pinned_processes_count_devices_as_nvml_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless the owner has a numbering of their own, which is kept."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)
    assert visible.environment_for(()) == {}
    assert visible.environment_for((1, 0)) == {
        "CUDA_VISIBLE_DEVICES": "1,0", "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
    }  # fmt: skip
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "FASTEST_FIRST")
    assert visible.environment_for((0,))["CUDA_DEVICE_ORDER"] == "FASTEST_FIRST"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-x")
    assert visible.environment_for((0, 1)) == {"CUDA_VISIBLE_DEVICES": "3,GPU-x"}


# ---- books ---------------------------------------------------------------------------------------


def finish(ledger: Ledger, *responses_s: float, body_s: float = 0.5, **more: Any) -> None:
    for response_s in responses_s:
        ledger.finished("f", succeeded=True, body_s=body_s, response_s=response_s, **more)


def test_nothing_has_defined_values() -> None:
    """No call has failed, and nobody was dissatisfied."""
    assert Ledger(5.0).to_plain(5.0) == {
        "cpu_usage": 0.0, "memory_usage": 0.0, "gpu_usage": 0.0, "functions_executed": 0,
        "avg_execution_time": 0.0, "success_rate": 1.0, "uptime": 0.0, "connection_stability": 1.0,
        "data_transfer_rate": 0.0, "revenue_generated": 0.0, "user_satisfaction": 1.0,
        "memory_own_bytes": 0, "gpus": [],
    }  # fmt: skip


def test_calls_are_counted_and_their_bodies_averaged() -> None:
    """Failures count as executed, take time, and satisfy nobody."""
    ledger = Ledger(0.0)
    finish(ledger, 0.5, 0.5, 0.5)
    ledger.finished("g", succeeded=False, body_s=2.5, response_s=2.5)
    plain = ledger.to_plain(10.0)

    assert (plain["functions_executed"], plain["success_rate"]) == (4, 0.75)
    assert plain["avg_execution_time"] == 1.0
    assert plain["user_satisfaction"] == 0.75


@pytest.mark.parametrize(
    ("response_s", "body_s", "timeout_s", "satisfaction"),
    [
        (1.0, 0.1, None, 1.0), (1.1, 0.1, None, 0.5), (4.1, 0.1, None, 0.0),
        (3600.0, 3600.0, None, 1.0), (7300.0, 3600.0, None, 0.5), (29_000.0, 3600.0, None, 0.0),
        (10.0, 0.1, 40.0, 1.0), (11.0, 0.1, 40.0, 0.5), (41.0, 0.1, 40.0, 0.0),
    ],
)  # fmt: skip
def test_waiting_dissatisfies_and_long_work_does_not(
    response_s: float, body_s: float, timeout_s: float | None, satisfaction: float
) -> None:
    """Apdex with a target of the function's own measure."""
    ledger = Ledger(0.0)
    finish(ledger, response_s, body_s=body_s, timeout_s=timeout_s)

    assert ledger.to_plain(1.0)["user_satisfaction"] == satisfaction


def test_a_rating_counts_more_than_an_estimate_and_nonsense_counts_nothing() -> None:
    """What the gateway says is checked."""
    ledger = Ledger(0.0)
    finish(ledger, 0.5)
    ledger.told({"rating": 0.25, "revenue": 12})
    for wrong in (math.nan, math.inf, -1, 2, "1", True, None):
        ledger.told({"rating": wrong})
    for wrong in (math.nan, math.inf, "1", True, None):
        ledger.told({"revenue": wrong})
    plain = ledger.to_plain(1.0)

    assert (plain["user_satisfaction"], plain["revenue_generated"]) == (0.25, 12.0)


def test_stability_is_the_share_of_time_with_a_gateway() -> None:
    """Connected from 2 to 4 and from 8 on; being told twice changes nothing."""
    ledger = Ledger(0.0)
    ledger.lost(1.0)
    ledger.connected(2.0)
    ledger.connected(3.0)
    ledger.lost(4.0)
    ledger.lost(5.0)
    ledger.connected(8.0)

    assert ledger.to_plain(10.0)["connection_stability"] == pytest.approx(0.4)


def test_rates_are_smoothed_and_survive_a_new_link() -> None:
    """Counting begins anew with each link; a counter that falls back is no negative rate."""
    ledger = Ledger(0.0)
    ledger.moved(1000, 1.0)
    assert ledger.to_plain(1.0)["data_transfer_rate"] == 0.0
    ledger.moved(3000, 2.0)
    assert ledger.to_plain(2.0)["data_transfer_rate"] == 2000.0
    ledger.lost(2.5)
    ledger.moved(10, 3.0)
    assert ledger.to_plain(3.0)["data_transfer_rate"] == 2000.0
    ledger.moved(0, 4.0)
    ledger.moved(None, 5.0)
    assert 0.0 < ledger.to_plain(5.0)["data_transfer_rate"] < 2000.0


def test_machine_is_as_it_was_sampled() -> None:
    """The CPU is smoothed over a second, the GPUs are averaged, the rest is the latest word."""
    ledger = Ledger(0.0)
    gpus = [{"index": 0, "utilisation": 0.5}, {"index": 1, "utilisation": 1.0}, {"index": 2}]
    ledger.sampled({"cpu_percent": 100.0, "memory_percent": 10.0}, 1.0)
    ledger.sampled({"cpu_percent": 0.0, "memory_percent": 20.0, "gpus": gpus}, 2.0)
    plain = ledger.to_plain(2.0)

    assert plain["cpu_usage"] == pytest.approx(100.0 / math.e)
    assert (plain["memory_usage"], plain["gpu_usage"], plain["gpus"]) == (20.0, 50.0, gpus)


def test_an_average_weighs_by_time() -> None:
    """A value that comes late counts for more; one that comes at once counts for nothing."""
    average = Average(1.0)
    average.add(0.0, 0.0)
    average.add(10.0, 0.0)
    assert average.value == 0.0
    average.add(10.0, 100.0)
    assert average.value == pytest.approx(10.0)


# ---- the data classes ----------------------------------------------------------------------------

ROLES = {
    ComputeNodeMetrics: "cpu_usage memory_usage gpu_usage functions_executed: avg_execution_time "
    "success_rate uptime connection_stability data_transfer_rate revenue_generated "
    "user_satisfaction",
    GatewayMetrics: "connected_nodes: active_functions: requests_per_second "
    "node_utilization_balance request_routing_latency uptime error_rate avg_response_time",
    ClientMetrics: "functions_called: avg_call_frequency preferred_node_types* avg_response_time "
    "success_rate cost_efficiency retry_rate feature_adoption",
}
"""The promised fields: a colon says int, a star says List[str], everything else is float."""


@pytest.mark.parametrize("cls", ROLES)
def test_metrics_have_the_promised_fields_first(cls: type[Any]) -> None:
    """In their order, with exactly their annotations; a snapshot of these alone can be built."""
    kinds = {":": int, "*": typing.List[str]}  # noqa: UP006 - as it is promised
    promised = [(name.rstrip(":*"), kinds.get(name[-1], float)) for name in ROLES[cls].split()]
    fields = [(one.name, one.type) for one in dataclasses.fields(cls)]

    assert fields[: len(promised)] == promised
    made = cls(*range(len(promised)))
    for one in dataclasses.fields(cls):
        assert one.name in str(cls.__doc__)
        assert hasattr(made, one.name)


# ---- questions -----------------------------------------------------------------------------------


def answered(kind: int, message: Any) -> Question:
    question = Question("node.metrics")
    question.on_message(cast("Any", None), kind, encode(message), more=False, end=True)
    return question


def test_a_refused_question_raises_and_a_lost_link_answers() -> None:
    """Nobody waits for ever, and the error says why."""
    refused = answered(Kind.FAILURE, Failure(int(ErrorCode.OVERLOADED), "later", False, 1.0, {}))
    with pytest.raises(OverloadedError, match="later"):
        refused.answer(0)
    lost, reset, alone = Question("x"), Question("x"), Question("x")
    lost.on_lost(cast("Any", None), EasyRemoteError("gone"))
    reset.on_reset(cast("Any", None), int(ErrorCode.INTERNAL), "broken")
    alone.ask(None)
    for question, reason in ((lost, "gone"), (reset, "broken"), (alone, "no link")):
        with pytest.raises(EasyRemoteError, match=reason):
            question.answer(0)


def test_an_answer_may_be_long() -> None:
    """Its body comes inside the message, or in segments after it."""
    assert answered(Kind.REPLY, Reply(b"\x81\x07", [])).answer(0) == [7]
    question = Question("x")

    class Stream:
        def fill(self, buffers: list[memoryview]) -> None:
            buffers[0][:] = b"\x81\x08"

    stream: Any = Stream()
    question.on_message(stream, Kind.REPLY, encode(Reply(None, [2])), more=True, end=False)
    question.on_filled(stream, end=True)
    assert question.answer(0) == [8]


def test_an_agent_that_does_not_answer_is_named() -> None:
    """After a bounded time, with what to do next."""

    class Silent:
        link = None

        class calls:  # noqa: N801
            @staticmethod
            def post(fn: Any) -> None:
                pass

    with pytest.raises(EasyRemoteError, match="ask again"):
        ask(cast("Any", Silent), "node.metrics", timeout_s=0.01)
