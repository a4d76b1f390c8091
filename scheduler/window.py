"""How many calls a node may hold at once: its slots, and a little more so that it never waits.

Theory. A node that gets its next call only after it answered the last one idles for a round trip
between two calls. Sending ahead hides that gap, but a call that was sent ahead cannot be given to
another node any more, and it waits behind whatever runs there. So the amount sent ahead follows
the length of the bodies, as the node measured them: enough calls to keep a node busy for
`AHEAD_S`, and none at all where a body lasts so long that a round trip does not matter.

        in flight allowed = slots + ahead,   ahead = AHEAD_S / mean seconds of a body

The window starts with nothing ahead, for nothing is known about the bodies, and at most doubles
with each sample (slow start): a burst of long calls is never committed to one node on the word of
a single short one. It shrinks at once.

Rules of this file. 1) Pure: no clock, no I/O. 2) `limit` is a plain attribute, for the hot path
compares it with every call. 3) What a node says is checked: a wild number changes nothing.

Source. TCP's slow start (RFC 5681 section 3.1) and the bandwidth-delay product, with calls for
bytes.
"""

from __future__ import annotations

AHEAD_S = 0.005
"""Work that a node may hold ahead of its slots: several round trips of a slow path."""

AHEAD_MAX = 512
"""Most calls ahead of the slots, whatever the bodies: bounds what one lost node takes along."""

LONG_BODY_S = 0.1
"""Bodies longer than this get nothing ahead: a round trip is a small part of them."""

LEARN_ALWAYS = 64
"""The first samples are all taken; later, one in `LEARN_EVERY`."""
LEARN_EVERY = 32

WEIGHT = 0.25
"""Weight of a new sample in the mean."""

BODY_S_MAX = 1e9


class Window:
    """The window of one slot group of one node.

    Attributes:
        slots: Calls that the group can run at once, as the node announced it.
        ahead: Calls beyond the slots that the node may hold.
        limit: `slots + ahead`.
        mean_s: Mean body time, None before the first sample.
        results: Results seen, of which only some are samples.
    """

    __slots__ = ("ahead", "limit", "mean_s", "results", "slots")

    def __init__(self, slots: int) -> None:
        assert slots >= 1
        self.slots = slots
        self.ahead = 0
        self.limit = slots
        self.mean_s: float | None = None
        self.results = 0

    def wants_sample(self) -> bool:
        """Count a result; True if its body time should be passed to `learn`."""
        self.results += 1
        return self.results <= LEARN_ALWAYS or self.results % LEARN_EVERY == 0

    def learn(self, body_s: float) -> None:
        """Take a measured body time into account."""
        if not 0.0 <= body_s <= BODY_S_MAX:
            return
        mean_s = self.mean_s
        if mean_s is None:
            mean_s = body_s
        else:
            mean_s += (body_s - mean_s) * WEIGHT
        self.mean_s = mean_s
        self.ahead = min(_ahead(mean_s), max(1, self.ahead * 2))
        self.limit = self.slots + self.ahead

    def resize(self, slots: int) -> None:
        """The node announced another number of slots."""
        assert slots >= 1
        self.slots = slots
        self.limit = slots + self.ahead


def _ahead(mean_s: float) -> int:
    if mean_s > LONG_BODY_S:
        return 0
    if mean_s * AHEAD_MAX <= AHEAD_S:
        return AHEAD_MAX
    return max(1, int(AHEAD_S / mean_s))
