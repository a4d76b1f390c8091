"""What to say to somebody who speaks plain text on a port that speaks TLS.

Theory. Typing `http://` where `https://` is meant is the commonest mistake at a new port, and a
connection that just closes explains nothing. A request that only reads is redirected. One that
changes something is refused: it has carried its token in the clear, and a redirect would hide that
and let the program do it again each time.

Rules of this file. 1) Bytes in, bytes out. 2) The `Host` header is anybody's text: it is used only
if it is a plain host name or address.
"""

from __future__ import annotations

import re

REQUEST_BYTES_MAX = 4096
"""More of a request is not looked at."""

_REQUEST = re.compile(rb"([A-Z]{3,10}) (/[!-~]*) HTTP/1\.[01]\r?\n")
_HTTP_BEGIN = re.compile(rb"[A-Z]{3,10} /")
_HOST = re.compile(
    rb"\r?\nhost:[ \t]*([A-Za-z0-9.-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(?::([0-9]{1,5}))?[ \t]*\r?\n",
    re.IGNORECASE,
)
_READING = {b"GET", b"HEAD", b"OPTIONS"}


def answer_plain_text(data: bytes, port: int) -> bytes:
    """Return what to answer before closing; empty if the peer does not speak HTTP/1.

    Args:
        data: The first bytes of the connection.
        port: Where the peer reached us, for a request that does not say.
    """
    if _HTTP_BEGIN.match(data) is None:
        return b""
    request, host = _REQUEST.match(data), _HOST.search(data)
    if request is None or host is None:
        return _response(b"400 Bad Request", b"", "This port speaks HTTPS only: use https://")
    name, port_text = host[1], host[2] or b"%d" % port
    origin = b"https://" + name + b":" + port_text
    if request[1] not in _READING:
        text = (
            f"This port speaks HTTPS only: send it to {origin.decode('ascii')}.\n"
            "What this request carried was not encrypted: if a token was in it, revoke the token "
            "with `easyremote token revoke` and make a new one."
        )
        return _response(b"400 Bad Request", b"", text)
    location = b"Location: " + origin + request[2] + b"\r\n"
    text = f"This port speaks HTTPS only: {origin.decode('ascii')}"
    body = text if request[1] != b"HEAD" else ""
    return _response(b"307 Temporary Redirect", location, body)


def _response(status: bytes, headers: bytes, text: str) -> bytes:
    body = f"{text}\n".encode("ascii") if text else b""
    return (
        b"HTTP/1.1 " + status + b"\r\n" + headers
        + b"Content-Type: text/plain; charset=utf-8\r\n"
        + b"Content-Length: %d\r\n" % len(body)
        + b"Cache-Control: no-store\r\nConnection: close\r\n\r\n" + body
    )  # fmt: skip
