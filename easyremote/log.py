"""Logs: one line an event, to stderr, without secrets and without tricks.

Theory. A log line is read by people, by `grep` and by machines. It is therefore one line: what
happened in plain words, then `key=value` pairs. Whatever a peer chose (names, reasons, addresses)
is data: it is cut in length, and control characters are escaped, so that it cannot start a line
of its own or repaint a terminal. Join strings and tokens are masked in every part of a record.

Rules of this file. 1) Importing `easyremote` installs no handler; programs of ours call
`configure`. 2) `Log` masks before the record exists, so that handlers of the user get masked
text, too; the filter on our own handler covers records made in any other way. 3) `EASYREMOTE_LOG`
(`text` or `json`) and `EASYREMOTE_LOG_LEVEL` are read by `configure`, not at import.

Source. CWE-117 (improper output neutralization for logs).
"""

from __future__ import annotations

import logging
import math
import os
import re
import sys
import time
from typing import Any, TextIO

VALUE_CHARS_MAX = 300
"""Longest value of one field; peers choose many of them."""
MESSAGE_CHARS_MAX = 4096
INT_BITS_MAX = 1024
"""Longer numbers are not written out: it would take long, and Python refuses some."""
TRACEBACK_CHARS_MAX = 16 * 1024

_SECRET = re.compile(r"(er1_)[0-9A-Za-z]{4,}|(er[acns]_[0-9A-Za-z]{10}_)[0-9A-Za-z]+", re.ASCII)
_HALF_TOKEN = re.compile(r"(er[acns]_)[0-9A-Za-z_]{12,}", re.ASCII)
# C0, DEL, C1, line and paragraph separators, the marks that reorder text, surrogates, BOM.
_CONTROL = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff]"
)
_PLAIN_VALUE = re.compile(r"[^\s\"=]+")
_BEFORE_QUOTE = re.compile(r"(\\+)(?=\"|$)")
_ROOT = "easyremote"


def mask(text: str) -> str:
    """Return `text` with the secret part of every join string and token replaced by `***`.

    >>> mask("joined with er1_7hGkAbcDef")
    'joined with er1_***'
    """
    if "er" not in text:
        return text
    masked = _SECRET.sub(lambda found: f"{found[1] or found[2]}***", text)
    return _HALF_TOKEN.sub(lambda found: f"{found[1]}***", masked) if "er" in masked else masked


def clean(text: str, chars_max: int = VALUE_CHARS_MAX) -> str:
    r"""Return `text` fit for one line: control characters escaped, cut to `chars_max`.

    >>> clean("a\nb")
    'a\\nb'
    """
    if len(text) > chars_max:
        text = f"{text[:chars_max]}...({len(text) - chars_max} more)"
    return _CONTROL.sub(_escape, text)


def _escape(found: re.Match[str]) -> str:
    known = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
    char = found[0]
    if char in known:
        return known[char]
    return f"\\x{ord(char):02x}" if ord(char) < 256 else f"\\u{ord(char):04x}"


class Log:
    """Writes events of one part of the program.

    >>> Log("gateway").info("node joined", node_id="gpu-01")
    """

    def __init__(self, name: str) -> None:
        """Write under the logger `easyremote.<name>`."""
        self._logger = logging.getLogger(f"{_ROOT}.{name}")

    def debug(self, event: str, /, **fields: object) -> None:
        """Write something that only a developer wants to see."""
        self._write(logging.DEBUG, event, fields)

    def info(self, event: str, /, **fields: object) -> None:
        """Write something that an operator may want to see."""
        self._write(logging.INFO, event, fields)

    def warning(self, event: str, /, **fields: object) -> None:
        """Write something that an operator should look at some time."""
        self._write(logging.WARNING, event, fields)

    def error(
        self, event: str, /, *, exception: BaseException | None = None, **fields: object
    ) -> None:
        """Write something that went wrong, with the traceback of `exception` if one is given."""
        self._write(logging.ERROR, event, fields, exception)

    def _write(
        self,
        level: int,
        event: str,
        fields: dict[str, object],
        exception: BaseException | None = None,
    ) -> None:
        if not self._logger.isEnabledFor(level):
            return
        data = {key: _field(value) for key, value in fields.items()}
        text = mask(clean(event, MESSAGE_CHARS_MAX))
        if data:
            pairs = " ".join(f"{key}={_quoted(value)}" for key, value in data.items())
            text = f"{text} {pairs}"
        if exception is not None:
            data["traceback"] = _traceback(exception)
            text = f"{text} traceback={_quoted(data['traceback'])}"
        extra = {"easyremote_event": event, "easyremote_fields": data}
        self._logger.log(level, "%s", text, extra=extra, stacklevel=3)


def _field(value: object) -> Any:
    """Return `value` as it is logged: numbers as they are, all else as masked, bounded text."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # JSON has no such numbers.
    if isinstance(value, int) and value.bit_length() > INT_BITS_MAX:
        return f"a number of {value.bit_length()} bits"
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, bytes):
        return clean(value.hex())
    # Masked before it is cut: half of a token would no longer look like one.
    return clean(mask(str(value)))


def _quoted(value: object) -> str:
    text = str(value)
    if _PLAIN_VALUE.fullmatch(text):
        return text
    # As in a command line: backslashes count only before a quote, and there they are doubled.
    return '"' + _BEFORE_QUOTE.sub(lambda found: found[1] * 2, text).replace('"', '\\"') + '"'


def _traceback(exception: BaseException) -> str:
    """Return the traceback as one masked, bounded line; the middle goes if it is too long."""
    import traceback

    text = mask("".join(traceback.format_exception(exception)).rstrip())
    if len(text) > TRACEBACK_CHARS_MAX:
        half = TRACEBACK_CHARS_MAX // 2
        text = f"{text[:half]} ... {text[-half:]}"
    return clean(text, TRACEBACK_CHARS_MAX + 16)


class SecretFilter(logging.Filter):
    """Masks secrets in the message, the arguments and the exception text of every record."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Replace the text of `record` by its masked form; never drop a record."""
        try:
            message = record.getMessage()
        except (TypeError, ValueError):
            message = f"{record.msg} {record.args}"
        record.msg = mask(message)
        record.args = None
        if record.exc_info and record.exc_info[1] is not None:
            record.exc_text = _traceback(record.exc_info[1])
        elif record.exc_text:
            record.exc_text = mask(record.exc_text)
        record.exc_info = None
        if record.stack_info:
            record.stack_info = mask(record.stack_info)
        return True


class LineFormatter(logging.Formatter):
    """Formats a record as one line for people: time, level, where, what, key=value."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without its end."""
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(record.created))
        text = clean(record.getMessage(), MESSAGE_CHARS_MAX + TRACEBACK_CHARS_MAX)
        line = f"{moment}.{int(record.msecs):03d} {record.levelname.lower():7} {record.name} {text}"
        if record.exc_text:
            line += f" traceback={_quoted(clean(record.exc_text, TRACEBACK_CHARS_MAX + 16))}"
        return line


class JsonFormatter(logging.Formatter):
    """Formats a record as one JSON object a line, for machines."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without its end."""
        import json

        fields = getattr(record, "easyremote_fields", {})
        event = getattr(record, "easyremote_event", None)
        line: dict[str, Any] = {
            "time": round(record.created, 6),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": mask(clean(event or record.getMessage(), MESSAGE_CHARS_MAX)),
            **{key: value for key, value in fields.items() if key not in _JSON_OWN},
        }
        if record.exc_text:
            line["traceback"] = record.exc_text
        return json.dumps(line, ensure_ascii=True, allow_nan=False, default=str)


_JSON_OWN = frozenset({"time", "level", "logger", "event"})
_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")


def configure(
    level: str | None = None, *, json: bool | None = None, stream: TextIO | None = None
) -> None:
    """Send the log of EasyRemote to `stream`; a second call replaces the first.

    Args:
        level: debug, info, warning or error; else `EASYREMOTE_LOG_LEVEL`; else info.
        json: One JSON object a line; else whether `EASYREMOTE_LOG` is `json`.
        stream: Where to write; stderr by default.

    Raises:
        ValueError: The level is none of the four.
    """
    name = (level or os.environ.get("EASYREMOTE_LOG_LEVEL") or "info").strip().upper()
    if name not in _LEVELS:
        known = ", ".join(known.lower() for known in _LEVELS)
        raise ValueError(f"{name.lower()!r} is no log level; the levels are {known}")
    if json is None:
        json = os.environ.get("EASYREMOTE_LOG", "").strip().lower() == "json"
    handler = _OurHandler(stream or sys.stderr)
    handler.addFilter(SecretFilter())
    handler.setFormatter(JsonFormatter() if json else LineFormatter())
    logger = logging.getLogger(_ROOT)
    for old in list(logger.handlers):
        if isinstance(old, _OurHandler):
            logger.removeHandler(old)
    logger.addHandler(handler)
    logger.setLevel(name)
    # Our handler has written it; a root handler of the user would write it a second time.
    logger.propagate = False


class _OurHandler(logging.StreamHandler[TextIO]):
    """The handler that `configure` installed, told apart from those of the user."""
