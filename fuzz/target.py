"""What a fuzz target is.

Rules of targets. 1) A target returns, or raises only for a bug of ours. 2) Every error that the
specification foresees is caught by its exact class: a wider `except` would hide findings. 3) A
target keeps no state between inputs. 4) Seeds are made by code, so that they stay valid when a
format grows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from .mutate import Mutate, mutate_bytes

Feature = Any
"""Something hashable by which an input that does something new is recognised; None if not."""

FEATURE_CHARS_MAX = 48
NO_DIGITS = dict.fromkeys(map(ord, "0123456789"))


class Target(NamedTuple):
    """One thing to feed."""

    run: Callable[[bytes], Feature]
    """Feeds one input; says what it led to. An error text is a good feature, cut before digits."""
    seeds: Callable[[], list[bytes]]
    """Returns small valid inputs."""
    mutate: Mutate = mutate_bytes
    """Makes an input out of a valid one."""


def feature_of(error: BaseException) -> Feature:
    """Return what kind of refusal an error is: its text, which names the rule."""
    return str(error)[:FEATURE_CHARS_MAX].translate(NO_DIGITS)
