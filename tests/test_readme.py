"""The README keeps its word: its Python compiles, its commands and links exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = ("README.md", "wire/README.md", "scheduler/README.md")

_FENCE = re.compile(r"^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\((?!https?://|#)(?P<target>[^)#\s]+)[^)]*\)")
_TESTS = re.compile(r"<!-- tests -->\n```sh\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)

SHELL_WORDS = frozenset({"python", "python3", "python3.11", "pip", "cd", "git", "export", "."})
"""What a command of the README may start with, besides `easyremote`."""


class Block(NamedTuple):
    """A fenced block: where it stands, its language and its text."""

    name: str
    language: str
    text: str


def blocks(document: str) -> list[Block]:
    text = (ROOT / document).read_text(encoding="utf-8")
    return [
        Block(f"{document}:{text[: m.start()].count(chr(10)) + 2}", m["language"], m["text"])
        for m in _FENCE.finditer(text)
    ]


def commands(text: str) -> list[list[str]]:
    """Split a shell block into its commands, each a list of words."""
    joined = text.replace("\\\n", " ")
    found: list[list[str]] = []
    for line in joined.splitlines():
        for part in re.split(r"&&|;|\|", line):
            words = shlex.split(part, comments=True)
            if words:
                found.append(words)
    return found


ALL = [block for document in DOCUMENTS for block in blocks(document)]
PYTHON = [block for block in ALL if block.language == "python"]
SHELL = [block for block in ALL if block.language == "sh"]


def test_blocks_name_their_language() -> None:
    """A block that is checked by nobody is a drawing, and has no language."""
    assert {block.language for block in ALL} <= {"", "hex", "python", "sh", "text", "values"}
    assert SHELL


def test_python_blocks_compile() -> None:
    """Python in a document is Python."""
    for block in PYTHON:
        compile(block.text, block.name, "exec")


@pytest.mark.parametrize("block", SHELL, ids=[block.name for block in SHELL])
def test_shell_commands_are_known(block: Block) -> None:
    """Every command is one that a reader has, or one that we install."""
    words = {words[0] for words in commands(block.text)}

    assert words <= SHELL_WORDS | {"easyremote"}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document: str) -> None:
    """A relative link names a file of this repository."""
    folder = (ROOT / document).parent
    targets = _LINK.findall((ROOT / document).read_text(encoding="utf-8"))

    assert [target for target in targets if not (folder / target).exists()] == []


def test_tests_command_is_one_block() -> None:
    """`.ci/run` runs the block marked `tests` as it stands, so there is one, and it runs pytest."""
    found = _TESTS.findall((ROOT / "README.md").read_text(encoding="utf-8"))

    assert len(found) == 1
    assert commands(found[0])[-1] == ["python", "-m", "pytest"]


def test_planted_mistakes_are_found() -> None:
    """The checks of this file see what they are for."""
    assert commands("a b && c \\\n d # e\n") == [["a", "b"], ["c", "d"]]
    assert _LINK.findall("[x](y/z.md#part) [web](https://example.org) [here](#there)") == ["y/z.md"]
