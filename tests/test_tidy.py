"""Style that no linter checks, as tests: sizes, the two pure folders, pickle, symlinks, TODOs."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PURE = ("wire", "scheduler")
PRODUCT = (*PURE, "easyremote", "fuzz", "benchmarks")
EVERYTHING = (*PRODUCT, "tests", "examples")

MODULE_LINES_MAX = 450
FUNCTION_LINES_MAX = 60
COLUMNS_MAX = 100

IMPURE = frozenset(
    [
        "asyncio",
        "builtins",
        "concurrent",
        "multiprocessing",
        "os",
        "pathlib",
        "random",
        "secrets",
        "select",
        "selectors",
        "signal",
        "socket",
        "ssl",
        "subprocess",
        "sys",
        "threading",
        "time",
        "trio",
    ]
)
FOREIGN = {"wire": frozenset({"cbor2", "numpy"}), "scheduler": frozenset({"numpy"})}
"""What each pure folder may import besides itself and the standard library."""

THE_UNPICKLER = "easyremote/values/pickled.py"
PICKLES = frozenset({"pickle", "_pickle", "cloudpickle", "dill", "marshal", "shelve"})

_TODO = re.compile(r"\b(?:TODO|FIXME|XXX|HACK)\b(?!.*\bissue \d)")

Function = ast.FunctionDef | ast.AsyncFunctionDef


def sources(*folders: str) -> list[str]:
    """Paths, relative to the root, of the Python files below `folders`, symlinks left out."""
    found: list[str] = []
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            name = path.relative_to(ROOT)
            if not any((ROOT / parent).is_symlink() for parent in name.parents):
                found.append(name.as_posix())
    return found


def functions(tree: ast.AST) -> Iterator[Function]:
    for node in ast.walk(tree):
        if isinstance(node, Function):
            yield node


def imports(tree: ast.AST) -> Iterator[tuple[int, str, int]]:
    """Line, top-level name and level (0: absolute) of every import, wherever it stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name.partition(".")[0], 0
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, (node.module or "").partition(".")[0], node.level


def sizes(source: str) -> list[str]:
    """What is too long. A function is as long as its lines without the docstring."""
    lines = source.splitlines()
    found = [
        f"line {number} has {len(line)} columns"
        for number, line in enumerate(lines, 1)
        if len(line) > COLUMNS_MAX
    ]
    if len(lines) > MODULE_LINES_MAX:
        found.append(f"the module has {len(lines)} lines")
    for function in functions(ast.parse(source)):
        assert function.end_lineno is not None
        length = function.end_lineno - function.lineno + 1
        if ast.get_docstring(function) is not None:
            doc = function.body[0]
            assert doc.end_lineno is not None
            length -= doc.end_lineno - doc.lineno + 1
        if length > FUNCTION_LINES_MAX:
            found.append(f"{function.name} has {length} lines")
    return found


def impurities(source: str, foreign: frozenset[str]) -> list[str]:
    """What a pure folder must not contain: async code, the machine, and imports of ours."""
    tree = ast.parse(source)
    found = [
        f"line {node.lineno}: {type(node).__name__}"
        for node in ast.walk(tree)
        if isinstance(node, ast.AsyncFunctionDef | ast.Await | ast.AsyncFor | ast.AsyncWith)
    ]
    allowed = (sys.stdlib_module_names - IMPURE) | foreign
    for line, name, level in imports(tree):
        if level > 1:
            found.append(f"line {line}: imports from outside the folder")
        elif level == 0 and name not in allowed:
            found.append(f"line {line}: imports {name}")
    return found


@pytest.mark.parametrize("name", sources(*PRODUCT))
def test_a_module_is_short_enough_to_read(name: str) -> None:
    """No module, function or line of the product is longer than a reader can hold."""
    assert sizes((ROOT / name).read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("name", sources("tests", "examples"))
def test_lines_of_tests_fit(name: str) -> None:
    """Tests may be many, their lines are no wider than the product's."""
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()

    assert [line for line in lines if len(line) > COLUMNS_MAX] == []


@pytest.mark.parametrize("name", sources(*PURE))
def test_pure_folders_have_no_clock_no_io_and_only_relative_imports(name: str) -> None:
    """wire/ and scheduler/ could be lifted out as they stand, and run without a machine."""
    foreign = FOREIGN[name.partition("/")[0]]

    assert impurities((ROOT / name).read_text(encoding="utf-8"), foreign) == []


def test_one_module_knows_pickle() -> None:
    """Whoever wants to unpickle has to pass the door that decides who is trusted."""
    guilty = {
        name
        for name in sources(*PRODUCT)
        for _, module, level in imports(ast.parse((ROOT / name).read_text(encoding="utf-8")))
        if level == 0 and module in PICKLES
    }

    assert guilty == {THE_UNPICKLER}


@pytest.mark.parametrize("name", sources(*EVERYTHING))
def test_no_todo_without_an_issue(name: str) -> None:
    """Work that is left has a number under which it can be found."""
    if name == "tests/test_tidy.py":
        return
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()

    assert [line for line in lines if _TODO.search(line)] == []


@pytest.mark.parametrize("name", [n for n in sources("tests") if "/test_" in n])
def test_every_test_says_what_it_guarantees(name: str) -> None:
    """A test that fails years from now explains itself."""
    tree = ast.parse((ROOT / name).read_text(encoding="utf-8"))
    silent = [
        function.name
        for function in functions(tree)
        if function.name.startswith("test_") and not ast.get_docstring(function)
    ]

    assert silent == []


@pytest.mark.parametrize("name", PURE)
def test_symlinks_give_the_pure_folders_their_import_names(name: str) -> None:
    """In a checkout easyremote/wire is wire, by a link that survives a move of the checkout."""
    link = ROOT / "easyremote" / name

    assert link.is_symlink()
    assert link.readlink() == Path("..") / name
    assert link.resolve() == ROOT / name


def test_every_folder_of_code_is_type_checked() -> None:
    """A new folder of Python is known to mypy from its first day."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        checked = set(tomllib.load(file)["tool"]["mypy"]["files"])
    # wire and scheduler are checked below easyremote, under the names they are imported by.
    folders = {name.partition("/")[0] for name in sources(*EVERYTHING)} - {*PURE, "examples"}

    assert checked == folders


def test_planted_violations_are_found() -> None:
    """The checks of this file see what they are for."""
    body = "\n".join(["    x = 1"] * FUNCTION_LINES_MAX)
    long_function = f"def f():\n{body}\n"
    documented = f'def f():\n    """Say.\n\n    More.\n    """\n{body[: -len("    x = 1") - 1]}\n'
    long_module = "x = 1\n" * (MODULE_LINES_MAX + 1)
    none: frozenset[str] = frozenset()

    assert sizes(long_function) == ["f has 61 lines"]
    assert sizes(documented) == []
    assert sizes(long_module) == ["the module has 451 lines"]
    assert sizes("#" * 101) == ["line 1 has 101 columns"]
    assert impurities("def f():\n    import time\n", none) == ["line 2: imports time"]
    assert impurities("from os.path import join\n", none) == ["line 1: imports os"]
    assert impurities("import easyremote.wire\n", none) == ["line 1: imports easyremote"]
    assert impurities("import numpy\n", none) == ["line 1: imports numpy"]
    assert impurities("from ..errors import X\n", none) == [
        "line 1: imports from outside the folder"
    ]
    assert impurities("async def f(): pass\n", none) == ["line 1: AsyncFunctionDef"]
    assert impurities("import struct\nimport numpy\nfrom . import x\n", FOREIGN["wire"]) == []
    assert _TODO.search("# TODO: later")
    assert not _TODO.search("# TODO(issue 7): later")
