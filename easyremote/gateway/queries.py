"""Questions and orders by name: discovery, the state of a call, gauges, tokens.

Theory. A query is one message that opens a stream and one reply that ends it. Which role may ask
what is the closed table below, over the operations of `identity.role`; what is not in the table
does not exist. Answers hold what the asker may see and nothing else.

Rules of this file. 1) Every name is checked against the table before anything else is looked at.
2) Arguments are checked for their types; a wrong one is the asker's error. 3) What waits for the
disk runs as a task of the asker's own session.

Source. promises.md 4.2, "Roles x operations".
"""

# ruff: noqa: ARG001  # Every answer takes what any of them needs.

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import trio

from ..errors import EasyRemoteError
from ..handlers import StreamHandler
from ..identity.role import Operation, Principal, Role, Scopes
from ..log import Log
from ..scheduler.capability import TooMuch, read_wishes
from ..wire.errors import ErrorCode
from ..wire.message import Failure, Query, decode
from . import account_queries, describe
from .bodies import send_reply
from .calls import GatewayCall
from .explain import explain, placement, whereabouts
from .gauges import gauges
from .records import EXPIRES_DEFAULT_S, parse_role
from .routing import NAMED_NODES_MAX, Refused, not_found
from .store import Store

if TYPE_CHECKING:
    from ..stream import Stream
    from .core import Gateway
    from .registry import Registry
    from .session import Session

_log = Log("gateway")

Args = dict[str, Any]
Sync = Callable[["Gateway", "Session", Args], Any]
Async = Callable[["Gateway", "Session", Args], Awaitable[Any]]


class QueryHandler(StreamHandler):
    """One query that is being answered."""

    def __init__(self, session: Session, stream: Stream, payload: bytes) -> None:
        """Answer at once, or start the task that will."""
        self._session = session
        query = decode(Query, payload)
        try:
            _check_role(session.principal, query.name)
            sync = SYNC.get(query.name)
            if sync is not None:
                send_reply(stream, sync(session.gateway, session, query.args))
                stream.release()
                return
        except Refused as refused:
            _fail(stream, refused)
            return
        session.start(self._answer, stream, ASYNC[query.name], query.args)

    async def _answer(self, stream: Stream, answer: Async, args: Args) -> None:
        try:
            value = await answer(self._session.gateway, self._session, args)
        except Refused as refused:
            _fail(stream, refused)
            return
        except EasyRemoteError as error:
            _log.error("a query failed", exception=error)
            _fail(stream, Refused(ErrorCode.INTERNAL, "the gateway's store failed; see its log"))
            return
        if stream.is_open:
            send_reply(stream, value)
        _release(stream)


def _check_role(principal: Principal, name: str) -> None:
    operation = OPERATIONS.get(name)
    if operation is None:
        raise Refused(ErrorCode.NOT_FOUND, f"no query is called {name[:64]!r}")
    if not principal.may(operation):
        raise Refused(ErrorCode.FORBIDDEN, f"a {principal.role.value} may not ask for {name}")


def _fail(stream: Stream, refused: Refused) -> None:
    if stream.is_open:
        failure = Failure(
            int(refused.code), refused.reason, False, refused.retry_after_s, refused.detail
        )
        stream.send(failure, end=True)
    _release(stream)


def _release(stream: Stream) -> None:
    if stream.link.ready:
        stream.release()


# ---- discovery -------------------------------------------------------------------------------


def _nodes(gateway: Gateway, session: Session, args: Args) -> Any:
    """Return nodes: all, or those that have what is wanted.

    Nodes report by themselves what has changed, so that there is nothing to ask them for: `fresh`
    leaves out those that are away, of which only old news is known.
    """
    return find_nodes(gateway.registry, session.principal, args, trio.current_time())


def find_nodes(registry: Registry, principal: Principal, args: Args, now: float | None) -> Any:
    """Answer that for one moment on trio's clock; without it nothing is said of silence.

    Raises:
        Refused: Nobody can have what is wanted, or it takes too long to look for.
    """
    wanted, function = args.get("capability"), _text(args, "function", None)
    fresh = args.get("fresh", False) is True
    if wanted is None and function is None and not fresh:
        return describe.nodes(registry, principal, now)
    try:
        wishes = () if wanted is None else read_wishes(wanted)
        return describe.find_nodes(registry, principal, now, wishes, function, connected=fresh)
    except (ValueError, TooMuch) as error:
        reason = str(error) or "the capability that is wanted has too many parts; name fewer"
        raise Refused(ErrorCode.BAD_ARGUMENT, reason) from None


def _functions(gateway: Gateway, session: Session, args: Args) -> Any:
    return describe.functions(
        gateway.registry, session.principal, _text(args, "node_id", None), _text(args, "name", None)
    )


def _resolve(gateway: Gateway, session: Session, args: Args) -> Any:
    """Return the function that a stub names: its signature, before the first call."""
    name = _text(args, "function", "")
    node_ids = args.get("node_ids")
    if node_ids is None and "." in (name or ""):
        node_id, _, name = (name or "").rpartition(".")
        node_ids = [node_id]
    if node_ids is not None and not (
        type(node_ids) is list
        and len(node_ids) <= NAMED_NODES_MAX  # Each is looked for among the labels of all nodes.
        and all(type(one) is str for one in node_ids)
    ):
        raise Refused(
            ErrorCode.BAD_ARGUMENT, f"node_ids is a list of at most {NAMED_NODES_MAX} node ids"
        )
    wanted = None
    if node_ids is not None:
        nodes = gateway.registry.named(node_ids, session.principal)
        wanted = {record.node_id for record in nodes}
    found = [
        offer
        for offer in gateway.registry.providers(name or "", session.principal)
        if wanted is None or offer.record.node_id in wanted
    ]
    if not found:
        raise not_found(gateway.registry, session.principal, name or "")
    found.sort(key=lambda offer: (not offer.record.takes_calls, offer.record.node_id))
    return describe.function_info(found[0], session.principal)


OWNERS_MAX = 1000
"""Calls that one question may be about: its ids fit into one message."""


def _call(gateway: Gateway, session: Session, args: Args) -> Any:
    """Return where a call of the asker is; somebody else's is as unknown as none."""
    call_id = args.get("call_id")
    if type(call_id) is bytes and call_id not in session.caller.calls:
        node_id = session.caller.served_by(call_id)
        if node_id is not None:  # It is over, and not long ago.
            why = placement(gateway, session.principal.user, call_id, trio.current_time())
            return {"state": "done", "node_id": node_id, "placement": why}
    return whereabouts(gateway, _own_call(session, args), trio.current_time())


def _explain(gateway: Gateway, session: Session, args: Args) -> Any:
    """Return what a call of the asker waits for."""
    return explain(gateway, _own_call(session, args), trio.current_time())


def _own_call(session: Session, args: Args) -> GatewayCall:
    call_id = args.get("call_id")
    if type(call_id) is not bytes:
        raise Refused(ErrorCode.BAD_ARGUMENT, "call_id is 16 bytes")
    call = session.caller.calls.get(call_id)
    if call is None:
        raise Refused(ErrorCode.NOT_FOUND, "no call of yours has this id")
    return call


def _owners(gateway: Gateway, session: Session, args: Args) -> Any:
    """Return who owns the nodes that have or had some calls of the asker; None is not known."""
    return [session.caller.answered_by(call_id) for call_id in _call_ids(args)]


def _served(gateway: Gateway, session: Session, args: Args) -> Any:
    """Return which nodes had some calls of the asker, how many, and what those nodes are for."""
    counts: dict[str, int] = {}
    for call_id in _call_ids(args):
        node_id = session.caller.served_by(call_id)
        if node_id is not None:
            counts[node_id] = counts.get(node_id, 0) + 1
    return [
        {"node_id": node_id, "calls": calls, "specialization": describe.specialization(record)}
        for node_id, calls in sorted(counts.items())
        if (record := gateway.registry.nodes.get(node_id)) is not None
    ]


def _call_ids(args: Args) -> list[bytes]:
    call_ids = args.get("call_ids")
    if type(call_ids) is not list or len(call_ids) > OWNERS_MAX:
        raise Refused(ErrorCode.BAD_ARGUMENT, f"call_ids is a list of at most {OWNERS_MAX} ids")
    if not all(type(call_id) is bytes for call_id in call_ids):
        raise Refused(ErrorCode.BAD_ARGUMENT, "a call id is 16 bytes")
    return call_ids


def _status(gateway: Gateway, session: Session, args: Args) -> Any:
    # With the clock of the wall, so that whoever asks can compare it with its own.
    return {**gauges(gateway), "time": gateway.state.store.clock()}


# ---- tokens ----------------------------------------------------------------------------------


async def _token_create(gateway: Gateway, session: Session, args: Args) -> Any:
    principal = session.principal
    try:
        role = parse_role(_text(args, "role", Role.GUEST.value) or "")
        _check_rank(principal, role)
        given = _seconds(args, "expires_s", EXPIRES_DEFAULT_S[role])
        token = await gateway.store.write(
            Store.create_token,
            role,
            _text(args, "user", principal.user) or "",
            expires_s=given,
            levels=_texts(args, "levels"),
            node_id=_text(args, "node_id", None),
            scopes=Scopes(tuple(_texts(args, "functions")), tuple(_texts(args, "nodes"))),
            single_use=bool(args.get("single_use", False)),
            shared=bool(args.get("shared", False)),
            created_by=principal.user,
            note=_text(args, "note", "") or "",
        )
    except ValueError as error:
        raise Refused(ErrorCode.BAD_ARGUMENT, str(error)) from None
    _log.info("token created", token=token.id, role=role.value, principal=principal.user)
    return {"id": token.id, "token": token.text(), "join": gateway.state.join_string(token)}


def _token_list(gateway: Gateway, session: Session, args: Args) -> Any:
    return [info.to_plain() for info in gateway.store.reader.list_tokens()]


async def _token_revoke(gateway: Gateway, session: Session, args: Args) -> Any:
    token_id = _text(args, "id", "") or ""
    info = gateway.store.reader.token(token_id)
    if info is None:
        raise Refused(ErrorCode.NOT_FOUND, "no token has this id")
    _check_rank(session.principal, info.role)
    done = await gateway.store.write(Store.revoke, token_id, session.principal.user)
    _log.info("token revoked", token=token_id, principal=session.principal.user, done=done)
    return done


async def _node_forget(gateway: Gateway, session: Session, args: Args) -> Any:
    node_id = _text(args, "node_id", "") or ""
    done = await gateway.store.write(Store.forget_node, node_id, session.principal.user)
    _log.info("node forgotten", node_id=node_id, principal=session.principal.user, done=done)
    return done


def _check_rank(principal: Principal, role: Role) -> None:
    """Nobody makes or revokes a token that can do more than the asker itself."""
    if role in (Role.OWNER, Role.OPERATOR) and principal.role is not Role.OWNER:
        raise Refused(ErrorCode.FORBIDDEN, f"only an owner handles tokens of role {role.value}")


def _audit_verify(gateway: Gateway, session: Session, args: Args) -> Any:
    check = gateway.store.reader.verify_audit()
    return {"good": check.good, "rows": check.rows, "first_bad": check.first_bad}


# ---- arguments -------------------------------------------------------------------------------


def _text(args: Args, key: str, default: str | None) -> str | None:
    value = args.get(key, default)
    if value is not None and type(value) is not str:
        raise Refused(ErrorCode.BAD_ARGUMENT, f"{key} is text")
    return value


def _seconds(args: Args, key: str, default: float | None) -> float | None:
    value = args.get(key, default)
    if value is not None and type(value) not in (int, float):
        raise Refused(ErrorCode.BAD_ARGUMENT, f"{key} is a number of seconds")
    return value


def _texts(args: Args, key: str) -> list[str]:
    value = args.get(key) or []
    if type(value) is not list or not all(type(one) is str for one in value):
        raise Refused(ErrorCode.BAD_ARGUMENT, f"{key} is a list of texts")
    return value


OPERATIONS: dict[str, Operation] = {
    "nodes": Operation.VIEW,
    "functions": Operation.VIEW,
    "resolve": Operation.VIEW,
    "status": Operation.VIEW,
    "call": Operation.CALL,
    "explain": Operation.CALL,
    "owners": Operation.CALL,
    "served": Operation.CALL,
    "token.create": Operation.OPERATE,
    "token.list": Operation.OPERATE,
    "token.revoke": Operation.OPERATE,
    "node.forget": Operation.OPERATE,
    "audit.verify": Operation.OPERATE,
    "audit.list": Operation.OPERATE,
    "quota": Operation.CALL,
    "usage": Operation.CALL,
}
"""What each query needs. A node of its own asks nothing; a function that asks is its caller."""

SYNC: dict[str, Sync] = {
    "nodes": _nodes,
    "functions": _functions,
    "resolve": _resolve,
    "status": _status,
    "call": _call,
    "explain": _explain,
    "owners": _owners,
    "served": _served,
    "token.list": _token_list,
    "audit.verify": _audit_verify,
    "audit.list": account_queries.audit_list,
    "quota": account_queries.quota,
}

ASYNC: dict[str, Async] = {
    "token.create": _token_create,
    "token.revoke": _token_revoke,
    "node.forget": _node_forget,
    "usage": account_queries.usage,
}
