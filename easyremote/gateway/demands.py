"""What a call's options ask of placement: read once, bounded, and made into a key.

Theory. Options come from strangers. What matters to placement is read into a `Demand`, a frozen
value that can be compared and hashed: calls with equal demands of equal functions can wait in one
queue, and where they may go is worked out once. A call without such options has no demand, and
costs nothing here.

Rules of this file. 1) Pure. 2) What is wrong is `BadDemand` with a sentence for the caller, before
anything was decided; what is unknown here is not looked at (`admission.IgnoredOptions` names it in
the log). 3) Amounts are read by `scheduler.needs` and wishes by `scheduler.capability`, as in the
client, so that both sides mean the same.

Source. wire/README.md, "Options of a call"; features.md R4, C3, C11, G12.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..scheduler.capability import Wishes, read_wishes
from ..scheduler.model import Needs
from ..scheduler.needs import CUSTOM_MAX, read_needs
from ..scheduler.policy import Policy, ScoreWeights, read_policy
from ..scheduler.scaling import Scaling, read_scaling
from ..scheduler.units import AMOUNT_MAX, shown

PRIORITY_MAX = 1000
"""Of a call, up and down; 0 is usual."""
NAME_CHARS_MAX = 64
TEXT_CHARS_MAX = 128

AMOUNTS = ("num_cpus", "num_gpus", "gpu_memory", "memory")
WEIGHTS = tuple(ScoreWeights().as_data())
HEEDED = frozenset(
    {*AMOUNTS, "resources", "capability", "prefer", "priority", "load_balancing", "scaling"}
)
"""Options that are read here."""

Ask = tuple[str, float | str]


class BadDemand(ValueError):
    """The options of a call ask for something that nobody can mean."""


@dataclass(frozen=True, slots=True)
class Demand:
    """What one call asks of the place where it runs.

    Attributes:
        wishes: What a node must have.
        prefers: What a node should have.
        asks: Amounts that are reserved while it runs, by name, sorted: what `needs` reads.
        priority: Within its user's own calls; higher is earlier.
        policy: By which nodes are compared; None for the gateway's own.
        scaling: How many replicas its function may have; None if the call does not say.
    """

    wishes: Wishes = ()
    prefers: Wishes = ()
    asks: tuple[Ask, ...] = ()
    priority: int = 0
    policy: Policy | None = None
    scaling: Scaling | None = None

    def needs(self, requirements: Mapping[str, Any] | None = None) -> Needs:
        """Return what is reserved for it: of the function's requirements and its own the larger.

        Raises:
            ValueError: The two exclude each other.
        """
        return read_needs(requirements, {"resources": dict(self.asks)} if self.asks else None)


def read_options(options: Mapping[str, Any]) -> Demand | None:
    """Read the options of a call; None if nothing in them matters to placement.

    Raises:
        BadDemand: An option is wrong; the message says which and why.

    >>> read_options({"num_gpus": 1, "gpu_memory": 16 * 10**9}).needs().shown()
    'gpu 1, gpu_memory 16 GB'
    """
    if not options or HEEDED.isdisjoint(options):
        return None
    try:
        demand = Demand(
            _wishes(options, "capability"),
            _wishes(options, "prefer"),
            _asks(options),
            _priority(options.get("priority", 0)),
            _policy(options.get("load_balancing")),
            _scaling(options.get("scaling")),
        )
        demand.needs()
    except BadDemand:
        raise
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise BadDemand(str(error)) from None
    return None if demand == NO_DEMAND else demand


NO_DEMAND = Demand()

REMEMBERED_MAX = 1024
KEY_CHARS_MAX = 512


class Demands:
    """Remembers what options mean, for callers say the same again and again.

    What is long is read anew each time, so that strangers fill no memory.
    """

    def __init__(self) -> None:
        self._known: dict[str, Demand | None] = {}

    def read(self, options: Mapping[str, Any]) -> Demand | None:
        """Return what `read_options` returns.

        Raises:
            BadDemand: As there.
        """
        if not options or HEEDED.isdisjoint(options):
            return None
        # As text, for True and 1 are one key of a dict, and two wishes.
        key = repr([options.get(name) for name in _IN_ORDER])
        if key in self._known:
            return self._known[key]
        demand = read_options(options)
        if len(key) <= KEY_CHARS_MAX:
            if len(self._known) >= REMEMBERED_MAX:
                self._known.clear()
            self._known[key] = demand
        return demand


_IN_ORDER = sorted(HEEDED)


def _wishes(options: Mapping[str, Any], name: str) -> Wishes:
    value = options.get(name)
    return () if value is None else read_wishes(value)


def _asks(options: Mapping[str, Any]) -> tuple[Ask, ...]:
    found: dict[str, float | str] = {}
    for name in AMOUNTS:
        if options.get(name) is not None:
            found[name] = _amount(name, options[name])
    resources = options.get("resources")
    if resources is not None:
        if type(resources) is not dict or len(resources) > CUSTOM_MAX:
            raise BadDemand(f"resources is a map of at most {CUSTOM_MAX} names and amounts")
        for name, value in resources.items():
            if type(name) is not str or not 0 < len(name) <= NAME_CHARS_MAX or name == "resources":
                raise BadDemand(f"no resource is called {shown(name)}")
            if name in found:
                raise BadDemand(f"{name} is asked for twice, also in resources; ask once")
            found[name] = _amount(name, value)
    return tuple(sorted(found.items()))


def _amount(name: str, value: Any) -> float | str:
    if isinstance(value, str) and len(value) <= TEXT_CHARS_MAX:
        return value
    if isinstance(value, int | float) and 0 <= value < AMOUNT_MAX:
        return float(value)
    raise BadDemand(f"{name} is an amount, not {shown(value)}")


def _priority(value: Any) -> int:
    if type(value) is not int or not -PRIORITY_MAX <= value <= PRIORITY_MAX:
        raise BadDemand(f"priority is a whole number from -{PRIORITY_MAX} to {PRIORITY_MAX}")
    return value


def _policy(value: Any) -> Policy | None:
    if value is None:
        return None
    if type(value) is str:
        return read_policy(value)
    if type(value) is dict and _are_weights(value):
        return read_policy(ScoreWeights(**value))
    raise BadDemand(
        f"load_balancing is the name of a strategy, or a map of weights of {', '.join(WEIGHTS)}"
    )


def _are_weights(value: dict[Any, Any]) -> bool:
    numbers = all(type(weight) in (int, float) for weight in value.values())
    return numbers and value.keys() <= set(WEIGHTS)


def _scaling(value: Any) -> Scaling | None:
    if value is not None and type(value) not in (str, int, dict):
        raise BadDemand('scaling is "auto", a number of replicas, or a map')
    return None if value is None else read_scaling(value)
