"""What a trained model does, as compiled programs: one compilation for each shape and number of steps."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key, Shaped

from diffae_jax.data.transforms import to_float
from diffae_jax.diffusion.samplers import ddim_decode, ddim_encode
from diffae_jax.diffusion.schedule import ddim_grid
from diffae_jax.models.functional import Params


@partial(jax.jit, static_argnames="graphdef")
def encode(params: Params, images: Shaped[Array, "n *shape"], *, graphdef: nnx.GraphDef) -> Float[Array, "n d"]:
    """Returns z of images, float in [-1, 1] or uint8, which are scaled here (Sec. 3.2)."""
    x_0 = images if jnp.issubdtype(images.dtype, jnp.floating) else to_float(images)
    return nnx.merge(graphdef, params).encode(x_0)


@partial(jax.jit, static_argnames=("graphdef", "schedule", "num_steps"))
def invert(params: Params, x_0: Array, z: Array | None, *, graphdef, schedule: str, num_steps: int) -> Array:
    """Returns x_T of images (Eq. 8)."""
    grid = ddim_grid(schedule, num_steps)
    return ddim_encode(nnx.merge(graphdef, params).noise_predictor(grid.t, z), x_0, grid)


@partial(jax.jit, static_argnames=("graphdef", "schedule", "num_steps"))
def decode(params: Params, x_T: Array, z: Array | None, *, graphdef, schedule: str, num_steps: int) -> Array:
    """Returns the images of x_T and z (Eq. 1)."""
    grid = ddim_grid(schedule, num_steps)
    return ddim_decode(nnx.merge(graphdef, params).noise_predictor(grid.t, z), x_T, grid)


def _keys(seed: Array, indices: Int[Array, "n"]) -> Key[Array, "2 n"]:
    """Keys for the x_T and for the z of each image, which depend on the seed and its number alone."""
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), indices)
    return jax.vmap(jax.random.split, out_axes=1)(keys)


def _normal(keys: Array, shape: tuple[int, ...]) -> Array:
    return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)


@partial(jax.jit, static_argnames="shape")
def noise(seed: Array, indices: Array, *, shape: tuple[int, ...]) -> Array:
    """Draws the x_T of the images of these numbers."""
    return _normal(_keys(seed, indices)[0], shape)


@partial(jax.jit, static_argnames=("graphdefs", "shape", "schedules", "num_steps"))
def sample(
    params: Params,
    indices: Array,
    prior: Params,
    statistics: tuple[Array, Array],  # mean and std of z
    seed: Array,
    *,
    graphdefs: tuple[nnx.GraphDef, nnx.GraphDef],  # here and below: of images, of z
    shape: tuple[int, ...],
    schedules: tuple[str, str],
    num_steps: tuple[int, int],
) -> Array:
    """Draws z from the latent DDIM and x_T from N(0, I), and decodes them (Sec. 4)."""
    mean, std = statistics
    grid, latent_grid = (ddim_grid(name, steps) for name, steps in zip(schedules, num_steps, strict=True))
    x_keys, z_keys = _keys(seed, indices)
    z_T = _normal(z_keys, mean.shape)
    z = ddim_decode(nnx.merge(graphdefs[1], prior).noise_predictor(latent_grid.t), z_T, latent_grid, clip=False)
    eps_fn = nnx.merge(graphdefs[0], params).noise_predictor(grid.t, z * std + mean)
    return ddim_decode(eps_fn, _normal(x_keys, shape), grid)
