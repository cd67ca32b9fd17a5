"""Infers the config of an official checkpoint from the shapes of its weights.

Settings that do not change the weights come from the hyper-parameters in the file.
"""

import re
from typing import Any

from ml_collections import ConfigDict

from diffae_jax.config import MAX_LEVELS, MAX_PRIOR_LAYERS, default
from diffae_jax.convert.names import NUM_RES_BLOCKS
from diffae_jax.diffusion.schedule import NUM_TIMESTEPS
from diffae_jax.runtime.errors import UserError, shown
from diffae_jax.torch_files.stored import StoredTensor

OFFICIAL_ATTENTION = 16  # the resolution with attention in all published models
SCHEDULES = {"linear": "linear", "const0.008": "constant", "cosine": "cosine"}

# Our networks support only these values. With others, the same weights give different results.
FIXED_SETTINGS = {
    "T": NUM_TIMESTEPS,
    "beatgans_rescale_timesteps": False,
    "net_enc_pool": "adaptivenonzero",
    "net_enc_tanh": False,
    "net_beatgans_resnet_condition_scale_bias": 1,
}
FIXED_PRIOR_SETTINGS = {  # checked only with a prior; other files hold unused values here
    "net_latent_condition_bias": 1,
    "net_latent_time_last_act": False,
    "latent_znormalize": True,
    "latent_clip_sample": False,
    "latent_rescale_timesteps": False,
}

ORIGINAL = "Pass the original file of the model, such as last.ckpt or latent.pkl."  # the fix in messages

State = dict[str, StoredTensor]


def read_settings(state: State, hyper: dict[str, Any], file: str, image_size: int | None) -> ConfigDict:
    """Returns the config of the EMA weights `state`, whose names have no "ema_model." prefix.

    Raises UserError if our networks cannot represent the model, and names the key that differs.
    """
    has_prior = any(name.startswith("latent_net.") for name in state)
    for key, value in (FIXED_SETTINGS | (FIXED_PRIOR_SETTINGS if has_prior else {})).items():
        actual = hyper.get(key, value)
        if isinstance(actual, type(value) | float) and actual != value:
            raise UserError(f"{file} has {key} = {shown(actual)}. Only models with {value} can be imported.")

    def shape(name: str, ndim: int) -> tuple[int, ...]:
        if name not in state:
            raise UserError(f"{file} lacks ema_model.{name}, so it is not a model of the official code. {ORIGINAL}")
        actual = state[name].shape
        if len(actual) != ndim or 0 in actual:
            raise UserError(f"{file} has ema_model.{name} of shape {actual} instead of {ndim} dimensions. {ORIGINAL}")
        return actual

    def count(prefix: str) -> int:
        """Returns the number of numbered modules below a prefix."""
        return len({name.removeprefix(prefix).partition(".")[0] for name in state if name.startswith(prefix)})

    has_encoder = any(name.startswith("encoder.") for name in state)
    time_embed = "time_embed.time_embed" if has_encoder else "time_embed"
    embed_dim, base_channels = shape(f"{time_embed}.0.weight", 2)

    def levels(prefix: str) -> tuple[tuple[int, ...], list[int]]:
        """Returns the channel multipliers of the downward half and the levels with attention."""
        per_level = NUM_RES_BLOCKS + 1  # 1: the resampling block or, on level 0, the first convolution
        num_blocks = count(f"{prefix}input_blocks.")
        if num_blocks % per_level or not 1 <= num_blocks // per_level <= MAX_LEVELS:
            raise UserError(
                f"{file} has {num_blocks} {prefix}input_blocks. Only models with {NUM_RES_BLOCKS} residual blocks "
                f"per level and 1 to {MAX_LEVELS} levels can be imported."
            )
        first = [f"{prefix}input_blocks.{per_level * level + 1}" for level in range(num_blocks // per_level)]
        channels = [shape(f"{block}.0.in_layers.2.weight", 4)[0] for block in first]
        if any(c % base_channels for c in channels):
            raise UserError(
                f"{file} has levels of {channels} channels, which are not multiples of {base_channels}. {ORIGINAL}"
            )
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
        num_res_blocks=NUM_RES_BLOCKS,
        num_heads=_positive(hyper.get("net_beatgans_attn_head")) or 1,
    )
    config.model.z_dim = shape("encoder.out.3.weight", 4)[0] if has_encoder else None
    config.train.schedule = _schedule(hyper, "beta_scheduler", "linear", file)
    if has_prior:
        config.prior.schedule = _schedule(hyper, "latent_beta_scheduler", "const0.008", file)
        config.prior.num_layers = count("latent_net.layers.")
        if config.prior.num_layers > MAX_PRIOR_LAYERS:
            raise UserError(
                f"{file} has {config.prior.num_layers:,} latent_net.layers. Only models with up to "
                f"{MAX_PRIOR_LAYERS} can be imported."
            )
        config.prior.width = shape("latent_net.layers.0.linear.weight", 2)[0]
    return config


def _image_size(
    state: State, hyper: dict[str, Any], num_levels: int, attention: list[int], file: str, given: int | None
) -> int:
    """Returns the image size of training.

    The weights fit every size, but the levels with attention depend on the size. Tries, in order:
    `given`, the hyper-parameters, the shape of x_T, and the level with attention.
    """
    size = given if given is not None else _positive(hyper.get("img_size"))
    if size is None and "x_T" in state and len(state["x_T"].shape) == 4:
        size = state["x_T"].shape[-1]
    if size is None and len(attention) == 1:
        size = OFFICIAL_ATTENTION * 2 ** attention[0]
    if size is None or size < 1 or size % 2 ** (num_levels - 1):
        raise UserError(
            f"{file} has no valid image size (found: {shown(size)}). Pass --image-size=N with N a multiple "
            f"of {2 ** (num_levels - 1)}."
        )
    return size


def _positive(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _schedule(hyper: dict[str, Any], key: str, default_name: str, file: str) -> str:
    name = hyper.get(key, default_name)
    if not isinstance(name, str) or name not in SCHEDULES:
        raise UserError(f"{file} has {key} = {shown(name)}. Schedules that can be imported: {', '.join(SCHEDULES)}.")
    return SCHEDULES[name]
