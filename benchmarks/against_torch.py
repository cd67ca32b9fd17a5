"""Times our programs and those of the same network in PyTorch in turns, on the same weights.

    pip install --editable ".[bench]"
    python -m benchmarks.against_torch --config=ffhq64 --config.train.batch_size=4

First it checks that the loss and its gradients agree, then that each variant of PyTorch gives our
z and our images. All programs take batches of `train.batch_size`. The column "ours to this" is our
time relative to that of the row: below 1, ours is faster.
"""

import argparse
import dataclasses
import importlib.util
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from benchmarks import measure
from benchmarks.measure import LEAST_CALLS, WARM_UP, Measurement, compiled_here, repeated, seconds_of, timed
from diffae_jax.data.transforms import to_float
from diffae_jax.models.functional import Params
from diffae_jax.runtime.errors import UserError
from diffae_jax.runtime.sharding import check_batch_size, make_mesh
from diffae_jax.training.packing import Packing
from diffae_jax.training.state import TrainState, make_optimizer

if importlib.util.find_spec("torch") is None:
    sys.exit('PyTorch is not installed: run pip install --editable ".[bench]" in the folder of the project.')

import torch

from benchmarks.torch_agreement import TOLERANCES, agree, check_comparable, check_gradients, random_weights
from benchmarks.torch_programs import COMPILED, EAGER, Inputs, Variant, program

PROGRAMS = ("train", "encode", "decode")
VARIANTS = {
    "cpu": (EAGER, "channels-last", "compiled"),
    "cuda": (EAGER, "channels-last", "channels-last+bfloat16", "channels-last+bfloat16+compiled"),
}
PAUSE = 0.05  # seconds between calls: threads of the library that was called last may still spin


def main() -> None:
    """Prints a row for each config, program and library."""
    flags = measure.parser(__doc__)
    flags.add_argument("--programs", nargs="+", choices=PROGRAMS, default=PROGRAMS, help="what to time (default: all)")
    flags.add_argument(
        "--variants",
        nargs="+",
        type=Variant.parse,
        help="ways to run PyTorch: eager, or channels-last, bfloat16 and compiled, joined by + "
        f"(default: {' '.join(VARIANTS['cpu'])}; on a GPU: {' '.join(VARIANTS['cuda'])})",
    )
    flags.add_argument("--device", choices=VARIANTS, help="default: cuda if both libraries have it, otherwise cpu")
    flags.add_argument("--steps", type=int, default=10, help="steps of the decoder (default: 10)")
    try:
        arguments, configs = measure.read(flags)
        arguments.device, mesh = find_device(arguments.device)
        arguments.variants = arguments.variants or [Variant(name) for name in VARIANTS[arguments.device]]
        check_compiler(arguments)
        for config in configs.values():
            config.evaluation.num_code_steps = arguments.steps
            check_comparable(config)
            check_batch_size("train.batch_size", config.train.batch_size, mesh.size)
        measure.show(rows(arguments, configs, mesh), arguments.json)
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def find_device(name: str | None) -> tuple[str, Mesh]:
    """Returns what PyTorch calls the device, and a mesh of it: one GPU, or all cores.

    Args:
        name: "cpu", "cuda", or None for a GPU that both libraries can use, or else the CPU.

    Raises:
        UserError: A library cannot use the GPU.
    """
    usable = {"PyTorch": torch.cuda.is_available(), "JAX": jax.default_backend() == "gpu"}
    name = name or ("cuda" if all(usable.values()) else "cpu")
    if name == "cpu":
        return name, make_mesh(jax.devices("cpu"))
    if missing := [library for library, is_usable in usable.items() if not is_usable]:
        raise UserError(
            f"{' and '.join(missing)} cannot use a GPU here: install the CUDA version, or set --device=cpu."
        )
    torch.set_float32_matmul_precision("high")  # TF32, as in JAX
    return name, make_mesh(jax.devices()[:1])


def check_compiler(arguments: argparse.Namespace) -> None:
    """Raises UserError if torch.compile lacks the compiler that it needs for a CPU."""
    compiler = os.environ.get("CXX", "g++")
    compiled = any(variant.has(COMPILED) for variant in arguments.variants)
    if compiled and arguments.device == "cpu" and shutil.which(compiler) is None:
        raise UserError(
            f"torch.compile needs a C++ compiler, and {compiler} is missing: install g++, set CXX, or choose variants "
            f"without compiled, such as --variants eager channels-last."
        )


def rows(arguments: argparse.Namespace, configs: dict[str, ConfigDict], mesh: Mesh) -> Iterator[Measurement]:
    """Yields our row and those of PyTorch for each config, precision and program."""
    for name, config in configs.items():
        params = random_weights(config)
        check_gradients(config, params)
        for config.train.precision in sorted({variant.precision for variant in arguments.variants}, reverse=True):
            for what in arguments.programs:
                yield from in_turns(name, config, what, params, arguments, mesh)


def in_turns(
    name: str, config: ConfigDict, what: str, params: Params, arguments: argparse.Namespace, mesh: Mesh
) -> Iterator[Measurement]:
    """Times our program and those of PyTorch with the precision of the config, in turns.

    Raises:
        UserError: A program of PyTorch gives a different result.
    """
    inputs, device = Inputs.random(config, config.train.batch_size), arguments.device
    variants = [variant for variant in arguments.variants if variant.precision == config.train.precision]
    compiled, row = compiled_here(name, config, what, mesh, config.train.batch_size)
    ours = repeated(compiled, *arguments_of(what, config, params, inputs), donates=what == "train")
    theirs = [program(what, config, params, inputs, variant, device) for variant in variants]
    result = ours()
    first = []
    for variant, call in zip(variants, theirs, strict=True):
        began = time.perf_counter()
        their_result = call()
        first.append(time.perf_counter() - began)
        if what != "train":  # which draws its noise
            agree(f"{variant.name} {what}", result, their_result, TOLERANCES[variant.precision, device])
    our_seconds, *their_seconds = time_in_turns([ours, *theirs], arguments.seconds)
    yield timed(row, our_seconds, mesh.devices.flat[0])
    for variant, compile_seconds, seconds in zip(variants, first, their_seconds, strict=True):
        yield dataclasses.replace(
            row,
            software=f"PyTorch {torch.__version__} {variant.name}",
            num_devices=1,
            compile_seconds=compile_seconds if variant.has(COMPILED) else 0.0,
            memory=None,
            seconds=tuple(sorted(seconds)),
            ratios=tuple(sorted(a / b for a, b in zip(our_seconds, seconds, strict=True))),
        )


def arguments_of(what: str, config: ConfigDict, params: Params, inputs: Inputs) -> tuple[tuple, dict[str, Any]]:
    """Returns the positional and the named arguments of our program."""
    if what == "train":
        optimizer = make_optimizer(config.train.learning_rate, config.train.weight_decay)
        state = TrainState.create(Packing(params).pack(params), optimizer)
        return (state, {"image": inputs.images}, jax.random.key(0)), {}
    if what == "encode":
        return (), dict(params=params, images=to_float(inputs.images))
    return (), dict(params=params, x_T=inputs.x_T, z=inputs.z)


def time_in_turns(calls: Sequence[Callable[[], Any]], seconds: float) -> list[list[float]]:
    """Makes one call of each in a turn until the time is over, at least `LEAST_CALLS` turns.

    Args:
        calls: The functions. They wait for their results, and each was called once before.
        seconds: How long to time each.

    Returns:
        The seconds of each function, in the order of the turns.
    """
    turns: list[list[float]] = []
    end = math.inf
    while len(turns) < WARM_UP + LEAST_CALLS - 1 or time.perf_counter() < end:
        turns.append([])
        for call in calls:
            time.sleep(PAUSE)
            turns[-1].append(seconds_of(call))
        if len(turns) == WARM_UP - 1:
            end = time.perf_counter() + seconds * len(calls)
    return [list(times) for times in zip(*turns[WARM_UP - 1 :], strict=True)]


if __name__ == "__main__":
    main()
