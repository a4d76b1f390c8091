"""Two connections back to back: every byte that one sends is received by the other."""

from __future__ import annotations

from collections.abc import Callable

from easyremote.wire import event as ev
from easyremote.wire.connection import Connection
from easyremote.wire.settings import Settings

OnEvent = Callable[[Connection, ev.Event], None]


def written(connection: Connection) -> bytes:
    """Return everything that the connection wants to send now, as one string."""
    parts: list[bytes] = []
    while chunk := connection.data_to_send():
        parts.extend(bytes(part) for part in chunk)
    return b"".join(parts)


def take(
    connection: Connection,
    data: bytes | memoryview,
    now: float = 0.0,
    on_event: OnEvent | None = None,
    step: int | None = None,
) -> list[ev.Event]:
    """Give `data` to the connection, `step` bytes at a time, and return the events.

    `on_event` is called for each event before the next one is looked for, as an owner does.
    """
    events: list[ev.Event] = []
    view = memoryview(data)
    while len(view):
        space = connection.receive_buffer()
        assert len(space) > 0, "there is always room for the next bytes"
        size = min(len(space), len(view), step or len(view))
        space[:size] = view[:size]
        view = view[size:]
        connection.received(size, now)
        while (event := connection.next_event()) is not None:
            events.append(event)
            if on_event is not None:
                on_event(connection, event)
    return events


class Pair:
    """A dialer `a` and an acceptor `b` that share a virtual clock."""

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        settings_b: Settings | None = None,
        greet: bool = True,
        on_event: OnEvent | None = None,
    ) -> None:
        self.now = 0.0
        self.a = Connection(dialer=True, now=0.0, settings=settings)
        self.b = Connection(dialer=False, now=0.0, settings=settings_b or settings)
        self.events_a: list[ev.Event] = []
        self.events_b: list[ev.Event] = []
        self.on_event = on_event
        if greet:
            self.a.hello("client", {"token": "secret"}, {})
            self.pump()
            self.b.welcome({})
            self.pump()
            self.events_a.clear()
            self.events_b.clear()

    def pump(self, rounds: int = 100_000) -> None:
        """Carry bytes both ways until neither side has anything to send."""
        for _ in range(rounds):
            there, back = written(self.a), written(self.b)
            if not there and not back:
                return
            self.events_b += take(self.b, there, self.now, self.on_event)
            self.events_a += take(self.a, back, self.now, self.on_event)
        raise AssertionError("the two connections never come to rest")

    def wait(self, seconds: float) -> None:
        """Let time pass, serving every timeout on the way."""
        until = self.now + seconds
        while True:
            due = [w for c in (self.a, self.b) if (w := c.next_timeout()) is not None]
            self.now = min([until, *[max(self.now, when) for when in due]])
            for connection, events in ((self.a, self.events_a), (self.b, self.events_b)):
                connection.handle_timeout(self.now)
                while (event := connection.next_event()) is not None:
                    events.append(event)
            self.pump()
            if self.now >= until:
                return
