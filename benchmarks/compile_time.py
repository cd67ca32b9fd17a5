"""Measures how long compiling takes, without and with the compilation cache.

python -m benchmarks.compile_time --config=ffhq128 --programs train decode

Each program is compiled in two processes, which share a new cache. `compiled again` counts what
the second process did not find in it.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile

from diffae_jax.plan.compiling import PROGRAMS

COLUMNS = ("config", "program", "first start", "second start", "compiled again")


def main() -> None:
    """Prints a row for each config and program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", action="append", help="a config; repeat it for several (default: digits)")
    parser.add_argument("--programs", nargs="+", choices=PROGRAMS, default=["train", "decode"])
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments, overrides = parser.parse_known_args()
    if arguments.child:
        compile_once(*arguments.child, overrides)
        return
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    for name in arguments.config or ["digits"]:
        for program in arguments.programs:
            with tempfile.TemporaryDirectory() as cache:
                (first, _), (second, misses) = (in_a_process(name, program, overrides, cache) for _ in range(2))
            print(f"| {name} | {program} | {first:.1f} s | {second:.1f} s | {misses} |", flush=True)


def in_a_process(name: str, program: str, overrides: list[str], cache: str) -> tuple[float, int]:
    """Returns the seconds that compiling takes in a new process, and the misses of the cache."""
    settings = {"JAX_COMPILATION_CACHE_DIR": cache, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    command = [sys.executable, "-m", "benchmarks.compile_time", "--child", name, program, *overrides]
    done = subprocess.run(command, env=os.environ | settings, stdout=subprocess.PIPE, text=True, check=True)
    return tuple(json.loads(done.stdout.splitlines()[-1]))


def compile_once(name: str, program: str, overrides: list[str]) -> None:
    """Prints the seconds that compiling takes, and how often the cache missed."""
    import jax

    from benchmarks.measure import parser, read
    from diffae_jax.plan.compiling import analyze
    from diffae_jax.runtime.sharding import make_mesh

    misses = []
    _, configs = read(parser(None), [f"--config={name}", *overrides])
    jax.monitoring.register_event_listener(lambda event, **_: misses.append(event) if "cache_miss" in event else None)
    _, found = analyze(configs[name], make_mesh(), program)
    print(json.dumps([found["compile_seconds"], len(misses)]))


if __name__ == "__main__":
    main()
