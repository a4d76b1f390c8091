"""The gauges of a gateway: what a token holder may read to see that it is well.

Theory. A gauge is a number that goes up and comes down again. Whoever loads a gateway reads them
before, meanwhile and after: connections, streams, calls, bytes, tasks and descriptors must come
back to where they were. The names are part of the interface: programs and tests go by them.

    connections        peers that are connected, let in or not
    streams            open streams of all of them
    calls_pending      calls without an outcome: waiting, at a node, or held
    calls_queued       those of them that wait for a node
    calls_held         those that wait for nodes to come back after a restart
    calls_running      calls that nodes were given and have not done with
    calls_parked       calls whose callers are away: going on, or ended and kept for them
    bytes_buffered     bytes of calls in our memory
    bytes_parked       bytes of outcomes that are kept for callers who are away
    trio_tasks, threads, open_fds, rss_bytes, cpu_s     of the process
    accounts_open      calls that are accounted for and not over
    calls_billed, seconds_billed, revenue      sums of all usage records, by currency
    calls_per_second, error_rate, response_s      outcomes of the last ten seconds
    routing_s, routing_p50_s, routing_p99_s      from a call's arrival to its frame for the node
    balance      how evenly nodes are loaded: 1 is even (Jain's index)
    functions_active      functions that could be called now
    uptime_s, incarnation, nodes_awaited, draining      of this start

Rules of this file. 1) Reading costs no more than a look at each call. What the system must be
asked for is asked at most twice a second, however many ask us. 2) Nothing here names anybody.

Source. promises.md, section 6, point 12.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import psutil
import trio

from .measures import measured_gauges

if TYPE_CHECKING:
    from .core import Gateway
    from .dispatcher import Dispatcher

SYSTEM_EVERY_S = 0.5


class _Process:
    """What the system says about this process, asked now and then."""

    def __init__(self) -> None:
        self._asked_at = -1.0
        self._known: dict[str, Any] = {}

    def gauges(self) -> dict[str, Any]:
        now = time.monotonic()
        if now - self._asked_at >= SYSTEM_EVERY_S:
            self._asked_at, self._known = now, self._ask()
        return self._known

    def _ask(self) -> dict[str, Any]:
        process = psutil.Process()
        with process.oneshot():
            times = process.cpu_times()
            return {
                "rss_bytes": process.memory_info().rss,
                "open_fds": process.num_fds() if hasattr(process, "num_fds") else None,
                "cpu_s": times.user + times.system,
                "threads": threading.active_count(),
            }


_process = _Process()


def bytes_buffered(dispatcher: Dispatcher) -> int:
    """Return how many bytes of calls are in our memory: held, or not yet taken by a link."""
    known = {call for caller in dispatcher.callers.values() for call in caller.calls.values()}
    known.update(dispatcher.leaving)
    for record in dispatcher.registry.nodes.values():
        known.update(record.running.values())
    held, writing = dispatcher.returning.held, dispatcher.accounting.writing
    waiting = (c for c in known if c.level is not None or c in held or c in writing)
    return sum(c.body_bytes for c in waiting) + sum(call.holds_bytes for call in known)


def gauges(gateway: Gateway) -> dict[str, Any]:
    """Return all gauges of a gateway, and what identifies it."""
    dispatcher, recovery = gateway.dispatcher, gateway.recovery
    return {
        **gateway.status(),
        "calls_held": len(dispatcher.returning.held),
        "calls_parked": len(dispatcher.parking),
        "bytes_parked": dispatcher.parking.bytes_kept,
        "nodes_awaited": len(recovery.expected),
        "incarnation": gateway.state.incarnation,
        "accounts_open": gateway.accounts.open,
        **gateway.accounts.sums(),
        **measured_gauges(gateway, trio.current_time()),
        **_process.gauges(),
    }
