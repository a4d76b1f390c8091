"""Run fuzz targets: `python -m fuzz NAME [--seconds S] [--seed N]`, `python -m fuzz smoke`.

Theory. With atheris installed (the `fuzz` extra, Linux) the inputs are guided by coverage. Without
it, or with `--engine random`, they are mutated at random from small valid inputs and from the
corpus, which needs nothing and reproduces exactly from its seed.
"""

from __future__ import annotations

import argparse
import importlib.util
import random
import resource
import sys
import time
from pathlib import Path

from fuzz.targets import TARGETS, seeds

CORPUS = Path(__file__).parent / "corpus"
SLOW_S = 0.1
MEMORY_MIB_MAX = 512


def mutate(rng: random.Random, data: bytes) -> bytes:
    """Return `data` changed in a few places: bits, cuts, repeats, lengths."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 6)):
        at = rng.randrange(len(out) + 1)
        what = rng.randrange(6)
        if what == 0 and out:
            out[at % len(out)] ^= 1 << rng.randrange(8)
        elif what == 1:
            out[at:at] = rng.randbytes(rng.randint(1, 8))
        elif what == 2:
            del out[at : at + rng.randint(1, 8)]
        elif what == 3 and out:
            out[at % len(out)] = rng.choice([0, 1, 0x1F, 0x7F, 0x80, 0x9F, 0xBF, 0xDB, 0xFB, 0xFF])
        elif what == 4:
            out[at:at] = out[: rng.randint(0, len(out))]
        else:
            out[at : at + 4] = rng.randint(0, 300_000).to_bytes(4, "big")
    return bytes(out[:4096])


def run_random(name: str, seconds: float, seed: int) -> int:
    """Run one target on random mutations; return the number of executions.

    Raises:
        SystemExit: The target raised, was too slow, or took too much memory.
    """
    rng, target = random.Random(seed), TARGETS[name]
    folder = CORPUS / name
    pool = seeds(name) + [f.read_bytes() for f in sorted(folder.glob("*")) if folder.is_dir()]
    until, count, slowest = time.monotonic() + seconds, 0, 0.0
    while time.monotonic() < until:
        data = mutate(rng, rng.choice(pool)) if count >= len(pool) else pool[count]
        begin = time.perf_counter()
        try:
            target(data)
        except BaseException:
            print(f"\n{name}: seed {seed}, execution {count}, input {data.hex()}", file=sys.stderr)
            raise
        slowest = max(slowest, time.perf_counter() - begin)
        count += 1
    memory_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{name:14} {count:>9,} executions in {seconds:g} s, slowest {slowest * 1e3:.1f} ms, "
        f"memory {memory_mib:.0f} MiB"
    )
    if memory_mib > MEMORY_MIB_MAX:
        raise SystemExit(f"{name} took more than {MEMORY_MIB_MAX} MiB")
    return count


def run_atheris(name: str, seconds: float, seed: int) -> None:
    """Run one target under atheris; ends the process."""
    import atheris

    folder = CORPUS / name
    folder.mkdir(parents=True, exist_ok=True)
    if not any(folder.iterdir()):
        for index, data in enumerate(seeds(name)):
            (folder / f"seed-{index}").write_bytes(data)
    atheris.instrument_all()
    arguments = [
        sys.argv[0],
        f"-max_total_time={int(seconds)}",
        f"-seed={seed}",
        "-max_len=4096",
        f"-timeout={max(1, int(SLOW_S * 10))}",
        f"-rss_limit_mb={MEMORY_MIB_MAX}",
    ]
    atheris.Setup([*arguments, str(folder)], TARGETS[name])
    atheris.Fuzz()


def main() -> None:
    """Parse the command line and fuzz."""
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("name", choices=[*TARGETS, "all", "smoke"], help="target; smoke: all, 2 s")
    parser.add_argument("--seconds", type=float, default=None, help="time per target (default 60)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--engine", choices=["auto", "atheris", "random"], default="auto")
    options = parser.parse_args()
    seconds = options.seconds or (2.0 if options.name == "smoke" else 60.0)
    names = list(TARGETS) if options.name in ("all", "smoke") else [options.name]
    guided = options.engine == "atheris" or (
        options.engine == "auto" and len(names) == 1 and importlib.util.find_spec("atheris")
    )
    if guided:
        run_atheris(names[0], seconds, options.seed)
        return
    for name in names:
        run_random(name, seconds, options.seed)


if __name__ == "__main__":
    main()
