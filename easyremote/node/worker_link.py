"""What both ends of the link between an agent and a worker agree on.

Theory. Silence means nothing on this link. A function that holds the interpreter's lock keeps the
io thread of its worker from answering for as long as it runs, and that must cost it nothing. The
end of either process closes the socket, and the agent watches the process besides, so neither
side pings, neither has a lease, and neither must take its bytes within a deadline.
"""

from __future__ import annotations

from ..config import with_lease
from ..wire.settings import Settings

FOREVER_S = 1e9
"""Thirty years."""
ABUSE_BURST = 1e6
"""Resets that a peer which relays for others may pass on: what callers do is not its fault."""


def worker_link_settings() -> Settings:
    """Return the limits of the link, for the agent and for the worker.

    The handshake waits for the start of a Python process on a machine that may be busy.
    """
    return Settings(
        ping_every_s=FOREVER_S, lease_s=FOREVER_S, write_deadline_s=FOREVER_S,
        handshake_timeout_s=60.0, abuse_burst=ABUSE_BURST, abuse_refill_per_s=ABUSE_BURST,
    )  # fmt: skip


def gateway_link_settings() -> Settings:
    """Return what an agent grants its gateway: as usual, but the gateway speaks for many."""
    return with_lease(Settings(abuse_burst=ABUSE_BURST, abuse_refill_per_s=ABUSE_BURST))
