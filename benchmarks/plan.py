"""Compares plans with measurements on the device of this machine.

    python -m benchmarks.plan ffhq64 ffhq128 digits --programs=train,decode

For each config and program it prints predicted and measured memory and time, the throughput, and
how long compiling took. All programs are first compiled at the same time, then measured one after
another, each in a process of its own.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from pathlib import Path

COLUMNS = "{:<28}{:>10}{:>10}{:>8}{:>10}{:>10}{:>8}{:>12}{:>10}{:>10}{:>9}"


def main() -> None:
    """Compiles all programs, measures them one after another and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="*", default=["digits"], help="configs, optionally as CONFIG,KEY=VALUE,...")
    parser.add_argument("--programs", default="train", help="out of train,prior,encode,invert,decode,sample")
    parser.add_argument("--seconds", type=float, default=10, help="how long to time each program")
    parser.add_argument("--json", help="a file for the results")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(measure(*json.loads(arguments.child))))
        return
    jobs = [(config, program) for config in arguments.configs for program in arguments.programs.split(",")]
    with tempfile.TemporaryDirectory() as cache:
        environment = os.environ | {
            "JAX_COMPILATION_CACHE_DIR": cache,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        }

        def child(config: str, program: str, seconds: float) -> dict:
            command = [sys.executable, "-m", "benchmarks.plan", "--child", json.dumps([config, program, seconds])]
            done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False)
            return json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else {}

        with ThreadPoolExecutor(max(1, (os.cpu_count() or 1) // 2)) as pool:
            compiled = list(pool.map(lambda job: child(*job, 0), jobs))
        print(
            COLUMNS.format(
                "config, program",
                "GiB plan",
                "GiB",
                "error",
                "ms plan",
                "ms",
                "error",
                "images/s",
                "TFLOP/s",
                "compile s",
                "kernels",
            )
        )
        results = []
        for (config, program), first in zip(jobs, compiled, strict=True):
            row = child(config, program, arguments.seconds)
            if not row or not first:
                print(f"{config}, {program}: failed")
                continue
            row["compile_seconds"] = first["compile_seconds"]
            results.append(row)
            print(describe(row), flush=True)
    print(f"{results[0]['kind']}, jax {results[0]['jax']}" if results else "no result")
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(results, indent=1))


def describe(row: dict) -> str:
    """Formats a result as a line of the table."""

    def number(value, digits=2):
        return "-" if value is None else f"{value:.{digits}f}"

    def error(plan, real):
        return "-" if plan is None or not real else f"{plan / real - 1:+.0%}"

    return COLUMNS.format(
        f"{row['config']}, {row['program']}",
        number(row["memory"] / 2**30),
        number(row["peak_memory"] and row["peak_memory"] / 2**30),
        error(row["memory"], row["peak_memory"]),
        number(row["seconds"] and row["seconds"] * 1e3),
        number(row["median"] * 1e3),
        error(row["seconds"], row["median"]),
        number(row["batch"] / row["median"], 1),
        number(row["flops"] / row["median"] / 1e12, 1),
        number(row["compile_seconds"], 1),
        row["kernels"],
    )


def measure(name: str, program: str, seconds: float) -> dict:
    """Compiles a program for this machine, runs it on random numbers and returns all figures."""
    import jax

    from benchmarks.measure import time_calls
    from diffae_jax.cli.plan import figures
    from diffae_jax.config import from_file
    from diffae_jax.plan import compiling
    from diffae_jax.plan.planning import need_of
    from diffae_jax.runtime.precision import resolve_precision

    file, *overrides = name.split(",")
    config = from_file(file)
    for override in overrides:
        key, _, value = override.partition("=")
        config.update_from_flattened_dict({key: json.loads(value)})
    config.train.precision = resolve_precision(config.train.precision)
    mesh = compiling.target_mesh(None)
    print(f"{name}, {program}", file=sys.stderr)
    with redirect_stdout(sys.stderr):
        compiled, found = compiling.analyze(config, mesh, program)
    need = need_of(program, found, None)
    row = dict(config=name, kind=need.kind, jax=jax.__version__, **figures(config, need))
    if not seconds:
        return row
    times = time_calls(compiled, donates=program in ("train", "prior"), seconds=seconds)
    stats = mesh.devices.flat[0].memory_stats() or {}
    return row | dict(
        median=statistics.median(times), fastest=times[0], slowest=times[-1], peak_memory=stats.get("peak_bytes_in_use")
    )


if __name__ == "__main__":
    main()
