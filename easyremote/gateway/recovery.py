"""After a restart: which calls of earlier starts are still alive, and what may be said of the rest.

Theory. A gateway that was started anew knows no call. Its nodes do: each one that comes back lists
the calls that it still has, and those that it has had. Its clients do, too: they submit again what
has no outcome, and say to which incarnation it was first sent. Between the two lies the danger:
a call that is submitted again before its node came back looks like a new one, and running it
would run it twice. So it waits until everybody who could have it has spoken.

    submitted again --> a node lists it, or has kept its outcome ----> attached, as if nothing were
                   |--> a node has had it, or somebody did not speak --> GATEWAY_LOST, may have run
                   +--> everybody has spoken and nobody knows it -----> placed as a new call

What the gateway has not heard in time it will never know, so the answer to all calls of that past
is the second one, also after the next restart (`boots.LOST_BEFORE`).

Rules of this file. 1) Pure; time is an argument. 2) In doubt a call is lost and may have run.
3) Memory is bounded: what does not fit is doubt.

Source. decisions.md 9; promises.md P2, P3, P7.
"""

from __future__ import annotations

from enum import Enum
from typing import Any, NamedTuple

from .boots import Boots
from .offer import BadOffer
from .sample import GPUS_MAX

RETURN_S = 20.0
"""Time that nodes have to come back: two of the longest pauses between attempts to connect."""
ASKED_S = 150.0
"""How long calls of earlier starts may be submitted again; clients give up after 120 s."""
SPENT_MAX = 1_000_000
"""Ids of calls that nodes have had, over all nodes."""
HELD_MAX = 65_536
"""Calls that one node may list."""
ID_BYTES = 16
GRANT_BYTES_MAX = 64
TEXT_CHARS_MAX = 256
DEADLINE_MS_MAX = 1 << 53


class Verdict(Enum):
    """What is to be done with a call of an earlier start."""

    WAIT = 0
    """Somebody who may have it has not spoken."""
    RUN = 1
    """Nobody has it: it never began."""
    LOST = 2
    """It may have run, and its outcome will not come."""


class HeldCall(NamedTuple):
    """A call that a node still has, as it says."""

    call_id: bytes
    attempt: int
    grant: bytes
    token: str
    """Id of the token by which it was called."""
    depth: int
    function: str
    flags: int
    deadline_ms: int | None
    gpus: list[int]
    """Indexes of the devices that it uses there."""


class Recovery:
    """What one gateway has heard about the calls of earlier starts.

    Attributes:
        incarnation: The number of this start.
        expected: Nodes that have not come back yet.
        until: When waiting for them is over.
    """

    def __init__(self, incarnation: int, boots: Boots, now: float) -> None:
        self.incarnation = incarnation
        self.expected = set(boots.online)
        self.until = now + RETURN_S
        self._asked_until = now + ASKED_S
        self._unsure = boots.changed
        self._lost_before = boots.lost_before
        self._spent: set[bytes] = set()
        self._recent_from = boots.recent_from
        self._boots = boots.known

    def was_here(self, node_id: str, boot: bytes) -> bool:
        """Return whether a boot of a node was here before this start, so that it knows its calls.

        The disk does not tell: a boot is written down when it comes, before it has said a word.
        """
        return bool(boot) and self._boots.get(node_id) == boot

    @property
    def waiting(self) -> bool:
        """Whether somebody is still to come back."""
        return bool(self.expected)

    def judge(self, call_id: bytes, since: int, now: float) -> Verdict:
        """Say what to do with a call that was first sent to the incarnation `since`."""
        if call_id in self._spent or now >= self._asked_until:
            return Verdict.LOST
        if self.expected:
            return Verdict.WAIT
        if self._unsure or since < self._lost_before or since < self._recent_from:
            return Verdict.LOST
        return Verdict.RUN

    def spoke(self, node_id: str, spent: bytes, *, remembers: bool) -> None:
        """A node has come back and said what it has and what it has had.

        Args:
            node_id: The node.
            spent: Ids of calls that it has had, one behind the other.
            remembers: It is the boot that was here before, and knows all that it has had.
        """
        if node_id not in self.expected:
            return
        self.expected.discard(node_id)
        if not remembers or len(self._spent) + len(spent) // ID_BYTES > SPENT_MAX:
            self._unsure = True
            return
        self._spent.update(split_ids(spent))

    def overdue(self, now: float) -> list[str]:
        """Return the nodes that did not come back in time, once; nobody waits for them now."""
        if now >= self._asked_until:
            self._spent.clear()
        if not self.expected or now < self.until:
            return []
        missing, self.expected = sorted(self.expected), set()
        self._unsure = True
        return missing


class Told(NamedTuple):
    """What a node says of calls when it registers."""

    held: list[HeldCall]
    """Calls that it still has."""
    kept: list[HeldCall]
    """Calls whose outcomes it has written, and kept."""
    spent: bytes
    """Ids of calls that it has had, one behind the other."""
    forgot: bool
    """It has had more calls lately than it remembers."""


def read_told(value: Any) -> Told:
    """Check what a node says that it has and has had.

    Args:
        value: Its registration.

    Raises:
        BadOffer: A field has the wrong type or is beyond its limit.
    """
    listed, kept = value.get("held") or [], value.get("kept") or []
    spent = value.get("spent") or b""
    for calls in (listed, kept):
        if type(calls) is not list or len(calls) > HELD_MAX:
            raise BadOffer(f"held and kept are lists of at most {HELD_MAX} calls")
    if type(spent) is not bytes or len(spent) % ID_BYTES or len(spent) > HELD_MAX * ID_BYTES:
        raise BadOffer(f"spent has {ID_BYTES} bytes a call, {HELD_MAX} calls at most")
    return Told(
        [_read_one(one) for one in listed], [_read_one(one) for one in kept], spent,
        bool(value.get("forgot")),
    )  # fmt: skip


def split_ids(ids: bytes) -> list[bytes]:
    """Return the ids that stand one behind the other."""
    return [ids[at : at + ID_BYTES] for at in range(0, len(ids), ID_BYTES)]


def _read_one(value: Any) -> HeldCall:
    fields: dict[str, Any] = value if type(value) is dict else {}
    known = {"gpus": [], **fields}
    held = HeldCall(*[known.get(name) for name in HeldCall._fields])  # type: ignore[arg-type]
    ids = type(held.call_id) is bytes and len(held.call_id) == ID_BYTES
    grant = type(held.grant) is bytes and len(held.grant) <= GRANT_BYTES_MAX
    numbers = all(type(n) is int and 0 <= n < 1 << 31 for n in (held.attempt, held.flags))
    depth = type(held.depth) is int and 0 <= held.depth < 256
    texts = all(type(t) is str and len(t) <= TEXT_CHARS_MAX for t in (held.token, held.function))
    deadline = held.deadline_ms is None or (
        type(held.deadline_ms) is int and 0 <= held.deadline_ms <= DEADLINE_MS_MAX
    )
    gpus = (
        type(held.gpus) is list
        and len(held.gpus) <= GPUS_MAX
        and all(type(n) is int and 0 <= n < GPUS_MAX for n in held.gpus)
    )
    if not (ids and grant and numbers and depth and texts and deadline and gpus):
        raise BadOffer("a held call has a field of the wrong type or beyond its limit")
    return held
