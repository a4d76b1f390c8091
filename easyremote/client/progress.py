"""What a running body reports about itself, kept until somebody looks.

Rules of this file. 1) A report is decoded by who wants it, never on the io thread. 2) Watchers see
every report from the moment they watch, in order; whoever only looks sees the last one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..errors import EasyRemoteError
from ..log import Log
from ..wire.message import CODEC_PLAIN
from .bodies import open_body
from .offload import Serial, offload

if TYPE_CHECKING:
    from ..wire.message import Progress
    from .session import Session

_log = Log("client")


class ProgressReports:
    """The reports of one call."""

    def __init__(self) -> None:
        self._newest: tuple[Progress, list[memoryview], bool] | None = None
        self._value: Any = None
        self._watchers: list[Callable[[Any], object]] = []
        self._serial = Serial(offload)

    def add(self, progress: Progress, buffers: list[memoryview], *, allow_pickle: bool) -> None:
        """A report came (io thread)."""
        report = progress, buffers, allow_pickle
        self._newest = report
        if self._watchers:
            self._serial.run(lambda: self._tell(report))

    def watch(self, callback: Callable[[Any], object]) -> None:
        """Call `callback` with every report from now on."""
        self._watchers = [*self._watchers, callback]

    def drain(self, then: Callable[[], object]) -> None:
        """Call `then` after the watchers have seen what came before."""
        self._serial.run(then)

    @property
    def watched(self) -> bool:
        """Whether somebody wants every report."""
        return bool(self._watchers)

    @property
    def last(self) -> Any:
        """The last report, None before the first."""
        newest = self._newest
        if newest is not None:
            value = self._decode(newest)
            if self._newest is newest:
                self._newest, self._value = None, value
            return value
        return self._value

    def _tell(self, report: tuple[Progress, list[memoryview], bool]) -> None:
        value = self._decode(report)
        for callback in self._watchers:
            callback(value)

    def _decode(self, report: tuple[Progress, list[memoryview], bool]) -> Any:
        progress, buffers, allow_pickle = report
        try:
            return open_body(progress.body, buffers, allow_pickle)
        except EasyRemoteError as error:
            _log.warning("a progress report could not be read", reason=error)
            return None


_making_reports = threading.Lock()


class Reporting:
    """What a call has of its progress: nothing, until there is a report or somebody watches."""

    session: Session
    call_id: bytes
    _progress: ProgressReports | None = None

    @property
    def reports(self) -> ProgressReports:
        """What the body has reported."""
        if self._progress is None:
            with _making_reports:  # The io thread and a watcher may both come first.
                if self._progress is None:
                    self._progress = ProgressReports()
        return self._progress

    def _on_progress(self, progress: Progress, buffers: list[memoryview]) -> None:
        if progress.codec == CODEC_PLAIN:
            self.reports.add(progress, buffers, allow_pickle=False)
        else:
            self.session.trust.judge(
                self, lambda ok: self.reports.add(progress, buffers, allow_pickle=ok)
            )

    def watch_progress(self, callback: Callable[[Any], object]) -> None:
        """Call `callback` with every report from now on."""
        self.session.tally.used.add("progress")
        self.reports.watch(callback)

    def last_progress(self) -> Any:
        """Return the last report, None before the first."""
        self.session.tally.used.add("progress")
        return None if self._progress is None else self._progress.last
