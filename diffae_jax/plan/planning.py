"""Plans: what each program of a config needs on a target, from the cache or compiled now."""

import concurrent.futures
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from diffae_jax.plan import targets
from diffae_jax.plan.compiling import PROGRAMS, environment
from diffae_jax.plan.hlo import Collective, Contents, Kernel
from diffae_jax.plan.roofline import Times, predict_times
from diffae_jax.plan.targets import Chip, Target
from diffae_jax.runtime.checksums import hash_json
from diffae_jax.runtime.compilation import private_cache
from diffae_jax.runtime.errors import UserError, shown
from diffae_jax.runtime.gpu import installed_version
from diffae_jax.runtime.own_code import code_digest

RELEVANT = ("image_shape", "model", "train", "execution")  # sections that all programs depend on
IRRELEVANT = (
    *("num_images", "num_latents", "learning_rate", "learning_rate_schedule", "warmup_images", "warmup_latents"),
    *("weight_decay", "ema_decay", "ema_warmup", "max_grad_norm", "num_workers"),
)
COMPILERS = ("jax", "jaxlib", "libtpu", "jax-cuda12-pjrt", "jax-cuda12-plugin", "jax-cuda13-pjrt", "jax-cuda13-plugin")
MEMORY_OF_A_COMPILER = 5 * 2**30  # bytes


@dataclasses.dataclass(frozen=True)
class Need:
    """What one program needs on each device.

    Attributes:
        program: One of `compiling.PROGRAMS`.
        contents: Its kernels and collectives.
        state: Bytes of arguments and results: weights, optimizer state, batch.
        temporary: Bytes of activations and, on a TPU, of the program.
        times: Predicted seconds of a call, or None for a device without data.
        num_devices: Number of devices.
        kind: What JAX calls them.
        compile_seconds: How long the compiler took.
    """

    program: str
    contents: Contents
    state: int
    temporary: int
    times: Times | None
    num_devices: int
    kind: str
    compile_seconds: float

    @property
    def memory(self) -> int:
        """Bytes on a device."""
        return self.state + self.temporary


def programs_of(config: ConfigDict) -> tuple[str, ...]:
    """Returns the programs that a run of a config and its model use."""
    return PROGRAMS if config.model.z_dim is not None else ("train", "invert", "decode")


def needs_of(
    config: ConfigDict,
    target: Target | None,
    programs: Sequence[str],
    progress: Callable[[str, float], None] = lambda program, seconds: None,
) -> list[Need]:
    """Compiles programs of a config for a target, several at once, or reads them from the cache.

    Args:
        config: The config. `train.precision=auto` becomes what the target computes in.
        target: The target, or None for the devices of this machine.
        programs: Names out of `compiling.PROGRAMS`.
        progress: Called with the name and the seconds of each program that was compiled now.

    Returns:
        What each program needs.

    Raises:
        UserError: The compiler of the target is missing or refuses a program.
    """
    config = ConfigDict(config.to_dict())
    if target is not None:
        targets.check_compiler(target)
        if config.train.precision == "auto":
            config.train.precision = target.chip.precision

    def result(program: str) -> dict[str, Any]:
        path = _cached(config, target, program)
        if path is not None and path.exists():
            return json.loads(path.read_text())
        found = _compile(config, target, program)
        if path is not None:
            scratch = path.with_suffix(f".{os.getpid()}")  # two processes may plan the same
            scratch.write_text(json.dumps(found))
            scratch.rename(path)
        progress(program, found["compile_seconds"])
        return found

    # the GPU of this machine can compile and autotune only one program at a time
    workers = _num_workers() if target is not None else 1
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        return [
            need_of(program, found, target) for program, found in zip(programs, pool.map(result, programs), strict=True)
        ]


def _num_workers() -> int:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(1, min(os.cpu_count() or 1, memory // MEMORY_OF_A_COMPILER))


def need_of(program: str, found: dict[str, Any], target: Target | None) -> Need:
    """Returns what a program needs, from the figures of `compiling.analyze`."""
    contents = Contents(
        tuple(Kernel(*kernel) for kernel in found["kernels"]),
        tuple(Collective(*collective) for collective in found["collectives"]),
        found["host_transfers"],
    )
    if target is None:
        target = _target_of_device(found)
    return Need(
        program,
        contents,
        found["arguments"] + found["outputs"],
        found["temporary"] + found["code"],
        None if target is None else predict_times(contents, target),
        found["num_devices"],
        found["kind"],
        found["compile_seconds"],
    )


def _target_of_device(found: dict[str, Any]) -> Target | None:
    """Returns a target like the devices of this machine, or None if their facts are unknown."""
    chip = chip_of(found["kind"])
    return chip and Target(found["kind"], chip, found["num_devices"], found["num_slices"], "")


def chip_of(kind: str) -> Chip | None:
    """Returns the chip that JAX calls `kind`, or None."""
    return next((chip for chip in targets.CHIPS.values() if chip.kind == kind), None)


def _compile(config: ConfigDict, target: Target | None, program: str) -> dict[str, Any]:
    name = None if target is None else target.name
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.json"
        path.write_text(config.to_json())
        child = subprocess.run(
            [sys.executable, "-m", "diffae_jax.plan.compiling"],
            input=json.dumps(dict(config=str(path), target=name, program=program)),
            capture_output=True,
            text=True,
            env=os.environ | environment(name) | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
    if child.returncode:
        reason = next((line for line in reversed(child.stderr.splitlines()) if line.strip()), "no message")
        if child.returncode == UserError.exit_code:
            raise UserError(reason)
        where = name or "this machine"
        raise UserError(
            f"The program {program} cannot be compiled for {where} (exit code {child.returncode}): {shown(reason)}. "
            f"If the reason is memory, close other programs; a compiler needs up to 6 GB."
        )
    return json.loads(child.stdout)


def _cached(config: ConfigDict, target: Target | None, program: str) -> Path | None:
    """Returns the file of a result, or None if there is no cache or the devices may change."""
    folder = private_cache("plans")
    if folder is None or target is None:
        return None
    versions = [installed_version(package) for package in COMPILERS]
    names = (*RELEVANT, "prior") if program in ("prior", "sample") else RELEVANT
    sections = {name: _relevant(config[name]) for name in names}
    sections["steps"] = config.evaluation.num_code_steps
    key = hash_json([sections, target.name, program, versions, os.environ.get("XLA_FLAGS"), code_digest()])
    return folder / f"{target.name}-{program}-{key[:16]}.json"  # configs with the same networks share it


def _relevant(section: Any) -> Any:
    if not isinstance(section, ConfigDict):
        return section
    return {key: _relevant(value) for key, value in section.items() if key not in IRRELEVANT}
