"""`CUDA_VISIBLE_DEVICES` of this process, as its calls with GPUs come and go.

Theory. CUDA reads the variable once, when a process first uses it, so a process whose calls get
different devices needs it before that: the agent starts such *pinned* workers with the right value,
and setting it again here changes nothing, unless the script itself has overwritten it. In the
script's own process the variable is set while a call with GPUs runs, and put back when none does,
so that programs which a body starts and libraries that it loads see what the call was given. Where
calls on different devices overlap in one process, no value is right for all, and the last one to
begin has its way; `context().gpu_ids` is right for each.

Rules of this file. 1) No body is running while the variable changes hands in the same thread.
2) What was there before the first call comes back after the last.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from .nvml import ORDER_VARIABLE, PCI_ORDER, VISIBLE_VARIABLE, token_of

VISIBLE_KEY = "cuda_visible_devices"
"""In the context of a call, from the agent: the value of the variable while the call runs."""
GPUS_KEY = "gpus"
"""In the context of a call: the indexes of its devices."""

_lock = threading.Lock()
_running = 0
_before: str | None = None


def value_of(devices: Sequence[int]) -> str:
    """Return what the variable of a worker says to mean devices of this node."""
    visible = os.environ.get(VISIBLE_VARIABLE)
    return ",".join(token_of(index, visible) for index in devices)


def environment_for(devices: Sequence[int]) -> dict[str, str]:
    """Return what the environment of a process says that is pinned to devices; {} for none.

    Where nothing was made visible, devices have the numbers of the PCI bus, and CUDA must be told.
    """
    if not devices:
        return {}
    environment = {VISIBLE_VARIABLE: value_of(devices)}
    if VISIBLE_VARIABLE not in os.environ:
        environment[ORDER_VARIABLE] = os.environ.get(ORDER_VARIABLE, PCI_ORDER)
    return environment


@contextmanager
def during(value: object) -> Iterator[None]:
    """Let this process see the devices of a call while a block runs; None changes nothing."""
    if not isinstance(value, str):
        yield
        return
    global _running, _before  # noqa: PLW0603 - the environment belongs to the process
    with _lock:
        if not _running:
            _before = os.environ.get(VISIBLE_VARIABLE)
        _running += 1
        os.environ[VISIBLE_VARIABLE] = value
    try:
        yield
    finally:
        with _lock:
            _running -= 1
            if not _running:
                _put_back(_before)


def _put_back(value: str | None) -> None:
    if value is None:
        os.environ.pop(VISIBLE_VARIABLE, None)
    else:
        os.environ[VISIBLE_VARIABLE] = value
