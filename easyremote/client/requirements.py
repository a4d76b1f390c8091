"""Options that say what a call needs: checked where they are written, sent in one plain form.

Theory. `gpu_memory="16GB"`, `">=16GB"` and 16_000_000_000 mean the same. What is wrong with such an
option is said where the function is declared, by the same readers that the gateway uses; what
travels has numbers only, so that equal demands of different programs look equal.

Rules of this file. 1) A wrong type is a `TypeError`, a value that cannot be is a `ValueError`; both
say how to write it. 2) Nothing is guessed: a word that is no strategy is an error.

Source. wire/README.md, "Options of a call"; features.md R4, C3, C11, G12.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from ..scheduler.capability import read_wishes
from ..scheduler.needs import read_needs
from ..scheduler.policy import STRATEGIES, ScoreWeights, read_policy
from ..scheduler.scaling import read_scaling
from ..scheduler.units import read_bytes, read_count, read_wanted, shown

COUNTS = ("num_cpus", "num_gpus")
SIZES = ("gpu_memory", "memory")
PRIORITY_MAX = 1000
SIZE_RESOURCES = frozenset({"memory", "disk", "gpu_memory"})


def travelling(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of the options the gateway acts on, in its plain form.

    Args:
        options: Under their first spellings; others among them are not looked at.

    Raises:
        TypeError: An option has the wrong type.
        ValueError: An option has a value that it cannot have.

    >>> travelling({"gpu_memory": ">=16GB", "num_gpus": 1, "timeout": 3.0})
    {'num_gpus': 1.0, 'gpu_memory': 16000000000}
    """
    found: dict[str, Any] = {}
    for name in (*COUNTS, *SIZES):
        if options.get(name) is not None:
            found[name] = _amount(name, options[name], is_size=name in SIZES)
    for name, read in _READERS.items():
        if (value := options.get(name)) is not None and (plain := read(value)) is not None:
            found[name] = plain
    read_needs(None, found)
    return found


def _amount(name: str, value: Any, *, is_size: bool) -> float | int:
    if not isinstance(value, int | float | str) or (is_size and isinstance(value, bool)):
        written = 'a size such as "16GB"' if is_size else "a number such as 1 or 0.5"
        raise TypeError(f"{name} is {written}, not {shown(value)}")
    read_needs(None, {"resources": {name: value}})  # Refuses what reserves nothing.
    if is_size:
        return int(read_wanted(value, read_bytes, name).amount)
    return float(read_wanted(value, read_count, name).amount)


def _resources(value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise TypeError(f'resources is a map such as {{"tpu": 1}}, not {shown(value)}')
    found: dict[str, Any] = {}
    for name, one in value.items():
        if not isinstance(name, str) or not name or name == "resources":
            raise TypeError(f"a resource is named by a text, not {shown(name)}")
        if name == "gpu_model":
            if not isinstance(one, str):
                raise TypeError(f'gpu_model is a text such as "A100", not {shown(one)}')
            found[name] = one
        else:
            found[name] = _amount(name, one, is_size=name in SIZE_RESOURCES)
    read_needs(None, {"resources": found})
    return found


def read_capability(value: Any) -> Any:
    """Return what a node must have, in plain containers.

    Raises:
        TypeError: It is no text, list of texts or dict.
        ValueError: Nothing can be so; the message says how to write it.
    """
    named = isinstance(value, str | Mapping)
    if not named and not isinstance(value, Sequence | set | frozenset):
        raise TypeError(
            f"capability is a text, a list of texts, or a dict of constraints, not {value!r}"
        )
    wanted = value if named else list(value)
    if not wanted or not (named or all(isinstance(one, str) for one in wanted)):
        raise TypeError(
            f"capability is a text, a list of texts, or a dict of constraints, not {value!r}"
        )
    return checked_wishes(wanted)


def _prefer(value: Any) -> Any:
    if not isinstance(value, Mapping):
        raise TypeError(f'prefer is a dict such as {{"gpu": {{"model": "A100"}}}}, not {value!r}')
    return checked_wishes(value)


def checked_wishes(value: Any) -> Any:
    """Return wishes in plain containers, as the gateway reads them.

    Raises:
        ValueError: Nothing can be so; the message says how to write it.
    """
    wanted = plain(value)
    read_wishes(wanted)
    return wanted


def plain(value: Any) -> Any:
    """Return plain data with the containers that travel."""
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(entry) for entry in value]
    return value


def _priority(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"priority is a whole number, the higher the earlier, not {shown(value)}")
    if not -PRIORITY_MAX <= value <= PRIORITY_MAX:
        raise ValueError(f"priority lies between -{PRIORITY_MAX} and {PRIORITY_MAX}, not {value}")
    return value


def _load_balancing(value: Any) -> Any:
    if isinstance(value, bool):
        # True is what happens anyway; False asks for nothing else.
        return None
    if isinstance(value, str):
        return read_policy(value).name
    weights = ScoreWeights().as_data()
    if not isinstance(value, Mapping):
        raise TypeError(
            f"load_balancing is one of {', '.join(STRATEGIES)}, or a dict of weights of "
            f"{', '.join(weights)}, not {shown(value)}"
        )
    strategy = value.get("strategy")
    if strategy is not None and set(value) == {"strategy"}:
        return _load_balancing(strategy)
    for name, weight in value.items():
        if name not in weights or not isinstance(weight, int | float) or isinstance(weight, bool):
            wrong = shown({name: weight})
            raise TypeError(f"load_balancing weighs {', '.join(weights)} by numbers, not {wrong}")
    ScoreWeights(**value)
    return {name: float(weight) for name, weight in value.items()}


def _scaling(value: Any) -> Any:
    if value == "auto":
        return value
    if isinstance(value, bool) or not isinstance(value, int | str | Mapping):
        raise TypeError(f'scaling is "auto", a number of replicas, or a dict, not {shown(value)}')
    scaling = asdict(read_scaling(value))
    return {name: one for name, one in scaling.items() if one is not None}


_READERS = {
    "resources": _resources,
    "capability": read_capability,
    "prefer": _prefer,
    "priority": _priority,
    "load_balancing": _load_balancing,
    "scaling": _scaling,
}
