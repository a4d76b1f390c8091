"""The GPUs of this machine, through NVML: which there are, and how busy each is.

Theory. NVML numbers the devices of the machine in the order of the PCI bus and knows nothing of
`CUDA_VISIBLE_DEVICES`. What a node offers is what its owner made visible, so devices are numbered
here by their place in that variable: index 0 is its first entry. Entries may be indexes or UUIDs
(of whole devices, or of MIG slices); as in CUDA, what follows an entry that names no device is
ignored. A worker that is given device 0 gets the entry itself back in its own variable, so numbers
are translated and UUIDs pass through unchanged.

Memory that is in use may belong to the node's own workers, whose calls hold reservations for it,
or to somebody else, who will not give it back: it is *foreign*. NVML lists the processes on a
device; those below this node's processes are its own. Where the list cannot be trusted (a container
shows process ids of another namespace, a driver does not say how much each uses), foreign memory is
unknown, which is said as None and not guessed.

Rules of this file. 1) A missing library, driver or device is normal. 2) A device that fails is left
out, alone. 3) The module `pynvml` is an argument, so that tests can bring their own.

Source. NVML API reference (device queries); CUDA programming guide, "Environment variables".
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

GPUS_MAX = 64
VISIBLE_VARIABLE = "CUDA_VISIBLE_DEVICES"
ORDER_VARIABLE = "CUDA_DEVICE_ORDER"
PCI_ORDER = "PCI_BUS_ID"
"""The order of NVML. CUDA's own default puts the fastest device first."""

UNSEEN_BYTES_MAX = 1024**3
"""Memory that a driver may take on a device on which no process is listed."""

_TEMPERATURE_OF_GPU = 0


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU that this node may use.

    Attributes:
        index: Its place among the visible ones: what calls, reservations and samples name it by.
        token: What `CUDA_VISIBLE_DEVICES` of a worker says to mean it.
        handle: NVML's own name of it.
        model: What it is called.
        memory_total_bytes: Its memory.
    """

    index: int
    token: str
    handle: Any
    model: str
    memory_total_bytes: int


def visible_entries(visible: str | None) -> list[str] | None:
    """Return the entries of `CUDA_VISIBLE_DEVICES`; None if it is not set and hides nothing.

    >>> visible_entries("2, GPU-8932f937"), visible_entries(""), visible_entries(None)
    (['2', 'GPU-8932f937'], [], None)
    """
    if visible is None:
        return None
    return [entry.strip() for entry in visible.split(",")] if visible.strip() else []


def token_of(index: int, visible: str | None) -> str:
    """Return what a worker's variable says to mean the device of this index.

    >>> token_of(1, None), token_of(1, "2,3"), token_of(0, "GPU-8932f937")
    ('1', '3', 'GPU-8932f937')
    """
    entries = visible_entries(visible)
    if entries is None or index >= len(entries):
        return str(index)
    return entries[index]


class Nvml:
    """The library, opened.

    Attributes:
        gpus: The devices that this node may use.
    """

    def __init__(self, module: Any, visible: str | None) -> None:
        """Open the library.

        Args:
            module: `pynvml`, or what behaves like it.
            visible: The node's own `CUDA_VISIBLE_DEVICES`.

        Raises:
            module.NVMLError: There is no driver.
        """
        self._module = module
        module.nvmlInit()
        try:
            self.gpus = tuple(self._visible(visible))
        except module.NVMLError:
            self.close()
            raise

    @classmethod
    def open(cls) -> Nvml | None:
        """Open NVML of this machine; None where there is none. Blocks."""
        try:
            import pynvml
        except ImportError:
            return None
        try:
            return cls(pynvml, os.environ.get(VISIBLE_VARIABLE))
        except pynvml.NVMLError:
            return None

    def close(self) -> None:
        """Let the library go."""
        with contextlib.suppress(self._module.NVMLError):
            self._module.nvmlShutdown()

    def _visible(self, visible: str | None) -> Iterator[Gpu]:
        entries = visible_entries(visible)
        if entries is None:
            entries = [str(index) for index in range(self._module.nvmlDeviceGetCount())]
        for index, entry in enumerate(entries[:GPUS_MAX]):
            try:
                handle = self._handle(entry)
                name = self._module.nvmlDeviceGetName(handle)
                total = int(self._module.nvmlDeviceGetMemoryInfo(handle).total)
            except (self._module.NVMLError, ValueError):
                return  # CUDA ignores the rest, too.
            yield Gpu(index, entry, handle, _text(name), total)

    def _handle(self, entry: str) -> Any:
        """Return the device that an entry names.

        Raises:
            module.NVMLError: There is none.
            ValueError: It is no name of a device.
        """
        module = self._module
        if entry.isdigit():
            return module.nvmlDeviceGetHandleByIndex(int(entry))
        if entry.startswith("MIG-"):
            return module.nvmlDeviceGetHandleByUUID(entry)
        if not entry.startswith("GPU-"):
            raise ValueError(entry)
        found = []
        for index in range(module.nvmlDeviceGetCount()):  # It may be the beginning of a UUID.
            handle = module.nvmlDeviceGetHandleByIndex(index)
            if _text(module.nvmlDeviceGetUUID(handle)).startswith(entry):
                found.append(handle)
        if len(found) != 1:
            raise ValueError(entry)
        return found[0]

    def sample(self, is_own: Callable[[int], bool | None]) -> list[dict[str, Any]]:
        """Return how busy each device is.

        Args:
            is_own: Whether a process belongs to this node; None if there is no such process here.
        """
        samples: list[dict[str, Any]] = []
        for gpu in self.gpus:
            with contextlib.suppress(self._module.NVMLError):
                samples.append(self._sample(gpu, is_own))
        return samples

    def _sample(self, gpu: Gpu, is_own: Callable[[int], bool | None]) -> dict[str, Any]:
        module, handle = self._module, gpu.handle
        memory = module.nvmlDeviceGetMemoryInfo(handle)
        processes = self._processes(handle)
        sample: dict[str, Any] = {
            "index": gpu.index,
            "memory_total_bytes": int(memory.total),
            "memory_free_bytes": int(memory.free),
            "memory_foreign_bytes": _foreign_bytes(int(memory.used), processes, is_own),
            "processes": 0 if processes is None else len(processes),
        }
        with contextlib.suppress(module.NVMLError):  # MIG slices have none.
            sample["utilisation"] = module.nvmlDeviceGetUtilizationRates(handle).gpu / 100
        with contextlib.suppress(module.NVMLError):
            celsius = module.nvmlDeviceGetTemperature(handle, _TEMPERATURE_OF_GPU)
            sample["temperature_c"] = int(celsius)
        return sample

    def _processes(self, handle: Any) -> dict[int, int | None] | None:
        """Return the memory of each process on a device; None where that is not known."""
        module = self._module
        try:
            listed = [
                *module.nvmlDeviceGetComputeRunningProcesses(handle),
                *module.nvmlDeviceGetGraphicsRunningProcesses(handle),
            ]
        except module.NVMLError:
            return None
        return {int(process.pid): process.usedGpuMemory for process in listed}


def _foreign_bytes(
    used: int, processes: dict[int, int | None] | None, is_own: Callable[[int], bool | None]
) -> int | None:
    """Return the memory that others than this node use; None if that cannot be told."""
    if processes is None or (not processes and used > UNSEEN_BYTES_MAX):
        return None
    own = 0
    for pid, size_bytes in processes.items():
        whose = is_own(pid)
        if whose is None:
            return None
        if whose:
            if size_bytes is None:
                return None
            own += size_bytes
    return max(0, used - own)


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
