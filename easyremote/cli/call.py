"""`easyremote call NODE.FUNCTION ARGS`: call a function from a shell.

Rules of this file. 1) The result goes to stdout, so that it can be piped: text as it is, other
plain data as JSON. 2) An argument that looks like JSON must be JSON; a bare word is text, so that
nobody has to quote twice. 3) Items of a stream are printed as they come, one line each.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from .base import Command
from .duration import duration_option
from .options import connection_options
from .output import print_result

if TYPE_CHECKING:
    from ..client.client import Client

_NAMED = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)=(.*)", re.ASCII | re.DOTALL)
_WORD = re.compile(r"(?![\s\[{\"']).*", re.DOTALL)


class Target(NamedTuple):
    """What is to be called: a function, on one node if it is named."""

    node_id: str | None
    function: str


def parse_target(text: str) -> Target:
    """Read `NODE.FUNCTION` or `FUNCTION`; the id of a node may have dots itself.

    Raises:
        ValueError: There is no function in it.

    >>> parse_target("gpu.lab.train")
    Target(node_id='gpu.lab', function='train')
    """
    node_id, _, function = text.rpartition(".")
    if not function.isidentifier() or text.startswith("."):
        raise ValueError(f"{text[:100]!r} is no function; write NODE.FUNCTION or FUNCTION")
    return Target(node_id or None, function)


def parse_value(text: str) -> Any:
    """Read one argument: JSON, or a bare word, which is text.

    Raises:
        ValueError: It begins like JSON and is none.

    >>> parse_value("[1, 2.5]"), parse_value("true"), parse_value("hello")
    ([1, 2.5], True, 'hello')
    """
    try:
        return json.loads(text)
    except ValueError as error:
        if _WORD.fullmatch(text):
            return text
        raise ValueError(
            f"the argument {text[:80]!r} is no JSON ({error}); text with a quote, bracket or "
            "space at its front is written as a JSON string"
        ) from None


def parse_arguments(texts: tuple[str, ...]) -> tuple[list[Any], dict[str, Any]]:
    """Read all arguments; `name=VALUE` is one by keyword.

    Raises:
        ValueError: One is wrong, or a name comes twice or before an argument without a name.
    """
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    for text in texts:
        named = _NAMED.fullmatch(text)
        if named is None:
            if kwargs:
                raise ValueError("arguments with a name come after those without")
            args.append(parse_value(text))
        elif named[1] in kwargs:
            raise ValueError(f"the argument {named[1]} is given twice")
        else:
            kwargs[named[1]] = parse_value(named[2])
    return args, kwargs


@click.command(
    cls=Command,
    context_settings={"ignore_unknown_options": True},
    epilog="Examples: easyremote call gpu-01.train '{\"layers\": 4}' epochs=3  |  "
    "easyremote call greet Ada",
)
@click.argument("function", metavar="[NODE.]FUNCTION")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[ARG | NAME=ARG]...")
@click.option(
    "--timeout", callback=duration_option(bare_seconds=True), metavar="TIME",
    help="When to give up: 30s, 5m; a number alone counts seconds.",
)  # fmt: skip
@connection_options
def call(
    function: str, arguments: tuple[str, ...], timeout: float | None, gateway: str | None,
    auth: str | None,
) -> None:  # fmt: skip
    """Call a function and print its result.

    Arguments are JSON or bare words, in order or as NAME=ARG. A stream is printed item by item.
    """
    target = parse_target(function)
    args, kwargs = parse_arguments(arguments)
    from ..client.client import connect

    with connect(gateway, auth=auth) as client:
        _call(client, target, timeout, args, kwargs)


def _call(
    client: Client, target: Target, timeout_s: float | None, args: list[Any], kwargs: dict[str, Any]
) -> None:
    """Call and print, a stream item by item."""
    from ..client.function import RemoteFunction, RemoteStreamFunction
    from ..client.options import route

    options: dict[str, Any] = {"timeout": timeout_s}
    if target.node_id is not None:
        options["node_id"] = target.node_id
    way = route(target.function, options)
    function: RemoteFunction[..., Any] = RemoteFunction(way, options)
    if not function.info().stream:
        print_result(client.submit(function, *args, **kwargs).result())
        return
    items: RemoteStreamFunction[..., Any] = RemoteStreamFunction(way, options)
    with client.stream(items, *args, **kwargs) as stream:
        for item in stream:
            print_result(item, one_line=True)
