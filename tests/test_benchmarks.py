"""The benchmarks measure what they say; their floors run, and carry every byte."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.__main__ import main
from benchmarks.bulk_floors import bulk_chain, direct
from benchmarks.harness import Row, Series, alternate, percentile


def test_contestants_take_turns_and_warm_ups_do_not_count() -> None:
    """Each turn begins with another contestant, and only the turns after the warm-ups count."""
    order: list[str] = []

    def contestant(name: str) -> float:
        order.append(name)
        return float(len(order))

    series = alternate(
        {"ours": lambda: contestant("a"), "floor": lambda: contestant("b")}, runs=2, warm_ups=1
    )

    assert "".join(order) == "ab" + "ba" + "ab"
    assert series == [Series("ours", [4.0, 5.0]), Series("floor", [3.0, 6.0])]


def test_the_ratio_is_ours_over_the_floor() -> None:
    """A row's ratio compares medians, and is missing where there is no floor."""
    ours, floor = Series("ours", [9.0, 3.0, 2.0]), Series("floor", [2.0, 1.0, 9.0])
    row = Row("x", "us", lower_is_better=True, contestants=[ours, floor], goal="<= 2")

    assert row.ratio == 1.5
    assert "1.50 x" in row.lines()[-1]
    assert Row("x", "us", lower_is_better=True, contestants=[ours]).ratio is None


def test_percentiles_are_values_that_were_measured() -> None:
    """The 99th percentile of few values is the largest of them."""
    assert percentile([3.0, 1.0, 2.0], 50) == 2.0
    assert percentile([3.0, 1.0, 2.0], 99) == 3.0


def test_an_unknown_row_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """A name that is no row ends the program with the names that are."""
    with pytest.raises(SystemExit):
        main(["no_such_row"])

    assert "round_trip" in capsys.readouterr().err


@pytest.mark.slow
def test_bulk_floors_carry_every_byte() -> None:
    """What the chains of processes take comes back as it was."""
    array = np.random.default_rng(1).integers(0, 256, 1_000_003, np.uint8)
    for floor in (bulk_chain(array, worker=False), bulk_chain(array, worker=True), direct(array)):
        with floor as bulk:
            bulk.verify()
            assert bulk.send() > 0
            assert bulk.receive() > 0


@pytest.mark.slow
def test_the_floors_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`floors` runs to its end, prints its rows and writes every value."""
    path = tmp_path / "floors.json"
    assert main(["floors", "--quick", "--sizes", "1", "--json", str(path)]) == 0
    printed = capsys.readouterr().out
    names = [row["name"] for row in json.loads(path.read_text())["rows"]]

    assert {"round_trip free", "pipelined pinned", "send 1 MB", "python -c pass"} <= set(names)
    assert all(name in printed for name in names)
