"""Prints what programs need on machines that are not there: FLOP, bytes, kernels, memory.

python -m benchmarks.compiled --config=ffhq128 --target h100 v100x8 --programs train decode

It needs the compilers that `diffae plan` needs.
"""

import argparse

from diffae_jax.cli.plan import figures
from diffae_jax.cli.train import parse
from diffae_jax.plan.compiling import PROGRAMS
from diffae_jax.plan.planning import needs_of
from diffae_jax.plan.targets import find_target
from diffae_jax.runtime.console import quantity

COLUMNS = ("config", "target", "program", "batch", "FLOP", "bytes moved", "kernels", "memory", "compiled in")


def main() -> None:
    """Prints a row for each config, target and program. Numbers are those of one device."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", action="append", help="a config; repeat it for several (default: digits)")
    parser.add_argument("--target", nargs="+", default=["h100"], help="machines, as for diffae plan")
    parser.add_argument("--programs", nargs="+", choices=PROGRAMS, default=["train", "decode"])
    arguments, overrides = parser.parse_known_args()
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    for name in arguments.config or ["digits"]:
        config = parse([f"--config={name}", *overrides]).config
        for target in arguments.target:
            for need in needs_of(config, find_target(target), arguments.programs):
                row = figures(config, need)
                cells = (
                    name,
                    target,
                    need.program,
                    f"{row['batch']:,}",
                    quantity(row["flops"], ""),
                    quantity(row["bytes"], "B"),
                    f"{row['kernels']:,}",
                    f"{row['memory'] / 2**30:.2f} GiB",
                    f"{row['compile_seconds']:.0f} s",
                )
                print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
