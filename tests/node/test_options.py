"""The keywords of `register`."""

from __future__ import annotations

from typing import Any

import pytest

from easyremote.node.options import KEYWORDS, parse


def test_unknown_keyword_names_the_nearest() -> None:
    """A typo never opens a function: it is an error that says what was meant."""
    with pytest.raises(TypeError, match="did you mean 'auth_required'"):
        parse({"auth_requird": True})


def test_aliases_mean_the_same() -> None:
    """Other spellings of the same keyword are understood, but not both at once."""
    assert parse({"timeout_seconds": 3}).timeout == 3
    assert parse({"max_concurrent": 3}).max_concurrency == 3
    with pytest.raises(TypeError, match="twice"):
        parse({"timeout_seconds": 3, "timeout": 3})


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("auth_required", "false"),
        ("auth_required", 1),
        ("stream", "yes"),
        ("timeout", "soon"),
        ("timeout", 0),
        ("timeout", float("nan")),
        ("timeout", float("inf")),
        ("timeout", True),
        ("max_concurrency", 0),
        ("max_concurrency", 1.5),
        ("max_concurrency", True),
        ("priority", "high"),
        ("isolation", "container"),
        ("async_backend", "curio"),
        ("quota_mode", "medium"),
        ("tags", "one"),
        ("tags", [1]),
        ("resource_requirements", "16GB"),
        ("resource_requirements", {"gpu": object()}),
        ("batch", {1: 2}),
        ("scaling", "much"),
        ("scaling", 0),
        ("combine", 3),
        ("description", 3),
        ("description", "x" * 100_000),
        ("access_level", ["a"]),
        ("load_balancing", 7),
    ],
)
def test_wrong_value_is_refused_at_once(keyword: str, value: Any) -> None:
    """A wrong value is an error where it is written, and the message names the keyword."""
    with pytest.raises((TypeError, ValueError), match=keyword):
        parse({keyword: value})


def test_every_keyword_is_accepted_as_the_api_shows_it() -> None:
    """Each keyword of the public API takes the values that its documentation shows."""
    given: dict[str, Any] = {
        "name": "f", "stream": None, "async_func": None,
        "resource_requirements": {"gpu_memory": ">=16GB", "gpu": 1}, "auth_required": True,
        "access_level": "academic_verified", "quota_per_user": "2_hours_daily", "scaling": "auto",
        "billing": {"mode": "per_request", "price": 0.1}, "timeout": 60, "max_concurrency": 4,
        "priority": 1, "idempotent": True, "cache": 3.5, "split": "rows", "combine": sum,
        "batch": {"size": 8}, "description": "d", "version": "1.0", "tags": ["a", "b"],
        "isolation": "process", "quota_mode": "hard", "replace": True, "async_backend": "trio",
        "load_balancing": {"strategy": "cost"},
    }  # fmt: skip
    parsed = parse(given)

    assert set(given) == KEYWORDS
    assert parsed.tags == ("a", "b")
    assert parsed.resource_requirements == {"gpu_memory": ">=16GB", "gpu": 1}


def test_unenforced_names_exactly_what_has_no_effect_yet() -> None:
    """What was given and nothing enforces is named; what works, or was left at its default, not."""
    parsed = parse(
        {"timeout": 3, "auth_required": True, "billing": "per_request", "priority": 0, "cache": 5.0}
    )

    assert parsed.unenforced() == ["billing", "cache"]


def test_declared_extra_keywords_are_kept() -> None:
    """A subclass may declare keywords of its own; nobody else's class has them."""
    assert parse({"quantum_backend": "ibm_q"}, ["quantum_backend"]).extra == {
        "quantum_backend": "ibm_q"
    }
    with pytest.raises(TypeError):
        parse({"quantum_backend": "ibm_q"})


def test_deep_or_large_declaration_is_refused() -> None:
    """What a provider declares stays within the bounds of what a gateway keeps."""
    deep: Any = {}
    for _ in range(40):
        deep = {"a": deep}
    with pytest.raises(ValueError, match="batch"):
        parse({"batch": deep})
    with pytest.raises(ValueError, match="batch"):
        parse({"batch": {"list": list(range(100_000))}})
