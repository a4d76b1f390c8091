"""`easyremote audit`: see that nobody changed what a gateway wrote down."""

from __future__ import annotations

from pathlib import Path

import click

from .base import Group
from .options import state_options


@click.group(cls=Group)
def audit() -> None:
    """Check the audit of a gateway."""


@audit.command()
@state_options
def verify(port: int | None, state_dir: Path | None, gateway: str | None, auth: str | None) -> None:
    """Walk the chain of the audit and say where it breaks, if it does."""
    from ..errors import EasyRemoteError
    from .admin import administer

    check = administer(port, state_dir, gateway, auth).verify_audit()
    if not check["good"]:
        raise EasyRemoteError(
            f"the audit is broken at entry {check['first_bad']}: entries were changed or removed. "
            "Compare the database with a backup"
        )
    click.echo(f"the audit is whole: {check['rows']} entries")
