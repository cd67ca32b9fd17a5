"""The compiled functions behind `DiffAE`: pure functions of weights and arrays.

`encode`, `invert`, `decode`, `progress`, `noise`, `sample` and `latents_of_class`. All are
differentiable in their arrays and weights, except `latents_of_class`. JAX compiles each once for
every shape, sampler and number of steps.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import NamedSharding
from jaxtyping import Array, Float, Int, Key, Shaped

from diffae_jax.data.transforms import to_float
from diffae_jax.diffusion.inversion import Inversion, report
from diffae_jax.diffusion.loop import Sampler, walk, walk_with_progress
from diffae_jax.diffusion.process import Process
from diffae_jax.models.functional import Params

LATENT_BATCH = 128  # candidates that one device draws at a time


@partial(jax.jit, static_argnames="graphdef")
def encode(params: Params, images: Shaped[Array, "n *shape"], *, graphdef: nnx.GraphDef) -> Float[Array, "n d"]:
    """Encodes images: image to z.

    Args:
        params: the weights of the autoencoder, such as `DiffAE.params`.
        images: [N, *spatial, C], float in [-1, 1], or uint8, which is scaled to that range.
        graphdef: the structure of the autoencoder, such as `DiffAE.graphdef`.

    Returns:
        The latent codes z, [N, D].

    Source: Sec. 3.2.
    """
    return nnx.merge(graphdef, params).encode(to_float(images))


def _walk(
    network: Any,  # has `noise_predictor(timesteps, *condition)`
    condition: tuple,
    x: Array,
    *,
    process: Process,
    sampler: Sampler,
    num_steps: int,
    clip: bool = True,
    keys: Array | None = None,
    walk: Callable = walk,
) -> Any:
    """Moves x along all steps of the sampler.

    Only this function combines network, process and sampler.
    """
    eps_fn = network.noise_predictor(jnp.asarray(sampler.timesteps(process.abar, num_steps)), *condition)
    return walk(sampler, process.predictor(eps_fn, clip), x, sampler.rows(process.abar, num_steps), keys)


STATIC = ("graphdef", "process", "sampler", "num_steps")  # the functions below are compiled for each value


@partial(jax.jit, static_argnames=STATIC)
def invert(
    params: Params,
    images: Array,
    z: Array | None,
    indices: Array | None = None,
    seed: Array | int = 0,
    *,
    graphdef: nnx.GraphDef,
    **settings: Any,
) -> Inversion:
    """Inverts images: image and z to x_T.

    Args:
        params: the weights of the autoencoder.
        images: [N, *spatial, C], float in [-1, 1] or uint8.
        z: [N, D], or None for a DDIM baseline.
        indices: the indices of the images, [N]; only needed by a stochastic sampler.
        seed: one whole number; only used by a stochastic sampler.
        graphdef: the structure of the autoencoder.
        **settings: `process` (a `Process`), `sampler` (a sampler of `INVERSIONS`), `num_steps` (1
            to 1,000).

    Returns:
        The stochastic codes x_T, [N, *spatial, C], with the network calls and residuals.

    Source: Eq. 8.
    """
    keys = _keys_of_steps(seed, indices)
    carried = _walk(nnx.merge(graphdef, params), (z,), to_float(images), keys=keys, **settings)
    return report(settings["sampler"], settings["num_steps"], carried)


@partial(jax.jit, static_argnames=(*STATIC, "remat"))
def decode(
    params: Params,
    x_T: Array,
    z: Array | None,
    indices: Array | None = None,
    seed: Array | int = 0,
    *,
    graphdef: nnx.GraphDef,
    remat: bool = False,
    **settings: Any,
) -> Array:
    """Decodes codes: z and x_T to image.

    Args:
        params: the weights of the autoencoder.
        x_T: [N, *spatial, C].
        z: [N, D], or None for a DDIM baseline.
        indices: the indices of the images, [N]; only needed by a stochastic sampler.
        seed: one whole number; only used by a stochastic sampler.
        graphdef: the structure of the autoencoder.
        remat: if True, the memory that a gradient needs grows with the square root of the number
            of steps instead of linearly, at the price of recomputation. By default False.
        **settings: `process` (a `Process`), `sampler` (such as `DDIM`), `num_steps` (1 to 1,000).

    Returns:
        The images, [N, *spatial, C].

    Source: Eq. 1.
    """
    keys = _keys_of_steps(seed, indices)
    return _walk(nnx.merge(graphdef, params), (z,), x_T, keys=keys, walk=partial(walk, remat=remat), **settings)[0]


@partial(jax.jit, static_argnames=STATIC)
def progress(
    params: Params,
    x_T: Array,
    z: Array | None,
    indices: Array | None = None,
    seed: Array | int = 0,
    *,
    graphdef: nnx.GraphDef,
    **settings: Any,
) -> Array:
    """Decodes as `decode` does and returns the predicted image at every step.

    Args:
        params: the weights of the autoencoder.
        x_T: [N, *spatial, C].
        z: [N, D], or None for a DDIM baseline.
        indices: the indices of the images, [N]; only needed by a stochastic sampler.
        seed: one whole number; only used by a stochastic sampler.
        graphdef: the structure of the autoencoder.
        **settings: `process` (a `Process`), `sampler` (such as `DDIM`), `num_steps` (1 to 1,000).

    Returns:
        The predicted images x_0, [N, num_steps, *spatial, C].

    Source: Fig. 6.
    """
    keys = _keys_of_steps(seed, indices)
    steps = _walk(nnx.merge(graphdef, params), (z,), x_T, keys=keys, walk=walk_with_progress, **settings)
    return jnp.moveaxis(steps, 0, 1)


def _keys(seed: Array | int, indices: Int[Array, "n"]) -> Key[Array, "2 n"]:
    """Returns two keys for each image, for x_T and z.

    They depend only on the seed and the index of the image.
    """
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), indices)
    return jax.vmap(jax.random.split, out_axes=1)(keys)


def _step_keys(keys: Key[Array, "n"]) -> Key[Array, "n"]:
    """Returns keys for the noise of a stochastic sampler, from the keys of x_T or z."""
    return jax.vmap(lambda key: jax.random.fold_in(key, 2))(keys)


def _keys_of_steps(seed: Array | int, indices: Int[Array, "n"] | None) -> Key[Array, "n"] | None:
    return None if indices is None else _step_keys(_keys(seed, indices)[0])


def _normal(keys: Array, shape: tuple[int, ...]) -> Array:
    return jax.vmap(lambda key: jax.random.normal(key, shape, jnp.float32))(keys)


def _latents(
    prior: nnx.Module, keys: Array, shape: tuple[int, ...], process: Process, sampler: Sampler, num_steps: int
) -> Array:
    """Draws one normalized z from the prior for each key (Sec. 4)."""
    settings = dict(process=process, sampler=sampler, num_steps=num_steps, clip=False, keys=_step_keys(keys))
    return _walk(prior, (), _normal(keys, shape), **settings)[0]


@partial(jax.jit, static_argnames="shape")
def noise(seed: Array, indices: Array, *, shape: tuple[int, ...]) -> Array:
    """Draws random x_T from N(0, I).

    Args:
        seed: one whole number.
        indices: the indices of the images, [N].
        shape: the shape of an image, (*spatial, C).

    Returns:
        x_T, [N, *spatial, C]. Each depends only on the seed and the index of its image.
    """
    return _normal(_keys(seed, indices)[0], shape)


@partial(jax.jit, static_argnames=("graphdefs", "shape", "processes", "samplers", "num_steps"))
def sample(
    params: Params,
    indices: Array,
    prior: Params,
    statistics: tuple[Array, Array],
    seed: Array,
    *,
    graphdefs: tuple[nnx.GraphDef, nnx.GraphDef],
    shape: tuple[int, ...],
    processes: tuple[Process, Process],
    num_steps: tuple[int, int],
    samplers: tuple[Sampler, Sampler],
) -> Array:
    """Draws new images: z from the prior and x_T from N(0, I), then decodes them.

    Args:
        params: the weights of the autoencoder.
        indices: the indices of the images, [N].
        prior: the weights of the prior.
        statistics: mean and standard deviation of z, [D] each.
        seed: one whole number.
        graphdefs: the structures of the autoencoder and of the prior.
        shape: the shape of an image, (*spatial, C).
        processes: the process of images and that of z.
        num_steps: the steps for images and those for z, 1 to 1,000 each.
        samplers: the sampler of images and that of z.

    Returns:
        The images, [N, *spatial, C].

    Source: Sec. 4.
    """
    mean, std = statistics
    x_keys, z_keys = _keys(seed, indices)
    z = _latents(nnx.merge(graphdefs[1], prior), z_keys, mean.shape, processes[1], samplers[1], num_steps[1])
    network, x_T = nnx.merge(graphdefs[0], params), _normal(x_keys, shape)
    settings = dict(process=processes[0], sampler=samplers[0], num_steps=num_steps[0], keys=_step_keys(x_keys))
    return _walk(network, (z * std + mean,), x_T, **settings)[0]


@partial(jax.jit, static_argnames=("graphdef", "process", "sampler", "num_steps", "num_places", "split"))
def latents_of_class(
    prior: Params,
    weights: Array,
    bias: Array,
    seed: Array,
    num_images: Array,
    max_tries: Array,
    *,
    graphdef: nnx.GraphDef,
    process: Process,
    sampler: Sampler,
    num_steps: int,
    num_places: int,
    split: NamedSharding,
) -> tuple[Array, Array, Array]:
    """Draws z that a probe accepts, by rejection sampling, in batches until there are enough.

    Candidate i is the z of image i of `sample`. If the probe predicts a probability p above 0.5
    for it, it is accepted with probability p. So the accepted z do not depend on the devices or on
    `num_images`.

    Args:
        prior: the weights of the prior.
        weights: the weights of the probe, [D].
        bias: the bias of the probe. Negate weights and bias to draw z that the probe rejects.
        seed: one whole number.
        num_images: how many z to accept.
        max_tries: the maximum number of candidates to draw.
        graphdef: the structure of the prior.
        process: the process of z.
        sampler: the sampler of z.
        num_steps: network calls for each z, 1 to 1,000.
        num_places: the rows of the result, at least `num_images`. A rounded number lets several
            values of `num_images` share one compiled function.
        split: the sharding of candidates over the devices.

    Returns:
        The first accepted normalized z, [num_places, D]; the indices of their candidates,
        [num_places]; and how many were accepted in all.

    Source: Sec. 5.6.
    """
    network = nnx.merge(graphdef, prior)
    batch_size = LATENT_BATCH * split.mesh.size

    def draw(state):
        z, indices, accepted, tried = state
        candidates = jax.lax.with_sharding_constraint(tried + jnp.arange(batch_size, dtype=jnp.int32), split)
        _, z_keys = _keys(seed, candidates)
        drawn = _latents(network, z_keys, weights.shape, process, sampler, num_steps)
        probability = jax.nn.sigmoid(drawn @ weights + bias)
        chance = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, 1), dtype=jnp.float32))(z_keys)
        accept = (probability > 0.5) & (chance < probability) & (candidates < max_tries)
        # the k-th accepted goes to place k; rejected and surplus ones go beyond the end and are
        # dropped
        places = jnp.where(accept, accepted + jnp.cumsum(accept, dtype=jnp.int32) - 1, num_places)
        z = z.at[places].set(drawn, mode="drop")
        indices = indices.at[places].set(candidates, mode="drop")
        return z, indices, accepted + accept.sum(dtype=jnp.int32), tried + batch_size

    def has_to_continue(state):
        _, _, accepted, tried = state
        return (accepted < num_images) & (tried < max_tries)

    z = jnp.zeros((num_places, *weights.shape), jnp.float32)
    empty = z, jnp.zeros(num_places, jnp.int32), jnp.int32(0), jnp.int32(0)
    return jax.lax.while_loop(has_to_continue, draw, empty)[:3]
