"""What a node offers, as its agent knows it: the script's word, and what the machine has.

Rules of this file. 1) Plain data in, plain data out. 2) No I/O. 3) A script may be new to us, so
what it says is checked for its shape before it is taken over.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from .. import values
from ..errors import SerializationError
from ..handlers import StreamHandler
from ..scheduler.model import Device
from ..stream import Stream
from ..wire.errors import CodecError, ErrorCode, RemoteProtocolError
from ..wire.message import Kind, Register, Update, decode
from . import probe
from .replica_plan import ReplicaPlan, devices_of, plan_of, rewritten
from .spec import NodeSpec
from .telemetry import usable_threads

OFFER_BYTES_MAX = 64 * 1024 * 1024
"""Largest description of a node that is taken from a worker."""


class NodeOffer:
    """The functions and capabilities of a node.

    Attributes:
        functions: Descriptions of the functions by name, as the script says them.
        plans: How those run that run in replicas, by name.
        devices: The GPUs that calls may have.
        slots: Calls at once of functions whose replicas are scaled, by name.
    """

    def __init__(self) -> None:
        self.functions: dict[str, dict[str, Any]] = {}
        self.plans: dict[str, ReplicaPlan] = {}
        self.devices: tuple[Device, ...] = ()
        self.slots: dict[str, int] = {}
        self._declared: dict[str, Any] = {}
        self._detected: dict[str, Any] = {}
        self._facts: dict[str, Any] = {}
        self._gpus_allowed: Collection[int] | None = None
        self._replicable = False
        self._paused = False
        self._draining = False

    def know(self, detected: dict[str, Any], facts: dict[str, Any]) -> None:
        """Take over what was found out about this machine."""
        self._detected, self._facts = detected, facts
        self._derive()

    def bound(self, limits: Mapping[str, Any], *, replicable: bool) -> None:
        """Take over what the owner allows, and whether the script can be run as a replica."""
        self._gpus_allowed = limits.get("gpus")
        self._replicable = replicable

    def take(self, offer: dict[str, Any], *, whole: bool) -> None:
        """Take over what the script says.

        Args:
            offer: What it offers, or a change of that.
            whole: It is all, so what it does not name is gone.
        """
        entries = {str(entry["name"]): entry for entry in offer.get("functions") or ()}
        if whole:
            self.functions = entries
        else:
            self.functions.update(entries)
        for name in offer.get("removed") or ():
            if name not in entries:
                self.functions.pop(name, None)
        if offer.get("capabilities") is not None:
            self._declared = offer["capabilities"]
        self._paused = bool(offer.get("paused", self._paused))
        self._draining = bool(offer.get("draining", self._draining))
        self._derive()

    @property
    def _capabilities(self) -> dict[str, Any]:
        """What this machine has, as far as calls may use it."""
        allowed = self._gpus_allowed
        return self._detected if allowed is None else probe.with_gpus(self._detected, allowed)

    def _derive(self) -> None:
        """Decide anew which functions run in replicas."""
        self.devices = devices_of(self._capabilities, self._declared)
        threads = usable_threads()
        plans = {
            name: plan_of(entry, self.devices, threads) if self._replicable else None
            for name, entry in self.functions.items()
        }
        self.plans = {name: plan for name, plan in plans.items() if plan is not None}
        self.slots = {name: n for name, n in self.slots.items() if name in self.plans}

    def told(self, name: str) -> dict[str, Any]:
        """Return what the gateway is told of one function."""
        entry, plan = self.functions[name], self.plans.get(name)
        if plan is None:
            return entry
        scaled = plan.scaling is not None
        slots = max(1, self.slots.get(name, plan.least)) if scaled else plan.slots
        return rewritten(entry, plan, slots)

    def to_plain(self, spec: NodeSpec, removed: list[str] | None = None) -> dict[str, Any]:
        """Return the offer as it is said to the gateway.

        Args:
            spec: The node.
            removed: Names of functions that are no longer offered.
        """
        accept = spec.accept_code
        return {
            "functions": [self.told(name) for name in self.functions],
            "removed": removed or [],
            "capabilities": probe.merge(self._capabilities, self._declared),
            "max_concurrency": spec.max_concurrency,
            "accept_code": accept if isinstance(accept, bool | str) else list(accept),
            "paused": self._paused,
            "draining": self._draining,
            **self._facts,
        }


class OfferReader(StreamHandler):
    """The stream on which a worker says what it offers."""

    def __init__(
        self, tell: Callable[[dict[str, Any], bool], None], stream: Stream, payload: bytes,
        more: bool,
    ) -> None:  # fmt: skip
        """Take the registration that opened the stream, now or when its segment is here.

        Args:
            tell: Called with each offer, and whether it is the first.
            stream: The stream of the registration.
            payload: Its opening message.
            more: A segment follows.
        """
        self._tell = tell
        self._first = True
        self._filling: list[memoryview] = []
        message = decode(Register, payload)
        self._begin(stream, message.info, message.segments, more)

    def on_message(self, stream: Stream, kind: int, payload: bytes, more: bool, end: bool) -> None:
        """The offer has changed."""
        if kind == Kind.UPDATE:
            message = decode(Update, payload)
            self._begin(stream, message.info, message.segments, more)

    def on_filled(self, stream: Stream, end: bool) -> None:
        """The segment of a large offer is here."""
        filled, self._filling = self._filling, []
        self._take(filled[0], filled[1:])

    def _begin(self, stream: Stream, body: bytes | None, segments: list[int], more: bool) -> None:
        if more:
            try:
                self._filling = values.allocate(segments, limit_bytes=OFFER_BYTES_MAX)
            except SerializationError as error:
                raise RemoteProtocolError(ErrorCode.TOO_LARGE, str(error)) from error
            stream.fill(self._filling)
            if body is not None:
                self._filling.insert(0, memoryview(body))
        elif body is not None:
            self._take(body, [])

    def _take(self, body: bytes | memoryview, buffers: list[memoryview]) -> None:
        offer = values.decode(bytes(body), buffers, allow_pickle=False)
        entries = offer.get("functions") or () if type(offer) is dict else (None,)
        if not all(type(entry) is dict and type(entry.get("name")) is str for entry in entries):
            raise CodecError("what a node offers is a map with a list of described functions")
        first, self._first = self._first, False
        self._tell(offer, first)
