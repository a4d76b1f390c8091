"""Printing for people and scripts: tables, moments, JSON.

Theory. What is printed often comes from others: names of nodes, descriptions, results. On a
terminal such text could move the cursor, hide lines or start links, so control characters are
escaped there. rich reads `[...]` as styles; everything of ours goes in as plain `Text`.

Rules of this file. 1) Data goes to stdout, all else to stderr. 2) Into a pipe a table is as wide as
it needs to be, so that `grep` sees whole names.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from ..log import clean, mask

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

CELL_CHARS_MAX = 200
PIPE_COLUMNS = 1000
"""Width of a table that no terminal bounds."""


def console() -> Console:
    """Return a console on stdout."""
    from rich.console import Console

    return Console(highlight=False, width=None if sys.stdout.isatty() else PIPE_COLUMNS)


def table(title: str, columns: Iterable[str], rows: Iterable[Iterable[Any]]) -> Table:
    """Return a table; a column whose name begins with `>` is for numbers.

    Args:
        title: What the rows are.
        columns: The heads.
        rows: Values of any kind; None is shown as a dash.
    """
    from rich.table import Table
    from rich.text import Text

    made = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for column in columns:
        made.add_column(column.removeprefix(">"), justify="right" if column[0] == ">" else "left")
    for row in rows:
        made.add_row(*(Text(cell(value)) for value in row))
    return made


def cell(value: Any) -> str:
    """Return a value as it stands in a table: one line, no control characters, no secrets."""
    if value is None or value in ("", [], {}, ()):
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, datetime):
        return moment(value.timestamp())
    if isinstance(value, list | tuple | set | frozenset):
        return clean(mask(", ".join(str(one) for one in value)), CELL_CHARS_MAX)
    return clean(mask(str(value)), CELL_CHARS_MAX)


def moment(at: float | None) -> str:
    """Return a moment in UTC, to the second; `never` for None."""
    if at is None:
        return "never"
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(at))


def count(number: Any, thing: str) -> str:
    """Return how many there are of a thing.

    >>> count(1, "node"), count(2, "node"), count(None, "node")
    ('1 node', '2 nodes', '? nodes')
    """
    known = "?" if number is None else number
    return f"{known} {thing}" if number == 1 else f"{known} {thing}s"


def print_json(value: Any) -> None:
    """Print a value as JSON; moments as ISO 8601, everything else that is unknown as text.

    Infinity and not-a-number, which JSON does not have and nodes may say, are null.
    """
    try:
        text = json.dumps(value, indent=2, ensure_ascii=False, default=_plain, allow_nan=False)
    except ValueError:
        text = json.dumps(_finite(value), indent=2, ensure_ascii=False, default=_plain)
    click.echo(text)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return (value if value.tzinfo else value.replace(tzinfo=UTC)).isoformat()
    if isinstance(value, set | frozenset):
        return sorted(value)
    return str(value)


def note(text: str) -> None:
    """Tell the person at the terminal something that is no result: on stderr."""
    click.echo(text, err=True)


def print_result(value: Any, *, one_line: bool = False) -> None:
    """Print what a function returned.

    Args:
        value: Text is printed as it is, other plain data as JSON, an array as numpy shows it below
            its type and shape, anything else by its repr.
        one_line: Give it one line, for items of a stream.
    """
    text = result_text(value, one_line=one_line)
    # Into a pipe goes what was returned; a terminal would obey control characters in it.
    if sys.stdout.isatty():
        text = "\n".join(clean(line, len(line)) for line in text.split("\n"))
    click.echo(text)


def result_text(value: Any, *, one_line: bool = False) -> str:
    """Return what `print_result` prints, where no terminal reads it."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False) if one_line and "\n" in value else value
    kind, shape = getattr(value, "dtype", None), getattr(value, "shape", None)
    if kind is not None and shape:
        head = f"array of {kind}, shape {'x'.join(str(side) for side in shape)}"
        return head if one_line else f"{head}\n{value}"
    try:
        return json.dumps(
            value, indent=None if one_line else 2, ensure_ascii=False, default=_scalar
        )
    except (TypeError, ValueError):
        from pprint import pformat

        return repr(value) if one_line else pformat(value, width=100)


def _scalar(value: Any) -> Any:
    """Return a numpy scalar as JSON writes it; what else JSON lacks is shown by its repr."""
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        return value.item()
    raise TypeError(f"{type(value).__name__} is not JSON")
