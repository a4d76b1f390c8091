"""Run fuzz targets.

    python -m fuzz NAME [--executions N | --seconds S] [--jobs J] [--seed S] [--engine E]
    python -m fuzz NAME --input HEX       # one input: how a finding is run again
    python -m fuzz smoke                  # every target for a second or two; for every change
    python -m fuzz all --executions N     # one target after the other

The engine `random` needs nothing installed and gives the same inputs for the same seed; it knows
the shape of each input (`mutate.py`). The engine `atheris` (the `fuzz` extra, on Linux) is guided
by coverage. Exit code 1 is a finding.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from easyremote.wire import buffer
from easyremote.wire.settings import KIB

from . import guided
from .engine import Engine, Finding, Report, judge, progress, say
from .nodes import watch_log
from .targets import TARGETS

CORPUS = Path(__file__).parent / "corpus"
SMOKE_S = 1.5
SECONDS_DEFAULT = 60.0
TELL_EVERY_S = 10.0


def corpus(name: str) -> list[bytes]:
    """Return the inputs of a target that are kept: each found something once."""
    path = CORPUS / f"{name}.txt"
    if not path.is_file():
        return []
    lines = path.read_text(encoding="ascii").splitlines()
    return [bytes.fromhex(line) for line in lines if line and not line.startswith("#")]


def found(name: str, data: bytes, what: str) -> int:
    """Tell a finding, and the one command that shows it again."""
    say(f"FOUND in {name}: {what.rstrip()}")
    say(f"input: {data.hex()}")
    say(f"replay: {Path(sys.executable).name} -m fuzz {name} --input {data.hex()}")
    return 1


def summary(name: str, report: Report) -> str:
    """Return a run in one line."""
    rate = report.executions / max(report.cpu_s, 1e-9)
    return (
        f"{name:13} {report.executions:>11,} executions in {report.seconds:7.1f} s, "
        f"{rate:>8,.0f} per s of CPU, slowest {report.slowest_s * 1e3:5.1f} ms, "
        f"memory {report.memory_mib:3.0f} MiB, features {report.features:,}"
    )


def fuzz(name: str, options: argparse.Namespace, seconds: float | None) -> int:
    """Run one target with the random engine; return the exit code."""
    seed = f"{name}/{options.seed}/{options.job}"
    engine = Engine(TARGETS[name], seed, corpus(name))
    try:
        report = engine.run(options.executions, seconds, progress(name, TELL_EVERY_S))
    except Finding as finding:
        say(f"{name}: seed {options.seed}, job {options.job}, execution {finding.execution:,}")
        return found(name, finding.data, finding.what)
    say(summary(name, report))
    return 0


def in_parallel(name: str, options: argparse.Namespace) -> int:
    """Run one target in several processes, each with inputs and executions of its own."""
    running = []
    for job in range(options.jobs):
        command = [sys.executable, "-m", "fuzz", name, "--seed", str(options.seed)]
        command += ["--engine", "random", "--job", str(job)]
        if options.executions is not None:
            share = options.executions // options.jobs + (job < options.executions % options.jobs)
            command += ["--executions", str(share)]
        if options.seconds is not None:
            command += ["--seconds", str(options.seconds)]
        running.append(subprocess.Popen(command))  # noqa: S603 - ourselves
    return max(process.wait() for process in running)


def replay(name: str, text: str) -> int:
    """Run one input."""
    data = bytes.fromhex(text)
    what = judge(TARGETS[name], data)
    if what is not None:
        return found(name, data, what)
    say(f"{name}: nothing is wrong with this input of {len(data)} bytes")
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and fuzz; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m fuzz", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("name", choices=[*TARGETS, "all", "smoke"])
    parser.add_argument("--executions", type=int, help="exactly so many")
    parser.add_argument("--seconds", type=float, help=f"so long (default {SECONDS_DEFAULT:g})")
    parser.add_argument("--jobs", type=int, default=1, help="processes that share the executions")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--engine", choices=["random", "atheris"], default="random")
    parser.add_argument("--input", metavar="HEX", help="run this input alone")
    parser.add_argument("--job", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    names = list(TARGETS) if options.name in ("all", "smoke") else [options.name]
    if options.input is not None:
        return replay(names[0], options.input)
    if options.executions is None and options.seconds is None:
        options.seconds = SMOKE_S if options.name == "smoke" else SECONDS_DEFAULT
    if options.engine == "atheris":
        if not guided.available():
            parser.error("atheris is not installed; pip install 'easyremote[fuzz]' (Linux)")
        guided.run(
            names[0], TARGETS[names[0]], corpus(names[0]), executions=options.executions,
            seconds=options.seconds, seed=options.seed,
        )  # fmt: skip
    if options.jobs > 1:
        return max(in_parallel(name, options) for name in names)
    return max(fuzz(name, options, options.seconds) for name in names)


def prepare() -> None:
    """Make this process one for fuzzing alone: every line of the log is checked, none printed.

    The receive buffers become as small as the limits of the targets, in proportion: they are moved
    together often, and cost little to make.
    """
    watch_log()
    buffer.SIZE, buffer.SIZE_GREETING = 8 * KIB, 4 * KIB


if __name__ == "__main__":
    prepare()
    sys.exit(main())
