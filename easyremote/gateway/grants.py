"""Grants: the right to answer one dispatch of one call.

Theory. A node that lost its link may come back and answer what it was given before, perhaps to a
gateway that was started anew meanwhile. Whether that answer counts must not depend on what the
gateway remembers: every dispatch carries a grant, a MAC by the gateway's stored key over the call,
the node, the boot of its agent, and the attempt. A node cannot make one, and one for another
attempt or an earlier boot is void.

Rules of this file. 1) Pure; the key comes from the state folder. 2) Grants are compared in
constant time.

Source. decisions.md 9; RFC 7693 section 2.9 (BLAKE2 with a key is a MAC).
"""

from __future__ import annotations

import hashlib
import hmac

GRANT_BYTES = 16
"""128 bits: a guess is as hopeless as guessing a call id."""


class Grants:
    """Makes and checks grants under one key."""

    __slots__ = ("_key",)

    def __init__(self, key: bytes) -> None:
        assert 16 <= len(key) <= 64
        self._key = key

    def make(self, call_id: bytes, node_id: bytes, epoch: bytes, attempt: int) -> bytes:
        """Return the grant for one dispatch.

        Args:
            call_id: 16 bytes.
            node_id: The node, UTF-8.
            epoch: The boot of the node's agent; fields of varying length are framed.
            attempt: How often the call was dispatched, this time included.
        """
        said = b"%b%d:%b%d:%b%d" % (call_id, len(node_id), node_id, len(epoch), epoch, attempt)
        return hashlib.blake2b(said, digest_size=GRANT_BYTES, key=self._key).digest()

    def good(
        self, grant: bytes, call_id: bytes, node_id: bytes, epoch: bytes, attempt: int
    ) -> bool:
        """Return whether `grant` was made for this dispatch."""
        return hmac.compare_digest(grant, self.make(call_id, node_id, epoch, attempt))
