"""Calls that wait for a place, in the order in which users deserve one.

Theory. Each user with calls waiting has a *lane*. The next call comes from the lane whose user has
used least, relative to his weight (`shares.py`); equal users take turns, the one served longest
ago first. So ten thousand calls of Alice are one lane, and a call of Bob's waits for one turn and
not for ten thousand. Inside a lane, higher priorities go first, then earlier arrivals: a priority
moves a call past the same user's other calls and never past anybody else's.

Fairness by usage alone can make somebody wait long: a user who used much, beside one who comes
back after a day. Therefore a lane that got nothing for `patience_s()` gets one call whatever its
user used. The patience is far beyond the turn that a lane gets anyway, so it changes nothing in an
ordinary crowd, and nobody waits for ever.

Lanes are in a heap by their users' keys. A key grows when its user is charged, which the heap
learns when that lane comes to its top; a key that shrinks is put in again at once. Lanes are also
in a list by their last turn, which is where patience looks. So `add`, `head`, `leave` and `served`
cost O(log users), and nothing at all depends on how many calls one user has.

The last lane stays when it is empty: one user's calls come and go without any of the above.

Rules of this file. 1) Pure: `now` is an argument. 2) A queue writes one attribute of a call:
`level`, None unless it waits. 3) A call that is put back keeps its place by its `sequence`.

Source. Start-time fair queueing sorts flows by what they were given (Goyal et al., SIGCOMM 1996,
section 2); deficit round robin is its O(1) relative (Shreedhar and Varghese, 1995).
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Sequence
from heapq import heapify, heappop, heappush, heapreplace, merge
from itertools import chain, islice
from operator import attrgetter
from typing import Any, Generic, Protocol, TypeVar

from .shares import Share, Shares, bounded

PATIENCE_S = 60.0
"""A lane that got nothing for so long gets a call, whatever its user used."""

PATIENCE_CALLS = 16
"""But not before each lane could have had this many calls, were there one slot."""

COST_S = 0.1
"""What a call is taken to cost before any was served."""

COST_WEIGHT = 0.125
"""Weight of a new cost in the mean."""

NEAR = 256
"""Positions up to this one are exact; farther ones are looked up in a list of some age."""

LIST_AGE_S = 1.0
LIST_AGE_CALL_S = 1e-4
"""How old that list may be: the longer, the dearer it is to make."""

_REBUILD_FROM = 64


class Waiting(Protocol):
    """What a queue must know of a call."""

    @property
    def share(self) -> Share:
        """Whose call it is."""
        ...

    @property
    def priority(self) -> int:
        """The higher, the earlier among the same user's calls."""
        ...

    @property
    def sequence(self) -> int:
        """A number that grows with arrivals; no two calls in a queue have the same."""
        ...

    level: Level[Any] | None
    """Where it waits; the queue's business, None when it waits nowhere."""


C = TypeVar("C", bound=Waiting)
_sequence = attrgetter("sequence")


class Level(Generic[C]):
    """A user's waiting calls of one priority, in order of arrival.

    Attributes:
        calls: Those that came in order, by sequence.
        early: Those that were put back when later ones waited already, sorted.
        last: The highest sequence that `calls` ever had.
    """

    __slots__ = ("calls", "early", "lane", "last", "priority")

    def __init__(self, lane: Lane[C], priority: int) -> None:
        self.lane = lane
        self.priority = priority
        self.calls: OrderedDict[int, C] = OrderedDict()
        self.early: list[C] = []
        self.last = -1

    def head(self) -> C:
        """Return the earliest call."""
        early = self.early
        if not early:
            return next(iter(self.calls.values()))
        if self.calls and (first := next(iter(self.calls.values()))).sequence < early[0].sequence:
            return first
        return early[0]

    def __iter__(self) -> Iterator[C]:
        """Iterate over the calls, earliest first."""
        if self.early:
            return merge(self.early, self.calls.values(), key=_sequence)
        return iter(self.calls.values())


class Lane(Generic[C]):
    """One user's waiting calls.

    Attributes:
        waiting: How many.
        turn: Grows with each turn that any lane of the queue gets.
        since: When this lane got its last call, or its first call came.
        levels: By falling priority; none is empty unless the lane is.
        entry: What stands for the lane in the queue's heap.
    """

    __slots__ = ("entry", "levels", "queue", "share", "since", "turn", "waiting")

    def __init__(self, queue: PendingQueue[C], share: Share, priority: int) -> None:
        self.queue = queue
        self.share = share
        self.waiting = 0
        self.turn = 0
        self.since = 0.0
        self.levels: list[Level[C]] = [Level(self, priority)]
        self.entry: Entry[C] | None = None

    def level(self, priority: int) -> Level[C]:
        """Return the level of a priority, made if need be."""
        levels = self.levels
        if not self.waiting:
            levels[0].priority = priority
            return levels[0]
        index = bisect_left(levels, -priority, key=_falling)
        if index == len(levels) or levels[index].priority != priority:
            levels.insert(index, Level(self, priority))
        return levels[index]

    def rekey(self) -> None:
        """The user's key is smaller than it was."""
        self.queue.rekey(self)

    def __iter__(self) -> Iterator[C]:
        """Iterate over the calls in their order."""
        return chain.from_iterable(self.levels)


Entry = tuple[float, int, Lane[C]]
"""A lane's key and turn when it was put into the heap. No two lanes have the same turn."""


def _falling(level: Level[Any]) -> int:
    return -level.priority


class PendingQueue(Generic[C]):
    """The calls that wait for one pool of places.

    Attributes:
        waiting: How many calls wait.
        limit: How many may; kept by whoever adds, for a call that is put back always has a place.
        cost_s: Mean cost of the calls that were served.
    """

    __slots__ = (
        "_heap", "_lanes", "_list", "_list_at", "_list_served", "_only", "_served", "_turn",
        "cost_s", "limit", "shares", "waiting",
    )  # fmt: skip

    def __init__(self, shares: Shares, limit: int) -> None:
        self.shares = shares
        self.limit = limit
        self.waiting = 0
        self.cost_s: float | None = None
        self._lanes: OrderedDict[Share, Lane[C]] = OrderedDict()
        self._heap: list[Entry[C]] = []
        self._only: Lane[C] | None = None
        self._turn = self._served = 0
        self._list: dict[int, int] = {}
        self._list_at = float("-inf")
        self._list_served = 0

    @property
    def is_full(self) -> bool:
        """Whether no new call should be added."""
        return self.waiting >= self.limit

    @property
    def users(self) -> int:
        """How many users have calls waiting."""
        return len(self._lanes) if self.waiting else 0

    def waiting_of(self, share: Share) -> int:
        """Return how many calls of one user wait."""
        lane = self._lanes.get(share)
        return 0 if lane is None else lane.waiting

    def add(self, call: C, now: float) -> None:
        """Let a call wait, at its place among its user's calls."""
        assert call.level is None
        lane = self._lanes.get(call.share)
        if lane is None:
            lane = self._open(call, now)
        elif not lane.waiting:
            self._wake(lane, now)
        level = lane.levels[0]
        if level.priority != call.priority:
            level = lane.level(call.priority)
        sequence = call.sequence
        if sequence > level.last:
            level.calls[sequence] = call
            level.last = sequence
        else:
            insort(level.early, call, key=_sequence)
        call.level = level
        lane.waiting += 1
        self.waiting += 1

    def head(self, now: float) -> C | None:
        """Return the call that should be given to a node next, or None."""
        if not self.waiting:
            return None
        lane = self._only
        if lane is None:
            lane = self._next(now)
        return lane.levels[0].head()

    def rank(self, now: float) -> tuple[float, float, int]:
        """Return how urgent the head is: of several queues, the least goes first.

        Users are compared by what they used. Among one user's own queues the higher priority goes
        first, then the earlier arrival. A user who ran out of patience goes before all others.
        """
        assert self.waiting
        lane = self._only
        if lane is None:
            lane = self._next(now)
        level = lane.levels[0]
        head = level.head()
        if now - lane.since >= self.patience_s():
            return float("-inf"), lane.since, head.sequence
        return lane.share.key, -level.priority, head.sequence

    def leave(self, call: C) -> None:
        """A call waits no longer: it was taken, or settled."""
        level: Level[C] | None = call.level
        assert level is not None
        lane = level.lane
        assert lane.queue is self
        call.level = None
        if level.calls.pop(call.sequence, None) is None:
            del level.early[bisect_left(level.early, call.sequence, key=_sequence)]
        self.waiting -= 1
        lane.waiting -= 1
        if not lane.waiting:
            if self._only is None:
                self._close(lane)
        elif not level.calls and not level.early:
            lane.levels.remove(level)

    def served(self, share: Share, cost_s: float, now: float) -> None:
        """A call of this pool was given to a node, from the queue or past it: charge it.

        Args:
            share: Whose call it is.
            cost_s: Slot-seconds that it will use, estimated (`cost_s` of the queue will do).
            now: The time; both go to `Shares.settle` when the call is over.
        """
        self.shares.charge(share, cost_s, now)
        mean = self.cost_s
        self.cost_s = cost_s if mean is None else mean + (cost_s - mean) * COST_WEIGHT
        self._turn += 1
        self._served += 1
        lane = self._lanes.get(share)
        if lane is not None:
            lane.turn = self._turn
            lane.since = now
            self._lanes.move_to_end(share)

    def patience_s(self) -> float:
        """Return how long a lane may get nothing before it gets a call in any case."""
        mean = COST_S if self.cost_s is None else self.cost_s
        return max(PATIENCE_S, PATIENCE_CALLS * mean * len(self._lanes))

    def calls(self, now: float) -> Iterator[C]:
        """Iterate over the waiting calls in the order in which they would be taken.

        That is the order if each costs what the mean says and nobody else comes.
        """
        mean = COST_S if self.cost_s is None else self.cost_s
        charge = bounded(mean) * self.shares.worth(now)
        lanes = [lane for lane in self._lanes.values() if lane.waiting]
        left, used = [lane.waiting for lane in lanes], [lane.share.used for lane in lanes]
        rest = [iter(lane) for lane in lanes]
        turns, turn, users = [lane.turn for lane in lanes], self._turn, len(lanes)
        heap = [(lane.share.key, lane.turn, index) for index, lane in enumerate(lanes)]
        heapify(heap)
        oldest = deque(range(len(lanes)))
        while users:
            while oldest and (not left[oldest[0]] or turns[oldest[0]] != lanes[oldest[0]].turn):
                oldest.popleft()
            patience_s = max(PATIENCE_S, PATIENCE_CALLS * mean * users)
            if users > 1 and oldest and now - lanes[oldest[0]].since >= patience_s:
                index = oldest[0]
            else:
                _, at, index = heap[0]
                if at != turns[index] or not left[index]:
                    heappop(heap)
                    continue
            yield next(rest[index])
            left[index] -= 1
            users -= not left[index]
            turn += 1
            turns[index] = turn
            used[index] += charge
            heappush(heap, (used[index] / lanes[index].share.weight, turn, index))

    def position(self, call: C, now: float) -> int:
        """Return how many calls are ahead of a waiting call, as things are.

        The answer is exact for the first `NEAR` calls. Farther ones are told what a list says that
        may be a little old, so that asking for the positions of all calls stays cheap.
        """
        assert call.level is not None
        served = self._served - self._list_served
        age_s = max(LIST_AGE_S, self.waiting * LIST_AGE_CALL_S)
        fresh = now - self._list_at < age_s
        if not fresh or self._list.get(call.sequence, 0) - served < NEAR:
            for index, other in enumerate(islice(self.calls(now), NEAR)):
                if other is call:
                    return index
        if not fresh:
            self._list = {one.sequence: index for index, one in enumerate(self.calls(now))}
            self._list_at, self._list_served, served = now, self._served, 0
        last = self.waiting - 1
        return min(last, max(NEAR, self._list.get(call.sequence, last + served) - served))

    def rekey(self, lane: Lane[C]) -> None:
        """Sort a lane again; its user's key is smaller than it was."""
        heap = self._heap
        if len(heap) > _REBUILD_FROM + 4 * len(self._lanes):
            heap[:] = [entry for entry in heap if entry[2].entry is entry]
            heapify(heap)
        lane.entry = (lane.share.key, lane.turn, lane)
        heappush(heap, lane.entry)

    def _next(self, now: float) -> Lane[C]:
        """Return the lane that is to get the next call; there are several."""
        oldest = next(iter(self._lanes.values()))
        if now - oldest.since >= self.patience_s():
            return oldest
        heap = self._heap
        while True:
            entry = heap[0]
            lane = entry[2]
            if lane.entry is not entry:
                heappop(heap)
                continue
            key = lane.share.key
            if entry[0] == key and entry[1] == lane.turn:
                return lane
            lane.entry = (key, lane.turn, lane)
            heapreplace(heap, lane.entry)

    def _wake(self, lane: Lane[C], now: float) -> None:
        """The first call of a lane came."""
        self._turn += 1
        lane.turn = self._turn
        lane.since = now

    def _open(self, call: C, now: float) -> Lane[C]:
        lanes = self._lanes
        if self._only is not None and not self._only.waiting:
            self._close(self._only)
        share = call.share
        lane = Lane(self, share, call.priority)
        self._wake(lane, now)
        share.lanes.append(lane)
        lanes[share] = lane
        self._only = None if len(lanes) > 1 else lane
        self.rekey(lane)
        return lane

    def close(self) -> None:
        """The queue is given up; nothing waits in it. No user's share knows of it any more."""
        assert not self.waiting
        for share, lane in self._lanes.items():
            share.lanes.remove(lane)
        self._lanes.clear()
        self._heap.clear()
        self._only = None

    def _close(self, lane: Lane[C]) -> None:
        lanes = self._lanes
        del lanes[lane.share]
        lane.share.lanes.remove(lane)
        lane.entry = None
        if len(lanes) == 1:
            self._only = next(iter(lanes.values()))


def eta_s(ahead: int, slots: int, mean_s: float, running_s: Sequence[float] = ()) -> float:
    """Return in how many seconds a waiting call may expect to start.

    Args:
        ahead: Calls that will be taken before it.
        slots: Calls that can run at once.
        mean_s: Mean seconds of a body.
        running_s: For how long each call that runs now has run; slots beyond them are idle.
    """
    assert slots > 0
    busy = sorted(_left_s(mean_s, ran_s) for ran_s in running_s)[:slots]
    free_in = [0.0] * (slots - len(busy)) + busy
    rounds, index = divmod(ahead, slots)
    return rounds * mean_s + free_in[index]


def _left_s(mean_s: float, ran_s: float) -> float:
    """Return how long a body may still run; one that runs beyond the mean, half as long again."""
    return mean_s - ran_s if ran_s < mean_s else mean_s / 2


def first(queues: Iterable[PendingQueue[C]], now: float) -> PendingQueue[C]:
    """Return the queue, of several that have calls, whose head should go first."""
    return min(queues, key=lambda queue: queue.rank(now))
