"""The ledger of a node."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from easyremote.scheduler.host import Host
from easyremote.scheduler.model import Device, Needs, Rejection, Resources
from easyremote.scheduler.needs import read_needs
from easyremote.scheduler.reserve import Ledger, Reservation

from .cluster import GB


def ledger(*devices: Device, **more: object) -> Ledger:
    return Ledger(Resources(8.0, 64 * GB, 100 * GB, devices, {"fpga": 2.0}))


def take(book: Ledger, needs: Needs) -> Reservation:
    devices = book.fits(needs)
    assert not isinstance(devices, Rejection)
    return book.take(needs, devices)


def test_three_calls_of_16_gb_on_two_devices_of_24() -> None:
    """Two run at once, on different devices; the third waits until one is gone."""
    book = ledger(Device(0, "", 24 * GB, 24 * GB), Device(1, "", 24 * GB, 24 * GB))
    needs = Needs(gpus=1.0, gpu_memory_bytes=16 * GB)
    first, second = take(book, needs), take(book, needs)

    assert {first.devices, second.devices} == {(0,), (1,)}
    assert book.fits(needs) == Rejection("lacks", "gpu_memory", 16 * GB, 8 * GB)
    assert book.ever(needs) is None
    book.give_back(first)
    assert book.fits(needs) == first.devices


def test_calls_are_packed_where_they_fit_most_tightly() -> None:
    """A small call goes to the small gap, so that the large one stays whole."""
    book = ledger(Device(0, "", 24 * GB), Device(1, "", 8 * GB), Device(2, "", 24 * GB))
    small = Needs(gpus=1.0, gpu_memory_bytes=6 * GB)

    assert [take(book, small).devices for _ in range(3)] == [(1,), (0,), (0,)]
    assert take(book, Needs(gpus=1.0, gpu_memory_bytes=20 * GB)).devices == (2,)


def test_a_device_is_whole_or_shared() -> None:
    """A counted device is for one call alone, fractions add up to one, memory shares a device."""
    book = ledger(Device(0, "", 8 * GB), Device(1, "", 24 * GB))
    whole, half = Needs(gpus=1.0), Needs(gpus=0.5)
    by_memory = Needs(gpus=1.0, gpu_memory_bytes=GB)

    assert take(book, whole).devices == (1,)
    first = take(book, half)
    assert take(book, half).devices == first.devices == (0,)
    assert book.fits(half) == Rejection("lacks", "gpu", 0.5, 0)
    assert book.fits(by_memory) == Rejection("lacks", "gpu_memory", GB, 0)
    book.clear()
    shared = take(book, by_memory)
    assert shared.devices == (0,)
    assert take(book, whole).devices == (1,)
    assert book.fits(whole) == Rejection("lacks", "gpu", 1.0, 0)
    assert book.fits(Needs(gpus=2.0)) == Rejection("lacks", "gpu", 2.0, 0)
    book.give_back(shared)
    book.give_back(shared)
    assert book.reservations == 1
    assert book.fits(whole) == (0,)


def test_several_devices_are_several() -> None:
    """A call for two devices with memory gets two that have it."""
    book = ledger(Device(0, "", 24 * GB), Device(1, "", 8 * GB), Device(2, "", 24 * GB))
    two = Needs(gpus=2.0, gpu_memory_bytes=16 * GB)

    assert take(book, two).devices == (0, 2)
    assert book.fits(Needs(gpus=2.0, gpu_memory_bytes=8 * GB)) == (0, 1)
    assert book.ever(Needs(gpus=3.0, gpu_memory_bytes=16 * GB)) == Rejection(
        "lacks", "gpu", 3.0, 2, never=True
    )


@pytest.mark.parametrize(
    ("device", "left"),
    [
        (Device(0, "", 24 * GB), 14 * GB),
        (Device(0, "", 24 * GB, 20 * GB), 14 * GB),  # Our own 4 GB are in it: the promise counts.
        (Device(0, "", 24 * GB, 3 * GB), 3 * GB),
        (Device(0, "", 24 * GB, 3 * GB, 5 * GB), 9 * GB),  # 16 of the 21 GB used are our own.
    ],
)
def test_what_is_left_of_a_device(device: Device, left: int) -> None:
    """Foreign use is subtracted where it is known; else the smaller view counts."""
    book = ledger(Device(0, "", 24 * GB))
    take(book, Needs(gpus=1.0, gpu_memory_bytes=10 * GB))
    book.measured(Resources(devices=(device,)))

    assert book.device_left(device) == left


@pytest.mark.parametrize(
    ("free", "own", "left"),
    [
        (None, None, 54), (60, None, 54), (20, None, 20),
        (40, 4, 64 - 20 - 10),  # 20 GB are foreign, 10 reserved.
        (40, 14, 64 - 10 - 14),  # The node uses more than it reserved.
        (60, 30, 64 - 0 - 30),
    ],
)  # fmt: skip
def test_what_is_left_of_main_memory(free: int | None, own: int | None, left: int) -> None:
    """The same as for a device, and what the node uses without reservation is used."""
    book = ledger()
    take(book, Needs(memory_bytes=10 * GB))
    book.measured(
        book.total, None if free is None else free * GB, None if own is None else own * GB
    )

    assert book.memory_left() == left * GB


def test_every_resource_is_counted() -> None:
    """Cores, memory, disk and resources of a user's own run out, and come back."""
    book = ledger()
    needs = Needs(3.0, 30 * GB, 40 * GB, custom=(("fpga", 1.0),))
    held = [take(book, needs), take(book, needs)]
    for one, key in (
        (Needs(cpus=2.5), "cpu"), (Needs(memory_bytes=5 * GB), "memory"),
        (Needs(disk_bytes=21 * GB), "disk"), (Needs(custom=(("fpga", 0.5),)), "fpga"),
    ):  # fmt: skip
        found = book.fits(one)
        assert isinstance(found, Rejection)
        assert (found.key, found.never) == (key, False)
    for reservation in held:
        book.give_back(reservation)
    assert book.fits(Needs(8.0, 64 * GB, 100 * GB, custom=(("fpga", 2.0),))) == ()


def test_disk_is_what_is_free_now() -> None:
    """A full disk takes nothing, whatever its size."""
    book = ledger()
    book.measured(book.total, disk_free_bytes=GB)
    assert book.fits(Needs(disk_bytes=2 * GB)) == Rejection("lacks", "disk", 2 * GB, GB)
    book.measured(Resources(), disk_free_bytes=GB)
    assert book.fits(Needs(disk_bytes=GB)) == ()


@pytest.mark.parametrize(
    ("needs", "key", "have"),
    [
        (Needs(cpus=9.0), "cpu", 8.0),
        (Needs(memory_bytes=65 * GB), "memory", 64 * GB),
        (Needs(custom=(("tpu", 1.0),)), "tpu", 0.0),
        (Needs(gpus=1.0, gpu_memory_bytes=16 * GB), "gpu_memory", 8 * GB),
        (Needs(gpus=2.0), "gpu", 1),
        (Needs(gpus=1.0, gpu_model="a100"), "gpu_model", "RTX 2070"),
    ],
)
def test_what_never_fits_is_told_apart(needs: Needs, key: str, have: object) -> None:
    """A demand beyond the empty machine is final, and says what there is."""
    book = ledger(Device(0, "RTX 2070", 8 * GB))
    found = book.ever(needs)

    assert found is not None and (found.key, found.have, found.never) == (key, have, True)
    assert book.fits(needs) == found


def test_what_a_node_has_not_said_is_not_there_and_not_missing_for_ever() -> None:
    """Before its first sample a node gets no call with needs, and makes none infeasible."""
    book = Ledger()
    for needs in (Needs(cpus=1.0), Needs(memory_bytes=1), Needs(disk_bytes=1), Needs(gpus=1.0)):
        found = book.fits(needs)
        assert isinstance(found, Rejection) and found.have is None and not found.never
        assert book.ever(needs) is None
    assert ledger().ever(Needs(gpus=1.0, gpu_model="a100")) == Rejection(
        "lacks", "gpu_model", "a100", "no GPU", never=True
    )


def test_what_stays_free_is_scored_by_the_scarcest() -> None:
    """The share is that of the requested resource of which the least stays."""
    book = ledger(Device(0, "", 20 * GB))

    assert book.free_after(Needs(cpus=2.0, memory_bytes=48 * GB), ()) == 0.25
    assert book.free_after(Needs(gpus=1.0, gpu_memory_bytes=15 * GB), (0,)) == 0.25
    assert book.free_after(Needs(gpus=0.25), (0,)) == 0.75
    assert book.free_after(Needs(cpus=9.0), ()) == 0.0
    assert Ledger().free_after(Needs(cpus=9.0), ()) == 1.0


demands = st.builds(
    Needs,
    st.sampled_from([0.0, 0.1, 1.0, 3.0]),
    st.sampled_from([0, GB, 20 * GB]),
    gpus=st.sampled_from([0.0, 0.3, 0.5, 1.0, 2.0]),
    gpu_memory_bytes=st.just(0),
) | st.builds(
    Needs,
    gpus=st.sampled_from([1.0, 2.0]),
    gpu_memory_bytes=st.sampled_from([1, 5 * GB, 16 * GB]),
)


@given(st.lists(demands, max_size=30), st.data())
def test_the_ledger_adds_up(calls: list[Needs], data: st.DataObject) -> None:
    """Never is more promised than there is, and what is given back is there again."""
    book = ledger(Device(0, "", 24 * GB), Device(1, "", 16 * GB))
    held: list[Reservation] = []
    for needs in calls:
        devices = book.fits(needs)
        if not isinstance(devices, Rejection):
            held.append(book.take(needs, devices))
        if data.draw(st.booleans()) and held:
            book.give_back(held.pop(data.draw(st.integers(0, len(held) - 1))))
        assert book.cpus <= 8.0 + 1e-6 and book.memory_bytes <= 64 * GB
        for index, size in ((0, 24 * GB), (1, 16 * GB)):
            assert 0 <= book.used_bytes.get(index, 0) <= size
            assert -1e-6 <= book.shares.get(index, 0.0) <= 1.0 + 1e-6
        for alone in [r for r in held if r.needs.share == 1.0]:
            assert not any(set(r.devices) & set(alone.devices) for r in held if r is not alone)
    for one in held:
        book.give_back(one)
    assert (book.cpus, book.memory_bytes, book.reservations) == (0.0, 0, 0)
    assert not any(book.used_bytes.values()) and not book.shares


def test_a_call_that_came_back_keeps_its_devices() -> None:
    """Devices that it uses are promised to it before the node has said what it has."""
    host = Host("n1")
    needs = read_needs({"gpu_memory": "16GB", "cpu": 1})
    assert host.holds(needs, (1,)).devices == (1,)
    assert host.holds(read_needs({"gpu": 0.5}), ()).devices == (0,)
    host.declare({"gpu": {"count": 2, "memory": "24GB"}, "cpu": {"threads": 4}})

    second = host.reserve(needs)
    assert second is not None
    assert second.devices == (0,)
    assert host.reserve(needs) is None
    assert host.holds(read_needs({"gpu_memory": "4GB"}), ()).devices == (0,)


@pytest.mark.parametrize(
    ("free", "own", "fits"),
    [
        (None, None, 100),  # Nobody else is known to use anything.
        (70, None, 90),  # Twenty of what is used are promised, ten are not.
        (70, 25, 95),  # All but five are the node's own.
    ],
)
def test_what_others_use_is_not_given_back(free: int | None, own: int | None, fits: int) -> None:
    """A call could fit if what is promised came back, and not what other programs use."""
    ledger = Ledger(Resources(memory_bytes=100))
    ledger.take(Needs(memory_bytes=20), ())
    ledger.measured(Resources(memory_bytes=100), free, own)

    assert ledger.could(Needs(memory_bytes=fits))
    assert not ledger.could(Needs(memory_bytes=fits + 1))
    assert ledger.reservations == 1


def test_a_device_could_take_what_others_leave() -> None:
    """On a GPU, too: by what its driver says is free, and by what is not the node's."""
    devices = (
        Device(0, "", 100, free_bytes=50),
        Device(1, "", 100, free_bytes=None, foreign_bytes=40),
    )
    ledger = Ledger(Resources(devices=devices))
    ledger.take(Needs(gpus=1, gpu_memory_bytes=30), (0,))

    assert ledger.could(Needs(gpus=1, gpu_memory_bytes=80))
    assert not ledger.could(Needs(gpus=1, gpu_memory_bytes=81))
    assert not ledger.could(Needs(gpus=2, gpu_memory_bytes=61))
