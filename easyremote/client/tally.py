"""What a client counts of its own calls, and the metrics that follow from that.

Theory. Each call that ends leaves a short record, and the records are added up now and then, or
when somebody looks: no lock is taken for each call. Which nodes served them, and what they cost,
the gateway knows; it is asked when somebody looks, about the calls that have ended since the last
look, the latest thousand of them. Calls and costs of the same calls are compared, so a ratio of the
two is right even where calls were left out.

Rules of this file. 1) Any thread may count. 2) Whoever looks waits for two round trips at most, and
not at all where nothing may wait; what cannot be asked now is asked with the next look.

Source. features.md 1.7, ClientMetrics.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TypeVar, cast

from ..errors import TaskCancelledError
from ..metrics import CLIENT_FEATURES, ClientMetrics
from ..wire.message import FLAG_DETACHED
from .news import OPEN, ask_briefly

if TYPE_CHECKING:
    from .call import OutgoingCall
    from .options import Route
    from .session import Session

T = TypeVar("T")

FOLD_AT = 256
"""Calls whose records wait to be added up."""
OK, FAILED, CANCELLED = 0, 1, 2
ENDED_MAX = 1000
"""Ended calls that the gateway has not been asked about: as many as one question takes."""

OPTIONS = {
    "capability": "capability", "prefer": "prefer", "num_cpus": "resources",
    "num_gpus": "resources", "gpu_memory": "resources", "memory": "resources",
    "resources": "resources", "priority": "priority", "load_balancing": "load_balancing",
    "scaling": "scaling",
}  # fmt: skip
"""Which feature it is to use an option that travels."""


class Tally:
    """The counts of one session.

    Attributes:
        since: When it began, on `time.monotonic()`.
        used: Features that were used; of `CLIENT_FEATURES`.
        called: Calls that have ended, however.
        again: Attempts beyond the first that they took.
        finished: Calls that ended with a result or an error, not cancelled.
        succeeded: Those with a result.
        seconds: From making to outcome, of finished calls together.
    """

    def __init__(self) -> None:
        self.since = time.monotonic()
        self.used: set[str] = set()
        self.called = self.again = self.finished = self.succeeded = 0
        self.seconds = 0.0
        self._fresh: deque[tuple[bytes, int, float, int]] = deque()
        self._lock = threading.Lock()
        self._looking = threading.Lock()
        self._route: Route | None = None
        self._ended: deque[tuple[bytes, bool]] = deque(maxlen=ENDED_MAX)
        self._unbooked: deque[tuple[bytes, bool]] = deque(maxlen=ENDED_MAX)
        self._types: Counter[str] = Counter()
        self._cost, self._booked = 0.0, 0

    # ---- counting ------------------------------------------------------------------------------

    def made(self, route: Route, *, streams: bool, feeds: bool, large: bool) -> None:
        """Note what a call uses that is about to be made."""
        if streams or feeds or large:
            more = {"streams": streams, "streamed_arguments": feeds, "large_data": large}
            self.used.update(name for name, wanted in more.items() if wanted)
        if route is self._route:
            return
        self._route = route
        wanted = {
            "node_id": route.node_ids is not None,
            "timeout": route.timeout_s is not None,
            "retries": route.retry is not None,
            "detached": bool(route.flags & FLAG_DETACHED),
        }
        self.used.update(name for name, is_used in wanted.items() if is_used)
        self.used.update(OPTIONS[name] for name in route.options if name in OPTIONS)

    def settled(self, call: OutgoingCall, error: BaseException | None) -> None:
        """Count a call that has its outcome."""
        if call.cancelling:
            self.used.add("cancel")
        if call.attached:
            return  # Somebody made it before.
        outcome = OK
        if error is not None:
            outcome = CANCELLED if isinstance(error, TaskCancelledError) else FAILED
        fresh = self._fresh
        fresh.append((call.call_id, outcome, time.monotonic() - call.made_at, call.attempts))
        if len(fresh) >= FOLD_AT:
            self._fold()

    def _fold(self) -> None:
        """Add up the calls that have ended since the last time."""
        with self._lock:
            self._add_up()

    def _add_up(self) -> None:
        for call_id, outcome, seconds, attempts in _take(self._fresh):
            self.called += 1
            self.again += attempts - 1
            if outcome == CANCELLED:
                continue
            self.finished += 1
            self.succeeded += outcome == OK
            self.seconds += seconds
            self._ended.append((call_id, outcome == OK))

    # ---- looking -------------------------------------------------------------------------------

    def metrics(self, session: Session, under_way: Iterable[OutgoingCall]) -> ClientMetrics:
        """Return what follows from the counts; asks the gateway about calls that have ended.

        Args:
            session: Through which it is asked.
            under_way: Calls that had no outcome yet.
        """
        self._fold()
        with self._looking:
            self._ask(session)
            types = sorted(self._types.items(), key=lambda one: (-one[1], one[0]))
            efficiency = self._booked / self._cost if self._cost > 0.0 else None
        with self._lock:
            self._add_up()
            # Those that had no outcome a moment ago, less those that have been added up since.
            mine = [call for call in under_way if call.future is not None and not call.attached]
            called, finished = self.called + len(mine), self.finished
            again = self.again + sum(call.attempts - 1 for call in mine)
            succeeded, seconds = self.succeeded, self.seconds
        used = [name for name in CLIENT_FEATURES if name in self.used]
        return ClientMetrics(
            functions_called=called,
            avg_call_frequency=called / max(time.monotonic() - self.since, 1e-9),
            preferred_node_types=[name for name, _ in types],
            avg_response_time=seconds / finished if finished else 0.0,
            success_rate=succeeded / finished if finished else 1.0,
            cost_efficiency=cast("float", efficiency),  # None if nothing was to be paid.
            retry_rate=again / called if called else 0.0,
            feature_adoption=len(used) / len(CLIENT_FEATURES),
            features_used=used,
        )

    def _ask(self, session: Session) -> None:
        """Ask where the calls that have ended ran, and what they cost."""
        ended = _take(self._ended)
        if ended:
            served = ask_briefly(session, "served", {"call_ids": [one for one, _ in ended]})
            if isinstance(served, list):
                for node in served:
                    self._types.update(dict.fromkeys(node["specialization"], node["calls"]))
                self._unbooked.extend(ended)
            else:
                self._ended.extendleft(reversed(ended))
        unbooked = _take(self._unbooked)
        if unbooked:
            rows = ask_briefly(session, "usage", {"call_ids": [one for one, _ in unbooked]})
            self._book(unbooked, rows)

    def _book(self, calls: list[tuple[bytes, bool]], rows: Any) -> None:
        if not isinstance(rows, list):
            self._unbooked.extendleft(reversed(calls))
            return
        records = {row["call_id"]: row for row in rows}
        for call_id, succeeded in calls:
            record = records.get(call_id, {})
            if record.get("outcome") == OPEN:
                self._unbooked.append((call_id, succeeded))
                continue
            self._cost += record.get("cost") or 0.0
            self._booked += succeeded


def _take(calls: deque[T]) -> list[T]:
    """Take all that is there; other threads may append meanwhile."""
    return [calls.popleft() for _ in range(len(calls))]
