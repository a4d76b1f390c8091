"""A node of a campaign: functions that write down the truth about their own runs.

Theory. Whether a body ran is known to the body alone. Each one appends a line to a file of the
campaign before it does anything else, and another one when it is about to return. A line is one
`write` to a descriptor opened with O_APPEND, so it is there, whole, whatever happens next.

    node.py GATEWAY NODE_ID MARKERS
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Iterator

from easyremote import ComputeNode, context


class Marks:
    """The file in which bodies say that they began and ended."""

    def __init__(self, path: str, node_id: str) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._node_id = node_id

    def begun(self, key: str) -> None:
        """The body of call `key` runs."""
        self._write("S", key)

    def ends(self, key: str) -> None:
        """It is about to return."""
        self._write("E", key)

    def _write(self, what: str, key: str) -> None:
        words = what, key, context().attempt, os.getpid(), self._node_id, time.monotonic()
        os.write(self._fd, (" ".join(map(str, words)) + "\n").encode())


def make_node(gateway: str, node_id: str, marks: Marks) -> ComputeNode:
    """Return the node, ready to serve."""
    node = ComputeNode(gateway, node_id=node_id)

    @node.register
    async def nap(key: str, seconds: float) -> str:
        marks.begun(key)
        await asyncio.sleep(seconds)
        marks.ends(key)
        return key

    @node.register(idempotent=True)
    async def again(key: str, seconds: float) -> str:
        marks.begun(key)
        await asyncio.sleep(seconds)
        marks.ends(key)
        return key

    @node.register(max_concurrency=4)
    def work(key: str, seconds: float) -> str:
        marks.begun(key)
        time.sleep(seconds)
        marks.ends(key)
        return key

    @node.register(max_concurrency=2)
    def bulk(key: str, size_bytes: int) -> bytes:
        marks.begun(key)
        value = key.encode().ljust(size_bytes, b".")
        marks.ends(key)
        return value

    @node.register(max_concurrency=2)
    def numbers(key: str, count: int) -> Iterator[int]:
        marks.begun(key)
        for i in range(count):
            time.sleep(0.01)
            yield i
        marks.ends(key)

    @node.register(isolation="process")
    def alone(key: str, seconds: float) -> str:
        marks.begun(key)
        time.sleep(seconds)
        marks.ends(key)
        return key

    @node.register
    async def pid() -> int:
        return os.getpid()

    return node


if __name__ == "__main__":
    gateway, node_id, markers = sys.argv[1:4]
    make_node(gateway, node_id, Marks(markers, node_id)).serve()
