"""Which gateway, how it is known, and what it is shown: one answer for clients and nodes.

Theory. A connection needs three things: an address, a pin to recognise the gateway by, and a
token. They come from what the program says, from the environment, and from the profiles of this
user, in this order:

    address: keyword > join= or auth= > EASYREMOTE_GATEWAY > EASYREMOTE_JOIN
             > the profile of `easyremote join` > config.toml > the gateway of this machine
    token:   join= > token= or auth= > EASYREMOTE_JOIN > profile in config.toml
             > profile of the address
    pin:     what came with the token > EASYREMOTE_JOIN or profile of the same address

Rules of this file. 1) With a pin, the gateway is known by its pin. Without one it must show
a certificate that the system trusts for its host name. There is no third way. 2) A token that
was stored for one gateway is never taken for another address. 3) No I/O but the reading of files
of this user; everything is read again at each call, so a gateway that starts later is found.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ..config import (
    JOIN_VARIABLE,
    Address,
    environment_gateway,
    environment_join,
    file_gateway,
    file_settings,
    home,
    parse_address,
)
from ..errors import AuthenticationError, GatewayUnreachableError, NotConnectedError
from .join import JoinString, is_join_text
from .profile import Profile, default_profile, list_profiles, load_profile
from .token import Token

ConnectRole = Literal["client", "node"]

_SECRET_FILE_BYTES_MAX = 64 * 1024
_RANK = {"join": 0, "gateway": 1, "login": 2}
"""Which profile of one address is taken: what the user chose before what a gateway left."""


@dataclass(frozen=True, slots=True)
class Credential:
    """A token and, where it is known, the pin of the gateway that it is for.

    Attributes:
        token: The token's text; masked in the repr.
        pin: SHA-256 of the gateway's public key, or None.
        addresses: Where that gateway may be reached; may be empty.
    """

    token: str = field(repr=False)
    pin: bytes | None = None
    addresses: tuple[Address, ...] = ()

    @classmethod
    def from_join(cls, text: str) -> Credential:
        """Make a credential of a join string.

        Raises:
            ValueError: `text` is no join string.
        """
        join = JoinString.parse(text)
        return cls(join.token.text(), join.pin, join.addresses)


@dataclass(frozen=True, slots=True)
class Resolved:
    """All that a connection needs to know.

    Attributes:
        addresses: Where to dial, best first; at least one.
        pin: By which the gateway is known; None means system authorities and host name.
        token: What to show it once it is known; masked in the repr.
        source: Where the token came from, for people.
    """

    addresses: tuple[Address, ...]
    pin: bytes | None
    token: str = field(repr=False)
    source: str

    @property
    def address(self) -> Address:
        """The address to dial first."""
        return self.addresses[0]

    @property
    def gateway_key(self) -> str:
        """What identifies the gateway across connections: its pin, else its address."""
        return self.pin.hex() if self.pin is not None else str(self.address)


def resolve_credential(
    address: str | Address | None = None,
    *,
    join: str | None = None,
    token: str | None = None,
    auth: str | Credential | None = None,
    role: ConnectRole = "client",
    pin: bytes | None = None,
) -> Resolved:
    """Find the gateway and the credential for it.

    Args:
        address: What the program named, if it named one.
        join: A join string, or `env:NAME` or `file:PATH` of one.
        token: A token or join string, or `env:NAME` or `file:PATH` of one.
        auth: The name of a profile, or a `Credential`; also anything that `token` may be.
        role: Who asks; it only changes the advice in messages.
        pin: The pin of the gateway, where the caller has a link to it already.

    Returns:
        Addresses, pin and token.

    Raises:
        ValueError: `address` is no address.
        NotConnectedError: No gateway was named anywhere.
        AuthenticationError: The gateway is named and there is no good credential for it.
        GatewayUnreachableError: The address is on this machine and no gateway of this user has
            run there yet. Trying again later makes sense.
    """
    named = parse_address(address) if isinstance(address, str) else address
    found = _explicit(join, token, auth)
    if found is not None and found.credential.pin is not None:
        addresses = (named,) if named else (found.credential.addresses or _stored_addresses(role))
        return Resolved(addresses, found.credential.pin, found.credential.token, found.source)
    addresses = (named,) if named else _stored_addresses(role)
    stored = _stored_for(addresses[0])
    if found is not None:
        known = pin or (stored.credential.pin if stored else None)
        return Resolved(addresses, known, found.credential.token, found.source)
    if stored is None:
        raise _no_credential(addresses[0], role)
    # Never the caller's pin: a stored token is only for the gateway that it was stored with.
    return Resolved(addresses, stored.credential.pin, stored.credential.token, stored.source)


@dataclass(frozen=True, slots=True)
class _Found:
    credential: Credential
    source: str


def _explicit(join: str | None, token: str | None, auth: str | Credential | None) -> _Found | None:
    """Return the credential that the program itself names, or None."""
    if join is not None:
        text = _load(join, "join")
        if not is_join_text(text):
            raise AuthenticationError(
                "join= takes a join string, which starts with er1_; a token goes to token="
            )
        joined = _credential_of(text, "join")
        if token is None:
            return _Found(joined, "join=")
        own = _credential_of(_load(token, "token"), "token")
        return _Found(Credential(own.token, own.pin or joined.pin, joined.addresses), "token=")
    if token is not None:
        return _Found(_credential_of(_load(token, "token"), "token"), "token=")
    if isinstance(auth, Credential):
        return _Found(auth, "auth=")
    if auth is None:
        return None
    if auth.startswith(("env:", "file:")) or is_join_text(auth) or _is_token(auth):
        return _Found(_credential_of(_load(auth, "auth"), "auth"), "auth=")
    return _found_in(_profile_named(auth))


def _is_token(text: str) -> bool:
    try:
        Token.parse(text)
    except ValueError:
        return False
    return True


def _profile_named(name: str) -> Profile:
    """Return a profile by name.

    Raises:
        AuthenticationError: There is none.
    """
    try:
        profile = load_profile(name)
    except ValueError as error:
        raise AuthenticationError(str(error)) from None
    if profile is None:
        known = ", ".join(known.name for known in list_profiles()) or "none"
        raise AuthenticationError(
            f"there is no profile {name!r} in {home()} (known: {known}). "
            f"Make it with: easyremote login {name} --join STRING"
        )
    return profile


def _load(text: str, what: str) -> str:
    """Return `text`, or what the variable or file that it names holds."""
    if text.startswith("env:"):
        name = text.removeprefix("env:")
        value = os.environ.get(name, "").strip()
        if not value:
            raise AuthenticationError(
                f"{what}={text!r}: the environment variable {name} is not set"
            )
        return value
    if text.startswith("file:"):
        path = Path(text.removeprefix("file:")).expanduser()
        try:
            with path.open("rb") as file:
                raw = file.read(_SECRET_FILE_BYTES_MAX)
            return raw.decode("ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is no text"
            raise AuthenticationError(
                f"{what}={text!r}: the file cannot be read: {reason}"
            ) from error
    return text.strip()


def _credential_of(text: str, what: str) -> Credential:
    """Return the credential that a token or join string spells; errors repeat no part of it."""
    try:
        if is_join_text(text):
            return Credential.from_join(text)
        return Credential(Token.parse(text).text())
    except ValueError as error:
        raise AuthenticationError(f"{what}: {error}") from None


def _found_in(profile: Profile) -> _Found:
    credential = Credential(profile.token, profile.pin, profile.addresses)
    return _Found(credential, f"profile {profile.name}")


def _environment() -> _Found | None:
    """Return the credential in EASYREMOTE_JOIN, or None."""
    text = environment_join()
    if text is None:
        return None
    found = _credential_of(_load(text, JOIN_VARIABLE), JOIN_VARIABLE)
    if found.pin is None:
        raise AuthenticationError(
            f"{JOIN_VARIABLE} holds a bare token; set it to the join string, which starts with er1_"
        )
    return _Found(found, JOIN_VARIABLE)


def _file_profile() -> Profile | None:
    name = file_settings().get("profile")
    return None if name is None else _profile_named(str(name))


def _stored_addresses(role: ConnectRole) -> tuple[Address, ...]:
    """Return where the gateway is that nobody named in the program.

    Raises:
        NotConnectedError: Nothing names one, or several are equally likely.
    """
    named = environment_gateway()
    if named is not None:
        return (named,)
    for find in (_environment, _default_join, _from_file):
        found = find()
        if found is not None and found.credential.addresses:
            return found.credential.addresses
    configured = file_gateway()
    if configured is not None:
        return (configured,)
    local = [profile for profile in list_profiles() if profile.origin == "gateway"]
    preferred = [profile for profile in local if profile.port == 8080] or local
    if len(preferred) == 1:
        return preferred[0].addresses
    raise _no_gateway(role, local)


def _default_join() -> _Found | None:
    profile = default_profile()
    return None if profile is None else _found_in(profile)


def _from_file() -> _Found | None:
    profile = _file_profile()
    # config.toml may name a gateway beside a profile; its address wins over the profile's.
    return None if profile is None or file_gateway() is not None else _found_in(profile)


def _stored_for(address: Address) -> _Found | None:
    """Return the credential that environment or profiles hold for `address`, or None.

    EASYREMOTE_JOIN is taken for any address of its port, and for an address that no profile
    knows: the gateway may have more names than the string says, or be behind a tunnel, and its
    pin is checked in any case.
    """
    environment = _environment()
    if environment is not None and any(
        known.port == address.port for known in environment.credential.addresses
    ):
        return environment
    configured = _file_profile()
    if configured is not None and (configured.matches(address) or file_gateway() == address):
        return environment or _found_in(configured)
    matching = [profile for profile in list_profiles() if profile.matches(address)]
    matching.sort(key=lambda profile: _RANK[profile.origin])
    if not matching:
        return environment
    best = [profile for profile in matching if profile.origin == matching[0].origin]
    if len(best) > 1 and best[0].origin == "login":
        names = ", ".join(f"auth={profile.name!r}" for profile in best)
        raise AuthenticationError(
            f"several profiles know the gateway {address}; say which one to use: {names}"
        )
    return _found_in(best[0])


def _no_gateway(role: ConnectRole, local: list[Profile]) -> NotConnectedError:
    who = "a client" if role == "client" else "a node"
    first = "connect('host:port')" if role == "client" else "ComputeNode('host:port', ...)"
    several = ""
    if local:
        ports = ", ".join(str(profile.port) for profile in local)
        several = f"Several gateways of this user have run on this machine (ports {ports}). "
    return NotConnectedError(
        f"No gateway was named for {who}. {several}Do one of three things: name it in the "
        f"program, {first}; or set EASYREMOTE_GATEWAY=host:port or EASYREMOTE_JOIN=er1_... in "
        f"the environment; or keep it once for this user with: easyremote join er1_..."
    )


def _no_credential(
    address: Address, role: ConnectRole
) -> AuthenticationError | GatewayUnreachableError:
    wanted = "node" if role == "node" else "member"
    ways = (
        f"pass join='er1_...' in the program; or set EASYREMOTE_JOIN=er1_... in the environment; "
        f"or keep it once for this user with: easyremote join er1_... (The gateway's operator "
        f"prints a join string with: easyremote token create --role {wanted} --user NAME)"
    )
    if address.is_loopback:
        return GatewayUnreachableError(
            f"No gateway of this user has run at {address} yet: there is no profile of it in "
            f"{home()}. Start one with: easyremote gateway run --port {address.port}. If it "
            f"belongs to another user or is reached through a tunnel: {ways}"
        )
    return AuthenticationError(f"There is no credential for the gateway {address}: {ways}")
