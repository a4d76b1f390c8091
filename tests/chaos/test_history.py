"""The judge of a campaign sees each thing that must not be, and nothing in an honest history."""

from __future__ import annotations

import json
from typing import Any

import pytest

from .history import Verdict, judge


def submit(key: str, function: str = "nap", timeout_s: float | None = None) -> dict[str, Any]:
    return {
        "event": "submit", "key": key, "t": 1.0, "function": function, "timeout_s": timeout_s,
    }  # fmt: skip


def result(key: str, t: float = 2.0, *, right: bool = True) -> dict[str, Any]:
    return {"event": "outcome", "key": key, "t": t, "right": right}


def error(
    key: str, name: str = "NodeLostError", *, may: bool = True, typed: bool = True, code: str = "X"
) -> dict[str, Any]:
    return {
        **result(key), "error": name, "text": "why", "typed": typed, "may_have_run": may,
        "code": code,
    }  # fmt: skip


def over(*waiting: str) -> dict[str, Any]:
    return {"event": "over", "key": "client-1", "t": 9.0, "open": list(waiting)}


def log(*lines: dict[str, Any]) -> str:
    return "".join(json.dumps(line) + "\n" for line in lines)


def ran(key: str, attempt: int = 1, node: str = "node-1") -> str:
    return f"S {key} {attempt} 77 {node} 1.5\nE {key} {attempt} 77 {node} 1.6\n"


def test_an_honest_history_has_no_violation() -> None:
    """Results that ran, errors with a true flag, calls of a killed client, a cut last line."""
    whole = log(
        submit("a"), result("a"), submit("b"), error("b"), submit("c"), error("c", may=False),
        submit("d", "again"), result("d"), over(),
    )  # fmt: skip
    killed = log(submit("e"), submit("f"), result("f")) + '{"event": "outc'
    marks = ran("a") + ran("b") + ran("d", 1) + ran("d", 2, "node-2") + ran("f") + "S e 1 77 no"

    verdict = judge([whole, killed], marks)

    assert verdict.violations == []
    assert (verdict.calls, verdict.results, verdict.widowed, verdict.runs) == (6, 3, 1, 5)
    assert verdict.errors == {"NodeLostError": 2}
    assert (verdict.repeated, verdict.duplicates) == (1, 0)
    assert (verdict.not_run, verdict.said_not_run) == (1, 1)


@pytest.mark.parametrize(
    ("lines", "marks", "count", "words"),
    [
        ([submit("a"), result("a"), error("a"), over()], ran("a"), "", "2 outcomes"),
        ([submit("a"), over("a")], ran("a"), "hung", "never had an outcome"),
        ([submit("a"), over()], ran("a"), "lost", "lost inside the client"),
        ([submit("a"), result("a"), over()], ran("a") + ran("a"), "duplicates", "ran 2 times"),
        ([submit("a"), result("a"), over()], ran("a", 1) + ran("a", 2), "duplicates", "ran 2"),
        ([submit("a"), error("a", may=False), over()], ran("a"), "wrong_flags", "but it ran"),
        ([submit("a"), result("a"), over()], "", "", "although it never ran"),
        ([submit("a"), result("a", right=False), over()], ran("a"), "", "the wrong value"),
        ([submit("a"), error("a", "KeyError", typed=False), over()], ran("a"), "", "KeyError"),
        ([submit("a"), error("a", code="INTERNAL"), over()], ran("a"), "", "why"),
        ([submit("a", timeout_s=1.0), result("a", 9.5), over()], ran("a"), "", "deadline 1.0"),
        ([over()], ran("z"), "", "nobody called it"),
    ],
)
def test_each_violation_is_seen(
    lines: list[dict[str, Any]], marks: str, count: str, words: str
) -> None:
    """Exactly one violation, with its words and in its counter."""
    verdict: Verdict = judge([log(*lines)], marks)

    (violation,) = verdict.violations
    assert words in violation
    counters = {
        name: getattr(verdict, name) for name in ("hung", "lost", "duplicates", "wrong_flags")
    }
    assert counters == dict.fromkeys(counters, 0) | ({count: 1} if count else {})


def test_items_out_of_order_are_a_violation() -> None:
    """A stream that lost or repeated an item is no success and no clean error."""
    broken = {"event": "broken", "key": "a", "t": 1.9, "got": 3, "count": 4}
    verdict = judge([log(submit("a", "numbers"), broken, error("a"), over())], ran("a"))

    assert verdict.violations == ["a: items lost, repeated or out of order"]
