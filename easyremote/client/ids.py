"""Call ids: 128 random bits each, drawn from the system many at a time.

Theory. Asking the operating system for randomness costs more than the rest of a small call, so one
question is asked for many ids. Two processes never share them: a forked child throws away what its
parent has drawn.

Source. promises.md T2 and T10: an id is unguessable, and is the identity of a call everywhere.
"""

from __future__ import annotations

import os
from collections import deque

ID_BYTES = 16
DRAWN_AT_ONCE = 256

_drawn: deque[bytes] = deque()


def new_id() -> bytes:
    """Return an id that nobody else has; from any thread."""
    while True:
        try:
            return _drawn.popleft()
        except IndexError:
            bits = os.urandom(ID_BYTES * DRAWN_AT_ONCE)
            _drawn.extend(bits[at : at + ID_BYTES] for at in range(0, len(bits), ID_BYTES))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_drawn.clear)
