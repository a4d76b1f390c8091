"""Where settings come from: the home folder, the environment, and how an address is written.

Theory. A program that is copied from machine to machine should not change: what differs between
machines (where the gateway is, which token to use) comes from the environment and from files in
one folder of the user. All of it is read when a connection is made, never at import, so that a
script may set `os.environ` before it connects.

Rules of this file. 1) Importing it is cheap. 2) Nothing here connects or looks names up. 3) A
wrong address is refused at once with a sentence that says how to write it. Which credential goes
with an address is decided in `identity.credential`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from .errors import NotConnectedError
from .log import Log
from .wire.settings import Settings

_log = Log("config")

PORT_DEFAULT = 8080
"""The port of a gateway where none is named."""

HOME_VARIABLE = "EASYREMOTE_HOME"
GATEWAY_VARIABLE = "EASYREMOTE_GATEWAY"
JOIN_VARIABLE = "EASYREMOTE_JOIN"
LEASE_VARIABLE = "EASYREMOTE_LEASE_S"
"""Seconds of silence after which this process takes the other end of a link for dead."""

LEASE_S_MIN, LEASE_S_MAX = 0.5, 3600.0
PINGS_A_LEASE = 3

_HOST_LENGTH_MAX = 253
"""Longest name that DNS allows (RFC 1035 section 2.3.4)."""
_NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?\.?", re.ASCII)
_ADDRESS_HELP = (
    "write it as host:port, for example vps.example.org:8080, 203.0.113.7:8080 or [::1]:8080"
)


class Address(NamedTuple):
    """Where a gateway listens."""

    host: str
    port: int

    def __str__(self) -> str:
        """Return `host:port`, with brackets around an IPv6 address."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether the address can only mean this machine."""
        return is_loopback(self.host)


def is_loopback(host: str) -> bool:
    """Return whether `host` can only mean this machine: localhost, 127.x.y.z or ::1."""
    name = host.lower().rstrip(".")
    if name == "localhost":
        return True
    ip = parse_ip(name)
    return ip is not None and bool(ip.is_loopback)


def parse_ip(host: str) -> Any:
    """Return the `ipaddress` object that `host` spells, or None if it is a name."""
    import ipaddress

    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def parse_address(text: str, default_port: int = PORT_DEFAULT) -> Address:
    """Read the address of a gateway as people write it.

    Args:
        text: `host`, `host:port`, `[::1]` or `[::1]:port`, with an optional `https://` or `er://`
            in front and an optional `/` at the end.
        default_port: The port where the text names none.

    Returns:
        The address. Nothing is looked up.

    Raises:
        ValueError: The text is no address; the message says how to write one.

    >>> parse_address("https://vps.example.org/")
    Address(host='vps.example.org', port=8080)
    >>> parse_address("[::1]:9000")
    Address(host='::1', port=9000)
    """
    if not isinstance(text, str):
        # One kind of error for every wrong address, as promised to users.
        raise ValueError(  # noqa: TRY004
            f"a gateway address is text, not {type(text).__name__}: {_ADDRESS_HELP}"
        )
    if re.match(r"er1_\w", text.strip()):
        raise ValueError(
            "a join string was given where an address is expected: pass it as join=..., or set "
            f"{JOIN_VARIABLE} to it"
        )
    rest = _without_scheme(text)
    if rest.startswith("["):
        host, bracket, port_text = rest[1:].partition("]")
        ip = parse_ip(host)
        if not bracket or ip is None or ip.version != 6 or "%" in host:
            raise _wrong(text)
        if port_text and not port_text.startswith(":"):
            raise _wrong(text)
        port = _parse_port(text, port_text[1:] if port_text else None, default_port)
        return Address(str(ip), port)
    host, colon, port_text = rest.partition(":")
    if len(host) > _HOST_LENGTH_MAX or _NAME.fullmatch(host) is None or ".." in host:
        raise _wrong(text)
    return Address(host.lower(), _parse_port(text, port_text if colon else None, default_port))


def _without_scheme(text: str) -> str:
    """Return `text` without an accepted scheme and without the slash at its end."""
    lowered = text.lower()
    if lowered.startswith("http://"):
        raise ValueError(
            f"{text[:80]!r}: a gateway always speaks TLS; leave http:// away, or use https://"
        )
    for scheme in ("https://", "er://"):
        if lowered.startswith(scheme):
            rest = text[len(scheme) :]
            return rest.removesuffix("/")
    return text


def _parse_port(text: str, port_text: str | None, default_port: int) -> int:
    """Return the port that `port_text` spells; None means that the text named none."""
    if port_text is None:
        return default_port
    if not (port_text.isascii() and port_text.isdigit() and len(port_text) <= 5):
        raise _wrong(text)
    port = int(port_text)
    if not 1 <= port <= 65535:
        raise ValueError(f"{text[:80]!r}: a port lies between 1 and 65535")
    return port


def _wrong(text: str) -> ValueError:
    return ValueError(f"{text[:80]!r} is not the address of a gateway: {_ADDRESS_HELP}")


def home() -> Path:
    """Return the folder with this user's keys and profiles, made (0700) if it is missing.

    It is `EASYREMOTE_HOME`, read at each call, or `~/.easyremote`.
    """
    named = os.environ.get(HOME_VARIABLE)
    folder = Path(named).expanduser().absolute() if named else Path.home() / ".easyremote"
    return private_folder(folder, ours=not named)


def private_folder(folder: Path, *, ours: bool = True) -> Path:
    """Make `folder` for this user alone (0700) unless it exists; return it.

    Args:
        folder: The folder.
        ours: Its name was chosen by EasyRemote: if others may look into it, it is closed to them.
            A folder that the user named may serve other purposes, too, and is left as it is;
            what lies in it is private by itself.
    """
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
    elif ours and hasattr(os, "getuid"):
        status = folder.stat()
        if status.st_mode & 0o077 and status.st_uid == os.getuid():
            folder.chmod(0o700)
    return folder


def environment_gateway() -> Address | None:
    """Return the address in `EASYREMOTE_GATEWAY`, or None.

    Raises:
        ValueError: The variable is set to something else.
    """
    text = os.environ.get(GATEWAY_VARIABLE, "").strip()
    if not text:
        return None
    try:
        return parse_address(text)
    except ValueError as error:
        raise ValueError(f"{GATEWAY_VARIABLE}: {error}") from None


def environment_join() -> str | None:
    """Return the join string in `EASYREMOTE_JOIN`, not yet parsed, or None."""
    return os.environ.get(JOIN_VARIABLE, "").strip() or _join_withheld


_join_withheld: str | None = None


@contextmanager
def join_withheld() -> Iterator[None]:
    """Keep `EASYREMOTE_JOIN` out of what this process starts while the block runs.

    It is a secret, and a program that a function starts has no use for it. Connections that this
    process makes itself find it as before.
    """
    global _join_withheld  # noqa: PLW0603 - the environment is a matter of the whole process
    before, _join_withheld = _join_withheld, environment_join()
    text = os.environ.pop(JOIN_VARIABLE, None)
    try:
        yield
    finally:
        _join_withheld = before
        if text is not None:
            os.environ.setdefault(JOIN_VARIABLE, text)


def with_lease(settings: Settings) -> Settings:
    """Return `settings` with the lease that `EASYREMOTE_LEASE_S` asks for, and pings to match.

    Each end of a link has a lease of its own, so the two need not agree: whoever has the shorter
    one pings more often, and an answer to a ping is a sign of life. A wrong value is reported and
    ignored: it must not keep a node from serving.
    """
    text = os.environ.get(LEASE_VARIABLE, "").strip()
    if not text:
        return settings
    try:
        lease_s = float(text)
    except ValueError:
        lease_s = 0.0
    if not LEASE_S_MIN <= lease_s <= LEASE_S_MAX:
        _log.warning(
            f"{LEASE_VARIABLE} is a time from {LEASE_S_MIN:g} to {LEASE_S_MAX:g} seconds; "
            "it is ignored", given=text[:40],
        )  # fmt: skip
        return settings
    return replace(settings, lease_s=lease_s, ping_every_s=lease_s / PINGS_A_LEASE)


def file_settings() -> dict[str, Any]:
    """Return the settings in `config.toml` of the home folder; empty if there is no such file.

    Two keys are read: `gateway = "host:port"` and `profile = "NAME"`.

    Raises:
        NotConnectedError: The file cannot be read as TOML.
    """
    path = home() / "config.toml"
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    import tomllib

    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise NotConnectedError(f"{path} cannot be read: {error}. Correct or remove it.") from error


def file_gateway() -> Address | None:
    """Return the address that `config.toml` names as `gateway`, or None."""
    value = file_settings().get("gateway")
    if value is None:
        return None
    try:
        return parse_address(value)
    except ValueError as error:
        raise ValueError(f"config.toml, gateway: {error}") from None
