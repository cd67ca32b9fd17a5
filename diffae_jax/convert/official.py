"""Converts official checkpoints to DiffAE.

The file must have every parameter of the model. Every tensor of the file must be used or
match a known unused name.
"""

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
    to_our_layout,
)
from diffae_jax.convert.released import RELEASED, find
from diffae_jax.convert.settings import ORIGINAL, State, read_settings
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
MAX_COUNT = 2**40  # of steps, and of images per step


def import_official(
    checkpoint: str | Path,
    latents: str | Path | None = None,
    classifier: str | Path | None = None,
    *,
    image_size: int | None = None,
    mesh: Mesh | None = None,
) -> DiffAE:
    """Converts an official PyTorch checkpoint to a `DiffAE`. Nothing in the files is executed.

    Args:
        checkpoint: The `last.ckpt` of an autoencoder, with or without a latent DDIM, or of a DDIM
            baseline. The EMA weights are used. Or the folder of a model in `released.RELEASED`.
            Then, latents and classifier in the folders next to it are used, too.
        latents: The autoencoder's `latent.pkl`, with the mean and standard deviation of z. Needed
            if the checkpoint has a latent DDIM but no statistics.
        classifier: The `last.ckpt` of an official linear classifier. Its 40 CelebA attributes
            become probes, such as `model.probes["Smiling"]`.
        image_size: Height and width of the images in pixels. Needed only if the size is not in
            the checkpoint.
        mesh: The devices that the model runs on. Default: all devices.

    Returns:
        The model. Its `origin` names the checkpoint and counts the unused tensors by reason.

    Raises:
        UserError: A file is damaged or unsafe, has missing or unknown weights, or belongs to a
            different model.

    Source: https://github.com/phizaz/diffae, the official code of the paper.
    """
    files = find(checkpoint)
    checkpoint, latents, classifier = files.checkpoint, latents or files.latents, classifier or files.classifier
    file = str(checkpoint)
    tree = read_checkpoint(checkpoint)
    state, hyper = _state_dict(tree, file), tree.get("hyper_parameters")
    hyper = hyper if isinstance(hyper, dict) else {}
    averaged = {name.removeprefix(EMA): tensor for name, tensor in state.items() if name.startswith(EMA)}
    if not averaged:
        raise UserError(f"{file} has no EMA weights ({EMA}*), so it is not a model of the official code. {ORIGINAL}")
    buffers = {name: tensor for name, tensor in state.items() if "." not in name}
    config = read_settings({**buffers, **averaged}, hyper, file, image_size)
    check(config)

    mesh = mesh or make_mesh()
    shapes = abstract_weights(config, mesh)
    if not any(name.startswith("latent_net.") for name in averaged):
        shapes.pop("prior", None)
    official_names, unused = _match_names(state, shapes, file)
    # Weights may take gigabytes, so they are read after all other checks.
    has_statistics = bool(state.keys() & set(STATISTICS))
    if "prior" in shapes and not has_statistics and latents is None and classifier is None:
        raise UserError(f"{file} has a latent DDIM but no statistics of z. Pass its latent.pkl with --latents.")
    z_dim, probes = config.model.z_dim, {}
    statistics = _read_statistics(state, file, z_dim) if has_statistics else None
    if latents is not None:
        other_statistics = _read_statistics(read_checkpoint(latents), str(latents), z_dim)
        statistics = _check_same_statistics(statistics, other_statistics, str(latents))
    if classifier is not None:
        other_statistics, probes = _read_classifier(classifier, z_dim)
        statistics = _check_same_statistics(statistics, other_statistics, str(classifier))
    weights = {part: _read_weights(state, shapes[part], names, file) for part, names in official_names.items()}

    origin = {"imported_from": Path(checkpoint).name, "unused": unused}
    if checkpoint.parent.name in RELEASED:
        origin["folder"] = checkpoint.parent.name
    counts = tree.get("global_step"), hyper.get("batch_size"), hyper.get("accum_batches", 1)
    if all(type(count) is int and 0 <= count < MAX_COUNT for count in counts):
        origin["images_seen"] = math.prod(counts)  # by the prior, if there is one
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
        raise UserError(f"{file} has no state_dict, so it is not a checkpoint of the official code. {ORIGINAL}")
    invalid = [name for name, value in state.items() if not (isinstance(name, str) and isinstance(value, StoredTensor))]
    if invalid:
        entries = list_some(map(shown, invalid))
        raise UserError(f"{file} has state_dict entries that are not tensors: {entries}. {ORIGINAL}")
    return state


def _match_names(
    state: State, shapes: dict[str, Params], file: str
) -> tuple[dict[str, dict[str, str]], dict[str, int]]:
    """Returns {our dotted name: official name} of each network and counts of unused tensors.

    Raises UserError if a tensor is missing, unknown, or has the wrong size or type. No weights are
    read.
    """
    missing, misshapen, used, official_names = [], [], set(STATISTICS), {}
    for part, names_of in (("autoencoder", autoencoder_names), ("prior", prior_names)):
        if part not in shapes:
            continue
        official_names[part] = {ours: EMA + name for ours, name in names_of(shapes[part]).items()}
        used |= set(official_names[part].values())
        flat_shapes = flatten(shapes[part])
        for ours, official in official_names[part].items():
            if official not in state:
                missing.append(official)
            elif math.prod(state[official].shape) != math.prod(flat_shapes[ours].shape):
                misshapen.append(_shape_mismatch(state[official], official, flat_shapes[ours].shape))
    _raise_if_any(missing, "lacks", file)
    _raise_if_any(misshapen, "has", file)
    unused = _count_unused(state.keys() - used, UNUSED, file)
    for official in used & state.keys():
        _check_tensor(state[official], official, file)
    return official_names, unused


def _read_weights(state: State, shapes: Params, names: dict[str, str], file: str) -> Params:
    """Reads the weights of one network."""
    weights, misshapen, flat_shapes = {}, [], flatten(shapes)
    for ours, official in names.items():
        weights[ours] = to_our_layout(_read_tensor(state[official], official, file), ours, flat_shapes[ours].shape)
        if weights[ours] is None:
            misshapen.append(_shape_mismatch(state[official], official, flat_shapes[ours].shape))
    _raise_if_any(misshapen, "has", file)
    return unflatten(weights)


def _shape_mismatch(tensor: StoredTensor, name: str, shape: tuple[int, ...]) -> str:
    return f"{name} of shape {tensor.shape} instead of {shape}"


def _raise_if_any(names: list[str], problem: str, file: str) -> None:
    if names:
        raise UserError(f"{file} {problem} {list_some(names)}, so it is not a model of the official code. {ORIGINAL}")


def _count_unused(names: Iterable[str], reasons: dict[str, re.Pattern], file: str) -> dict[str, int]:
    """Counts unused tensors by reason. Raises UserError if a name matches no reason."""
    counts = collections.Counter(
        next((reason for reason, pattern in reasons.items() if pattern.fullmatch(name)), name) for name in names
    )
    unknown = counts.keys() - reasons.keys()
    if unknown:
        raise UserError(
            f"{file} has unknown weights {list_some(unknown)}, so it is not a model of the official code. {ORIGINAL}"
        )
    return dict(sorted(counts.items()))


def _read_statistics(tree: Any, file: str, z_dim: int | None) -> LatentStatistics:
    """Reads conds_mean and conds_std from a state_dict or a latent.pkl."""
    tensors = {name: tree.get(name) if isinstance(tree, dict) else None for name in STATISTICS}
    if not all(isinstance(tensor, StoredTensor) for tensor in tensors.values()):
        raise UserError(f"{file} lacks conds_mean or conds_std, the statistics of z. {ORIGINAL}")
    sizes = [math.prod(tensor.shape) for tensor in tensors.values()]
    if sizes != [z_dim, z_dim]:
        model = "the model has no z" if z_dim is None else f"z of the model has {z_dim}"
        raise UserError(
            f"{file} has statistics of {sizes[0]:,} and {sizes[1]:,} dimensions, but {model}. Pass files of one model."
        )
    mean, std = (_read_tensor(tensor, name, file).reshape(-1) for name, tensor in tensors.items())
    with _name_file(file):
        return LatentStatistics(mean, std)


@contextlib.contextmanager
def _name_file(file: str) -> Iterator[None]:
    """Adds the file name to a UserError."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{file} cannot be used: {error}") from error


def _check_tensor(tensor: StoredTensor, name: str, file: str) -> None:
    """Raises UserError if a tensor is not floating point or is not contiguous."""
    if tensor.dtype.kind != "f":
        raise UserError(f"{file} has {name} of type {tensor.dtype} instead of floating point. {ORIGINAL}")
    if extent(tensor.shape, tensor.strides) > math.prod(tensor.shape):  # reading it takes extra memory
        raise UserError(f"{file} has {name} with gaps between its numbers. Save a contiguous copy of the tensor.")


def _read_tensor(tensor: StoredTensor, name: str, file: str) -> np.ndarray:
    """Reads a tensor as float32. Raises UserError if it is not floating point or not finite."""
    _check_tensor(tensor, name, file)
    with np.errstate(over="ignore"):  # values beyond float32 become infinite
        array = tensor.numpy().astype(np.float32, copy=False)
    if not np.isfinite(array).all():
        raise UserError(
            f"{file} has values in {name} that are not finite: its training diverged. Use another checkpoint."
        )
    return array


def _check_same_statistics(ours: LatentStatistics | None, theirs: LatentStatistics, file: str) -> LatentStatistics:
    """Returns `ours`, or `theirs` if `ours` is None. Raises UserError if they differ."""
    if ours is None:
        return theirs
    if ours.mean.shape != theirs.mean.shape or not (
        np.abs(ours.mean - theirs.mean).max() < 0.01 * ours.std.max() and np.allclose(ours.std, theirs.std, rtol=0.01)
    ):
        raise UserError(
            f"{file} belongs to a different autoencoder: its statistics of z differ from the checkpoint's. Pass files "
            f"of one model."
        )
    return ours


def _read_classifier(path: str | Path, z_dim: int | None) -> tuple[LatentStatistics, dict[str, Probe]]:
    """Returns the statistics of z in a classifier file, and its attributes as probes."""
    file = str(path)
    state = _state_dict(read_checkpoint(path), file)
    tensors = {name: state.get(f"ema_classifier.{name}") for name in ("weight", "bias")}
    if None in tensors.values():
        raise UserError(
            f"{file} lacks ema_classifier.weight or ema_classifier.bias, so it is not an official classifier. "
            f"{ORIGINAL}"
        )
    _count_unused(
        state.keys() - {*STATISTICS, *(f"ema_classifier.{name}" for name in tensors)}, UNUSED_OF_CLASSIFIER, file
    )
    statistics = _read_statistics(state, file, z_dim)
    expected_shapes = {"weight": (len(CELEBA_ATTRIBUTES), z_dim), "bias": (len(CELEBA_ATTRIBUTES),)}
    for name, shape in expected_shapes.items():
        if tensors[name].shape != shape:
            raise UserError(
                f"{file} has ema_classifier.{name} of shape {tensors[name].shape} instead of {shape}. Only classifiers "
                f"of the {len(CELEBA_ATTRIBUTES)} CelebA attributes can be imported."
            )
    weight, bias = (_read_tensor(tensors[name], f"ema_classifier.{name}", file) for name in expected_shapes)
    with _name_file(file):
        return statistics, {name: Probe(name, weight[i], float(bias[i])) for i, name in enumerate(CELEBA_ATTRIBUTES)}
