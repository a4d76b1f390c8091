"""What is read from a function when it is registered."""

# ruff: noqa: B006, B008 - these functions are described, never called
from __future__ import annotations

import dataclasses
import enum
import functools
from collections.abc import AsyncIterator, Iterator
from typing import Any, Literal, TypedDict

import numpy as np
import pytest

from easyremote.node import describe
from easyremote.node.describe import describe_parameters, first_paragraph, shape_of


def sync(a: int, b: str = "x", *rest: float, flag: bool = False, **more: Any) -> list[int]:
    """Say one thing
    on two lines.

    And more.
    """
    return [a]


def generator(n: int) -> Iterator[int]:
    yield n


async def coroutine() -> None: ...


async def async_generator() -> AsyncIterator[int]:
    yield 1


class CallableObject:
    """Not this."""

    def __call__(self, x: int) -> Iterator[int]:
        """This."""
        yield x


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


@dataclasses.dataclass
class Point:
    x: float
    y: float = 0.0


class Options(TypedDict, total=False):
    depth: int


def rich(
    image: np.ndarray[Any, Any], colour: Colour, point: Point, options: Options,
    mode: Literal["a", "b"], either: int | None, pair: tuple[int, str], table: dict[str, float],
    frames: Iterator[bytes], unknown: Missing,  # type: ignore[name-defined]  # noqa: F821
) -> None: ...  # fmt: skip


def test_parameters_say_kind_default_and_annotation() -> None:
    """A caller can check its arguments from the description alone."""
    described = describe_parameters(sync)

    assert [p["name"] for p in described["parameters"]] == ["a", "b", "rest", "flag", "more"]
    assert [p["required"] for p in described["parameters"]] == [True, False, False, False, False]
    assert described["parameters"][1]["default"] == "x"
    assert described["parameters"][2]["kind"] == "var_positional"
    assert described["signature"] == (
        "(a: int, b: str = 'x', *rest: float, flag: bool = False, **more: Any) -> list[int]"
    )


def test_schema_describes_parameters_and_result() -> None:
    """The schema names types, what is required and what comes back."""
    schema = describe_parameters(sync)["schema"]

    assert schema["properties"]["a"] == {"type": "integer"}
    assert schema["required"] == ["a"]
    assert schema["returns"] == {"type": "array", "items": {"type": "integer"}}


def test_schema_knows_arrays_enums_dataclasses_and_unions() -> None:
    """Types that providers use get a schema; what cannot be resolved becomes text and anything."""
    properties = describe_parameters(rich)["schema"]["properties"]

    assert properties["image"] == {"type": "string", "format": "ndarray"}
    assert properties["colour"] == {"enum": ["red", "blue"]}
    assert properties["point"]["required"] == ["x"]
    assert properties["options"]["properties"] == {"depth": {"type": "integer"}}
    assert properties["mode"] == {"enum": ["a", "b"]}
    assert properties["either"] == {"anyOf": [{"type": "integer"}, {"type": "null"}]}
    assert properties["pair"]["prefixItems"] == [{"type": "integer"}, {"type": "string"}]
    assert properties["table"]["additionalProperties"] == {"type": "number"}
    assert properties["frames"]["stream"] is True


def test_unresolvable_annotation_is_text() -> None:
    """A name that does not exist is no error: it is shown as it was written."""
    described = describe_parameters(rich)

    assert described["parameters"][-1]["annotation"] == "Missing"
    assert described["schema"]["properties"]["unknown"] == {}


def test_description_is_bounded() -> None:
    """Neither a huge default nor a deep type makes a description huge."""
    deep: Any = int
    for _ in range(50):
        deep = list[deep]

    def hostile(
        a: Any = "x" * 100_000, b: Any = list(range(100_000)), c: Any = np.zeros(10**6)
    ) -> None:  # fmt: skip
        """Text."""

    hostile.__annotations__["a"] = deep
    hostile.__doc__ = "word " * 100_000
    described = describe_parameters(hostile)

    assert len(repr(described)) < 10_000
    assert len(first_paragraph(hostile)) <= describe.DOC_CHARS_MAX


def test_repr_that_raises_is_survived() -> None:
    """A default whose repr raises is described without it."""

    class Bad:
        def __repr__(self) -> str:
            raise RuntimeError

    def fn(a: Any = Bad()) -> None: ...

    assert "Bad" in describe_parameters(fn)["parameters"][0]["default_text"]


def test_first_paragraph_is_one_line() -> None:
    """The description is the first paragraph of the docstring, of an instance its `__call__`."""
    assert first_paragraph(sync) == "Say one thing on two lines."
    assert first_paragraph(CallableObject()) == "This."
    assert first_paragraph(coroutine) == ""


@pytest.mark.parametrize(
    ("fn", "is_async", "stream"),
    [
        (sync, False, False),
        (generator, False, True),
        (coroutine, True, False),
        (async_generator, True, True),
        (functools.partial(generator, 1), False, True),
        (CallableObject(), False, True),
    ],
)
def test_shape_is_found_out(fn: Any, is_async: bool, stream: bool) -> None:
    """Generators and async functions need no keyword."""
    shape = shape_of(fn, None, None)

    assert (shape.is_async, shape.stream) == (is_async, stream)


@pytest.mark.parametrize(
    ("fn", "stream", "async_func"),
    [(generator, False, None), (sync, None, True), (coroutine, None, False)],
)
def test_contradicting_keyword_is_refused(
    fn: Any, stream: bool | None, async_func: bool | None
) -> None:
    """What was said must be true of the function."""
    with pytest.raises(TypeError):
        shape_of(fn, stream, async_func)


def test_stream_true_on_a_plain_function_is_allowed() -> None:
    """`stream=True` on a function that returns an iterable streams that iterable."""
    assert shape_of(sync, True, None).stream


@pytest.mark.parametrize("name", ["a.b", "1a", "", "a" * 65, "naïve", "a b", "<lambda>"])
def test_bad_function_name_is_refused(name: str) -> None:
    """A name is a plain identifier of at most 64 characters; the message offers `name=`."""
    with pytest.raises(ValueError, match="name="):
        describe.check_name(name)
