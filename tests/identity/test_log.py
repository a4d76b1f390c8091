"""The log: one line an event, no secrets, no tricks."""

from __future__ import annotations

import io
import json
import logging
import shlex
from collections.abc import Iterator
from typing import NoReturn

import pytest

from easyremote import log
from easyremote.identity.join import JoinString
from easyremote.identity.token import Token, TokenKind

TOKEN = Token.new(TokenKind.CLIENT)
JOIN = JoinString(("vps",), 8080, bytes(32), TOKEN)


@pytest.fixture(autouse=True)
def quiet_logger() -> Iterator[None]:
    """Leave the logger of the package as it was."""
    logger = logging.getLogger("easyremote")
    before = (list(logger.handlers), logger.level, logger.propagate)
    # Else pytest listens at this very logger, and chokes on the broken record of one test.
    logger.propagate = True
    yield
    logger.handlers[:], logger.level, logger.propagate = before


def written(*, as_json: bool = False, level: str = "debug") -> io.StringIO:
    """Configure the log to write into the stream that is returned."""
    stream = io.StringIO()
    log.configure(level, json=as_json, stream=stream)
    return stream


def test_event_is_one_line_of_key_value() -> None:
    """An event is one line with level, part, words and key=value; values with spaces are quoted."""
    stream = written()
    log.Log("gateway").info("node joined", node_id="gpu-01", note="two words", cores=4)

    line = stream.getvalue()
    assert line.endswith(
        'info    easyremote.gateway node joined node_id=gpu-01 note="two words" cores=4\n'
    )
    assert line.count("\n") == 1


def test_json_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """EASYREMOTE_LOG=json gives one JSON object a line, with the fields as they are."""
    monkeypatch.setenv("EASYREMOTE_LOG", "json")
    stream = io.StringIO()
    log.configure(stream=stream)
    log.Log("gateway").warning("node lost", node_id="a\nb", seconds=1.5)

    entry = json.loads(stream.getvalue())
    assert entry["event"] == "node lost"
    assert (entry["level"], entry["logger"]) == ("warning", "easyremote.gateway")
    assert (entry["node_id"], entry["seconds"]) == ("a\\nb", 1.5)


def test_level_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """EASYREMOTE_LOG_LEVEL decides what is written; a wrong one is refused with the list."""
    monkeypatch.setenv("EASYREMOTE_LOG_LEVEL", "Warning")
    stream = io.StringIO()
    log.configure(stream=stream)
    log.Log("x").info("unseen")
    log.Log("x").warning("seen")

    assert "unseen" not in stream.getvalue()
    assert "seen" in stream.getvalue()

    monkeypatch.setenv("EASYREMOTE_LOG_LEVEL", "loud")
    with pytest.raises(ValueError, match="debug, info, warning, error"):
        log.configure(stream=stream)


def test_configure_twice_writes_once() -> None:
    """A second call replaces the first: no event is written twice."""
    first, second = written(), written()
    log.Log("x").info("once")

    assert first.getvalue() == ""
    assert second.getvalue().count("once") == 1


def fail(message: str) -> NoReturn:
    """Raise, so that there is a traceback."""
    raise ValueError(message)


@pytest.mark.parametrize("as_json", [False, True])
def test_secrets_are_masked_wherever_they_stand(as_json: bool) -> None:
    """Tokens and join strings are masked in message, fields, arguments and tracebacks."""
    token, join = TOKEN.text(), JOIN.encode()
    stream = written(as_json=as_json)
    ours = log.Log("x")
    ours.info(f"bad {token}", field=f"<{join}>", again={"token": token})
    foreign = logging.getLogger("easyremote.foreign")
    foreign.info("args %s and %r", token, [join])
    foreign.info("broken %d", token)
    try:
        fail(f"no such token {token}")
    except ValueError as error:
        ours.error("failed", exception=error)
        foreign.exception("failed with %s", join)

    text = stream.getvalue()
    assert text.count("\n") == 5
    for secret in (token, join, token[15:58], join[20:60]):
        assert secret not in text
    assert f"erc_{TOKEN.id}_***" in text
    assert "er1_***" in text


def test_handlers_of_the_user_get_masked_text(caplog: pytest.LogCaptureFixture) -> None:
    """Without our handler, what `Log` writes is masked all the same."""
    logging.getLogger("easyremote").propagate = True
    with caplog.at_level(logging.INFO, logger="easyremote"):
        log.Log("x").info("joined", join=JOIN.encode(), token=TOKEN.text())

    assert "joined" in caplog.text
    assert TOKEN.text()[16:50] not in caplog.text
    assert JOIN.encode()[20:60] not in caplog.text


def test_a_secret_cut_short_is_still_masked() -> None:
    """A long value that ends inside a token shows nothing of its secret."""
    stream = written()
    log.Log("x").info("long", value="y" * (log.VALUE_CHARS_MAX - 20) + TOKEN.text())

    assert TOKEN.text()[16:20] not in stream.getvalue()


def test_peer_text_cannot_break_the_line_or_the_terminal() -> None:
    """Control characters, line separators and reordering marks of a peer are escaped."""
    nasty = "a\nb\r\x1b[31m\x00\x9b\u2028\u202e\ud800\x7f"
    stream = written()
    log.Log("x").info("hello", name=nasty)
    logging.getLogger("easyremote.y").info(nasty)

    lines = stream.getvalue().split("\n")
    assert len(lines) == 3
    assert all(char.isprintable() for line in lines for char in line)
    assert r"a\nb\r\x1b[31m\x00\x9b\u2028\u202e\ud800\x7f" in lines[0]


def test_long_values_are_cut_and_say_so() -> None:
    """A value of a peer takes a bounded part of the line."""
    stream = written()
    log.Log("x").info("hello", name="n" * 100_000)

    assert len(stream.getvalue()) < 1000
    assert "more)" in stream.getvalue()


def test_traceback_is_bounded_and_on_the_same_line() -> None:
    """An exception with a huge message stays one line of bounded length."""
    stream = written()
    log.Log("x").error("failed", exception=ValueError("z" * 1_000_000))

    assert stream.getvalue().count("\n") == 1
    assert len(stream.getvalue()) < 2 * log.TRACEBACK_CHARS_MAX


def test_a_peers_text_cannot_end_its_quotes() -> None:
    """Backslashes and quotes in a value never make it look as if another field began."""
    stream = written()
    log.Log("x").info("hello", name='a\\" admin=true', path="C:\\temp dir\\", plain="C:\\temp")

    line = stream.getvalue().rstrip()
    fields = dict(field.split("=", 1) for field in shlex.split(line.split(" hello ")[1]))
    assert fields["name"] == 'a\\" admin=true'
    assert line.endswith('path="C:\\temp dir\\\\" plain=C:\\temp')


def test_json_lines_hold_no_numbers_that_json_lacks() -> None:
    """Not a number, infinity and absurdly long numbers become text; the line stays a line."""
    stream = written(as_json=True)
    log.Log("x").info("odd", nan=float("nan"), inf=float("-inf"), long=10**5000, fine=2.5)

    entry = json.loads(stream.getvalue(), parse_constant=pytest.fail)
    assert (entry["nan"], entry["inf"], entry["fine"]) == ("nan", "-inf", 2.5)
    assert entry["long"] == "a number of 16610 bits"
