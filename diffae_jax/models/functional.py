"""Modules as pure functions of their parameters."""

import hashlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import nnx

Params = dict[str | int, Any]  # nested; a list of modules is a dict by place


def split(model: nnx.Module) -> tuple[nnx.GraphDef, Params]:
    """Splits a module into its structure and a nested dict of its parameters; `nnx.merge` joins them again."""
    graphdef, state = nnx.split(model)
    return graphdef, nnx.to_pure_dict(state)


def parameters_only(module: nnx.Module) -> nnx.Module:
    """Puts a module into evaluation mode and drops its random state, so that it holds parameters and nothing else.

    Raises ValueError where it holds anything else.
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
            f"{type(module).__name__} holds {others[0]} beside its parameters, but what it computes must depend on its "
            f"input and its parameters alone: keep constants out of its attributes and normalize with nnx.LayerNorm or "
            f"nnx.GroupNorm."
        )
    return module


class _OneKey(nnx.Rngs):
    """One and the same key for every parameter: where only shapes are wanted, counting keys takes most of the time."""

    def __init__(self):
        super().__init__(0)  # for whatever else a module draws

    def params(self) -> jax.Array:
        return jax.random.key(0)


def abstract_model(build: Callable[[nnx.Rngs], nnx.Module]) -> tuple[nnx.GraphDef, Params]:
    """Splits the module that `build` would make, with shapes in place of arrays: nothing is allocated."""
    return split(nnx.eval_shape(lambda: build(_OneKey())))


def flatten(params: Params) -> dict[str, Any]:
    """Names every leaf by its path: {"unet.down.0.conv1.kernel": ...}."""
    flat = {}
    for key, value in params.items():
        inner = {"": value} if not isinstance(value, dict) else flatten(value)
        flat |= {f"{key}.{name}".rstrip("."): leaf for name, leaf in inner.items()}
    return flat


def unflatten(flat: dict[str, Any]) -> Params:
    """The inverse of `flatten`; numbers in a path are places in a list. Raises ValueError for a path within a leaf."""
    params: Params = {}
    for name, leaf in flat.items():
        *parents, last = (int(part) if part.isdecimal() else part for part in name.split("."))
        node = params
        for part in parents:
            node = node.setdefault(part, {})
            if not isinstance(node, dict):
                raise ValueError(f"{name} lies within another parameter")
        if last in node:
            raise ValueError(f"{name} holds another parameter")
        node[last] = leaf
    return params


def digest(params: Params) -> str:
    """Returns the SHA-256 of all parameters, given on the host: it tells one model from another."""
    sha256 = hashlib.sha256()
    for name, leaf in sorted(flatten(params).items()):
        sha256.update(f"{name} {leaf.dtype} {leaf.shape}\n".encode())
        sha256.update(np.ascontiguousarray(leaf))
    return sha256.hexdigest()


def checkpointed(module: nnx.Module, *args: Any) -> Any:
    """Calls `module`, keeping only its inputs for the backward pass, which computes the rest a second time."""
    graphdef, params = nnx.split(module)
    return jax.checkpoint(lambda params, *args: nnx.merge(graphdef, params)(*args))(params, *args)
