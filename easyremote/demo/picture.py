"""What the demo draws: the Mandelbrot set, tile by tile, and a picture file from the tiles.

Rules of this file. 1) Plain numpy; nothing of the runtime is used. 2) A tile is a function of its
arguments alone, so that any node may draw it.

Source. The smooth colouring is the normalised iteration count (Garcia, Ramos, Calderon); the file
format is PNG (ISO/IEC 15948), 8-bit RGB without interlacing.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]

ESCAPE_RADIUS = 32.0


class View(NamedTuple):
    """The part of the plane that a picture shows, and its size in pixels."""

    centre_x: float = -0.743643
    centre_y: float = 0.131825
    span: float = 0.0045
    """Width of the picture in the plane."""
    width: int = 1200
    height: int = 800


def render(view: View, top: int, rows: int, iterations_max: int = 700) -> Pixels:
    """Draw some rows of the picture.

    Args:
        view: What the whole picture shows.
        top: First row, counted from above.
        rows: How many rows.
        iterations_max: Steps after which a point counts as inside.

    Returns:
        Pixels of shape (rows, view.width, 3).
    """
    step = view.span / view.width
    x = view.centre_x + (np.arange(view.width) - view.width / 2) * step
    y = view.centre_y + (np.arange(top, top + rows) - view.height / 2) * step
    c = (x[None, :] + 1j * y[:, None]).ravel()
    escaped_at = np.zeros(c.size)
    alive = np.arange(c.size)
    z, points = np.zeros_like(c), c
    for iteration in range(iterations_max):
        z = z * z + points
        size = z.real * z.real + z.imag * z.imag
        out = size > ESCAPE_RADIUS**2
        if out.any():
            smooth = iteration + 1 - np.log2(np.log(size[out]) / (2 * np.log(ESCAPE_RADIUS)))
            escaped_at[alive[out]] = smooth
            keep = ~out
            alive, z, points = alive[keep], z[keep], points[keep]
            if not alive.size:
                break
    return colour(escaped_at.reshape(rows, view.width))


def colour(escaped_at: NDArray[np.float64]) -> Pixels:
    """Turn escape times into colours; points that never escaped are black."""
    phase = np.sqrt(np.maximum(escaped_at, 0.0))[..., None] * 0.75
    shifts = np.array([0.0, 0.55, 1.1]) + 3.6
    wave = 0.5 + 0.5 * np.sin(phase + shifts)
    pixels = (255 * wave).astype(np.uint8)
    pixels[escaped_at <= 0] = 0
    return pixels


def write_png(path: Path, pixels: Pixels) -> None:
    """Write pixels of shape (height, width, 3) as a PNG file."""
    height, width, _ = pixels.shape
    rows = np.zeros((height, 1 + 3 * width), np.uint8)
    rows[:, 1:] = pixels.reshape(height, -1)

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows.tobytes(), 6))
        + chunk(b"IEND", b"")
    )
