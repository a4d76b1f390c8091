"""Somebody who speaks plain text gets an answer that helps and reflects nothing evil."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from easyremote.transport.plain_text import answer_plain_text


def test_a_reading_request_is_redirected() -> None:
    """GET is sent to the same place over HTTPS, under the name that the client used."""
    answer = answer_plain_text(b"GET /a?b=c HTTP/1.1\r\nHost: gw.example.org:8080\r\n\r\n", 1)

    assert answer.startswith(b"HTTP/1.1 307 ")
    assert b"\r\nLocation: https://gw.example.org:8080/a?b=c\r\n" in answer


def test_a_host_without_a_port_gets_ours() -> None:
    """The default port of HTTP is not where we listen."""
    answer = answer_plain_text(b"GET / HTTP/1.1\r\nHost: [::1]\r\n\r\n", 8080)

    assert b"\r\nLocation: https://[::1]:8080/\r\n" in answer


def test_a_head_request_gets_no_body() -> None:
    """The answer to HEAD ends with its headers."""
    answer = answer_plain_text(b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n", 8080)

    assert answer.startswith(b"HTTP/1.1 307 ")
    assert answer.endswith(b"\r\n\r\n")


def test_a_changing_request_is_refused() -> None:
    """A POST has shown its token already: it is told so, and not repeated for it."""
    answer = answer_plain_text(b"POST /api HTTP/1.1\r\nHost: gw:8080\r\n\r\n", 8080)

    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"Location" not in answer
    assert b"revoke" in answer


@pytest.mark.parametrize(
    "host", [b"a\rb", b"evil.org/..", b"a b", b"user@evil.org", b"<script>", b"", b"a:99999999"]
)
def test_a_strange_host_is_not_reflected(host: bytes) -> None:
    """What is no host name never stands in the answer."""
    answer = answer_plain_text(b"GET / HTTP/1.1\r\nHost: " + host + b"\r\n\r\n", 8080)

    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"Location" not in answer
    assert not host or host not in answer


@pytest.mark.parametrize("data", [b"SSH-2.0-x\r\n", b"\x89ER1\r\n\x1a\n", b"\x00", b"hello\n"])
def test_other_protocols_get_nothing(data: bytes) -> None:
    """Whoever does not speak HTTP gets no byte."""
    assert answer_plain_text(data, 8080) == b""


@given(st.binary(max_size=100))
def test_an_answer_has_one_head(tail: bytes) -> None:
    """No request can put headers of its own into the answer."""
    answer = answer_plain_text(b"GET /" + tail, 8080)
    head, _, body = answer.partition(b"\r\n\r\n")
    names = [line.partition(b":")[0] for line in head.split(b"\r\n")[1:]]
    expected = [b"Content-Type", b"Content-Length", b"Cache-Control", b"Connection"]

    assert names in (expected, [b"Location", *expected])
    assert b"Content-Length: %d\r\n" % len(body) in answer
