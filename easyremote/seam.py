"""Where calls meet links: the seam between the client side and whoever owns a connection.

Theory. A call needs very little of the network: a way to run code on the thread that owns a link,
and the link itself. In a client process the client dials and owns both. In a worker process the
node owns the link to its agent and *injects* it here, so that a function that runs on a node can
call other functions with the very same client code, and the node never imports the client.

Rules of this file. 1) Nothing here does I/O. 2) `post` may be called from any thread; everything
else of a `CallLink` belongs to its io thread. 3) The context variables describe the call whose
body is running in the current thread or task; they are set by the executor alone.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from .link import Link


class CallLinkListener(Protocol):
    """Told, on the io thread, when calls can be made and when they no longer can."""

    def link_up(self, link: Link) -> None:
        """Calls may be opened on `link`."""

    def link_down(self, error: BaseException | None) -> None:
        """The link is gone; a new one may come."""

    def link_credit(self) -> None:
        """The peer allows more streams: calls that were held back may go."""


class CallLink(Protocol):
    """A connection on which calls can be made, with the thread that owns it."""

    def post(self, fn: Callable[[], object]) -> None:
        """Run `fn` on the io thread soon. Thread-safe, never blocks; batched into one wake."""

    def listen(self, listener: CallLinkListener) -> None:
        """Tell `listener` of the link from now on (at once, if it is up). Io thread only."""

    def on_io_thread(self) -> bool:
        """Whether the caller runs on the io thread, where nothing may block."""
        ...


class SlotLender(Protocol):
    """Lets a running body give its execution slot away while it waits for another call."""

    def lend(self) -> AbstractContextManager[None]:
        """Give the slot away on entry; on exit, wait to have it back before going on."""
        ...


_injected: list[CallLink] = []

current_ticket: ContextVar[bytes] = ContextVar("current_ticket", default=b"")
"""Call id of the call whose body runs here; travels as the delegation ticket of nested calls."""

current_lender: ContextVar[SlotLender | None] = ContextVar("current_lender", default=None)
"""The lender of the slot that the running body occupies, if it occupies one."""

current_deadline: ContextVar[float | None] = ContextVar("current_deadline", default=None)
"""Deadline of the running call on the `time.monotonic` clock; nested calls end before it."""


def inject(link: CallLink | None) -> None:
    """Make `link` the one that this process's calls travel on (a worker's link to its agent)."""
    _injected[:] = [] if link is None else [link]


def injected() -> CallLink | None:
    """Return the injected link, or None in a process that is no worker."""
    return _injected[0] if _injected else None
