"""Below a token that several people share: which of them a call says it is of.

Theory. A quota is per user, and a user is who the token says. A team that shares one token may
divide what it may use by itself: where the function has a parameter named `user_id`, its value is
the name of a sub-account, with a quota of its own. That is bookkeeping among people who trust each
other: it grants nothing, and the bill stays with the token's user. With a token of one's own the
argument is data like any other.

Rules of this file. 1) Only the plain encoding is looked at; what users mean by tags is left blank,
and a pickle is never opened. 2) What cannot be read has no sub-account.

Source. promises.md D12; features.md R7 and R12.
"""

from __future__ import annotations

from typing import Any

from ..wire.cbor import TagTable, decode_value
from ..wire.errors import CodecError
from ..wire.message import CODEC_PLAIN
from .calls import GatewayCall
from .pool import Pool

PARAMETER = "user_id"
CHARS_MAX = 128
POSITIONAL = ("positional_only", "positional_or_keyword")


def _blank(_: Any) -> None:
    return None


_TAGS = TagTable(dict.fromkeys((37, *range(128, 192)), _blank))


def sub_account(call: GatewayCall, pool: Pool) -> str:
    """Return the sub-account that a call is of, empty for none."""
    message = call.message
    if not call.principal.shared or message.codec != CODEC_PLAIN or message.body is None:
        return ""
    offer = next((offer for offer in pool.places.values() if offer.entry.terms is not None), None)
    if offer is None:
        return ""
    names, index = _parameters(offer.entry.facts.get("parameters"))
    if PARAMETER not in names:
        return ""
    try:
        arguments = decode_value(message.body, _TAGS)
    except CodecError:
        return ""
    return _named(arguments, index)


def _parameters(described: Any) -> tuple[list[str], int]:
    """Return the names of parameters, and the place of ours among those given by position."""
    names, index = [], -1
    for place, one in enumerate(described if type(described) is list else []):
        if type(one) is dict and type(one.get("name")) is str:
            names.append(one["name"])
            if one["name"] == PARAMETER and one.get("kind") in POSITIONAL:
                index = place
    return names, index


def _named(arguments: Any, index: int) -> str:
    if type(arguments) not in (list, tuple) or len(arguments) != 2:
        return ""
    args, kwargs = arguments
    value: Any = None
    if type(kwargs) is dict and PARAMETER in kwargs:
        value = kwargs[PARAMETER]
    elif type(args) in (list, tuple) and 0 <= index < len(args):
        value = args[index]
    if type(value) not in (str, int) or len(str(value)) > CHARS_MAX:
        return ""
    return str(value)
