"""z of a whole data set, in parts: work that is stopped, however roughly, goes on where it was."""

import contextlib
import math
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float
from ml_collections import ConfigDict

from diffae_jax.data.batches import on_devices, ordered_batches
from diffae_jax.data.detect import open_images
from diffae_jax.data.inspect.scan import check_all
from diffae_jax.data.latents import CHUNK_SIZE, INPUTS, chunk_path, chunk_starts, read_chunks, read_inputs, write_chunk
from diffae_jax.data.sources import Source, TransformedSource
from diffae_jax.inference import batching, programs
from diffae_jax.inference.diffae import DiffAE
from diffae_jax.models import abstract_model
from diffae_jax.models.build import builder
from diffae_jax.models.functional import Params
from diffae_jax.runtime.console import Progress, say
from diffae_jax.runtime.errors import UserError
from diffae_jax.runtime.files import atomic_write, os_errors_as_user_errors, write_json
from diffae_jax.runtime.precision import resolve_precision
from diffae_jax.runtime.sharding import make_mesh, on_host, replicated, shard_array, split_batch

Encode = Callable[[Source, int, int], Float[np.ndarray, "n d"]]

SPLIT = "images"  # all of them: the name of the parts
FORMATS = (".npz", ".parquet")


def encode_chunks(own: Path, parts: list[tuple[str, Source, int]], encode: Encode) -> None:
    """Encodes and writes parts, given by split, source and number of the first image, into the folder `own`."""
    encoded = _encoded([(source, start) for _, source, start in parts], encode)
    for (split, source, start), z in zip(parts, encoded, strict=True):
        write_chunk(chunk_path(own, split, start), source.ids[start : start + len(z)], z)


def _encoded(parts: list[tuple[Source, int]], encode: Encode) -> Iterator[Float[np.ndarray, "n d"]]:
    """Yields z of each part, given by source and number of the first image, and shows how far the work is."""
    stops = [min(start + CHUNK_SIZE, len(source)) for source, start in parts]
    total = sum(stop - start for stop, (_, start) in zip(stops, parts, strict=True))
    with contextlib.closing(Progress("images", total, 0)) as progress:
        for (source, start), stop in zip(parts, stops, strict=True):
            yield encode(source, start, stop)
            progress.advance(stop - start)


def encoder(config: ConfigDict, params: Params, batch_size: int) -> Encode:
    """Returns what encodes the images from one number to another on the devices of this process alone.

    `batch_size` is what they take at most at a time, together.
    """
    mesh = make_mesh(jax.local_devices())
    graphdef, _ = abstract_model(builder(config, resolve_precision(config.train.precision)))
    whole = replicated(mesh)
    params = jax.tree.map(lambda a: shard_array(a, whole), params)
    batch_size = max(1, min(CHUNK_SIZE, batch_size) // mesh.size) * mesh.size

    def encode_range(source, start, stop):
        batches = on_devices(ordered_batches(source, start, stop, batch_size), split_batch(mesh))
        z = [
            programs.encode(params, images, graphdef=graphdef) for images in batches
        ]  # none waits for another: z are small
        return np.concatenate(jax.device_get(z))[: stop - start]

    return encode_range


def open_for(model: DiffAE, path: str | Path) -> TransformedSource:
    """Opens the images at a path, see `data.opening.open_images`, as the model takes them.

    Raises UserError where there are none, or not such as it takes.
    """
    return TransformedSource(open_images(path, model.image_shape).source, model.transform)


def encode_dataset(model: DiffAE, source: Source, out: Path) -> None:
    """Writes z of all images to `out`, with their ids and labels in order: an .npz or a .parquet, by its suffix.

    Parts of 1,024 images lie in `out`.chunks until all are there, and are kept when the work is stopped. Raises
    UserError for an image that cannot be read, and for parts that are of another model or of other images.
    """
    check_format(out)
    model.check_has_encoder()
    own = out.with_name(f"{out.name}.chunks")
    with os_errors_as_user_errors(own, "written"):
        _check_inputs(own, {"model": model.digest(), **describe(source)}, source)
        missing = [start for start in chunk_starts(len(source)) if not chunk_path(own, SPLIT, start).exists()]
        to_go = sum(min(CHUNK_SIZE, len(source) - start) for start in missing)
        say(f"{len(source):,} images, z of {model.config.model.z_dim} dimensions; {to_go:,} images to go.")
        if missing:
            encode_chunks(own, [(SPLIT, source, start) for start in missing], _encoder_of(model, len(source)))
        parts = list(read_chunks(own, SPLIT))
    ids, z = [name for names, _ in parts for name in names], np.concatenate([z for _, z in parts])
    columns = label_columns(source)
    with os_errors_as_user_errors(out, "written"):
        (write_npz if out.suffix == ".npz" else write_parquet)(out, ids, z, columns)
        shutil.rmtree(own)


def latents(model: DiffAE, source: Source) -> Float[np.ndarray, "n d"]:
    """Returns z of all images in order, of which a few at a time are in memory.

    Raises UserError for a model without encoder and, before the work, for an image that cannot be read.
    """
    model.check_has_encoder()
    check_all(source, show_progress=sys.stderr.isatty())
    parts = [(source, start) for start in chunk_starts(len(source))]
    return np.concatenate(list(_encoded(parts, _encoder_of(model, len(source)))))


def check_format(out: Path) -> None:
    """Raises UserError for a file of z whose suffix or whose libraries are missing."""
    if out.suffix not in FORMATS:
        raise UserError(f"{out} would be of no known format: give a file that ends in {' or '.join(FORMATS)}.")


def describe(source: Source) -> dict[str, int | str]:
    """Returns what tells one set of images from another."""
    return {SPLIT: len(source), "content": source.fingerprint()}


def label_columns(source: Source) -> dict[str, np.ndarray]:
    """Returns the labels of a source by their names, text as an array of text."""
    return {name: values.astype(str) if values.dtype == object else values for name, values in source.labels.items()}


def write_npz(out: Path, ids: list[str], z: Float[np.ndarray, "n d"], columns: dict[str, np.ndarray]) -> None:
    """Writes the arrays ids, z and one a column, without pickle."""
    with atomic_write(out) as scratch:
        np.savez(scratch, ids=np.asarray(ids), z=z, **columns)


def write_parquet(out: Path, ids: list[str], z: Float[np.ndarray, "n d"], columns: dict[str, np.ndarray]) -> None:
    """Writes the columns id, the labels, and z_000, z_001, ...: one of numbers for each dimension of z.

    A column of lists would come back from pandas as Python objects; these are float32 in every reader of such files.
    """
    import pyarrow
    import pyarrow.parquet

    width = max(3, len(str(z.shape[1] - 1)))
    dimensions = {f"z_{i:0{width}}": np.ascontiguousarray(z[:, i]) for i in range(z.shape[1])}
    with atomic_write(out) as scratch:
        pyarrow.parquet.write_table(pyarrow.table({"id": ids, **columns, **dimensions}), scratch)


def _encoder_of(model: DiffAE, num_images: int) -> Encode:
    """Returns what encodes that many images in batches that fit the devices."""
    at_once = batching.images_at_once(math.prod(model.image_shape))
    batch_size = min(at_once * jax.local_device_count(), num_images)
    return encoder(model.config, on_host(model.params), batch_size)


def _check_inputs(own: Path, inputs: dict[str, Any], source: Source) -> None:
    """Records what parts are made from, once every image can be read. Raises UserError where it was something else."""
    if not (own / INPUTS).exists():
        if own.is_dir() and any(own.iterdir()):
            raise UserError(f"{own} has no {INPUTS}, so nothing tells what it was made from: remove that folder.")
        check_all(source, show_progress=sys.stderr.isatty())
        write_json(own / INPUTS, inputs)
    began_with = read_inputs(own)
    for name, what in (("model", "another model"), (SPLIT, "other images"), ("content", "other images")):
        if began_with.get(name) != inputs[name]:
            raise UserError(f"{own} holds z of {what}: remove that folder to begin anew, or give another file.")
