"""Profiles: what this user knows about a gateway, kept in the home folder.

Theory. A profile is a join string that was kept: where a gateway listens, its pin, and a token.
There are three origins. A gateway writes one for the user that runs it (`gateway`), so that nodes
and clients of that user on that machine need no configuration. `easyremote join STRING` keeps one
and makes it the default (`join`). `easyremote login NAME --join STRING` keeps one that is used
where it is named, with `auth="NAME"` (`login`).

Rules of this file. 1) One 0600 file a profile, under `profiles/` of the home folder. 2) Names
cannot leave that folder. 3) Two gateways on two ports have two profiles.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from ..config import Address, home, is_loopback, private_folder
from ..errors import AuthenticationError
from .join import JoinString
from .pin import PIN_BYTES
from .private_file import read_private, write_private
from .token import Token

Origin = Literal["gateway", "join", "login"]

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}", re.ASCII)
_FORMAT = 1
_DEFAULT_FILE = "default"
"""Names the profile that is used where no address is given. Without `.json`: no profile itself."""


@dataclass(frozen=True, slots=True)
class Profile:
    """What is known about one gateway, and as whom.

    Attributes:
        name: How the profile is called.
        hosts: Where the gateway may be reached, best first.
        port: Where it listens.
        pin: SHA-256 of its public key.
        token: The token's text; masked in the repr.
        kind: The role that the token had when it was kept, or "" if it is not known.
        user: The principal, or "" if it is not known.
        origin: Who wrote the profile.
        state_dir: The gateway's own folder, in a profile that a gateway wrote.
    """

    name: str
    hosts: tuple[str, ...]
    port: int
    pin: bytes
    token: str = field(repr=False)
    kind: str = ""
    user: str = ""
    origin: Origin = "login"
    state_dir: str | None = None

    @classmethod
    def from_join(cls, name: str, join: JoinString, origin: Origin = "login") -> Profile:
        """Make a profile of what a join string says."""
        return cls(name, join.hosts, join.port, join.pin, join.token.text(), origin=origin)

    @property
    def addresses(self) -> tuple[Address, ...]:
        """The addresses to try, in order."""
        return tuple(Address(host, self.port) for host in self.hosts)

    def matches(self, address: Address) -> bool:
        """Return whether `address` is one of this gateway's.

        On loopback the names localhost, 127.0.0.1 and ::1 all mean the gateway of this machine.
        """
        if address.port != self.port:
            return False
        if is_loopback(address.host) and (
            self.origin == "gateway" or any(is_loopback(host) for host in self.hosts)
        ):
            return True
        return address.host in self.hosts

    def join(self) -> JoinString:
        """Return the profile as a join string."""
        return JoinString(self.hosts, self.port, self.pin, Token.parse(self.token))


def profiles_folder() -> Path:
    """Return the folder with the profiles of this user."""
    return private_folder(home() / "profiles")


def check_name(name: str) -> str:
    """Return `name` if a profile may be called so.

    Raises:
        ValueError: It is empty, too long, or could be a path.
    """
    if _NAME.fullmatch(name) is None:
        raise ValueError(
            f"{name[:100]!r} cannot name a profile: use letters, digits, '.', '_' and '-'"
        )
    return name


def gateway_profile_name(port: int) -> str:
    """Return the name of the profile that the gateway on `port` of this machine writes."""
    return f"gateway-{port}"


def address_profile_name(address: Address) -> str:
    """Return the name under which `easyremote join` keeps a gateway.

    >>> address_profile_name(Address("::1", 8080))
    'join-__1-8080'
    """
    host = re.sub(r"[^A-Za-z0-9.-]", "_", address.host)[:80]
    return f"join-{host}-{address.port}"


def save_profile(profile: Profile, *, default: bool = False) -> Path:
    """Keep `profile`, readable by this user alone; return its file.

    Args:
        profile: Replaces an older one of the same name.
        default: Use it from now on where no address is given.
    """
    path = _path(profile.name)
    content = {
        "format": _FORMAT,
        "hosts": list(profile.hosts),
        "port": profile.port,
        "pin": profile.pin.hex(),
        "token": profile.token,
        "kind": profile.kind,
        "user": profile.user,
        "origin": profile.origin,
        "state_dir": profile.state_dir,
    }
    write_private(path, json.dumps(content, indent=1).encode("utf-8"))
    if default:
        write_private(profiles_folder() / _DEFAULT_FILE, profile.name.encode("ascii"))
    return path


def remember_join(text: str) -> Profile:
    """Keep what a join string says as the default profile: `easyremote join STRING`.

    Raises:
        ValueError: `text` is no join string.
    """
    join = JoinString.parse(text)
    profile = Profile.from_join(address_profile_name(join.addresses[0]), join, "join")
    save_profile(profile, default=True)
    return profile


def load_profile(name: str) -> Profile | None:
    """Return the profile called `name`, or None if there is none.

    Raises:
        ValueError: Nothing can be called so.
        AuthenticationError: Its file is damaged or belongs to somebody else.
    """
    path = _path(name)
    try:
        raw = read_private(path)
    except FileNotFoundError:
        return None
    try:
        content = json.loads(raw)
        return _from_content(name, content)
    except (ValueError, KeyError, TypeError) as error:
        raise AuthenticationError(
            f"the profile {path} is damaged. Remove it and log in again: "
            f"easyremote login {name} --join STRING"
        ) from error


def _from_content(name: str, content: dict[str, Any]) -> Profile:
    pin = bytes.fromhex(content["pin"])
    origin = content["origin"]
    hosts = tuple(str(host) for host in content["hosts"])
    port = content["port"]
    if len(pin) != PIN_BYTES or not hosts or origin not in get_args(Origin):
        raise ValueError("a field is wrong")
    if not isinstance(port, int) or not 1 <= port <= 65535:
        raise ValueError("the port is wrong")
    token = Token.parse(content["token"]).text()
    state_dir = content.get("state_dir")
    return Profile(
        name,
        hosts,
        port,
        pin,
        token,
        str(content.get("kind", "")),
        str(content.get("user", "")),
        origin,
        None if state_dir is None else str(state_dir),
    )


def list_profiles() -> list[Profile]:
    """Return all profiles of this user by name; damaged ones are left out."""
    found = []
    for path in sorted(profiles_folder().glob("*.json")):
        if _NAME.fullmatch(path.stem) is None:
            continue
        try:
            profile = load_profile(path.stem)
        except AuthenticationError:
            continue
        if profile is not None:
            found.append(profile)
    return found


def default_profile() -> Profile | None:
    """Return the profile that `easyremote join` made the default, or None."""
    try:
        name = read_private(profiles_folder() / _DEFAULT_FILE).decode("ascii").strip()
    except (FileNotFoundError, UnicodeDecodeError):
        return None
    return load_profile(name) if _NAME.fullmatch(name) else None


def remove_profile(name: str) -> bool:
    """Forget the profile called `name`; return whether there was one."""
    path = _path(name)
    existed = path.exists()
    path.unlink(missing_ok=True)
    return existed


def _path(name: str) -> Path:
    return profiles_folder() / f"{check_name(name)}.json"
