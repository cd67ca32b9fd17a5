"""Finds out why a training step was not finite: the samples and the first layer or weights."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from diffae_jax.runtime.errors import counted, list_some
from diffae_jax.training.state import Params, leaves_by_name
from diffae_jax.training.step import LossFn, mean_loss_and_grads

CALLS = (
    "jit",
    "remat2",
    "checkpoint",
    "custom_jvp_call",
    "custom_vjp_call",
    "closed_call",
)  # operations made of others


def explain(
    params: Params,
    batch: Any,
    keys: Key[Array, "n"],
    names: Sequence[str],
    noun: str,
    *,
    loss_fn: LossFn,
    num_microbatches: int,
) -> str:
    """Explains in a sentence why the loss or a gradient of a step is not finite.

    Computes the step again, and then one sample operation by operation.

    Args:
        params: The weights before the step.
        batch: A pytree of arrays with N samples along the first axis.
        keys: One random key per sample [N].
        names: The name of each sample [N].
        noun: What a sample is called, such as "image".
        loss_fn: The loss function of training.
        num_microbatches: The number of microbatches; it must divide N.

    Returns:
        A sentence, or "" if everything is finite when it is computed again.
    """
    if bad := [name for name, leaf in leaves_by_name(params) if not _is_finite(leaf)]:
        return f"{counted(len(bad), 'weight array', verb='is/are')} not finite ({list_some(bad)})."
    loss = jax.device_get(jax.jit(lambda *inputs: loss_fn(*inputs)[0])(params, batch, keys))
    samples = np.flatnonzero(~np.isfinite(loss))
    if len(samples):
        count = counted(len(samples), noun, of=len(loss))
        sentence = f"The loss is not finite for {count} ({list_some(names[i] for i in samples)})"
        # one sample needs little memory, and its loss does not depend on the others
        one = jax.device_put(jax.tree.map(lambda a: a[samples[:1]], (batch, keys)), jax.local_devices()[0])
        if bad := [name for name, leaf in leaves_by_name(one[0]) if not _is_finite(leaf)]:
            return f"{sentence}, because the {bad[0] or noun} itself is not finite."
        layer = first_bad_layer(loss_fn, jax.device_get(params), *one)
        return sentence + (f"; the first layer whose output is not finite is {layer}." if layer else ".")
    gradients = jax.jit(partial(mean_loss_and_grads, loss_fn, num_microbatches=num_microbatches))
    grads = gradients(params, batch, keys, scale=1.0)[-1]
    bad = [name for name, leaf in leaves_by_name(grads) if not _is_finite(leaf)]
    return f"The loss is finite, but not the gradient of {list_some(bad)}." if bad else ""


def first_bad_layer(loss_fn: LossFn, params: Params, batch: Any, keys: Key[Array, "n"]) -> str | None:
    """Returns the path of the first layer whose output is not finite, such as unet.down.1.conv1.

    The layer of an operation is that of the weights that were used last. Returns None if all
    operations give finite values, or if it happens before any weight is used.
    """
    traced = jax.make_jaxpr(lambda *inputs: loss_fn(*inputs)[0])(params, batch, keys)
    weights = [name.rpartition(".")[0] or name for name, _ in leaves_by_name(params)]
    values = jax.tree.leaves((params, batch, keys))
    search = _Search()
    try:
        search.run(traced.jaxpr, traced.consts, values, weights + [None] * (len(values) - len(weights)))
    except _Found:
        return search.layer
    return None


class _Found(Exception):
    """Raised at the first operation whose result is not finite."""


class _Search:
    """Evaluates a traced function operation by operation, and remembers the layer."""

    def __init__(self):
        self.layer: str | None = None

    def run(self, jaxpr: Any, consts: Sequence[Any], values: Sequence[Any], layers: Sequence[str | None]) -> list[Any]:
        """Returns the results of a function. Raises _Found if one within it is not finite.

        `layers` has the layer of each argument that is a weight, and None for the others.
        """
        known = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *values), strict=True))
        layer_of = dict(zip(jaxpr.invars, layers, strict=True))
        for equation in jaxpr.eqns:
            inputs = [_value(known, name) for name in equation.invars]
            used = [None if hasattr(name, "val") else layer_of.get(name) for name in equation.invars]
            inner = equation.params.get("jaxpr", equation.params.get("call_jaxpr"))
            if equation.primitive.name in CALLS and inner is not None:
                outputs = self.run(getattr(inner, "jaxpr", inner), getattr(inner, "consts", ()), inputs, used)
            else:
                self.layer = next(filter(None, reversed(used)), self.layer)
                settings = equation.primitive.get_bind_params(equation.params)
                functions, settings = settings if isinstance(settings, tuple) else ((), settings)  # older JAX: a pair
                result = equation.primitive.bind(*functions, *inputs, **settings)
                outputs = result if equation.primitive.multiple_results else [result]
                if not all(map(_is_finite, outputs)):
                    raise _Found
            known.update(zip(equation.outvars, outputs, strict=True))
        return [_value(known, name) for name in jaxpr.outvars]


def _value(known: dict[Any, Any], name: Any) -> Any:
    """Returns the value of a variable of a traced function, or of a literal."""
    return name.val if hasattr(name, "val") else known[name]


def _is_finite(values: Any) -> bool:
    return not jnp.issubdtype(values.dtype, jnp.inexact) or bool(jnp.isfinite(values).all())
