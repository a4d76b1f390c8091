"""Exceptions of remote code are data, and are caught as if they were local."""

from __future__ import annotations

import asyncio
import builtins
import concurrent.futures
import copy
import json
import pickle
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import pytest
from hypothesis import given
from hypothesis import strategies as st

from easyremote import errors, values
from easyremote.errors import RemoteExecutionError
from easyremote.values import exceptions
from easyremote.wire import cbor
from easyremote.wire.errors import ErrorCode


def across(error: BaseException) -> RemoteExecutionError:
    """The exception as it arrives, by way of a frame as in a real failure."""
    detail = values.encode_exception(error)
    return values.decode_exception(cbor.decode_frame(cbor.encode_frame(detail)))


def raised(body: Callable[[], object]) -> BaseException:
    try:
        body()
    except BaseException as error:  # noqa: BLE001 - any kind is what the tests are about
        return error
    raise AssertionError("nothing was raised")


class PaymentError(Exception):
    """What users write: arguments of its own, and attributes."""

    def __init__(self, amount: int, *, currency: str) -> None:
        super().__init__(f"cannot pay {amount} {currency}")
        self.amount = amount
        self.currency = currency
        self._hidden = 1
        self.code = 402


class DiskError(OSError):
    pass


class Outer:
    class InnerError(ValueError):
        pass


BUILTINS: list[type[Exception]] = [
    kind
    for kind in list(vars(builtins).values())
    if isinstance(kind, type) and issubclass(kind, Exception)
    and not issubclass(kind, StopIteration | StopAsyncIteration | BaseExceptionGroup | UnicodeError)
]  # fmt: skip


@pytest.mark.parametrize("kind", sorted(set(BUILTINS), key=repr))
def test_every_builtin_exception_is_caught_as_itself(kind: type[Exception]) -> None:
    """`except KeyError` catches a remote KeyError, and so for all of them."""
    got = across(kind("what happened"))

    with pytest.raises(kind) as caught:
        raise got
    assert caught.value is got
    assert isinstance(got, RemoteExecutionError)
    assert got.args == ("what happened",)
    assert str(got) == str(kind("what happened"))
    assert type(got).__name__ == kind.__name__
    assert got.type_name == kind.__name__
    assert got.may_have_run


@pytest.mark.parametrize(
    ("error", "checks"),
    [
        (raised(Path("/no/such/file").read_bytes), {"errno": 2, "filename": "/no/such/file"}),
        (raised(b"\xff".decode), {"start": 0, "reason": "invalid start byte"}),
        (raised(lambda: json.loads("{")), {"pos": 1, "doc": "{", "lineno": 1}),
        (raised(lambda: compile("1 +", "f", "eval")), {"lineno": 1, "filename": "f"}),
        (DiskError(28, "full", "/disk"), {"errno": 28, "filename": "/disk"}),
        (PaymentError(5, currency="EUR"), {"amount": 5, "currency": "EUR"}),
        (Outer.InnerError("x", 2), {"args": ("x", 2)}),
        (concurrent.futures.CancelledError(), {"args": ()}),
        (errors.NodeLostError("gone"), {"args": ("gone",)}),
        (KeyError((1, "a")), {"args": ((1, "a"),)}),
    ],
    ids=lambda v: type(v).__name__,
)
def test_arguments_and_plain_attributes_arrive(error: Exception, checks: dict[str, Any]) -> None:
    """A handler finds on the exception what it would find locally."""
    got: Any = across(error)

    assert isinstance(got, type(error))
    assert str(got) == str(error)
    assert {name: getattr(got, name) for name in checks} == checks


def test_attributes_with_a_meaning_of_ours_are_kept_ours() -> None:
    """What the exception says about the call cannot be changed by the code that raised it."""
    got = across(PaymentError(1, currency="EUR"))

    assert got.code is ErrorCode.REMOTE_ERROR
    assert not hasattr(got, "_hidden")


def test_the_init_of_a_type_never_runs_here() -> None:
    """Nothing of a user's class is called to build the instance: no maker, no setter."""
    calls: list[str] = []

    class LoudError(Exception):
        def __new__(cls, *_args: Any) -> Self:
            calls.append("new")
            return super().__new__(cls)

        def __init__(self, *_args: Any) -> None:
            calls.append("init")

        @property
        def args(self) -> Any:
            calls.append("args")
            return ()

        @args.setter
        def args(self, _value: Any) -> None:
            calls.append("set")

    module = types.ModuleType("loud_module")
    vars(module)["LoudError"] = LoudError
    LoudError.__module__, LoudError.__qualname__ = "loud_module", "LoudError"
    sys.modules["loud_module"] = module
    try:
        detail = values.encode_exception(LoudError("x"))
        calls.clear()
        got = values.decode_exception(detail)
    finally:
        del sys.modules["loud_module"]

    assert isinstance(got, LoudError)
    assert calls == []


class Meta(type):
    pass


class WithMetaError(Exception, metaclass=Meta):
    pass


class WithHookError(Exception):
    def __init_subclass__(cls) -> None:
        raise AssertionError("a class was made")


class WithSlotsError(Exception):
    __slots__ = ("x",)


class WithSetterError(Exception):
    def __setattr__(self, name: str, value: Any) -> None:
        raise AssertionError("an attribute was set")


@pytest.mark.parametrize(
    "error",
    [SystemExit(3), KeyboardInterrupt(), GeneratorExit(), asyncio.CancelledError(),
     StopIteration(5), StopAsyncIteration(), BaseExceptionGroup("g", [SystemExit()]),
     WithMetaError("m"), WithHookError("m"), WithSlotsError("m"), WithSetterError("m")],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_what_must_not_be_built_or_raised_here_arrives_as_the_plain_class(
    error: BaseException,
) -> None:
    """A remote SystemExit ends nobody; types with their own machinery are only named."""
    got = across(error)

    assert type(got) is RemoteExecutionError
    assert type(error).__qualname__ in got.type_name
    assert got.type_name in str(got)


@pytest.mark.parametrize(
    ("module", "name"),
    [("no.such.module", "Error"), ("builtins", "int"), ("builtins", "print"), ("builtins", ""),
     ("os", "path.join"), ("json", "decoder.JSONDecodeError.x"), ("", "KeyErrorr"),
     ("builtins", "__import__"), ("sys", "modules"), ("a" * 5000, "b" * 5000)],
)  # fmt: skip
def test_names_that_lead_to_no_exception_type_are_only_text(module: str, name: str) -> None:
    """What a peer calls a type is looked up, and if it is none, shown."""
    got = values.decode_exception({"module": module, "type": name, "message": "m"})

    assert type(got) is RemoteExecutionError
    assert str(got).endswith(": m")
    assert len(str(got)) < 600


def test_looking_a_type_up_imports_nothing_and_asks_no_module() -> None:
    """Lazy modules stay asleep, and modules that are not loaded stay away."""

    class Lazy(types.ModuleType):
        def __getattr__(self, name: str) -> Any:
            raise AssertionError(f"the module was asked for {name}")

    sys.modules["lazy_module"] = Lazy("lazy_module")
    try:
        got = values.decode_exception({"module": "lazy_module", "type": "Error", "message": ""})
    finally:
        del sys.modules["lazy_module"]
    assert type(got) is RemoteExecutionError

    values.decode_exception({"module": "this", "type": "Error"})
    assert "this" not in sys.modules


def chained() -> BaseException:
    def body() -> None:
        try:
            try:
                {"outer": 1}["inner"]
            except KeyError as error:
                raise ValueError("middle") from error
        except ValueError:
            raise PaymentError(1, currency="EUR")  # noqa: B904 - the context is what is tested

    return raised(body)


def test_causes_and_contexts_arrive_with_their_types() -> None:
    """The chain is there, each link with its own type and its relation."""
    got = across(chained())

    assert isinstance(got.__context__, ValueError)
    assert got.__cause__ is None
    assert isinstance(got.__context__.__cause__, KeyError)


def test_the_remote_traceback_is_shown() -> None:
    """It is an attribute, and a note, so that every traceback printed here contains it."""
    got = across(chained())

    assert "in body" in got.remote_traceback
    assert "direct cause" in got.remote_traceback
    assert got.__notes__ == ["Remote traceback:\n" + got.remote_traceback.rstrip("\n")]


def test_a_long_chain_and_a_circle_end() -> None:
    """The number of links is bounded, and a chain that leads back to itself ends there."""
    first = error = ValueError("0")
    for index in range(1, 50):
        error.__cause__ = ValueError(str(index))
        error = error.__cause__
    assert len(values.encode_exception(first)["chain"]) == exceptions.CHAIN_MAX

    one, other = ValueError("one"), ValueError("other")
    one.__context__, other.__context__ = other, one
    assert len(values.encode_exception(one)["chain"]) == 1


def test_groups_arrive_as_groups() -> None:
    """`except*` works, in all levels, up to a number of members."""
    error = ExceptionGroup("all", [ValueError("v"), ExceptionGroup("in", [KeyError("k")])])
    got = across(error)

    with pytest.raises(ExceptionGroup) as caught:
        raise got
    assert caught.group_contains(ValueError)
    assert caught.group_contains(KeyError, depth=2)
    many: Any = across(ExceptionGroup("g", [ValueError(index) for index in range(100)]))
    assert len(many.exceptions) == exceptions.GROUP_MAX
    lost = values.decode_exception({"module": "builtins", "type": "ExceptionGroup", "group": []})
    assert type(lost) is RemoteExecutionError


def test_an_exception_that_came_from_afar_goes_on_as_what_it_was() -> None:
    """A nested call's failure keeps its type and both tracebacks over the second hop."""
    first = across(chained())
    second = across(raised(lambda: (_ for _ in ()).throw(first)))

    assert type(second) is type(first)
    assert second.type_name == first.type_name
    assert "in body" in second.remote_traceback


def test_it_can_be_copied_and_pickled() -> None:
    """Process pools and loggers do both to any exception."""
    got = across(PaymentError(5, currency="EUR"))

    for other in (copy.copy(got), pickle.loads(pickle.dumps(got))):
        assert type(other) is type(got)
        assert str(other) == str(got)
        assert other.remote_traceback == got.remote_traceback


def test_texts_are_bounded_and_cut_in_the_middle() -> None:
    """A message keeps its beginning and end; a traceback as well."""
    message = "begin" + "x" * 100_000 + "end"
    detail = values.encode_exception(ValueError(message))

    assert len(detail["message"]) == exceptions.ERROR_MSG_MAX
    assert detail["message"].startswith("begin")
    assert detail["message"].endswith("end")
    assert "left out" in detail["message"]
    assert "args" not in detail
    assert len(detail["traceback"]) == exceptions.TRACEBACK_MAX
    assert exceptions.cut("short", 10) == "short"


class Hostile(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


@pytest.mark.parametrize("error", [Hostile("x"), ValueError("\ud800"), ValueError(object()),
                                   ValueError(10**5000),
                                   ExceptionGroup("g", [Hostile()])])  # fmt: skip
def test_encoding_never_fails(error: BaseException) -> None:
    """Whatever user code raised, there is something to send, and it is Unicode."""
    got = across(error)

    assert isinstance(got, type(error))


details = st.recursive(
    st.none() | st.booleans() | st.integers(0, 2**63) | st.text(max_size=10)
    | st.binary(max_size=10) | st.sampled_from(["builtins", "KeyError", "OSError", "cause"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(["module", "type", "message", "args", "state", "chain", "group",
                         "traceback", "relation"]), inner, max_size=6),
    max_leaves=15,
)  # fmt: skip


@given(st.dictionaries(st.sampled_from(["module", "type", "message", "args", "state", "chain",
                                        "group", "traceback", "relation"]), details))  # fmt: skip
def test_any_detail_of_a_peer_becomes_an_exception(detail: dict[str, Any]) -> None:
    """Nothing that a peer sends in this place raises anything."""
    got = values.decode_exception(detail)

    assert isinstance(got, RemoteExecutionError)
    assert str(got) is not None


@pytest.mark.parametrize("name", [kind.__name__ for kind in set(BUILTINS)] + ["UnicodeDecodeError"])
@pytest.mark.parametrize("args", [None, [], [1], [1, 2, 3, 4, 5, 6, 7], [b"x" * 10], [[], {}]])
def test_arguments_that_a_type_refuses_do_no_harm(name: str, args: Any) -> None:
    """A builtin that checks its arguments may refuse them; the exception arrives all the same."""
    detail: dict[str, Any] = {"module": "builtins", "type": name, "message": "m"}
    if args is not None:
        detail["args"] = values.encode(args, allow_pickle=False).body

    assert isinstance(values.decode_exception(detail), RemoteExecutionError)


class Narrow(UnicodeDecodeError):
    pass


class Mixed(KeyError, RemoteExecutionError):
    pass


def test_types_of_users_with_other_arguments_than_their_base() -> None:
    """If the builtin part refuses the arguments it does without, and they are still there."""
    detail = values.encode_exception(Narrow("utf-8", b"x", 0, 1, "why"))
    detail["args"] = values.encode(["one"], allow_pickle=False).body

    got = values.decode_exception(detail)
    assert isinstance(got, Narrow)
    assert got.args == ("one",)
    assert type(across(Mixed("x"))) is RemoteExecutionError


def test_attributes_that_are_not_plain_are_left_out() -> None:
    """What can travel does, and the rest is not missed until it is asked for."""
    error = ValueError("x")
    error.plain, error.opaque = 1, object()  # type: ignore[attr-defined]
    empty = ValueError("x")
    empty.large = "x" * 100_000  # type: ignore[attr-defined]

    got: Any = across(error)
    assert got.plain == 1
    assert not hasattr(got, "opaque")
    assert not hasattr(across(empty), "large")


def test_a_client_survives_a_remote_system_exit() -> None:
    """Raised in a program, it is an error like others, with the exit code of an error."""
    code = (
        "from easyremote import values\n"
        "raise values.decode_exception(values.encode_exception(SystemExit(0)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )

    assert done.returncode == 1
    assert "RemoteExecutionError: SystemExit: 0" in done.stderr
