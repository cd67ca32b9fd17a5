"""diffae plan: what a config needs on a machine that need not be there."""

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffae_jax.cli.arguments import Parser
from diffae_jax.runtime.errors import UserError

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from diffae_jax.plan.planning import Need
    from diffae_jax.plan.targets import Target

HELP = "predict memory, time and network traffic of a config on a GPU or TPU, without having one"
EXAMPLES = (
    "ffhq128 --target=h100x8",
    "ffhq256 --target=v100x8 --fit",
    "ffhq64 --target=v5e-16 --config.train.batch_size=256 --programs train sample",
)
TAKES_KEYS = True  # also flags such as --config.train.batch_size=64

COLUMNS = "  {:<8}{:>8}{:>11}{:>7}{:>10}{:>10}{:>9}{:>22}{:>12}{:>12}"
HEADER = COLUMNS.format(
    "program", "batch", "memory", "of it", "FLOP", "traffic", "kernels", "collectives", "time", "images/s"
)


def add_arguments(parser: Parser) -> None:
    """Adds the arguments."""
    parser.add_argument("config", metavar="CONFIG", help="a config such as ffhq128, or a Python file with get_config")
    parser.add_argument(
        "--target",
        metavar="MACHINE",
        help="such as t4, v100x8, v100-32x8, a100x8, rtx4090, h100x8, h200, v4-8, v5e-16, v5p-8, v6e-16 or 2xv5e-16 "
        "(two slices); default: the devices of this machine",
    )
    parser.add_argument(
        "--programs", nargs="+", metavar="PROGRAM", help="out of train, prior, encode, invert, decode, sample"
    )
    parser.add_argument("--fit", action="store_true", help="find settings with which training fits, and print them")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to a file")


def run(arguments: argparse.Namespace) -> None:
    """Prints a plan."""
    from diffae_jax.cli.train import parse

    config = parse([f"--config={arguments.config}", *arguments.overrides]).config
    plan(config, arguments.target, arguments.programs, fit_memory=arguments.fit, file=arguments.json)


def plan(
    config: "ConfigDict",
    target_name: str | None,
    program_names: list[str] | None = None,
    *,
    fit_memory: bool = False,
    file: Path | None = None,
) -> None:
    """Prints what the programs of a config need, and optionally settings with which they fit.

    Raises UserError if the target or a program is unknown, or if the batch cannot be split over
    the devices. With `fit_memory`, it also does so if no settings fit.
    """
    from diffae_jax.plan.planning import needs_of, programs_of

    target = checked(config, target_name, program_names or ())
    if fit_memory:
        from diffae_jax.plan.fitting import with_settings

        if target is None:
            raise UserError("--fit needs --target=MACHINE, because it must know the memory of a device.")
        config = with_settings(config, _fitted(config, target))
    needs = needs_of(
        config,
        target,
        program_names or programs_of(config),
        lambda program, seconds: _say(f"compiled {program} in {seconds:.0f} s"),
    )
    for line in describe(config, target, needs):
        _say(line)
    if file is not None:
        file.write_text(json.dumps([figures(config, need) for need in needs], indent=1) + "\n")


def _say(line: str) -> None:
    """Prints a line without looking for devices: JAX would complain of those that are absent."""
    print(line, flush=True)


def checked(config: "ConfigDict", target_name: str | None, program_names: Sequence[str]) -> "Target | None":
    """Returns the target. Raises UserError for what `plan` refuses before it compiles."""
    from diffae_jax.config import check
    from diffae_jax.plan.planning import programs_of
    from diffae_jax.plan.targets import find_target
    from diffae_jax.runtime.sharding import check_batch_size

    check(config)
    target = None if target_name is None else find_target(target_name)
    known = programs_of(config)
    for name in program_names:
        if name not in known:
            raise UserError(f"{name!r} is not a program of {config.name}: choose from {', '.join(known)}.")
    if target is not None:
        batch_size, num_parts = config.train.batch_size, config.execution.num_microbatches
        check_batch_size("train.batch_size", batch_size, target.num_devices, num_parts)
    return target


def _fitted(config: "ConfigDict", target: "Target") -> dict[str, Any]:
    from diffae_jax.plan.fitting import fit, flags_of
    from diffae_jax.runtime.console import quantity

    def tried(settings, need):
        has = quantity(target.chip.usable, "B")
        fits = "fits" if need.memory <= target.chip.usable else "too much"
        _say(f"{quantity(need.memory, 'B'):>8} of {has}, {fits}: {flags_of(settings)}")

    settings, _ = fit(config, target, tried)
    if settings:
        _say(f"\nTraining fits with these flags:\n\n    {flags_of(settings)}\n")
    return settings


def describe(config: "ConfigDict", target: "Target | None", needs: list["Need"]) -> list[str]:
    """Returns the lines of a plan."""
    from diffae_jax.plan.planning import chip_of
    from diffae_jax.plan.roofline import assumptions
    from diffae_jax.runtime.console import duration, quantity
    from diffae_jax.training.loop import steps_of

    first = needs[0]
    chip = target.chip if target else chip_of(first.kind)
    precision = config.train.precision
    if precision == "auto":
        precision = chip.precision if chip else "the precision of the device"
    lines = [f"{config.name} on {first.num_devices} x {first.kind}, {precision}, {_parameters(config)}", "", HEADER]
    for need in needs:
        row = figures(config, need)
        share = f"{need.memory / chip.usable:.0%}" if chip else "-"
        seconds, speed = row["seconds"], row["images_per_second"]
        lines.append(
            COLUMNS.format(
                need.program,
                row["batch"],
                f"{need.memory / 2**30:.2f} GiB",
                share,
                quantity(need.contents.flops, ""),
                quantity(need.contents.bytes, "B"),
                f"{row['kernels']:,}",
                _collectives(need),
                "-" if seconds is None else f"{seconds * 1e3:,.1f} ms",
                "-" if speed is None else f"{speed:,.1f}",
            )
        )
    lines.append("")
    train = next((need for need in needs if need.program == "train"), None)
    if train and train.times:
        steps = steps_of(config.train.num_images, config.train.batch_size)
        seconds = steps * train.times.total
        hours = seconds / 3600 * train.num_devices
        lines.append(
            f"Training on {config.train.num_images:,} images: {steps:,} steps, {duration(seconds)}, "
            f"{hours:,.0f} device-hours."
        )
        shares = ((name, seconds / train.times.total) for name, seconds in dataclasses.asdict(train.times).items())
        lines.append("The time of a step: " + ", ".join(f"{share:.0%} {name}" for name, share in shares) + ".")
    if any(need.program != "train" for need in needs):
        lines.append(f"inference: {config.evaluation.num_code_steps} steps.")
    if chip:
        lines += _advice(config, target, needs, chip)
        lines.append(assumptions(chip))
    return lines


def _advice(config, target, needs, chip) -> list[str]:
    from diffae_jax.runtime.console import quantity

    too_large = [need for need in needs if need.memory > chip.usable]
    if not too_large:
        return [f"Everything fits into {quantity(chip.usable, 'B')} of a device."]
    lines = []
    for need in too_large:
        line = f"{need.program} does not fit: {quantity(need.memory, 'B')} of {quantity(chip.usable, 'B')}."
        if need.memory <= chip.most_usable:
            line += f" It does with XLA_PYTHON_CLIENT_MEM_FRACTION={chip.most_usable / chip.memory:.2f}."
        elif need.program == "train" and target is not None:
            line += f" To find settings that fit: diffae plan {config.name} --target={target.name} --fit"
        lines.append(line)
    return lines


def figures(config: "ConfigDict", need: "Need") -> dict[str, Any]:
    """Returns what a program needs, in plain numbers for one device and call."""
    from diffae_jax.plan.compiling import inference_batch

    batch = {"train": config.train.batch_size, "prior": config.prior.batch_size}.get(need.program)
    if batch is None:
        batch = inference_batch(config, need.num_devices)
    calls = config.execution.steps_per_dispatch if need.program == "prior" else 1
    return dict(
        program=need.program,
        batch=batch,
        memory=need.memory,
        state=need.state,
        flops=need.contents.flops,
        bytes=need.contents.bytes,
        kernels=sum(kernel.times for kernel in need.contents.kernels),
        host_transfers=need.contents.host_transfers,
        collectives=[dict(kind=c.kind, bytes=c.bytes, times=c.times) for c in need.contents.collectives],
        seconds=need.times and need.times.total,
        images_per_second=need.times and batch * calls / need.times.total,
        compile_seconds=need.compile_seconds,
    )


def _collectives(need: "Need") -> str:
    from diffae_jax.runtime.console import quantity

    moved = need.contents.collectives
    if not moved:
        return "none"
    return f"{sum(c.times for c in moved):,} of {quantity(sum(c.bytes * c.times for c in moved), 'B')}"


def _parameters(config: "ConfigDict") -> str:
    import jax

    from diffae_jax.models import abstract_model
    from diffae_jax.models.build import builder, prior_builder

    def count(build):
        return sum(leaf.size for leaf in jax.tree.leaves(abstract_model(build)[1]))

    text = f"{count(builder(config, 'float32')) / 1e6:.2f} M parameters"
    if config.model.z_dim is not None:
        text += f" and {count(prior_builder(config, 'float32')) / 1e6:.2f} M of the prior"
    return text
