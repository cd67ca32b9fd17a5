"""Reads a trained model from a bundle or a run folder."""

from typing import Any

from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from diffae_jax.config import check, from_json
from diffae_jax.data.inspect.scan import intensity_in, read_record
from diffae_jax.data.latents import STATISTICS, read_statistics
from diffae_jax.inference.bundle import CONFIG, MANIFEST, PROBES, Bundle, read_bundle, read_run_probes
from diffae_jax.inference.sharing import local_model
from diffae_jax.inference.weights import abstract_weights, check_weights
from diffae_jax.models import encoder_name
from diffae_jax.models.functional import digest, flatten, unflatten
from diffae_jax.pretrained import names
from diffae_jax.runtime.console import warn
from diffae_jax.runtime.errors import UserError
from diffae_jax.runtime.files import AnyPath, os_errors_as_user_errors, read_json
from diffae_jax.training.checkpoint import latest_step, load_ema

ORIGIN = "origin.json"  # of a run folder


def read_model(path: str | AnyPath, mesh: Mesh, encoder: type[nnx.Module] | None = None) -> dict[str, Any]:
    """Returns the arguments of `DiffAE` from a bundle, or the EMA weights of a run folder.

    `path` may also be the name of a shipped model or an address on the Hub. `encoder` replaces the
    encoder that the config names. Raises UserError if the path is none of these, or if the bundle
    is damaged or has a newer format. Also raises UserError if the run's latent codes belong to
    another autoencoder.
    """
    with local_model(path) as folder:
        if _is_bundle(folder):
            return from_bundle(read_bundle(folder), mesh, encoder)
        return _from_run(folder, mesh, encoder)


def read_config(path: str | AnyPath) -> ConfigDict:
    """Returns the config of a bundle or a run folder, without reading weights.

    Raises UserError if the path is neither, or if its config is invalid.
    """
    with local_model(path) as folder:
        _is_bundle(folder)
        config = from_json(folder / CONFIG)
        check(config)
        return config


def read_origin(folder: AnyPath) -> dict[str, dict[str, Any]]:
    """Returns what a run started from, by kind: "init" or "branch". A run from nothing has none.

    Each value has the path and, under "model", plain values that describe it. Raises UserError if
    the file is damaged.
    """
    path = folder / ORIGIN
    if not path.exists():
        return {}
    origin = read_json(path)
    if not (isinstance(origin, dict) and all(isinstance(each, dict) and "path" in each for each in origin.values())):
        raise UserError(f"{path} is damaged. Restore it from a copy, or remove it: it says what the run started from.")
    return origin


def _is_bundle(path: AnyPath) -> bool:
    """Returns whether a path is a bundle, else a run folder. Raises UserError if it is neither."""
    with os_errors_as_user_errors(path):
        if not path.exists():
            raise UserError(f"{path} is neither a path nor a shipped model: {', '.join(names())}. Check the path.")
        is_bundle = (path / MANIFEST).exists()
        is_run = (path / CONFIG).exists() and (path / "autoencoder" / "checkpoints").is_dir()
    if not is_bundle and not is_run:
        rename = ", or rename it to use the shipped model" if str(path) in names() else ""
        raise UserError(
            f"{path} is neither a bundle nor the folder of a trained run: it has no {MANIFEST}, and no {CONFIG} with "
            f"autoencoder/checkpoints. Check the path{rename}."
        )
    return is_bundle


def from_bundle(bundle: Bundle, mesh: Mesh, encoder: type[nnx.Module] | None = None) -> dict[str, Any]:
    """Returns the arguments of `DiffAE`. Raises UserError if the weights do not fit the config."""
    name_encoder(bundle.config, encoder)
    check(bundle.config)
    expected = abstract_weights(bundle.config, mesh)
    if not any(name.startswith("prior.") for name in bundle.weights):
        expected.pop("prior", None)
    check_weights(bundle.weights, flatten(expected))
    weights = unflatten(bundle.weights)
    return dict(
        config=bundle.config,
        params=weights["autoencoder"],
        statistics=bundle.statistics,
        prior=weights.get("prior"),
        probes=bundle.probes,
        origin=bundle.origin,
        card=bundle.card,
        recommended=bundle.recommended,
    )


def name_encoder(config: ConfigDict, encoder: Any) -> None:
    """Writes the name of an encoder into a config.

    Raises UserError if it cannot be imported by name.
    """
    if encoder is not None:
        try:
            config.model.encoder.kind = encoder_name(encoder)
        except ValueError as error:
            raise UserError(str(error)) from error


def _from_run(path: AnyPath, mesh: Mesh, encoder: type[nnx.Module] | None) -> dict[str, Any]:
    config = from_json(path / CONFIG)
    name_encoder(config, encoder)
    config.data.intensity = intensity_in(read_record(path), path)
    check(config)
    expected = abstract_weights(config, mesh)
    checkpoints = path / "autoencoder" / "checkpoints"
    params, step, damages = load_ema(checkpoints, expected["autoencoder"])
    origin = {"run": config.name, "images_seen": config.train.batch_size * step}
    origin |= {kind: start["model"] for kind, start in read_origin(path).items()}
    parts = dict(config=config, params=params, origin=origin)
    if damages:  # the other parts were made from the damaged checkpoint
        warn("What was made from the damaged checkpoint is left out: the statistics of z, the prior and the probes.")
    elif (path / "latents" / STATISTICS).exists():
        encoded_by = digest(parts["params"])
        parts["statistics"] = read_statistics(path / "latents", encoded_by)
        parts["probes"] = read_run_probes(path / PROBES, encoded_by)
        if latest_step(path / "prior" / "checkpoints") is not None:
            parts["prior"], *_ = load_ema(path / "prior" / "checkpoints", expected["prior"])
    return parts
