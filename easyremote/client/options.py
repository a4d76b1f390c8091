"""What may be said about a call, checked once, and turned into what a call carries.

Theory. Options are given where a function is declared, not where it is called, so they are checked
there: a typo or a wrong type is a `TypeError` at once, and a call costs nothing for it. What the
client acts on itself becomes a field of the `Route`; what matters to placement travels to the
gateway in the call's options; what nothing acts on yet is refused with a sentence.

Rules of this file. 1) Nothing is silently ignored. 2) Everything that travels is plain data.

Source. api.md, `CallOptions`.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypedDict

from ..errors import EasyRemoteError
from ..identity.credential import Credential
from ..wire import cbor
from ..wire.errors import CodecError
from ..wire.message import FLAG_DETACHED, FLAG_IDEMPOTENT
from .requirements import travelling
from .retry import ATTEMPTS_IDEMPOTENT, RetryPolicy

RETRIES_MAX = 1000
OPTIONS_BYTES_MAX = 16 * 1024
"""Function, nodes and options share one frame of 64 KiB with a body of up to 32 KiB."""


class CallOptions(TypedDict, total=False):
    """Options of a remote function; see `remote`."""

    node_id: str | Sequence[str]
    """The node that it runs on, or several, or labels of groups."""
    capability: str | Sequence[str] | Mapping[str, Any]
    """What a node must have: a tag, a top-level key, `key:value` or `path.to.key`; a list of such;
    or constraints, `{"gpu": {"memory": ">=16GB"}}`."""
    prefer: Mapping[str, Any]
    """What a node should have, written like constraints. It counts in the capability score."""
    function: str
    """Its name at the provider; that of the stub by default."""
    function_name: str
    """The same."""
    gateway: str
    """Address of the gateway; the one of `connect()` by default."""
    gateway_address: str
    """The same."""
    auth_token: str
    """A token or join string, or `env:NAME` or `file:PATH` of one."""
    auth: str | Credential
    """The name of a stored profile, or a credential."""
    timeout: float
    """Seconds after which the call has failed; it travels with the call."""
    retries: int
    """How often a call is made again that failed for reasons of the system; 0 by default. Without
    `idempotent` only where its body provably did not start."""
    max_retries: int
    """The same."""
    retry_exceptions: bool | Sequence[type[BaseException]]
    """Exceptions of the function after which it is called again, too; True for all."""
    idempotent: bool
    """It may safely run twice: a call that was lost is made again, four times if `retries` does not
    say how often."""
    priority: int
    """Among your own calls that wait: the higher, the earlier. 0 by default."""
    num_cpus: float
    """Cores that are reserved while it runs, a fraction if you like."""
    num_gpus: float
    """GPUs that are reserved: a whole number, or a fraction of one."""
    gpu_memory: int | str
    """Memory that is reserved on each of them: `"16GB"`, `"16GiB"`, or bytes."""
    memory: int | str
    """Main memory that is reserved, written likewise."""
    resources: Mapping[str, float | str]
    """Amounts of resources that nodes declare themselves; also `disk` and `gpu_model`."""
    scaling: Literal["auto"] | int | Mapping[str, Any]
    """How many replicas nodes may run for it, where its owner lets them grow: `"auto"`, a number,
    or some of `min`, `max`, `target_queue`, `idle_s`."""
    optimization: Literal["off", "auto"]
    load_balancing: bool | str | Mapping[str, Any]
    """By what the node is chosen: `score` (the default), `round_robin`, `least_loaded`, `latency`,
    `cost`, `random`, or weights of the scores."""
    async_func: bool
    """Accepted for readability: every call returns a future, whatever the function is."""
    ship: bool | Literal["auto"]
    result: Literal["auto", "eager", "ref"]
    detached: bool
    """The call goes on when its caller is gone."""
    cache: bool | float


class NotAvailableError(EasyRemoteError, NotImplementedError):
    """This version does not do that yet; the message says what to write instead."""


class Where(NamedTuple):
    """A gateway and a credential of a function's own."""

    gateway: str | None
    token: str | None
    auth: str | Credential | None

    def __repr__(self) -> str:
        """Show no secret."""
        return f"Where({self.gateway!r})"


class Route(NamedTuple):
    """Where calls of a function go, and how.

    Attributes:
        function: Its name at the provider.
        node_ids: Nodes or labels, None to let the gateway choose.
        options: What travels with the call.
        timeout_s: Time limit of a call.
        flags: `wire.message.FLAG_...`.
        where: A gateway of its own, None for the default one.
        retry: What may be made again, None for what the function was registered with.
    """

    function: str
    node_ids: list[str] | None = None
    options: dict[str, Any] = {}  # noqa: RUF012 - never changed
    timeout_s: float | None = None
    flags: int = 0
    where: Where | None = None
    retry: RetryPolicy | None = None


ALIASES = {"function_name": "function", "gateway_address": "gateway", "max_retries": "retries"}
KNOWN = frozenset(CallOptions.__annotations__)


def checked(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options under their first spelling, each known.

    Raises:
        TypeError: One is unknown, or is given under two spellings.
    """
    found: dict[str, Any] = {}
    for name, value in options.items():
        if name not in KNOWN:
            close = difflib.get_close_matches(name, KNOWN, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise TypeError(f"remote() has no option {name!r}{hint}")
        first = ALIASES.get(name, name)
        if first in found and found[first] != value:
            raise TypeError(f"the option {first!r} is given twice, also as {name!r}")
        found[first] = value
    return found


def route(function: str, options: Mapping[str, Any]) -> Route:
    """Return the route of a function.

    Args:
        function: Its name, unless the options say another.
        options: As `checked` returns them.

    Raises:
        TypeError: An option has the wrong type.
        ValueError: An option has a value that it cannot have.
        NotAvailableError: Nothing acts on an option yet.
    """
    refuse_later_ones(options)
    name = options.get("function", function)
    if not isinstance(name, str) or not name:
        raise TypeError(f"the name of a function is text, not {name!r}")
    travels = travelling(options)
    if options.get("optimization", "off") != "off":
        travels["optimization"] = options["optimization"]
    timeout_s = options.get("timeout")
    if timeout_s is not None and not _is_positive(timeout_s):
        raise TypeError(f"timeout is a positive number of seconds, not {timeout_s!r}")
    flags = FLAG_IDEMPOTENT if options.get("idempotent") else 0
    flags |= FLAG_DETACHED if options.get("detached") else 0
    made = Route(
        name, _nodes(options.get("node_id")), travels, timeout_s, flags,
        retry=_retry(options),
    )  # fmt: skip
    _check_size(made)
    where = Where(options.get("gateway"), options.get("auth_token"), options.get("auth"))
    return made if where == (None, None, None) else made._replace(where=where)


def _retry(options: Mapping[str, Any]) -> RetryPolicy | None:
    """Return what may be made again; None if nothing was said about it."""
    retries, raised = options.get("retries"), options.get("retry_exceptions")
    idempotent = bool(options.get("idempotent"))
    if retries is None and not idempotent and not raised:
        return None
    if retries is not None and (type(retries) is not int or not 0 <= retries <= RETRIES_MAX):
        raise TypeError(f"retries is a whole number from 0 to {RETRIES_MAX}, not {retries!r}")
    if raised is True:
        exceptions: tuple[type[BaseException], ...] = (Exception,)
    else:
        exceptions = tuple(raised or ())
    if not all(isinstance(one, type) and issubclass(one, BaseException) for one in exceptions):
        raise TypeError(f"retry_exceptions is True or a list of exceptions, not {raised!r}")
    if retries is None:
        retries = ATTEMPTS_IDEMPOTENT - 1
    return RetryPolicy(retries + 1, idempotent, exceptions)


def _is_positive(value: object) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and 0 < float(value) < math.inf  # type: ignore[arg-type] # pyright knows


def _nodes(value: Any) -> list[str] | None:
    if value is None:
        return None
    if isinstance(value, str):
        return [value]
    named = list(value) if isinstance(value, Sequence) else [value]
    if not named or not all(isinstance(one, str) and one for one in named):
        raise TypeError(f"node_id is the name of a node or group, or a list of them: {value!r}")
    return named


def _check_size(made: Route) -> None:
    try:
        size = len(cbor.encode_frame([made.function, made.node_ids, made.options]))
    except (CodecError, ValueError, TypeError) as error:
        raise TypeError(f"an option is no plain data: {error}") from None
    if size > OPTIONS_BYTES_MAX:
        raise TypeError(f"the options of a call have {size} bytes, {OPTIONS_BYTES_MAX} at most")


Test = Callable[[Any], bool]

LATER: dict[str, tuple[Test, str]] = {
    "ship": (
        lambda value: value is True,
        (
            "code is not shipped yet. Register the function on a node (`@node.register`) and call "
            "it by its name"
        ),
    ),
    "result": (
        lambda value: value == "ref",
        ("results do not stay on the node yet. Leave `result` away: the value comes here"),
    ),
    "cache": (
        lambda value: value is not False and value is not None,
        ("results are not cached yet. Leave `cache` away and keep the result yourself"),
    ),
}
"""Options that nothing acts on yet: when one asks for something, and what to do instead."""


def refuse_later_ones(options: Mapping[str, Any]) -> None:
    """Refuse what nothing acts on yet.

    Raises:
        NotAvailableError: An option asks for it; the message says what to write instead.
    """
    for name, (asks, instead) in LATER.items():
        if name in options and asks(options[name]):
            raise NotAvailableError(f"{name}={options[name]!r}: {instead}")
