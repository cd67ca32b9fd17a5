"""The networks of the paper in PyTorch, with the names of `diffae_jax.models`.

They take images with two spatial axes and channels first, as is usual in PyTorch. Each weight is
found by its name, so `load` takes the weights of our networks.
"""

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from diffae_jax.convert.names import LEAF
from diffae_jax.models.functional import Params, flatten
from diffae_jax.models.ops import NUM_GROUPS

MAX_PERIOD = 10_000  # of the time embedding


def load(network: nn.Module, params: Params) -> None:
    """Copies our weights into a network of the same config."""
    network.load_state_dict({name: torch.from_numpy(array) for name, array in in_their_layout(params).items()})


def in_their_layout(params: Params) -> dict[str, np.ndarray]:
    """Returns our weights, or their gradients, by the names and in the layout of PyTorch."""
    arrays = {}
    for name, array in flatten(params).items():
        module, leaf = name.rsplit(".", 1)
        array = np.moveaxis(array, (-1, -2), (0, 1)) if leaf == "kernel" else np.asarray(array)
        arrays[f"{module}.{LEAF[leaf]}"] = np.ascontiguousarray(array)
    return arrays


def conv(inputs: int, outputs: int, size: int = 3) -> nn.Conv2d:
    """Creates a convolution that keeps the size of the image."""
    return nn.Conv2d(inputs, outputs, size, padding=size // 2)


def group_norm(channels: int) -> nn.GroupNorm:
    """Creates a group normalization."""
    return nn.GroupNorm(NUM_GROUPS, channels)


def timestep_embedding(t: Tensor, dim: int) -> Tensor:
    """Encodes time steps [N] as `dim / 2` cosines and as many sines."""
    exponents = torch.arange(dim // 2, dtype=torch.float64, device=t.device) / (dim // 2)
    angles = t.float()[:, None] * (MAX_PERIOD**-exponents).float()
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class Attention(nn.Module):
    """Self-attention over all positions, with a residual connection."""

    def __init__(self, channels: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.norm = group_norm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)

    def forward(self, h: Tensor) -> Tensor:
        """Returns h [N, C, H, W] plus the attention output."""
        n, channels = h.shape[:2]
        qkv = self.qkv(self.norm(h).flatten(2).transpose(1, 2))  # [N, HW, 3C]
        q, k, v = qkv.reshape(n, -1, self.num_heads, 3 * channels // self.num_heads).transpose(1, 2).chunk(3, dim=-1)
        attended = functional.scaled_dot_product_attention(q, k, v)  # [N, heads, HW, d]
        attended = self.out(attended.transpose(1, 2).reshape(n, -1, channels))
        return h + attended.transpose(1, 2).reshape(h.shape)


class ResBlock(nn.Module):
    """A residual block with optional resampling, followed by optional attention."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        embed_dim: int | None = None,  # None: no second half (the encoder)
        z_dim: int | None = None,
        dropout: float = 0.0,
        resample: Literal["down", "up"] | None = None,
        num_heads: int = 0,  # 0: no attention
    ):
        super().__init__()
        self.resample = resample
        self.dropout = dropout
        self.norm1 = group_norm(inputs)
        self.conv1 = conv(inputs, outputs)
        self.skip = conv(inputs, outputs, size=1) if inputs != outputs else nn.Identity()
        if embed_dim is not None:
            self.time_proj = nn.Linear(embed_dim, 2 * outputs)
            self.z_proj = nn.Linear(z_dim, outputs)
            self.norm2 = group_norm(outputs)
            self.conv2 = conv(outputs, outputs)
        self.attention = Attention(outputs, num_heads) if num_heads else nn.Identity()

    def resampled(self, h: Tensor) -> Tensor:
        """Halves or doubles both spatial axes, or returns h."""
        if self.resample == "down":
            return functional.avg_pool2d(h, 2)
        return functional.interpolate(h, scale_factor=2, mode="nearest") if self.resample == "up" else h

    def forward(self, x: Tensor, t_emb: Tensor | None = None, z: Tensor | None = None) -> Tensor:
        """Returns the output of the block. t_emb and z come after their SiLU."""
        h = self.conv1(self.resampled(functional.silu(self.norm1(x))))
        if t_emb is not None:
            # factor and offset of Eq. 7 are combined first, so that the feature maps are read once
            t_scale, t_shift = self.time_proj(t_emb)[:, :, None, None].chunk(2, dim=1)
            z_factor = 1 + self.z_proj(z)[:, :, None, None]
            h = torch.addcmul(t_shift * z_factor, self.norm2(h), (1 + t_scale) * z_factor)
            h = self.conv2(functional.dropout(functional.silu(h), self.dropout, self.training))
        return self.attention(h + self.skip(self.resampled(x)))


class SemanticEncoder(nn.Module):
    """Turns an image into z."""

    def __init__(
        self,
        *,
        image_shape: tuple[int, ...],
        base_channels: int,
        channel_mults: tuple[int, ...],
        attention_resolutions: tuple[int, ...],
        z_dim: int,
        num_heads: int,
        num_res_blocks: int,
    ):
        super().__init__()
        channels = base_channels * channel_mults[0]
        self.conv_in = conv(image_shape[-1], channels)
        blocks = []
        for level, mult in enumerate(channel_mults):
            heads = num_heads if max(image_shape[:-1]) // 2**level in attention_resolutions else 0
            if level:
                blocks.append(ResBlock(channels, channels, resample="down"))
            for _ in range(num_res_blocks):
                blocks.append(ResBlock(channels, mult * base_channels, num_heads=heads))
                channels = mult * base_channels
        blocks += [ResBlock(channels, channels, num_heads=num_heads), ResBlock(channels, channels)]
        self.blocks = nn.ModuleList(blocks)
        self.norm_out = group_norm(channels)
        self.out = nn.Linear(channels, z_dim)

    def forward(self, x_0: Tensor) -> Tensor:
        """Returns z [N, D] of images [N, C, H, W] in [-1, 1]."""
        h = self.conv_in(x_0)
        for block in self.blocks:
            h = block(h)
        return self.out(functional.silu(self.norm_out(h)).mean((2, 3)))


class UNet(nn.Module):
    """Predicts the noise in x_t, given the time step and z."""

    def __init__(
        self,
        *,
        image_shape: tuple[int, ...],
        base_channels: int,
        channel_mults: tuple[int, ...],
        attention_resolutions: tuple[int, ...],
        embed_dim: int,
        z_dim: int,
        num_heads: int,
        num_res_blocks: int,
        dropout: float,
    ):
        super().__init__()
        self.base_channels = base_channels
        shared = dict(embed_dim=embed_dim, z_dim=z_dim, dropout=dropout)

        def heads(level: int) -> int:
            return num_heads if max(image_shape[:-1]) // 2**level in attention_resolutions else 0

        self.time_in = nn.Linear(base_channels, embed_dim)
        self.time_out = nn.Linear(embed_dim, embed_dim)
        channels = base_channels * channel_mults[0]
        self.conv_in = conv(image_shape[-1], channels)

        skips, down, up = [channels], [], []
        for level, mult in enumerate(channel_mults):
            if level:
                down.append(ResBlock(channels, channels, resample="down", **shared))
                skips.append(channels)
            for _ in range(num_res_blocks):
                down.append(ResBlock(channels, mult * base_channels, num_heads=heads(level), **shared))
                channels = mult * base_channels
                skips.append(channels)
        middle = [ResBlock(channels, channels, num_heads=num_heads, **shared), ResBlock(channels, channels, **shared)]
        for level, mult in reversed(list(enumerate(channel_mults))):
            for _ in range(num_res_blocks + 1):
                up.append(ResBlock(channels + skips.pop(), mult * base_channels, num_heads=heads(level), **shared))
                channels = mult * base_channels
            if level:
                up.append(ResBlock(channels, channels, resample="up", **shared))

        self.down, self.middle, self.up = nn.ModuleList(down), nn.ModuleList(middle), nn.ModuleList(up)
        self.norm_out = group_norm(channels)
        self.conv_out = conv(channels, image_shape[-1])

    def forward(self, x_t: Tensor, t: Tensor, z: Tensor) -> Tensor:
        """Returns the noise in x_t [N, C, H, W], given time steps t [N] and z [N, D]."""
        t_emb = self.time_out(functional.silu(self.time_in(timestep_embedding(t, self.base_channels))))
        t_emb, z = functional.silu(t_emb), functional.silu(z)
        h = self.conv_in(x_t)
        skips = [h]
        for block in self.down:
            h = block(h, t_emb, z)
            skips.append(h)
        for block in self.middle:
            h = block(h, t_emb, z)
        for block in self.up:
            if block.resample is None:
                h = torch.cat([h, skips.pop()], dim=1)
            h = block(h, t_emb, z)
        return self.conv_out(functional.silu(self.norm_out(h)))


class DiffusionAutoencoder(nn.Module):
    """The semantic encoder and the UNet that is conditioned on its z.

    Args:
        config: A config with an encoder, for images with two spatial axes.
    """

    def __init__(self, config: Any):
        super().__init__()
        model = config.model
        shared = dict(
            image_shape=tuple(config.image_shape),
            base_channels=model.base_channels,
            attention_resolutions=tuple(model.attention_resolutions),
            z_dim=model.z_dim,
            num_heads=model.num_heads,
            num_res_blocks=model.num_res_blocks,
        )
        self.encoder = SemanticEncoder(channel_mults=model.encoder_channel_mults, **shared)
        self.unet = UNet(channel_mults=model.channel_mults, embed_dim=model.embed_dim, dropout=model.dropout, **shared)

    def forward(self, x_0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """Returns the noise in x_t [N, C, H, W], predicted with z of x_0."""
        return self.unet(x_t, t, self.encoder(x_0))
