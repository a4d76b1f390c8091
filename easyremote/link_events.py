"""What each event of a connection means to the handlers of its link: one function per event.

Rules of this file. 1) Handlers are told synchronously, in the order of the events. 2) A stream of
which the link no longer knows is passed over: its end was told already.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .stream import NOBODY, Stream
from .wire import event as ev

if TYPE_CHECKING:
    from .link import Link


def _on_opened(link: Link, event: ev.StreamOpened) -> None:
    stream = Stream(link, event.stream_id, NOBODY)
    link.streams[event.stream_id] = stream
    stream.handler = link.handler.on_open(
        link, stream, event.kind, event.payload, event.more, event.end
    )
    if stream.handler.relay:
        link.connection.manual_credit(event.stream_id)


def _on_data(link: Link, event: ev.DataReceived) -> None:
    stream = link.streams.get(event.stream_id)
    if stream is not None:
        stream.handler.on_data(stream, event.frame, event.last, event.end)


def _on_filled(link: Link, event: ev.SegmentsFilled) -> None:
    stream = link.streams.get(event.stream_id)
    if stream is not None:
        stream.handler.on_filled(stream, event.end)


def _on_reset(link: Link, event: ev.StreamReset) -> None:
    stream = link.streams.pop(event.stream_id, None)
    if stream is not None:
        stream.handler.on_reset(stream, event.code, event.reason)
        stream.forget_handler()


def _on_accepted(link: Link, event: ev.StreamsAccepted) -> None:
    for stream_id in event.stream_ids:
        if (stream := link.streams.get(stream_id)) is not None:
            stream.handler.on_accepted(stream)


def _on_started(link: Link, event: ev.StreamsStarted) -> None:
    for stream_id in event.stream_ids:
        if (stream := link.streams.get(stream_id)) is not None:
            stream.handler.on_started(stream)


def _on_cancels(link: Link, event: ev.CancelReceived) -> None:
    for stream_id, strength, grace_ms in event.cancels:
        if (stream := link.streams.get(stream_id)) is not None:
            stream.handler.on_cancel(stream, strength, grace_ms)


def _on_credit(link: Link, event: ev.CreditReceived) -> None:
    link.outbox.mark(link)
    if event.streams:
        link.handler.on_stream_credit(link)


def _on_welcome(link: Link, event: ev.WelcomeReceived) -> None:
    link.wake_timer()
    link.handler.on_welcome(link, event.info)


def _on_hello(link: Link, event: ev.HelloReceived) -> None:
    link.handler.on_hello(link, event)


def _on_pong(link: Link, event: ev.PongReceived) -> None:
    link.alive.answered(link.connection.now, event.rtt_s)


def _on_drain(link: Link, event: ev.DrainReceived) -> None:
    link.handler.on_drain(link, event.reason)


def _on_goaway(link: Link, event: ev.GoawayReceived) -> None:
    link.goodbye = (event.code, event.reason)


TELL: dict[type[Any], Callable[[Link, Any], None]] = {
    ev.StreamOpened: _on_opened,
    ev.DataReceived: _on_data,
    ev.SegmentsFilled: _on_filled,
    ev.StreamReset: _on_reset,
    ev.StreamsAccepted: _on_accepted,
    ev.StreamsStarted: _on_started,
    ev.CancelReceived: _on_cancels,
    ev.CreditReceived: _on_credit,
    ev.HelloReceived: _on_hello,
    ev.WelcomeReceived: _on_welcome,
    ev.PongReceived: _on_pong,
    ev.DrainReceived: _on_drain,
    ev.GoawayReceived: _on_goaway,
}
"""All but `MessageReceived` and `ConnectionLost`, which the link knows best."""
