"""Why does a call wait? What the gateway knows, in sentences for people and as data for programs.

Theory. A call that does not get on is a complaint about somebody: a node that is full, a node that
is away, a caller that takes no bytes. Each state of a call (`calls.py`) waits for one kind of
thing, so the explanation follows from the state, and names who could end the wait:

    held         nodes that were here before the gateway was restarted
    queued       a place on one of the nodes that could run it; for each of them, why not now
    dispatched   the node's word that the body runs, or credit for its arguments
    running      the body; its own calls; or the caller, if it leaves its bytes untouched
    cancelling   the node's word that the body has stopped
    done         its caller, for whom the outcome is kept

Rules of this file. 1) Nothing changes here. 2) Only nodes that the asker may see are named. What it
may not see is not even counted. 3) A sentence says who is waited for; the data says the same.

Source. features.md, "why_waiting()"; promises.md P5: a call that waits says why.
"""

# ruff: noqa: ARG001  # Every explanation takes what any of them needs.

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..scheduler.model import Rejection
from ..scheduler.pending import eta_s
from .calls import STATE_NAMES, CallState, GatewayCall
from .pool import Offer, Pool, SlotGroup, waits_for

if TYPE_CHECKING:
    from .core import Gateway

PLACES_MAX = 32
"""Nodes that are explained one by one; the rest is counted."""

PHASES: dict[CallState, str] = {
    CallState.SUBMITTED: "submitted",
    CallState.HELD: "held",
    CallState.QUEUED: "queued",
    CallState.DISPATCHED: "dispatched",
    CallState.STARTED: "running",
    CallState.CANCELLING: "cancelling",
    CallState.SETTLED: "done",
}


def whereabouts(gateway: Gateway, call: GatewayCall, now: float) -> dict[str, Any]:
    """Return where a call is, in a few fields: what a future shows."""
    position, eta_s = None, None
    if call.level is not None and call.pool is not None:
        position = call.pool.queue.position(call, now)
        eta_s = _eta_s(call.pool, position, now)
    return {
        "state": STATE_NAMES[call.state],
        "queue_position": position,
        "eta_s": eta_s,
        "node_id": None if call.offer is None else call.offer.record.node_id,
        "attempt": call.attempt,
        "placement": placement(gateway, call.principal.user, call.message.call_id, now),
    }


def placement(gateway: Gateway, user: str, call_id: bytes, now: float) -> dict[str, Any] | None:
    """Return why a user's call was given where it was; None if that is not known (any more)."""
    traces = gateway.dispatcher.placer.traces
    return traces.placement(user, call_id, gateway.state.store.clock() - now)


def _eta_s(pool: Pool, ahead: int, now: float) -> float | None:
    """Return when a waiting call may expect to start; None if nothing is known of the bodies."""
    groups = [offer.group for offer in pool.places.values()]
    means = [group.mean_s for group in groups if group.mean_s is not None]
    if not means:
        return None
    there = set(groups)
    running = [
        now - call.since
        for group in groups
        for call in group.node.running.values()
        if call.offer is not None and call.offer.group in there and not call.children
    ]
    slots = sum(group.slots for group in groups)
    if pool.needy:  # Its calls take more than slots: as many run at once as run now.
        slots = min(slots, max(1, len(running)))
    return eta_s(ahead, slots, sum(means) / len(means), running)


def explain(gateway: Gateway, call: GatewayCall, now: float) -> dict[str, Any]:
    """Return what a call waits for.

    Args:
        gateway: Whose call it is.
        call: One of the asker's.
        now: On trio's clock.

    Returns:
        The fields of `whereabouts`, and `function`, `phase`, `since_s`, `deadline_left_s`,
        `caller_away`, `calls_of_its_own`, `bytes_waiting`, `places` (a row for each node that could
        run it, while it waits for one) and `sentences`.
    """
    told: dict[str, Any] = {
        **whereabouts(gateway, call, now),
        "call_id": call.message.call_id,
        "function": call.message.function,
        "phase": PHASES[call.state],
        "since_s": max(0.0, now - call.since),
        "deadline_left_s": None if call.deadline is None else max(0.0, call.deadline - now),
        "caller_away": call.up is None,
        "calls_of_its_own": call.children,
        "bytes_waiting": _bytes_waiting(call),
        "places": [],
    }
    sentences = _SENTENCES[call.state](gateway, call, told, now)
    if call.deadline is not None and call.state is not CallState.SETTLED:
        sentences.append(f"Its deadline is in {told['deadline_left_s']:.1f} s.")
    if told["caller_away"] and call.state is not CallState.SETTLED:
        sentences.append("Its caller has lost its link; it goes on, and the outcome is kept.")
    told["sentences"] = sentences
    return told


def _bytes_waiting(call: GatewayCall) -> dict[str, int]:
    """Return which bytes of a call wait for somebody's credit."""
    waiting = {}
    if call.down is not None and (size := call.down.pending_bytes):
        waiting["for_node"] = size
    if call.up is not None and (size := call.up.pending_bytes):
        waiting["for_caller"] = size
    return waiting


def _submitted(gateway: Gateway, call: GatewayCall, told: dict[str, Any], now: float) -> list[str]:
    return ["The gateway is taking it."]


def _held(gateway: Gateway, call: GatewayCall, told: dict[str, Any], now: float) -> list[str]:
    if call in gateway.dispatcher.accounting.writing:
        return ["Its function has a quota or a price: the gateway writes down that it was called."]
    recovery = gateway.recovery
    count, left_s = len(recovery.expected), max(0.0, recovery.until - now)
    why = "The gateway was restarted, and nodes that may have this call, or could run it, are not"
    return [f"{why} back yet: it waits for {_count(count, 'node')}, for {left_s:.0f} s at most."]


# ---- it waits for a node -------------------------------------------------------------------------


def _queued(gateway: Gateway, call: GatewayCall, told: dict[str, Any], now: float) -> list[str]:
    pool = call.pool
    assert pool is not None
    position, eta_s = told["queue_position"], told["eta_s"]
    soon = "" if eta_s is None else f", which takes about {max(eta_s, 0.1):.1f} s"
    verb = "waits" if position == 1 else "wait"
    ahead = f"{_count(position, 'call')} {verb} before it" if position else "It is the next one"
    sentences = [f"It has waited {told['since_s']:.1f} s for a node that is free{soon}. {ahead}."]
    offers = [
        offer
        for offer in gateway.registry.providers(pool.name, call.principal)
        if pool.covers(offer.record)
    ]
    offers.sort(key=lambda offer: offer.record.node_id)
    rows = [_place(gateway, call, offer, now) for offer in offers]
    told["places"] = rows[:PLACES_MAX]
    sentences += [row["why"] for row in rows[:PLACES_MAX]]
    if len(rows) > PLACES_MAX:
        sentences.append(f"And {_count(len(rows) - PLACES_MAX, 'more node')}.")
    if not rows:
        sentences.append(
            f"No node that is known offers {pool.name} any more; the call fails if none comes back "
            f"within {gateway.limits.offline_grace_s:.0f} s."
        )
    if any(row["state"] == "busy" and row["ahead"] for row in rows):
        sentences.append("A node is given a few calls more than it has slots where they are short.")
    return sentences


def _place(gateway: Gateway, call: GatewayCall, offer: Offer, now: float) -> dict[str, Any]:
    """Say why one node does not have a call now."""
    record, group = offer.record, offer.group
    row: dict[str, Any] = {
        "node_id": record.node_id, "busy": group.busy, "slots": group.slots, "ahead": group.ahead,
        "mean_s": group.mean_s,
    }  # fmt: skip
    link, name = record.link, record.node_id
    if link is None:
        state = "offline"
        why = f"{name} is not connected; it was lost {max(0.0, now - record.last_seen):.0f} s ago."
    elif record.draining:
        state, why = "draining", f"{name} is stopping and takes no new calls."
    elif record.paused:
        state, why = "paused", f"{name} is paused by its owner."
    elif name in call.refused_by:
        state, why = "refused", f"{name} gave this call back; another node is tried first."
    elif (lack := _lack(gateway, call, offer)) is not None:
        state, why = "lacks", f"{name} {lack}."
    elif record.host.shut:
        state = "suspect"
        why = f"{name} gets no calls now: it is silent, or failed too many of the last ones."
    elif group.busy >= group.limit:
        state = "busy"
        why = f"{name} is busy: {_load(group)}."
        if group.mean_s is not None:
            why = f"{why[:-1]}, {group.mean_s:.3g} s each."
    elif link.streams_available <= 0:
        state, why = "no streams", f"{name} takes no more streams on its link now."
    else:
        state, why = "free", f"{name} has room; calls that came earlier go first."
    if link is not None:
        why = " ".join([why, *_silence(offer, now)])
    return {**row, "state": state, "why": why}


def _lack(gateway: Gateway, call: GatewayCall, offer: Offer) -> str | None:
    """Say what a node has not enough of for a call, or for whom it is kept; None for neither."""
    pool, host = call.pool, offer.record.host
    if pool is None or not pool.needy:
        return None
    needs = offer.needs(pool.kind.asks)
    found = needs if isinstance(needs, Rejection) else host.ledger.fits(needs)
    if isinstance(found, Rejection):
        return found.shown()
    kept_for = gateway.dispatcher.placer.kept.get(offer.record)
    if not needs or kept_for is None or kept_for is call:
        return None
    if waits_for(kept_for, offer.record):
        return "is kept for a call that has waited longer and needs more"
    return None


# ---- a node has it -------------------------------------------------------------------------------


def _dispatched(gateway: Gateway, call: GatewayCall, told: dict[str, Any], now: float) -> list[str]:
    offer = call.offer
    if offer is None:
        return ["Its node has done with it; its outcome is on the way."]
    record, group = offer.record, offer.group
    tried = "" if call.attempt <= 1 else f", as the {call.attempt}. try"
    given = f"It was given to {record.node_id} {told['since_s']:.1f} s ago{tried}"
    sentences = [f"{given}, which has not said that it runs."]
    if size := told["bytes_waiting"].get("for_node"):
        sentences.append(f"{size:,} bytes of its arguments wait until {record.node_id} takes them.")
    elif group.busy > group.slots:
        sentences.append(f"That node has {_load(group)}: it may wait there for one.")
    if call.up is not None and call.up_mid:
        sentences.append("Its caller has not sent all of its arguments.")
    return sentences + _silence(offer, now)


def _running(gateway: Gateway, call: GatewayCall, told: dict[str, Any], now: float) -> list[str]:
    offer = call.offer
    if offer is None:
        return ["Its body has ended; its outcome is on the way."]
    sentences = [f"It runs on {offer.record.node_id}, for {told['since_s']:.1f} s now."]
    if call.children:
        made = _count(call.children, "call")
        sentences.append(f"Its body waits for {made} of its own, and has lent its slot meanwhile.")
    if size := told["bytes_waiting"].get("for_caller"):
        sentences.append(f"{size:,} bytes wait until its caller takes them.")
    if size := told["bytes_waiting"].get("for_node"):
        sentences.append(f"{size:,} bytes wait until {offer.record.node_id} takes them.")
    return sentences + _silence(offer, now)


def _cancelling(gateway: Gateway, call: GatewayCall, told: dict[str, Any], now: float) -> list[str]:
    offer = call.offer
    where = "Its node" if offer is None else offer.record.node_id
    return [f"{where} was asked to stop it, and has not said that the body has ended."]


def _done(gateway: Gateway, call: GatewayCall, told: dict[str, Any], now: float) -> list[str]:
    if call.up is None:
        return ["It has its outcome, which is kept until its caller comes back for it."]
    if size := told["bytes_waiting"].get("for_caller"):
        return [f"It has its outcome; {size:,} bytes wait until its caller takes them."]
    return ["It has its outcome, which is on the way to its caller."]


def _silence(offer: Offer, now: float) -> list[str]:
    """Say how long a node has been silent, if that is remarkable."""
    link = offer.record.link
    if link is None:
        return [f"{offer.record.node_id} is not connected."]
    heard_s, settings = now - link.connection.heard_at, link.connection.settings
    if heard_s <= 2.0 * settings.ping_every_s:
        return []
    left_s = max(0.0, settings.lease_s - heard_s)
    said = f"{offer.record.node_id} was last heard {heard_s:.0f} s ago"
    return [f"{said}; it counts as lost in {left_s:.0f} s if it stays silent."]


def _load(group: SlotGroup) -> str:
    return f"{_count(group.busy, 'call')} for {_count(group.slots, 'slot')}"


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


_SENTENCES = {
    CallState.SUBMITTED: _submitted,
    CallState.HELD: _held,
    CallState.QUEUED: _queued,
    CallState.DISPATCHED: _dispatched,
    CallState.STARTED: _running,
    CallState.CANCELLING: _cancelling,
    CallState.SETTLED: _done,
}
