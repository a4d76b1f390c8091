"""Type checkers see a call as a future of the stub's result, with the stub's parameters."""

from __future__ import annotations

import importlib.util
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

from easyremote import RemoteFunction, RemoteStreamFunction

from . import stubs

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = "tests/typing/stubs.py"
LIMIT_S = 240

CHECKERS = {
    "mypy": [sys.executable, "-m", "mypy", PROGRAM],
    "pyright": [sys.executable, "-m", "pyright", PROGRAM],
}


@pytest.mark.slow
def test_type_checkers_make_of_a_typed_program_what_is_meant() -> None:
    """Every `assert_type` of the program holds, for each checker that is installed here."""
    wrong: dict[str, str] = {}
    for name, command in CHECKERS.items():
        if importlib.util.find_spec(name) is None:
            continue  # Checkers are tools of developers; .ci/run has both.
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S, check=False
        )
        if done.returncode:
            wrong[name] = done.stdout + done.stderr

    assert wrong == {}


def test_what_is_made_at_run_time_is_what_checkers_are_told() -> None:
    """The decorator tells functions from streams at run time as its overloads do."""
    functions = (stubs.train, stubs.name_of, stubs.fine_tune, stubs.unannotated, stubs.by_name)

    assert all(type(one) is RemoteFunction for one in functions)
    assert type(stubs.frames) is RemoteStreamFunction
    assert type(stubs.events) is RemoteStreamFunction


def test_a_remote_function_shows_the_signature_and_text_of_its_stub() -> None:
    """Editors, `help()` and `inspect` see the stub."""
    assert list(inspect.signature(stubs.train).parameters) == ["model", "epochs"]
    assert stubs.train.__name__ == "train"
    assert stubs.train.__module__ == stubs.__name__
