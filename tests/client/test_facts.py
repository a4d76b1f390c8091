"""What programs are told about calls: placements that explain themselves, and usage."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any

import pytest

from easyremote.facts import Placement, Usage

PLAIN: dict[str, Any] = {
    "node_id": "gpu-01",
    "scores": {
        "resources": 0.75, "latency": 0.5, "load": 1.0, "capability": 0.25, "total": 0.675,
    },
    "weights": {"resources": 0.3, "latency": 0.2, "load": 0.3, "capability": 0.2},
    "excluded": {"gpu-02": "lacks gpu_memory: 8 GB of 16 GB"},
    "at": 1_700_000_000.0,
}  # fmt: skip


def test_a_placement_can_be_added_up_again_from_its_text() -> None:
    """Each score stands beside its weight, and the products add up to the total that is shown."""
    text = str(Placement.from_plain(PLAIN))
    rows = re.findall(r"^  (\w+) +(\d\.\d+) x (\d\.\d+) = +(\d\.\d+)$", text, re.MULTILINE)
    total = re.search(r"^  total +(\d\.\d+)$", text, re.MULTILINE)

    assert [name for name, *_ in rows] == ["resources", "latency", "load", "capability"]
    assert total is not None
    assert sum(float(s) * float(w) for _, s, w, _ in rows) == pytest.approx(float(total[1]))
    assert sum(float(product) for *_, product in rows) == pytest.approx(float(total[1]))
    assert text.startswith("gpu-01, chosen 2023-11-14 22:13:20 UTC")
    assert "not gpu-02: lacks gpu_memory: 8 GB of 16 GB" in text


def test_what_is_taken_off_is_shown_with_what_counts() -> None:
    """With a weight below 0, so that all still adds up; what weighs nothing is left out."""
    scores = {**PLAIN["scores"], "cheap": 1.0, "slow": 0.25, "ahead": 0.05, "doubt": 0.1}
    del scores["total"]
    weights = {**PLAIN["weights"], "cheap": 0.0, "slow": -0.2, "ahead": -2.0, "doubt": -1.0}
    plain = {**PLAIN, "scores": scores, "weights": weights, "total": 0.425, "gpus": [1]}
    placed = Placement.from_plain({**plain, "candidates": 4, "news": 1})
    text = str(placed)

    assert (placed.total, placed.gpus, placed.candidates) == (0.425, [1], 4)
    assert "  slow         0.2500 x -0.2 = -0.0500" in text
    assert "  ahead        0.0500 x -2 = -0.1000" in text
    assert "  doubt        0.1000 x -1 = -0.1000" in text
    assert "  total        0.4250\n" in text
    assert "cheap" not in text


def test_a_total_that_the_scores_do_not_explain_says_so() -> None:
    """A term beside the four scores is shown as what it is, not hidden in the total."""
    scores = {**PLAIN["scores"], "total": 0.6}
    placed = Placement.from_plain({**PLAIN, "scores": scores})

    assert placed.total == 0.6
    assert "0.6000, of which -0.0750 comes from none of these" in str(placed)


def test_a_placement_without_scores_says_that_nothing_was_compared() -> None:
    """A node that was the only one with room was compared with none."""
    placed = Placement.from_plain({"node_id": "n1"}, attempt=3)

    assert (placed.attempt, placed.total, placed.at) == (3, None, None)
    assert str(placed) == "n1, attempt 3\n  no scores: there was nothing to compare"


def test_a_score_without_a_weight_is_shown_alone() -> None:
    """A strategy of a user's own may weigh nothing."""
    assert "  price        0.5000" in str(Placement("n1", scores={"price": 0.5})).splitlines()


def test_usage_names_the_function_and_keeps_what_it_does_not_know() -> None:
    """Rows of an account become usage: dates and hex ids, and the rest under `facts`."""
    usage = Usage.from_plain(
        {
            "function": "train", "node_id": "gpu-01", "seconds": 2.5, "cost": 0.1,
            "call_id": bytes(16), "started_at": 1_700_000_000, "mode": "per_second",
        }
    )  # fmt: skip

    assert "function='train'" in repr(usage)
    assert usage.call_id == "00" * 16
    assert usage.started_at == datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)
    assert usage.facts == {"mode": "per_second"}
    assert (usage.gpu_seconds, usage.currency) == (None, None)
