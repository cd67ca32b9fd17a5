"""Building blocks of encoder and UNet: normalization, residual block, attention, resampling."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Key

from diffae_jax.models.ops import NUM_GROUPS, everywhere, group_statistics, norm_silu
from diffae_jax.models.random_bits import random_bits, random_uniform

Resample = Literal["down", "up"]
Projection = Callable[[int, nnx.Rngs], nnx.Module]  # (channels of a block, rngs) -> a layer of this block


def uniform_init(fan_in: int) -> nnx.Initializer:
    """Initializes from U(-1/sqrt(fan_in), 1/sqrt(fan_in)), the default of PyTorch."""
    bound = 1 / math.sqrt(fan_in)
    return lambda key, shape, dtype=jnp.float32, **_: _uniform(key, bound, shape, dtype)


@partial(jax.jit, static_argnums=(2, 3))  # traced once for all layers of one shape
def _uniform(key: Key[Array, ""], bound: float | Array, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    return (bound * (2 * random_uniform(key, shape) - 1)).astype(dtype)


def initializers(fan_in: int, zero: bool = False) -> dict[str, nnx.Initializer]:
    """Returns initializers of kernel and bias; `zero` for layers that start without effect."""
    init = nnx.initializers.zeros_init() if zero else uniform_init(fan_in)
    return {"kernel_init": init, "bias_init": init}


def linear(in_features: int, out_features: int, *, zero: bool = False, dtype=None, rngs: nnx.Rngs) -> nnx.Linear:
    """Creates a dense layer over the last axis."""
    return nnx.Linear(in_features, out_features, dtype=dtype, rngs=rngs, **initializers(in_features, zero))


def conv(
    in_channels: int, out_channels: int, *, rank: int, size: int = 3, zero: bool = False, dtype=None, rngs: nnx.Rngs
) -> nnx.Conv:
    """Creates a convolution over `rank` spatial axes that keeps their sizes."""
    init = initializers(in_channels * size**rank, zero)
    return nnx.Conv(
        in_channels, out_channels, (size,) * rank, dtype=dtype, rngs=rngs, conv_general_dilated=convolve, **init
    )


def convolve(
    h: Float[Array, "n *spatial c"], kernel: Float[Array, "*window c out"], strides: Any, padding: Any, **settings: Any
) -> Float[Array, "n *spatial out"]:
    """Convolves like `lax.conv_general_dilated`, but with a matrix product for very small inputs.

    If the window has size 3 and no spatial axis is longer than 2, each output depends on the
    entire input. XLA's convolution is then about 20 times slower on a CPU, because it mostly
    processes padding.
    """
    n, *spatial, channels = h.shape
    *window, _, features = kernel.shape
    if max(spatial) > 2 or set(window) != {3}:
        return lax.conv_general_dilated(h, kernel, strides, padding, **settings)
    for axis, size in enumerate(spatial):  # window -> (position in the output, position in the input)
        parts = [lax.slice_in_dim(kernel, 1 - at, 1 - at + size, axis=2 * axis) for at in range(size)]
        kernel = jnp.stack(parts, axis=2 * axis)
    rank = len(spatial)
    outputs, inputs = range(0, 2 * rank, 2), range(1, 2 * rank, 2)
    matrix = kernel.transpose(*inputs, 2 * rank, *outputs, 2 * rank + 1).reshape(math.prod(spatial) * channels, -1)
    return (h.reshape(n, -1) @ matrix).reshape(n, *spatial, features)


def timestep_embedding(t: Int[Array, "n"], dim: int) -> Float[Array, "n {dim}"]:
    """Encodes time steps as `dim / 2` cosines and as many sines: psi(t) of Eq. 7."""
    half = dim // 2
    # computed in float64, because a large t amplifies rounding errors
    frequencies = jnp.asarray(10000.0 ** (-np.arange(half) / half), jnp.float32)
    angles = t.astype(jnp.float32)[:, None] * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def row_of_time(
    table: Float[Array, "t modulation"], timesteps: Int[Array, "t"], t: Int[Array, ""]
) -> Float[Array, "modulation"]:
    """Returns the row of a table for time step t, or NaN if the table has no such row."""
    matches = timesteps == t
    return jnp.where(matches.any(), table[jnp.argmax(matches)], jnp.nan)


class GroupNorm(nnx.Module):
    """Group normalization over 32 groups."""

    def __init__(self, channels: int):
        if channels % NUM_GROUPS:
            raise ValueError(
                f"{channels} channels cannot be split into {NUM_GROUPS} normalization groups: "
                f"choose base_channels and channel multipliers whose products are multiples of {NUM_GROUPS}."
            )
        self.scale = nnx.Param(jnp.ones(channels, jnp.float32))
        self.bias = nnx.Param(jnp.zeros(channels, jnp.float32))

    def __call__(self, h: Float[Array, "n *spatial c"]) -> Float[Array, "n *spatial c"]:
        """Normalizes h."""
        mean, inverse = group_statistics(h)
        a = inverse * self.scale[...]
        return (h * everywhere(a, h) + everywhere(self.bias[...] - mean * a, h)).astype(h.dtype)

    def silu(self, h: Float[Array, "n *spatial c"]) -> Float[Array, "n *spatial c"]:
        """Normalizes h and applies SiLU."""
        return norm_silu(h, *(jnp.broadcast_to(w[...], (len(h), h.shape[-1])) for w in (self.scale, self.bias)))


def adagn_silu(
    norm: GroupNorm,
    h: Float[Array, "n *spatial c"],
    t_scale_shift: Float[Array, "#n two_c"],
    z_scale: Float[Array, "n c"] | None,
) -> Float[Array, "n *spatial c"]:
    """Adaptive group normalization, Eq. 7, and SiLU: silu(z_s * (t_s * GroupNorm(h) + t_b)).

    `t_scale_shift` contains t_s - 1 and t_b, `z_scale` is z_s - 1. All are first combined into one
    factor and one offset per sample and channel.
    """
    t_scale, t_shift = jnp.split(t_scale_shift, 2, axis=-1)
    scale, shift = norm.scale[...] * (1 + t_scale), norm.bias[...] * (1 + t_scale) + t_shift
    if z_scale is not None:
        scale, shift = scale * (1 + z_scale), shift * (1 + z_scale)
    return norm_silu(h, *(jnp.broadcast_to(w, (len(h), h.shape[-1])) for w in (scale, shift)))


def dropout(h: Float[Array, "n *rest"], rate: float, keys: Key[Array, "n"]) -> Float[Array, "n *rest"]:
    """Sets each element to zero with probability `rate`, and scales the others by 1 / (1 - rate).

    Each sample has its own key, so that its mask does not depend on how a batch is split over
    devices or microbatches.
    """
    keep = jax.vmap(lambda key: random_bits(key, h.shape[1:]))(keys) >= np.uint32(rate * 2**32)
    return jnp.where(keep, h / (1 - rate), 0).astype(h.dtype)


def downsample(h: Float[Array, "n *spatial c"]) -> Float[Array, "n *half c"]:
    """Halves each spatial axis by averaging pairs."""
    n, *spatial, channels = h.shape
    pairs = [length for size in spatial for length in (size // 2, 2)]
    return h.reshape(n, *pairs, channels).mean(tuple(range(2, 2 * len(spatial) + 1, 2)))


def upsample(h: Float[Array, "n *spatial c"]) -> Float[Array, "n *double c"]:
    """Doubles each spatial axis by repeating each element."""
    n, *spatial, channels = h.shape
    single = [length for size in spatial for length in (size, 1)]
    pairs = [length for size in spatial for length in (size, 2)]
    repeated = jnp.broadcast_to(h.reshape(n, *single, channels), (n, *pairs, channels))
    return repeated.reshape(n, *(2 * size for size in spatial), channels)


def resampled(h: Float[Array, "n *spatial c"], resample: Resample | None) -> Float[Array, "n *new c"]:
    """Applies `downsample`, `upsample` or nothing."""
    return {None: lambda h: h, "down": downsample, "up": upsample}[resample](h)


class Attention(nnx.Module):
    """Self-attention over all positions, with a residual connection.

    One projection computes heads x (q, k, v); the channels are split by head first. Each of q and
    k is scaled by d^(-1/4), so that their product stays small in half precision. The softmax is
    float32.
    """

    def __init__(self, channels: int, *, num_heads: int, dtype, rngs: nnx.Rngs):
        if channels % num_heads:
            raise ValueError(
                f"{channels} channels cannot be split into {num_heads} attention heads. Set num_heads to a divisor of "
                f"{channels}."
            )
        self.num_heads = num_heads
        self.norm = GroupNorm(channels)
        self.qkv = linear(channels, 3 * channels, dtype=dtype, rngs=rngs)
        self.out = linear(channels, channels, zero=True, dtype=dtype, rngs=rngs)

    def __call__(self, h: Float[Array, "n *spatial c"]) -> Float[Array, "n *spatial c"]:
        """Returns h plus the attention output."""
        n, *_, channels = h.shape
        d = channels // self.num_heads
        qkv = self.qkv(self.norm(h)).reshape(n, -1, self.num_heads, 3 * d)
        q, k, v = jnp.split(qkv, 3, axis=-1)
        scale = d**-0.25
        logits = jnp.einsum("nqhd,nkhd->nhqk", q * scale, k * scale, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
        attended = jnp.einsum("nhqk,nkhd->nqhd", weights, v).reshape(h.shape)
        return h + self.out(attended)


class ResBlock(nnx.Module):
    """A residual block with optional resampling, followed by optional attention.

    The first half is GroupNorm, SiLU, resampling and a convolution. With `embed_dim`, there is a
    second half: AdaGN (Eq. 7), SiLU, dropout and a convolution that starts at zero. The time step
    modulates the second half, and with `z_proj` the condition does, too. The skip connection is
    resampled in the same way, and projected if the number of channels changes.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        rank: int,
        embed_dim: int | None = None,  # width of the time embedding; None: no second half (the encoder)
        z_proj: Projection | None = None,  # creates the projection of the condition; None: no condition
        dropout: float = 0.0,
        resample: Resample | None = None,
        num_heads: int = 0,  # attention heads; 0: no attention
        dtype=None,
        rngs: nnx.Rngs,
    ):
        layer = {"dtype": dtype, "rngs": rngs}
        self.resample = resample
        self.dropout = dropout
        self.norm1 = GroupNorm(in_channels)
        self.conv1 = conv(in_channels, out_channels, rank=rank, **layer)
        self.skip = conv(in_channels, out_channels, rank=rank, size=1, **layer) if in_channels != out_channels else None
        if embed_dim is not None:
            # always float32: in bfloat16 a factor of 1.003 would round to 1
            self.time_proj = linear(embed_dim, 2 * out_channels, rngs=rngs)
            self.z_proj = z_proj(out_channels, rngs) if z_proj is not None else None
            self.norm2 = GroupNorm(out_channels)
            self.conv2 = conv(out_channels, out_channels, rank=rank, zero=True, **layer)
        self.attention = Attention(out_channels, num_heads=num_heads, **layer) if num_heads else None

    def __call__(
        self,
        x: Float[Array, "n *spatial c"],
        t_scale_shift: Float[Array, "#n two_c"] | None = None,
        z_scale: Float[Array, "n out"] | None = None,
        dropout_keys: Key[Array, "n"] | None = None,
    ) -> Float[Array, "n *new out"]:
        """Returns the output of the block. Without `t_scale_shift`, only the first half runs."""
        h = self.norm1.silu(x)
        h = self.conv1(resampled(h, self.resample))
        if t_scale_shift is not None:
            h = adagn_silu(self.norm2, h, t_scale_shift, z_scale)
            if dropout_keys is not None and self.dropout:
                h = dropout(h, self.dropout, dropout_keys)
            h = self.conv2(h)
        x = resampled(x, self.resample)
        h = h + (x if self.skip is None else self.skip(x))
        return h if self.attention is None else self.attention(h)
