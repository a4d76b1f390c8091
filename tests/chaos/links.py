"""The fault proxies of a campaign, on a thread of their own, for those who live in another one."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Sequence
from types import TracebackType
from typing import Self

import trio

from tests.faults import Fault, Step

from .proxy import FaultProxy


class Links:
    """Proxies in front of one gateway.

    Attributes:
        ports: Where each link's dialler connects, by name.
    """

    def __init__(self, names: Sequence[str], target_port: int, seed: int) -> None:
        self.ports: dict[str, int] = {}
        self._proxies = {
            name: FaultProxy(name, target_port, rng=random.Random(f"{seed} {name}"))
            for name in names
        }
        self._ready = threading.Event()
        self._token: trio.lowlevel.TrioToken | None = None
        self._scope = trio.CancelScope()
        self._thread = threading.Thread(target=trio.run, args=(self._main,), daemon=True)

    def __enter__(self) -> Self:
        """Return once all of them listen."""
        self._thread.start()
        self._ready.wait(10.0)
        assert len(self.ports) == len(self._proxies)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End all of them."""
        self._post(self._scope.cancel)
        self._thread.join(10.0)

    def apply(self, step: Step) -> None:
        """Let a fault begin soon, on the link that it names."""
        self._post(lambda: self._proxies[step.link].apply(step))

    def heal(self) -> None:
        """End all faults."""

        def now() -> None:
            for proxy in self._proxies.values():
                proxy.heal()

        self._post(now)

    @property
    def applied(self) -> Counter[Fault]:
        """How often each fault was applied, over all links."""
        total: Counter[Fault] = Counter()
        for proxy in self._proxies.values():
            total.update(proxy.applied)
        return total

    async def _main(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        with self._scope:
            async with trio.open_nursery() as nursery:
                for name, proxy in self._proxies.items():
                    self.ports[name] = await nursery.start(proxy.serve)
                self._ready.set()
                await trio.sleep_forever()

    def _post(self, fn: object) -> None:
        assert self._token is not None and callable(fn)
        self._token.run_sync_soon(fn)
