"""Official checkpoints as DiffAE: every weight of a file is used or known to be of no use, every parameter filled."""

import collections
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from diffae_jax.api import DiffAE
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
from diffae_jax.convert.stored import StoredTensor
from diffae_jax.convert.torch_zip import read_checkpoint
from diffae_jax.data.latents import LatentStatistics
from diffae_jax.errors import UserError, shown
from diffae_jax.models.functional import Params, flatten, unflatten
from diffae_jax.networks import abstract_weights, name_some
from diffae_jax.probes import Probe
from diffae_jax.training.sharding import make_mesh

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
    weights, unused = _fill(state, shapes, file)

    statistics = _statistics(state, file) if state.keys() & set(STATISTICS) else None
    probes = {}
    if latents is not None:
        statistics = _agreed(statistics, _statistics(read_checkpoint(latents), str(latents)), str(latents))
    if classifier is not None:
        found, probes = _classifier(classifier)
        statistics = _agreed(statistics, found, str(classifier))
    if "prior" in weights and statistics is None:
        raise UserError(f"{file} has a latent DDIM but no statistics of z: give its latent.pkl with --latents.")

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
        raise UserError(f"{file} has entries in its state_dict that are not tensors: {name_some(map(shown, odd))}.")
    return state


def _fill(state: State, shapes: dict[str, Params], file: str) -> tuple[dict[str, Params], dict[str, int]]:
    """Returns weights for all of `shapes`, and how many of the file's tensors were left unused for which reason."""
    missing, misshapen, used, weights = [], [], set(STATISTICS), {}
    for part, names_of in (("autoencoder", autoencoder_names), ("prior", prior_names)):
        if part not in shapes:
            continue
        flat_shapes, filled = flatten(shapes[part]), {}
        for ours, name in names_of(shapes[part]).items():
            official, shape = EMA + name, flat_shapes[ours].shape
            used.add(official)
            if official not in state:
                missing.append(official)
                continue
            tensor = state[official]
            array = None
            if math.prod(tensor.shape) == math.prod(shape):  # otherwise it is not even read
                array = to_ours(_numbers(tensor, official, file), ours, shape)
            if array is None:
                misshapen.append(f"{official} of shape {tensor.shape} for {shape}")
            filled[ours] = array
        weights[part] = filled
    for problem, names in (("lacks", missing), ("has", misshapen)):
        if names:
            raise UserError(f"{file} {problem} {name_some(names)}: it is not a model of the official code.")
    unused = _reasons(state.keys() - used, UNUSED, file)
    return {part: unflatten(filled) for part, filled in weights.items()}, unused


def _reasons(names: Iterable[str], reasons: dict[str, re.Pattern], file: str) -> dict[str, int]:
    """Counts names by the reason for which they are of no use. Raises UserError for a name without one."""
    counts = collections.Counter(
        next((reason for reason, pattern in reasons.items() if pattern.fullmatch(name)), name) for name in names
    )
    unknown = counts.keys() - reasons.keys()
    if unknown:
        raise UserError(f"{file} has unknown weights {name_some(unknown)}: it is not a model of the official code.")
    return dict(sorted(counts.items()))


def _statistics(tree: Any, file: str) -> LatentStatistics:
    """Reads conds_mean and conds_std of a state_dict or a latent.pkl."""
    tensors = {name: tree.get(name) if isinstance(tree, dict) else None for name in STATISTICS}
    if not all(isinstance(tensor, StoredTensor) for tensor in tensors.values()):
        raise UserError(f"{file} lacks conds_mean or conds_std: it does not hold the statistics of z.")
    return LatentStatistics(*(_numbers(tensor, name, file).reshape(-1) for name, tensor in tensors.items()))


def _numbers(tensor: StoredTensor, name: str, file: str) -> np.ndarray:
    """Reads a tensor as float32. Raises UserError, with its name, unless it holds finite floating point numbers."""
    if tensor.dtype.kind != "f":
        raise UserError(f"{file} has {name} of type {tensor.dtype}, where floating point numbers are expected.")
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


def _classifier(path: str | Path) -> tuple[LatentStatistics, dict[str, Probe]]:
    """Reads the official linear classifier as probes, with the statistics of the z that it was fitted to."""
    file = str(path)
    state = _state_dict(read_checkpoint(path), file)
    tensors = {name: state.get(f"ema_classifier.{name}") for name in ("weight", "bias")}
    if None in tensors.values():
        raise UserError(f"{file} lacks ema_classifier.weight or ema_classifier.bias: it is no official classifier.")
    _reasons(state.keys() - {*STATISTICS, *(f"ema_classifier.{name}" for name in tensors)}, UNUSED_OF_CLASSIFIER, file)
    weight, bias = (_numbers(tensor, f"ema_classifier.{name}", file) for name, tensor in tensors.items())
    if weight.ndim != 2 or bias.shape != (len(CELEBA_ATTRIBUTES),) or len(weight) != len(bias):
        raise UserError(
            f"{file} has a classifier of shape {weight.shape}, and only those of the {len(CELEBA_ATTRIBUTES)} "
            f"attributes of CelebA can be imported."
        )
    probes = {name: Probe(name, weight[i], float(bias[i])) for i, name in enumerate(CELEBA_ATTRIBUTES)}
    return _statistics(state, file), probes


def describe(model: DiffAE) -> str:
    """Returns what an imported model is, as lines for people."""
    sizes = {"encoder": 0, "UNet": 0, "latent DDIM": 0}
    for name, leaf in flatten({"autoencoder": model.params, "prior": model.prior or {}}).items():
        part = "latent DDIM" if name.startswith("prior") else "encoder" if ".encoder." in name else "UNet"
        sizes[part] += leaf.size
    kind = "DDIM baseline" if model.config.model.z_dim is None else "diffusion autoencoder"
    shape = "x".join(str(size) for size in model.image_shape)
    images_seen = model.origin.get("images_seen")
    lines = [
        f"{model.config.name}: a {kind} for images of {shape}",
        f"  images seen: {'not told' if images_seen is None else f'{images_seen:,}'}",
        *(f"  parameters of the {part}: {size:,}" for part, size in sizes.items() if size),
        f"  statistics of z: {'yes' if model.statistics else 'no, so z cannot be normalised'}",
    ]
    if model.probes:
        lines.append(f"  probes: {len(model.probes)} attributes")
    lines += [f"  unused: {count} tensors, {reason}" for reason, count in model.origin["unused"].items()]
    return "\n".join(lines)
