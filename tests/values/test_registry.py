"""Registered types travel as plain data, by a name, and are built without running their code."""

from __future__ import annotations

import dataclasses
import enum
from typing import Any

import numpy as np
import pytest

from easyremote import values
from easyremote.errors import SerializationError
from easyremote.values import registry, tags
from easyremote.wire.cbor import encode_value, tag

from .helpers import delivered, there_and_back


@pytest.fixture(autouse=True)
def empty_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test registers its own types."""
    monkeypatch.setattr(registry, "_type_by_name", {})
    monkeypatch.setattr(registry, "_name_by_type", {})


@dataclasses.dataclass
class Model:
    weights: Any
    name: str = "none"
    tags: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True, slots=True)
class Point:
    x: int
    y: int
    norm: float = dataclasses.field(init=False, default=0.0)

    def __post_init__(self) -> None:
        object.__setattr__(self, "norm", float(self.x**2 + self.y**2))


class Colour(enum.Enum):
    RED = "r"
    GREEN = ("g", 2)


class Strict(enum.Flag):
    ONE = 1


class Access(enum.IntFlag):
    READ = 1
    WRITE = 2


def arrived(number: int, fields: Any) -> Any:
    return values.decode(encode_value(tag(number, fields)), [], allow_pickle=False)


def test_dataclasses_arrive_as_their_own_type_with_their_parts() -> None:
    """Fields may hold anything that travels, arrays too."""
    values.register_type(Model)
    values.register_type(Point, "point")
    model = Model(np.arange(3.0), "m", ["a"])

    got = there_and_back([model, {"p": Point(3, 4)}, {Point(1, 2): 1}])
    assert type(got[0]) is Model
    assert got[0].weights.tolist() == [0.0, 1.0, 2.0]
    assert got[0].tags == ["a"]
    assert got[1] == {"p": Point(3, 4)}
    assert got[1]["p"].norm == 25.0
    assert got[2] == {Point(1, 2): 1}


def test_enumerations_arrive_as_the_same_members() -> None:
    """Members are found by name, combined flags by number."""
    values.register_type(Colour)
    values.register_type(Access)

    got = there_and_back([Colour.RED, Colour.GREEN, Access.READ | Access.WRITE, Access(0)])
    assert got[0] is Colour.RED
    assert got[1] is Colour.GREEN
    assert got[2] is Access.READ | Access.WRITE
    assert type(got[3]) is Access


def test_no_code_of_the_type_runs_on_arrival() -> None:
    """An instance is built field by field: neither __init__ nor __post_init__ is called."""
    calls: list[str] = []

    @values.register_type
    @dataclasses.dataclass
    class Loud:
        x: int

        def __init__(self, x: int) -> None:
            calls.append("init")
            self.x = x

    encoded = values.encode(Loud(1), allow_pickle=False)
    calls.clear()

    assert values.decode(encoded.body, [], allow_pickle=False).x == 1
    assert calls == []


def test_fields_that_the_sender_does_not_know_get_their_defaults() -> None:
    """A newer receiver understands an older sender; a field without a default stays missing."""
    values.register_type(Model, "m")

    got = arrived(tags.DATACLASS, ["m", {"name": "x"}])
    assert got.name == "x"
    assert got.tags == []
    assert not hasattr(got, "weights")
    assert there_and_back(got).name == "x"


def test_unregistered_types_do_not_leave_and_the_error_says_how() -> None:
    """Without a registration there is no name for the type on the wire."""
    for value in (Model(1), Colour.RED):
        with pytest.raises(SerializationError, match="register_type"):
            values.encode(value, allow_pickle=False)


@pytest.mark.parametrize("fields", [None, [], ["nobody", {}], [1, {}], ["os", {}], [None, None],
                                    ["m"], ["m", 1], ["m", {"x": 1}], ["m", {"name": 1}, 2],
                                    ["c", {}], ["m", []]])  # fmt: skip
def test_unknown_names_and_fields_are_refused_on_arrival(fields: Any) -> None:
    """A name from the wire is a key into the receiver's own table, and nothing else."""
    values.register_type(Model, "m")
    values.register_type(Colour, "c")

    with pytest.raises(SerializationError):
        arrived(tags.DATACLASS, fields)


@pytest.mark.parametrize("fields", [None, [], ["c"], ["c", None], ["c", "BLUE"], ["c", "r"],
                                    ["c", 1], ["m", "name"], ["nobody", "RED"], ["s", 1 << 40],
                                    ["a", "READ|"],
                                    ["a", 1.0], ["c", "__class__"], ["c", ["RED"]]])  # fmt: skip
def test_unknown_members_are_refused_on_arrival(fields: Any) -> None:
    """Only members that exist here; no attribute of the class is reachable."""
    values.register_type(Model, "m")
    values.register_type(Colour, "c")
    values.register_type(Access, "a")
    values.register_type(Strict, "s")

    with pytest.raises(SerializationError):
        arrived(tags.ENUM, fields)


def test_a_type_that_cannot_be_built_is_a_typed_error() -> None:
    """A base that insists on its own maker gives an error, not a crash."""

    @dataclasses.dataclass
    class Odd(int):
        x: int = 0

    values.register_type(Odd, "odd")
    with pytest.raises(SerializationError, match="cannot be built"):
        arrived(tags.DATACLASS, ["odd", {"x": 1}])


def test_undefined_does_not_hide_in_a_field() -> None:
    """Fields are searched for forbidden simple values like every other container."""
    values.register_type(Model, "m")
    body = encode_value(tag(tags.DATACLASS, ["m", {"name": ["@"]}]))

    with pytest.raises(SerializationError, match="undefined"):
        values.decode(body.replace(b"\x81\x61@", b"\x82\xf7\xf7"), [], allow_pickle=False)


def test_one_name_means_one_type() -> None:
    """Two different types under one name are refused, the same type defined again is not."""
    values.register_type(Model, "m")

    with pytest.raises(ValueError, match="already the name"):
        values.register_type(Point, "m")
    again = dataclasses.make_dataclass("Model", ["weights"], namespace={"__module__": __name__})
    again.__qualname__ = "Model"
    values.register_type(again, "m")
    assert registry.name_of(again) == "m"
    assert registry.name_of(Model) is None
    values.register_type(again, "other")
    assert registry.name_of(again) == "other"
    values.register_type(Point, "m")


@pytest.mark.parametrize("wrong", [int, object(), "Model", len, Exception])
def test_only_dataclasses_and_enumerations_can_be_registered(wrong: Any) -> None:
    """What a type consists of must be known."""
    with pytest.raises(TypeError, match="only those"):
        values.register_type(wrong)


@pytest.mark.parametrize("name", ["", "n" * 257])
def test_names_have_a_length(name: str) -> None:
    """A name is part of every value of its type."""
    with pytest.raises(ValueError, match="characters"):
        values.register_type(Model, name)


def test_buffers_of_fields_come_in_order() -> None:
    """Arrays in fields and beside them find their bytes."""
    values.register_type(Model)
    value = [np.zeros(3), Model(np.ones(4), tags=[]), {"z": np.full(5, 2.0)}]
    encoded = values.encode(value, allow_pickle=False)

    got = values.decode(encoded.body, delivered(encoded), allow_pickle=False)
    assert [len(got[0]), len(got[1].weights), len(got[2]["z"])] == [3, 4, 5]
    assert got[1].weights.tolist() == [1.0] * 4
