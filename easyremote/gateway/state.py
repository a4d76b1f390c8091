"""What a gateway keeps between its starts: identity, store, and the owner's profile.

Theory. The first start makes a key, a certificate, a database and an owner token, and leaves the
owner's token in a profile of the OS user that runs the gateway: nodes and clients of this user on
this machine need no configuration and are still encrypted and authenticated. Later starts find
all of it again.

Rules of this file. 1) A gateway is its state folder: one key, one set of tokens, one audit. Where
no folder is named it is `gateway/PORT` of the home folder, so that two gateways of one user are two
gateways. Whoever moves a gateway to another port names its old folder. 2) One process at a time has
a folder open (`open`); other processes of the user may use it beside (`attach`), as the command
line does. 3) The owner's profile goes by port, too. 4) No secret is in the database: keys and the
printed join strings have 0600 files of their own.
"""

from __future__ import annotations

import getpass
import json
import os
import secrets
import sys
from collections.abc import Iterable
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path

from ..config import (
    PORT_DEFAULT,
    environment_gateway,
    home,
    private_folder,
)
from ..errors import EasyRemoteError, NotConnectedError
from ..identity.certificate import (
    CERTIFICATE_NAME,
    KEY_NAME,
    ServerIdentity,
    identity_of_files,
    open_server_identity,
)
from ..identity.join import JoinString
from ..identity.private_file import create_private, read_private, write_private
from ..identity.profile import (
    Profile,
    gateway_profile_name,
    list_profiles,
    load_profile,
    save_profile,
)
from ..identity.role import Principal, Role
from ..identity.token import Token
from .boots import note_start
from .hosts import local_hosts, loopback_first, public_hosts
from .records import DAY_S
from .store import Store

DATABASE_NAME = "gateway.db"
GRANT_KEY_NAME = "grant.key"
JOINS_NAME = "joins.json"
LOCK_NAME = "lock"
CLIENT_JOIN_S = 90 * DAY_S
"""How long the printed client line lasts; it is printed anew at a start in its last week."""
NODE_JOIN_S = DAY_S
"""How long the printed node line lasts: enrolled nodes do not need it again."""


@dataclass(slots=True)
class GatewayState:
    """An open state folder.

    Attributes:
        folder: Where everything lies.
        identity: Certificate, key and pin for the TLS server.
        store: Tokens, nodes and audit, for this thread.
        hosts: Where clients may reach the gateway, best first.
        port: Where it listens.
        gateway_id: A random name of this gateway, the same at each start.
        grant_key: The secret by which dispatches are granted to nodes.
        incarnation: Number of this start; 0 where the folder was only attached to.
        owner: The principal that owns the gateway: the OS user who made it.
    """

    folder: Path
    identity: ServerIdentity
    store: Store
    hosts: tuple[str, ...]
    port: int
    gateway_id: str
    grant_key: bytes = field(repr=False)
    incarnation: int
    owner: str
    _lock: int | None = None

    @classmethod
    def open(
        cls,
        state_dir: Path | None = None,
        hosts: Iterable[str] = (),
        port: int = PORT_DEFAULT,
        *,
        certificate_path: Path | None = None,
        key_path: Path | None = None,
    ) -> GatewayState:
        """Open the state of the gateway that is to listen on `port`; make what is missing.

        Args:
            state_dir: The folder, or None for `gateway/PORT` of the home folder.
            hosts: Names or addresses to put into join strings; found out where empty.
            port: The real port: with port 0, bind first and give the port that you got.
            certificate_path: A certificate that the operator brings, with `key_path`.
            key_path: Its key.

        Returns:
            The state; `close` it in the end.

        Raises:
            EasyRemoteError: Another gateway has the folder open, or a file in it is damaged.
        """
        path = state_dir or default_state_folder(port)
        folder = private_folder(path.absolute(), ours=state_dir is None)
        with ExitStack() as undo:
            lock = _take_lock(folder)
            undo.callback(_drop_lock, lock)
            named = public_hosts(hosts) or local_hosts()
            if certificate_path is not None and key_path is not None:
                identity = identity_of_files(certificate_path, key_path)
            else:
                identity = open_server_identity(folder, named)
            store = undo.enter_context(closing(Store(folder / DATABASE_NAME)))
            state = cls._around(folder, identity, store, named, port, lock)
            state.begin(certificate_path)
            undo.pop_all()
        return state

    @classmethod
    def attach(cls, state_dir: Path | None = None, port: int | None = None) -> GatewayState:
        """Use the state of a gateway beside it, whether it runs now or not: for the command line.

        Args:
            state_dir: The folder, if it is known.
            port: The port of the gateway; otherwise that of `EASYREMOTE_GATEWAY`, the only
                gateway of this user on this machine, or the one on the default port.

        Raises:
            NotConnectedError: There is no such gateway, or the choice is not clear.
        """
        folder = state_dir.absolute() if state_dir else find_state_folder(port)
        database = folder / DATABASE_NAME
        if not database.is_file():
            raise NotConnectedError(
                f"there is no gateway in {folder}. Make one with: easyremote gateway init"
            )
        with ExitStack() as undo:
            store = undo.enter_context(closing(Store(database)))
            hosts = tuple(json.loads(store.get_meta("hosts") or "[]"))
            known_port = int(store.get_meta("port") or 0)
            certificate_path = Path(store.get_meta("certificate_path") or folder / CERTIFICATE_NAME)
            identity = identity_of_files(certificate_path, folder / KEY_NAME)
            state = cls._around(folder, identity, store, hosts, known_port)
            undo.pop_all()
        return state

    @classmethod
    def _around(
        cls,
        folder: Path,
        identity: ServerIdentity,
        store: Store,
        hosts: tuple[str, ...],
        port: int,
        lock: int | None = None,
    ) -> GatewayState:
        grant_key = _create_or_read(folder / GRANT_KEY_NAME)
        owner = store.get_meta("owner") or _os_user()
        gateway_id = store.get_meta("gateway_id") or ""
        return cls(folder, identity, store, hosts, port, gateway_id, grant_key, 0, owner, lock)

    def begin(self, certificate_path: Path | None) -> None:
        """Write down this start, and see that the owner has a profile that works."""
        with self.store.transaction():
            if not self.gateway_id:
                self.gateway_id = secrets.token_hex(8)
                self.store.set_meta("gateway_id", self.gateway_id)
                self.store.set_meta("owner", self.owner)
            self.store.set_meta("hosts", json.dumps(self.hosts))
            self.store.set_meta("port", str(self.port))
            path = "" if certificate_path is None else str(certificate_path.absolute())
            self.store.set_meta("certificate_path", path)
            self.incarnation = self.store.next_incarnation()
            note_start(self.store, self.incarnation)
            self.store.audit("gateway_started", "gateway", {"incarnation": self.incarnation})
        self._write_owner_profile()

    def _write_owner_profile(self) -> None:
        """Leave a working owner token where nodes and clients of this OS user look."""
        name = gateway_profile_name(self.port)
        try:
            known = load_profile(name)
        except EasyRemoteError:
            known = None  # a damaged one is written anew
        text = "" if known is None else known.token
        who = self.store.authenticate(text)
        if not isinstance(who, Principal) or who.role is not Role.OWNER:
            token = self.store.create_token(
                Role.OWNER, self.owner, note=f"profile {name} of {_os_user()}"
            )
            text = token.text()
        # Loopback first: a profile of this machine is for this machine.
        hosts = tuple(dict.fromkeys((*loopback_first(self.hosts), *self.hosts)))
        profile = Profile(
            name=name,
            hosts=hosts,
            port=self.port,
            pin=self.identity.pin,
            token=text,
            kind=Role.OWNER.value,
            user=self.owner,
            origin="gateway",
            state_dir=str(self.folder),
        )
        if profile != known:
            save_profile(profile)

    @property
    def pin(self) -> bytes:
        """SHA-256 of the gateway's public key."""
        return self.identity.pin

    def join_string(self, token: Token, hosts: Iterable[str] = ()) -> str:
        """Return the join string of a token of this gateway. It holds the secret.

        Args:
            token: As `store.create_token` returned it.
            hosts: Other hosts than the gateway's own to put into it.
        """
        info = self.store.token(token.id)
        expires = None if info is None or info.expires_at is None else int(info.expires_at)
        named = tuple(hosts) or self.hosts
        return JoinString(named, self.port, self.identity.pin, token, expires).encode()

    def node_join(self) -> str:
        """Return the line to paste on machines that shall be nodes of the owner; lasts a day."""
        return self._printed_join(Role.NODE, NODE_JOIN_S, DAY_S / 24)

    def client_join(self) -> str:
        """Return the line to paste on the owner's other machines for clients; lasts 90 days."""
        return self._printed_join(Role.MEMBER, CLIENT_JOIN_S, 7 * DAY_S)

    def _printed_join(self, role: Role, expires_s: float, left_s: float) -> str:
        """Return the join string of a role that the last start printed, or a new one.

        Args:
            role: Of the token in it.
            expires_s: How long a new one lasts.
            left_s: A kept one that lasts less than this is replaced.
        """
        path = self.folder / JOINS_NAME
        kept = _read_joins(path)
        text = kept.get(role.value, "")
        who = self.store.authenticate(text)
        soon = self.store.clock() + left_s
        if isinstance(who, Principal) and who.expires_at is not None and who.expires_at > soon:
            return self.join_string(Token.parse(text))
        token = self.store.create_token(
            role, self.owner, expires_s=expires_s, note="printed when the gateway started"
        )
        kept[role.value] = token.text()
        write_private(path, json.dumps(kept).encode("ascii"))
        return self.join_string(token)

    def close(self) -> None:
        """Close the store and let another process open the folder; twice does no harm."""
        self.store.close()
        lock, self._lock = self._lock, None
        if lock is not None:
            _drop_lock(lock)


def default_state_folder(port: int) -> Path:
    """Return the folder of the gateway on `port` where none is named."""
    return private_folder(home() / "gateway") / str(port)


def find_state_folder(port: int | None = None) -> Path:
    """Return the state folder of a gateway of this user on this machine.

    Raises:
        NotConnectedError: There is none, or there are several and none is on the default port.
    """
    known = {
        profile.port: Path(profile.state_dir)
        for profile in list_profiles()
        if profile.origin == "gateway"
        and profile.state_dir is not None
        and (Path(profile.state_dir) / DATABASE_NAME).is_file()
    }
    if port is None:
        named = environment_gateway()
        if named is not None and named.port in known:
            port = named.port
        elif len(known) == 1:
            port = next(iter(known))
        else:
            port = PORT_DEFAULT
    if port in known:
        return known[port]
    ports = ", ".join(str(known_port) for known_port in sorted(known)) or "none"
    raise NotConnectedError(
        f"no gateway of this user on port {port} is known in {home()} (known ports: {ports}). "
        f"Name one with --port, or make it with: easyremote gateway init --port {port}"
    )


def _read_joins(path: Path) -> dict[str, str]:
    """Return the tokens that were printed, by role; a damaged file is as good as none."""
    try:
        kept = json.loads(read_private(path))
    except (FileNotFoundError, ValueError):
        return {}
    return {str(role): str(text) for role, text in kept.items()} if isinstance(kept, dict) else {}


def _create_or_read(path: Path) -> bytes:
    """Return the 32 random bytes that `path` keeps, made at the first call."""
    try:
        return read_private(path)
    except FileNotFoundError:
        return create_private(path, secrets.token_bytes(32))


def _os_user() -> str:
    """Return the name of the user that runs this process."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        # A container may run under a uid that has no name.
        return f"uid-{os.getuid()}" if hasattr(os, "getuid") else "owner"


def _take_lock(folder: Path) -> int:
    """Hold the folder until `_drop_lock` or the end of this process.

    Raises:
        EasyRemoteError: Somebody else holds it.
    """
    descriptor = os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    if sys.platform != "win32":
        import fcntl

        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            raise EasyRemoteError(
                f"another gateway is running with {folder}. Stop it, or give this one a "
                f"state folder or a port of its own."
            ) from error
    return descriptor


def _drop_lock(descriptor: int) -> None:
    """Let the folder go, also for forked children that still have the descriptor."""
    if sys.platform != "win32":
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)
