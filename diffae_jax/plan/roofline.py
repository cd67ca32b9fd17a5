"""Predicts the time of a program from its kernels, with the assumptions written down."""

import dataclasses
import math
import re
from collections.abc import Sequence

import numpy as np

from diffae_jax.plan.hlo import Collective, Contents, Kernel
from diffae_jax.plan.targets import Chip, Target

# Fractions of the peaks that kernels reach, and the seconds that each takes to start.
COMPUTE_SHARE = {"gpu": 0.55, "tpu": 0.5}
BANDWIDTH_SHARE = {"gpu": 0.8, "tpu": 0.8}
START = {"gpu": 2.5e-6, "tpu": 1e-6}
NETWORK_SHARE = 0.7

ASSUMPTIONS = (
    "Each kernel takes the longer of its arithmetic and its memory traffic, at {compute:.0%} and {bandwidth:.0%} of "
    "the peaks of the data sheet, plus {start:.1f} us. Collectives take {network:.0%} of the links and overlap with "
    "nothing. Reading images and writing files are not included."
)


@dataclasses.dataclass(frozen=True)
class Times:
    """Predicted seconds of one call on one device.

    Attributes:
        arithmetic: Kernels that their arithmetic limits.
        memory: Kernels that their memory traffic limits.
        starts: Starting kernels.
        network: Exchanges between devices.
    """

    arithmetic: float
    memory: float
    starts: float
    network: float

    @property
    def total(self) -> float:
        """All of them, one after another."""
        return self.arithmetic + self.memory + self.starts + self.network


def assumptions(chip: Chip) -> str:
    """Returns the assumptions of `predict_times` in words."""
    family = _family(chip)
    return ASSUMPTIONS.format(
        compute=COMPUTE_SHARE[family],
        bandwidth=BANDWIDTH_SHARE[family],
        start=START[family] * 1e6,
        network=NETWORK_SHARE,
    )


def predict_times(contents: Contents, target: Target) -> Times:
    """Predicts the time of one call of a program on a target."""
    chip, family = target.chip, _family(target.chip)
    arithmetic = memory = starts = 0.0
    for kernel in contents.kernels:
        compute, traffic = _seconds(kernel, chip, family)
        if compute > traffic:
            arithmetic += compute * kernel.times
        else:
            memory += traffic * kernel.times
        starts += START[family] * kernel.times
    network = sum((_exchange(collective, target) * collective.times for collective in contents.collectives), 0.0)
    return Times(arithmetic, memory, starts, network)


def _family(chip: Chip) -> str:
    return "gpu" if chip.gpu else "tpu"


def _seconds(kernel: Kernel, chip: Chip, family: str) -> tuple[float, float]:
    peak = chip.peak.get(kernel.dtype, chip.peak["f32"])
    return (
        kernel.flops / (peak * COMPUTE_SHARE[family]),
        kernel.bytes / (chip.bandwidth * BANDWIDTH_SHARE[family]),
    )


def _exchange(collective: Collective, target: Target) -> float:
    """Returns the seconds of a collective, as a ring within a slice and a ring between slices."""
    members = group_of_first(collective.groups, target.num_devices)
    per_slice = target.num_devices // target.num_slices
    slices = len({member // per_slice for member in members})
    inside = max(1, len(members) // slices)
    passes = 2 if collective.kind == "all-reduce" else 1  # reduce, then gather
    seconds = passes * collective.bytes * (inside - 1) / inside / (target.chip.link * NETWORK_SHARE)
    # all chips of a slice use the network at once, each for its share
    between = passes * collective.bytes * (slices - 1) / slices / inside
    return seconds + between / (target.chip.network * NETWORK_SHARE)


def group_of_first(groups: str, num_devices: int) -> Sequence[int]:
    """Returns the devices that exchange with device 0, from any of the forms that XLA writes."""
    if match := re.search(r"mesh\[(.*?)\](.*)", groups):  # mesh['data'=4,'x'=2], device_ids=([2,4]T(1,0)) {'data'}
        axes = {name: int(size) for name, size in re.findall(r"'([\w.]+)'=(\d+)", match[1])}
        chosen = re.findall(r"'([\w.]+)'", match[2]) or list(axes)
        grid = np.arange(math.prod(axes.values()))
        if order := re.search(r"device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\)", match[2]):
            grid = _transposed(grid, order[1], order[2])
        grid = grid.reshape(list(axes.values()))
        index = tuple(slice(None) if name in chosen else 0 for name in axes)
        return np.ravel(grid[index]).tolist()
    if match := re.search(r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", groups):  # [2,4]<=[4,2]T(1,0)
        shape = _numbers(match[1])
        rows = _transposed(np.arange(math.prod(shape)), match[2], match[3]).reshape(shape).tolist()
        return next((row for row in rows if 0 in row), rows[0])
    if rows := re.findall(r"\{([\d,]+)\}", groups):  # {{0,1},{2,3}}
        numbers = [_numbers(row) for row in rows]
        return next((row for row in numbers if 0 in row), numbers[0])
    return range(num_devices)


def _numbers(text: str) -> list[int]:
    return list(map(int, text.split(",")))


def _transposed(devices: np.ndarray, sizes: str, order: str | None) -> np.ndarray:
    grid = devices.reshape(_numbers(sizes))
    return grid.transpose(_numbers(order)) if order else grid
