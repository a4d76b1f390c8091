"""What the audit says about calls: who was denied one, and when the terms of a function changed.

Theory. The audit is for what somebody may have to answer for later: a limit that was raised, a
price that went up, an attempt to call what is not for the caller. It is on the disk for ever, so
nobody may fill it by trying again: a denial is an entry once an hour for a user and a function.

Rules of this file. 1) What was known of a node's terms is read from the disk, so a change is seen
across restarts. 2) Both are written in the background; nobody waits for them.

Source. promises.md 4.2, "Audit"; features.md R6.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ..log import Log
from .store import Store

if TYPE_CHECKING:
    from .async_store import AsyncStore
    from .pool import NodeRecord, Offer

_log = Log("gateway")

AGAIN_S = 3600.0
DENIALS_MAX = 1000
"""Entries of denials in an hour."""
TERMS_KEY = "terms:"


class Audited:
    """Writes to the audit what concerns calls."""

    def __init__(self, store: AsyncStore) -> None:
        self._store = store
        self._denied: set[tuple[str, str]] = set()
        self._denied_until = 0.0

    def denied(self, user: str, token_id: str, function: str, reason: str, now: float) -> None:
        """Somebody called what is not for them."""
        if now >= self._denied_until:
            self._denied.clear()
            self._denied_until = now + AGAIN_S
        key = user, function
        if key in self._denied or len(self._denied) >= DENIALS_MAX:
            return
        self._denied.add(key)
        detail = {"function": function, "token": token_id, "reason": reason}
        self._store.submit(_said, Store.audit, "call_denied", user, detail)

    def registered(self, record: NodeRecord) -> None:
        """A node has said what it offers: see whether the terms of it are others than before."""
        terms = {name: _terms_of(offer) for name, offer in sorted(record.offers.items())}
        text = json.dumps({name: one for name, one in terms.items() if one}, sort_keys=True)
        if (self._store.reader.get_meta(TERMS_KEY + record.node_id) or "{}") != text:
            self._store.submit(_said, _note_terms, record.node_id, record.owner, text)


def _terms_of(offer: Offer) -> dict[str, Any]:
    """Return what limits the callers of a function, and what it costs; empty for nothing."""
    entry = offer.entry
    found: dict[str, Any] = {} if entry.terms is None else entry.terms.to_plain()
    if entry.access_level is not None:
        found["access_level"] = entry.access_level
    if entry.auth_required:
        found["auth_required"] = True
    return found


def _note_terms(store: Store, node_id: str, owner: str, text: str) -> None:
    """Write down what has changed in the terms of a node, function by function."""
    with store.transaction():
        before = json.loads(store.get_meta(TERMS_KEY + node_id) or "{}")
        after = json.loads(text)
        for name in _changed(before, after):
            detail = {
                "node_id": node_id, "function": name, "before": before.get(name),
                "after": after.get(name),
            }  # fmt: skip
            store.audit("terms_changed", owner, detail)
        store.set_meta(TERMS_KEY + node_id, text)


def _changed(before: dict[str, Any], after: dict[str, Any]) -> Iterable[str]:
    return [name for name in sorted({*before, *after}) if before.get(name) != after.get(name)]


def _said(_: object, error: BaseException | None) -> None:
    if error is not None:
        _log.error("the audit could not be written", reason=error)
