"""What a gateway prints when it starts: for the person at the terminal, and for nobody else.

Theory. Two lines are all that another machine needs: one makes it a node, one a client. They hold
secrets, so they are printed to a terminal, where a person reads them; into a file, a pipe or a
journal goes only how to get them.

Rules of this file. 1) Everything goes to stderr, at once. 2) No secret without a terminal.

Source. features.md G1; decisions.md 20; promises.md 4.2, "Secrets hygiene".
"""

from __future__ import annotations

import importlib.util
import sys
from typing import TextIO

from ..config import Address
from .state import GatewayState

HTTP_HINT = "REST and the dashboard need an extra package: pip install 'easyremote[http]'"


def print_banner(state: GatewayState, *, first: bool, http: bool, to: TextIO | None = None) -> None:
    """Print the banner.

    Args:
        state: The gateway's.
        first: It is the first start: say where things were put.
        http: REST or the dashboard is wanted.
        to: Where to print; stderr if it is not named.
    """
    out = sys.stderr if to is None else to
    lines = [f"EasyRemote gateway on {Address(state.hosts[0], state.port)}"]
    if first:
        lines.append(f"  state    {state.folder} (key, certificate, tokens: keep it private)")
    lines.append("  local    nodes and clients of this user on this machine need nothing else")
    if out.isatty():
        lines.append(f"  nodes    EASYREMOTE_JOIN={state.node_join()} easyremote node FILE.py")
        lines.append(f"  clients  easyremote join {state.client_join()}")
    else:
        lines.append("  nodes    easyremote token create --role node --user NAME")
        lines.append("  clients  easyremote token create --role member --user NAME")
    if http and not has_http():
        lines.append(f"  http     {HTTP_HINT}")
    out.write("\n".join(lines) + "\n")
    out.flush()


def has_http() -> bool:
    """Return whether the `[http]` extra is installed."""
    return importlib.util.find_spec("hypercorn") is not None
