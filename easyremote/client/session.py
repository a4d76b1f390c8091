"""Calls and questions on a link: what is held back, what is open, what goes again after a loss.

Theory. Callers are threads and tasks without number; the link belongs to one io thread. A caller
encodes its call, puts it into a deque, and wakes the io thread unless somebody has done so already.
There calls are opened as the gateway's stream credit allows; the rest waits here, in order.
When the link is lost, calls that the gateway has not accepted wait for the next link; if none
comes in time they fail, and say honestly whether they may have run.

The same session makes nested calls inside a worker: there the node has injected the link, the calls
carry the ticket of the running call, and end before its deadline does.

Rules of this file. 1) `submit` and `ask` may be called from any thread; what is marked so belongs
to the io thread. 2) No task, lock or wake per call. 3) A session is over when it is closed; every
future that it gave out is settled then.

Source. performance.md, "Client bridge"; decisions.md 7, 9, 15; api.md, "Facts", 9.
"""

from __future__ import annotations

import os
import random
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import trio

from .. import seam, values
from ..errors import (
    EasyRemoteError,
    GatewayUnreachableError,
    NotConnectedError,
    TaskCancelledError,
)
from ..handlers import StreamHandler
from ..timers import Timer, Timers
from ..wire.message import CODEC_PLAIN, FLAG_ATTACH, FLAG_STREAM, Call
from . import again
from .bodies import pack
from .call import OutgoingCall
from .feed import Feeds, is_streamed
from .future import Future, fail_in_child
from .ids import new_id
from .offload import offload
from .query import OutgoingQuery
from .retry import Throttle
from .tally import Tally
from .trust import Trust, TrustNodes

if TYPE_CHECKING:
    from ..link import Link
    from .options import Route

PATIENCE_S = 30.0
"""A link that was lost has this long to come back before calls that were never sent fail: twice
the lease, after which the other side has certainly noticed, too."""
SPARE = 4
"""One stream in so many is left to questions: one about a call that waits must not wait with it. A
gateway grants more streams when that part of them has come back."""
CANCELS_MAX = 4096
"""Calls that were cancelled while there was no link, and must be stopped when there is one."""

STRAIGHT = frozenset({int, float, str, bytes, bool, list, dict, tuple, type(None)})
"""Types of arguments that are certainly no iterators."""


class Exchange(Protocol):
    """What waits for a link, and is told about its loss: a call or a query."""

    future: Future[Any] | None

    @property
    def can_go_again(self) -> bool:
        """Whether it may be submitted again after a loss."""
        ...

    def open_on(self, link: Link) -> None:
        """Write it to a link that has room for a stream."""

    def arm(self) -> None:
        """Watch its deadline from now on."""

    def fail(self, error: EasyRemoteError) -> None:
        """End it with an error of ours."""

    def lose(self, error: EasyRemoteError) -> None:
        """End it: the link is gone."""


class Session:
    """Calls on one link, and on those that replace it.

    Attributes:
        link: The seam to the io thread.
        user: Whose calls these are, as the gateway says; None until it does, and in a worker.
        role: The role of that user, None as well.
        incarnation: Number of the start of the gateway that took us in last; 0 if it says none.
        throttle: Stops repeating calls while most of them fail.
        rng: Chance for the pauses between attempts.
        timers: Deadlines (io thread).
        trust: Whose pickles are opened.
        tally: What is counted of the calls.
        object_bytes_max: The largest value that is taken.
        unsettled: What has no outcome yet.
    """

    def __init__(
        self, link: seam.CallLink, *, trust_nodes: TrustNodes = "owner", injected: bool = False
    ) -> None:
        self.link = link
        self.user: str | None = None
        self.role: str | None = None
        self.incarnation = 0
        self.throttle = Throttle()
        self.rng = random.Random()
        self.timers = Timers(trio.current_time, start=trio.lowlevel.spawn_system_task)
        self.object_bytes_max = values.object_bytes_max()
        self.unsettled: set[Exchange] = set()
        self.trust = Trust(self, trust_nodes)
        self.tally = Tally()
        self._injected = injected
        self._fresh: deque[Exchange] = deque()
        self._held: deque[Exchange] = deque()
        self._again: list[Exchange] = []
        self._posted = False
        self._up: Link | None = None
        self._gone: EasyRemoteError | None = None
        self._patience: list[Timer] = []
        self._to_cancel: deque[tuple[bytes, tuple[int, int]]] = deque(maxlen=CANCELS_MAX)
        self._closed = ""
        self._when_idle: Callable[[], object] | None = None
        self._quiet: threading.Event | None = None
        _sessions.add(self)

    def start(self) -> None:
        """Take the link, as soon as there is one."""
        self.link.post(lambda: self.link.listen(self))

    # ---- making calls (any thread) -------------------------------------------------------------

    def submit(self, route: Route, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Future[Any]:
        """Make a call and return its future at once.

        Raises:
            SerializationError: An argument cannot travel.
        """
        call = self.prepare(OutgoingCall, route, args, kwargs)
        future: Future[Any] = Future(call)
        call.future = future
        self.send(call)
        return future

    def prepare(
        self, cls: type[OutgoingCall], route: Route, args: tuple[Any, ...], kwargs: dict[str, Any],
        flags: int = 0,
    ) -> Any:  # fmt: skip
        """Encode a call; it goes out with `send` once somebody holds its future."""
        feeds: Feeds | None = None
        for value in args:
            if type(value) not in STRAIGHT and is_streamed(value):
                feeds = Feeds()
                break
        else:
            if kwargs and any(is_streamed(value) for value in kwargs.values()):
                feeds = Feeds()
        if feeds is not None:
            args, kwargs = feeds.take_from(args, kwargs)
        encoded = values.encode_call(args, kwargs, allow_pickle=self.may_ship)
        codec, body, segments, buffers = pack(encoded)
        message = Call(
            new_id(), route.function, route.node_ids, route.options, None, codec,
            route.flags | flags, seam.current_ticket.get() if self._injected else b"", body,
            segments,
        )  # fmt: skip
        self.tally.made(
            route, streams=bool(flags & FLAG_STREAM), feeds=feeds is not None, large=bool(segments)
        )
        call = cls(self, message, buffers, self._deadline(route.timeout_s))
        call.retry = route.retry
        if feeds is not None:
            call.feeds = feeds
            feeds.attach(call, self.may_ship)
        return call

    @property
    def may_ship(self) -> bool:
        """Whether our role may send pickles; a worker's calls are checked by the gateway."""
        return self.role not in {"guest", "viewer"}

    def _deadline(self, timeout_s: float | None) -> float | None:
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        if self._injected:
            parent = seam.current_deadline.get()
            if parent is not None and (deadline is None or parent < deadline):
                return parent
        return deadline

    def send(self, exchange: Exchange) -> None:
        """Let a call or query go as soon as there is room for it.

        Raises:
            NotConnectedError: The session is closed.
        """
        if self._closed:
            raise NotConnectedError(self._closed)
        self.unsettled.add(exchange)
        self._fresh.append(exchange)
        if not self._posted:
            self._posted = True
            self.link.post(self._pump)
        if self._closed:  # Closed meanwhile: nobody else would settle it.
            self._fail_closed(exchange)

    def attach(self, call_id: bytes) -> Future[Any]:
        """Return a future of a call that was made before, perhaps by another process."""
        message = Call(call_id, "", None, {}, None, CODEC_PLAIN, FLAG_ATTACH, b"", b"", [])
        call = OutgoingCall(self, message, [], None)
        call.attached = True
        self.tally.used.add("reattach")
        call.function = f"call {call_id.hex()}"
        future: Future[Any] = Future(call)
        call.future = future
        self.send(call)
        return future

    def ask(self, name: str, args: dict[str, Any]) -> Future[Any]:
        """Ask the gateway something by name; a future of its plain answer."""
        if self._injected:
            raise NotConnectedError(
                "a function that runs on a node makes calls, but asks the gateway nothing else; "
                "do that in a client of your own: easyremote.connect(...)"
            )
        query = OutgoingQuery(self, name, args)
        self.send(query)
        return query.answer

    def ask_blocking(self, name: str, args: dict[str, Any], timeout_s: float) -> Any:
        """Ask and wait for the answer, in an event loop, too: it is one round trip.

        Raises:
            EasyRemoteError: The gateway refuses, or there is none.
        """
        if self.link.on_io_thread():
            raise EasyRemoteError("this thread brings all answers, so it cannot wait for one")
        answer = self.ask(name, args)
        if not answer.done() and not answer._block_until(timeout_s):
            raise GatewayUnreachableError(
                f"the gateway did not answer {name} within {timeout_s:g} s; try again"
            )
        return answer.result()

    def ask_if_up(self, name: str, args: dict[str, Any]) -> Future[Any] | None:
        """Ask, if there is a link to ask on now; None if not."""
        if self._injected or self._closed or self._up is None:
            return None
        return self.ask(name, args)

    # ---- the io thread -------------------------------------------------------------------------

    def query_on_io(self, name: str, args: dict[str, Any], then: Callable[[Any], object]) -> None:
        """Ask from the io thread; `then` gets the answer there, None if there is none."""
        query = OutgoingQuery(self, name, args, then)
        self.send(query)

    def _pump(self) -> None:
        """Open what may be opened."""
        self._posted = False
        fresh, held, link = self._fresh, self._held, self._up
        while fresh:
            exchange = fresh.popleft()
            exchange.arm()
            (held.appendleft if isinstance(exchange, OutgoingQuery) else held.append)(exchange)
        if link is None:
            if self._gone is not None:
                self._lose_held(self._gone)
            return
        room = link.streams_available
        spare = (room + link.streams_open) // SPARE
        while held and room > 0 and (room > spare or isinstance(held[0], OutgoingQuery)):
            exchange = held.popleft()
            if exchange.future is not None:
                exchange.open_on(link)
                room -= 1

    def link_up(self, link: Link) -> None:
        """Calls may be opened."""
        self._up, self._gone = link, None
        self._be_patient_no_more()
        while self._to_cancel and link.streams_available > 0:
            call_id, how = self._to_cancel.popleft()
            message = Call(call_id, "", None, {}, None, CODEC_PLAIN, FLAG_ATTACH, b"", b"", [])
            link.open(message, handler=StreamHandler(), end=True).cancel(*how)
        self._pump()

    def _be_patient_no_more(self) -> None:
        for timer in self._patience:
            self.timers.cancel(timer)
        self._patience.clear()

    def link_credit(self) -> None:
        """The gateway allows more streams."""
        self._pump()

    def link_down(self, error: BaseException | None) -> None:
        """The link is gone; what has not been accepted waits for the next one, for a while."""
        self._up = None
        self._held.extendleft(reversed(self._again))
        self._again.clear()
        known = error if isinstance(error, EasyRemoteError) else None
        why = known or GatewayUnreachableError("the gateway said goodbye")
        if self._closed or self._injected:
            self._give_up(why)
        elif not self._patience and self._gone is None:
            after = self.timers.after
            self._patience = [
                after(PATIENCE_S, lambda: self._lose_unsent(why)),
                after(again.SENT_PATIENCE_S, lambda: self._give_up(why)),
            ]

    def link_refused(self, error: EasyRemoteError) -> None:
        """There will be no link, for now or for ever: whatever waits for one fails."""
        self._give_up(error)

    def _give_up(self, error: EasyRemoteError) -> None:
        self._be_patient_no_more()
        self._gone = error
        self._pump()

    def _lose_unsent(self, error: EasyRemoteError) -> None:
        """Calls that were never sent have waited long enough; new ones do not wait at all."""
        waiting, self._held = self._held, deque()
        for exchange in waiting:
            if getattr(exchange, "sent", False):
                self._held.append(exchange)
            else:
                exchange.lose(error)

    def _lose_held(self, error: EasyRemoteError) -> None:
        held, self._held = self._held, deque()
        for exchange in held:
            exchange.lose(error)

    def lost(self, exchange: Exchange, error: EasyRemoteError) -> None:
        """The link under an open call or query is gone."""
        if exchange.can_go_again and not self._closed and not self._injected:
            self._again.append(exchange)
        else:
            exchange.lose(error)

    def hold(self, exchange: Exchange) -> None:
        """Let a call go once more as soon as there is room for it (io thread)."""
        self._held.append(exchange)
        self._pump()

    def cancel_later(self, call_id: bytes, how: tuple[int, int]) -> None:
        """Stop a call on the next link: its caller does not wait for that."""
        self._to_cancel.append((call_id, how))

    def drop_timer(self, timer: Timer) -> None:
        """Cancel a timer; from any thread."""
        if self.link.on_io_thread():
            self.timers.cancel(timer)
        else:
            self.link.post(lambda: self.timers.cancel(timer))

    # ---- the end -------------------------------------------------------------------------------

    @property
    def closed(self) -> bool:
        """Whether it takes no calls any more."""
        return bool(self._closed)

    def settled(self, exchange: Exchange) -> None:
        """A call or query has its outcome; from any thread."""
        self.unsettled.discard(exchange)
        if self._when_idle is not None:
            self._check_idle()
        self.noted()

    def noted(self) -> None:
        """A call was accepted or settled: whoever waits for that looks again."""
        if self._quiet is not None:
            self._quiet.set()

    def wait_accepted(self, timeout_s: float) -> bool:
        """Block until the gateway is responsible for every call; False if that took too long."""
        until = time.monotonic() + timeout_s
        while True:
            self._quiet = threading.Event()
            if all(getattr(exchange, "accepted", True) for exchange in list(self.unsettled)):
                return True
            if not self._quiet.wait(max(0.0, until - time.monotonic())):
                return False

    def close(self, reason: str) -> None:
        """Settle everything that has no outcome; from any thread."""
        if self._closed:
            return
        self._closed = reason
        for exchange in list(self.unsettled):
            self._fail_closed(exchange)

    def _fail_closed(self, exchange: Exchange) -> None:
        error = TaskCancelledError(self._closed)
        error.may_have_run = any(getattr(exchange, what, False) for what in ("sent", "tried"))
        future = exchange.future
        exchange.fail(error)
        if future is not None:
            future._seen()  # Whoever closes a client with calls under way wants no word about them.

    def when_idle(self, then: Callable[[], object]) -> None:
        """Call `then` once when nothing is without an outcome, at once if nothing is."""
        self._when_idle = then
        self._check_idle()

    def _check_idle(self) -> None:
        if self._when_idle is not None and not self.unsettled:
            then, self._when_idle = self._when_idle, None
            offload.run(then)

    def forget_in_child(self) -> None:
        """In a forked child there is no io thread: fail what waits, touch nothing else."""
        error = GatewayUnreachableError(
            "this process was forked while the call was under way; its outcome goes to the parent. "
            "Make calls of your own here: the first one connects anew"
        )
        error.may_have_run = True
        self._closed = str(error)
        for exchange in list(self.unsettled):
            future, exchange.future = exchange.future, None
            if future is not None:
                fail_in_child(future, error)
        self.unsettled.clear()


_sessions: weakref.WeakSet[Session] = weakref.WeakSet()
"""For forked children alone: what must be told there."""


def _in_child() -> None:
    for session in list(_sessions):
        session.forget_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
