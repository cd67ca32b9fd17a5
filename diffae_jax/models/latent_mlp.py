"""The network of the prior (latent DDIM): eps_omega(z_t, t) (Sec. 4, Appendix A.1, Table 6)."""

from collections.abc import Callable

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from diffae_jax.models.blocks import linear, row_of_time, timestep_embedding, uniform_init

TIME_CHANNELS = 64  # width of the sinusoidal time embedding, as in the official network


class LatentLayer(nnx.Module):
    """A dense layer, scaled by a function of time, followed by LayerNorm and SiLU."""

    def __init__(self, in_features: int, out_features: int, *, embed_dim: int, dtype, rngs: nnx.Rngs):
        def kaiming(inputs, dtype):
            init = nnx.initializers.variance_scaling(2.0, "fan_in", "normal")
            bias = uniform_init(inputs)
            return nnx.Linear(inputs, out_features, kernel_init=init, bias_init=bias, dtype=dtype, rngs=rngs)

        self.linear = kaiming(in_features, dtype)
        self.time_proj = kaiming(embed_dim, None)  # always float32, as in the UNet
        self.norm = nnx.LayerNorm(out_features, epsilon=1e-5, dtype=dtype, rngs=rngs)

    def __call__(self, h: Float[Array, "n in"], t_scale: Float[Array, "#n out"]) -> Float[Array, "n out"]:
        """Returns the output of the layer. The scale is 1 + t_scale."""
        h = self.linear(h)
        return nnx.silu(self.norm((h * (1 + t_scale)).astype(h.dtype)))


class LatentMLP(nnx.Module):
    """Predicts the noise in a normalized latent code z_t, given the time step.

    It is a chain of dense layers. Each layer except the first also gets z_t as input.

    Args:
        z_dim: Dimensions of z.
        num_layers: Number of layers, at least 2. The last one is a plain dense layer.
        width: Width of all layers except the last.
        dtype: Type of the activations; None: float32. The weights are always float32.
        rngs: Random numbers for the initial weights.

    Raises:
        ValueError: There are fewer than 2 layers.

    Source: Appendix A.1, Table 6 and Fig. 8.
    """

    def __init__(
        self,
        *,
        z_dim: int,
        num_layers: int,
        width: int,
        dtype: DTypeLike | None = None,
        rngs: nnx.Rngs,
    ):
        if num_layers < 2:
            raise ValueError(f"The prior needs at least 2 layers, not {num_layers}.")
        self.dtype = dtype
        self.time_in = linear(TIME_CHANNELS, z_dim, rngs=rngs)
        self.time_out = linear(z_dim, z_dim, rngs=rngs)
        sizes = [z_dim] + [width + z_dim] * (num_layers - 1)
        self.layers = nnx.List(
            [LatentLayer(size, width, embed_dim=z_dim, dtype=dtype, rngs=rngs) for size in sizes[:-1]]
        )
        self.out = linear(sizes[-1], z_dim, dtype=dtype, rngs=rngs)

    def time_modulation(self, t: Int[Array, "t"]) -> Float[Array, "t modulation"]:
        """Computes the scales of all layers for time steps t [T]: [T, sum of the widths]."""
        h = nnx.silu(self.time_out(nnx.silu(self.time_in(timestep_embedding(t, TIME_CHANNELS)))))
        return jnp.concatenate([layer.time_proj(h) for layer in self.layers], axis=-1)

    def __call__(self, z_t: Float[Array, "n d"], t: Int[Array, "n"]) -> Float[Array, "n d"]:
        """Predicts the noise.

        Args:
            z_t: Noisy normalized latent codes, [N, D].
            t: Time steps in [0, 1000), [N].

        Returns:
            The predicted noise (or v), float32 [N, D].
        """
        return self.modulated(z_t, self.time_modulation(t))

    def noise_predictor(self, timesteps: Int[Array, "t"]) -> Callable[[Array, Array], Array]:
        """Returns `eps_fn(z_t, t)` for a sampling loop.

        The time modulations are computed once, in advance.

        Args:
            timesteps: All time steps of the loop, [T].

        Returns:
            A function (z_t [N, D], t []) -> predicted noise [N, D]; it gives NaN for other time
            steps.
        """
        table = self.time_modulation(timesteps)
        return lambda z_t, t: self.modulated(z_t, row_of_time(table, timesteps, t)[None])

    def modulated(
        self, z_t: Float[Array, "n d"], time_modulation: Float[Array, "#n modulation"]
    ) -> Float[Array, "n d"]:
        """Computes the part of the network that depends on z_t, given the time modulation."""
        scales = jnp.split(time_modulation, len(self.layers), axis=-1)
        z_t = z_t.astype(self.dtype or z_t.dtype)
        h = z_t[:, :0]
        for layer, t_scale in zip(self.layers, scales, strict=True):
            h = layer(jnp.concatenate([h, z_t], axis=-1), t_scale)
        return self.out(jnp.concatenate([h, z_t], axis=-1)).astype(jnp.float32)
