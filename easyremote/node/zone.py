"""The name of this machine's time zone: by its calendar, quotas of its functions begin anew.

Rules of this file. 1) A name that the time zone database does not have is not given: then it is
the offset that is in force now, such as `+02:00`.

Source. tzset(3) for TZ; localtime(5) for the link.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

from ..scheduler.quota import zone_of

LINK = Path("/etc/localtime")
QUARTER_S = 900


def local_zone(environment: Mapping[str, str] | None = None, link: Path = LINK) -> str:
    """Return the name of the time zone here.

    Args:
        environment: Where TZ is looked for, None for that of this process.
        link: What the system keeps as its time zone: a link into the time zone database.
    """
    set_here = (os.environ if environment is None else environment).get("TZ", "")
    candidates = [set_here.removeprefix(":")]
    if not set_here and link.is_symlink():
        candidates.append(str(link.readlink()).rpartition("zoneinfo/")[2])
    for name in candidates:
        if name and _is_known(name):
            return name
    return _offset()


def _is_known(name: str) -> bool:
    try:
        zone_of(name)
    except ValueError:
        return False
    return True


def _offset() -> str:
    east = datetime.now().astimezone().utcoffset()
    quarters = 0 if east is None else round(east.total_seconds() / QUARTER_S)
    hours, rest = divmod(abs(quarters), 4)
    return f"{'-' if quarters < 0 else '+'}{hours:02d}:{15 * rest:02d}"
