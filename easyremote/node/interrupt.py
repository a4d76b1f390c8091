"""Making a body stop that does not look: an exception raised inside its thread from outside.

Theory. CPython can be told to raise an exception in another thread at its next bytecode. That
reaches a loop that never asks `context().cancelled()`; it does not reach a thread that waits in
C code (a `sleep`, a solver), which gets it when it returns to Python.

Rules of this file. 1) One interrupt per call at most, sent only while the body runs and under the
lock of its seat, so that it can never hit the next call. 2) `Interrupted` derives from
BaseException: `except Exception` of a body does not swallow it. 3) ctypes is loaded when the
first interrupt is sent, not before.
"""

from __future__ import annotations

import importlib


class Interrupted(BaseException):
    """The call that this thread runs was cancelled or ran out of time.

    It is raised inside the running function. Clean up and let it pass.
    """


def load() -> None:
    """Load what an interrupt needs, so that sending one cannot wait for an import."""
    importlib.import_module("ctypes")


def interrupt(thread_id: int) -> None:
    """Raise `Interrupted` in the thread at its next bytecode."""
    import ctypes

    ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(thread_id), ctypes.py_object(Interrupted)
    )


def withdraw(thread_id: int) -> None:
    """Take an interrupt back that the thread has not seen yet."""
    import ctypes

    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread_id), None)
