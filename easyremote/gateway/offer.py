"""What a node says about itself and its functions, checked before anything is built from it.

Theory. A registration is a plain value from a peer that nobody trusts: a broken or hostile node
may send any shape, any size, any name. Everything that the gateway keeps of it passes one of the
functions below, which return a value of the promised type within its limit or refuse the whole
registration with a sentence. Texts that people read are cut, not refused; names are refused, not
cut, for a cut name is another name.

Rules of this file. 1) Pure. 2) A limit stands next to what it limits. 3) What is not known is kept
out: a newer node may say more than this gateway understands.

Source. promises.md T15 and T19.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Any

from .terms import Terms, read_terms

FUNCTION_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}", re.ASCII)
NODE_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:@-]{0,127}", re.ASCII)
GROUP_NAME = re.compile(r"[A-Za-z0-9_.:@-]{1,128}", re.ASCII)

FUNCTIONS_MAX = 4096
"""Functions of one node."""
WEIGHT_MAX = 4 * 1024 * 1024
"""Bytes that all descriptions of one node may take: 1 KiB for each of so many functions."""
SLOTS_MAX = 65536
TEXT_CHARS_MAX = 16 * 1024
"""Longest documentation or signature that is kept."""
LABEL_CHARS_MAX = 256
LABELS_MAX = 64
PARAMETERS_MAX = 256
PLAIN_NODES_MAX = 4096
"""Values in one piece of metadata, however nested."""
PLAIN_DEPTH_MAX = 16
INT_BITS_MAX = 1024
"""Python takes quadratic time to print long integers, and beyond some length refuses to."""

GROUP_MAIN = "main"


class BadOffer(ValueError):
    """A registration that cannot be taken; the message is for the node's owner."""


@dataclass(slots=True)
class FunctionEntry:
    """One function as its node describes it.

    Attributes:
        group: The slot group in which it runs.
        slots: How many calls of that group the node runs at once.
        access_level: A level that the caller must hold, or None.
        auth_required: The caller must be an individual.
        facts: The rest of the description, for discovery.
        terms: Its quota and its price, None if it has neither.
        weight: About how many bytes it takes to keep all that.
    """

    name: str
    description: str
    signature: str
    stream: bool
    group: str
    slots: int
    timeout_s: float | None
    idempotent: bool
    auth_required: bool
    access_level: str | None
    facts: dict[str, Any] = field(default_factory=dict)
    terms: Terms | None = None

    @property
    def weight(self) -> int:
        """About how many bytes it takes to keep all that is said."""
        return len(self.description) + len(self.signature) + weigh(self.facts)


@dataclass(slots=True)
class NodeOffer:
    """A whole registration, or the change of one (`removed`, `paused`, `draining`)."""

    functions: list[FunctionEntry] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    capabilities: dict[str, Any] | None = None
    labels: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    paused: bool | None = None
    draining: bool | None = None


_FUNCTION_FACTS = (
    "parameters", "schema", "returns", "is_async", "isolation", "requirements", "quota", "scaling",
    "billing", "priority", "cache", "version", "tags", "metadata", "max_concurrency",
)  # fmt: skip
_NODE_FACTS = ("version", "platform", "hostname", "max_concurrency", "python", "accept_code")


def read_offer(value: Any) -> NodeOffer:
    """Check a registration or an update.

    Raises:
        BadOffer: It is not one, or something in it is beyond its limit.
    """
    info = _dict(value, "a registration")
    entries = _list(info.get("functions"), "functions", FUNCTIONS_MAX)
    functions = [read_function(entry) for entry in entries]
    removed = _list(info.get("removed"), "removed", FUNCTIONS_MAX)
    names = {entry.name for entry in functions}
    if len(names) != len(functions):
        raise BadOffer("a function name occurs twice; register it once, or with replace=True")
    capabilities = info.get("capabilities")
    if capabilities is not None:
        capabilities = plain(_dict(capabilities, "capabilities"), "capabilities")
    return NodeOffer(
        functions=functions,
        removed=[function_name(one) for one in removed],
        capabilities=capabilities,
        labels=_labels(info.get("labels"), "labels"),
        facts={key: plain(info[key], key) for key in _NODE_FACTS if key in info},
        paused=_flag(info.get("paused"), "paused"),
        draining=_flag(info.get("draining"), "draining"),
    )


def read_function(value: Any) -> FunctionEntry:
    """Check the description of one function.

    Raises:
        BadOffer: A field has the wrong type or is beyond its limit.
    """
    entry = _dict(value, "a function's description")
    name = function_name(entry.get("name"))
    where = f"function {name}"
    group = entry.get("group", GROUP_MAIN)
    if type(group) is not str or GROUP_NAME.fullmatch(group) is None:
        raise BadOffer(f"{where}: its slot group is no name")
    slots = entry.get("slots", 1)
    if type(slots) is not int or not 1 <= slots <= SLOTS_MAX:
        raise BadOffer(f"{where}: slots must lie between 1 and {SLOTS_MAX}")
    _list(entry.get("parameters"), f"{where}: parameters", PARAMETERS_MAX)
    try:
        terms = read_terms(entry)
    except ValueError as error:
        raise BadOffer(f"{where}: {str(error)[:TEXT_CHARS_MAX]}") from None
    return FunctionEntry(
        name=name,
        description=_text(entry.get("doc", entry.get("description")), f"{where}: doc"),
        signature=_text(entry.get("signature"), f"{where}: signature"),
        stream=bool(_flag(entry.get("stream"), f"{where}: stream")),
        group=group,
        slots=slots,
        timeout_s=_seconds(entry.get("timeout_s"), f"{where}: timeout_s"),
        idempotent=bool(_flag(entry.get("idempotent"), f"{where}: idempotent")),
        auth_required=bool(_flag(entry.get("auth_required"), f"{where}: auth_required")),
        access_level=_label(entry.get("access_level"), f"{where}: access_level"),
        facts={
            key: plain(entry[key], f"{where}: {key}") for key in _FUNCTION_FACTS if key in entry
        },
        terms=terms,
    )


def function_name(value: Any) -> str:
    """Return `value` if it is the name of a function.

    Raises:
        BadOffer: It is not.
    """
    if type(value) is not str or FUNCTION_NAME.fullmatch(value) is None:
        raise BadOffer(
            "a function name has 1 to 64 letters, digits and underscores and begins with no digit"
        )
    return value


def node_id(value: Any) -> str:
    """Return `value` if it is the id of a node.

    Raises:
        BadOffer: It is not.
    """
    if type(value) is not str or NODE_ID.fullmatch(value) is None:
        raise BadOffer(
            "a node id has 1 to 128 letters, digits and _ . : @ - and begins with none of . : @ -"
        )
    return value


def plain(value: Any, where: str) -> Any:
    """Return a copy of `value` that is made of plain data alone, within all limits.

    Raises:
        BadOffer: It is too large, too deep, or holds something else.
    """
    return _Copier(where).copy(value, 0)


def weigh(value: Any) -> int:
    """Return about how many bytes a checked plain value takes."""
    if type(value) is str:
        return 64 + len(value)
    if type(value) is list:
        return 64 + sum(weigh(item) for item in value)
    if type(value) is dict:
        return 64 + sum(len(key) + weigh(item) for key, item in value.items())
    return 64


class _Copier:
    """Copies plain data and counts what it copies."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.left = PLAIN_NODES_MAX

    def copy(self, value: Any, depth: int) -> Any:
        self.left -= 1
        if self.left < 0 or depth > PLAIN_DEPTH_MAX:
            raise BadOffer(f"{self.where} is too large or nested too deeply")
        kind = type(value)
        if value is None or kind is bool:
            return value
        if kind is float:
            return value if math.isfinite(value) else str(value)  # JSON has no such numbers.
        if kind is int:
            if value.bit_length() > INT_BITS_MAX:
                raise BadOffer(f"{self.where} holds an integer of more than {INT_BITS_MAX} bits")
            return value
        if kind is str:
            return value[:TEXT_CHARS_MAX]
        if kind in (list, tuple, set, frozenset):
            return [self.copy(item, depth + 1) for item in value]
        if kind is dict:
            if not all(type(key) is str and len(key) <= LABEL_CHARS_MAX for key in value):
                raise BadOffer(f"{self.where}: keys are short strings")
            return {key: self.copy(item, depth + 1) for key, item in value.items()}
        raise BadOffer(f"{self.where} holds a {kind.__name__}; only plain data can be described")


def _dict(value: Any, where: str) -> dict[str, Any]:
    if type(value) is not dict or not all(type(key) is str for key in value):
        raise BadOffer(f"{where} is a map with strings for keys")
    return value


def _list(value: Any, where: str, items_max: int) -> list[Any]:
    if value is None:
        return []
    if type(value) not in (list, tuple) or len(value) > items_max:
        raise BadOffer(f"{where} is a list of at most {items_max}")
    return list(value)


def _text(value: Any, where: str) -> str:
    if value is None:
        return ""
    if type(value) is not str:
        raise BadOffer(f"{where} is text")
    return value[:TEXT_CHARS_MAX]


def _label(value: Any, where: str) -> str | None:
    if value is None:
        return None
    if type(value) is not str or not 0 < len(value) <= LABEL_CHARS_MAX:
        raise BadOffer(f"{where} is text of 1 to {LABEL_CHARS_MAX} characters")
    return value


def _labels(value: Any, where: str) -> list[str]:
    labels = [_label(item, where) for item in _list(value, where, LABELS_MAX)]
    return [label for label in labels if label is not None]


def _flag(value: Any, where: str) -> bool | None:
    if value is None or type(value) is bool:
        return value
    raise BadOffer(f"{where} is true or false")


def _seconds(value: Any, where: str) -> float | None:
    if value is None:
        return None
    if type(value) not in (int, float) or not 0.0 < value < 1e9:
        raise BadOffer(f"{where} is a positive number of seconds")
    return float(value)
