"""What every config needs on every machine, as a table in Markdown: `launch/plans.md`.

    python -m benchmarks.plan_table > launch/plans.md

It compiles each program with the compilers of `diffae plan`: on two cores, minutes for each line
of a GPU and a quarter of an hour for each line of a TPU. Compiled programs are cached, so an
interrupted command continues where it was.
"""

import argparse
import sys

from diffae_jax.cli.plan import figures
from diffae_jax.cli.train import parse
from diffae_jax.plan.planning import needs_of
from diffae_jax.plan.targets import Target, find_target
from diffae_jax.runtime.errors import UserError

CONFIGS = ("digits", "celeba64", "ffhq64", "ffhq128_48m", "ffhq128", "ffhq256")
TARGETS = ("t4", "rtx4090", "v100x8", "v100-32x8", "a100x8", "h100x8", "h200", "v4-8", "v5e-8", "v5p-8", "v6e-16")
PROGRAMS = ("train", "decode", "sample")

# microbatches with which training fits, by target and config: what `diffae plan --fit` prints
PARTS = {
    "t4": dict(celeba64=4, ffhq64=4, ffhq128_48m=8, ffhq128=8, ffhq256=16),
    "rtx4090": dict(ffhq128_48m=2, ffhq128=2, ffhq256=8),
}

HEAD = """\
# What every config needs on every machine

`python -m benchmarks.plan_table > launch/plans.md` makes this page, with the compilers of
[`diffae plan`](../docs/plan.md). Each row is `diffae plan CONFIG --target=TARGET --programs train
decode sample`. "In 4 parts" stands for the flag `--config.execution.num_microbatches=4`.

- Training takes the batch size of the config. Decoding takes a full batch with 100 steps, and 20
  for the digits. Sampling also draws z with as many steps.
- Speeds are predictions that no measurement has confirmed. Compare machines, and expect less.
- (1): more than JAX uses by default. Set `XLA_PYTHON_CLIENT_MEM_FRACTION=0.92`.
"""
COLUMNS = (
    "config",
    "training: memory of a device",
    "images/s",
    "device-hours",
    "exchanged in a step",
    "decoding: memory",
    "images/s",
    "sampling: memory",
    "images/s",
)


def row(name: str, target: Target) -> list[str]:
    """Returns the cells of a line.

    Raises:
        UserError: The compiler of the target is missing or refuses a program.
    """
    parts = PARTS.get(target.name, {}).get(name, 1)
    config = parse([f"--config={name}", f"--config.execution.num_microbatches={parts}"]).config
    needs = needs_of(config, target, PROGRAMS, lambda program, seconds: note(f"{name} {program}: {seconds:.0f} s"))
    train, decode, sample = (figures(config, need) for need in needs)
    hours = config.train.num_images / train["images_per_second"] / 3600 * target.num_devices
    count = sum(collective["times"] for collective in train["collectives"])
    moved = sum(collective["bytes"] * collective["times"] for collective in train["collectives"])
    return [
        f"`{name}`" if parts == 1 else f"`{name}` in {parts} parts",
        memory(train, target),
        f"{train['images_per_second']:,.0f}",
        f"{hours:,.1f}" if hours < 10 else f"{hours:,.0f}",
        f"{count} of {moved / 1e6:,.0f} MB" if count else "none",
        memory(decode, target),
        f"{decode['images_per_second']:,.1f}",
        memory(sample, target),
        f"{sample['images_per_second']:,.1f}",
    ]


def memory(figure: dict, target: Target) -> str:
    """Returns the memory of a program, and what it asks of the reader."""
    chip = target.chip
    text = f"{figure['memory'] / 2**30:.2f} GiB"
    if figure["memory"] <= chip.usable:
        return text
    return text + (" (1)" if figure["memory"] <= chip.most_usable else " (too much)")


def note(text: str) -> None:
    """Prints a line of progress, apart from the table."""
    print(text, file=sys.stderr, flush=True)


def line(cells: list[str] | tuple[str, ...]) -> str:
    """Returns a row of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Prints the table of each target."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--targets", nargs="+", default=TARGETS, choices=TARGETS)
    parser.add_argument("--configs", nargs="+", default=CONFIGS, choices=CONFIGS)
    arguments = parser.parse_args()
    print(HEAD, end="")
    for name in arguments.targets:
        target = find_target(name)
        print(f"\n## `--target={name}`\n\n{target.num_devices} x {target.chip.kind}, {target.chip.precision}.", end=" ")
        print(f"JAX uses {target.chip.usable / 2**30:.2f} GiB of each.\n")
        print(line(COLUMNS), line(["---"] * len(COLUMNS)), sep="\n")
        for config in arguments.configs:
            try:
                print(line(row(config, target)), flush=True)
            except UserError as error:
                note(f"{name} {config}: {error}")
                print(line([f"`{config}`", str(error)] + [""] * (len(COLUMNS) - 2)), flush=True)


if __name__ == "__main__":
    main()
