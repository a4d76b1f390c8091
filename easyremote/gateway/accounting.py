"""What the dispatcher does for calls that have a quota or a price; all others never come here.

Theory. Such a call takes one step more than others: between its admission and its placement it is
written down (`accounts.py`). Meanwhile it is HELD, in `writing`; its caller may cancel it and its
deadline may pass as for any call that waits. From then on its charge goes with it, and hears what
the dispatcher hears.

Rules of this file. 1) A charge is closed once: when no node has the call and it has its outcome.
2) Where a call may run is asked again when it is written down: the disk may have taken its time.

Source. decisions.md 13.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from ..wire.errors import ErrorCode
from .accounts import Accounts, facts_of
from .calls import CallInput, CallState, GatewayCall
from .pool import Offer, Pool
from .routing import Refused, route
from .subaccount import sub_account
from .terms import Terms

if TYPE_CHECKING:
    from .dispatcher import Dispatcher

Owned = tuple[str, Terms]


class Accounting:
    """The accounts as the dispatcher uses them.

    Attributes:
        accounts: What users have used, and what it costs.
        writing: Calls that are being written down.
    """

    def __init__(self, dispatcher: Dispatcher, accounts: Accounts) -> None:
        self._dispatcher = dispatcher
        self.accounts = accounts
        self.writing: dict[GatewayCall, None] = {}
        self._terms: dict[Pool, tuple[Owned, ...]] = {}
        self._version = -1

    def put(self, call: GatewayCall, pool: Pool) -> None:
        """Place a call whose function has terms as soon as it is written down.

        Raises:
            Refused: Nothing is left of its quota, or too much waits already.
        """
        placer, caller = self._dispatcher.placer, call.caller
        terms = self._terms_of(pool)
        if not terms:  # Its nodes have dropped them.
            placer.place(call, pool)
            return
        limits = self._dispatcher.limits
        full = len(self.writing) + placer.queued >= limits.queued_max
        if full or caller.queued >= limits.queued_user_max or caller.buffers.is_full:
            raise Refused(
                ErrorCode.OVERLOADED, "too many calls wait at the gateway; try again later",
                retry_after_s=5.0,
            )  # fmt: skip

        def ready(refused: Refused | None) -> None:
            self._ready(call, refused)

        now = trio.current_time()
        facts = facts_of(call, sub_account(call, pool))
        charge = self.accounts.admit(facts, terms, now, ready)
        call.charge = charge
        if charge.durable:
            try:
                placer.place(call, pool)
            except Refused:
                self.accounts.close(charge, now)
                raise
            return
        if call.state is CallState.SUBMITTED:
            call.step(CallInput.HOLD)
        call.buffers = caller.buffers
        self.writing[call] = None
        caller.queued += 1
        call.buffers.add(call.body_bytes, call.body_bytes)

    def put_late(self, call: GatewayCall, pool: Pool) -> None:
        """Write a call down that has waited, for now there is a place whose function has terms."""
        call.step(CallInput.HOLD)
        try:
            self.put(call, pool)
        except Refused as refused:
            self._dispatcher.lose_held(call, refused)

    def _terms_of(self, pool: Pool) -> tuple[Owned, ...]:
        """Return the terms of all places of a pool, each once, with the owner who set them."""
        registry = self._dispatcher.registry
        if self._version != registry.version:
            self._version = registry.version
            self._terms.clear()
        found = self._terms.get(pool)
        if found is None:
            all_of_them = {
                (offer.record.owner, offer.entry.terms): None
                for offer in pool.places.values()
                if offer.entry.terms is not None
            }
            found = self._terms[pool] = tuple(
                (owner, terms) for owner, terms in all_of_them if terms is not None
            )
        return found

    def _ready(self, call: GatewayCall, refused: Refused | None) -> None:
        """A call is written down, or cannot be."""
        if call not in self.writing:
            return  # It was settled meanwhile.
        self.forget(call)
        if refused is None:
            try:
                pool = route(self._dispatcher.registry, call.principal, call.message)
                self._dispatcher.placer.place(call, pool)
            except Refused as error:
                refused = error
            else:
                return
        self._dispatcher.lose_held(call, refused)

    def forget(self, call: GatewayCall) -> None:
        """A call does not wait for the disk any more; without effect if it did not."""
        if call in self.writing:
            del self.writing[call]
            call.caller.queued -= 1
            call.buffers.add(-call.body_bytes, -call.body_bytes)

    def take_up(self, call: GatewayCall, offer: Offer) -> None:
        """A node has a call from before a restart: it was counted then."""
        terms = offer.entry.terms
        owned = () if terms is None else ((offer.record.owner, terms),)
        call.charge = self.accounts.take_up(facts_of(call), owned, trio.current_time())

    def released(self, call: GatewayCall) -> None:
        """No node has a call any more, or none ever had: if it has its outcome, that is all."""
        charge = call.charge
        if charge is None:
            return
        if call.state is CallState.SETTLED:
            self.accounts.close(charge, trio.current_time())
        elif call.state is CallState.QUEUED:
            charge.taken_back()

    def keep_house(self, now: float) -> None:
        """Stop what a hard quota allows no longer, and what cannot come back. Once a second."""
        self.accounts.keep_house(now)
        for facts in self.accounts.overdrawn(now):
            call = self._dispatcher.caller(facts.user).calls.get(facts.call_id)
            if call is not None and call.can(CallInput.EXPIRE):
                self._dispatcher.on_time(call, CallInput.EXPIRE)
