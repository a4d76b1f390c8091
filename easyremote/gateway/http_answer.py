"""What an HTTP client hears from a gateway that serves no HTTP.

Rules of this file. 1) One short answer, whatever was asked; nothing of the request is repeated.
2) The request is read to the end of its headers, within a bound, so that the answer is seen.

Source. decisions.md 20; RFC 9110 section 15.6.2 (501).
"""

from __future__ import annotations

from ..transport import ByteStream

REQUEST_BYTES_MAX = 16 * 1024
HTTP_ANSWER = (
    "This is an EasyRemote gateway. REST and the dashboard need the extra package: "
    "pip install 'easyremote[http]'\n"
)


async def answer_http(stream: ByteStream) -> None:
    """Give an HTTP client one short answer that says how to get REST, and end."""
    request = bytearray(REQUEST_BYTES_MAX)
    view, size = memoryview(request), 0
    while size < len(request) and b"\r\n\r\n" not in request[:size]:
        got = stream.try_receive_into(view[size:])
        if got is None:
            await stream.wait_receivable()
        elif not got:
            return
        else:
            size += got
    body = HTTP_ANSWER.encode()
    head = (
        "HTTP/1.1 501 Not Implemented\r\nContent-Type: text/plain; charset=utf-8\r\n"
        f"Content-Length: {len(body)}\r\nX-Content-Type-Options: nosniff\r\n"
        "Connection: close\r\n\r\n"
    ).encode()
    left = memoryview(head if request[:5] == b"HEAD " else head + body)
    while left:
        sent = stream.try_send(left)
        if sent is None:
            await stream.wait_sendable()
        else:
            left = left[sent:]
