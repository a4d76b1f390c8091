"""The engine that is guided by coverage: atheris, which is libFuzzer for Python.

Rules of this file. 1) atheris is not needed for anything else: it is imported here alone. 2) New
inputs go to a folder outside the repository; the corpus in it is only read. 3) libFuzzer ends the
process itself; it prints what it found, and the input by which it can be run again.
"""

from __future__ import annotations

import gc
import importlib
import importlib.util
import random
import sys
import tempfile
from pathlib import Path
from types import FunctionType
from typing import Any

from .engine import MEMORY_MIB_MAX
from .mutate import SIZE_MAX
from .target import Target


def available() -> bool:
    """Return whether atheris is installed."""
    return importlib.util.find_spec("atheris") is not None


def _ours() -> list[FunctionType]:
    """Return the functions of the product that are loaded: instrumenting all others takes long."""
    return [
        one
        for one in gc.get_objects()
        if isinstance(one, FunctionType) and str(one.__module__).startswith("easyremote.")
    ]


def run(
    name: str, target: Target, corpus: list[bytes], *, executions: int | None,
    seconds: float | None, seed: int,
) -> None:  # fmt: skip
    """Run one target under atheris; ends the process."""
    atheris: Any = importlib.import_module("atheris")
    for function in _ours():
        atheris.instrument_func(function)
    folder = Path(tempfile.mkdtemp(prefix=f"easyremote-fuzz-{name}-"))
    for index, data in enumerate(target.seeds() + corpus):
        (folder / f"seed-{index}").write_bytes(data)
    arguments = [
        sys.argv[0], f"-seed={seed}", f"-max_len={SIZE_MAX}", "-timeout=5", "-print_final_stats=1",
        f"-rss_limit_mb={MEMORY_MIB_MAX}", f"-artifact_prefix={folder}/found-",
    ]  # fmt: skip
    if executions is not None:
        arguments.append(f"-runs={executions}")
    if seconds is not None:
        arguments.append(f"-max_total_time={max(1, int(seconds))}")

    def one(data: bytes) -> None:
        target.run(data)

    def mutate(data: Any, size_max: int, chosen: int) -> bytes:
        rng = random.Random(chosen)
        if chosen % 2:
            return bytes(atheris.Mutate(data, size_max))
        return target.mutate(rng, bytes(data))[:size_max]

    print(f"{name}: atheris, {' '.join(arguments[1:])} {folder}", flush=True)
    atheris.Setup([*arguments, str(folder)], one, custom_mutator=mutate)
    atheris.Fuzz()
