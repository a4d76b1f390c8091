"""When a link was last known to be alive."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from easyremote import alive
from easyremote.alive import Alive
from easyremote.link import Link, LinkHandler, Outbox
from easyremote.transport import memory_stream_pair
from easyremote.wire.event import HelloReceived


class Welcoming(LinkHandler):
    """A peer that lets everybody in."""

    def on_hello(self, link: Link, event: HelloReceived) -> None:
        link.welcome({})


class Clock:
    """Trio's clock, and the time that the machine has slept."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.slept_s = 0.0
        monkeypatch.setattr(alive, "clock", lambda: trio.current_time() + self.slept_s)


async def test_the_ping_counts_and_not_its_answer(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A peer was there when the ping reached it, which is after it had left."""
    Clock(monkeypatch)
    begin = trio.current_time()
    one = Alive()
    assert one.at == begin
    await trio.sleep(5.0)
    one.answered(trio.current_time(), 2.0)
    assert one.at == begin + 3.0


async def test_an_answer_that_waited_while_we_slept(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is read after the night, and proves that the peer was there in the evening."""
    clock = Clock(monkeypatch)
    one, begin = Alive(), trio.current_time()
    await trio.sleep(10.0)
    clock.slept_s = 30_000.0
    one.answered(trio.current_time(), 1.0)
    assert one.at == begin + 9.0
    await trio.sleep(5.0)
    one.answered(trio.current_time(), 1.0)
    assert one.at == begin + 30_014.0, "and the next one proves that it is there now"


async def test_a_link_keeps_it(autojump_clock: MockClock) -> None:
    """Its pings and their answers say it, on a link on which nothing else is said."""
    ours, theirs = memory_stream_pair()
    link = Link(ours, LinkHandler(), dialer=True, outbox=Outbox())
    peer = Link(theirs, Welcoming(), dialer=False, outbox=Outbox())
    link.hello("client", {}, {})
    begin = link.alive.at
    async with trio.open_nursery() as nursery:
        nursery.start_soon(link.run)
        nursery.start_soon(peer.run)
        await trio.sleep(3 * link.connection.settings.ping_every_s + 0.5)
        nursery.cancel_scope.cancel()
    assert link.alive.at > begin
