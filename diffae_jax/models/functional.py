"""Splits modules into structure and parameters, so that they can be used as pure functions."""

import functools
import hashlib
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Key

Params = dict[str | int, Any]  # nested; a list of modules becomes a dict by index


def split(model: nnx.Module) -> tuple[nnx.GraphDef, Params]:
    """Splits a module into its structure and a nested dict of its parameters.

    `nnx.merge(structure, parameters)` is the inverse.
    """
    graphdef, state = nnx.split(model)
    return graphdef, nnx.to_pure_dict(state)


def parameters_only(module: nnx.Module) -> nnx.Module:
    """Puts a module into evaluation mode and removes its random state; only parameters remain.

    Raises ValueError if the module has any other state.
    """
    module.eval()
    for node in [node for _, node in nnx.iter_graph(module) if isinstance(node, nnx.Module)]:
        for name, value in list(vars(node).items()):
            if isinstance(value, nnx.Rngs | nnx.RngStream):
                setattr(node, name, None)
    _, rest = nnx.state(module, nnx.Param, ...)
    others = [f"{'.'.join(map(str, path))} ({type(leaf).__name__})" for path, leaf in nnx.to_flat_state(rest)]
    if others:
        raise ValueError(
            f"{type(module).__name__} holds {others[0]}, which is not a parameter. Keep constants out of its "
            f"attributes, and normalize with nnx.LayerNorm or nnx.GroupNorm."
        )
    return module


class _OneKey(nnx.Rngs):
    """Gives the same key to all parameters. Only shapes are needed, and deriving keys is slow."""

    def __init__(self):
        super().__init__(0)  # for other random numbers of a module

    def params(self) -> jax.Array:
        return jax.random.key(0)


def init_params(build: Callable[[nnx.Rngs], nnx.Module], key: Key[Array, ""]) -> Params:
    """Returns the initial weights of the module that `build` creates."""
    count = len(jax.tree.leaves(abstract_model(build)[1]))
    table = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(count))  # one call for all compiles faster
    keys = itertools.chain(table, (jax.random.fold_in(key, i) for i in itertools.count(count)))

    class Keys(nnx.Rngs):
        def params(self) -> jax.Array:
            return next(keys)

    return split(build(Keys(key)))[1]


def abstract_model(build: Callable[[nnx.Rngs], nnx.Module]) -> tuple[nnx.GraphDef, Params]:
    """Splits the module that `build` creates, with shapes instead of arrays.

    The result for equal `build` is computed once: a run needs the same networks several times.
    """
    graphdef, params = _abstract_model(build)
    return graphdef, jax.tree.map(lambda shape: shape, params)  # a new dict for each caller


@functools.lru_cache(maxsize=16)
def _abstract_model(build: Callable[[nnx.Rngs], nnx.Module]) -> tuple[nnx.GraphDef, Params]:
    return split(nnx.eval_shape(lambda: build(_OneKey())))


def flatten(params: Params) -> dict[str, Any]:
    """Flattens nested parameters to a dict by path: {"unet.down.0.conv1.kernel": ...}."""
    flat = {}
    for key, value in params.items():
        inner = {"": value} if not isinstance(value, dict) else flatten(value)
        flat |= {f"{key}.{name}".rstrip("."): leaf for name, leaf in inner.items()}
    return flat


def unflatten(flat: dict[str, Any]) -> Params:
    """Inverts `flatten`; numbers in a path are list indices.

    Raises ValueError if a part of a path is itself a parameter.
    """
    params: Params = {}
    for name, leaf in flat.items():
        *parents, last = (int(part) if part.isdecimal() else part for part in name.split("."))
        node = params
        for part in parents:
            node = node.setdefault(part, {})
            if not isinstance(node, dict):
                raise ValueError(f"A part of the path {name} is itself a parameter.")
        if last in node:
            raise ValueError(f"The path {name} contains another parameter.")
        node[last] = leaf
    return params


def digest(params: Params) -> str:
    """Returns a SHA-256 hash of all parameters, given as host arrays. It identifies a model."""
    sha256 = hashlib.sha256()
    for name, leaf in sorted(flatten(params).items()):
        sha256.update(f"{name} {leaf.dtype} {leaf.shape}\n".encode())
        sha256.update(np.ascontiguousarray(leaf))
    return sha256.hexdigest()


def checkpointed(module: nnx.Module, *args: Any) -> Any:
    """Calls `module` and stores only its inputs. The backward pass recomputes its activations."""
    graphdef, params = nnx.split(module)
    return jax.checkpoint(lambda params, *args: nnx.merge(graphdef, params)(*args))(params, *args)
