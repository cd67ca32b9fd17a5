"""The machines that a plan knows, with the facts that its predictions rest on."""

import dataclasses
import difflib
import importlib.util
import math
import re

from diffae_jax.runtime.errors import UserError, shown
from diffae_jax.runtime.gpu import LAST_CUDNN_FOR_OLDER, OLDEST_FOR_CUDA13
from diffae_jax.runtime.precision import precision_of_gpu

GIB = 2**30
JAX_SHARE = 0.75  # of a GPU's memory, which JAX reserves by default
MAX_SHARE = 0.92  # which it can reserve: CUDA, cuDNN and the driver need the rest
GPUS_PER_NODE = 8
MAX_DEVICES = 4096


@dataclasses.dataclass(frozen=True)
class Chip:
    """A GPU, or the part of a TPU that JAX calls a device.

    Attributes:
        kind: Its name as JAX gives it, or close to it.
        memory: Bytes.
        bandwidth: Bytes a second, of its memory.
        peak: FLOP/s of matrix products by type of the operands.
        precision: The type that `train.precision=auto` selects on it.
        link: Bytes a second and direction to the other chips of its node or slice.
        network: Bytes a second to another node or slice, for each chip.
        gpu: For a GPU, what its compiler wants to know: see `gpu_description`.
    """

    kind: str
    memory: int
    bandwidth: float
    peak: dict[str, float]
    precision: str
    link: float
    network: float
    gpu: dict[str, int | float] | None = None

    @property
    def usable(self) -> int:
        """Bytes that a program may use by default."""
        return int(self.memory * JAX_SHARE) if self.gpu else self.memory - GIB // 2

    @property
    def most_usable(self) -> int:
        """Bytes that a program may use at most."""
        return int(self.memory * MAX_SHARE) if self.gpu else self.usable


def _gpu(kind, capability, memory, bandwidth, half, single, link, network, *, cores, fpus, clock, l2, shared, threads):
    """Returns a GPU. `half` and `single` are TFLOP/s, `bandwidth`, `link` and `network` GB/s."""
    return Chip(
        kind,
        memory,
        bandwidth * 1e9,
        {"bf16": half * 1e12, "f16": half * 1e12, "f32": single * 1e12},
        precision_of_gpu(capability),
        link * 1e9,
        network * 1e9,
        dict(capability=capability, cores=cores, fpus=fpus, clock=clock, l2=l2, shared=shared, threads=threads),
    )


def _tpu(kind, memory, bandwidth, peak, link):
    # float32 products take several passes of bfloat16
    peaks = {"bf16": peak * 1e12, "f16": peak * 1e12, "f32": peak * 1e12 / 6}
    return Chip(kind, memory * GIB, bandwidth * 1e9, peaks, "bfloat16", link * 1e9, 6.25e9)


# From the data sheets of NVIDIA and Google: dense products, NVLink or PCI Express per direction,
# and a network of 100 Gbit/s a V100, 200 an A100, 400 an H100. float32 is TF32 from Ampere on.
_V100 = dict(cores=80, fpus=64, clock=1.53, l2=6, shared=96, threads=2048)
_H100 = dict(cores=132, fpus=128, clock=1.98, l2=50, shared=227, threads=2048)
CHIPS = {
    "t4": _gpu(
        "Tesla T4",
        7.5,
        15_843_721_216,
        320,
        65,
        8.1,
        16,
        1.5,
        cores=40,
        fpus=64,
        clock=1.59,
        l2=4,
        shared=64,
        threads=1024,
    ),
    "v100": _gpu("Tesla V100-SXM2-16GB", 7.0, 16_935_682_048, 900, 125, 15.7, 150, 12.5, **_V100),
    "v100-32": _gpu("Tesla V100-SXM2-32GB", 7.0, 34_072_559_616, 900, 125, 15.7, 150, 12.5, **_V100),
    "a100": _gpu(
        "NVIDIA A100-SXM4-80GB",
        8.0,
        85_094_825_984,
        2039,
        312,
        156,
        300,
        25,
        cores=108,
        fpus=64,
        clock=1.41,
        l2=40,
        shared=163,
        threads=2048,
    ),
    "rtx4090": _gpu(
        "NVIDIA GeForce RTX 4090",
        8.9,
        25_393_692_672,
        1008,
        165,
        82.6,
        32,
        1.25,
        cores=128,
        fpus=128,
        clock=2.52,
        l2=72,
        shared=99,
        threads=1536,
    ),
    "h100": _gpu("NVIDIA H100 80GB HBM3", 9.0, 85_029_158_912, 3352, 989, 494, 450, 50, **_H100),
    "h200": _gpu("NVIDIA H200", 9.0, 150_754_820_096, 4800, 989, 494, 450, 50, **_H100),
    "v4": _tpu("TPU v4", 32, 1228, 275, 100),
    "v5e": _tpu("TPU v5 lite", 16, 819, 197, 100),
    "v5p": _tpu("TPU v5", 95, 2765, 459, 200),
    "v6e": _tpu("TPU v6 lite", 32, 1640, 918, 180),
}

# Chips -> shape of a slice. v4 and v5p count cores, of which a chip has two.
FLAT = {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
CUBES = {4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4", 128: "4x4x8", 256: "4x8x8", 512: "8x8x8"}
TPU_NAMES = {"v4": "v4", "v5e": "v5e", "v5p": "v5", "v6e": "v6e"}  # as libtpu calls them

EXAMPLES = "t4, v100x8, v100-32x8, a100x8, rtx4090, h100x8, h200, v4-8, v5e-16, v5p-8, v6e-16 or 2xv5e-16 (two slices)"


@dataclasses.dataclass(frozen=True)
class Target:
    """A machine or a cluster.

    Attributes:
        name: What the user calls it, such as "v5e-16".
        chip: Its chips.
        num_devices: How many, in all.
        num_slices: TPU slices or GPU nodes that a network connects.
        topology: The form of a slice, as the compiler wants it.
    """

    name: str
    chip: Chip
    num_devices: int
    num_slices: int
    topology: str

    @property
    def platform(self) -> str:
        """The platform, as JAX calls it."""
        return "cuda" if self.chip.gpu else "tpu"


def find_target(name: str) -> Target:
    """Returns the target of a name. Raises UserError, with those there are, if it is unknown."""
    match = re.fullmatch(r"(?:(\d+)x)?(v4|v5e|v5p|v6e)-(\d+)", name)
    if match:
        slices, chip, count = int(match[1] or 1), match[2], int(match[3])
        sizes = CUBES if chip in ("v4", "v5p") else FLAT
        cores = 2 if sizes is CUBES else 1
        if count % cores == 0 and count // cores in sizes and 1 <= slices <= 64:
            devices = count // cores
            topology = f"{TPU_NAMES[chip]}:{sizes[devices]}"
            return Target(name, CHIPS[chip], devices * slices, slices, topology)
        known = ", ".join(f"{chip}-{number * cores}" for number in sizes)
        raise UserError(f"There is no target {shown(name)}: {chip} has the sizes {known}, and up to 64 slices of them.")
    gpus = "|".join(sorted((key for key, chip in CHIPS.items() if chip.gpu), key=len, reverse=True))
    match = re.fullmatch(rf"({gpus})(?:x(\d+))?", name)
    if match:
        count = int(match[2] or 1)
        nodes = math.ceil(count / GPUS_PER_NODE)
        if 1 <= count <= MAX_DEVICES and (nodes == 1 or count % GPUS_PER_NODE == 0):
            return Target(name, CHIPS[match[1]], count, nodes, f"{nodes}x1x{count // nodes}")
        raise UserError(
            f"There is no target {shown(name)}: give 1 to {GPUS_PER_NODE} GPUs, or a multiple of {GPUS_PER_NODE} up to "
            f"{MAX_DEVICES:,} on several nodes."
        )
    close = difflib.get_close_matches(name, CHIPS, 1)
    hint = f" Did you mean {close[0]}?" if close else ""
    raise UserError(f"There is no target {shown(name)}. Use one like {EXAMPLES}.{hint}")


def check_compiler(target: Target) -> None:
    """Raises UserError if the compiler of a target is not installed."""
    if target.platform == "tpu":
        if importlib.util.find_spec("libtpu") is None:
            raise UserError(f'The compiler for {target.name} is not installed: run pip install "jax[tpu]".')
    else:
        versions = (12,) if target.chip.gpu["capability"] < OLDEST_FOR_CUDA13 else (12, 13)
        if not any(importlib.util.find_spec(f"jax_cuda{version}_plugin") for version in versions):
            raise UserError(f'The compiler for {target.name} is not installed: run pip install "jax[cuda12]".')


def gpu_description(chip: Chip) -> str:
    """Returns what XLA's compiler wants to know of a GPU, as the text of a protocol buffer."""
    gpu = chip.gpu
    major, minor = divmod(round(gpu["capability"] * 10), 10)
    dnn_minor = LAST_CUDNN_FOR_OLDER[1] if gpu["capability"] < OLDEST_FOR_CUDA13 else 20
    return f"""
        gpu_device_info {{
          threads_per_block_limit: 1024
          threads_per_warp: 32
          shared_memory_per_block: 49152
          shared_memory_per_core: {(gpu["shared"] + 1) * 1024}
          shared_memory_per_block_optin: {gpu["shared"] * 1024}
          threads_per_core_limit: {gpu["threads"]}
          core_count: {gpu["cores"]}
          fpus_per_core: {gpu["fpus"]}
          block_dim_limit_x: 2147483647
          block_dim_limit_y: 65535
          block_dim_limit_z: 65535
          memory_bandwidth: {chip.bandwidth:.0f}
          l2_cache_size: {gpu["l2"] * 2**20}
          clock_rate_ghz: {gpu["clock"]}
          device_memory_size: {chip.memory}
          cuda_compute_capability {{ major: {major} minor: {minor} }}
          registers_per_core_limit: 65536
          registers_per_block_limit: 65536
        }}
        platform_name: "CUDA"
        dnn_version_info {{ major: 9 minor: {dnn_minor} patch: 2 }}
        runtime_version {{ major: 12 minor: 9 patch: 0 }}
        device_description_str: "{chip.kind}"
        """
