"""Runs the benchmarks of the compiled programs and joins them into one table.

python -m benchmarks.report --config=digits --config=ffhq64 --config.train.batch_size=4

Each benchmark runs in a process of its own. The rows of a benchmark are printed by its command,
which is named on stderr.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.measure import Measurement, show

BENCHMARKS = ("train_step", "prior", "encode", "sampling")
OTHERS = ("against_torch",)  # which need more than the package


def main() -> None:
    """Prints one table with the rows of all benchmarks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--benchmarks", nargs="+", choices=(*BENCHMARKS, *OTHERS), default=BENCHMARKS)
    parser.add_argument("--json", type=Path, help="also write all figures to this file")
    arguments, others = parser.parse_known_args()
    show((row for name in arguments.benchmarks for row in rows_of(name, others)), arguments.json)


def rows_of(name: str, flags: list[str]) -> Iterator[Measurement]:
    """Runs a benchmark and yields its rows."""
    print(f"python -m benchmarks.{name} {' '.join(flags)}", file=sys.stderr)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "figures.json"
        command = [sys.executable, "-m", f"benchmarks.{name}", *flags, "--json", str(file)]
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
        yield from map(Measurement.of, json.loads(file.read_text()))


if __name__ == "__main__":
    main()
