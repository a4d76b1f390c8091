"""What the gateway says about one call when somebody looks: where it is, and what it has cost.

Theory. A future shows more than it is told: its place in the queue, the node, the cost. These are
asked for when they are looked at, and programs look in loops. So an answer is good for a while,
there is one question under way at a time, and the last answer after the outcome is kept for ever.

Looking waits for the answer, but never long: a thread for some seconds, an event loop, which stands
still meanwhile, for a fraction of one. On the io thread, which brings all answers, it does not wait
at all. Whoever does not wait sees what was known before; the answer that comes later is there for
the next look.

Rules of this file. 1) Any thread may look, and nothing raises: what cannot be asked is not known.
2) Without a link nothing is asked, for the question would wait for the next one.

Source. api.md, `Future`; features.md I9, I10.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..errors import EasyRemoteError
from ..facts import Usage
from ..waiting import running_library
from ..wire.errors import ErrorCode
from .info import Whereabouts

if TYPE_CHECKING:
    from .call import OutgoingCall
    from .future import Future
    from .session import Session

FRESH_S = 0.2
"""An answer is good for this long."""
WAIT_S = 5.0
LOOP_WAIT_S = 0.5
"""An event loop stands still at most this long: a few round trips around the world."""

OPEN = "open"
"""The outcome in a row of an account whose call is not settled there yet."""


def ask_briefly(session: Session, name: str, args: dict[str, Any]) -> Any:
    """Ask and wait for the answer as long as one may here; None if there is none."""
    if session.link.on_io_thread():
        return None
    asked = session.ask_if_up(name, args)
    if asked is None:
        return None
    asked._block_until(_patience_s())
    try:
        return asked.result() if asked.done() else None
    except EasyRemoteError:
        return None


def _patience_s() -> float:
    return WAIT_S if running_library() is None else LOOP_WAIT_S


class Question:
    """One question about one call, and the last answer to it.

    Attributes:
        answer: What was said last, None before.
        final: It is the last word: nothing is asked any more.
    """

    __slots__ = ("_asked_at", "_many", "_name", "_of_the_end", "_pending", "answer", "final")

    def __init__(self, name: str, *, many: bool = False) -> None:
        """Prepare a question by its name; some are about many calls, and get a list."""
        self._name = name
        self._many = many
        self._asked_at = -FRESH_S
        self._pending: Future[Any] | None = None
        self._of_the_end = False
        self.answer: Any = None
        self.final = False

    def look(self, call: OutgoingCall) -> Any:
        """Return what is known; ask, if that is old."""
        if not self.final:
            self._take()
        if not self.final and self._pending is None:
            now = time.monotonic()
            if now - self._asked_at >= FRESH_S:
                self._asked_at = now
                self._ask(call)
        return self.answer

    def _ask(self, call: OutgoingCall) -> None:
        session = call.session
        self._of_the_end = call.future is None
        one = call.call_id
        asked = session.ask_if_up(
            self._name, {"call_ids": [one]} if self._many else {"call_id": one}
        )
        if asked is None:
            return
        self._pending = asked
        if not session.link.on_io_thread():
            asked._block_until(_patience_s())
            self._take()

    def _take(self) -> None:
        asked = self._pending
        if asked is None or not asked.done():
            return
        self._pending = None
        try:
            self.answer = asked.result()
        except EasyRemoteError as error:
            # A call that the gateway knows no more, or a question that it does not know.
            self.final = self._of_the_end and error.code is ErrorCode.NOT_FOUND
        else:
            self.final = self._of_the_end


def news_of(call: OutgoingCall) -> News:
    """Return what was asked about a call; two who look at once may ask twice."""
    if call.news is None:
        call.news = News(call)
    return call.news


class News:
    """What was asked about one call."""

    __slots__ = ("_call", "_usage", "_where")

    def __init__(self, call: OutgoingCall) -> None:
        self._call = call
        self._where = Question("call")
        self._usage = Question("usage", many=True)

    def where(self) -> Whereabouts | None:
        """Return where the call is, None if the gateway has not said so."""
        self._call.session.tally.used.add("placement")
        found = self._where.look(self._call)
        return Whereabouts.from_plain(found) if isinstance(found, Mapping) else None

    def usage(self) -> Usage:
        """Return what a call with an outcome has used: what was measured here, and its account."""
        call, row = self._call, self._row()
        where = self.where() if row is None else None
        node_id = None if where is None or where.placement is None else where.placement.node_id
        here = Usage(
            call.function, node_id, call.seconds, call.bytes_sent, call.bytes_received,
            call_id=call.call_id.hex(), user=call.session.user or "",
        )  # fmt: skip
        if row is None:
            return here
        booked = Usage.from_plain(row)
        return replace(
            booked,
            seconds=booked.seconds or here.seconds,
            bytes_in=booked.bytes_in or here.bytes_in,
            bytes_out=booked.bytes_out or here.bytes_out,
        )

    def _row(self) -> dict[str, Any] | None:
        """Return what the account has of the call, None if it has nothing."""
        rows = self._usage.look(self._call)
        if not isinstance(rows, list) or not rows or not isinstance(rows[0], dict):
            return None
        if rows[0].get("outcome") == OPEN:
            self._usage.final = False  # Its node is not done with it; the account comes later.
        row: dict[str, Any] = rows[0]
        return row
