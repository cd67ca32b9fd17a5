"""The config of an official checkpoint, read off its weights; what weights cannot tell, off its hyper-parameters."""

import re
from typing import Any

from ml_collections import ConfigDict

from diffae_jax.config import MAX_LEVELS, MAX_PRIOR_LAYERS, default
from diffae_jax.diffusion.schedule import NUM_TIMESTEPS
from diffae_jax.models.unet import BLOCKS_PER_LEVEL
from diffae_jax.runtime.errors import UserError, shown
from diffae_jax.torch_files.stored import StoredTensor

OFFICIAL_ATTENTION = 16  # the one resolution with attention in all published models
SCHEDULES = {"linear": "linear", "const0.008": "constant", "cosine": "cosine"}

# What our networks take for granted: with other values the same weights would give other numbers.
TAKEN_FOR_GRANTED = {
    "T": NUM_TIMESTEPS,
    "beatgans_rescale_timesteps": False,
    "net_enc_pool": "adaptivenonzero",
    "net_enc_tanh": False,
    "net_beatgans_resnet_condition_scale_bias": 1,
}
TAKEN_FOR_GRANTED_OF_PRIOR = {  # other values stand in the files of autoencoders, where they mean nothing
    "net_latent_condition_bias": 1,
    "net_latent_time_last_act": False,
    "latent_znormalize": True,
    "latent_clip_sample": False,
    "latent_rescale_timesteps": False,
}

State = dict[str, StoredTensor]


def read_settings(state: State, hyper: dict[str, Any], file: str, image_size: int | None) -> ConfigDict:
    """Returns the config of the averaged weights `state`, given without their "ema_model." prefix.

    Raises UserError for a network that ours is not, naming the key that shows it.
    """
    has_prior = any(name.startswith("latent_net.") for name in state)
    for key, value in (TAKEN_FOR_GRANTED | (TAKEN_FOR_GRANTED_OF_PRIOR if has_prior else {})).items():
        found = hyper.get(key, value)
        if isinstance(found, type(value) | float) and found != value:
            raise UserError(f"{file} has {key} = {shown(found)}, and only models with {value} can be imported.")

    def shape(name: str, ndim: int) -> tuple[int, ...]:
        if name not in state:
            raise UserError(f"{file} lacks ema_model.{name}: it is not a checkpoint of a diffusion autoencoder.")
        found = state[name].shape
        if len(found) != ndim or 0 in found:
            raise UserError(f"{file} has ema_model.{name} of shape {found}, where {ndim} dimensions are expected.")
        return found

    def count(prefix: str) -> int:
        """Returns how many numbered modules there are below a prefix."""
        return len({name.removeprefix(prefix).partition(".")[0] for name in state if name.startswith(prefix)})

    has_encoder = any(name.startswith("encoder.") for name in state)
    time_embed = "time_embed.time_embed" if has_encoder else "time_embed"
    embed_dim, base_channels = shape(f"{time_embed}.0.weight", 2)

    def levels(prefix: str) -> tuple[tuple[int, ...], list[int]]:
        """Returns the channel multipliers of the way down and the levels that have attention."""
        per_level = BLOCKS_PER_LEVEL + 1  # the resampling block counted, or, on the first level, the first convolution
        num_blocks = count(f"{prefix}input_blocks.")
        if num_blocks % per_level or not 1 <= num_blocks // per_level <= MAX_LEVELS:
            raise UserError(
                f"{file} has {num_blocks} {prefix}input_blocks; only models of {BLOCKS_PER_LEVEL} residual blocks a "
                f"level and 1 to {MAX_LEVELS} levels can be imported."
            )
        first = [f"{prefix}input_blocks.{per_level * level + 1}" for level in range(num_blocks // per_level)]
        channels = [shape(f"{block}.0.in_layers.2.weight", 4)[0] for block in first]
        if any(c % base_channels for c in channels):
            raise UserError(f"{file} has levels of {channels} channels, which are not multiples of {base_channels}.")
        attention = [level for level, block in enumerate(first) if f"{block}.1.qkv.weight" in state]
        return tuple(c // base_channels for c in channels), attention

    channel_mults, attention = levels("")
    conv_in = shape("input_blocks.0.0.weight", 4)
    size = _image_size(state, hyper, len(channel_mults), attention, file, image_size)

    config = default()
    name = hyper.get("name")
    config.name = re.sub(r"[^\w.-]", "_", name[:100]) if isinstance(name, str) and name else "official"
    config.image_shape = (size, size, conv_in[1])
    config.model.update(
        base_channels=base_channels,
        channel_mults=channel_mults,
        encoder_channel_mults=levels("encoder.")[0] if has_encoder else channel_mults,
        attention_resolutions=tuple(size // 2**level for level in attention),
        embed_dim=embed_dim,
        num_heads=_positive(hyper.get("net_beatgans_attn_head")) or 1,
    )
    config.model.z_dim = shape("encoder.out.3.weight", 4)[0] if has_encoder else None
    config.train.schedule = _schedule(hyper, "beta_scheduler", "linear", file)
    if has_prior:
        config.prior.schedule = _schedule(hyper, "latent_beta_scheduler", "const0.008", file)
        config.prior.num_layers = count("latent_net.layers.")
        if config.prior.num_layers > MAX_PRIOR_LAYERS:
            raise UserError(
                f"{file} has {config.prior.num_layers:,} latent_net.layers; only models of up to {MAX_PRIOR_LAYERS} "
                f"can be imported."
            )
        config.prior.width = shape("latent_net.layers.0.linear.weight", 2)[0]
    return config


def _image_size(
    state: State, hyper: dict[str, Any], num_levels: int, attention: list[int], file: str, given: int | None
) -> int:
    """The weights do not depend on it, but the places of attention do: what was trained is wanted."""
    found = given if given is not None else _positive(hyper.get("img_size"))
    if found is None and "x_T" in state and len(state["x_T"].shape) == 4:
        found = state["x_T"].shape[-1]
    if found is None and len(attention) == 1:
        found = OFFICIAL_ATTENTION * 2 ** attention[0]
    if found is None or found < 1 or found % 2 ** (num_levels - 1):
        raise UserError(
            f"{file} does not tell the size of its images (found: {shown(found)}): give --image-size, "
            f"a multiple of {2 ** (num_levels - 1)}."
        )
    return found


def _positive(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _schedule(hyper: dict[str, Any], key: str, usual: str, file: str) -> str:
    name = hyper.get(key, usual)
    if not isinstance(name, str) or name not in SCHEDULES:
        raise UserError(f"{file} has {key} = {shown(name)}; schedules that can be imported: {', '.join(SCHEDULES)}.")
    return SCHEDULES[name]
