"""The manifest of a checkpoint: size and SHA-256 of each file, and a digest of each array.

The hashes detect damage of the files before anything is read from them. The digests detect
everything else that could change a value. They are computed from the arrays on the devices, before
saving and after restoring.
"""

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding
from jaxtyping import Array, Num, UInt32

from diffae_jax.models.random_bits import mixed, positions
from diffae_jax.runtime.checksums import Entries, describe_files, find_damage, hash_json
from diffae_jax.runtime.errors import UserError
from diffae_jax.runtime.files import AnyPath, names_below, parse_json, read_bytes, read_json, write_json
from diffae_jax.runtime.sharding import MIN_SPLIT_SIZE, replicated
from diffae_jax.training.state import leaves_by_name

FORMAT = 1
MANIFEST = "manifest.json"
MAX_BYTES = 64 * 2**20  # of a manifest; a process of a pod adds some kilobytes
PROMISE = {"manifest": FORMAT}  # recorded by Orbax in the step, so that a lost manifest is noticed
ORBAX_METADATA = "_CHECKPOINT_METADATA"

Digests = dict[str, str]  # dotted name of an array -> 8 hexadecimal digits


def digest_arrays(tree: Any) -> Digests:
    """Returns a digest of each array of a tree, by dotted name. It depends only on the values.

    A digest is the sum of a hash of (index, value) over all elements, modulo 2**32. So it does not
    depend on how an array is split over devices. The hash is a bijection of the value: a change of
    one element always changes the sum, and a change of several does not with probability 2**-32.

    Small arrays are digested on the host, as compiling a function for each of their many shapes
    would take longer. Sharded arrays are never small. All processes must call this together.
    """
    named = dict(leaves_by_name(tree))
    digests = {name: _on_device(leaf) for name, leaf in named.items() if math.prod(np.shape(leaf)) >= MIN_SPLIT_SIZE}
    digests, small = jax.device_get((digests, {name: leaf for name, leaf in named.items() if name not in digests}))
    digests |= _on_host({name: np.ravel(leaf) for name, leaf in small.items()})
    return {name: f"{int(digest):08x}" for name, digest in sorted(digests.items())}


def _on_host(arrays: dict[str, Num[np.ndarray, "_"]]) -> dict[str, np.uint32]:
    """Returns the digests of flat arrays, all at once. A loop over them would be slower."""
    if not arrays:
        return {}
    sizes = [array.size for array in arrays.values()]
    starts = np.cumsum([0, *sizes[:-1]])
    bits = np.concatenate([array.view(np.uint32) for array in arrays.values()])
    index = np.arange(bits.size, dtype=np.uint32) - np.repeat(starts, sizes).astype(np.uint32)
    sums = np.add.reduceat(mixed(bits ^ mixed(index)), starts, dtype=np.uint32)
    return dict(zip(arrays, sums, strict=True))


def _on_device(leaf: Array) -> UInt32[Array, ""]:
    mesh = getattr(leaf.sharding, "mesh", None)  # an array on a single device may have none
    return _device_digest(mesh and replicated(mesh))(leaf)


@functools.cache
def _device_digest(sharding: NamedSharding | None) -> Callable[[Array], Array]:
    def digest(array):
        bits = lax.bitcast_convert_type(array, jnp.uint32)
        return mixed(bits ^ mixed(positions(array.shape))).sum(dtype=jnp.uint32)

    return jax.jit(digest, out_shardings=sharding)


def part_of(process: int, step: AnyPath) -> list[str]:
    """Returns the names of the files that a process wrote. Those without a number are of 0."""

    def writer(name: str) -> int:
        numbers = [part.rpartition("process_")[2] for part in Path(name).parts if "process_" in part]
        return next((int(number) for number in numbers if number.isdecimal()), 0)

    return [name for name in names_below(step) if writer(name) == process]


def write_part(step: AnyPath, process: int) -> None:
    """Describes the files that this process wrote, for `write_manifest` of process 0."""
    if not step.is_dir():  # another process has failed
        raise FileNotFoundError(f"{step} was removed")
    write_json(_part(step, process), describe_files(step, part_of(process, step)))


def parts_are_written(step: AnyPath, num_processes: int) -> bool:
    """Returns whether all processes but the first have described their files."""
    return all(_part(step, process).exists() for process in range(1, num_processes))


def write_manifest(step: AnyPath, num_processes: int, digests: Digests) -> None:
    """Writes the manifest of a step from the files of process 0 and the parts of the others."""
    parts = [_part(step, process) for process in range(1, num_processes)]
    files: Entries = {}
    for part in parts:
        files |= read_json(part)
        part.unlink()
    files |= describe_files(step, part_of(0, step))
    content = {"format": FORMAT, "files": files, "arrays": digests}
    write_json(step / MANIFEST, content | {"sha256": hash_json(content)})


def _part(step: AnyPath, process: int) -> AnyPath:
    return step / f"{MANIFEST}.process_{process}"


def has_manifest(step: AnyPath) -> bool:
    """Returns whether a step has a manifest or should have one. Older versions wrote none."""
    if (step / MANIFEST).exists():
        return True
    try:
        return PROMISE.items() <= read_json(step / ORBAX_METADATA)["custom_metadata"].items()
    except (UserError, KeyError, TypeError, AttributeError):
        return True  # not as any version wrote it: it is damaged


def damage_of(step: AnyPath) -> str | None:
    """Compares all files of a step with its manifest.

    Returns what is wrong, without a full stop, or None. Raises UserError if a file cannot be read.
    """
    if not (step / MANIFEST).exists():
        return f"{step / MANIFEST} is missing"
    manifest = _read(step)
    if manifest is None:
        return f"{step / MANIFEST} is damaged"
    if manifest["format"] > FORMAT:
        raise UserError(f"{step} was written by a newer version. Update with pip install --upgrade diffae_jax.")
    # names with a dot are left by file managers and network disks
    present = {name for name in names_below(step) if not Path(name).name.startswith(".")}
    if unknown := present - manifest["files"].keys() - {MANIFEST}:
        return f"{step / min(unknown)} is not in the manifest"
    return find_damage(step, manifest["files"])


def _read(step: AnyPath) -> dict[str, Any] | None:
    """Returns the manifest of a step, or None if it is damaged. Raises UserError if unreadable."""
    content = read_bytes(step / MANIFEST, MAX_BYTES)
    try:
        manifest = parse_json(content, step / MANIFEST)
        whole = manifest.pop("sha256") == hash_json(manifest)
        files, arrays = manifest["files"].values(), manifest["arrays"].keys()
        valid = all(isinstance(entry, dict) for entry in files) and bool(arrays) and type(manifest["format"]) is int
    except (UserError, KeyError, TypeError, AttributeError):
        return None
    return manifest if whole and valid else None


def check_arrays(step: AnyPath, tree: Any) -> None:
    """Raises UserError if an array that was restored from a step differs from what was saved.

    Steps of older versions, without a manifest, cannot be checked.
    """
    if not has_manifest(step):
        return
    manifest = _read(step)
    if manifest is None:
        raise UserError(f"{step / MANIFEST} is damaged. Run the same command again to use the checkpoint before it.")
    saved = manifest["arrays"]
    for name, digest in digest_arrays(tree).items():
        if saved.get(name) != digest:
            raise UserError(
                f"{step} is damaged: {name} is not as it was when it was saved, although its file is intact. Check the "
                f"memory of the machine. To use the checkpoint before it, rename that folder."
            )
