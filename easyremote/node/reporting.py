"""What the agent says of this machine and of itself: to the gateway, and to its own workers.

Theory. One task takes a sample a second; what is news goes to the gateway at once. The same sample
and the books of the calls (`ledger`) are what a worker is told that asks for metrics.

Rules of this file. 1) Nothing here touches a call on its way: a call is booked when it is gone.
2) No sample, no telemetry: old numbers are never said again as new ones.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

import trio

from .. import values
from ..handlers import StreamHandler
from ..wire.errors import ErrorCode
from ..wire.message import Failure, Kind, Query, Reply, decode
from . import outcome as outcomes
from . import telemetry
from .asking import METRICS_QUERY
from .ledger import Ledger

if TYPE_CHECKING:
    from ..stream import Stream
    from .agent_calls import DispatchedCall
    from .agent_session import GatewaySession


class Reporter:
    """The reports of one node.

    Attributes:
        ledger: Its books.
    """

    def __init__(self, state: Callable[[], dict[str, Any]]) -> None:
        """Begin the books; inside a trio run.

        Args:
            state: Returns what of a sample the agent knows: calls and replicas.
        """
        self.ledger = Ledger(trio.current_time())
        self._state = state
        self._delta = telemetry.Delta(trio.current_time)
        self._sample: dict[str, Any] = {}

    async def run(
        self, session: GatewaySession, roots: list[int], gpus: Collection[int] | None
    ) -> None:
        """Sample this machine as long as the node lives.

        Args:
            session: Who listens.
            roots: The processes that the node began with.
            gpus: Indexes of the GPUs that its owner lets it use, None for all.
        """
        sampling = telemetry.Sampling(roots)
        while True:
            self._sample = sample = await sampling.take()
            if gpus is not None and "gpus" in sample:
                sample["gpus"] = [one for one in sample["gpus"] if one["index"] in gpus]
            now = trio.current_time()
            self.ledger.moved(session.transferred_bytes(), now)
            if self._sample:
                self.ledger.sampled(self._sample, now)
            self._report(session)
            await trio.sleep(telemetry.SAMPLE_EVERY_S)

    def _report(self, session: GatewaySession) -> None:
        if self._sample and session.registered:
            session.report(self._delta.of({**self._sample, **self._state()}))

    def free_bytes(self) -> dict[int, int]:
        """Return the memory that was free on each GPU when it was last looked at."""
        gpus = self._sample.get("gpus", ())
        return {one["index"]: one["memory_free_bytes"] for one in gpus}

    def registered(self, session: GatewaySession | None) -> None:
        """The gateway has taken the node, and knows nothing yet of how busy it is."""
        self.ledger.connected(trio.current_time())
        self._delta.restart()
        if session is not None:
            self._report(session)

    def lost(self) -> None:
        """The link to the gateway is gone."""
        self.ledger.lost(trio.current_time())

    def gone(self, call: DispatchedCall, timeout_s: float | None) -> None:
        """A call is gone: book it, if its body ran to an end of its own."""
        if call.succeeded is None:
            return
        response_s = trio.current_time() - call.arrived_at
        body_s = response_s if call.body_s is None else call.body_s
        self.ledger.finished(
            call.function, succeeded=call.succeeded, body_s=body_s, response_s=response_s,
            timeout_s=timeout_s,
        )  # fmt: skip

    def answer(self, stream: Stream, kind: int, payload: bytes) -> StreamHandler:
        """A worker opened a stream that is no call: it may ask for the metrics of its node."""
        if kind == Kind.QUERY and decode(Query, payload).name == METRICS_QUERY:
            plain = {**self.ledger.to_plain(trio.current_time()), **self._state()}
            packed = outcomes.pack(values.encode(plain, allow_pickle=False))
            stream.send(Reply(packed.body, packed.segments), packed.buffers, end=True)
        else:
            failure = Failure(
                int(ErrorCode.FORBIDDEN),
                "questions to the gateway are not answered on the link of a worker; inside a "
                "function, use a client of your own: easyremote.Client(...)",
                False, None, {},
            )  # fmt: skip
            stream.send(failure, end=True)
        stream.release()
        return StreamHandler()
