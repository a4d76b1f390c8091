"""Under which names a gateway is reached: what goes into join strings and certificates.

Theory. A gateway listens on all interfaces and cannot know by which name others reach it: behind
a router or in a container it may be one that it never sees. The operator can say. Where nobody
does, the address by which this machine would leave its network is the best guess.

Rules of this file. 1) Nothing is sent and no name is looked up. 2) The result is never empty.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable

from ..config import is_loopback, parse_address, parse_ip
from ..identity.join import HOSTS_MAX


def local_hosts() -> tuple[str, ...]:
    """Return the names under which other machines may reach this one, best guess first.

    Nothing is sent: the system only says which address it would use to leave this machine.
    """
    found: list[str] = []
    # Addresses set aside for documentation: routed like any other, and nobody's.
    for family, target in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.connect((target, 9))
                host = str(probe.getsockname()[0])
        except OSError:
            continue
        ip = parse_ip(host)
        if ip is not None and not (ip.is_loopback or ip.is_unspecified or ip.is_link_local):
            found.append(str(ip))
    name = socket.gethostname().lower()
    if "." in name and not is_loopback(name):
        found.append(name)
    return tuple(found) or ("127.0.0.1",)


def public_hosts(hosts: Iterable[str]) -> tuple[str, ...]:
    """Return the hosts that were named, as join strings write them, without "all interfaces"."""
    named = (host for host in hosts if host not in ("", "0.0.0.0", "::"))  # noqa: S104
    written = (parse_address(f"[{host}]" if ":" in host else host).host for host in named)
    return tuple(dict.fromkeys(written))[:HOSTS_MAX]


def loopback_first(hosts: tuple[str, ...]) -> tuple[str, ...]:
    """Return the loopback addresses to try on this machine: those named, else 127.0.0.1."""
    return tuple(host for host in hosts if is_loopback(host)) or ("127.0.0.1",)
