"""The public API: which names there are, that importing them is cheap, and the tree of errors."""

from __future__ import annotations

import ast
import concurrent.futures as cf
import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest

import easyremote
from easyremote import errors

IMPORT_S = 60

HEAVY = frozenset(
    [
        "trio",
        "numpy",
        "cryptography",
        "psutil",
        "pynvml",
        "cloudpickle",
        "cbor2",
        "rich",
        "click",
        "asyncio",
        "ssl",
        "sqlite3",
    ]
)

ERRORS: dict[str, tuple[type[BaseException], ...]] = {
    "AccessDeniedError": (PermissionError,),
    "AuthenticationError": (PermissionError,),
    "EasyRemoteError": (Exception,),
    "FunctionNotFoundError": (LookupError,),
    "GatewayUnreachableError": (ConnectionError,),
    "InfeasibleError": (),
    "LinkLostError": (ConnectionError,),
    "NoCapableNodeError": (),
    "NoHealthyNodesError": (),
    "NodeIdConflictError": (),
    "NodeLostError": (ConnectionError,),
    "NodeNotFoundError": (LookupError,),
    "NotConnectedError": (),
    "OverloadedError": (),
    "ProtocolViolationError": (ConnectionError,),
    "QuotaExceededError": (),
    "RemoteExecutionError": (),
    "SerializationError": (),
    "TaskCancelledError": (cf.CancelledError,),
    "TaskTimeoutError": (TimeoutError,),
    "WorkerCrashedError": (),
}
"""Each public error and what it must also be, so that code written for local calls still works."""

NAMES: dict[str, str] = {
    "Client": "client",
    "connect": "client",
    "shutdown": "client",
    "Future": "client",
    "as_completed": "client",
    "cancel": "client",
    "gather": "client",
    "get": "client",
    "wait": "client",
    "CallOptions": "client",
    "MapResult": "client",
    "RemoteFunction": "client",
    "RemoteStreamFunction": "client",
    "remote": "client",
    "RemoteStream": "client",
    "FunctionInfo": "facts",
    "NodeInfo": "facts",
    "Placement": "facts",
    "QuotaState": "facts",
    "ScoreWeights": "scheduler",
    "TLSConfig": "facts",
    "Usage": "facts",
    "Server": "gateway",
    "Credential": "identity",
    "ClientMetrics": "metrics",
    "ComputeNodeMetrics": "metrics",
    "GatewayMetrics": "metrics",
    "CallContext": "node",
    "ComputeNode": "node",
    "NodeLimits": "node",
    "ServeHandle": "node",
    "context": "node",
}
"""Every other public name and the room it lives in."""


def loaded_by(code: str) -> set[str]:
    """Names of the modules that `code` loads into a fresh interpreter."""
    program = (
        f"import json, sys; before = set(sys.modules); {code}; "
        "print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=IMPORT_S,
        check=True,
    )
    return set(json.loads(done.stdout))


def test_public_names_are_these() -> None:
    """A public name appears or goes only together with this list."""
    assert set(easyremote.__all__) == set(ERRORS) | set(NAMES)
    assert len(easyremote.__all__) == len(set(easyremote.__all__))


def test_table_lists_and_type_checkers_agree() -> None:
    """`__all__`, the table that loads, and the imports for type checkers name the same things."""
    assert easyremote.__file__ is not None
    tree = ast.parse(Path(easyremote.__file__).read_text(encoding="utf-8"))
    typed = {
        alias.asname or alias.name: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.level == 1
        for alias in node.names
    }

    assert typed == easyremote._MODULE_OF
    assert set(typed) == set(easyremote.__all__)


@pytest.mark.parametrize("name", easyremote.__all__)
def test_a_public_name_exists_and_is_documented(name: str) -> None:
    """Each name can be had, is ours, and says what it is."""
    value = getattr(easyremote, name)
    room = "errors" if name in ERRORS else NAMES[name]

    assert name in dir(easyremote)
    assert value.__module__.startswith(f"easyremote.{room}")
    assert inspect.getdoc(value)


def test_unknown_name_is_an_attribute_error() -> None:
    """A typo fails as it does in any module."""
    with pytest.raises(AttributeError, match="has no attribute 'remot'"):
        easyremote.__getattr__("remot")


@pytest.mark.parametrize("name", ERRORS)
def test_an_error_is_also_the_builtin_that_callers_expect(name: str) -> None:
    """`except TimeoutError` and `except EasyRemoteError` both catch a deadline, and so on."""
    error = getattr(easyremote, name)

    assert issubclass(error, easyremote.EasyRemoteError)
    for base in ERRORS[name]:
        assert issubclass(error, base)


def test_every_error_of_this_release_is_public() -> None:
    """An error that can reach a user can be named by a user."""
    own = {
        name
        for name, value in vars(errors).items()
        if inspect.isclass(value) and issubclass(value, errors.EasyRemoteError)
    }

    assert own - set(ERRORS) == {"ActorDiedError", "ObjectLostError"}, "these wait for actors"


def test_import_is_cheap() -> None:
    """`import easyremote` loads no library and no module of ours but itself."""
    loaded = loaded_by("import easyremote")

    assert {name for name in loaded if name.partition(".")[0] in HEAVY} == set()
    assert {name for name in loaded if name.startswith("easyremote")} == {"easyremote"}


@pytest.mark.parametrize(
    ("name", "rooms"),
    [
        ("connect", {"gateway", "node", "cli"}),
        ("ComputeNode", {"gateway", "client", "cli"}),
        ("Server", {"node", "client", "cli"}),
    ],
)
def test_a_role_loads_only_its_own_room(name: str, rooms: set[str]) -> None:
    """A client never pays for the gateway, nor a node for the client."""
    loaded = loaded_by(f"import easyremote; easyremote.{name}")

    assert {one for one in rooms if f"easyremote.{one}" in loaded} == set()
