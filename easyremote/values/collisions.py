"""Dicts and sets from the wire, built in time that a peer cannot make quadratic.

Theory. The hash of a number, and of a tuple of numbers, is no secret: whoever chooses the keys can
choose them to collide, and n colliding keys cost n²/2 comparisons: seconds for a quarter of a
megabyte. Text and bytes have keyed hashes and are safe. Other keys are inserted in chunks, with an
eye on the processor time that each chunk takes: honest ones take microseconds, and a chunk of
colliding keys takes longer with every key before it.

Rules of this file. 1) A clock of this thread's own processor time is read, so that a busy machine
refuses nobody. 2) One slow chunk is no proof (a garbage collection may fall into it), several are.

Source. Crosby and Wallach, "Denial of Service via Algorithmic Complexity Attacks" (2003).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from time import thread_time
from typing import Any

from ..wire.errors import CodecError

CHUNK = 256
"""Keys inserted between two looks at the clock; that many may collide for 0.2 ms."""
CHUNK_S_MAX = 0.002
"""Honest keys take 0.00002 s; colliding ones take this long from about 1,000 keys on."""
HASH_SHARE = 4
"""A chunk may also take this many times as long as hashing its keys: some hashes are slow."""
SLOW_CHUNKS_MAX = 8
"""After so many slow chunks the keys are refused: about 0.03 s are lost by then."""

_KEYED = frozenset({str, bytes})


def build_dict(flat: Any) -> dict[Any, Any]:
    """Return the dict whose keys and values alternate in `flat`.

    Raises:
        CodecError: A key is missing, twice there or not hashable, or the keys collide.
    """
    if type(flat) is not list or len(flat) % 2:
        raise CodecError("a dict is a list of keys and values in turn")
    keys = flat[::2]
    result: dict[Any, Any] = {}
    values = flat[1::2]
    _fill(
        result.update,
        keys,
        lambda begin, end: zip(keys[begin:end], values[begin:end], strict=True),
    )
    if len(result) != len(keys):
        raise CodecError("a key is there twice")
    return result


def build_set(entries: Any) -> set[Any]:
    """Return the set of `entries`.

    Raises:
        CodecError: An entry is twice there or not hashable, or the entries collide.
    """
    if type(entries) is not list:
        raise CodecError("a set is a list of its entries")
    result: set[Any] = set()
    _fill(result.update, entries, lambda begin, end: entries[begin:end])
    if len(result) != len(entries):
        raise CodecError("an entry of a set is there twice")
    return result


def _fill(update: Any, keys: Sequence[Any], chunk: Any) -> None:
    try:
        if len(keys) <= CHUNK or _KEYED.issuperset(map(type, keys)):
            update(chunk(0, len(keys)))
            return
        slow = 0
        for begin in range(0, len(keys), CHUNK):
            end = min(begin + CHUNK, len(keys))
            hashing_s = _time_of_hashing(keys[begin:end])
            started = thread_time()
            update(chunk(begin, end))
            if thread_time() - started > CHUNK_S_MAX + HASH_SHARE * hashing_s:
                slow += 1
                if slow == SLOW_CHUNKS_MAX:
                    raise CodecError("the keys of a dict or set collide")
    except TypeError as error:
        raise CodecError(f"a key is not hashable: {error}") from None


def _time_of_hashing(keys: Iterable[Any]) -> float:
    started = thread_time()
    for key in keys:
        hash(key)
    return thread_time() - started
