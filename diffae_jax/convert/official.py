"""Official checkpoints as DiffAE: every weight of a file is used or known to be of no use, every parameter filled."""

import collections
import contextlib
import math
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from diffae_jax.config import check
from diffae_jax.convert.names import (
    CELEBA_ATTRIBUTES,
    STATISTICS,
    UNUSED,
    UNUSED_OF_CLASSIFIER,
    autoencoder_names,
    prior_names,
    to_ours,
)
from diffae_jax.convert.settings import State, read_settings
from diffae_jax.data.latents import LatentStatistics
from diffae_jax.inference.diffae import DiffAE
from diffae_jax.inference.weights import abstract_weights
from diffae_jax.models.functional import Params, flatten, unflatten
from diffae_jax.probes import Probe
from diffae_jax.runtime.errors import UserError, list_some, shown
from diffae_jax.runtime.sharding import make_mesh
from diffae_jax.torch_files.archive import read_checkpoint
from diffae_jax.torch_files.stored import StoredTensor, extent

EMA = "ema_model."
MAX_COUNT = 2**40  # of steps, and of images in one


def import_official(
    checkpoint: str | Path,
    latents: str | Path | None = None,
    classifier: str | Path | None = None,
    *,
    image_size: int | None = None,
    mesh: Mesh | None = None,
) -> DiffAE:
    """Reads an official checkpoint (.ckpt) of an autoencoder, with or without latent DDIM, or of a DDIM baseline.

    `latents` is its latent.pkl, with the statistics of z; `classifier` a linear classifier of the 40 attributes of
    CelebA, which become probes. `image_size` is needed for files that do not tell it. Nothing in the files is executed.

    Raises UserError for a file that is damaged, unsafe or another model's, naming keys that are missing or too many.
    """
    file = str(checkpoint)
    tree = read_checkpoint(checkpoint)
    state, hyper = _state_dict(tree, file), tree.get("hyper_parameters")
    hyper = hyper if isinstance(hyper, dict) else {}
    averaged = {name.removeprefix(EMA): tensor for name, tensor in state.items() if name.startswith(EMA)}
    if not averaged:
        raise UserError(
            f"{file} holds no averaged weights ({EMA}*): it is not a checkpoint of a diffusion autoencoder."
        )
    buffers = {name: tensor for name, tensor in state.items() if "." not in name}
    config = read_settings({**buffers, **averaged}, hyper, file, image_size)
    check(config)

    mesh = mesh or make_mesh()
    shapes = abstract_weights(config, mesh)
    if not any(name.startswith("latent_net.") for name in averaged):
        shapes.pop("prior", None)
    places, unused = _places(state, shapes, file)
    # The weights, which may be gigabytes, are read when all else is known to be good.
    has_statistics = bool(state.keys() & set(STATISTICS))
    if "prior" in shapes and not has_statistics and latents is None and classifier is None:
        raise UserError(f"{file} has a latent DDIM but no statistics of z: give its latent.pkl with --latents.")
    z_dim, probes = config.model.z_dim, {}
    statistics = _statistics(state, file, z_dim) if has_statistics else None
    if latents is not None:
        others = _statistics(read_checkpoint(latents), str(latents), z_dim)
        statistics = _agreed(statistics, others, str(latents))
    if classifier is not None:
        others, probes = _classifier(classifier, z_dim)
        statistics = _agreed(statistics, others, str(classifier))
    weights = {part: _filled(state, shapes[part], names, file) for part, names in places.items()}

    origin = {"imported_from": Path(checkpoint).name, "unused": unused}
    counts = tree.get("global_step"), hyper.get("batch_size"), hyper.get("accum_batches", 1)
    if all(type(count) is int and 0 <= count < MAX_COUNT for count in counts):
        origin["images_seen"] = math.prod(counts)  # by what was trained last: the latent DDIM, where there is one
    return DiffAE(
        config,
        weights["autoencoder"],
        statistics=statistics,
        prior=weights.get("prior"),
        probes=probes,
        origin=origin,
        mesh=mesh,
    )


def _state_dict(tree: Any, file: str) -> State:
    state = tree.get("state_dict") if isinstance(tree, dict) else None
    if not isinstance(state, dict):
        raise UserError(f"{file} holds no state_dict: it is not a checkpoint of the official code.")
    odd = [name for name, value in state.items() if not (isinstance(name, str) and isinstance(value, StoredTensor))]
    if odd:
        raise UserError(f"{file} has entries in its state_dict that are not tensors: {list_some(map(shown, odd))}.")
    return state


def _places(state: State, shapes: dict[str, Params], file: str) -> tuple[dict[str, dict[str, str]], dict[str, int]]:
    """Returns {our flat name: official name} for each part, and the number of unused tensors by reason.

    Raises UserError for what can be told without reading: names, numbers of elements and types that do not fit.
    """
    missing, misshapen, used, places = [], [], set(STATISTICS), {}
    for part, names_of in (("autoencoder", autoencoder_names), ("prior", prior_names)):
        if part not in shapes:
            continue
        places[part] = {ours: EMA + name for ours, name in names_of(shapes[part]).items()}
        used |= set(places[part].values())
        flat_shapes = flatten(shapes[part])
        for ours, official in places[part].items():
            if official not in state:
                missing.append(official)
            elif math.prod(state[official].shape) != math.prod(flat_shapes[ours].shape):
                misshapen.append(_misshapen(state[official], official, flat_shapes[ours].shape))
    _refuse(missing, "lacks", file)
    _refuse(misshapen, "has", file)
    unused = _reasons(state.keys() - used, UNUSED, file)
    for official in used & state.keys():
        _check(state[official], official, file)
    return places, unused


def _filled(state: State, shapes: Params, names: dict[str, str], file: str) -> Params:
    """Reads the weights of one part."""
    filled, misshapen, flat_shapes = {}, [], flatten(shapes)
    for ours, official in names.items():
        filled[ours] = to_ours(_numbers(state[official], official, file), ours, flat_shapes[ours].shape)
        if filled[ours] is None:
            misshapen.append(_misshapen(state[official], official, flat_shapes[ours].shape))
    _refuse(misshapen, "has", file)
    return unflatten(filled)


def _misshapen(tensor: StoredTensor, name: str, shape: tuple[int, ...]) -> str:
    return f"{name} of shape {tensor.shape} for {shape}"


def _refuse(names: list[str], problem: str, file: str) -> None:
    if names:
        raise UserError(f"{file} {problem} {list_some(names)}: it is not a model of the official code.")


def _reasons(names: Iterable[str], reasons: dict[str, re.Pattern], file: str) -> dict[str, int]:
    """Counts names by the reason for which they are of no use. Raises UserError for a name without one."""
    counts = collections.Counter(
        next((reason for reason, pattern in reasons.items() if pattern.fullmatch(name)), name) for name in names
    )
    unknown = counts.keys() - reasons.keys()
    if unknown:
        raise UserError(f"{file} has unknown weights {list_some(unknown)}: it is not a model of the official code.")
    return dict(sorted(counts.items()))


def _statistics(tree: Any, file: str, z_dim: int | None) -> LatentStatistics:
    """Reads conds_mean and conds_std of a state_dict or a latent.pkl."""
    tensors = {name: tree.get(name) if isinstance(tree, dict) else None for name in STATISTICS}
    if not all(isinstance(tensor, StoredTensor) for tensor in tensors.values()):
        raise UserError(f"{file} lacks conds_mean or conds_std: it does not hold the statistics of z.")
    sizes = [math.prod(tensor.shape) for tensor in tensors.values()]
    if sizes != [z_dim, z_dim]:
        has = "no z" if z_dim is None else f"z of {z_dim} dimensions"
        raise UserError(f"{file} has statistics of {sizes[0]:,} and {sizes[1]:,} dimensions, and the model {has}.")
    mean, std = (_numbers(tensor, name, file).reshape(-1) for name, tensor in tensors.items())
    with _naming(file):
        return LatentStatistics(mean, std)


@contextlib.contextmanager
def _naming(file: str) -> Iterator[None]:
    """Puts the file in front of what is wrong with its numbers."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{file} cannot be used: {error}") from error


def _check(tensor: StoredTensor, name: str, file: str) -> None:
    """Raises UserError for a tensor that is not of floating point, or whose elements do not lie side by side."""
    if tensor.dtype.kind != "f":
        raise UserError(f"{file} has {name} of type {tensor.dtype}, where floating point numbers are expected.")
    if extent(tensor.shape, tensor.strides) > math.prod(tensor.shape):  # to read it would take more than it holds
        raise UserError(f"{file} has {name} with gaps between its numbers, as no official file has: save a copy of it.")


def _numbers(tensor: StoredTensor, name: str, file: str) -> np.ndarray:
    """Reads a tensor as float32. Raises UserError, with its name, unless it holds finite floating point numbers."""
    _check(tensor, name, file)
    with np.errstate(over="ignore"):  # what float32 does not hold becomes infinite
        array = tensor.numpy().astype(np.float32, copy=False)
    if not np.isfinite(array).all():
        raise UserError(f"{file} has numbers in {name} that are not finite: that model broke in training.")
    return array


def _agreed(ours: LatentStatistics | None, others: LatentStatistics, file: str) -> LatentStatistics:
    """Returns the statistics of both. Raises UserError where they are of different models."""
    if ours is None:
        return others
    if ours.mean.shape != others.mean.shape or not (
        np.abs(ours.mean - others.mean).max() < 0.01 * ours.std.max() and np.allclose(ours.std, others.std, rtol=0.01)
    ):
        raise UserError(f"{file} belongs to another autoencoder: its statistics of z are not those of this one.")
    return ours


def _classifier(path: str | Path, z_dim: int | None) -> tuple[LatentStatistics, dict[str, Probe]]:
    """Reads the official linear classifier as probes, with the statistics of the z that it was fitted to."""
    file = str(path)
    state = _state_dict(read_checkpoint(path), file)
    tensors = {name: state.get(f"ema_classifier.{name}") for name in ("weight", "bias")}
    if None in tensors.values():
        raise UserError(f"{file} lacks ema_classifier.weight or ema_classifier.bias: it is no official classifier.")
    _reasons(state.keys() - {*STATISTICS, *(f"ema_classifier.{name}" for name in tensors)}, UNUSED_OF_CLASSIFIER, file)
    statistics = _statistics(state, file, z_dim)
    wanted = {"weight": (len(CELEBA_ATTRIBUTES), z_dim), "bias": (len(CELEBA_ATTRIBUTES),)}
    for name, shape in wanted.items():
        if tensors[name].shape != shape:
            raise UserError(
                f"{file} has ema_classifier.{name} of shape {tensors[name].shape}, and only classifiers of the "
                f"{len(CELEBA_ATTRIBUTES)} attributes of CelebA can be imported, where it is {shape}."
            )
    weight, bias = (_numbers(tensors[name], f"ema_classifier.{name}", file) for name in wanted)
    with _naming(file):
        return statistics, {name: Probe(name, weight[i], float(bias[i])) for i, name in enumerate(CELEBA_ATTRIBUTES)}
