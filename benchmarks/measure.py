"""What the benchmarks of compiled programs share: settings, timing, figures and tables."""

import argparse
import dataclasses
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from diffae_jax.cli.train import parse
from diffae_jax.inference.batching import padded
from diffae_jax.plan.compiling import analyze, inference_batch
from diffae_jax.plan.planning import chip_of, need_of
from diffae_jax.runtime.console import quantity
from diffae_jax.runtime.cpu import speed_of_products, use_all_cores
from diffae_jax.runtime.precision import resolve_precision
from diffae_jax.runtime.sharding import make_mesh

WARM_UP = 2  # calls that are not timed
LEAST_CALLS = 3
SIZE_OF_PRODUCT = 2048  # rows of the matrices whose product measures the peak of an unknown device
OPERANDS = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}  # as `plan.targets` names them


@dataclasses.dataclass(frozen=True)
class Measurement:
    """A program, compiled and timed on the devices of this machine.

    Attributes:
        config: The config, as it was given.
        program: One of `plan.compiling.PROGRAMS`.
        batch: Samples in a call, over all devices.
        steps: Steps of a sampler in a call, or training steps in a call; otherwise 1.
        precision: What the networks compute in.
        device: What JAX calls a device.
        num_devices: Their number.
        jax: The version of JAX.
        compile_seconds: How long compiling took.
        flops: Of a call, over all devices.
        memory: Bytes that the program needs on a device, according to the compiler.
        peak_memory: Bytes that were in use at most, or None if the device does not say.
        seconds: Of each timed call, in ascending order.
        peak: FLOP/s of all devices at most.
        peak_source: Where `peak` is from.
    """

    config: str
    program: str
    batch: int
    steps: int
    precision: str
    device: str
    num_devices: int
    jax: str
    compile_seconds: float
    flops: float
    memory: int
    peak_memory: int | None
    seconds: tuple[float, ...]
    peak: float
    peak_source: str

    @classmethod
    def of(cls, figures: dict[str, Any]) -> "Measurement":
        """Returns the measurement whose figures are given."""
        names = (field.name for field in dataclasses.fields(cls))
        return cls(**{name: figures[name] for name in names} | {"seconds": tuple(figures["seconds"])})

    @property
    def median(self) -> float:
        """Seconds of a call."""
        return statistics.median(self.seconds)

    @property
    def samples_per_second(self) -> float:
        """Throughput: images or, for the prior, z."""
        samples = self.batch * (self.steps if self.program in ("train", "prior") else 1)
        return samples / self.median

    @property
    def share_of_peak(self) -> float:
        """FLOP/s relative to the peak."""
        return self.flops / self.median / self.peak

    def figures(self) -> dict[str, Any]:
        """Returns all figures as plain values."""
        derived = dict(median=self.median, samples_per_second=self.samples_per_second, share_of_peak=self.share_of_peak)
        return dataclasses.asdict(self) | derived


def parser(description: str | None) -> argparse.ArgumentParser:
    """Returns a parser with the flags of all benchmarks: see `read`."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--config", action="append", help="a config; repeat it for several (default: digits)")
    made.add_argument("--seconds", type=float, default=5, help="how long to time each program (default: 5)")
    made.add_argument("--json", type=Path, help="also write all figures to this file")
    return made


def read(made: argparse.ArgumentParser, argv: Sequence[str] | None = None) -> tuple[Any, dict[str, ConfigDict]]:
    """Parses flags, such as --config=ffhq64 and --config.train.batch_size=16.

    Returns:
        (the parsed flags, the configs by name). The configs have the precision of this machine.
        On a CPU, each core becomes a device, as in training.
    """
    arguments, overrides = made.parse_known_args(argv)
    if unknown := [flag for flag in overrides if not flag.startswith("--config.")]:
        made.error(f"unknown arguments: {' '.join(unknown)}")
    names = arguments.config or ["digits"]
    configs = {name: parse([f"--config={name}", *overrides]).config for name in names}
    use_all_cores(next(iter(configs.values())))
    for config in configs.values():
        config.train.precision = resolve_precision(config.train.precision)
    return arguments, configs


def measure(
    name: str, config: ConfigDict, program: str, seconds: float, *, mesh: Mesh | None = None, batch: int | None = None
) -> Measurement:
    """Compiles a program for this machine and times it on random numbers.

    Args:
        name: How the result names the config.
        config: The config. Samplers take `evaluation.num_code_steps` steps.
        program: One of `plan.compiling.PROGRAMS`.
        seconds: How long to time it. At least three calls are timed.
        mesh: The devices, by default all.
        batch: Samples in a call over all devices, by default a full batch. They are padded as
            `DiffAE` does. Training takes the batch size of the config.

    Returns:
        The measurement.
    """
    mesh = mesh or make_mesh()
    with redirect_stdout(sys.stderr):
        compiled, found = analyze(config, mesh, program, batch and padded(-(-batch // mesh.size)) * mesh.size)
    need, device = need_of(program, found, None), mesh.devices.flat[0]
    peak, source = peak_of(device, config.train.precision)
    times = time_calls(compiled, donates=program in ("train", "prior"), seconds=seconds)
    batches = {"train": config.train.batch_size, "prior": config.prior.batch_size}
    steps = {"prior": config.execution.steps_per_dispatch, "train": 1, "encode": 1}
    return Measurement(
        config=name,
        program=program,
        batch=batches.get(program) or batch or inference_batch(config, mesh.size),
        steps=steps.get(program, config.evaluation.num_code_steps),
        precision=config.train.precision,
        device=device.device_kind,
        num_devices=mesh.size,
        jax=jax.__version__,
        compile_seconds=need.compile_seconds,
        flops=need.contents.flops * mesh.size,
        memory=need.memory,
        peak_memory=(device.memory_stats() or {}).get("peak_bytes_in_use"),
        seconds=times,
        peak=peak * (mesh.size if device.platform != "cpu" else 1),  # the devices of a CPU share its cores
        peak_source=source,
    )


def time_calls(compiled: jax.stages.Compiled, *, donates: bool, seconds: float) -> tuple[float, ...]:
    """Calls a program until the time is over, at least `LEAST_CALLS` times after the warm-up.

    Args:
        compiled: The program.
        donates: Whether it takes a state, which it replaces, as its first argument.
        seconds: How long to time it.

    Returns:
        The seconds of each timed call, in ascending order. Each call waits for its result.
    """
    arguments, named = jax.tree.map(random_array, compiled.args_info)
    times: list[float] = []
    end = math.inf
    while len(times) < WARM_UP + LEAST_CALLS or time.perf_counter() < end:
        began = time.perf_counter()
        result = jax.block_until_ready(compiled(*arguments, **named))
        times.append(time.perf_counter() - began)
        if donates:
            arguments = (result[0], *arguments[1:])
        if len(times) == WARM_UP:
            end = time.perf_counter() + seconds
    return tuple(sorted(times[WARM_UP:]))


def random_array(info: Any) -> jax.Array:
    """Returns random numbers of a shape and type: processors are faster on zeros."""
    key = jax.random.key(math.prod(info.shape))
    if jax.dtypes.issubdtype(info.dtype, jax.dtypes.prng_key):
        return key
    if info.dtype == jnp.uint8:
        return jax.random.bits(key, info.shape, jnp.uint8)
    return jax.random.uniform(key, info.shape, maxval=0.05).astype(info.dtype)


def peak_of(device: jax.Device, precision: str) -> tuple[float, str]:
    """Returns the FLOP/s of a device at most, and where the number is from.

    It is that of the data sheet or, for an unknown device, of a product of two matrices.
    """
    chip = chip_of(device.device_kind)
    if chip is not None:
        return chip.peak[OPERANDS[precision]], "data sheet"
    return speed_of_products(device, precision, size=SIZE_OF_PRODUCT), "product of two matrices"


COLUMNS: dict[str, Callable[[Measurement], str]] = {
    "config": lambda m: m.config,
    "program": lambda m: m.program,
    "batch": lambda m: f"{m.batch:,}",
    "steps": lambda m: f"{m.steps:,}",
    "samples/s": lambda m: f"{m.samples_per_second:,.4g}",
    "ms a call": lambda m: f"{m.median * 1e3:,.1f}",
    "fastest to slowest": lambda m: f"{m.seconds[0] * 1e3:,.1f} to {m.seconds[-1] * 1e3:,.1f}",
    "FLOP/s": lambda m: quantity(m.flops / m.median, ""),
    "of the peak": lambda m: f"{m.share_of_peak:.0%}",
    "memory": lambda m: quantity(m.peak_memory or m.memory, "B"),
    "compiled in": lambda m: f"{m.compile_seconds:.1f} s",
}


def show(measurements: Iterable[Measurement], file: Path | None = None) -> None:
    """Prints each measurement as a row of a Markdown table as soon as it is there.

    Args:
        measurements: They may be made one by one, as they are asked for.
        file: Where to write all figures as JSON, or None.
    """
    made = []
    for measurement in measurements:
        if not made:
            print(f"{describe_machine(measurement)}\n\n| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
        print(f"| {' | '.join(cell(measurement) for cell in COLUMNS.values())} |", flush=True)
        made.append(measurement)
    if file is not None:
        file.write_text(json.dumps([measurement.figures() for measurement in made], indent=1) + "\n")


def describe_machine(measurement: Measurement) -> str:
    """Returns the devices and what their peak is, in a sentence."""
    m = measurement
    devices = f"{m.num_devices} x {m.device}, {m.precision}, JAX {m.jax}"
    return f"{devices}. Peak: {quantity(m.peak, 'FLOP/s')} ({m.peak_source})."
