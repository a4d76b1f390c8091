"""Target: queries, the questions and orders that clients and operators send by name.

Theory. A query is a name and a map of plain arguments from somebody who holds a token, perhaps a
stolen one. Whatever the arguments are, the answer is a plain value or a refusal; the tables of the
store stay readable. The store is a real one, in memory. It is the one thing that outlives an input
here, for making it takes as long as a hundred queries; no answer depends on what is in it.
"""

from __future__ import annotations

import contextlib
import json
import random
import tempfile
from collections.abc import Callable, Coroutine
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from easyremote.gateway.demands import BadDemand, Demands, read_options
from easyremote.gateway.offer import read_offer
from easyremote.gateway.queries import ASYNC, OPERATIONS, SYNC, find_nodes
from easyremote.gateway.registry import Registry
from easyremote.gateway.routing import Refused
from easyremote.gateway.store import Store
from easyremote.identity.role import Principal, Role
from easyremote.scheduler.capability import Effort, TooMuch, degree, lacks, matches
from easyremote.values import plain
from easyremote.wire import message as ms
from easyremote.wire.cbor import decode_frame, encode_frame
from easyremote.wire.errors import CodecError

from .mutate import mutate_cbor
from .nodes import INFO, NODE, Bystander, Link
from .target import Feature, Target, feature_of

TOKENS_MAX = 200
"""After so many tokens the store is made anew."""
UNASKED = frozenset({"status", "explain"})
"""They look at calls, at the system or at the clock, not at arguments beyond an id."""


class _World:
    """A gateway as far as queries look at it."""

    def __init__(self) -> None:
        # The store makes sure of its file first, and this name is one, too, until SQLite sees it.
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
            self.store = Store(Path(":memory:"), clock=lambda: 1.0e9)
        registry = Registry()
        for name in ("n1", "n2"):
            record = registry.connect(name, NODE, cast("Any", Link()), 1, cast("Any", None))
            assert record is not None
            registry.announce(record, read_offer(INFO), whole=True)
        self.gateway = SimpleNamespace(
            registry=registry, dispatcher=Bystander(),
            store=SimpleNamespace(reader=self.store, write=self._write),
            state=SimpleNamespace(join_string=lambda token: "er1_" + token.id),
        )  # fmt: skip

    async def _write(self, operation: Callable[..., Any], *args: Any, **more: Any) -> Any:
        return operation(self.store, *args, **more)

    def ask(self, role: Role, name: str, args: dict[str, Any]) -> Any:
        """Answer a query as a session does."""
        principal = Principal("asker", role, "t" * 10)
        calls = SimpleNamespace(
            calls={}, answered_by=lambda _call_id: None, served_by=lambda _call_id: None
        )
        session = cast("Any", SimpleNamespace(principal=principal, caller=calls))
        gateway = cast("Any", self.gateway)
        if name == "nodes":  # Outside trio there is no clock of its own.
            return find_nodes(gateway.registry, principal, args, None)
        if name in SYNC:
            return SYNC[name](gateway, session, args)
        return _finished(cast("Any", ASYNC[name](gateway, session, args)))


def _finished(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run what never waits to its end."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value
    raise AssertionError("an order has waited for something")


_worlds: list[_World] = []


def _world() -> _World:
    """Return the world, a new one if the old one is full."""
    if not _worlds or len(_worlds[0].store.list_tokens()) > TOKENS_MAX:
        for old in _worlds:
            old.store.close()
        _worlds[:] = [_World()]
    return _worlds[0]


_NAMES = tuple(name for name in OPERATIONS if name not in UNASKED)
_ROLES = (Role.OWNER, Role.OPERATOR, Role.MEMBER, Role.VIEWER)


def queries(data: bytes) -> Feature:
    """The first byte says who asks; the rest is a query."""
    if not data:
        return None
    try:
        query = ms.decode(ms.Query, data[1:])
    except CodecError:
        return None
    if query.name not in _NAMES:
        return "no such query"
    world = _world()
    try:
        answer = world.ask(_ROLES[data[0] % len(_ROLES)], query.name, query.args)
    except Refused as refused:
        plain.encode([refused.reason, refused.detail])
        return (query.name, feature_of(refused))
    plain.encode(answer)
    json.dumps(answer, default=str, allow_nan=False)
    for info in world.store.list_tokens():
        json.dumps(info.to_plain(), allow_nan=False)
    return (query.name, type(answer))


def _seeds() -> list[bytes]:
    token = {
        "role": "guest", "user": "bob", "expires_s": 3600.0, "levels": ["gold"], "node_id": None,
        "functions": ["train_*"], "nodes": ["n?"], "single_use": False, "shared": True, "note": "x",
    }  # fmt: skip
    asked: list[tuple[str, dict[str, Any]]] = [
        ("functions", {"node_id": "n1", "name": "train"}), ("nodes", {}),
        ("nodes", {"capability": {"gpu": {"memory": ">=16GB"}}, "function": "train"}),
        ("nodes", {"capability": ["nlp", "gpu.name:A100"], "fresh": True}),
        ("served", {"call_ids": [bytes(16)] * 3}),
        ("resolve", {"function": "train", "node_ids": ["n1", "eu"]}),
        ("resolve", {"function": "n1.train"}), ("call", {"call_id": bytes(16)}),
        ("owners", {"call_ids": [bytes(16)] * 3}), ("token.create", token),
        ("token.create", {"role": "node", "node_id": "n3", "single_use": True}),
        ("token.list", {}), ("token.revoke", {"id": "0123456789"}),
        ("node.forget", {"node_id": "n1"}), ("audit.verify", {}),
    ]  # fmt: skip
    return [b"\x00" + ms.encode(ms.Query(name, args)) for name, args in asked]


def _mutate(rng: random.Random, data: bytes) -> bytes:
    who = bytes([int(rng.random() * 4)]) if rng.random() < 0.2 else data[:1]
    return who + mutate_cbor(rng, data[1:])


def options(data: bytes) -> Feature:
    """The options of a call: read, remembered, reserved and looked for, or refused."""
    try:
        given = decode_frame(data)
    except CodecError:
        return None
    if type(given) is not dict or not all(type(key) is str for key in given):
        return None
    try:
        demand = _DEMANDS.read(given)
    except BadDemand as error:
        return feature_of(error)
    if demand is None:
        return "nothing"
    assert demand == read_options(given) == _DEMANDS.read(given), "what was read changes"
    needs, effort = demand.needs(), Effort()
    with contextlib.suppress(ValueError):  # Of two demands one may exclude the other.
        assert demand.needs(REQUIREMENTS).cpus >= needs.cpus, "a call makes a demand smaller"
    with contextlib.suppress(TooMuch):
        tree, tags = cast("Any", INFO["capabilities"]), cast("Any", INFO["labels"])
        missing = lacks(demand.wishes, tree, tags, effort)
        assert matches(demand.wishes, tree, tags, effort) == (not missing), "a miss unexplained"
        assert 0.0 <= degree(demand.prefers, tree) <= 1.0
    return (bool(needs), len(demand.wishes) > 0, demand.policy is None, demand.scaling is None)


_DEMANDS = Demands()
REQUIREMENTS = {"gpu_memory": "8GB", "cpu": 2, "gpu_model": "A100"}


def _options() -> list[bytes]:
    given: list[dict[str, Any]] = [
        {"capability": {"gpu": {"memory": ">=16GB", "name": ["A100"]}}, "prefer": {"eu": True}},
        {"num_cpus": 2, "num_gpus": 0.5, "gpu_memory": 10**9, "memory": "4GiB", "priority": -3},
        {"resources": {"tpu": 1, "disk": "1GB", "gpu_model": "a100"}, "load_balancing": "cost"},
        {"scaling": {"min": 1, "max": 4, "target_queue": 2.0, "idle_s": 60.0}, "num_gpus": 2},
        {"scaling": "auto", "load_balancing": {"latency": 1.0, "load": 0}, "attempt": 2},
    ]
    return [encode_frame(one) for one in given]


QUERIES = Target(queries, _seeds, _mutate)
OPTIONS = Target(options, _options, mutate_cbor)
