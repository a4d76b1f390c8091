"""The command itself: its help, its version, and how it fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
import trio
from click.testing import CliRunner

import easyremote
from easyremote.cli.base import RootGroup, sentence
from easyremote.cli.main import COMMANDS, LazyGroup, cli
from easyremote.errors import EasyRemoteError
from easyremote.identity.join import JoinString
from easyremote.identity.token import Token, TokenKind

from .conftest import Run

SECRET = Token.new(TokenKind.CLIENT)
JOIN = JoinString(("gw.example.org",), 8080, bytes(32), SECRET).encode()
START_S = 30


def test_help_names_every_command(run: Run) -> None:
    """`easyremote --help` is the map of all that can be done."""
    shown = run("--help")

    assert shown.exit_code == 0
    for name in COMMANDS:
        assert f"\n  {name} " in shown.stdout


@pytest.mark.parametrize(
    "words",
    [
        [name] for name in COMMANDS
    ]
    + [
        ["gateway", "run"], ["gateway", "init"], ["node", "forget"], ["join", "show"],
        ["join", "token"], ["token", "create"], ["token", "list"], ["token", "revoke"],
        ["audit", "verify"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_every_command_explains_itself_and_takes_debug(run: Run, words: list[str]) -> None:
    """Each command has a help text, and each shows a traceback if it is asked to."""
    shown = run(*words, "--help")

    assert shown.exit_code == 0
    assert "Usage: easyremote" in shown.stdout
    assert "--debug" in shown.stdout


def test_help_and_version_load_no_part_of_the_runtime() -> None:
    """What a shell asks for at every key press must not load trio, numpy or the gateway."""
    program = (
        "import sys\n"
        "sys.argv = ['easyremote', '--help']\n"
        "from easyremote.cli.main import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "import json; print(json.dumps(sorted(sys.modules)), file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=START_S, check=True
    )
    loaded = {name.partition(".")[0] for name in json.loads(done.stderr)}

    assert loaded & {"trio", "numpy", "cbor2", "cryptography", "rich", "sqlite3", "psutil"} == set()


def test_python_dash_m_is_the_command(tmp_path: Path) -> None:
    """`python -m easyremote --version` says the version, as the console script does."""
    done = subprocess.run(
        [sys.executable, "-m", "easyremote", "--version"],
        capture_output=True, text=True, timeout=START_S, check=False, cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(easyremote.__path__[0]).parent)},
    )  # fmt: skip

    assert done.returncode == 0
    assert done.stdout == f"easyremote, version {easyremote.__version__}\n"


@pytest.mark.parametrize(
    "words", [["nothing"], ["status", "--nothing"], ["token", "create"], ["gateway", "run", "x"]]
)
def test_wrong_usage_is_exit_code_2(run: Run, words: list[str]) -> None:
    """A script can tell that it called the command wrongly from that the command failed."""
    done = run(*words)

    assert done.exit_code == 2
    assert done.stdout == ""
    assert "Error: " in done.stderr


def test_a_typo_finds_the_command_that_was_meant(run: Run) -> None:
    """`easyremote staus` is answered by what is near."""
    assert "did you mean 'status'?" in run("staus").stderr


def test_a_failure_is_one_sentence_on_stderr(run: Run) -> None:
    """Whoever has no gateway is told so, and what to do, without a traceback."""
    done = run("status")

    assert done.exit_code == 1
    assert done.stdout == ""
    assert done.stderr.startswith("Error: No gateway was named for a client.")
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("words", [["--debug", "status"], ["status", "--debug"]])
def test_debug_shows_the_traceback_too(run: Run, words: list[str]) -> None:
    """With --debug, before or after the command, the place of the error is shown as well."""
    done = run(*words)

    assert done.exit_code == 1
    assert "Traceback (most recent call last)" in done.stderr
    assert "\nError: No gateway was named" in done.stderr


@pytest.mark.parametrize(
    "words",
    [
        [JOIN],
        [f"--{JOIN}"],
        ["status", JOIN],
        ["status", "--gateway", JOIN],
        ["join", "show", JOIN[:-1]],
        ["join", JOIN, JOIN],
        ["token", "revoke", JOIN],
        ["call", f".{SECRET.text()}"],
        ["--debug", "call", JOIN],
    ],
)
def test_no_error_repeats_a_secret(run: Run, words: list[str]) -> None:
    """A secret in the wrong place is masked in what is said about it."""
    done = run(*words)

    assert done.exit_code in (1, 2)
    assert JOIN[:-1] not in done.stderr
    assert SECRET.text()[-20:] not in done.stderr


@click.group(cls=RootGroup)
def failing() -> None:
    """Fail in many ways."""


@failing.command()
@click.argument("kind")
def fail(kind: str) -> None:
    """Fail in one way."""
    errors: dict[str, BaseException] = {
        "ours": EasyRemoteError("first line\nsecond line"),
        "file": FileNotFoundError(2, "No such file or directory", "x.pem"),
        "value": ValueError("a port lies between 1 and 65535"),
        "bug": KeyError("x"),
        "stop": KeyboardInterrupt(),
        "exit": SystemExit(7),
    }
    if kind == "group":

        async def main() -> None:
            async with trio.open_nursery():
                raise EasyRemoteError("inside a nursery")

        trio.run(main)
    raise errors[kind]


@pytest.mark.parametrize(
    ("kind", "code", "said"),
    [
        ("ours", 1, "Error: first line second line\n"),
        ("file", 1, "Error: x.pem: No such file or directory\n"),
        ("value", 1, "Error: a port lies between 1 and 65535\n"),
        ("group", 1, "Error: inside a nursery\n"),
        ("stop", 1, "Aborted!\n"),
        ("exit", 7, ""),
    ],
)
def test_each_kind_of_error_has_its_sentence(kind: str, code: int, said: str) -> None:
    """Errors of ours, of the system and of values are told plainly; Ctrl-C is no error."""
    done = CliRunner().invoke(failing, ["fail", kind])

    assert done.exit_code == code
    assert done.stderr.lstrip("\n") == said


def test_a_mistake_of_ours_asks_for_a_report() -> None:
    """An error that nobody expected says so, and how to see where it came from."""
    done = CliRunner().invoke(failing, ["fail", "bug"])

    assert done.exit_code == 1
    assert "this is a mistake in EasyRemote: KeyError: 'x'" in done.stderr
    assert "--debug" in done.stderr


def test_sentences_mask_secrets() -> None:
    """Whatever an error quotes, a secret in it does not reach the terminal."""
    assert sentence(ValueError(f"bad {JOIN}")) == "bad er1_***"


def test_log_options_reach_the_processes_that_are_started(
    monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    """--log-level and --log-json are settings of the environment, which workers inherit."""
    monkeypatch.setenv("EASYREMOTE_LOG", "text")
    monkeypatch.setenv("EASYREMOTE_LOG_LEVEL", "info")

    run("--log-level", "debug", "--log-json", "join", "show", JOIN)

    assert os.environ["EASYREMOTE_LOG"] == "json"
    assert os.environ["EASYREMOTE_LOG_LEVEL"] == "debug"


def test_the_table_names_commands_that_exist() -> None:
    """Every row of the table is a command of its module."""
    assert isinstance(cli, LazyGroup)
    context = click.Context(cli)

    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        assert command is not None
        assert command.name == name
        assert command.help
    assert cli.get_command(context, "nothing") is None
