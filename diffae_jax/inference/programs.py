"""What a trained model does, as compiled programs: one compilation for each shape and number of steps."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import NamedSharding
from jaxtyping import Array, Float, Int, Key, Shaped

from diffae_jax.data.transforms import to_float
from diffae_jax.diffusion.process import Process
from diffae_jax.diffusion.samplers import DDIM, Sampler, walk, walk_with_progress
from diffae_jax.models.functional import Params

LATENT_BATCH = 128  # z that one device draws at a time


@partial(jax.jit, static_argnames="graphdef")
def encode(params: Params, images: Shaped[Array, "n *shape"], *, graphdef: nnx.GraphDef) -> Float[Array, "n d"]:
    """Returns z of images, float in [-1, 1] or uint8, which are scaled here (Sec. 3.2)."""
    return nnx.merge(graphdef, params).encode(to_float(images))


def _walk(
    network: Any,  # a module with `noise_predictor(timesteps, *condition)`
    condition: tuple,
    x: Array,
    *,
    process: Process,
    sampler: Sampler,
    num_steps: int,
    clip: bool = True,
    walk: Callable = walk,
) -> Array:
    """Takes x from one end of the diffusion to the other: the one place where network, process and sampler meet."""
    rows = sampler.grid(process.abar, num_steps)
    return walk(sampler, process.predictor(network.noise_predictor(rows.t, *condition), clip), x, rows)


STATIC = ("graphdef", "process", "sampler", "num_steps")  # of the programs below: what they are compiled for


@partial(jax.jit, static_argnames=STATIC)
def invert(params: Params, images: Array, z: Array | None, *, graphdef: nnx.GraphDef, **settings: Any) -> Array:
    """Returns x_T of images, float in [-1, 1] or uint8, and their z (Eq. 8)."""
    return _walk(nnx.merge(graphdef, params), (z,), to_float(images), **settings)


@partial(jax.jit, static_argnames=(*STATIC, "remat"))
def decode(
    params: Params, x_T: Array, z: Array | None, *, graphdef: nnx.GraphDef, remat: bool = False, **settings: Any
) -> Array:
    """Returns the images of x_T and z (Eq. 1); with `remat` the memory of a gradient grows as the root of the steps."""
    return _walk(nnx.merge(graphdef, params), (z,), x_T, walk=partial(walk, remat=remat), **settings)


@partial(jax.jit, static_argnames=STATIC)
def progress(params: Params, x_T: Array, z: Array | None, *, graphdef: nnx.GraphDef, **settings: Any) -> Array:
    """Returns the x_0 that each step of decoding predicts (Fig. 6): [N, steps, *spatial, C]."""
    steps = _walk(nnx.merge(graphdef, params), (z,), x_T, walk=walk_with_progress, **settings)
    return jnp.moveaxis(steps, 0, 1)


def _keys(seed: Array, indices: Int[Array, "n"]) -> Key[Array, "2 n"]:
    """Keys for the x_T and for the z of each image, which depend on the seed and its number alone."""
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), indices)
    return jax.vmap(jax.random.split, out_axes=1)(keys)


def _normal(keys: Array, shape: tuple[int, ...]) -> Array:
    return jax.vmap(lambda key: jax.random.normal(key, shape, jnp.float32))(keys)


def _latents(prior: nnx.Module, keys: Array, shape: tuple[int, ...], process: Process, num_steps: int) -> Array:
    """Draws a normalized z from the latent DDIM for each key (Sec. 4)."""
    z_T = _normal(keys, shape)
    return _walk(prior, (), z_T, process=process, sampler=DDIM, num_steps=num_steps, clip=False)


@partial(jax.jit, static_argnames="shape")
def noise(seed: Array, indices: Array, *, shape: tuple[int, ...]) -> Array:
    """Draws the x_T of the images of these numbers."""
    return _normal(_keys(seed, indices)[0], shape)


@partial(jax.jit, static_argnames=("graphdefs", "shape", "processes", "sampler", "num_steps"))
def sample(
    params: Params,
    indices: Array,
    prior: Params,
    statistics: tuple[Array, Array],  # mean and std of z
    seed: Array,
    *,
    graphdefs: tuple[nnx.GraphDef, nnx.GraphDef],  # here and below: of images, of z
    shape: tuple[int, ...],
    processes: tuple[Process, Process],
    num_steps: tuple[int, int],
    sampler: Sampler,  # of images
) -> Array:
    """Draws z from the latent DDIM and x_T from N(0, I), and decodes them (Sec. 4)."""
    mean, std = statistics
    x_keys, z_keys = _keys(seed, indices)
    z = _latents(nnx.merge(graphdefs[1], prior), z_keys, mean.shape, processes[1], num_steps[1]) * std + mean
    network, x_T = nnx.merge(graphdefs[0], params), _normal(x_keys, shape)
    return _walk(network, (z,), x_T, process=processes[0], sampler=sampler, num_steps=num_steps[0])


@partial(jax.jit, static_argnames=("graphdef", "process", "num_steps", "num_places", "split"))
def latents_of_class(
    prior: Params,
    weights: Array,  # of the probe, negative ones to draw what it is not
    bias: Array,
    seed: Array,
    num_images: Array,
    max_tries: Array,
    *,
    graphdef: nnx.GraphDef,
    process: Process,
    num_steps: int,
    num_places: int,  # at least num_images, so that a few numbers of images share a program
    split: NamedSharding,  # of candidates over the devices
) -> tuple[Array, Array, Array]:
    """Draws z that a probe accepts, by rejection sampling (Sec. 5.6), in batches until there are enough.

    A candidate of probability p is accepted where p > 0.5, with probability p. Returns the first accepted normalized
    z, `num_images` of them at least, the numbers of their candidates, and how many were accepted in all. Candidate i is
    the z of `sample`'s image i, so what is accepted does not depend on the devices or on how many are wanted.
    """
    network = nnx.merge(graphdef, prior)
    batch_size = LATENT_BATCH * split.mesh.size

    def draw(state):
        z, numbers, accepted, tried = state
        candidates = jax.lax.with_sharding_constraint(tried + jnp.arange(batch_size, dtype=jnp.int32), split)
        _, z_keys = _keys(seed, candidates)
        drawn = _latents(network, z_keys, weights.shape, process, num_steps)
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
