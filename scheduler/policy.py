"""What is preferred, as data: weights, and the strategies that users name.

Theory. A policy is a weighted sum of scores in [0, 1]; the largest one is chosen, and among those
within `epsilon` of it the least recently used. Most named strategies are nothing but other weights:
with none but that of `ahead` every node with a free slot ties, which is round robin.

Rules of this file. 1) Pure; a strategy that draws lots is given the generator. 2) A user's own
function sees snapshots and answers with one of them, its id, or None to let the call wait for a
place to become free. Any other answer leaves the choice to the weights.

Source. features.md G12, I4; Envoy's and HAProxy's names for the same strategies.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Protocol

from .model import Needs, NodeSnapshot
from .units import shown

Chooser = Callable[[Sequence[NodeSnapshot], Needs], "NodeSnapshot | str | None"]
"""A strategy of a user's own: the nodes that could run a call, best first, and what it needs."""


WEIGHT_MAX = 1e5
"""With it, and most calls ahead, a total still stays far above that of a shut place."""


class Lots(Protocol):
    """What draws lots; a `random.Random` is one."""

    def randrange(self, stop: int, /) -> int:
        """Return a number from 0 to below `stop`."""
        ...


@dataclass(frozen=True, slots=True)
class ScoreWeights:
    """How much each score counts, and what is taken off; not negative, in any sum.

    A factor of two in `slow` weighs more than all that a full and an idle node differ in load and
    processors: the slower one is taken when the other has no free slot. `ahead` weighs more than a
    factor of ten does: a free slot is better than a place in a queue.
    """

    resources: float = 0.3
    latency: float = 0.2
    load: float = 0.3
    capability: float = 0.2
    cheap: float = 0.0
    slow: float = 0.6
    ahead: float = 2.0

    def __post_init__(self) -> None:
        for name, weight in asdict(self).items():
            if not 0.0 <= weight <= WEIGHT_MAX:
                raise ValueError(f"the weight of {name} is from 0 to {WEIGHT_MAX:g}, not {weight}")

    def as_data(self) -> dict[str, float]:
        """Return them by name."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Policy:
    """How one node is chosen of those that could run a call.

    Attributes:
        name: What the strategy is called.
        weights: Of the scores.
        epsilon: Totals so close to the best one are equal, and the least recently used wins.
        latency_ref_s: A latency that is worth half the score.
        chooser: A user's own strategy; weights then only order what it sees.
        draws: One of the nodes that could run a call is drawn.
    """

    name: str = "score"
    weights: ScoreWeights = ScoreWeights()
    epsilon: float = 0.01
    latency_ref_s: float = 0.05
    chooser: Chooser | None = None
    draws: bool = False

    def __post_init__(self) -> None:
        if not self.latency_ref_s > 0.0:
            raise ValueError(f"latency_ref_s is a time above 0, not {self.latency_ref_s}")
        if not self.epsilon >= 0.0:
            raise ValueError(f"epsilon is 0 or more, not {self.epsilon}")


_NONE = ScoreWeights(0.0, 0.0, 0.0, 0.0, slow=0.0)

DEFAULT = Policy()

STRATEGIES: dict[str, Policy] = {
    "score": DEFAULT,
    "round_robin": Policy("round_robin", _NONE, 0.0),
    "least_loaded": Policy("least_loaded", ScoreWeights(0.0, 0.0, 1.0, 0.0, slow=0.0), 1e-9),
    "latency": Policy("latency", ScoreWeights(0.0, 1.0, 0.0, 0.0, slow=0.0)),
    # A price counts far more than a free slot, so that load decides among equal prices alone.
    "cost": Policy("cost", ScoreWeights(0.0, 0.0, 1.0, 0.0, cheap=WEIGHT_MAX, slow=0.0), 1e-9),
    "random": Policy("random", _NONE, 0.0, draws=True),
}


def read_policy(given: str | Chooser | ScoreWeights | Policy | None) -> Policy:
    """Return the policy that a user named, wrote or weighed.

    Raises:
        ValueError: There is no strategy of that name.
        TypeError: It is nothing of the kind.

    >>> read_policy("round_robin").name, read_policy(None).name
    ('round_robin', 'score')
    """
    if given is None:
        return DEFAULT
    if isinstance(given, Policy):
        return given
    if isinstance(given, ScoreWeights):
        return Policy(weights=given)
    if isinstance(given, str):
        policy = STRATEGIES.get(given)
        if policy is None:
            close = difflib.get_close_matches(given, STRATEGIES, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise ValueError(
                f"there is no strategy {shown(given)}; {hint}there are {', '.join(STRATEGIES)}"
            )
        return policy
    if callable(given):
        return Policy(getattr(given, "__name__", "custom"), chooser=given)
    raise TypeError(
        "a strategy is a name, ScoreWeights, a Policy or a function of snapshots and needs, "
        f"not {shown(given)}"
    )
