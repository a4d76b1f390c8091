"""Grants: the right to answer one dispatch of one call.

Theory. A node that lost its link may come back and answer what it was given before, perhaps to a
gateway that was started anew meanwhile. Whether that answer counts must not depend on what the
gateway remembers: every dispatch carries a grant, a MAC by the gateway's stored key over the call,
the node, the boot of its agent, the attempt, and whose call it is. A node cannot make one, and one
for another attempt or an earlier boot is void.

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
    """Makes grants under one key."""

    __slots__ = ("_key",)

    def __init__(self, key: bytes) -> None:
        assert 16 <= len(key) <= 64
        self._key = key

    def for_node(self, node_id: str, epoch: int) -> NodeGrants:
        """Return what makes the grants of one boot of a node's agent."""
        name = node_id.encode()
        state = hashlib.blake2b(digest_size=GRANT_BYTES, key=self._key)
        state.update(len(name).to_bytes(2, "big") + name + epoch.to_bytes(8, "big"))
        return NodeGrants(state)


class NodeGrants:
    """Grants of one boot of one node: what they have in common is hashed once."""

    __slots__ = ("_state",)

    def __init__(self, state: hashlib.blake2b) -> None:
        self._state = state

    def make(self, call_id: bytes, attempt: int, depth: int, token_id: str) -> bytes:
        """Return the grant for one dispatch.

        Args:
            call_id: 16 bytes.
            attempt: How often the call was dispatched, this time included.
            depth: How many calls are above it.
            token_id: The token by which it was called: what it may call in turn goes by it.
        """
        state = self._state.copy()
        state.update(call_id + (attempt << 8 | depth).to_bytes(5, "big") + token_id.encode())
        return state.digest()

    def good(self, grant: bytes, call_id: bytes, attempt: int, depth: int, token_id: str) -> bool:
        """Return whether `grant` was made for this dispatch."""
        return hmac.compare_digest(grant, self.make(call_id, attempt, depth, token_id))
