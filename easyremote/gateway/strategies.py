"""By which strategy a server places calls: named, weighed, or written by its user.

Theory. The scheduler asks a strategy of a user's own on the gateway's thread, in the middle of a
call's way (`scheduler/place.py`). So it is synchronous; a coroutine is driven as long as it does
not really wait. Whatever goes wrong in it costs nobody a call: it is said once in the log, and the
scores decide.

Rules of this file. 1) What a user wrote wrongly is refused where the server is constructed. 2) No
strategy can break the gateway: it is wrapped, and the wrapper does not raise. 3) Each kind of
failure is in the log once.

Source. features.md G12 and G17.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..log import Log
from ..scheduler.model import Needs, NodeSnapshot
from ..scheduler.policy import DEFAULT, STRATEGIES, Chooser, Policy, ScoreWeights, read_policy
from ..scheduler.units import shown
from .balancing import LoadBalancer, Question

if TYPE_CHECKING:
    from .pool import Pool

_log = Log("gateway")

Scheduler = str | Policy | LoadBalancer | Callable[[Sequence[NodeSnapshot], Needs], Any]
"""What `Server(scheduler=...)` takes, beside None."""

LEFT_OPEN = ""
"""The answer that leaves the choice to the scores: no node has this id."""


class _Waits(Exception):
    """A coroutine did not come to its end without waiting."""


class OwnStrategy:
    """A user's own strategy, as the scheduler asks it: it never raises."""

    def __init__(self, asked: LoadBalancer | Callable[..., Any], name: str) -> None:
        """Wrap a function of snapshots and needs, or a balancer."""
        self._asked = asked
        self._name = name
        self._said: set[str] = set()

    def __call__(self, snapshots: Sequence[NodeSnapshot], needs: Needs) -> str | None:
        """Answer for a call of which no more is known."""
        return self.choose(snapshots, needs, None)

    def at(self, pool: Pool) -> Chooser:
        """Return the strategy as it is asked for the calls of one pool."""
        return lambda snapshots, needs: self.choose(snapshots, needs, pool)

    def choose(
        self, snapshots: Sequence[NodeSnapshot], needs: Needs, pool: Pool | None
    ) -> str | None:
        """Return the id of one of the nodes, None to wait, or `LEFT_OPEN`."""
        try:
            if isinstance(self._asked, LoadBalancer):
                answer = _driven(self._asked.answer(Question.of(snapshots, needs, pool)))
            else:
                answer = self._asked(snapshots, needs)
                if inspect.isawaitable(answer):
                    answer = _driven(answer)
        except _Waits:
            self._say("it waits; a strategy decides at once, on what it knows", "waits")
            return LEFT_OPEN
        except (Exception, SystemExit) as error:  # noqa: BLE001  # It is a user's code.
            self._say(f"it raised {type(error).__name__}: {error}", type(error).__name__, error)
            return LEFT_OPEN
        wanted: object = answer.node_id if isinstance(answer, NodeSnapshot) else answer
        if wanted is None:
            return None
        if isinstance(wanted, str) and any(one.node_id == wanted for one in snapshots):
            return wanted
        kind = "stranger" if isinstance(wanted, str) else type(wanted).__name__
        self._say(f"it answered {shown(wanted)}, which is none of the nodes it was shown", kind)
        return LEFT_OPEN

    def _say(self, what: str, kind: str, error: BaseException | None = None) -> None:
        if kind not in self._said:
            self._said.add(kind)
            _log.error(
                "a strategy gave no answer, so the scores decide; this is said once",
                strategy=self._name, cause=what, exception=error,
            )  # fmt: skip


def _driven(awaitable: Awaitable[Any]) -> Any:
    """Return the result of an awaitable that does not really wait.

    Raises:
        _Waits: It does; it was closed.
    """
    steps = awaitable.__await__()
    try:
        next(steps)
    except StopIteration as stop:
        return stop.value
    close: Callable[[], object] | None = getattr(steps, "close", None)
    if close is not None:
        close()
    raise _Waits


def for_pool(policy: Policy, pool: Pool) -> Policy:
    """Return a policy as it is asked for the calls of one pool."""
    chooser = policy.chooser
    if isinstance(chooser, OwnStrategy):
        return replace(policy, chooser=chooser.at(pool))
    return policy


def read_scheduler(given: object, weights: ScoreWeights | None = None) -> Policy:
    """Return the policy that a server is told to place calls by.

    Args:
        given: `Server(scheduler=...)`.
        weights: `Server(weights=...)`, None if they are the usual ones.

    Raises:
        ValueError: There is no such strategy, or it has weights of its own.
        TypeError: It is no strategy at all.
    """
    if weights is not None and not isinstance(weights, ScoreWeights):
        raise TypeError(f"weights= takes ScoreWeights(...), not {shown(weights)}")
    if given is None or given == "score":
        return DEFAULT if weights is None else Policy(weights=weights)
    if isinstance(given, type):
        raise TypeError(
            f"scheduler= takes an instance, not the class: write scheduler={given.__name__}()"
        )
    if isinstance(given, str | Policy):
        policy = read_policy(given)
        if weights is not None:
            raise ValueError(
                f'weights= counts with scheduler="score" and with strategies of your own; '
                f"{policy.name!r} has weights itself, so leave one of the two out"
            )
        return _wrapped(policy)
    if isinstance(given, LoadBalancer):
        policy = Policy(type(given).__name__, weights or given.weights or ScoreWeights())
        given.policy = policy
        return replace(policy, chooser=OwnStrategy(given, policy.name))
    if callable(given):
        name = getattr(given, "__name__", type(given).__name__)
        return Policy(name, weights or ScoreWeights(), chooser=OwnStrategy(given, name))
    raise TypeError(
        f"scheduler= takes the name of a strategy ({', '.join(STRATEGIES)}), a function of "
        f"snapshots and needs, a Policy or a SmartLoadBalancer, not {shown(given)}"
    )


def _wrapped(policy: Policy) -> Policy:
    """Return a policy whose own strategy, if it has one, cannot break the gateway."""
    chooser = policy.chooser
    if chooser is None or isinstance(chooser, OwnStrategy):
        return policy
    return replace(policy, chooser=OwnStrategy(chooser, policy.name))
