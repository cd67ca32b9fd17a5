"""Probes: what they predict from normalized z, how they move z, and how they are stored."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from diffae_jax.runtime.arrays import AnyArray, is_finite, is_traced
from diffae_jax.runtime.errors import UserError, list_some, shown

MAX_FLOAT32 = float(np.finfo(np.float32).max)
KINDS = ("binary", "continuous")  # of a single direction
MAX_CLASSES = 1000  # of a stored probe


def _invalid_score(metric: Any, value: Any, num_images: Any) -> UserError:
    actual = ", ".join(map(shown, (metric, value, num_images)))
    return UserError(
        f"The score of a probe must have a metric name, a finite value and a number of images, not {actual}. Fit the "
        f"probe again."
    )


@dataclasses.dataclass(frozen=True)
class Score:
    """How well a probe predicts its label on images that it was not fitted to.

    Attributes:
        metric: "AUROC" (binary), "accuracy" (classes), "R^2" (continuous), or "share of variance"
            (principal components).
        value: the value of the metric.
        num_images: how many images it was measured on.

    Raises:
        UserError: if the metric has no name, the value is not finite or the number of images is
            negative.
    """

    metric: str
    value: float
    num_images: int

    def __post_init__(self):
        if not (self.metric and abs(self.value) <= MAX_FLOAT32 and 0 <= self.num_images < 2**53):
            raise _invalid_score(self.metric, self.value, self.num_images)

    @classmethod
    def from_json(cls, values: Any) -> "Score | None":
        """Reads a score from JSON values; None is no score. Raises UserError for other values."""
        if values is None:
            return None
        metric, value, num_images = _entries(values, "metric", "value", "num_images")
        if not isinstance(metric, str) or not _is_number(value) or type(num_images) is not int:
            raise _invalid_score(metric, value, num_images)
        return cls(metric, float(value), num_images)


@dataclasses.dataclass(frozen=True, eq=False)
class Probe:
    """A linear function of normalized z, `z @ weights + bias`, which predicts one label.

    For a binary label the function is a logit; for a continuous label it is the value.

    Attributes:
        name: the name of the label.
        weights: [D], the direction in normalized z.
        bias: the constant term.
        kind: "binary" or "continuous"; by default "binary".
        positive: the value of a binary label that a high probability stands for.
        score: how well the probe predicts, or None.

    Raises:
        UserError: if the weights or the bias are not finite, or if the weights have no direction.

    Source: Sec. 5.3, Appendix A.2.
    """

    name: str
    weights: Float[np.ndarray, "*d"]
    bias: float
    kind: str = "binary"
    positive: str = ""
    score: Score | None = None

    def __post_init__(self):
        if not self.name:
            raise UserError("A probe needs a name, such as that of its label.")
        if self.kind not in KINDS:
            raise UserError(
                f"The kind of probe {shown(self.name)} must be {' or '.join(KINDS)}, not {shown(self.kind)}."
            )
        if self.weights.ndim != 1 or not np.isfinite([*self.weights, self.bias]).all():
            shape, count = self.weights.shape, int((~np.isfinite(self.weights)).sum())
            raise UserError(
                f"The weights of probe {shown(self.name)} must be one row of finite numbers, not shape {shape} with "
                f"{count:,} values that are not finite; the bias {self.bias} must be finite. Fit the probe again."
            )
        with np.errstate(over="ignore"):
            norm = np.linalg.norm(self.weights)  # `shift` divides by it
        if not 0 < norm < np.inf:
            raise UserError(
                f"The weights of probe {shown(self.name)} have no direction, because their norm is {norm}. Fit the "
                f"probe again."
            )

    def __repr__(self) -> str:
        return f"Probe({describe(self)}; z of {self.z_dim})"

    @property
    def z_dim(self) -> int:
        """The number of dimensions of z."""
        return len(self.weights)

    def logits(self, z: Float[AnyArray, "n d"]) -> Float[AnyArray, "n"]:
        """Returns the linear function of z.

        Args:
            z: normalized z, [N, D].

        Returns:
            [N]: logits (binary) or values in the unit of the labels (continuous).
        """
        return _product(z, self.weights) + np.float32(self.bias)

    def predict(self, z: Float[AnyArray, "n d"]) -> Float[AnyArray, "n"]:
        """Predicts the label.

        Args:
            z: normalized z, [N, D].

        Returns:
            [N]: probabilities in [0, 1] (binary) or values in the unit of the labels (continuous).
        """
        if self.kind == "continuous":
            return self.logits(z)
        if is_traced(z):
            return jax.nn.sigmoid(self.logits(z))
        from scipy.special import expit  # imported here because SciPy takes 0.2 s

        return expit(self.logits(z))

    def shift(self, strength: float) -> Float[np.ndarray, "d"]:
        """Returns the change of normalized z for an edit.

        Args:
            strength: in units of sqrt(D) standard deviations of z; negative to move away.

        Returns:
            [D], `strength * sqrt(D)` times the unit direction.

        Source: Sec. 5.3.
        """
        direction = self.weights / np.linalg.norm(self.weights)
        return np.float32(strength * np.sqrt(self.z_dim)) * direction

    def strength_to_reach(self, z: Float[AnyArray, "n d"], to: float | int) -> Float[AnyArray, "n"]:
        """Returns the strength after which `predict` returns `to`, in closed form.

        Args:
            z: normalized z, [N, D].
            to: a probability between 0 and 1 (binary), or a value in the unit of the labels.

        Returns:
            The strength for each z, [N].

        Raises:
            UserError: if the probability is not between 0 and 1, or if the value is not finite.
        """
        if self.kind == "binary" and not 0 < to < 1:
            raise UserError(
                f"Probe {shown(self.name)} predicts a probability, so `to` must be between 0 and 1, not {to}."
            )
        if not is_finite(to):
            raise UserError(f"The value `to` of an edit along {shown(self.name)} must be finite, not {shown(to)}.")
        from scipy.special import logit

        target = logit(to) if self.kind == "binary" else to
        weights = self.weights.astype(np.float64)
        return (target - self.bias - _product(z, weights)) / (np.sqrt(self.z_dim) * np.linalg.norm(weights))

    def as_json(self) -> dict[str, Any]:
        """Returns JSON values that `from_json` reads."""
        return {
            "kind": self.kind,
            "name": self.name,
            "weights": [float(w) for w in self.weights],
            "bias": self.bias,
            "positive": self.positive,
            "score": None if self.score is None else dataclasses.asdict(self.score),
        }

    @classmethod
    def from_json(cls, values: Any) -> "Probe":
        """Reads a probe from the values of `as_json`. Raises UserError for other values."""
        name, weights, bias = _entries(values, "name", "weights", "bias")
        if not isinstance(name, str) or not isinstance(weights, list) or not all(map(_is_number, [*weights, bias])):
            raise UserError(
                f"A probe must have a name, and weights and a bias that are finite float32 numbers. The probe "
                f"{shown(name)} does not. Fit it again."
            )
        kind, positive = values.get("kind", "binary"), values.get("positive", "")
        if not isinstance(kind, str) or not isinstance(positive, str):
            raise UserError(f"The kind and the positive value of probe {shown(name)} must be text. Fit it again.")
        score = Score.from_json(values.get("score"))
        return cls(name, np.asarray(weights, np.float32), float(bias), kind, positive, score)


@dataclasses.dataclass(frozen=True, eq=False)
class ClassProbe:
    """A probe of a label with several classes: one binary probe for each class against the rest.

    Attributes:
        name: the name of the label, such as "digit".
        classes: a binary probe for each class, with the name "name=class", such as "digit=2".
        score: how well the probe predicts, or None.

    Raises:
        UserError: if there are not 2 to 1,000 classes, if a probe is not named "name=class", or if
            the probes read z of different numbers of dimensions.
    """

    name: str
    classes: dict[str, Probe]
    score: Score | None = None

    def __post_init__(self):
        if not self.name:
            raise UserError("A probe needs a name, such as that of its label.")
        if not 2 <= len(self.classes) <= MAX_CLASSES:
            raise UserError(
                f"Probe {shown(self.name)} must have 2 to {MAX_CLASSES:,} classes, not {len(self.classes):,}."
            )
        for value, probe in self.classes.items():
            if not value or probe.kind != "binary" or probe.name != f"{self.name}={value}":
                raise UserError(
                    f"Each class of probe {shown(self.name)} must have a name and a binary probe named after it. Class "
                    f"{shown(value)} does not. Fit the probe again."
                )
            if probe.z_dim != self.z_dim:
                raise UserError(f"The classes of probe {shown(self.name)} read z of different numbers of dimensions.")

    def __repr__(self) -> str:
        return f"ClassProbe({describe(self)}; z of {self.z_dim})"

    @property
    def z_dim(self) -> int:
        """The number of dimensions of z."""
        return next(iter(self.classes.values())).z_dim

    def predict(self, z: Float[AnyArray, "n d"]) -> np.ndarray:
        """Predicts the class: the one with the largest logit.

        Args:
            z: normalized z, [N, D].

        Returns:
            The names of the classes, [N].

        Raises:
            UserError: if z is traced, because names cannot be JAX arrays.
        """
        if is_traced(z):
            example = next(iter(self.classes.values())).name
            raise UserError(
                f"Probe {shown(self.name)} predicts the name of a class, which JAX cannot trace. Within jit, grad and "
                f"vmap, predict the probability of one class, for example with the probe {shown(example)}."
            )
        logits = np.stack([probe.logits(z) for probe in self.classes.values()])
        return np.array(list(self.classes))[logits.argmax(0)]

    def as_json(self) -> dict[str, Any]:
        """Returns JSON values that `from_json` reads."""
        return {
            "kind": "classes",
            "name": self.name,
            "classes": {value: probe.as_json() for value, probe in self.classes.items()},
            "score": None if self.score is None else dataclasses.asdict(self.score),
        }

    @classmethod
    def from_json(cls, values: Any) -> "ClassProbe":
        """Reads a probe of classes from the values of `as_json`.

        Raises UserError for other values.
        """
        name, classes = _entries(values, "name", "classes")
        if not isinstance(name, str) or not isinstance(classes, dict) or len(classes) > MAX_CLASSES:
            raise UserError(
                f"A probe of classes has a name and at most {MAX_CLASSES:,} classes, but {shown(name)} does not. Fit "
                f"it again."
            )
        probes = {value: Probe.from_json(probe) for value, probe in classes.items()}
        return cls(name, probes, Score.from_json(values.get("score")))


def from_json(values: Any) -> Probe | ClassProbe:
    """Reads a probe from the values of `as_json`; its default kind is binary.

    Raises UserError for other values.
    """
    is_of_classes = isinstance(values, dict) and values.get("kind") == "classes"
    return ClassProbe.from_json(values) if is_of_classes else Probe.from_json(values)


def directions(probes: Mapping[str, Probe | ClassProbe]) -> dict[str, Probe]:
    """Returns a `Probe` for each direction, by name. Those of classes are named "name=class"."""
    single = {name: probe for name, probe in probes.items() if isinstance(probe, Probe)}
    of_classes = [probe for probe in probes.values() if isinstance(probe, ClassProbe)]
    return {direction.name: direction for probe in of_classes for direction in probe.classes.values()} | single


def find(probes: Mapping[str, Probe | ClassProbe], name: str) -> Probe | ClassProbe:
    """Returns the probe of this name; "name=class" gives the probe of one class.

    Raises UserError, with the existing names, if there is no such probe.
    """
    by_name = {**directions(probes), **probes}
    if name not in by_name:
        names = directions(probes)  # an edit needs one direction, so the message lists single classes too
        existing = (
            f"Choose one of {list_some(names)}"
            if names
            else "The model has no probes: fit one with `diffae probe` or DiffAE.fit_probe"
        )
        raise UserError(f"There is no probe {shown(name)}. {existing}.")
    return by_name[name]


def describe(probe: Probe | ClassProbe) -> str:
    """Describes a probe in one line, such as "smile: binary, AUROC 0.93 on 360 images"."""
    is_class_probe = isinstance(probe, ClassProbe)
    parts = [f"{len(probe.classes)} classes ({list_some(directions({'': probe}))})" if is_class_probe else probe.kind]
    if isinstance(probe, Probe) and probe.positive:
        parts.append(f"positive is '{shown(probe.positive)}'")
    if probe.score is not None:
        parts.append(f"{shown(probe.score.metric)} {probe.score.value:.2f} on {probe.score.num_images:,} images")
    return f"{shown(probe.name)}: {', '.join(parts)}"


def _product(z: AnyArray, weights: np.ndarray) -> AnyArray:
    # on some devices JAX rounds the inputs of a matrix product to fewer bits, but not those of a
    # sum
    return (z * weights).sum(-1) if is_traced(z) else z @ weights


def _entries(values: Any, *keys: str) -> list[Any]:
    return [values.get(key) if isinstance(values, dict) else None for key in keys]


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= MAX_FLOAT32
