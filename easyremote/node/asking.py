"""A question of a worker to its agent: what the node has measured of itself.

Rules of this file. 1) The thread that asks waits; the io thread only passes the answer on. 2) A
link that ends answers, too: with its error.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from .. import values
from ..errors import EasyRemoteError, from_wire
from ..handlers import StreamHandler
from ..wire.message import Failure, Kind, Query, Reply, decode

if TYPE_CHECKING:
    from ..link import Link
    from ..stream import Stream
    from .worker import Worker

METRICS_QUERY = "node.metrics"

ANSWER_WAIT_S = 5.0
ANSWER_BYTES_MAX = 16 * 1024 * 1024


class Question(StreamHandler):
    """One question and its answer."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._came = threading.Event()
        self._filling: list[memoryview] = []
        self._value: Any = None
        self._error: EasyRemoteError | None = None

    def ask(self, link: Link | None) -> None:
        """Send it; on the io thread."""
        if link is None:
            why = "the node has no link to its agent; is it still serving?"
            self._settle(None, EasyRemoteError(why))
            return
        try:
            link.open(Query(self._name, {}), handler=self, end=True)
        except EasyRemoteError as error:
            self._settle(None, error)

    def answer(self, timeout_s: float) -> Any:
        """Wait for the answer; on the thread that wants it.

        Raises:
            EasyRemoteError: There is none.
        """
        if not self._came.wait(timeout_s):
            raise EasyRemoteError(
                f"the agent of this node did not answer within {timeout_s:g} s; ask again"
            )
        if self._error is not None:
            raise self._error
        return self._value

    def on_message(self, stream: Stream, kind: int, payload: bytes, more: bool, end: bool) -> None:
        """The agent answers."""
        if kind == Kind.FAILURE:
            code, reason, _, retry_after_s, detail = decode(Failure, payload)
            error = from_wire(code, reason, retry_after_s=retry_after_s, detail=detail)
            self._settle(None, error)
        elif kind == Kind.REPLY:
            reply = decode(Reply, payload)
            if more:
                self._filling = values.allocate(reply.segments, limit_bytes=ANSWER_BYTES_MAX)
                stream.fill(self._filling)
            if reply.body is not None:
                self._filling.insert(0, memoryview(reply.body))
            if not more:
                self._decode()

    def on_filled(self, stream: Stream, end: bool) -> None:
        """The answer was a long one, and is complete."""
        self._decode()

    def on_reset(self, stream: Stream, code: int, reason: str) -> None:
        """The agent takes no questions."""
        self._settle(None, from_wire(code, reason))

    def on_lost(self, stream: Stream, error: EasyRemoteError) -> None:
        """The link ended."""
        self._settle(None, error)

    def _decode(self) -> None:
        body, *buffers = self._filling
        self._settle(values.decode(bytes(body), buffers, allow_pickle=False), None)

    def _settle(self, value: Any, error: EasyRemoteError | None) -> None:
        self._value, self._error = value, error
        self._came.set()


def ask(worker: Worker, name: str, timeout_s: float = ANSWER_WAIT_S) -> Any:
    """Ask the agent of a worker something, and wait for the answer. Not on the io thread.

    Raises:
        EasyRemoteError: It cannot or does not answer.
    """
    question = Question(name)
    worker.calls.post(lambda: question.ask(worker.link))
    return question.answer(timeout_s)
