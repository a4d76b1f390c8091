"""What a `Connection` reports: one small tuple per thing that happened.

Rules of this file. 1) An event is data; it holds no reference to the connection. 2) Bytes in an
event belong to whoever receives the event.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from .errors import ProtocolError


class HelloReceived(NamedTuple):
    """The peer introduced itself; answer with `Connection.welcome` or `Connection.refuse`."""

    version: int
    """The version that both sides speak."""
    role: str
    """`client`, `node` or `worker`."""
    credential: dict[str, Any]
    info: dict[str, Any]


class WelcomeReceived(NamedTuple):
    """The peer took us in; streams may be opened."""

    version: int
    info: dict[str, Any]


class StreamOpened(NamedTuple):
    """The peer opened a stream with a message."""

    stream_id: int
    kind: int
    payload: bytes
    more: bool
    """Raw segments follow: name their destination with `Connection.fill`, or take them as data."""
    end: bool
    """The peer says nothing more on this stream."""


class MessageReceived(NamedTuple):
    """The peer said something inside a stream."""

    stream_id: int
    kind: int
    payload: bytes
    more: bool
    end: bool


class DataReceived(NamedTuple):
    """Raw bytes of a segment for which no destination was named (a relay passes them on).

    `frame` is writable and holds `HEADER_SIZE` free bytes before the payload, so that the same
    memory can be sent on as a frame without a copy.
    """

    stream_id: int
    frame: memoryview
    last: bool
    end: bool


class SegmentsFilled(NamedTuple):
    """Every destination named with `fill` has its bytes."""

    stream_id: int
    end: bool


class StreamReset(NamedTuple):
    """The peer gave the stream up."""

    stream_id: int
    code: int
    reason: str


class StreamsAccepted(NamedTuple):
    """The peer has taken responsibility for these streams of ours."""

    stream_ids: list[int]


class StreamsStarted(NamedTuple):
    """User code has started for these streams of ours."""

    stream_ids: list[int]


class CancelReceived(NamedTuple):
    """The peer wants the work of these streams (which it opened) stopped.

    Each entry is (stream id, strength, grace in ms); strength 0 asks, 1 interrupts, 2 kills.
    """

    cancels: list[tuple[int, int, int]]


class CreditReceived(NamedTuple):
    """The peer allows more: streams may be opened or bytes sent that had to wait."""

    streams: bool


class PongReceived(NamedTuple):
    """The answer to a ping of ours."""

    rtt_s: float


class DrainReceived(NamedTuple):
    """The peer takes no new streams; the running ones go on to their end."""

    reason: str


class GoawayReceived(NamedTuple):
    """The peer is closing the connection and says why."""

    code: int
    reason: str


class ConnectionLost(NamedTuple):
    """The connection ended: by the peer, by silence, or by a broken rule."""

    error: ProtocolError | None


Event = (
    HelloReceived
    | WelcomeReceived
    | StreamOpened
    | MessageReceived
    | DataReceived
    | SegmentsFilled
    | StreamReset
    | StreamsAccepted
    | StreamsStarted
    | CancelReceived
    | CreditReceived
    | PongReceived
    | DrainReceived
    | GoawayReceived
    | ConnectionLost
)
