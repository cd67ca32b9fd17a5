"""What a trained model does, as compiled programs: one compilation for each shape and number of steps."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import NamedSharding
from jaxtyping import Array, Float, Int, Key, Shaped

from diffae_jax.data.transforms import to_float
from diffae_jax.diffusion.samplers import ddim_decode, ddim_encode, ddim_progress
from diffae_jax.diffusion.schedule import DDIMGrid, ddim_grid
from diffae_jax.models.functional import Params

LATENT_BATCH = 128  # z that one device draws at a time


@partial(jax.jit, static_argnames="graphdef")
def encode(params: Params, images: Shaped[Array, "n *shape"], *, graphdef: nnx.GraphDef) -> Float[Array, "n d"]:
    """Returns z of images, float in [-1, 1] or uint8, which are scaled here (Sec. 3.2)."""
    return nnx.merge(graphdef, params).encode(to_float(images))


@partial(jax.jit, static_argnames=("graphdef", "schedule", "num_steps"))
def invert(params: Params, images: Array, z: Array | None, *, graphdef, schedule: str, num_steps: int) -> Array:
    """Returns x_T of images, float in [-1, 1] or uint8, and their z (Eq. 8)."""
    grid = ddim_grid(schedule, num_steps)
    return ddim_encode(nnx.merge(graphdef, params).noise_predictor(grid.t, z), to_float(images), grid)


@partial(jax.jit, static_argnames=("graphdef", "schedule", "num_steps", "remat"))
def decode(
    params: Params, x_T: Array, z: Array | None, *, graphdef, schedule: str, num_steps: int, remat: bool = False
) -> Array:
    """Returns the images of x_T and z (Eq. 1); with `remat` the memory of a gradient grows as the root of the steps."""
    grid = ddim_grid(schedule, num_steps)
    return ddim_decode(nnx.merge(graphdef, params).noise_predictor(grid.t, z), x_T, grid, remat=remat)


@partial(jax.jit, static_argnames=("graphdef", "schedule", "num_steps"))
def progress(params: Params, x_T: Array, z: Array | None, *, graphdef, schedule: str, num_steps: int) -> Array:
    """Returns the x_0 that each step of decoding predicts (Fig. 6): [N, steps, *spatial, C]."""
    grid = ddim_grid(schedule, num_steps)
    return jnp.moveaxis(ddim_progress(nnx.merge(graphdef, params).noise_predictor(grid.t, z), x_T, grid), 0, 1)


def _keys(seed: Array, indices: Int[Array, "n"]) -> Key[Array, "2 n"]:
    """Keys for the x_T and for the z of each image, which depend on the seed and its number alone."""
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), indices)
    return jax.vmap(jax.random.split, out_axes=1)(keys)


def _normal(keys: Array, shape: tuple[int, ...]) -> Array:
    return jax.vmap(lambda key: jax.random.normal(key, shape, jnp.float32))(keys)


def _latents(prior: nnx.Module, keys: Array, shape: tuple[int, ...], grid: DDIMGrid) -> Array:
    """Draws a normalised z from the latent DDIM for each key (Sec. 4)."""
    return ddim_decode(prior.noise_predictor(grid.t), _normal(keys, shape), grid, clip=False)


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
    z = _latents(nnx.merge(graphdefs[1], prior), z_keys, mean.shape, latent_grid)
    eps_fn = nnx.merge(graphdefs[0], params).noise_predictor(grid.t, z * std + mean)
    return ddim_decode(eps_fn, _normal(x_keys, shape), grid)


@partial(jax.jit, static_argnames=("graphdef", "schedule", "num_steps", "num_places", "split"))
def latents_of_class(
    prior: Params,
    weights: Array,  # of the probe, negative ones to draw what it is not
    bias: Array,
    seed: Array,
    num_images: Array,
    max_tries: Array,
    *,
    graphdef: nnx.GraphDef,
    schedule: str,
    num_steps: int,
    num_places: int,  # at least num_images, so that a few numbers of images share a program
    split: NamedSharding,  # of candidates over the devices
) -> tuple[Array, Array, Array]:
    """Draws z that a probe accepts, by rejection sampling (Sec. 5.6), in batches until there are enough.

    A candidate of probability p is accepted where p > 0.5, with probability p. Returns the first accepted normalised
    z, `num_images` of them at least, the numbers of their candidates, and how many were accepted in all. Candidate i is
    the z of `sample`'s image i, so what is accepted does not depend on the devices or on how many are wanted.
    """
    grid = ddim_grid(schedule, num_steps)
    network = nnx.merge(graphdef, prior)
    batch_size = LATENT_BATCH * split.mesh.size

    def draw(state):
        z, numbers, accepted, tried = state
        candidates = jax.lax.with_sharding_constraint(tried + jnp.arange(batch_size, dtype=jnp.int32), split)
        _, z_keys = _keys(seed, candidates)
        drawn = _latents(network, z_keys, weights.shape, grid)
        probability = jax.nn.sigmoid(drawn @ weights + bias)
        chance = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, 1), dtype=jnp.float32))(z_keys)
        accept = (probability > 0.5) & (chance < probability) & (candidates < max_tries)
        # the k-th accepted goes to place k; what is refused or too much is put beyond the end, and so dropped
        places = jnp.where(accept, accepted + jnp.cumsum(accept, dtype=jnp.int32) - 1, num_places)
        z = z.at[places].set(drawn, mode="drop")
        numbers = numbers.at[places].set(candidates, mode="drop")
        return z, numbers, accepted + accept.sum(dtype=jnp.int32), tried + batch_size

    def go_on(state):
        _, _, accepted, tried = state
        return (accepted < num_images) & (tried < max_tries)

    z = jnp.zeros((num_places, *weights.shape), jnp.float32)
    nothing = z, jnp.zeros(num_places, jnp.int32), jnp.int32(0), jnp.int32(0)
    return jax.lax.while_loop(go_on, draw, nothing)[:3]
