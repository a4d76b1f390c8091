"""One stream's state table.

Theory. A stream is one ordered, credited, two-way exchange. Either side may end its own direction
(END) and either may give the whole stream up (RESET). That is all the state there is: what the
messages mean is not the stream's business.

                        +--------+
        send END        |        |        receive END
          +-------------|  OPEN  |-------------+
          v             |        |             v
    +------------+      +--------+      +-------------+
    | ENDED_HERE |          |           | ENDED_THERE |
    +------------+          | RESET     +-------------+
          |                 v                  |
          | receive END  +--------+   send END |
          +------------->| CLOSED |<-----------+
                         +--------+

Rules of this file. 1) Every (state, input) pair that is legal stands in `TRANSITIONS`; a missing
pair is a protocol error of whoever caused it. 2) Transitions have no side effects.

Source. RFC 9113 section 5.1, without its idle and reserved states.
"""

from __future__ import annotations

from collections import deque
from enum import IntEnum
from typing import Any

from .credit import Inflow


class StreamState(IntEnum):
    """Where a stream is."""

    OPEN = 0
    ENDED_HERE = 1
    ENDED_THERE = 2
    CLOSED = 3


class StreamInput(IntEnum):
    """What may happen to a stream."""

    SEND = 0
    SEND_END = 1
    SEND_RESET = 2
    RECEIVE = 3
    RECEIVE_END = 4
    RECEIVE_RESET = 5


_S, _I = StreamState, StreamInput
TRANSITIONS: dict[tuple[StreamState, StreamInput], StreamState] = {
    (_S.OPEN, _I.SEND): _S.OPEN,
    (_S.OPEN, _I.SEND_END): _S.ENDED_HERE,
    (_S.OPEN, _I.SEND_RESET): _S.CLOSED,
    (_S.OPEN, _I.RECEIVE): _S.OPEN,
    (_S.OPEN, _I.RECEIVE_END): _S.ENDED_THERE,
    (_S.OPEN, _I.RECEIVE_RESET): _S.CLOSED,
    (_S.ENDED_HERE, _I.SEND_RESET): _S.CLOSED,
    (_S.ENDED_HERE, _I.RECEIVE): _S.ENDED_HERE,
    (_S.ENDED_HERE, _I.RECEIVE_END): _S.CLOSED,
    (_S.ENDED_HERE, _I.RECEIVE_RESET): _S.CLOSED,
    (_S.ENDED_THERE, _I.SEND): _S.ENDED_THERE,
    (_S.ENDED_THERE, _I.SEND_END): _S.CLOSED,
    (_S.ENDED_THERE, _I.SEND_RESET): _S.CLOSED,
    (_S.ENDED_THERE, _I.RECEIVE_RESET): _S.CLOSED,
}
"""The whole life of a stream. CLOSED has no way out: late frames are the connection's business."""


class StreamRecord:
    """What the connection keeps about one stream.

    Most streams carry one message each way, so everything that only the others need is a default
    of the class until it is used: a record costs three assignments.

    Attributes:
        granted: Bytes that the peer allows on this stream, since its beginning.
        sent: Bytes of it that were framed.
        inflow: What we granted and took; None until the first message that does not end.
        queue: What waits for credit or for its turn, oldest first.
        queued_bytes: Payload bytes in `queue`.
        scheduled: The stream stands in the connection's round of bulk senders.
        more: The peer owes DATA frames: a message with segments has begun.
        targets: Destinations of those segments, None while none were named.
        manual: Credit returns only when the owner says that bytes were consumed.
        watched: Report the bytes of this stream as they are framed.
        accepted: We have taken responsibility for it: the peer may reset it free of charge.
        grants: CREDIT frames that came for it.
        cancels: Times that the peer asked to stop it.
        told: What the peer has told of it: 1 ACCEPT, 2 STARTED.
        released: Its work is gone: its stream credit returns as soon as it is over.
    """

    state: StreamState = StreamState.OPEN
    sent: int = 0
    inflow: Inflow | None = None
    queue: deque[Any] | None = None
    queued_bytes: int = 0
    scheduled: bool = False
    more: bool = False
    targets: list[memoryview] | None = None
    target_index: int = 0
    target_offset: int = 0
    manual: bool = False
    watched: bool = False
    accepted: bool = False
    released: bool = False
    grants: int = 0
    cancels: int = 0
    told: int = 0

    def __init__(self, stream_id: int, granted: int) -> None:
        self.stream_id = stream_id
        self.granted = granted

    def step(self, what: StreamInput) -> bool:
        """Move along the table; False if the table does not have this pair."""
        state = TRANSITIONS.get((self.state, what))
        if state is None:
            return False
        self.state = state
        return True
