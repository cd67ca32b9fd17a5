"""Counterfactuals: codes that are moved by gradients until a function of the image says so.

The function f reads decoded images. Adam moves the codes, and a penalty keeps them near the start.
"""

import numbers
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, Shaped

from diffae_jax.runtime.arrays import AnyArray, is_finite, plain, refuse_traced
from diffae_jax.runtime.errors import UserError, counted, shown

Kind = Literal["continuous", "binary", "classes"]  # as of probes

MOVED = {"z": ("z",), "z and x_T": ("z", "x_T")}  # the codes that each value of `on` moves
MAX_STEPS = 10_000
HALVINGS = 8  # of the way from the start to a counterfactual, to find where it first reaches the target
GRADIENT_MEMORY = 8  # a gradient takes about the memory of decoding this number of images


class Counterfactual(NamedTuple):
    """Counterfactuals of N images.

    Attributes:
        images: the decoded counterfactuals, [N, *spatial, C], float32 in [-1, 1].
        reconstruction: the images decoded from the codes at the start, [N, *spatial, C].
        z: the latent codes of the counterfactuals, [N, D].
        x_T: their stochastic codes, [N, *spatial, C].
        f_before: f of each reconstruction, [N] or [N, K].
        f_after: f of each counterfactual, [N] or [N, K].
        distance: how far the codes moved, [N], in the unit of the strength of an edit: the root
            mean square of the change in standard deviations. x_T counts with the same weight as z.
        reached: whether f_after reaches the target, [N].
    """

    images: Float[AnyArray, "n *shape"]
    reconstruction: Float[AnyArray, "n *shape"]
    z: Float[AnyArray, "n d"]
    x_T: Float[AnyArray, "n *shape"]
    f_before: Float[AnyArray, "n *k"]
    f_after: Float[AnyArray, "n *k"]
    distance: Float[AnyArray, "n"]
    reached: Bool[AnyArray, "n"]


class Best(NamedTuple):
    """The best counterfactuals so far, [N, ...] each.

    One that reaches the target is better than one that does not. Of two that do, the nearer one is
    better. Of two that do not, the one with the smaller shortfall is.
    """

    moves: dict[str, Array]
    images: Array
    f: Array
    distance: Array
    shortfall: Array
    reached: Array


# --- what the caller gives, checked --------------------------------------------------------------


def check_settings(on: Any, steps: Any, step_size: Any, penalty: Any) -> None:
    """Raises UserError if a setting of the search is out of range."""
    if not isinstance(on, str) or on not in MOVED:
        raise UserError(f'`on` must be "z" or "z and x_T": the codes to move. It is {shown(on)}.')
    refuse_traced("The number of steps of a counterfactual", steps)
    if not (isinstance(steps, numbers.Integral) and 1 <= steps <= MAX_STEPS):
        raise UserError(f"A counterfactual takes 1 to {MAX_STEPS:,} steps, not {shown(steps)}.")
    for name, value, lowest in (("step_size", step_size, "above 0"), ("penalty", penalty, "at least 0")):
        refuse_traced(f"The {name} of a counterfactual", value)
        enough = isinstance(value, numbers.Real) and (value > 0 if name == "step_size" else value >= 0)
        if not (enough and is_finite(value)):
            raise UserError(f"The {name} of a counterfactual must be a number {lowest}, not {shown(value)}.")


def check_function(f: Any, image_shape: tuple[int, ...], kind: str | None) -> tuple[Kind, int | None]:
    """Returns the kind of f and its number of classes K, or None for one number per image.

    Raises UserError if JAX cannot trace f, or if f returns neither floats [N] nor [N, K].
    """
    if kind not in (None, "continuous", "binary", "classes"):
        raise UserError(f"The kind of f must be continuous, binary or classes, not {shown(kind)}.")
    if not callable(f):
        raise UserError(f"f must be a function of images, not {shown(f)}.")
    outputs = [_output(f, (count, *image_shape)) for count in (2, 3)]  # two counts, because K may be one of them
    if not all(isinstance(output, jax.ShapeDtypeStruct) for output in outputs):
        raise UserError(f"f must return one array, [N] or [N, K], not {shown(outputs[0])}.")
    shape, dtype = outputs[0].shape, outputs[0].dtype
    if [output.shape[:1] for output in outputs] != [(2,), (3,)] or shape[1:] != outputs[1].shape[1:] or len(shape) > 2:
        raise UserError(
            f"f must return one value per image, [N], or logits of K classes, [N, K], but for 2 images it returns an "
            f"array of shape {shape}."
        )
    if not jnp.issubdtype(dtype, jnp.floating):
        raise UserError(
            f"f returns {dtype}, which has no gradient. Return floats, such as the logits of the classes instead of "
            f"their numbers."
        )
    num_classes = shape[1] if len(shape) == 2 else None
    if num_classes == 1:
        raise UserError(f"f returns an array of shape {shape}: one class. Return [N], such as f(images)[:, 0].")
    if kind is not None and (kind == "classes") != (num_classes is not None):
        raise UserError(
            f"f of kind {kind} must return {'[N, K]' if kind == 'classes' else '[N]'}, but for 2 images it returns an "
            f"array of shape {shape}."
        )
    return kind or ("continuous" if num_classes is None else "classes"), num_classes


def _output(f: Callable, shape: tuple[int, ...]) -> Any:
    """Returns the shape and type of f of images, after tracing its gradient as well."""

    def total(images):
        output = f(images)
        leaves = [leaf for leaf in jax.tree.leaves(output) if jnp.issubdtype(jnp.result_type(leaf), jnp.floating)]
        return sum((jnp.sum(leaf, dtype=jnp.float32) for leaf in leaves), jnp.float32(0)), output

    try:
        return jax.eval_shape(jax.grad(total, has_aux=True), jax.ShapeDtypeStruct(shape, jnp.float32))[1]
    except Exception as error:  # f is the caller's: it may raise anything
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"f cannot be differentiated by JAX: {type(error).__name__}: {shown(reason)} Write f with jax.numpy, as a "
            f"function of float32 images {list(shape)}."
        ) from error


def as_target(target: Any, count: int, kind: Kind, num_classes: int | None) -> Shaped[np.ndarray, "n"]:
    """Returns the target of each image, [N]: float32, or int32 for classes.

    Raises UserError if it does not fit f or the number of images.
    """
    refuse_traced("The target of a counterfactual", target)
    values = np.asarray(target)
    if values.shape not in ((), (count,)):
        raise UserError(
            f"The target must be one number or one for each of {counted(count, 'image')}, not an array of shape "
            f"{values.shape}."
        )
    found = [plain(value) for value in values.reshape(-1).tolist()]
    what, fits = _targets_of(kind, num_classes)
    if wrong := [value for value in found if not fits(value)]:
        raise UserError(f"The target{what}, not {shown(wrong[0])}.")
    return np.broadcast_to(values.astype(np.int32 if kind == "classes" else np.float32), (count,))


def _targets_of(kind: Kind, num_classes: int | None) -> tuple[str, Callable[[Any], bool]]:
    """Returns what a target must be, for a message, and a check of a plain value."""
    if kind == "classes":
        what = f" of a function that returns logits must be a class from 0 to {num_classes - 1}"
        return what, lambda value: type(value) is int and 0 <= value < num_classes
    if kind == "binary":
        what = " of a probability must be between 0 and 1, both excluded"
        return what, lambda value: type(value) in (int, float) and 0 < value < 1
    return " must be a number", lambda value: type(value) in (int, float) and is_finite(value)


# --- compiled functions --------------------------------------------------------------------------


def shortfall(f: Array, start: Array, target: Array, kind: Kind) -> Float[Array, "n"]:
    """Returns how much f misses the target by, [N]: 0 or less if f reaches the target.

    Args:
        f: what the function returns, [N], or [N, K] for classes.
        start: what it returned at the start. A number has to come to the target from this side.
        target: the target of each image, [N].
        kind: "continuous": a difference; "binary": a difference of log odds, which has a gradient
            where a probability is flat; "classes": the largest other logit less that of the
            target.
    """
    if kind == "classes":
        is_target = jnp.arange(f.shape[1]) == target[:, None]
        return jnp.where(is_target, -jnp.inf, f).max(1) - jnp.where(is_target, f, -jnp.inf).max(1)
    sign = jnp.where(start <= target, 1, -1)
    return sign * ((_log_odds(target) - _log_odds(f)) if kind == "binary" else target - f)


def _log_odds(p: Array) -> Array:
    smallest = jnp.finfo(jnp.float32).tiny
    return jnp.log(jnp.maximum(p, smallest)) - jnp.log(jnp.maximum(1 - p, smallest))


def at_start(images: Array, target: Array, *, f: Callable, kind: Kind) -> tuple[Array, Array, Array]:
    """Returns f of images, whether the target is reached, and the largest gradient of each image.

    The gradient is that of the shortfall by the image. It is NaN if any of its values is.
    """

    def total(images):
        values = jnp.asarray(f(images), jnp.float32)
        missing = shortfall(values, jax.lax.stop_gradient(values), target, kind)
        return missing.sum(), (values, _is_reached(missing, kind))

    gradient, (values, reached) = jax.grad(total, has_aux=True)(images)
    return values, reached, jnp.abs(gradient).max(_axes(images))


def _is_reached(missing: Array, kind: Kind) -> Array:
    return missing < 0 if kind == "classes" else missing <= 0  # a tie of two classes decides nothing


def search(
    params: Any,
    z: Array,
    x_T: Array,
    target: Array,
    start: Array,
    std: Array,
    steps: Array,
    step_size: Array,
    penalty: Array,
    *,
    f: Callable,
    kind: Kind,
    decode: Callable,
    on: str,
) -> tuple[Best, Array, Array]:
    """Moves codes until f of the decoded images reaches the target, and keeps the best of them.

    Adam steps may pass the target. So bisection then shortens the straight way from the start to
    the best step. Each image is on its own: its result does not depend on the others.

    Args:
        params: the weights of the autoencoder.
        z: latent codes at the start, [N, D].
        x_T: stochastic codes at the start, [N, *spatial, C].
        target: the target of each image, [N].
        start: f of the images decoded at the start, [N] or [N, K].
        std: the standard deviation of each dimension of z, [D].
        steps: steps of Adam.
        step_size: its first step in standard deviations; later ones are smaller, on a cosine.
        penalty: the weight of the squared distance, against a shortfall that is 1 at the start.
        f: images [N, *spatial, C] to values [N] or [N, K].
        kind: the kind of f.
        decode: `programs.decode` with its settings: (params, x_T, z) to images.
        on: a key of MOVED.

    Returns:
        The best counterfactuals; the step at which f or its gradient was not finite, [N], or -1;
        and whether that was f, [N].
    """
    first = shortfall(start, start, target, kind)
    unit = jnp.where(first > 0, first, 1)
    adam = optax.scale_by_adam()

    def evaluate(moves):
        images = decode(params, x_T + moves["x_T"] if "x_T" in moves else x_T, z + moves["z"] * std)
        values = jnp.asarray(f(images), jnp.float32)
        missing = shortfall(values, start, target, kind)
        squares = sum(jnp.square(move).mean(_axes(move)) for move in moves.values())
        return Best(moves, images, values, jnp.sqrt(squares), missing, _is_reached(missing, kind)), squares

    def objective(moves):
        now, squares = evaluate(moves)
        return (jax.nn.relu(now.shortfall) / unit + penalty * squares).sum(), now

    def step(state):
        k, moves, adam_state, best, bad_step, bad_f = state
        gradients, now = jax.grad(objective, has_aux=True)(moves)
        finite_f = _all_finite(now.f)
        bad = ~(finite_f & jnp.stack([_all_finite(gradient) for gradient in gradients.values()]).all(0))
        best = _choose(_is_better(now, best, penalty) & ~bad, now, best)
        updates, adam_state = adam.update(gradients, adam_state)
        rate = step_size * 0.5 * (1 + jnp.cos(jnp.pi * k / steps))
        moves = jax.tree.map(lambda move, update: move - rate * update, moves, updates)
        return k + 1, moves, adam_state, best, jnp.where(bad, k, bad_step), jnp.where(bad, ~finite_f, bad_f)

    def has_to_continue(state):
        k, _, _, best, bad_step, _ = state
        # without a penalty, the first step that reaches the target is taken
        return (k <= steps) & (bad_step < 0).all() & ((penalty > 0) | ~best.reached.all())

    def shorten(_, state):
        best, too_short, enough = state
        part = (too_short + enough) / 2
        now, _ = evaluate({name: move * _as_column(part, move) for name, move in found.moves.items()})
        now_enough = now.reached & best.reached
        return (
            _choose(now_enough, now, best),
            jnp.where(now_enough, too_short, part),
            jnp.where(now_enough, part, enough),
        )

    moves = {name: jnp.zeros_like({"z": z, "x_T": x_T}[name]) for name in MOVED[on]}
    no, far = jnp.zeros(len(z), bool), jnp.full(len(z), jnp.inf)
    nothing = Best(moves, jnp.zeros_like(x_T), start, far, far, no)
    state = jnp.int32(0), moves, adam.init(moves), nothing, jnp.full(len(z), -1, jnp.int32), no
    *_, found, bad_step, bad_f = jax.lax.while_loop(has_to_continue, step, state)
    best, *_ = jax.lax.fori_loop(0, HALVINGS, shorten, (found, jnp.zeros(len(z)), jnp.ones(len(z))))
    return best, bad_step, bad_f


def _axes(array: Array) -> tuple[int, ...]:
    """Returns all axes but that of the images."""
    return tuple(range(1, array.ndim))


def _as_column(values: Array, like: Array) -> Array:
    """Gives one value per image the rank of another array."""
    return values.reshape(-1, *(1 for _ in _axes(like)))


def _all_finite(array: Array) -> Bool[Array, "n"]:
    return jnp.isfinite(array).all(_axes(array))


def _is_better(now: Best, best: Best, penalty: Array) -> Bool[Array, "n"]:
    nearer = (penalty > 0) & (now.distance < best.distance)
    return jnp.where(best.reached, now.reached & nearer, now.reached | (now.shortfall < best.shortfall))


def _choose(take_new: Array, new: Best, old: Best) -> Best:
    """Returns the new or the old counterfactual of each image."""
    return jax.tree.map(lambda a, b: jnp.where(_as_column(take_new, a), a, b), new, old)


# --- what came out, checked ----------------------------------------------------------------------


def check_start(values: np.ndarray, reached: np.ndarray, gradient: np.ndarray, kind: Kind) -> None:
    """Raises UserError if f cannot guide the search from the images at the start."""
    check_finite(np.where(_finite_rows(values) & np.isfinite(gradient), -1, 0), ~_finite_rows(values))
    if kind == "binary" and not ((values >= 0) & (values <= 1)).all():
        image = int(np.argmax((values < 0) | (values > 1)))
        raise UserError(
            f"f of kind binary must return probabilities, but it returns {values[image]:.4g} for image {image}. For "
            f"scores, use kind=continuous."
        )
    left = ~reached
    if left.any() and not gradient[left].any():
        raise UserError(
            f"The gradient of f is 0 for all of {counted(int(left.sum()), 'image')}, so it guides no search. Return "
            f"values that change smoothly with the images, such as logits instead of rounded or saturated values."
        )


def check_finite(bad_step: Int[np.ndarray, "n"], bad_f: Bool[np.ndarray, "n"]) -> None:
    """Raises UserError if f or its gradient was not finite at a step, which is -1 if it was."""
    bad = np.flatnonzero(bad_step >= 0)
    if len(bad):
        image = int(bad[np.argmin(bad_step[bad])])
        what = "f is" if bad_f[image] else "The gradient of f is"
        raise UserError(
            f"{what} not finite for image {image} at step {bad_step[image]}. Check f for logarithms, roots and "
            f"quotients at 0, or use a smaller step_size."
        )


def _finite_rows(values: np.ndarray) -> np.ndarray:
    return np.isfinite(values.reshape(len(values), -1)).all(1)


def not_reached(reached: Bool[np.ndarray, "n"]) -> str | None:
    """Returns a sentence that names images that did not reach the target, or None."""
    left = np.flatnonzero(~reached)
    if not len(left):
        return None
    return (
        f"{counted(len(left), 'counterfactual', of=len(reached), verb='does/do')} not reach the target (the first is "
        f'image {left[0]}). Use more steps, a smaller penalty, or on="z and x_T".'
    )
