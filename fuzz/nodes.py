"""Targets of what nodes and administrators tell the gateway: registrations, samples, tokens.

Theory. Whatever gets past the checks is shown to everybody: it must go into an answer, into JSON
and into a log line, and a call must be able to ask for it as a capability. So each target looks at
what was taken with the eyes of those who read it later.
"""

from __future__ import annotations

import json
import logging
import math
from contextlib import suppress
from types import SimpleNamespace
from typing import Any, cast

import cbor2

from easyremote.cli.output import cell
from easyremote.gateway import describe
from easyremote.gateway.offer import FUNCTIONS_MAX, BadOffer, node_id
from easyremote.gateway.records import (
    TokenInfo,
    check_token,
    parse_role,
    principal_of,
    token_info,
    token_row,
)
from easyremote.gateway.registration import RegistrationHandler
from easyremote.gateway.registry import Registry
from easyremote.gateway.sample import GPUS, REPLICAS
from easyremote.gateway.watch import Watch
from easyremote.identity.role import KIND_OF_ROLE, Principal, Role, Scopes
from easyremote.log import JsonFormatter, LineFormatter, mask
from easyremote.scheduler.capability import TooMuch, lacks, matches, read_wishes
from easyremote.scheduler.host import Host, Place
from easyremote.scheduler.model import Needs, Rejection
from easyremote.values import plain
from easyremote.wire import message as ms
from easyremote.wire.cbor import decode_frame, encode_frame
from easyremote.wire.errors import CodecError, RemoteProtocolError
from easyremote.wire.frame import HEADER, HEADER_SIZE, MORE, FrameType, pack, pack_header

from .mutate import mutate_cbor, mutate_frames, split
from .target import Feature, Target, feature_of

SECRET = "erc_0123456789_" + "S" * 49
"""A token that a hostile node tries to have logged."""


class _OneLine(logging.Handler):
    """Formats every record both ways, and sees that it is one line without secrets."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self._formatters = (LineFormatter(), JsonFormatter())

    def emit(self, record: logging.LogRecord) -> None:
        for formatter in self._formatters:
            line = formatter.format(record)
            assert line.isprintable() or "\x7f" not in line, "a control character in the log"
            assert "\n" not in line and "\r" not in line, "two lines for one event"
            assert "S" * 49 not in line, "a secret in the log"


def watch_log() -> None:
    """Let every line that the product logs be checked, and none be printed."""
    logger = logging.getLogger("easyremote")
    logger.handlers = [_OneLine()]
    logger.setLevel(logging.INFO)
    logger.propagate = False


# ---- registrations ---------------------------------------------------------------------------


class Bystander:
    """A part of the product that is told something, and does nothing about it."""

    def __getattr__(self, name: str) -> Any:
        return self

    def __call__(self, *args: object, **kwargs: object) -> Any:
        """Answer every call with itself."""
        return self


class Link(Bystander):
    """As much of a link as a registered node needs."""

    ready = True
    rtt_s = 0.001
    streams_available = 0
    streams_open = 1
    connection = SimpleNamespace(now=1.0, heard_at=1.0, settings=SimpleNamespace(lease_s=15.0))


class _Stream:
    """A stream on which a node registers."""

    is_open = True

    def __init__(self) -> None:
        self.link = Link()
        self.targets: list[memoryview] = []
        self.said: list[Any] = []

    def send(self, message: Any, buffers: Any = (), *, end: bool = False) -> None:
        self.said.append(ms.encode(message))
        self.is_open = self.is_open and not end

    def fill(self, buffers: list[memoryview]) -> None:
        self.targets = buffers

    def release(self) -> None:
        """The work is gone."""


def _gateway(registry: Registry) -> Any:
    """Return as much of a gateway as a registration stream knows."""
    return SimpleNamespace(
        registry=registry,
        limits=SimpleNamespace(link=SimpleNamespace(lease_s=15.0)),
        dispatcher=Bystander(),
        audited=Bystander(),
        accounts=SimpleNamespace(earned=lambda _: None),
        watch=Watch(registry, cast("Any", Bystander()), lambda *_: None),
    )


NODE = Principal("owner", Role.NODE, "t" * 10, node_id="n1", enrolment=1)
_READER = Principal("reader", Role.GUEST, "r" * 10)


def registrations(data: bytes) -> Feature:
    """What a node says on its registration stream: frames, of which the first one opens it."""
    registry = Registry()
    record = registry.connect("n1", NODE, cast("Any", Link()), 1, cast("Any", None))
    assert record is not None
    gateway = _gateway(registry)
    stream = cast("Any", _Stream())
    handler: RegistrationHandler | None = None
    try:
        for frame in split(data):
            if len(frame) < HEADER_SIZE or not stream.is_open:
                break
            handler = _hear(handler, gateway, record, stream, frame)
    except (CodecError, RemoteProtocolError) as error:
        _look(registry)
        return feature_of(error)
    _look(registry)
    return (len(record.offers), len(record.labels), record.health, stream.is_open)


def _hear(
    handler: RegistrationHandler | None, gateway: Any, record: Any, stream: Any, frame: bytes
) -> RegistrationHandler:
    _, type_, flags, kind, _ = HEADER.unpack_from(frame)
    payload, more = frame[HEADER_SIZE:], bool(flags & MORE)
    if handler is None:
        return RegistrationHandler(gateway, record, stream, payload, more)
    if type_ == FrameType.DATA:
        if stream.targets:
            target, stream.targets = stream.targets[0], []
            target[: len(payload)] = payload[: len(target)]
            handler.on_filled(stream, end=False)
    elif not stream.targets:
        handler.on_message(stream, kind, payload, more, end=False)
    return handler


def _look(registry: Registry) -> None:
    """Show what is known of nodes to everybody who asks."""
    for record in registry.nodes.values():
        if not record.offers and not record.capabilities:
            return
        assert len(record.offers) <= FUNCTIONS_MAX
        for offer in record.offers.values():
            pool = registry.pool_by_name(offer.name, _READER)
            assert pool is not None
            for wanted in ("gpu", "gpu:a", "a.b:1", ["a", {"gpu": 1}], {"gpu": {"a": ["1"]}}):
                wishes, tree = read_wishes(wanted), record.capabilities
                with suppress(TooMuch):
                    met = matches(wishes, tree, record.labels)
                    assert met == (not lacks(wishes, tree, record.labels)), "a miss unexplained"
    for shown in (describe.nodes(registry, _READER), describe.functions(registry, _READER)):
        assert len(shown) <= FUNCTIONS_MAX
        plain.encode(shown)
        json.dumps(shown, default=str)
        for one in shown[:2]:
            for value in one.values():
                cell(value)


_FUNCTION = {
    "name": "train", "doc": "Train.\nLong.", "signature": "(x: int) -> int", "stream": False,
    "group": "main", "slots": 4, "timeout_s": 1.5, "idempotent": True, "auth_required": False,
    "access_level": "gold", "version": "1", "tags": ["a"], "priority": 0,
    "parameters": [{"name": "x", "kind": "POSITIONAL_OR_KEYWORD", "annotation": "int"}],
    "schema": {"type": "object"}, "requirements": {"gpu_memory": "8GB"},
}  # fmt: skip
INFO = {
    "functions": [_FUNCTION, {"name": "show", "stream": True}], "labels": ["eu", "lab"],
    "capabilities": {"gpu": [{"name": "A100", "memory": 80.0}], "specialization": ["nlp"]},
    "version": "1.0", "platform": "linux", "hostname": "h", "python": "3.11",
}  # fmt: skip


def _said(message: Any, flags: int = 0) -> bytes:
    return pack(FrameType.MESSAGE, flags, ms.kind_of(message), 1, ms.encode(message))


def _registration_seeds() -> list[bytes]:
    whole = plain.encode(INFO)
    registered = _said(ms.Register(whole, []))
    sample = _said(ms.Telemetry({"cpu": 0.5, "memory_free": 1 << 30, SECRET: 1}))
    paused = _said(ms.Update(plain.encode({"paused": True, "removed": ["show"]}), []))
    changed = _said(ms.Update(plain.encode({"functions": [{**_FUNCTION, "slots": 2}]}), []))
    parted = _said(ms.Register(None, [len(whole)]), MORE)
    parted += pack_header(len(whole), 0, 1) + whole
    bad = _said(ms.Register(plain.encode({"functions": [{"name": SECRET + "\n\x1b[2J"}]}), []))
    return [registered, registered + sample + paused + changed, parted + paused, bad]


def _mutate_registration(rng: Any, data: bytes) -> bytes:
    """Change the rows of frames, or the value inside one of them."""
    if rng.random() < 0.3:
        return mutate_frames(rng, data)
    frames = split(data)
    at = int(rng.random() * len(frames)) if frames else 0
    if not frames or len(frames[at]) < HEADER_SIZE:
        return mutate_frames(rng, data)
    head, payload = frames[at][:HEADER_SIZE], frames[at][HEADER_SIZE:]
    try:
        fields = cbor2.loads(payload)
        inner = fields[0]
        if not isinstance(inner, bytes):
            raise TypeError("no value inside")  # noqa: TRY301 - it is changed as it is, below
        fields[0] = mutate_cbor(rng, inner)
        payload = cbor2.dumps(fields)
    except (cbor2.CBORError, ValueError, TypeError, LookupError, OverflowError):
        payload = mutate_cbor(rng, payload)
    frames[at] = len(payload).to_bytes(4, "big") + head[4:] + payload
    return b"".join(frames)


# ---- samples ---------------------------------------------------------------------------------


def telemetry(data: bytes) -> Feature:
    """Samples of a node's load, one after the other: what is kept are finite numbers."""
    registry = Registry()
    record = registry.connect("n1", NODE, cast("Any", Link()), 1, cast("Any", None))
    assert record is not None
    gateway = _gateway(registry)
    stream = cast("Any", _Stream())
    handler = RegistrationHandler(gateway, record, stream, _REGISTERED, more=False)
    try:
        handler.on_message(stream, ms.Kind.TELEMETRY, data, more=False, end=False)
    except CodecError as error:
        return feature_of(error)
    assert len(record.sample) <= 64
    for key, value in record.sample.items():
        assert type(key) is str and len(key) <= 64
        if key == GPUS:
            assert all(math.isfinite(number or 0.0) for one in value for number in one.values())
        elif key == REPLICAS:
            assert all(type(number) is int for number in value.values())
        else:
            assert type(value) in (int, float) and math.isfinite(value)
    _look_at_host(record.host)
    plain.encode(describe.nodes(registry, _READER))
    return len(record.sample)


def _look_at_host(host: Host) -> None:
    """What is believed of a node can be compared with what is believed of others."""
    view = host.view
    for share in (view.cpu_used, view.memory_free, view.gpu_used):
        assert share is None or 0.0 <= share <= 1.0
    place = Place(host, "g", 1)
    assert math.isfinite(place.value)
    assert all(0.0 <= one <= 1.0 for one in place.scores()[:4])
    fits = host.ledger.fits(Needs(cpus=1.0, memory_bytes=1, gpus=1.0, gpu_memory_bytes=1))
    assert type(fits) in (tuple, Rejection)


_REGISTERED = ms.encode(ms.Register(plain.encode({}), []))


_GPU_SAMPLE: dict[str, Any] = {
    "full": True, "cpu_percent": 50.0, "cpu_count": 8, "memory_total_bytes": 1 << 35,
    "memory_available_bytes": 1 << 34, "memory_own_bytes": 1 << 30, "replicas": {"f": 2},
    "gpus": [
        {
            "index": 0, "memory_total_bytes": 24 << 30, "memory_free_bytes": 20 << 30,
            "memory_foreign_bytes": None, "utilisation": 0.5, "temperature_c": 60, "processes": 1,
        }
    ],
}  # fmt: skip


def _telemetry_seeds() -> list[bytes]:
    samples: list[dict[str, Any]] = [
        {"cpu_percent": 12.5, "memory_free_bytes": 1 << 33, "gpu0_percent": 0, "load": 1.5},
        _GPU_SAMPLE, {f"k{n}": n for n in range(80)}, {},
        {"nan": math.nan, "inf": math.inf, "text": "x"},
    ]  # fmt: skip
    return [ms.encode(ms.Telemetry(sample)) for sample in samples]


# ---- tokens that somebody wants to have made -------------------------------------------------


def records(data: bytes) -> Feature:
    """The fields of a new token: what is taken can be stored, read again and shown."""
    try:
        given = decode_frame(data)
    except CodecError:
        return None
    if type(given) is not list or len(given) != 8:
        return None
    if not all(type(one) is str for one in given[:3]) or type(given[7]) is not str:
        return None
    lists = given[3:6]
    if not all(type(one) is list and all(type(text) is str for text in one) for one in lists):
        return None
    if given[6] is not None and type(given[6]) not in (int, float):
        return None
    try:
        info = _made(*given)
        check_token(info)
        node_id(given[2])
    except (ValueError, BadOffer) as error:
        return feature_of(error)
    row = token_row(info, b"v" * 32)
    assert token_info(row) == info
    principal = principal_of(info)
    assert type(principal.may_call("train", "n1")) is bool
    assert type(principal.may_register("show", "n1")) is bool
    for shown in (info.to_plain(), info.said()):
        json.dumps(shown, allow_nan=False)
    assert mask(info.note) is not None
    return (info.role, len(info.levels), len(info.scopes.functions))


def _made(
    role: str, user: str, bound: str, levels: list[str], functions: list[str], nodes: list[str],
    expires_s: float | None, note: str,
) -> TokenInfo:  # fmt: skip
    known = parse_role(role)
    return TokenInfo(
        "i" * 10, KIND_OF_ROLE[known], known, user, bound if known is Role.NODE else None,
        Scopes(tuple(functions), tuple(nodes)), frozenset(levels), False, 1.0e9,
        None if expires_s is None else 1.0e9 + expires_s, None, None, None, "owner", note,
    )  # fmt: skip


def _record_seeds() -> list[bytes]:
    fields: list[Any] = ["node", "alice", "gpu-01", [], ["train_*", "show"], [], 86400.0, "a note"]
    second = ["guest", "bob", "n", ["gold", "academic"], ["*"], ["gpu-*", "[a-z]?"], None, ""]
    return [encode_frame(fields), encode_frame(second)]


REGISTRATIONS = Target(registrations, _registration_seeds, _mutate_registration)
TELEMETRY = Target(telemetry, _telemetry_seeds, mutate_cbor)
RECORDS = Target(records, _record_seeds, mutate_cbor)
