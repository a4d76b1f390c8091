"""Every limit of the protocol in one place, with its reason.

Rules of this file. 1) The unit is in the name. 2) A limit that the peer must know is announced
in HELLO or WELCOME; the rest only bounds ourselves.
"""

from __future__ import annotations

from dataclasses import dataclass

KIB = 1024
MIB = 1024 * KIB

VERSION = 1
"""The newest version of the protocol that this code speaks."""
VERSION_MIN = 1
"""The oldest one that it still speaks."""
ALPN = "easyremote/1"
"""The only ALPN name under which the native protocol is spoken."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Limits of one connection. Defaults fit a gateway on a small server."""

    frame_control_bytes_max: int = 64 * KIB
    """Largest payload of every frame but DATA."""
    frame_data_bytes_max: int = 256 * KIB
    """Largest payload of a DATA frame: the slice in which small frames can pass bulk."""
    slice_bytes_while_busy: int = 64 * KIB
    """Slice size while small frames are being sent on the same connection."""
    hello_bytes_max: int = 16 * KIB
    """Nothing larger is buffered before the peer is authenticated."""
    window_connection_bytes: int = 16 * MIB
    """Credit that we grant at first over all streams."""
    window_connection_bytes_max: int = 64 * MIB
    window_stream_bytes: int = 1 * MIB
    """Credit that we grant at first on each stream; grows with the bandwidth-delay product."""
    window_stream_bytes_max: int = 16 * MIB
    streams_credit: int = 256
    """Streams that the peer may have open at first."""
    streams_credit_max: int = 8192
    """Up to here the stream credit of a well-behaved peer grows."""
    ping_every_s: float = 5.0
    lease_s: float = 15.0
    """Silence after which the peer is dead: three pings missed."""
    handshake_timeout_s: float = 10.0
    abuse_burst: float = 100.0
    """Stream errors, early resets, pings and empty frames that a peer may cause at once."""
    abuse_refill_per_s: float = 33.0
    out_pending_bytes_max: int = 32 * MIB
    """Bytes framed but not yet written; above it the peer reads too slowly."""
    write_deadline_s: float = 10.0
    """Time in which a peer with data waiting must take some of it."""
    reset_memory: int = 4096
    """Streams given up by us whose late frames are still ignored free of charge."""
