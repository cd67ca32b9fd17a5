"""Encodes a whole data set in chunks of 1,024 images.

A stopped command resumes after the last finished chunk.
"""

import contextlib
import itertools
import math
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import numpy as np
from jaxtyping import Float
from ml_collections import ConfigDict

from diffae_jax.data.batches import on_devices, ordered_batches
from diffae_jax.data.detect import open_images
from diffae_jax.data.inspect.scan import check_all
from diffae_jax.data.latents import (
    CHUNK_SIZE,
    INPUTS,
    chunk_path,
    chunk_starts,
    is_encoded,
    read_chunks,
    read_inputs,
    write_chunk,
)
from diffae_jax.data.sources import Source, TransformedSource
from diffae_jax.inference import batching, programs
from diffae_jax.inference.diffae import DiffAE
from diffae_jax.models import abstract_model
from diffae_jax.models.build import builder
from diffae_jax.models.functional import Params
from diffae_jax.runtime.console import Progress, say
from diffae_jax.runtime.errors import UserError, counted
from diffae_jax.runtime.files import AnyPath, atomic_write, expand_home, os_errors_as_user_errors, write_json
from diffae_jax.runtime.interrupts import RESUME, if_interrupted
from diffae_jax.runtime.precision import resolve_precision
from diffae_jax.runtime.sharding import make_mesh, on_host, replicated, shard_array, split_batch

Encode = Callable[[Source, int, int], Float[np.ndarray, "n d"]]

SPLIT = "images"  # the name of the chunks of `encode_dataset`
FORMATS = (".npz", ".parquet")
TAKEN = ("id", "ids", "z", "file", "allow_pickle")  # names in the files, and arguments of np.savez
IS_DIMENSION = re.compile(r"z_\d+")


def encode_chunks(folder: AnyPath, chunks: list[tuple[str, Source, int]], encode: Encode) -> None:
    """Encodes chunks and writes each to the folder.

    A chunk is (split, source, index of its first image).
    """
    encoded = _encoded([(source, start) for _, source, start in chunks], encode)
    for (split, source, start), z in zip(chunks, encoded, strict=True):
        write_chunk(chunk_path(folder, split, start), source.ids[start : start + len(z)], z)


def report_interruption(folder: AnyPath, chunks: list[tuple[str, Source, int]]) -> str:
    """Says how many images of all chunks are in the folder, and how to resume."""
    sizes = [min(CHUNK_SIZE, len(source) - start) for _, source, start in chunks]
    done = [chunk_path(folder, split, start).exists() for split, _, start in chunks]
    count = counted(sum(itertools.compress(sizes, done)), "image", of=sum(sizes), verb="is/are")
    return f"encoding stopped; {count} encoded and kept. {RESUME}"


def _encoded(chunks: list[tuple[Source, int]], encode: Encode) -> Iterator[Float[np.ndarray, "n d"]]:
    """Yields z of each chunk and shows progress.

    A chunk is (source, index of its first image).
    """
    stops = [min(start + CHUNK_SIZE, len(source)) for source, start in chunks]
    total = sum(stop - start for stop, (_, start) in zip(stops, chunks, strict=True))
    with contextlib.closing(Progress("images", total, 0)) as progress:
        for (source, start), stop in zip(chunks, stops, strict=True):
            yield encode(source, start, stop)
            progress.advance(stop - start)


def encoder(config: ConfigDict, params: Params, batch_size: int) -> Encode:
    """Returns a function that encodes a range of a source's images on the devices of this process.

    `batch_size` is the maximum number of images per batch over these devices.
    """
    mesh = make_mesh(jax.local_devices())
    graphdef, _ = abstract_model(builder(config, resolve_precision(config.train.precision)))
    whole = replicated(mesh)
    params = jax.tree.map(lambda a: shard_array(a, whole), params)
    batch_size = max(1, min(CHUNK_SIZE, batch_size) // mesh.size) * mesh.size

    def encode_range(source, start, stop):
        batches = on_devices(ordered_batches(source, start, stop, batch_size), split_batch(mesh))
        # all batches are dispatched before any result is fetched; z are small
        z = [programs.encode(params, images, graphdef=graphdef) for images in batches]
        return np.concatenate(jax.device_get(z))[: stop - start]

    return encode_range


def open_for(model: DiffAE, path: str | AnyPath) -> TransformedSource:
    """Opens the images at a path with `data.detect.open_images`, transformed for the model.

    Raises UserError if there are no images, or if the model cannot take them.
    """
    return TransformedSource(open_images(path, model.image_shape).source, model.transform)


def encode_dataset(model: DiffAE, source: Source, out: AnyPath) -> None:
    """Encodes all images and writes z, ids and labels, in order, to an .npz or .parquet file.

    Finished chunks are cached in the folder `out`.chunks, so a stopped call resumes from there.

    Args:
        model: a model with an encoder.
        source: the images, such as `open_for` returns.
        out: the file; its suffix determines the format.

    Raises:
        UserError: if an image cannot be read, if cached chunks belong to another model or to other
            images, or if the file cannot be written.
    """
    out = expand_home(out)
    check_format(out)
    model.check_has_encoder()
    folder = out.with_name(f"{out.name}.chunks")
    with os_errors_as_user_errors(folder, "written"):
        _check_inputs(folder, {"model": model.digest(), **describe(source)}, source)
        chunks = [(SPLIT, source, start) for start in chunk_starts(len(source))]
        missing = [chunk for chunk in chunks if not is_encoded(folder, SPLIT, chunk[2], len(source))]
        remaining = sum(min(CHUNK_SIZE, len(source) - start) for _, _, start in missing)
        say(
            f"{counted(len(source), 'image')}, z of {model.config.model.z_dim} dimensions; "
            f"{counted(remaining, 'image')} to go."
        )
        if missing:
            with if_interrupted(partial(report_interruption, folder, chunks)):
                encode_chunks(folder, missing, _encoder_of(model, len(source)))
        encoded = list(read_chunks(folder, SPLIT))
    ids, z = [name for names, _ in encoded for name in names], np.concatenate([z for _, z in encoded])
    columns = label_columns(source)
    with os_errors_as_user_errors(out, "written"):
        (write_npz if out.suffix == ".npz" else write_parquet)(out, ids, z, columns)
        shutil.rmtree(folder)


def latents(model: DiffAE, source: Source) -> Float[np.ndarray, "n d"]:
    """Returns z of all images in order. Only a few images are in memory at a time.

    Raises UserError if the model has no encoder or, before encoding, if an image cannot be read.
    """
    model.check_has_encoder()
    check_all(source, show_progress=sys.stderr.isatty())
    chunks = [(source, start) for start in chunk_starts(len(source))]
    return np.concatenate(list(_encoded(chunks, _encoder_of(model, len(source)))))


def check_format(out: AnyPath) -> None:
    """Raises UserError unless the suffix of the file is one of `FORMATS`."""
    if out.suffix not in FORMATS:
        raise UserError(f"{out} has no known format. Use a file name that ends in {' or '.join(FORMATS)}.")


def describe(source: Source) -> dict[str, int | str]:
    """Returns values that identify a set of images."""
    return {SPLIT: len(source), "content": source.fingerprint()}


def label_columns(source: Source) -> dict[str, np.ndarray]:
    """Returns the labels of a source by name, with text as numpy strings.

    A label whose name is in use in the file gets a name that ends in _.
    """
    columns = {}
    for name, values in source.labels.items():
        while name in TAKEN or IS_DIMENSION.fullmatch(name) or name in columns:
            name += "_"
        columns[name] = values.astype(str) if values.dtype == object else values
    return columns


def write_npz(out: AnyPath, ids: list[str], z: Float[np.ndarray, "n d"], columns: dict[str, np.ndarray]) -> None:
    """Writes the arrays ids, z and one for each column, without pickle."""
    with atomic_write(out) as scratch:
        np.savez(scratch, ids=np.asarray(ids), z=z, **columns)


def write_parquet(out: AnyPath, ids: list[str], z: Float[np.ndarray, "n d"], columns: dict[str, np.ndarray]) -> None:
    """Writes the columns id, the labels, and z_000, z_001, ..., one for each dimension of z.

    pandas would read one column of lists as Python objects; these columns are float32 everywhere.
    """
    import pyarrow
    import pyarrow.parquet

    width = max(3, len(str(z.shape[1] - 1)))
    dimensions = {f"z_{i:0{width}}": np.ascontiguousarray(z[:, i]) for i in range(z.shape[1])}
    with atomic_write(out) as scratch:
        pyarrow.parquet.write_table(pyarrow.table({"id": ids, **columns, **dimensions}), scratch)


def _encoder_of(model: DiffAE, num_images: int) -> Encode:
    """Returns an encoder for `num_images` images, in batches that fit the devices."""
    at_once = batching.images_at_once(math.prod(model.image_shape))
    batch_size = min(at_once * jax.local_device_count(), num_images)
    return encoder(model.config, on_host(model.params), batch_size)


def _check_inputs(folder: AnyPath, inputs: dict[str, Any], source: Source) -> None:
    """Checks that every image can be read, then records model and images in the folder of chunks.

    Raises UserError if the folder holds chunks of another model or of other images.
    """
    if not (folder / INPUTS).exists():
        if folder.is_dir() and any(folder.iterdir()):
            raise UserError(f"{folder} has no {INPUTS}, so the model and images of its chunks are unknown. Remove it.")
        check_all(source, show_progress=sys.stderr.isatty())
        write_json(folder / INPUTS, inputs)
    recorded = read_inputs(folder)
    for name, cause in (("model", "another model"), (SPLIT, "other images"), ("content", "other images")):
        if recorded.get(name) != inputs[name]:
            raise UserError(
                f"{folder} holds z of {cause}. Remove that folder to start again, or choose another output file."
            )
