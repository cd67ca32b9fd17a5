"""The keys of an experiment: what each means, the values of the paper, and what may change between runs."""

import importlib.util
import math
import numbers
import re
import runpy
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from diffae_jax.diffusion.schedule import NUM_TIMESTEPS
from diffae_jax.runtime.errors import UserError, name_some, shown
from diffae_jax.runtime.files import check_file, expanded, read_json

# Keys that change no result, and the budget, which may be raised: a run may go on with other values of these.
FREE_KEYS = (
    "execution",
    "report",
    "evaluation",
    "train.num_images",
    "prior.num_latents",
    "data.path",
    "data.held_out",
    "data.labels",
)
RETIRED_KEYS = ("data.kind",)  # which the path tells
INTENSITY = re.compile(r"([^%]+?)(%?)\.\.([^%]+?)(%?)")  # LOW..HIGH, or LOW%..HIGH%

CHOICES = {
    "train.schedule": ("linear", "cosine"),
    "prior.schedule": ("constant", "linear", "cosine"),
    "prior.loss": ("l1", "mse"),
    "train.precision": ("auto", "float32", "bfloat16", "float16"),
    "data.crop": ("center", "celeba"),
    "execution.sharding": ("replicated", "fsdp"),
}
PROGRAMS = (  # of an evaluation; the table or figure that each makes is in its file
    "reconstruction",
    "denoising",
    "labels",
    "variations",
    "sampling",
    "conditional",
    "neighbours",
    "out_of_distribution",
    "detection",
    "throughput",
)
MAX_LEVELS = 8  # of a network; the published ones have at most 7
MAX_PRIOR_LAYERS = 50
RANGES = {  # of sizes, what no network of today comes near: a config from elsewhere must not keep anybody busy
    "seed": (0, 2**31 - 1),
    "model.base_channels": (1, 4096),
    "model.embed_dim": (1, 65_536),
    "model.num_heads": (1, 1024),
    "model.dropout": (0.0, 0.99),
    "train.weight_decay": (0.0, 1.0),
    "train.ema_decay": (0.0, 1.0),
    "prior.num_layers": (2, MAX_PRIOR_LAYERS),
    "prior.width": (1, 65_536),
    "prior.weight_decay": (0.0, 1.0),
    "prior.ema_decay": (0.0, 1.0),
    "data.held_out_share": (0.0, 0.99),
    "execution.num_workers": (0, 1024),
    "evaluation.num_samples": (2, 10_000_000),
}
KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", list: "a list", tuple: "a list"}
MAX_NUMBER = 1e18
SEQUENCES = {  # of whole numbers: the fewest and the most, and the greatest
    "image_shape": (2, 4, 65_536),
    "model.channel_mults": (1, MAX_LEVELS, 64),
    "model.encoder_channel_mults": (1, MAX_LEVELS, 64),
    "model.attention_resolutions": (0, MAX_LEVELS, 65_536),
    "evaluation.num_steps": (1, 100, NUM_TIMESTEPS),
    "evaluation.num_sample_steps": (1, 100, NUM_TIMESTEPS),
}
MAX_IMAGE_VALUES = 2**30
MAX_Z_DIM = 65_536
POSITIVE_KEYS = (
    "train.batch_size",
    "train.num_images",
    "train.learning_rate",
    "train.max_grad_norm",
    "prior.batch_size",
    "prior.num_latents",
    "prior.learning_rate",
    "prior.max_grad_norm",
    "execution.num_microbatches",
    "execution.steps_per_dispatch",
    "report.log_every",
    "report.health_every",
    "report.save_every",
    "report.grid_every",
    "report.num_grid_images",
    "report.prior_log_every",
    "report.prior_save_every",
    "report.prior_grid_every",
    "report.num_sample_images",
    "evaluation.num_images",
)


def default() -> ConfigDict:
    """Returns the settings that the paper's experiments share (Table 5, column FFHQ 128); configs change the rest.

    It is locked: a key that is not here is an error, in a config file as on the command line.
    """
    return ConfigDict(
        dict(
            name="",  # of the run; its folder is runs/<name>
            seed=0,
            image_shape=(128, 128, 3),  # (*spatial, channels), 1 to 3 spatial axes
            model=dict(
                base_channels=128,
                channel_mults=(1, 1, 2, 3, 4),  # of the UNet, one a level
                encoder_channel_mults=(1, 1, 2, 3, 4, 4),
                attention_resolutions=(16,),  # levels whose largest spatial size is listed have attention
                embed_dim=512,  # width of the time embedding
                z_dim=512,  # None: the DDIM baseline, without encoder
                num_heads=1,  # of attention
                dropout=0.1,
            ),
            train=dict(
                batch_size=128,  # over all devices
                num_images=130_000_000,  # images seen, repeats counted
                schedule="linear",  # of the noise: linear or cosine
                learning_rate=1e-4,
                weight_decay=0.0,
                ema_decay=0.9999,
                max_grad_norm=1.0,
                precision="auto",  # float32, bfloat16 or float16; auto: what the device computes fastest
            ),
            prior=dict(  # the latent DDIM (Table 6, column FFHQ)
                num_layers=10,
                width=2048,
                schedule="constant",  # of the noise: constant, linear or cosine
                loss="l1",  # or mse
                batch_size=256,  # over all devices
                num_latents=100_000_000,  # z seen, repeats counted
                learning_rate=1e-4,
                weight_decay=0.01,
                ema_decay=0.9999,
                max_grad_norm=1.0,
            ),
            data=dict(
                path="",  # what holds the images: docs/data.md lists what it may be; or digits, those of scikit-learn
                labels="",  # for probes: a table, id or file name first; or folders: the subfolder of each image
                held_out="",  # kept from training: a split, subfolder, [:1000], table or path; empty: a share
                held_out_share=0.0,  # of the images, chosen by a hash of their ids
                crop="center",  # or celeba: 128x128 of the aligned faces
                intensity="",  # values that become -1 and 1: 0..4095, or 0.5%..99.5%; empty: see docs/data.md
                flip=True,  # mirror images at random; off where left and right mean something
                skip_bad=False,  # leave images out that cannot be used, and say so; otherwise they are refused
            ),
            execution=dict(  # how, not what: no value here changes the result beyond rounding
                sharding="replicated",  # of the state; fsdp: spread over all devices
                num_microbatches=1,  # gradients of a batch are accumulated over so many parts
                remat=False,  # compute activations twice instead of keeping them
                num_workers=0,  # processes that read images; 0: threads
                steps_per_dispatch=10,  # of the latent DDIM, so that no step waits for the host
            ),
            report=dict(  # intervals in images seen; those of the prior in z seen
                log_every=100_000,
                health_every=1_000_000,
                save_every=1_000_000,
                grid_every=1_000_000,
                num_grid_images=8,
                num_grid_steps=20,
                prior_log_every=1_000_000,
                prior_save_every=10_000_000,
                prior_grid_every=10_000_000,
                num_sample_images=64,  # in a grid of samples
                tensorboard=False,  # needs the extra of that name
            ),
            evaluation=dict(
                programs=PROGRAMS,  # what is measured: see evaluation/programs/
                num_images=1024,  # at most so many held-out images
                num_steps=(10, 20, 50, 100),  # of inversion and decoding
                num_samples=1000,  # unconditional ones, and of each class
                num_sample_steps=(10, 20, 50, 100),  # of the latent DDIM and of decoding them
                num_code_steps=100,  # of all that is not measured at several numbers of steps
                baseline="",  # a DDIM without z to compare with: a bundle, or the folder of a run
                others=(),  # models with a z of other sizes, to compare with
                foreign="",  # a folder of images of another kind, or the word digits
                keep_images=False,  # of what is generated, as PNG files
                download=False,  # the weights of the networks that LPIPS and FID are measured with, where not at hand
                inception="",  # the file of the weights for FID; empty: where a download lies
                alexnet="",  # and those for LPIPS
                lpips="",
            ),
        )
    ).lock()


def check(config: ConfigDict) -> None:
    """Raises UserError for the first value that no model or run could use, with those that it could."""
    values = _flat(config.to_dict())
    for key, usual in _flat(default().to_dict()).items():
        _check_type(key, values[key], usual)
    for key, choices in CHOICES.items():
        if values[key] not in choices:
            raise UserError(f"{key} must be one of {', '.join(choices)}, not {shown(values[key])}.")
    for key in POSITIVE_KEYS:
        if not values[key] > 0:
            raise UserError(f"{key} must be positive, not {shown(values[key])}.")
    for key, (low, high) in RANGES.items():
        if not low <= values[key] <= high:
            raise UserError(f"{key} must be between {low} and {high}, not {shown(values[key])}.")
    for key, (fewest, most, greatest) in SEQUENCES.items():
        if not fewest <= len(values[key]) <= most:
            raise UserError(f"{key} must have {fewest} to {most} values, not {len(values[key])}.")
        for value in values[key]:
            if type(value) is not int or not 1 <= value <= greatest:
                raise UserError(f"{key} must be positive whole numbers up to {greatest}, not {shown(value)}.")
    if math.prod(config.image_shape) > MAX_IMAGE_VALUES:
        raise UserError(f"image_shape {config.image_shape} has more than {MAX_IMAGE_VALUES:,} values.")
    if config.model.z_dim is not None and not 1 <= config.model.z_dim <= MAX_Z_DIM:
        told = shown(config.model.z_dim)
        raise UserError(f"model.z_dim must be from 1 to {MAX_Z_DIM}, or None for the baseline without z, not {told}.")
    parse_intensity(config.data.intensity)
    for num_steps in (config.evaluation.num_code_steps, config.report.num_grid_steps):
        check_num_steps(num_steps)
    unknown = [name for name in config.evaluation.programs if name not in PROGRAMS]
    if unknown:
        raise UserError(f"evaluation.programs are {', '.join(PROGRAMS)}, not {name_some(map(shown, unknown))}.")
    if not all(isinstance(path, str) for path in config.evaluation.others):
        raise UserError(f"evaluation.others must be paths of models, not {shown(config.evaluation.others)}.")


def check_run(config: ConfigDict) -> None:
    """Raises UserError for what keeps a run from beginning here, but would keep nobody from using its model."""
    check(config)
    if config.report.tensorboard and importlib.util.find_spec("tensorboardX") is None:
        raise UserError('report.tensorboard needs tensorboardX: pip install "diffae_jax[tensorboard]" or leave it off.')
    evaluation = config.evaluation
    paths = (evaluation.baseline, *evaluation.others, evaluation.inception, evaluation.alexnet, evaluation.lpips)
    for path in filter(None, (*paths, evaluation.foreign if evaluation.foreign != "digits" else "")):
        if not expanded(path).exists():  # told now, and not after days of training
            raise UserError(f"{path}, which config.evaluation names, is missing: check the path.")
    if not config.name:
        raise UserError("name is empty, but the run's folder is called by it: give one with --config.name=NAME.")


def check_num_steps(num_steps: int) -> None:
    """Raises UserError for a number of steps that no sampler takes."""
    if not (isinstance(num_steps, numbers.Integral) and 1 <= num_steps <= NUM_TIMESTEPS):
        raise UserError(f"Inversion, decoding and sampling take 1 to {NUM_TIMESTEPS} steps, not {shown(num_steps)}.")


def parse_intensity(text: str) -> tuple[float, float, bool] | None:
    """Reads data.intensity: "LOW..HIGH", or "LOW%..HIGH%" for percentiles, which the flag tells; None where empty.

    Raises UserError for anything else, and unless LOW is less than HIGH.
    """
    if not text:
        return None
    found = INTENSITY.fullmatch(text)
    try:
        low, high = (float(found[1]), float(found[3])) if found else (math.nan, math.nan)
    except ValueError:
        low = high = math.nan
    percent = bool(found and found[2])
    if not (found and found[2] == found[4] and math.isfinite(low + high) and low < high):
        raise UserError(
            f"data.intensity is LOW..HIGH, such as 0..4095, or percentiles, such as 0.5%..99.5%, not {shown(text)}."
        )
    if percent and not (low >= 0 and high <= 100):
        raise UserError(f"The percentiles of data.intensity lie between 0 and 100, not at {shown(text)}.")
    return low, high, percent


def format_intensity(intensity: tuple[float, float] | None) -> str:
    """The inverse of `parse_intensity` for two values."""
    return "" if intensity is None else f"{intensity[0]!r}..{intensity[1]!r}"


def _check_type(key: str, value: Any, usual: Any) -> None:
    """Raises UserError for a value of another type than the usual one, and for numbers that are not finite."""
    if key == "model.z_dim" and value is None:
        return
    if type(value) is not type(usual):
        raise UserError(f"{key} must be {KINDS[type(usual)]}, not {shown(value)}.")
    if type(value) in (int, float) and not abs(value) < MAX_NUMBER:
        raise UserError(f"{key} must be finite and less than {MAX_NUMBER:.0e}, not {shown(value)}.")


def check_seed(seed: int) -> None:
    """Raises UserError for a seed that the random generator does not take."""
    low, high = RANGES["seed"]
    if not (isinstance(seed, numbers.Integral) and low <= seed <= high):
        raise UserError(f"The seed must be between {low} and {high}, in whole numbers, not {shown(seed)}.")


def from_json(path: Path) -> ConfigDict:
    """Reads a config.json; keys that it lacks have their default values, and the values are not checked.

    Keys of earlier versions that mean nothing any more are left out.

    Raises UserError where it is no config: for keys that there are not and for values of the wrong type.
    """
    config = default()
    _update(config, read_json(path), path)
    return config


def from_file(text: str) -> ConfigDict:
    """Reads a config: a config.json, or, as FILE or FILE:VARIANT, what get_config returns in a file of Python.

    Raises UserError where it is none; the values are not checked.
    """
    whole = expanded(text)
    name, _, variant_name = (text, "", "") if whole.exists() else text.partition(":")
    path = expanded(name)
    check_file(path)
    if path.suffix.lower() == ".json":
        return from_json(path)
    try:
        config = runpy.run_path(str(path))["get_config"](*filter(None, [variant_name]))
    except UserError:
        raise
    except Exception as error:  # a program of somebody else's, which may raise anything
        raise UserError(f"{path} is not a config ({type(error).__name__}: {shown(str(error))}).") from error
    if not isinstance(config, ConfigDict) or config.keys() != default().keys():
        raise UserError(f"{path} is not a config: its get_config must return what config.default() does, changed.")
    return config


def _update(config: ConfigDict, values: Any, path: Path, prefix: str = "") -> None:
    """Sets what a config has; what it has not is refused before anybody looks into it."""
    if not isinstance(values, dict):
        raise UserError(
            f"{path} is not a config: {prefix.rstrip('.') or 'it'} is no group of keys, but {shown(values)}."
        )
    for key, value in values.items():
        if prefix + key in RETIRED_KEYS:
            continue
        if key not in config:
            raise UserError(
                f"{path} has the key {shown(prefix + key)}, which this version of diffae_jax does not know."
            )
        if isinstance(config[key], ConfigDict):
            _update(config[key], value, path, f"{prefix}{key}.")
            continue
        if isinstance(value, list):  # JSON has lists alone
            value = tuple(value)
        elif type(value) is int and isinstance(config[key], tuple):  # what once was one number may be several now
            value = (value,)
        try:
            config[key] = value
        except (TypeError, OverflowError) as error:
            kind = KINDS[type(config[key])]
            raise UserError(f"{path} has {prefix}{key} = {shown(value)}, where {kind} is expected.") from error


def variant(config: ConfigDict, name: str | None) -> ConfigDict:
    """Applies the variant behind the colon of --config=FILE:VARIANT.

    "ddim" is the DDIM baseline, without z; "z64", say, has a z of 64 dimensions (Table 2, b to e).
    """
    if name:
        of_z = re.fullmatch("z([1-9][0-9]{0,4})", name)
        if name != "ddim" and not of_z:
            raise UserError(
                f"There is no variant {shown(name)} of {config.name}: give ddim, the baseline without z, or, for "
                f"example, z64 for a z of 64 dimensions."
            )
        config.name += f"_{name}"
        config.model.z_dim = int(of_z[1]) if of_z else None
    return config


def differing_keys(old: dict[str, Any], new: dict[str, Any], also_free: tuple[str, ...] = ()) -> list[str]:
    """Returns "key: old -> new" for every key whose value differs between two plain configs, free keys aside."""
    old, new = _flat(old), _flat(new)
    free_keys = FREE_KEYS + also_free
    return [
        f"{key}: {old.get(key, 'absent')} -> {new.get(key, 'absent')}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key, "absent") != new.get(key, "absent")
        and not any(key == free or key.startswith(free + ".") for free in free_keys)
    ]


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in config.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = list(value) if isinstance(value, tuple) else value
    return flat
