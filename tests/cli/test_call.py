"""`easyremote call`: what is typed becomes arguments, what comes back becomes text."""

from __future__ import annotations

from datetime import date
from typing import Any

import numpy as np
import pytest

from easyremote.cli.call import parse_arguments, parse_target, parse_value
from easyremote.cli.output import result_text

from .conftest import Run


@pytest.mark.parametrize(
    ("text", "node_id", "function"),
    [
        ("train", None, "train"),
        ("gpu-01.train", "gpu-01", "train"),
        ("gpu.lab.example.train", "gpu.lab.example", "train"),
    ],
)
def test_a_target_is_a_function_or_a_function_of_a_node(
    text: str, node_id: str | None, function: str
) -> None:
    """The last dot divides: ids of nodes may have dots, names of functions have none."""
    assert parse_target(text) == (node_id, function)


@pytest.mark.parametrize("text", ["", ".", ".train", "gpu-01.", "a b", "train()", "gpu-01"])
def test_what_names_no_function_is_refused(text: str) -> None:
    """A mistyped target is found before anybody is asked."""
    with pytest.raises(ValueError, match=r"NODE\.FUNCTION"):
        parse_target(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("-2.5", -2.5),
        ("true", True),
        ("null", None),
        ('"3"', "3"),
        ("[1, [2]]", [1, [2]]),
        ('{"a": 1}', {"a": 1}),
        ("hello", "hello"),
        ("hello world", "hello world"),
        ("it's [fine]", "it's [fine]"),
        ("1.2.3", "1.2.3"),
        ("2026-01-31", "2026-01-31"),
        ("", ""),
    ],
)
def test_an_argument_is_json_or_a_bare_word(text: str, value: Any) -> None:
    """Numbers, truth values, lists and objects are JSON; a word needs no second pair of quotes."""
    assert parse_value(text) == value
    assert type(parse_value(text)) is type(value)


@pytest.mark.parametrize("text", ["[1, 2", '{"a": 1', '"open', "{'a': 1}", " x"])
def test_broken_json_is_not_taken_for_text(text: str) -> None:
    """What begins like JSON must be JSON: half an object is a mistake, not a word."""
    with pytest.raises(ValueError, match="is no JSON"):
        parse_value(text)


def test_named_arguments_come_last_and_once() -> None:
    """NAME=ARG is an argument by keyword, as in Python."""
    assert parse_arguments(("1", "x", "rate=0.5", "name=Ada")) == (
        [1, "x"], {"rate": 0.5, "name": "Ada"},
    )  # fmt: skip
    assert parse_arguments(('"a=b"', "c=d=e")) == (["a=b"], {"c": "d=e"})
    with pytest.raises(ValueError, match="after those without"):
        parse_arguments(("a=1", "2"))
    with pytest.raises(ValueError, match="given twice"):
        parse_arguments(("a=1", "a=2"))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("plain [text]", "plain [text]"),
        ("two\nlines", "two\nlines"),
        (3, "3"),
        (None, "null"),
        (True, "true"),
        ([1, "ä"], '[\n  1,\n  "ä"\n]'),
        ({"a": np.float64(0.5)}, '{\n  "a": 0.5\n}'),
        (np.int32(7), "7"),
        (np.arange(3), "array of int64, shape 3\n[0 1 2]"),
        ({1, 2}, "{1, 2}"),
        (3 + 4j, "(3+4j)"),
        (b"\x00", "b'\\x00'"),
        (date(2026, 1, 2), "datetime.date(2026, 1, 2)"),
    ],
)  # fmt: skip
def test_a_result_is_printed_readably(value: Any, text: str) -> None:
    """Text as it is, plain data as JSON, arrays with type and shape, the rest by its repr."""
    assert result_text(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ([1, {"a": 2}], '[1, {"a": 2}]'),
        ("two\nlines", '"two\\nlines"'),
        ("one line", "one line"),
        (np.zeros((2, 3)), "array of float64, shape 2x3"),
        ({1}, "{1}"),
    ],
)
def test_an_item_of_a_stream_is_one_line(value: Any, text: str) -> None:
    """A reader of lines gets one item a line, whatever is in it."""
    assert result_text(value, one_line=True) == text


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["call"], 2, "Missing argument"),
        (["call", "f()", "1"], 1, "is no function"),
        (["call", "n.f", "[1"], 1, "is no JSON"),
        (["call", "n.f", "--timeout", "0"], 2, "longer than zero"),
        (["call", "n.f"], 1, "No gateway was named"),
    ],
)
def test_a_wrong_call_is_told_before_it_is_made(
    run: Run, words: list[str], code: int, said: str
) -> None:
    """Mistakes that can be seen here are told here."""
    done = run(*words)

    assert done.exit_code == code
    assert said in done.stderr
    assert done.stdout == ""
