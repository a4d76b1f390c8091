"""Every limit of a gateway that is not one of the protocol, in one place, with its reason.

Rules of this file. 1) The unit is in the name. 2) A test that needs a small world passes its own
`GatewayLimits`; but for the lease (`config.with_lease`) nothing reads a limit from anywhere else.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ..config import with_lease
from ..wire.settings import Settings


def link_settings() -> Settings:
    """Return what a gateway grants on each link.

    A peer may have up to 1,024 calls at the gateway at once: enough to keep many nodes busy on a
    long path, and few enough that a handful of clients of one user stays below `queued_user_max`.
    A client holds back what exceeds it.
    """
    return with_lease(Settings(streams_credit=256, streams_credit_max=1024))


@dataclass(frozen=True, slots=True)
class GatewayLimits:
    """Limits of one gateway. Defaults fit a small server."""

    link: Settings = field(default_factory=link_settings)
    queued_max: int = 10_000
    """Calls that wait for a node, over all callers; beyond it OVERLOADED."""
    queued_user_max: int = 4096
    """Calls of one user that wait: four clients with all the stream credit that they can have."""
    buffered_bytes_max: int = 512 * 1024 * 1024
    """Bytes that calls hold in the gateway before links lose their credit to them."""
    user_bytes_max: int = 128 * 1024 * 1024
    """The same for the calls of one user: whoever holds most is the first whose links wait."""
    clients_user_max: int = 256
    """Clients of one user that are connected at once; a buffer of 256 KiB belongs to each."""
    stall_s: float = 60.0
    """How long a caller may leave bytes of its call untouched, and how long either side may stop in
    the middle of a message that it could go on with, before the call is given up."""
    client_grace_s: float = 120.0
    """How long calls of a client that vanished without a goodbye go on."""
    offline_grace_s: float = 30.0
    """How long queued calls wait for a node to come back when none is left: two leases."""
    cancel_slack_s: float = 1.5
    """Time beyond the grace of a cancel in which its node must settle it: a second for the body to
    unwind and some for the way. The caller is promised two seconds, and there is a way back."""
    depth_max: int = 32
    """Nested calls: how deep."""
    attempts_max: int = 5
    """How often a call is given to a node, as each one before gave it back unstarted."""
    parked_bytes_max: int = 64 * 1024 * 1024
    """Results that wait for callers that lost their link, over all of them."""
    result_ttl_s: float = 600.0
    """How long such a result waits."""
