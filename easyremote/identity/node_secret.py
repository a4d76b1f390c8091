"""The secret by which a gateway recognises a node.

Theory. The first time that a node enrols, the gateway binds its id to a random 256-bit secret that
the node made. From then on the id belongs to whoever has that secret: another machine that takes
the same id is refused, even with a good token. The token that enrolled the node is not needed
again. The secret is kept for each gateway and node id, so that one gateway cannot present
what it learned to another.

Rules of this file. 1) The file exists before the secret is first sent. 2) Files are 0600 under
`nodes/` of the home folder.

Source. The node-password secret of k3s.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import socket
from pathlib import Path

from ..config import home, private_folder
from ..errors import AuthenticationError
from .private_file import create_private, read_private
from .token import SECRET_BYTES


def node_secret(gateway_key: str, node_id: str) -> bytes:
    """Return this machine's secret for `node_id` at one gateway; made at the first call.

    Args:
        gateway_key: What identifies the gateway: `Resolved.gateway_key`.
        node_id: The id of the node.

    Raises:
        AuthenticationError: The file is damaged or belongs to somebody else.
    """
    path = _secret_path(gateway_key, node_id)
    try:
        raw = read_private(path)
    except FileNotFoundError:
        raw = create_private(path, secrets.token_bytes(SECRET_BYTES).hex().encode("ascii"))
    try:
        secret = bytes.fromhex(raw.decode("ascii"))
    except ValueError:
        secret = b""
    if len(secret) != SECRET_BYTES:
        raise AuthenticationError(
            f"the node secret {path} is damaged. Remove it and free the id at the gateway: "
            f"easyremote node forget {node_id}"
        )
    return secret


def _secret_path(gateway_key: str, node_id: str) -> Path:
    # The readable part is for people, the hash makes the name unique and safe.
    digest = hashlib.sha256(f"{gateway_key}\n{node_id}".encode()).hexdigest()[:32]
    readable = re.sub(r"[^A-Za-z0-9-]", "_", node_id)[:40]
    return private_folder(home() / "nodes") / f"{readable}.{digest}"


def default_node_id(script: str = "") -> str:
    """Return the id of a node that was given none: host name, `-`, four hexadecimal digits.

    It is the same after a restart, differs between home folders, and between the scripts of one
    home folder.

    Args:
        script: What tells apart several nodes of one user: the path of the script.
    """
    path = private_folder(home() / "nodes") / "seed"
    try:
        seed = read_private(path)
    except FileNotFoundError:
        seed = create_private(path, secrets.token_bytes(16).hex().encode("ascii"))
    digits = hashlib.sha256(seed + script.encode("utf-8", "surrogateescape")).hexdigest()[:4]
    host = re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname().partition(".")[0]).strip("-")
    return f"{host[:60] or 'node'}-{digits}"
