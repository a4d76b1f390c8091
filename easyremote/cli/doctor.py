"""`easyremote doctor`: why does it not work, and what to do about it.

Theory. A connection can fail at many places, and each looks alike from a program: nothing happens.
The doctor walks the way that a connection takes, one step at a time, and stops at the first step
on which all others rest: settings, name, TCP, TLS and the gateway's key, the token, the versions,
the clocks.

Rules of this file. 1) Each finding says what was seen; one that is wrong also says the fix. 2) It
changes nothing, here or at the gateway: a node's token is recognised, not used up. 3) The exit
code is 1 if anything is wrong.
"""

from __future__ import annotations

import os
import platform
import socket
import sys
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import click

from .. import __version__
from .base import Command, run_async, sentence
from .options import connection_options
from .output import count

if TYPE_CHECKING:
    from ..config import Address
    from ..identity.credential import Resolved
    from ..transport import ByteStream
    from .ask import Conversation

CLOCK_SKEW_MAX_S = 30.0
"""Beyond it, times in logs and of expiries can no longer be compared."""
TCP_S = 5.0

Mood = Literal["ok", "note", "wrong"]


class Finding(NamedTuple):
    """What one step found."""

    mood: Mood
    what: str
    said: str


@click.command(cls=Command)
@connection_options
def doctor(gateway: str | None, auth: str | None) -> None:
    """Find out what is wrong between here and the gateway, and how to mend it."""
    moods: list[Mood] = []

    async def examine() -> None:
        async for finding in findings(gateway, auth):
            moods.append(finding.mood)
            mark = {"ok": "ok   ", "note": "note ", "wrong": "WRONG"}[finding.mood]
            click.echo(f"{mark} {finding.what:11} {finding.said}")

    run_async(examine)
    wrong = moods.count("wrong")
    if wrong:
        click.echo(f"{count(wrong, 'thing')} to mend", err=True)
        raise SystemExit(1)
    click.echo("all is well")


async def findings(gateway: str | None, auth: str | None) -> AsyncIterator[Finding]:
    """Walk the way of a connection and yield what each step finds."""
    for finding in this_machine():
        yield finding
    from ..errors import EasyRemoteError
    from ..identity.credential import resolve_credential

    try:
        resolved = resolve_credential(gateway, auth=auth)
    except (EasyRemoteError, ValueError) as error:
        yield Finding("wrong", "settings", sentence(error))
        async for finding in _name_only(gateway):
            yield finding
        return
    known = "by its key (pin)" if resolved.pin else "by a certificate of a public authority"
    yield Finding(
        "ok", "settings", f"{resolved.address}, token from {resolved.source}, known {known}"
    )
    stream: ByteStream | None = None
    for address in resolved.addresses:
        last = address == resolved.addresses[-1]
        async for finding, opened in _reach(address, resolved.pin, last=last):
            yield finding
            stream = opened
        if stream is not None:
            break
    if stream is None:
        return
    async for finding in _talk(stream, resolved):
        yield finding


def this_machine() -> list[Finding]:
    """Look at what does not need a gateway."""
    from ..config import home

    system = f"EasyRemote {__version__}, Python {platform.python_version()}, {platform.system()}"
    found = [Finding("ok", "versions", system)]
    if sys.platform == "win32":
        found.append(Finding("note", "platform", "clients run on Windows; a node needs WSL"))
    if not __debug__:
        found.append(
            Finding("wrong", "python -O", "it removes our own checks; run Python without -O")
        )
    folder = home()
    if hasattr(os, "getuid"):
        state = folder.stat()
        if state.st_uid != os.getuid():
            text = f"{folder} belongs to another user; set EASYREMOTE_HOME to a folder of your own"
            found.append(Finding("wrong", "home", text))
        elif state.st_mode & 0o022:
            found.append(
                Finding("wrong", "home", f"others may write to {folder}; run: chmod go-w {folder}")
            )
        else:
            found.append(Finding("ok", "home", str(folder)))
    return found


async def _name_only(gateway: str | None) -> AsyncIterator[Finding]:
    """Without a credential, see at least whether the machine that was named can be reached."""
    from ..config import parse_address

    if gateway is None:
        return
    try:
        address = parse_address(gateway)
    except ValueError:
        return
    numbers, finding = await _look_up(address, "wrong")
    yield finding
    if numbers:
        open_at = [number for number in numbers if await _accepts(number, address.port)]
        yield _port(address, open_at) if open_at else Finding(
            "wrong", "tcp", f"port {address.port} does not answer: see that a gateway runs there, "
            "and that no firewall is in between"
        )  # fmt: skip


async def _reach(
    address: Address, pin: bytes | None, *, last: bool
) -> AsyncIterator[tuple[Finding, ByteStream | None]]:
    """Look the name up, connect, make sure that it is the gateway. The last pair has the stream.

    Args:
        address: Where to.
        pin: The key that the gateway must have, if it is known by one.
        last: There is no other address: what fails is wrong, and not only worth a note.
    """
    from ..errors import EasyRemoteError, GatewayUnreachableError
    from ..identity.pin import pin_text
    from ..transport import dial

    bad: Mood = "wrong" if last else "note"
    numbers, finding = await _look_up(address, bad)
    yield finding, None
    if not numbers:
        return
    open_at = [number for number in numbers if await _accepts(number, address.port)]
    if open_at:
        yield _port(address, open_at), None
    try:
        stream = await dial(address, pin=pin)
    except GatewayUnreachableError as error:
        yield Finding(bad, "tls" if open_at else "tcp", sentence(error)), None
        return
    except EasyRemoteError as error:
        # Another key than expected is never a matter of the next address.
        yield Finding("wrong", "tls", sentence(error)), None
        return
    key = "the certificate is good" if pin is None else f"the key is {pin_text(pin)[:23]}..."
    yield Finding("ok", "tls", f"TLS 1.3; {key}, as expected"), stream


async def _look_up(address: Address, bad: Mood) -> tuple[list[str], Finding]:
    """Return the numbers that a name stands for, none if it is not known."""
    import trio

    try:
        found = await trio.socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        text = f"the name {address.host} is not known here ({error}): check spelling and DNS"
        return [], Finding(bad, "address", text)
    numbers = list(dict.fromkeys(str(where[0]) for *_, where in found))
    if numbers == [address.host]:
        return numbers, Finding("ok", "address", address.host)
    return numbers, Finding("ok", "address", f"{address.host} is {', '.join(numbers)}")


def _port(address: Address, open_at: list[str]) -> Finding:
    return Finding("ok", "tcp", f"port {address.port} of {', '.join(open_at)} is open")


async def _accepts(number: str, port: int) -> bool:
    """Return whether a TCP connection can be made."""
    import trio

    with trio.move_on_after(TCP_S):
        try:
            stream = await trio.open_tcp_stream(number, port)
        except OSError:
            return False
        await trio.aclose_forcefully(stream)
        return True
    return False


async def _talk(stream: ByteStream, resolved: Resolved) -> AsyncIterator[Finding]:
    """Show the token; compare versions and clocks; see whether there is anything to call."""
    from ..errors import EasyRemoteError
    from ..identity.token import Token, TokenKind
    from .ask import converse_on

    if Token.parse(resolved.token).kind is TokenKind.NODE:
        await stream.aclose()
        text = "it lets a node enrol, which is not tried here; a client needs another one"
        yield Finding("note", "token", text)
        return
    try:
        seen = await converse_on(stream, resolved.token, _ask)
    except EasyRemoteError as error:
        yield Finding("wrong", "token", sentence(error))
        return
    info, gauges = seen["info"], seen["status"]
    yield Finding("ok", "token", f"you are {info.get('user')} ({info.get('role')})")
    yield compare_versions(str(info.get("version", "")))
    if isinstance(gauges.get("time"), int | float):
        yield compare_clocks(float(gauges["time"]), seen["asked_at"], seen["answered_at"])
    nodes = gauges.get("connected_nodes", 0)
    if nodes:
        said = (
            f"{count(nodes, 'node')} connected, with {count(gauges.get('functions'), 'function')}"
        )
        yield Finding("ok", "nodes", said)
    else:
        yield Finding("note", "nodes", "none is connected; start one: easyremote node FILE.py")


async def _ask(gateway: Conversation) -> dict[str, Any]:
    await gateway.ask("nodes")  # The first answer pays for what later ones find ready.
    asked_at = time.time()
    gauges = await gateway.ask("status")
    answered_at = time.time()
    return {
        "info": gateway.info, "status": gauges, "asked_at": asked_at, "answered_at": answered_at,
    }  # fmt: skip


def compare_versions(theirs: str) -> Finding:
    """Compare the gateway's version with ours: before 1.0 the minor number must be equal."""
    if theirs == __version__:
        return Finding("ok", "gateway", f"version {theirs}, as here")
    ours, other = __version__.split(".")[:2], theirs.split(".")[:2]
    if ours == other:
        return Finding("ok", "gateway", f"version {theirs}, which fits {__version__} here")
    return Finding(
        "wrong", "gateway",
        f"version {theirs or 'unknown'}, and {__version__} here: bring both to one version with "
        "pip install --upgrade easyremote",
    )  # fmt: skip


def compare_clocks(theirs: float, asked_at: float, answered_at: float) -> Finding:
    """Compare the gateway's clock with ours, as far as the time of the question allows.

    Args:
        theirs: What the gateway's clock said, epoch seconds.
        asked_at: Our clock before the question.
        answered_at: Our clock after the answer.
    """
    skew_s = theirs - (asked_at + answered_at) / 2
    sure_s = max(0.0, abs(skew_s) - abs(answered_at - asked_at) / 2)
    if sure_s <= CLOCK_SKEW_MAX_S:
        return Finding("ok", "clock", f"within {abs(skew_s):.1f} s of the gateway's")
    side = "behind" if skew_s > 0 else "ahead of"
    return Finding(
        "wrong", "clock",
        f"this machine is {abs(skew_s):.0f} s {side} the gateway: set both by NTP "
        "(timedatectl set-ntp true)",
    )  # fmt: skip
