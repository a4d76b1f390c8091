"""Calls that outlive their gateway, and what is remembered of all calls, so that none runs twice.

Theory. A gateway that is restarted has forgotten every call, but the work goes on here. Each call
that was given whole waits for the gateway to come back, holding what it has to say within the
window of its stream; so a result that is ready is not lost. A node that comes back says which
calls it has, each with the grant by which it was given; what the gateway has settled meanwhile, it
has stopped here. To a gateway that was started anew it also says which ones it has had: a call of
these must not be given to anybody again.

An outcome that was written to a link that died a moment later may have reached nobody. So the last
ones are kept for a moment, and when the link is lost, for as long as an orphan: the gateway that
comes back may fetch them by their ids. Outcomes of calls that came back to their gateway are kept
so long in any case, for their callers may need longer to come back than the next loss.

Rules of this file. 1) Agent thread only. 2) A call waits for a bounded time, unless it is detached
and still running.

Source. decisions.md 9, 15; promises.md `ORPHAN_TTL`, `RESULT_TTL`.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakSet

import trio

from ..handlers import StreamHandler
from ..log import Log
from ..wire.errors import ErrorCode
from ..wire.message import (
    FLAG_DETACHED,
    FLAG_IDEMPOTENT,
    FLAG_STREAM,
    Dispatch,
    Failure,
)
from .agent_record import Record, copies

if TYPE_CHECKING:
    from ..flow import Held
    from ..stream import Stream
    from ..timers import Timers
    from .agent_calls import DispatchedCall

_log = Log("node")

ORPHAN_TTL_S = 120.0
"""How long calls go on without a gateway, and results wait for one."""
RESULT_TTL_S = 600.0
"""How long the result of a detached call waits."""
SPENT_S = 240.0
"""How long ids of calls that are over are told to a gateway: callers submit them again for 120 s,
after up to 60 s in which they may have left their outcome untouched, and wait 20 s for us."""
KEEP_S = 2.0
"""An outcome that was written to a link is kept until the gateway is known to have been alive so
much later: longer than one waits in a gateway that is alive."""
KEEP_LARGE_S = 10.0
"""The same for one that went out in pieces: its caller may take them slowly."""
LOOK_S = 6.0
"""Pings that tell whether the gateway is alive leave every five seconds."""
WRITTEN_MAX = 16_384
"""Outcomes that are kept although they were written: those of some seconds of a busy node."""
KEEP_BYTES_MAX = 32 * 1024 * 1024
"""Bytes of outcomes that are kept, and of those that are on their way. A larger one is lost with
the gateway that was passing it on."""
FLAGS_TOLD = FLAG_STREAM | FLAG_DETACHED | FLAG_IDEMPOTENT
DEADLINE_MS_MAX = 1 << 53
"""Callers may say any number; a gateway takes no larger ones from a node."""
GIVEN_MAX = 16_384
"""Calls that are remembered as given, so that none is begun a second time."""


class Kept(NamedTuple):
    """An outcome that was written and may have reached nobody."""

    call_id: bytes
    attempt: int
    grant: bytes
    token: str
    depth: int
    function: str
    entries: list[Held]
    """What is to be said."""
    size_bytes: int

    def to_plain(self) -> dict[str, Any]:
        """Return what is told of it, in the form of a call that is held."""
        told = self._asdict()
        del told["entries"], told["size_bytes"]
        return {**told, "flags": 0, "deadline_ms": None}


class Orphanage:
    """The calls without a gateway, and the ids of all calls.

    Attributes:
        ttl_s: How long a call waits for a gateway.
    """

    def __init__(
        self, timers: Timers, ttl_s: float = ORPHAN_TTL_S,
        heard_at: Callable[[], float] = trio.current_time,
    ) -> None:  # fmt: skip
        """Begin.

        Args:
            timers: Those of the agent.
            ttl_s: How long a call waits for a gateway.
            heard_at: Says when the gateway was last known to be alive.
        """
        self._timers = timers
        self.ttl_s = ttl_s
        self._heard_at = heard_at
        self._orphans: dict[bytes, DispatchedCall] = {}
        self._until: dict[bytes, float] = {}
        self._given: OrderedDict[bytes, float] = OrderedDict()
        self._forgot_at = -math.inf
        self._written: deque[tuple[float, Kept]] = deque()
        self._written_bytes = 0
        self._records: WeakSet[Record] = WeakSet()
        self._kept: dict[bytes, Kept] = {}
        self._kept_bytes = 0

    def __contains__(self, call: DispatchedCall) -> bool:
        return self._orphans.get(call.call_id) is call

    def __len__(self) -> int:
        return len(self._orphans)

    # ---- what was given ------------------------------------------------------------------------

    def was_given(self, message: Dispatch) -> bool:
        """Remember a call; True if it came before, whichever attempt that was.

        A gateway that was started anew counts attempts from one again, so they say nothing here.
        """
        if message.call_id in self._given:
            return True
        self._remember(message.call_id)
        return False

    def over(self, call: DispatchedCall) -> None:
        """A call has its outcome: from now on it is remembered for as long as anybody may ask.

        One that was given back unstarted is forgotten: it may be given to us again.
        """
        if call.given_back:
            self._given.pop(call.call_id, None)
        else:
            self._remember(call.call_id)

    def _remember(self, call_id: bytes) -> None:
        self._given.pop(call_id, None)
        self._given[call_id] = trio.current_time()
        if len(self._given) > GIVEN_MAX:
            self._forgot_at = self._given.popitem(last=False)[1]

    # ---- orphans -------------------------------------------------------------------------------

    def take(self, call: DispatchedCall) -> None:
        """The gateway of a call is gone."""
        self._orphans[call.call_id] = call
        self._watch(call, self.ttl_s)

    def _watch(self, call: DispatchedCall, after_s: float) -> None:
        until = self._until[call.call_id] = trio.current_time() + after_s
        ended = call.down_ended

        def too_late() -> None:
            # A call that was attached and lost again has another time.
            if call not in self or self._until.get(call.call_id) != until:
                return
            if call.flags & FLAG_DETACHED and not ended:
                self._watch(call, RESULT_TTL_S)
                return
            _log.warning(
                "call given up, no gateway came for it", call_id=call.call_id.hex(),
                function=call.function,
            )  # fmt: skip
            self._drop(call)

        self._timers.at(until, too_late)

    def _drop(self, call: DispatchedCall) -> None:
        del self._orphans[call.call_id]
        self._until.pop(call.call_id, None)
        call.forsake()

    def attach(self, stream: Stream, message: Dispatch) -> StreamHandler:
        """Let a gateway that came back have a call, or its outcome, or say that it is not here."""
        call = self._orphans.get(message.call_id)
        if call is not None and call.attempt == message.attempt:
            del self._orphans[message.call_id]
            self._until.pop(message.call_id, None)
            call.reattach(stream)
            return call
        kept = self._take_kept(message.call_id)
        if kept is not None:
            self._keep([kept], trio.current_time())
            for entry in copies(kept.entries):
                if len(entry) == 4:
                    stream.forward(*entry)
                else:
                    stream.forward_data(*entry)
        else:
            reason = f"the call of {message.function} is no longer on this node"
            stream.send(Failure(int(ErrorCode.GATEWAY_LOST), reason, True, None, {}), end=True)
        stream.release()
        return StreamHandler()

    # ---- outcomes that may have reached nobody -------------------------------------------------

    def written(self, call: DispatchedCall, kind: int, payload: bytes) -> None:
        """An outcome goes out on the link."""
        self._note(call, [(kind, payload, False, True)], len(payload), KEEP_S)

    def record(self, size_bytes: int, opening: Held) -> Record | None:
        """Return what keeps a large result while it passes; None if there is no room for it."""
        if sum(one.size_bytes for one in self._records) + size_bytes > KEEP_BYTES_MAX:
            return None
        record = Record(size_bytes, opening)
        self._records.add(record)
        return record

    def written_large(self, call: DispatchedCall, record: Record) -> None:
        """The last piece of a large result has gone out on the link."""
        self._note(call, record.entries, record.size_bytes, KEEP_LARGE_S)
        self._timers.at(trio.current_time() + KEEP_LARGE_S + LOOK_S, self._forget_written)

    def _note(
        self, call: DispatchedCall, entries: list[Held], size_bytes: int, keep_s: float
    ) -> None:
        context = call.context
        kept = Kept(
            call.call_id, call.attempt, call.grant, context.get("token", ""),
            context.get("depth", 0), call.function, entries, size_bytes,
        )  # fmt: skip
        now = trio.current_time()
        if call.attached and self._kept_bytes + size_bytes <= KEEP_BYTES_MAX:
            self._keep([kept], now)  # Its caller may need longer to come back than the next loss.
            return
        self._written.append((now + keep_s, kept))
        self._written_bytes += size_bytes
        self._forget_written()

    def _forget_written(self) -> None:
        """What was written long enough before the gateway was heard has arrived."""
        written, heard_at = self._written, self._heard_at()
        while written and (
            written[0][0] < heard_at
            or self._written_bytes > KEEP_BYTES_MAX
            or len(written) > WRITTEN_MAX
        ):
            self._written_bytes -= written.popleft()[1].size_bytes

    def link_lost(self) -> None:
        """What was written last may have reached nobody."""
        now, heard_at = trio.current_time(), self._heard_at()
        kept = [one for until, one in self._written if until >= heard_at]
        self._written.clear()
        self._written_bytes = 0
        if kept:
            self._keep(kept, now)

    def _keep(self, kept: list[Kept], now: float) -> None:
        for one in kept:
            self._take_kept(one.call_id)
            self._kept_bytes += one.size_bytes
            self._kept[one.call_id] = one

        def forget() -> None:
            for one in kept:
                if self._kept.get(one.call_id) is one:
                    self._take_kept(one.call_id)

        self._timers.at(now + self.ttl_s, forget)

    def _take_kept(self, call_id: bytes) -> Kept | None:
        found = self._kept.pop(call_id, None)
        if found is not None:
            self._kept_bytes -= found.size_bytes
        return found

    def to_plain(self, *, restarted: bool) -> dict[str, Any]:
        """Return what is told to a gateway that takes us in again.

        Args:
            restarted: It was started anew, and has forgotten what it gave.
        """
        held = [_listed(call) for call in self._orphans.values()]
        told: dict[str, Any] = {}
        if self._kept:
            told["kept"] = [one.to_plain() for one in self._kept.values()]
        if held:
            told["held"] = held
        if not restarted:
            return told
        since = trio.current_time() - SPENT_S
        spent = b"".join(
            call_id
            for call_id, at in self._given.items()
            if at >= since and call_id not in self._orphans
        )
        if self._forgot_at >= since:
            told["forgot"] = True  # So what it does not name may have run here all the same.
        return {**told, "spent": spent}


def _listed(call: DispatchedCall) -> dict[str, Any]:
    context, left_ms = call.context, call.deadline_ms
    return {
        "call_id": call.call_id,
        "attempt": call.attempt,
        "grant": call.grant,
        "token": context.get("token", ""),
        "depth": context.get("depth", 0),
        "function": call.function,
        "flags": call.flags & FLAGS_TOLD,
        "deadline_ms": None if left_ms is None else min(left_ms, DEADLINE_MS_MAX),
        **({"gpus": list(call.devices)} if call.devices else {}),
    }
