"""The ALPN offer is read right from real hellos, and never guessed from broken ones."""

from __future__ import annotations

import ssl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from easyremote.transport.client_hello import (
    NO_PROTOCOL_ALERT,
    RECORD_BYTES_MAX,
    alpn_offered,
    record_size,
)


def hello(*names: str) -> bytes:
    """Return the first record of a real TLS client."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if names:
        context.set_alpn_protocols(list(names))
    outgoing = ssl.MemoryBIO()
    client = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="example.org")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


@pytest.mark.parametrize("names", [(), ("easyremote/1",), ("h2", "http/1.1"), ("x" * 255, "y")])
def test_the_offer_of_a_real_client_is_read(names: tuple[str, ...]) -> None:
    """The names come in the client's order; no offer is an empty one."""
    record = hello(*names)

    assert record_size(record) == len(record)
    assert alpn_offered(record) == names


def test_a_hello_that_was_cut_says_nothing() -> None:
    """A hello that is cut anywhere is never taken for one without an offer."""
    record = hello("h2")
    for size in range(len(record)):
        assert alpn_offered(record[:size]) is None


def test_an_empty_list_of_names_says_nothing() -> None:
    """An ALPN extension without a name is malformed, not a missing offer."""
    record = hello("h2")
    assert record.count(b"\x00\x10\x00\x05\x00\x03\x02h2") == 1
    broken = record.replace(b"\x00\x10\x00\x05\x00\x03\x02h2", b"\x00\x10\x00\x05\x00\x00\x02h2")

    assert alpn_offered(broken) is None


@given(st.binary(max_size=200))
def test_any_bytes_are_survived(data: bytes) -> None:
    """Nothing but an answer comes out of anybody's bytes."""
    assert 5 <= record_size(data) <= RECORD_BYTES_MAX
    assert alpn_offered(data) is None or data[0] == 0x16


@given(st.data())
def test_any_changed_hello_is_survived(data: st.DataObject) -> None:
    """Changing bytes of a real hello never raises."""
    record = bytearray(hello("h2", "http/1.1"))
    for _ in range(data.draw(st.integers(1, 4))):
        record[data.draw(st.integers(0, len(record) - 1))] = data.draw(st.integers(0, 255))
    offered = alpn_offered(bytes(record))

    assert offered is None or all(isinstance(name, str) for name in offered)


def test_the_alert_is_a_fatal_record() -> None:
    """The answer to unknown names is the alert of RFC 7301, as a record of its own."""
    assert NO_PROTOCOL_ALERT[0] == 0x15
    assert int.from_bytes(NO_PROTOCOL_ALERT[3:5], "big") == len(NO_PROTOCOL_ALERT[5:])
    assert NO_PROTOCOL_ALERT[5:] == bytes((2, 120))
