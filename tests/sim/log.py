"""What happened in a run, in order: the text that two runs of one seed must have in common."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable


class EventLog:
    """Lines with their virtual time, and a digest over all of them.

    Attributes:
        lines: Everything that was said.
        count: How many lines that is.
    """

    def __init__(self, now: Callable[[], float], *, echo: bool = False) -> None:
        self._now = now
        self._echo = echo
        self._digest = hashlib.sha256()
        self.lines: list[str] = []

    def say(self, who: str, what: str, **facts: object) -> None:
        """Note an event. Facts are plain and the same in every run: no addresses, no real time."""
        said = "".join(f" {key}={value}" for key, value in facts.items())
        line = f"{self._now():10.4f} {who:<10} {what}{said}"
        self._digest.update(line.encode("utf-8", "replace"))
        self.lines.append(line)
        if self._echo:
            sys.stdout.write(line + "\n")

    def digest(self) -> str:
        """Return the digest of the events so far."""
        return self._digest.hexdigest()
