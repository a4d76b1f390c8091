"""What is shipped: the files of wheel and sdist, by rule, and the metadata that users rely on."""

from __future__ import annotations

import email.message
import email.parser
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path, PurePosixPath

import pytest

from easyremote import __version__

from .test_tidy import ROOT, sources

PURE = ("wire", "scheduler")
BUILD_S = 120

pytestmark = pytest.mark.slow


def build(target: str, source: Path, out: Path) -> Path:
    """Build `target` (wheel or sdist) of the project in `source` as pip would; return the file."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(out)]
    done = subprocess.run(
        command, cwd=source, capture_output=True, text=True, timeout=BUILD_S, check=False
    )
    assert done.returncode == 0, done.stderr
    (path,) = out.iterdir()
    return path


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel of this checkout."""
    return zipfile.ZipFile(build("wheel", ROOT, tmp_path_factory.mktemp("wheel")))


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist of this checkout, unpacked."""
    folder = tmp_path_factory.mktemp("sdist")
    with tarfile.open(build("sdist", ROOT, folder)) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    return unpacked


def metadata(wheel: zipfile.ZipFile) -> email.message.Message:
    text = wheel.read(f"easyremote-{__version__}.dist-info/METADATA").decode()
    return email.parser.Parser().parsestr(text)


def test_wheel_holds_every_module_below_easyremote(wheel: zipfile.ZipFile) -> None:
    """Every module is there once, wire and scheduler under the names they are imported by."""
    expected = set(sources("easyremote")) | {f"easyremote/{n}" for n in sources(*PURE)}

    actual = {name for name in wheel.namelist() if name.endswith(".py")}
    assert expected == actual
    assert len(wheel.namelist()) == len(set(wheel.namelist()))


def test_wheel_owns_one_import_name(wheel: zipfile.ZipFile) -> None:
    """Installing EasyRemote never takes `wire`, `scheduler` or `tests` from anybody."""
    tops = {PurePosixPath(name).parts[0] for name in wheel.namelist()}

    assert tops == {"easyremote", f"easyremote-{__version__}.dist-info"}


def test_wheel_holds_nothing_that_is_not_for_users(wheel: zipfile.ZipFile) -> None:
    """No caches, no local files: only code, its documents, the typing marker and page files."""
    kinds = {
        PurePosixPath(name).suffix
        for name in wheel.namelist()
        if name.startswith("easyremote/") and not name.endswith("/py.typed")
    }

    assert kinds <= {".py", ".md", ".html", ".css", ".js", ".svg"}
    assert "easyremote/py.typed" in wheel.namelist()
    assert "easyremote/wire/README.md" in wheel.namelist()


def test_wheel_says_what_pip_needs(wheel: zipfile.ZipFile) -> None:
    """Version, licence, Python, the console script and the nine dependencies are as documented."""
    info = metadata(wheel)
    entry_points = wheel.read(f"easyremote-{__version__}.dist-info/entry_points.txt").decode()
    needs = [n for n in info.get_all("Requires-Dist", []) if "extra ==" not in n]

    assert info["Version"] == __version__
    assert info["License-Expression"] == "Apache-2.0"
    assert info["Requires-Python"] == ">=3.11"
    assert f"easyremote-{__version__}.dist-info/licenses/LICENSE" in wheel.namelist()
    assert "easyremote = easyremote.cli.main:main" in entry_points.splitlines()
    assert sorted(need.partition(">=")[0] for need in needs) == [
        "cbor2",
        "click",
        "cloudpickle",
        "cryptography",
        "numpy",
        "nvidia-ml-py",
        "psutil",
        "rich",
        "trio",
    ]
    assert {"http", "test", "fuzz", "bench", "dev"} == set(info.get_all("Provides-Extra", []))


def test_sdist_builds_the_same_wheel(sdist: Path, wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    """Whoever builds from the sdist, without symlinks, gets the same files."""
    again = zipfile.ZipFile(build("wheel", sdist, tmp_path))

    assert sorted(again.namelist()) == sorted(wheel.namelist())
    assert not (sdist / "easyremote" / "wire").exists()


def test_sdist_holds_the_tests(sdist: Path) -> None:
    """A packager finds the tests, the licence and the specification."""
    shipped = {p.relative_to(sdist).as_posix() for p in sdist.rglob("*") if p.is_file()}

    assert set(sources("tests", "fuzz", "benchmarks")) <= shipped
    assert {"LICENSE", "README.md", "pyproject.toml", "wire/README.md"} <= shipped


@pytest.mark.parametrize("name", PURE)
def test_pure_folders_refuse_to_be_packages_of_their_own(name: str) -> None:
    """`import wire` in a checkout says what to import instead of making a second copy."""
    command = [sys.executable, "-c", f"import {name}"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=BUILD_S, check=False
    )

    assert done.returncode == 1
    assert f"ImportError: import easyremote.{name}" in done.stderr


@pytest.mark.parametrize("name", PURE)
def test_bare_checkout_imports(name: str) -> None:
    """A clone works before it is installed: the symlinks give the names."""
    code = f"import easyremote.{name} as m; print(m.__name__, m.__file__)"
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=BUILD_S, check=False
    )

    assert done.stdout.split() == [
        f"easyremote.{name}",
        str(ROOT / "easyremote" / name / "__init__.py"),
    ]
