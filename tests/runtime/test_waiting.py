"""Waiting for news of the io thread, in a thread, in asyncio and in trio."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
import trio

from easyremote.waiting import Gate, running_library

WAIT_S = 10.0


class State:
    """Something that the io thread changes and a body waits for."""

    def __init__(self) -> None:
        self.gate = Gate()
        self.value = 0

    def set(self, value: int) -> None:
        self.value = value
        self.gate.wake()


def test_gate_wakes_threads_and_both_kinds_of_tasks() -> None:
    """A thread, an asyncio task and a trio task that wait on one gate are all woken."""
    state = State()
    done: list[str] = []

    def in_thread() -> None:
        state.gate.wait(lambda: state.value == 1)
        done.append("thread")

    def in_asyncio() -> None:
        asyncio.run(state.gate.wait_async(lambda: state.value == 1))
        done.append("asyncio")

    def in_trio() -> None:
        trio.run(state.gate.wait_async, lambda: state.value == 1)
        done.append("trio")

    threads = [threading.Thread(target=fn) for fn in (in_thread, in_asyncio, in_trio)]
    for thread in threads:
        thread.start()
    while len(state.gate._wakes) < 3:
        assert all(thread.is_alive() for thread in threads)
    state.set(1)
    for thread in threads:
        thread.join(WAIT_S)

    assert sorted(done) == ["asyncio", "thread", "trio"]


def test_gate_ignores_news_that_is_not_enough() -> None:
    """A waiter that is woken for nothing waits again; one that need not wait does not."""
    state = State()
    thread = threading.Thread(target=lambda: state.gate.wait(lambda: state.value == 2))
    thread.start()
    while not state.gate._wakes:
        assert thread.is_alive()
    state.set(1)
    while not state.gate._wakes:
        assert thread.is_alive()
    state.set(2)
    thread.join(WAIT_S)
    state.gate.wait(lambda: True)

    assert not thread.is_alive()


def test_gate_survives_a_loop_that_was_closed() -> None:
    """Waking a waiter whose event loop is gone is no error."""
    state = State()

    async def give_up() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(state.gate.wait_async(lambda: False), 0.001)

    asyncio.run(give_up())

    async def give_up_in_trio() -> None:
        with trio.move_on_after(0.001):
            await state.gate.wait_async(lambda: False)

    trio.run(give_up_in_trio)
    state.set(1)

    assert state.gate._wakes == []


@pytest.mark.parametrize("library", ["thread", "asyncio", "trio"])
def test_a_gate_never_sleeps_through_news(library: str) -> None:
    """Whether the news comes before, while or after the waiter looks."""
    gate = Gate()
    value = [0]

    def change() -> None:
        for _ in range(200):
            value[0] += 1
            gate.wake()

    def follow() -> None:
        for wanted in range(0, 201, 7):
            assert gate.wait(lambda wanted=wanted: value[0] >= wanted, WAIT_S)  # type: ignore[misc]

    async def follow_async() -> None:
        for wanted in range(0, 201, 7):
            await gate.wait_async(lambda wanted=wanted: value[0] >= wanted)  # type: ignore[misc]

    thread = threading.Thread(target=change)
    thread.start()
    if library == "thread":
        follow()
    elif library == "asyncio":
        asyncio.run(follow_async())
    else:
        trio.run(follow_async)
    thread.join(WAIT_S)

    assert value[0] == 200


@pytest.mark.parametrize("library", ["thread", "asyncio", "trio"])
def test_a_gate_can_be_waited_for_in_part(library: str) -> None:
    """Giving up is no error, and leaves nothing that could wake the wrong one."""
    gate = Gate()

    async def wait() -> bool:
        return await gate.wait_async_within(lambda: False, 0.01)

    if library == "thread":
        waited = gate.wait(lambda: False, 0.01)
    else:
        waited = asyncio.run(wait()) if library == "asyncio" else trio.run(wait)
    gate.wake()

    assert waited is False


def test_the_running_library_is_found_each_time() -> None:
    """Also in a thread beside a loop, where there is none."""
    found: list[Any] = []

    async def main() -> None:
        found.append(running_library())
        thread = threading.Thread(target=lambda: found.append(running_library()))
        thread.start()
        thread.join(WAIT_S)

    asyncio.run(main())
    trio.run(main)
    found.append(running_library())

    assert found == [asyncio, None, trio, None, None]
