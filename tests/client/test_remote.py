"""`remote`: which functions are stubs, what is checked here, what is refused with a sentence."""

from __future__ import annotations

import copy
import inspect
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator
from typing import Any

import pytest

from easyremote import EasyRemoteError, RemoteFunction, RemoteStreamFunction, remote
from easyremote.client.client import Client
from easyremote.client.options import NotAvailableError
from easyremote.client.stub import checker_of, has_body, yields
from easyremote.gateway.demands import read_options

from .scripted import WAIT_S, ScriptedGateway

# ---- stubs ---------------------------------------------------------------------------------------


def passes(a: int) -> None:
    pass


def dots(a: int) -> int: ...  # type: ignore[empty-body]


def documented(a: int) -> int:  # type: ignore[empty-body]
    """Say what it does."""


def refuses(a: int) -> int:
    raise NotImplementedError


def refuses_with_text(a: int) -> int:
    """Documented, too."""
    raise NotImplementedError("by name")


async def async_stub(a: int) -> int:
    raise NotImplementedError


def generator_stub(n: int) -> Iterator[int]:
    raise NotImplementedError
    yield 0


async def async_generator_stub(n: int) -> AsyncIterator[int]:
    raise NotImplementedError
    yield 0


def bare_yield():  # type: ignore[no-untyped-def] # noqa: ANN201
    yield


async def bare_async_yield():  # type: ignore[no-untyped-def] # noqa: ANN201
    yield


def computes(a: int) -> int:
    return a + 1


def returns_five() -> int:
    return 5


def raises_other() -> None:
    raise ValueError("no stub")


def assigns() -> None:
    x = 1
    del x


def calls() -> None:
    print()  # noqa: T201


def yields_five() -> Iterator[int]:
    yield 5


async def awaits() -> None:
    await async_stub(1)


def raises_made(n: int) -> int:
    raise NotImplementedError(f"{n}")


STUBS = [
    passes, dots, documented, refuses, refuses_with_text, async_stub, generator_stub,
    async_generator_stub, bare_yield, bare_async_yield,
]  # fmt: skip
BODIES = [computes, returns_five, raises_other, assigns, calls, yields_five, awaits, raises_made]


@pytest.mark.parametrize("fn", STUBS, ids=lambda fn: fn.__name__)
def test_what_does_nothing_is_a_stub(fn: Any) -> None:
    """Every way to write an empty body is one."""
    assert not has_body(fn)
    assert isinstance(remote(fn), RemoteFunction | RemoteStreamFunction)


@pytest.mark.parametrize("fn", BODIES, ids=lambda fn: fn.__name__)
def test_what_does_something_would_have_to_be_shipped(fn: Any) -> None:
    """That is not possible yet; the error says by which rule, and what to write instead."""
    assert has_body(fn)
    with pytest.raises(NotAvailableError, match="has a body") as caught:
        remote(fn)
    assert "node.register" in str(caught.value)
    assert isinstance(caught.value, EasyRemoteError)
    assert isinstance(caught.value, NotImplementedError)


@pytest.mark.parametrize(
    "options", [{"function": "other"}, {"node_id": "n"}, {"ship": False}], ids=str
)
def test_a_body_is_called_by_name_when_the_options_say_so(options: Any) -> None:
    """A name, a node, or ship=False each overrule the look at the body."""
    assert isinstance(remote(**options)(computes), RemoteFunction)


def test_shipping_and_classes_are_refused_with_a_sentence() -> None:
    """Both come later."""
    with pytest.raises(NotAvailableError, match="ship=True"):
        remote(ship=True)(computes)
    with pytest.raises(NotAvailableError, match="is a class"):
        remote(int)


def test_local_runs_the_decorated_function() -> None:
    """For tests of the function itself."""
    assert remote(node_id="n")(computes).local(1) == 2
    with pytest.raises(TypeError, match="made from a name"):
        remote("n", "f").local(1)


def returns_iterator() -> Iterator[int]:
    raise NotImplementedError


def returns_generator() -> Generator[int, None, str]:
    raise NotImplementedError


async def returns_async_generator() -> AsyncGenerator[int, None]:
    raise NotImplementedError
    yield 0


def returns_list() -> list[int]:
    raise NotImplementedError


def returns_unknown() -> Iterator[Missing]:  # type: ignore[name-defined] # noqa: F821
    raise NotImplementedError


@pytest.mark.parametrize(
    ("fn", "expected"),
    [
        (returns_iterator, True), (returns_generator, True), (returns_async_generator, True),
        (returns_list, False), (returns_unknown, True), (generator_stub, True), (passes, False),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)  # fmt: skip
def test_stubs_that_yield_are_known_by_what_they_are_or_return(fn: Any, expected: bool) -> None:
    """Also where an annotation names what is not there."""
    assert yields(fn) is expected
    assert isinstance(remote(fn), RemoteStreamFunction) is expected


def test_stream_can_be_said() -> None:
    """For a stub that does not show it, and for a function that is named."""
    assert isinstance(remote(stream=True)(passes), RemoteStreamFunction)
    assert isinstance(remote("n", "f", stream=True), RemoteStreamFunction)


# ---- arguments -----------------------------------------------------------------------------------


def every_kind(
    a: int, /, b: int, c: int = 3, *args: int, d: int, e: int = 5, **kwargs: int
) -> None:
    pass


WRONG: list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]] = [
    (passes, (), {}),
    (passes, (1, 2), {}),
    (passes, (1,), {"z": 1}),
    (passes, (1,), {"a": 1}),
    (every_kind, (1, 2), {}),
    (every_kind, (1,), {"d": 1}),
    (every_kind, (), {"a": 1, "b": 2, "d": 3}),
]


@pytest.mark.parametrize(("fn", "args", "kwargs"), WRONG)
def test_wrong_arguments_raise_what_a_local_call_raises(
    fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """The same type and, to the letter, the same text."""
    with pytest.raises(TypeError) as local:
        fn(*args, **kwargs)
    with pytest.raises(TypeError) as here:
        remote(fn)(*args, **kwargs)

    assert str(here.value) == str(local.value)


@pytest.mark.parametrize(
    ("args", "kwargs", "added"),
    [
        ((1, 2), {"d": 4}, {"c": 3, "e": 5}),
        ((1, 2, 9), {"d": 4}, {"e": 5}),
        ((1, 2, 9, 9), {"d": 4, "e": 9, "x": 1}, None),
    ],
)
def test_defaults_of_the_stub_are_added(
    args: tuple[Any, ...], kwargs: dict[str, Any], added: dict[str, Any] | None
) -> None:
    """Those that are missing, by name; `...` leaves the choice to the provider."""
    check = checker_of(every_kind)
    assert check is not None
    assert check(*args, **kwargs) == added

    def leaves_it(a: int, b: Any = ...) -> None:
        raise NotImplementedError

    check = checker_of(leaves_it)
    assert check is not None
    assert check(1) is None


def test_parameters_may_have_any_names() -> None:
    """Names that the check uses itself, and a function that cannot be looked at."""

    def awkward(_missing: int, _defaults: int = 2, *, k: int = 3, v: int = 4) -> None:
        raise NotImplementedError

    check = checker_of(awkward)
    assert check is not None
    assert check(1) == {"_defaults": 2, "k": 3, "v": 4}
    assert check(1, 9, k=9, v=9) is None
    assert checker_of(dict) is None or callable(checker_of(dict))


def test_the_stub_is_never_called(gateway: ScriptedGateway, client: Client) -> None:
    """Whatever its body would do."""

    @remote(function="f")
    def explosive(a: int) -> int:
        raise AssertionError("the body of a stub ran")

    future = explosive(1)
    gateway.next_call().result(2)

    assert future.result(WAIT_S) == 2


# ---- options -------------------------------------------------------------------------------------


def test_an_unknown_option_is_a_type_error_that_helps() -> None:
    """A typo never becomes something that is ignored."""
    with pytest.raises(TypeError, match="did you mean 'timeout'"):
        remote("n", "f", tiemout=3)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="no option 'zzz'"):
        remote(zzz=1)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="did you mean 'node_id'"):
        remote("n", "f").options(nodeid="m")  # type: ignore[call-arg]


@pytest.mark.parametrize(
    "wrong",
    [
        {"timeout": 0}, {"timeout": -1}, {"timeout": "3"}, {"timeout": float("inf")},
        {"timeout": True}, {"node_id": 3}, {"node_id": []}, {"node_id": [""]},
        {"capability": 3}, {"capability": []}, {"capability": [1]}, {"function": ""},
        {"resources": {"x": object()}}, {"function": "a", "function_name": "b"},
        {"prefer": [1]}, {"num_cpus": [1]}, {"memory": True}, {"gpu_memory": {}},
        {"resources": ["tpu"]}, {"resources": {3: 1}}, {"resources": {"gpu_model": 3}},
        {"priority": "high"}, {"priority": True}, {"load_balancing": 3},
        {"load_balancing": {"speed": 1}}, {"load_balancing": {"load": "1"}}, {"scaling": [1]},
        {"scaling": True}, {"capability": {"x": "y" * 200, "z": ["w" * 200] * 90}},
        {"retries": -1}, {"retries": 1.5}, {"retries": True},
        {"retry_exceptions": [3]}, {"retry_exceptions": "ValueError"},
    ],
    ids=str,
)  # fmt: skip
def test_an_option_of_the_wrong_kind_is_a_type_error(wrong: Any) -> None:
    """Where the function is declared, not where it is called."""
    with pytest.raises(TypeError):
        remote(**wrong)(passes)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"gpu_memory": "16XB"}, 'gpu_memory is written as "512MB"'),
        ({"memory": "<8GB"}, "reserves nothing"),
        ({"memory": -1}, "memory is written as"),
        ({"num_gpus": 1.5}, "a fraction of one device or a whole number"),
        ({"num_gpus": "many"}, "num_gpus is a number"),
        ({"num_cpus": float("nan")}, "num_cpus is a number"),
        ({"resources": {"gpu_memmory": "16GB"}}, "did you mean gpu_memory"),
        ({"capability": {"gpu.memory": ">=lots"}}, 'write ">=16GB"'),
        ({"capability": " "}, "not empty"),
        ({"prefer": {"x": "y" * 20_000}}, "at most 256 characters"),
        ({"priority": 1001}, "priority lies between"),
        ({"load_balancing": "least_load"}, "did you mean 'least_loaded'"),
        ({"load_balancing": {"load": -1}}, "the weight of load"),
        ({"scaling": {"min": 3, "max": 2}}, "at least 3"),
        ({"scaling": "automatic"}, "auto"),
    ],
    ids=str,
)
def test_an_option_that_cannot_be_is_a_value_error(wrong: Any, says: str) -> None:
    """It is said where the function is declared, with how it is written."""
    with pytest.raises(ValueError, match=says):
        remote(**wrong)(passes)


@pytest.mark.parametrize(
    ("written", "travels"),
    [
        ({"gpu_memory": ">=16GB"}, {"gpu_memory": 16 * 10**9}),
        ({"memory": "1.5GiB", "num_cpus": "2"}, {"memory": 1_610_612_736, "num_cpus": 2.0}),
        ({"num_gpus": True}, {"num_gpus": 1.0}),
        (
            {"resources": {"disk": "1GB", "tpu": 2, "gpu_model": "A100"}},
            {"resources": {"disk": 10**9, "tpu": 2.0, "gpu_model": "A100"}},
        ),
        ({"capability": {"a"}}, {"capability": ["a"]}),
        ({"load_balancing": True, "priority": 0}, {"priority": 0}),
        ({"load_balancing": {"strategy": "cost"}}, {"load_balancing": "cost"}),
        ({"load_balancing": {"latency": 1}}, {"load_balancing": {"latency": 1.0}}),
        (
            {"scaling": 3},
            {"scaling": {"min": 3, "max": 3, "target_queue": 2.0, "idle_s": 60.0}},
        ),
        ({"memory": None, "capability": None}, {}),
    ],
    ids=str,
)
def test_what_is_needed_travels_in_one_plain_form(written: Any, travels: Any) -> None:
    """Whatever the spelling, equal demands look equal, and the gateway reads them as they are."""
    options = remote(**written)(passes)._route.options

    assert options == travels
    read_options(options)


@pytest.mark.parametrize(
    "later",
    [
        {"cache": 60.0}, {"cache": True}, {"result": "ref"},
    ],
    ids=str,
)  # fmt: skip
def test_an_option_that_nothing_acts_on_is_refused(later: Any) -> None:
    """And the sentence says what to write instead."""
    with pytest.raises(NotAvailableError, match="Leave"):
        remote(**later)(passes)


def test_options_that_ask_for_nothing_are_accepted() -> None:
    """The values that mean what happens anyway."""
    remote(
        retries=0, retry_exceptions=False, cache=False, result="auto", ship="auto", timeout=1,
        optimization="off", async_func=True,
    )(passes)  # fmt: skip


def test_options_that_the_gateway_decides_travel(gateway: ScriptedGateway, client: Client) -> None:
    """Placement is its business; here they are checked, and brought into one form."""
    remote(
        node_id=("a", "b"), capability=("x", "y"), prefer={"gpu": "A100"}, priority=2, num_gpus=1,
        gpu_memory="16GB", memory=1024, resources={"tpu": 1}, num_cpus=0.5, scaling="auto",
        load_balancing="latency", optimization="auto", function_name="f",
    )(passes)(1)  # fmt: skip
    call = gateway.next_call().call

    assert call.node_ids == ["a", "b"]
    assert call.function == "f"
    assert call.options == {
        "capability": ["x", "y"], "prefer": {"gpu": "A100"}, "priority": 2, "num_gpus": 1,
        "gpu_memory": 16_000_000_000, "memory": 1024, "resources": {"tpu": 1}, "num_cpus": 0.5,
        "scaling": "auto", "load_balancing": "latency", "optimization": "auto",
    }  # fmt: skip


def test_options_make_another_function(gateway: ScriptedGateway, client: Client) -> None:
    """The one that they were asked of stays as it is."""
    near = remote("n", "f")
    far = near.options(node_id="m", timeout=5)
    near(1)
    assert gateway.next_call().call.node_ids == ["n"]
    far(1)
    call = gateway.next_call().call

    assert call.node_ids == ["m"]
    assert call.deadline_ms is not None
    stream = remote(stream=True)(passes).options(node_id="x")
    assert isinstance(stream, RemoteStreamFunction)
    assert isinstance(remote(near), RemoteFunction)


# ---- the three forms -----------------------------------------------------------------------------


def test_the_three_forms_name_the_same_call(gateway: ScriptedGateway, client: Client) -> None:
    """A stub with options, two names, and a stub alone."""

    @remote(node_id="n")
    def f(a: int) -> int:
        raise NotImplementedError

    for function in (f, remote("n", "f"), remote(f).options(node_id="n")):
        function(1)
        call = gateway.next_call().call
        assert (call.function, call.node_ids) == ("f", ["n"])
    remote(passes)(1)
    call = gateway.next_call().call
    assert (call.function, call.node_ids) == ("passes", None)


def test_every_spelling_of_a_call_is_the_same_call(
    gateway: ScriptedGateway, client: Client
) -> None:
    """`f(x)`, `f.remote(x)`, `f.sync(x)`, `f.spawn(x)`."""
    gateway.auto = lambda given: given.result(given.arguments[0][0])
    f = remote("n", "f")

    assert f(1).result(WAIT_S) == f.remote(1).result(WAIT_S) == 1
    assert f.sync(1) == 1
    assert f.spawn(1).result(WAIT_S) == 1


def test_what_remote_takes_is_said_when_it_gets_something_else() -> None:
    """One string, a number, or a decorated method."""
    with pytest.raises(TypeError, match="gpu-01"):
        remote("train")  # type: ignore[call-overload]
    with pytest.raises(TypeError):
        remote(node_id="n")(3)  # type: ignore[call-overload]


def test_a_remote_function_looks_like_its_stub() -> None:
    """Name, documentation and signature."""
    made = remote(refuses_with_text)

    assert made.__name__ == "refuses_with_text"
    assert made.__doc__ == "Documented, too."
    assert list(inspect.signature(made).parameters) == ["a"]
    assert "n.f" in repr(remote("n", "f"))


def test_info_asks_for_signature_and_terms(gateway: ScriptedGateway, client: Client) -> None:
    """What a provider says about a function can be looked at before it is called."""
    gateway.answers["resolve"] = {
        "node_id": "n", "function_name": "f", "description": "Adds.", "signature": "(a, b)",
        "parameters": [], "stream": False, "registered_at": 0, "health_status": "healthy",
        "owner": "alice",
    }  # fmt: skip
    info = remote("n", "f").info()

    assert info.signature == "(a, b)"
    assert info.facts["owner"] == "alice"
    assert gateway.asked[-1].args == {"function": "f", "node_ids": ["n"]}


def test_a_remote_function_that_is_copied_takes_no_credential_along() -> None:
    """A token is for this process; the rest of the options travels."""
    secret = remote(node_id="n", auth_token="env:SECRET", timeout=3.0)(passes)
    clone = copy.copy(secret)

    assert "SECRET" not in repr(vars(clone))
    assert "SECRET" not in repr(secret._route)
    assert clone._route.timeout_s == 3.0
    with pytest.raises(TypeError):
        clone(1, 2)  # type: ignore[call-arg]
