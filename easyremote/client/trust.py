"""From whose nodes a pickle is opened here: opening one runs whatever its sender put into it.

Theory. Plain data and arrays are always accepted. A pickle is code, so it is opened only if the
user trusts the node that sent it: every node, none, or (the default) nodes that the same user
enrolled. The gateway knows which node it gave a call to and who enrolled that node; it is asked
once for many results, and only when a pickle has come. What the node says of itself counts for
nothing, for it may change that at any time.

Rules of this file. 1) Without an answer there is no trust. 2) Io thread only.

Source. promises.md D7 and T17; api.md, `trust_nodes`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, Protocol

from ..errors import SerializationError
from ..wire.errors import ErrorCode

if TYPE_CHECKING:
    from .session import Session

TrustNodes = bool | Literal["owner"]
"""Every node, none, or those that the same user enrolled."""

ASK_MAX = 1000
"""Calls in one question."""


class Judged(Protocol):
    """What a pickle belongs to: a call."""

    call_id: bytes


Verdict = Callable[[bool], object]


class Trust:
    """Decides about the pickles of one session."""

    def __init__(self, session: Session, trust_nodes: TrustNodes) -> None:
        if trust_nodes not in {True, False, "owner"}:
            raise ValueError(f"trust_nodes is True, False or 'owner', not {trust_nodes!r}")
        self._session = session
        self._trust_nodes = trust_nodes
        self._waiting: list[tuple[Judged, Verdict]] = []
        self._asking: list[tuple[Judged, Verdict]] = []

    def judge(self, call: Judged, then: Verdict) -> None:
        """Say, now or soon, whether a pickle that answers `call` may be opened."""
        session = self._session
        if self._trust_nodes != "owner":
            then(bool(self._trust_nodes))
        elif session.user is None:
            then(False)
        else:
            self._waiting.append((call, then))
            if not self._asking:
                self._ask()

    def _ask(self) -> None:
        self._asking, self._waiting = self._waiting[:ASK_MAX], self._waiting[ASK_MAX:]
        call_ids = [call.call_id for call, _ in self._asking]
        self._session.query_on_io("owners", {"call_ids": call_ids}, self._answered)

    def _answered(self, owners: Any) -> None:
        asked, self._asking = self._asking, []
        known = (
            owners
            if isinstance(owners, list) and len(owners) == len(asked)
            else [None] * len(asked)
        )
        for (_, then), owner in zip(asked, known, strict=True):
            then(owner is not None and owner == self._session.user)
        if self._waiting:
            self._ask()

    def refusal(self, function: str, what: str) -> SerializationError:
        """Return the error of a pickle that is not opened."""
        error = SerializationError(
            f"the {what} of {function} is a pickle, and it may come from a node that this client "
            "does not trust (trust_nodes). Have the function return plain data or arrays, register "
            "its type on both sides (easyremote.register_type), or write "
            "connect(..., trust_nodes=True) if you trust every node of this gateway to run code "
            "here"
        )
        error.code = ErrorCode.UNSUPPORTED_CODEC
        error.may_have_run = True
        return error
