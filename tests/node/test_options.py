"""The keywords of `register`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from easyremote.node.options import KEYWORDS, parse
from easyremote.node.zone import local_zone
from easyremote.scheduler.quota import zone_of


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
        {"timeout": 3, "auth_required": True, "billing": "per_request", "split": "r", "cache": 5.0}
    )

    assert parsed.unenforced() == ["cache", "split"]


@pytest.mark.parametrize(
    ("keywords", "said"),
    [
        ({"quota_per_user": "2_hous_daily"}, "quota_per_user.*did you mean 'hours'"),
        ({"quota_per_user": {"calls": 3}}, "quota_per_user.*needs a period"),
        ({"quota_per_user": {"calls": 3, "per": "day", "tz": "Mars"}}, "no time zone"),
        ({"priority": 1001}, "priority lies between -1000 and 1000"),
        ({"billing": "per_requst"}, "billing.*did you mean 'per_request'"),
        ({"billing": {"mode": "per_gb", "price": -1}}, "billing.*from 0"),
    ],
)
def test_terms_are_understood_where_they_are_written(keywords: dict[str, Any], said: str) -> None:
    """A quota or a bill that means nothing is an error at registration, and says what to write."""
    with pytest.raises(ValueError, match=said):
        parse(keywords)


def test_a_quota_travels_in_its_dict_form_with_a_time_zone(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the gateway gets leaves nothing to its own calendar; a zone that is written stays."""
    monkeypatch.setenv("TZ", "Europe/Berlin")
    short = parse({"quota_per_user": "2_hours_daily", "billing": "per_second"})
    full = parse({"quota_per_user": {"calls": 3, "per": "hour", "tz": "+02:00", "mode": "hard"}})

    assert short.quota_per_user == {"seconds": 7200, "per": "day", "tz": "Europe/Berlin"}
    assert full.quota_per_user == {"calls": 3, "per": "hour", "tz": "+02:00", "mode": "hard"}
    assert short.billing == {
        "mode": "per_second", "price": 0.0, "currency": "", "bill_errors": True,
    }  # fmt: skip


def test_the_local_zone_has_a_name_that_every_gateway_may_know(tmp_path: Path) -> None:
    """TZ counts, then the link of the system, then the offset of now."""
    link = tmp_path / "localtime"
    link.symlink_to("/usr/share/zoneinfo/Asia/Kathmandu")

    assert local_zone({"TZ": ":America/Lima"}, link) == "America/Lima"
    assert local_zone({}, link) == "Asia/Kathmandu"
    for name in (local_zone({"TZ": "XYZ5"}, link), local_zone({}, tmp_path / "none")):
        assert re.fullmatch(r"[+-]\d\d:(00|15|30|45)", name)
        zone_of(name)


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
