"""A node of the demo, `python -m easyremote.demo.node ADDRESS NAME`: all that a node needs."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from easyremote import ComputeNode
from easyremote.demo.picture import Pixels, View, render

node = ComputeNode(sys.argv[1], node_id=sys.argv[2])


@node.register
def draw(view: tuple[Any, ...], top: int, rows: int) -> tuple[str, Pixels]:
    """Draw some rows of the picture and say who did it."""
    return sys.argv[2], render(View(*view), top, rows)


@node.register
def mirror(array: NDArray[np.float64]) -> NDArray[np.float64]:
    """Send an array back as it came."""
    return array


if __name__ == "__main__":
    node.serve()
