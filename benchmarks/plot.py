"""The report as a picture: how far each row is from its floor. Needs matplotlib (`[bench]`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .harness import Row


def plot(rows: Sequence[Row], path: Path) -> None:
    """Draw one bar for each row that has a floor; a longer bar is always better.

    Raises:
        ImportError: matplotlib is not installed.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    shown = [(row, row.ratio) for row in rows if row.ratio]
    figure, axes = pyplot.subplots(figsize=(9, 1 + 0.4 * max(1, len(shown))))
    for place, (row, ratio) in enumerate(reversed(shown)):
        speed = 1 / ratio if row.lower_is_better else ratio
        axes.barh(place, speed, color="tab:blue")
        axes.text(speed, place, f" {ratio:.2f}x  goal {row.goal}", va="center", fontsize=8)
    axes.set_yticks(range(len(shown)), [row.name for row, _ in reversed(shown)], fontsize=8)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xlabel("speed as a part of the floor's (1 = as fast as the machine allows)")
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
