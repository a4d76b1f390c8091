"""The figures of a campaign, for people.

Rules of this file. 1) Pure, but for reading the campaign's folder. 2) A detection time is counted
from the shot to the outcome of a call that ran, by the bodies' own account, in what was hit.
"""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from .campaign import Campaign, Fired
from .history import Mark, Told, Verdict, judge, read_log, read_marks
from .world import Role

CAUSES = {"NodeLostError": Role.AGENT, "WorkerCrashedError": Role.WORKER}
"""Which kill a class of error is measured from."""


@dataclass(slots=True)
class Report:
    """What came of a campaign.

    Attributes:
        detection_s: By error class: times from a kill -9 to the outcome of a call that it hit.
        across: Calls that were running when a gateway was killed, and whose worker lived.
        across_returned: Those of them that returned their result.
    """

    campaign: Campaign
    verdict: Verdict
    detection_s: dict[str, list[float]] = field(default_factory=dict)
    across: int = 0
    across_returned: int = 0

    @property
    def violations(self) -> list[str]:
        """All that must not be, of processes and of calls."""
        return self.campaign.violations + self.verdict.violations

    def lines(self) -> list[str]:
        """Return the summary."""
        verdict, campaign = self.verdict, self.campaign
        shots = Counter(one.shot.describe() for one in campaign.fired)
        points = Counter(str(one.shot.point) for one in campaign.fired if one.at_point)
        return [
            f"kill -9             {campaign.kills}",
            f"signals             {_counts(shots)}",
            f"at a point          {_counts(points)}",
            f"faults of links     {_counts(campaign.faults)}",
            f"calls               {verdict.calls} ({verdict.runs} runs of bodies)",
            f"results             {verdict.results}",
            f"errors              {_counts(verdict.errors)}",
            f"idempotent again    {verdict.repeated}",
            f"of killed clients   {verdict.widowed}",
            f"errors without run  {verdict.not_run}, of which {verdict.said_not_run} said so",
            f"slowest outcome     {verdict.slowest_s:.1f} s",
            *(f"{name:<20}{_quantiles(times)}" for name, times in self.detection_s.items()),
            f"across a restart    {self.across_returned} of {self.across} returned their result",
            f"lost {verdict.lost}, duplicated {verdict.duplicates}, hung {verdict.hung}",
            f"may_have_run wrong  {verdict.wrong_flags}",
            f"violations          {len(self.violations)}",
        ]


def report_of(campaign: Campaign) -> Report:
    """Read the folder of a campaign that is over."""
    folder: Path = campaign.world.folder
    logs = [path.read_text() for path in sorted(folder.glob("client-*.jsonl"))]
    markers = campaign.world.markers.read_text() if campaign.world.markers.exists() else ""
    report = Report(campaign, judge(logs, markers))
    first = {}
    for mark in reversed(read_marks(markers)):
        if not mark.ended:
            first[mark.key] = mark
    kills = [one for one in campaign.fired if one.shot.number is signal.SIGKILL]
    for text in logs:
        calls, _, _ = read_log(text)
        for told in calls.values():
            if told.key in first and told.outcomes:
                _measure(report, told, first[told.key], kills)
    return report


def _measure(report: Report, told: Told, mark: Mark, kills: Iterable[Fired]) -> None:
    said = told.outcomes[0]
    while_it_ran = [one for one in kills if mark.t < one.t < said["t"]]
    cause = CAUSES.get(said.get("error", ""))
    for one in while_it_ran:
        if one.proc.role is cause and one.proc.member == mark.node_id:
            report.detection_s.setdefault(said["error"], []).append(said["t"] - one.t)
            break
    hit = {one.proc.role for one in while_it_ran if one.proc.member == mark.node_id}
    # Items cannot be had again: a stream is cut, and says so. A deadline goes on meanwhile.
    if told.function == "numbers" or said.get("error") == "TaskTimeoutError":
        return
    if any(one.proc.role is Role.GATEWAY for one in while_it_ran) and not hit:
        report.across += 1
        report.across_returned += "error" not in said


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counter.most_common()) or "none"


def _quantiles(times: list[float]) -> str:
    ordered = sorted(times)
    at = [ordered[min(len(ordered) - 1, int(q * len(ordered)))] for q in (0.5, 0.99, 1.0)]
    return "after {:.2f} s (p50), {:.2f} s (p99), {:.2f} s (max)".format(*at) + f" of {len(times)}"
