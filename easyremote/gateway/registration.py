"""The registration stream of a node: what it offers, how that changes, how busy it is.

Theory. A node opens one stream when it is let in and says what it offers; the gateway answers with
the epoch and the lease. The stream stays open: updates replace or remove functions, pause or
drain the node, and samples of telemetry come on it. What is refused is refused as a whole, and the
node hears why.

Rules of this file. 1) Nothing is taken over before all of it was checked (`offer.py`). 2) A newer
registration stream of the same link replaces the older one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..handlers import StreamHandler
from ..log import Log
from ..values import plain
from ..wire.errors import ErrorCode
from ..wire.message import Failure, Kind, Register, Registered, Telemetry, Update, decode
from .bodies import BODY_BYTES_MAX, BodyReader
from .offer import FUNCTIONS_MAX, WEIGHT_MAX, BadOffer, NodeOffer, read_offer
from .recovery import read_told
from .sample import merged

if TYPE_CHECKING:
    from ..stream import Stream
    from .core import Gateway
    from .pool import NodeRecord

_log = Log("gateway")

NEWS_COST = 1.0 / 16.0
"""Of the abuse budget, for each registration, change or sample: some 500 a second are free."""
RESIZE_COST = 1.0
"""For a sample that says that the machine is a smaller or larger one: seldom true."""
NEWS_UNIT_BYTES = 128 * 1024
"""So many bytes of a change cost 1."""


class RegistrationHandler(StreamHandler):
    """One registration stream."""

    def __init__(
        self, gateway: Gateway, record: NodeRecord, stream: Stream, payload: bytes, more: bool
    ) -> None:
        """Take the registration that opened the stream, now or when its segment is here."""
        self._gateway = gateway
        self._record = record
        self._stream = stream
        self._announced = False
        self._weights: dict[str, int] = {}
        self._body = BodyReader(self._take)
        message = decode(Register, payload)
        _charge(stream, message)
        self._body.begin(stream, message.info, message.segments, more)

    def on_message(self, stream: Stream, kind: int, payload: bytes, more: bool, end: bool) -> None:
        """An update, or a sample."""
        if kind == Kind.TELEMETRY:
            stream.link.charge(NEWS_COST)
            record, sample = self._record, decode(Telemetry, payload).sample
            record.sample = merged(record.sample, sample)
            if self._gateway.watch.heard(record, sample, stream.link.connection.now):
                stream.link.charge(RESIZE_COST)
        elif kind == Kind.UPDATE:
            message = decode(Update, payload)
            _charge(stream, message)
            self._body.begin(stream, message.info, message.segments, more)

    def on_filled(self, stream: Stream, end: bool) -> None:
        """The segment of a large registration is here."""
        self._body.filled()

    def _take(self, value: Any) -> None:
        try:
            offer = read_offer(value)
            self._check_scope(offer)
            self._check_size(offer)
            told = read_told(value)
        except BadOffer as error:
            self._refuse(ErrorCode.BAD_ARGUMENT, str(error))
            return
        record, gateway = self._record, self._gateway
        whole = not self._announced
        gateway.registry.announce(record, offer, whole=whole)
        self._forget_groups()
        gateway.audited.registered(record)
        if whole:
            self._announced = True
            _log.info(
                "node registered", node_id=record.node_id, functions=len(record.offers),
                user=record.owner,
            )  # fmt: skip
            self._stream.send(
                Registered(
                    {
                        "node_id": record.node_id,
                        "epoch": record.epoch,
                        "lease_s": gateway.limits.link.lease_s,
                        "owner": record.owner,
                    }
                )
            )
            if (earned := gateway.accounts.earned(record.node_id)) is not None:
                self.tell({"revenue": earned})
            gateway.dispatcher.returning.node_spoke(record, told)
        gateway.dispatcher.placer.pump_node(record)

    def _check_scope(self, offer: NodeOffer) -> None:
        """Refuse functions that the node's token does not allow."""
        record = self._record
        for entry in offer.functions:
            if not record.principal.may_register(entry.name, record.node_id):
                raise BadOffer(
                    f"the token of this node does not allow a function called {entry.name!r}; "
                    "ask the gateway's operator for one that does"
                )

    def _check_size(self, offer: NodeOffer) -> None:
        """Refuse what makes all that the node says too much, however often it says a part."""
        weights = {name: w for name, w in self._weights.items() if name not in offer.removed}
        weights.update({entry.name: entry.weight for entry in offer.functions})
        if len(weights) > FUNCTIONS_MAX:
            raise BadOffer(f"a node offers at most {FUNCTIONS_MAX} functions")
        if sum(weights.values()) > WEIGHT_MAX:
            raise BadOffer(
                f"the descriptions of all functions of a node have at most {WEIGHT_MAX} bytes; "
                "shorten documentation and metadata"
            )
        self._weights = weights

    def _forget_groups(self) -> None:
        """Forget slot groups that no function names any more and no call counts in."""
        record = self._record
        named = {offer.group.name for offer in record.offers.values()}
        for name, group in list(record.groups.items()):
            if name not in named and not group.busy and not group.pools:
                record.groups.pop(name).leave()

    def replaced(self) -> None:
        """A newer registration of the same link counts from now on."""
        if self._stream.is_open:
            self._stream.reset(ErrorCode.NO_ERROR, "a newer registration has come")
            self._stream.release()

    def tell(self, change: dict[str, Any]) -> None:
        """Say to the node what is wanted of it, or known of it.

        Args:
            change: Plain data. `replicas` is a map of function names to how many replicas there
                should be, `revenue` a sum in the node's currency, `rating` a number in [0, 1].
        """
        if self._announced and self._stream.is_open:
            self._stream.send(Update(plain.encode(change), []))

    def _refuse(self, code: ErrorCode, reason: str) -> None:
        _log.warning("registration refused", node_id=self._record.node_id, reason=reason)
        if self._stream.is_open:
            self._stream.send(Failure(int(code), reason, False, None, {}), end=True)
            self._stream.release()


def _charge(stream: Stream, message: Register | Update) -> None:
    size_bytes = len(message.info or b"") + sum(message.segments[:1])
    stream.link.charge(NEWS_COST + min(size_bytes, BODY_BYTES_MAX) / NEWS_UNIT_BYTES)
