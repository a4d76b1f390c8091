"""Pickles: only where they are allowed, with identity, arrays beside them, and code by value."""

from __future__ import annotations

import collections
import dataclasses
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from easyremote import values
from easyremote.errors import SerializationError
from easyremote.values import pickled, plain
from easyremote.wire.errors import ErrorCode

from .helpers import delivered, there_and_back


class Model:
    def __init__(self, **parts: Any) -> None:
        vars(self).update(parts)


@dataclasses.dataclass(slots=True)
class Slotted:
    part: Any


class Unpicklable:
    def __reduce__(self) -> Any:
        raise RuntimeError("no pickle of me")


def pickle_trip(value: Any) -> Any:
    encoded = values.encode(value, allow_pickle=True)
    assert encoded.pickled
    return values.decode(encoded.body, delivered(encoded), allow_pickle=True)


def test_plain_data_is_never_pickled_though_it_may_be() -> None:
    """Allowing pickles changes nothing for what needs none."""
    for value in (1, [np.zeros(3)], {"a": (1, {2})}):
        assert not values.encode(value, allow_pickle=True).pickled
    assert not values.encode_call((1, "a"), {"k": [1]}, allow_pickle=True).pickled


def test_identity_and_cycles_survive_across_the_whole_value() -> None:
    """If one part needs a pickle the whole value is one, so that shared parts stay shared."""
    shared = Model(x=1)
    shared.me = shared  # type: ignore[attr-defined]
    weights = np.arange(10_000.0)

    got = pickle_trip([shared, {"again": shared}, weights, Model(w=weights), (1, 2)])
    assert got[0] is got[1]["again"] is got[0].me
    assert got[2] is got[3].w
    assert got[4] == (1, 2)


def test_arguments_share_identity() -> None:
    """What two arguments refer to is one object on the other side."""
    shared = Model()
    encoded = values.encode_call((shared, [shared]), {"m": shared}, allow_pickle=True)
    assert encoded.pickled

    args, kwargs = values.decode_call(encoded.body, delivered(encoded), allow_pickle=True)
    assert args[0] is args[1][0] is kwargs["m"]


def test_endless_and_deep_values_travel_as_pickles() -> None:
    """What plain data cannot express goes this way, where it is allowed."""
    endless: list[Any] = []
    endless.append(endless)
    deep: Any = 1
    for _ in range(40):
        deep = [deep]

    got = pickle_trip(endless)
    assert got[0] is got
    assert pickle_trip(deep) == deep
    assert pickle_trip(10**200_000) == 10**200_000


def test_types_of_users_arrive_as_themselves() -> None:
    """Subclasses, named tuples and standard types keep their type."""
    point = collections.namedtuple("point", "x y")  # noqa: PYI024
    globals()["point"] = point
    for value in (
        range(3),
        collections.OrderedDict(a=1),
        np.array(["text"]),
        Model,
        len,
        point(1, 2),
    ):
        got = pickle_trip(value)
        assert type(got) is type(value)
        assert repr(got) == repr(value)


@pytest.mark.parametrize("layout", ["c", "fortran", "strided", "readonly", "reversed", "small"])
def test_arrays_in_pickles_travel_beside_them_and_arrive_writable(layout: str) -> None:
    """Any layout is out of band from some size on, and arrives in memory of its own."""
    base = np.arange(40_000.0).reshape(200, 200)
    array = {
        "c": base, "fortran": base.T, "strided": base[:, ::2], "reversed": base[::-1],
        "readonly": np.broadcast_to(np.float64(3), (100, 100)), "small": base[0, :3],
    }[layout]  # fmt: skip
    encoded = values.encode(Model(a=array), allow_pickle=True)

    assert len(encoded.buffers) == int(layout != "small")
    assert len(encoded.body) < 5000
    got = values.decode(encoded.body, delivered(encoded), allow_pickle=True).a
    assert np.array_equal(got, array)
    got[...] = 1.0
    immutable = values.decode(
        encoded.body, [bytes(part) for part in encoded.buffers], allow_pickle=True
    )
    immutable.a[...] = 2.0


def test_small_buffers_of_pickles_are_copied_at_the_call() -> None:
    """As with plain arrays: what has up to 1 MiB may be changed at once."""
    array = np.zeros(100_000, np.uint8)
    encoded = values.encode(Model(a=array), allow_pickle=True)
    array[:] = 1

    assert not values.decode(encoded.body, delivered(encoded), allow_pickle=True).a.any()


def test_very_many_arrays_in_a_pickle_stay_within_the_buffers_of_a_message() -> None:
    """Beyond some number they stay in the pickle."""
    value = [Model(), *(np.full(1000, index) for index in range(4100))]
    encoded = values.encode(value, allow_pickle=True)

    assert len(encoded.buffers) == pickled.BUFFERS_MAX
    got = values.decode(encoded.body, delivered(encoded), allow_pickle=True)
    assert all((part == index).all() for index, part in enumerate(got[1:]))


def test_closures_and_lambdas_travel_by_value() -> None:
    """What has no name to be found by is sent whole."""
    step = 5

    def add(x: int) -> int:
        return x + step

    class Local:
        def twice(self, x: int) -> int:
            return 2 * x

    assert pickle_trip(add)(1) == 6
    assert pickle_trip(lambda x: x * step)(2) == 10
    assert pickle_trip(Local()).twice(4) == 8


def test_without_permission_a_pickle_neither_leaves_nor_arrives() -> None:
    """Both sides decide for themselves; the error says who must allow what."""
    with pytest.raises(SerializationError, match=r"^args\[0\] is .*Model.*accept_code"):
        values.encode_call((Model(),), {}, allow_pickle=False)
    encoded = values.encode(Model(), allow_pickle=True)
    for decode in (values.decode, values.decode_call):
        with pytest.raises(SerializationError, match="trust_nodes") as caught:
            decode(encoded.body, [], allow_pickle=False)
        assert caught.value.code is ErrorCode.UNSUPPORTED_CODEC
    with pytest.raises(SerializationError):
        plain.decode(encoded.body)


@pytest.mark.parametrize(
    ("args", "kwargs", "path"),
    [
        ((threading.Lock(),), {}, "args[0] cannot be pickled: "),
        ((Model(model=Model(x=threading.Lock())),), {}, "args[0].model.x cannot be pickled: "),
        ((Slotted(threading.Lock()),), {}, "args[0].part cannot be pickled: "),
        ((1,), {"data": [1, {"k": Model(x=[Unpicklable()])}]}, "kwargs['data'][1]['k'].x[0] "),
    ],
)
def test_the_part_that_no_pickle_takes_is_named(
    args: tuple[Any, ...], kwargs: dict[str, Any], path: str
) -> None:
    """Through containers and attributes, down to the innermost part."""
    with pytest.raises(SerializationError) as caught:
        values.encode_call(args, kwargs, allow_pickle=True)

    assert str(caught.value).startswith(path)


def test_buffers_must_be_used_up() -> None:
    """Too few or too many buffers behind a pickle are a typed error."""
    encoded = values.encode(Model(a=np.zeros(10_000)), allow_pickle=True)
    arrived = delivered(encoded)

    for buffers in ([], [*arrived, memoryview(bytearray(1))]):
        with pytest.raises(SerializationError, match="pickle"):
            values.decode(encoded.body, buffers, allow_pickle=True)


@pytest.mark.parametrize("body", [b"\xff", b"\xff\x80", b"\xff\x80\x05.", b"\xffgarbage"])
def test_broken_pickles_are_a_typed_error(body: bytes) -> None:
    """Whatever the unpickler raises, the caller sees one error."""
    with pytest.raises(SerializationError, match="cannot be loaded"):
        values.decode(body, [], allow_pickle=True)


def test_errors_of_code_in_a_pickle_are_told() -> None:
    """A `__setstate__` that raises here fails this value alone."""

    class Picky:
        def __reduce__(self) -> Any:
            return int, ("no number",)

    encoded = values.encode(Picky(), allow_pickle=True)
    with pytest.raises(SerializationError, match="ValueError: invalid literal"):
        values.decode(encoded.body, [], allow_pickle=True)


def run(folder: Path, script: str, *args: str) -> str:
    """Run a script in a process of its own, in `folder`, and return what it prints."""
    root = str(Path(__file__).resolve().parent.parent.parent)
    (folder / "script.py").write_text(textwrap.dedent(script))
    done = subprocess.run(
        [sys.executable, "script.py", *args],
        cwd=folder,
        env={"PYTHONPATH": root, "PATH": ""},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


SENDER = """
    import sys
    from easyremote import values
    {definition}
    encoded = values.encode([{value}], allow_pickle=True)
    assert encoded.pickled and not encoded.buffers
    open(sys.argv[1], "wb").write(encoded.body)
"""
RECEIVER = """
    import sys
    from easyremote import values
    body = open(sys.argv[1], "rb").read()
    value, = values.decode(body, [], allow_pickle=True)
    print(value.double(21) if hasattr(value, "double") else value(21))
    encoded = values.encode([value], allow_pickle=True)
    open(sys.argv[1], "wb").write(encoded.body)
"""
DEFINITION = """
FACTOR = 2

class Base:
    def double(self, x):
        return helper(x)

class Model(Base):
    pass

def helper(x):
    return FACTOR * x
"""


@pytest.mark.parametrize("value", ["Model()", "helper"])
@pytest.mark.parametrize("place", ["main", "module"])
def test_what_the_other_side_cannot_import_travels_by_value(
    tmp_path: Path, place: str, value: str
) -> None:
    """Types and functions of a script, or of a module beside it, work where neither exists."""
    sender, receiver = tmp_path / "sender", tmp_path / "receiver"
    sender.mkdir()
    receiver.mkdir()
    body = str(tmp_path / "body")
    definition = DEFINITION.replace("\n", "\n    ")
    if place == "module":
        (sender / "user_models.py").write_text(DEFINITION)
        definition = "from user_models import *"
    run(sender, SENDER.format(definition=definition, value=value), body)

    assert run(receiver, RECEIVER, body) == "42\n"
    back = f"""
    import sys
    from easyremote import values
    {definition}
    value, = values.decode(open(sys.argv[1], "rb").read(), [], allow_pickle=True)
    print(value.double(4) if hasattr(value, "double") else value(4))
    """
    assert run(sender, back, body) == "8\n"


def test_what_the_other_side_has_under_the_same_name_is_used_there(tmp_path: Path) -> None:
    """A module that both sides have is each side's own: instances are of the class known there."""
    sender, receiver = tmp_path / "sender", tmp_path / "receiver"
    for folder in (sender, receiver):
        folder.mkdir()
        (folder / "user_models.py").write_text(DEFINITION)
    (receiver / "user_models.py").write_text(DEFINITION.replace("= 2", "= 10"))
    body = str(tmp_path / "body")
    run(sender, SENDER.format(definition="from user_models import *", value="Model()"), body)

    assert run(receiver, RECEIVER, body) == "210\n"


def test_a_class_that_cannot_go_by_value_goes_by_name(tmp_path: Path) -> None:
    """A module that holds a lock or is too large is expected on the other side."""
    definition = DEFINITION.replace("FACTOR * x", "FACTOR * x if LOCK else 0")
    definition += "\nimport threading\nLOCK = threading.Lock()\n"
    (tmp_path / "user_models.py").write_text(definition)
    body = str(tmp_path / "body")
    run(tmp_path, SENDER.format(definition="from user_models import *", value="Model()"), body)

    assert run(tmp_path, RECEIVER, body) == "42\n"
    (tmp_path / "user_models.py").write_text(f"{DEFINITION}\nTEXT = {'x' * 400_000!r}\n")
    (tmp_path / "user_models.py").write_text(
        (tmp_path / "user_models.py").read_text().replace("FACTOR * x", "FACTOR * x if TEXT else 0")
    )
    run(tmp_path, SENDER.format(definition="from user_models import *", value="Model()"), body)
    assert Path(body).stat().st_size < 1000
    assert run(tmp_path, RECEIVER, body) == "42\n"


def test_classes_by_value_are_cached() -> None:
    """The second instance costs no second pickle of its class."""
    first = values.encode(Model(), allow_pickle=True)

    assert pickled._values_of_classes[Model] is not None
    assert values.encode(Model(), allow_pickle=True).body == first.body
    assert type(there_and_back(Model(), allow_pickle=True)) is Model
