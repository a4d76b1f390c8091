"""Why a call waits: what is known here, and what the gateway says.

Theory. Until the gateway has taken a call, only this side knows what it waits for: a link, a place
among the streams that the gateway allows, room for its bytes. From then on the gateway knows, and
is asked. The answer is text for people that carries the same as data for programs.

Rules of this file. 1) Asking changes nothing. 2) A call of somebody else is, here as at the
gateway, a call that does not exist.

Source. features.md, "why_waiting()".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import EasyRemoteError
from ..wire.errors import ErrorCode
from .ids import ID_BYTES

if TYPE_CHECKING:
    from .future import Future
    from .session import Session

ASK_TIMEOUT_S = 20.0


class Explanation(str):
    """Sentences about what a call waits for.

    Attributes:
        data: The same for programs: `phase`, `state`, `queue_position`, `eta_s`, `node_id`,
            `attempt`, `places` (one row for each node that could run it: `node_id`, `state`,
            `busy`, `slots`, `why`), `bytes_waiting`, `sentences`. `phase` is one of `no link`,
            `no room`, `sent`, `held`, `queued`, `dispatched`, `running`, `cancelling`, `done`,
            `unknown`.
    """

    __slots__ = ("data",)
    data: dict[str, Any]


def told(phase: str, *sentences: str, **data: Any) -> Explanation:
    """Return an explanation that is made here."""
    explanation = Explanation(" ".join(sentences))
    explanation.data = {"phase": phase, "sentences": list(sentences), **data}
    return explanation


def why_waiting(session: Session, call: Future[Any] | str) -> Explanation:
    """Explain what a call waits for; blocks for a round trip if the gateway has it.

    Args:
        session: Through which the gateway is asked.
        call: The future of a call, or the id of one, perhaps of another program of this user.

    Raises:
        ValueError: It is no id of a call.
        EasyRemoteError: The gateway cannot be asked.
    """
    if isinstance(call, str):
        return _ask(session, _call_id(call))
    if call.done():
        return told("done", f"It does not wait: it is {call.state}.", state=call.state)
    source = call._source
    if source is None or not source.call_id:
        return told("unknown", "It follows from other futures: ask about those.", state=call.state)
    if not source.was_accepted() and (here := _here(session, source)) is not None:
        return here
    found = _ask(session, source.call_id)
    if call.done():
        return told("done", f"It does not wait any more: it is {call.state}.", state=call.state)
    return found


def _call_id(text: str) -> bytes:
    try:
        found = bytes.fromhex(text)
    except ValueError:
        found = b""
    if len(found) != ID_BYTES:
        raise ValueError(f"the id of a call has {2 * ID_BYTES} hex digits: {text[:80]!r}")
    return found


def _here(session: Session, source: Any) -> Explanation | None:
    """Explain a call that the gateway has not taken; None if it may have been."""
    link = session._up
    if link is None:
        return told(
            "no link", "There is no link to the gateway now; it goes out when there is one again.",
            state="submitted",
        )  # fmt: skip
    stream = source.stream
    if stream is None:
        # Both at once, for the io thread may go on meanwhile; copying them is one step.
        waiting = [*list(session._held), *list(session._fresh)]
        before = waiting.index(source) if source in waiting else 0
        return told(
            "no room",
            f"The gateway allows no more open calls now, {link.streams_open} are open.",
            f"It goes out when one of them has ended; {before} calls of this program go first.",
            state="submitted", queue_position=before,
        )  # fmt: skip
    if size := stream.pending_bytes:
        return told(
            "sent", f"{size:,} bytes of its arguments wait until the gateway takes them.",
            state="submitted", bytes_waiting={"for_gateway": size},
        )  # fmt: skip
    return None


def _ask(session: Session, call_id: bytes) -> Explanation:
    try:
        data = session.ask_blocking("explain", {"call_id": call_id}, ASK_TIMEOUT_S)
    except EasyRemoteError as error:
        if error.code is not ErrorCode.NOT_FOUND:
            raise
        return told(
            "unknown",
            "The gateway knows no call of yours with this id: it has ended, or never reached it.",
            state="unknown",
        )  # fmt: skip
    explanation = Explanation(" ".join(str(one) for one in data["sentences"]))
    explanation.data = {**data, "call_id": call_id.hex()}
    return explanation
