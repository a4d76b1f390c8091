"""From what a body did to what is said about it: values, exceptions and stops as messages.

Rules of this file. 1) Everything is encoded on the thread that ran the body, never on the io
thread. 2) A message always fits one frame: texts are cut. 3) `maybe_executed` is False only where
the provider's function provably did not begin.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .. import values
from ..errors import EasyRemoteError, SerializationError, detail_of
from ..log import mask
from ..wire.errors import ErrorCode
from ..wire.message import CODEC_PICKLE, CODEC_PLAIN, INLINE_MAX, Failure, Item, Progress, Result

if TYPE_CHECKING:
    from types import TracebackType

REASON_CHARS_MAX = 1000
FRAME_TEXT_MAX = 48 * 1024
"""Bytes of exception data in one frame of at most 64 KiB, its fixed parts deducted."""

_HERE = str(Path(__file__).parent)


class Outcome(NamedTuple):
    """The terminal message of a call, with its raw segments."""

    message: Result | Failure
    buffers: list[memoryview]


class Packed(NamedTuple):
    """An encoded value as the fields of a message."""

    codec: int
    body: bytes | None
    segments: list[int]
    buffers: list[memoryview]


def pack(encoded: values.Encoded) -> Packed:
    """Lay an encoded value out: a small body inside the message, a large one as segment 0."""
    codec = CODEC_PICKLE if encoded.pickled else CODEC_PLAIN
    body, buffers = encoded.body, encoded.buffers
    if len(body) <= INLINE_MAX:
        return Packed(codec, body, [buffer.nbytes for buffer in buffers], buffers)
    buffers = [memoryview(body), *buffers]
    return Packed(codec, None, [buffer.nbytes for buffer in buffers], buffers)


def result(value: Any, seconds: float, allow_pickle: bool) -> Outcome:
    """Return the outcome of a body that returned `value`; a failure if that cannot travel."""
    try:
        encoded = values.encode(value, allow_pickle=allow_pickle, root="result")
    except SerializationError as error:
        return refusal(ErrorCode.BAD_ARGUMENT, str(error), maybe_executed=True)
    if not encoded.buffers and len(encoded.body) <= INLINE_MAX:  # Most results.
        codec = CODEC_PICKLE if encoded.pickled else CODEC_PLAIN
        return Outcome(Result(codec, seconds, encoded.body, []), [])
    codec, body, segments, buffers = pack(encoded)
    return Outcome(Result(codec, seconds, body, segments), buffers)


def item(value: Any, allow_pickle: bool, index: int) -> tuple[Item, list[memoryview]]:
    """Return one yielded value as a message. Its arrays are copied: producers reuse them.

    Raises:
        SerializationError: The value cannot travel.
    """
    encoded = values.encode(
        value, allow_pickle=allow_pickle, copy_max=COPY_ALL, root=f"item[{index}]"
    )
    codec, body, segments, buffers = pack(encoded)
    return Item(0, codec, body, segments), buffers


COPY_ALL = 1 << 62


def progress(value: Any, allow_pickle: bool) -> tuple[Progress, list[memoryview]]:
    """Return a progress report as a message.

    Raises:
        SerializationError: The value cannot travel.
    """
    encoded = values.encode(value, allow_pickle=allow_pickle, copy_max=COPY_ALL, root="progress")
    codec, body, segments, buffers = pack(encoded)
    return Progress(codec, body, segments), buffers


def refusal(
    code: ErrorCode, reason: str, *, maybe_executed: bool = False,
    error: EasyRemoteError | None = None,
) -> Outcome:  # fmt: skip
    """Return the outcome of a call that failed by us, not by the provider's code."""
    detail = {} if error is None else detail_of(error)
    retry_after_s = None if error is None else error.retry_after_s
    reason = _cut(reason, REASON_CHARS_MAX)
    return Outcome(Failure(int(code), reason, maybe_executed, retry_after_s, detail), [])


def raised(error: BaseException) -> Outcome:
    """Return the outcome of a body that raised: the exception as data."""
    error.__traceback__ = _without_ours(error.__traceback__)
    detail = _bounded(values.encode_exception(error))
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 - __str__ is code of the provider
        text = "(its text could not be made)"
    name = type(error).__name__
    reason = _cut(mask(f"{name}: {text}" if text else name), REASON_CHARS_MAX)
    return Outcome(Failure(int(ErrorCode.REMOTE_ERROR), reason, True, None, detail), [])


def _without_ours(traceback: TracebackType | None) -> TracebackType | None:
    """Return the traceback from the provider's first frame on."""
    first = traceback
    while first is not None and first.tb_frame.f_code.co_filename.startswith(_HERE):
        first = first.tb_next
    return first if first is not None else traceback


def _bounded(detail: dict[str, Any]) -> dict[str, Any]:
    """Return `detail` small enough for one frame: long texts lose their middle."""
    left = [FRAME_TEXT_MAX]

    def shrink(value: Any) -> Any:
        if isinstance(value, str):
            size = len(value.encode("utf-8", "surrogatepass"))
            if size > left[0]:
                value = _cut_middle(value, max(left[0] // 4, 100))
                size = len(value.encode("utf-8", "surrogatepass"))
            left[0] -= size
            return value
        if isinstance(value, bytes | bytearray):
            left[0] -= len(value)
            return value if left[0] >= 0 else b""
        left[0] -= 9
        if isinstance(value, dict):
            return {key: shrink(entry) for key, entry in value.items()}
        if isinstance(value, list | tuple):
            return [shrink(entry) for entry in value[: max(0, left[0])]]
        return value

    shrunk = shrink(detail)
    assert isinstance(shrunk, dict)
    return shrunk


def _cut(text: str, chars_max: int) -> str:
    return text if len(text) <= chars_max else text[: chars_max - 3] + "..."


def _cut_middle(text: str, chars_max: int) -> str:
    if len(text) <= chars_max:
        return text
    half = chars_max // 2
    return f"{text[:half]}\n... {len(text) - 2 * half} characters left out ...\n{text[-half:]}"
