"""Telling the streams of a lost link that it is lost: at once, or in turns.

Theory. Each stream of a link that is lost may have work behind it that must be stopped, kept or
given to somebody else. A peer that opened a thousand of them and hangs up must not make everybody
wait until all of that is done. So the streams of a *patient* link are told in turns. Whoever is
about to say something on such a stream, or to decide what its call comes to, asks first
(`Stream.hear_loss`), and the stream is told then: to everybody who asks it is lost at once.

Rules of this file. 1) Every stream is told exactly once, and the link's handler exactly once,
after the last of them. 2) Few streams are told at once, whatever the link.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from . import errors

if TYPE_CHECKING:
    from .link import Link
    from .stream import Stream

STREAMS_PER_TURN = 32
"""Each costs as much as several frames."""


class Loss:
    """The loss of one link, and who has not been told of it.

    Attributes:
        untold: Streams that were not told, by id.
    """

    __slots__ = ("_error", "_link", "_link_told", "untold")

    def __init__(
        self, link: Link, streams: dict[int, Stream], error: errors.EasyRemoteError | None
    ) -> None:
        """Nobody was told; `error` is None after a goodbye."""
        self._link = link
        self._error = error
        self._link_told = False
        self.untold = streams

    def tell(self, streams_max: int = sys.maxsize) -> bool:
        """Tell some streams, and the link's handler after the last one; True if all are told."""
        untold = self.untold
        while untold and streams_max > 0:
            streams_max -= 1
            self.tell_one(next(iter(untold.values())))
        if not (untold or self._link_told):
            self._link_told = True
            self._link.handler.on_lost(self._link, self._error)
        return not untold

    def begin(self) -> None:
        """Tell the first ones, or all of them if the link is not patient."""
        self.tell(STREAMS_PER_TURN if self._link.patient else sys.maxsize)

    def tell_one(self, stream: Stream) -> bool:
        """Tell one stream, if it was not; return whether that was so."""
        if self.untold.get(stream.stream_id) is not stream:
            return False
        del self.untold[stream.stream_id]
        told = self._error or errors.LinkLostError(f"{self._link.peer} said goodbye")
        stream.handler.on_lost(stream, told)
        stream.forget_handler()
        return True

    async def tell_rest(self) -> None:
        """Tell in turns all who were not told."""
        link, turns = self._link, self._link.outbox.turns

        def some() -> bool:
            link.outbox.begin()
            try:
                return self.tell(STREAMS_PER_TURN)
            finally:
                link.outbox.end()

        while self.untold:
            await turns.further(link.lane, some)
