"""Probes as values: what they read off normalized z, where they move it, and how they are stored."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from diffae_jax.runtime.arrays import AnyArray, is_traced
from diffae_jax.runtime.errors import UserError, list_some, shown

GREATEST = float(np.finfo(np.float32).max)
KINDS = ("binary", "continuous")  # of a single direction
MAX_CLASSES = 1000  # in a file


@dataclasses.dataclass(frozen=True)
class Score:
    """How well a probe reads its label: a metric, its value, and the number of images that it was measured on.

    Raises UserError unless the metric has a name, the value is finite and the number not negative.
    """

    metric: str
    value: float
    num_images: int

    def __post_init__(self):
        if not (self.metric and abs(self.value) <= GREATEST and 0 <= self.num_images < 2**53):
            raise UserError("The score of a probe holds the name of a metric, a finite value and a number of images.")

    @classmethod
    def from_json(cls, values: Any) -> "Score | None":
        """Raises UserError for values that are not those of a score; None stands for none."""
        if values is None:
            return None
        metric, value, num_images = _entries(values, "metric", "value", "num_images")
        if not isinstance(metric, str) or not _is_number(value) or type(num_images) is not int:
            raise UserError("The score of a probe holds the name of a metric, a finite value and a number of images.")
        return cls(metric, float(value), num_images)


@dataclasses.dataclass(frozen=True, eq=False)
class Probe:
    """A linear function of normalized z: `z @ weights + bias` is the logit of an attribute, or a value that is read.

    Raises UserError unless the weights are one row of finite numbers that has a direction, and the bias is finite.
    """

    name: str
    weights: Float[np.ndarray, "*d"]
    bias: float
    kind: str = "binary"  # or continuous
    positive: str = ""  # the value of a binary label that high logits stand for
    score: Score | None = None

    def __post_init__(self):
        if not self.name:
            raise UserError("A probe needs a name, that of its attribute.")
        if self.kind not in KINDS:
            raise UserError(f"The kind of probe {shown(self.name)} is {' or '.join(KINDS)}, not {shown(self.kind)}.")
        if self.weights.ndim != 1 or not np.isfinite([*self.weights, self.bias]).all():
            raise UserError(f"The weights of probe {shown(self.name)} must be one row of finite numbers.")
        with np.errstate(over="ignore"):
            norm = np.linalg.norm(self.weights)  # `shift` divides by it
        if not 0 < norm < np.inf:
            raise UserError(
                f"The weights of probe {shown(self.name)} have no direction: they are too small or too great."
            )

    def __repr__(self) -> str:
        return f"Probe({describe(self)}; z of {self.z_dim})"

    @property
    def z_dim(self) -> int:
        """The number of dimensions of the z that it reads."""
        return len(self.weights)

    def logits(self, z: Float[AnyArray, "n d"]) -> Float[AnyArray, "n"]:
        """Returns the linear function of each normalized z: the logit of a binary label, the value of a continuous."""
        return _product(z, self.weights) + np.float32(self.bias)

    def predict(self, z: Float[AnyArray, "n d"]) -> Float[AnyArray, "n"]:
        """Returns, for each normalized z, the probability in [0, 1] of a binary label, or the value of a continuous."""
        if self.kind == "continuous":
            return self.logits(z)
        if is_traced(z):
            return jax.nn.sigmoid(self.logits(z))
        from scipy.special import expit  # SciPy is imported where it is used: it costs a fifth of a second

        return expit(self.logits(z))

    def shift(self, strength: float) -> Float[np.ndarray, "d"]:
        """Returns `strength * sqrt(D)` times the direction, for normalized z (Sec. 5.3)."""
        direction = self.weights / np.linalg.norm(self.weights)
        return np.float32(strength * np.sqrt(self.z_dim)) * direction

    def strength_to_reach(self, z: Float[AnyArray, "n d"], to: float | int) -> Float[AnyArray, "n"]:
        """Returns the strength that takes each normalized z to where `predict` gives `to`, in closed form.

        Raises UserError for a probability that is not between 0 and 1, and for a value that is not finite.
        """
        if self.kind == "binary" and not 0 < to < 1:
            raise UserError(
                f"{shown(self.name)} is read as a probability, and edits reach those between 0 and 1, not {to}."
            )
        if not math.isfinite(to):
            raise UserError(f"An edit of {shown(self.name)} reaches a finite number, not {to}.")
        from scipy.special import logit

        target = logit(to) if self.kind == "binary" else to
        weights = self.weights.astype(np.float64)
        return (target - self.bias - _product(z, weights)) / (np.sqrt(self.z_dim) * np.linalg.norm(weights))

    def as_json(self) -> dict[str, Any]:
        """Returns plain values that `from_json` takes."""
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
        """Raises UserError for values that are not those of a probe."""
        name, weights, bias = _entries(values, "name", "weights", "bias")
        if not isinstance(name, str) or not isinstance(weights, list) or not all(map(_is_number, [*weights, bias])):
            raise UserError(
                f"A probe holds name, weights and bias, finite numbers of 32 bits; that of name {shown(name)} does not."
            )
        kind, positive = values.get("kind", "binary"), values.get("positive", "")
        if not isinstance(kind, str) or not isinstance(positive, str):
            raise UserError(f"The kind of probe {shown(name)} and what is positive for it must be text.")
        score = Score.from_json(values.get("score"))
        return cls(name, np.asarray(weights, np.float32), float(bias), kind, positive, score)


@dataclasses.dataclass(frozen=True, eq=False)
class ClassProbe:
    """A label of several classes: for each, a binary probe against the rest that is named "name=class".

    Raises UserError unless there are 2 to 1,000 classes, whose probes have these names and one number of dimensions.
    """

    name: str
    classes: dict[str, Probe]
    score: Score | None = None

    def __post_init__(self):
        if not self.name:
            raise UserError("A probe needs a name, that of its attribute.")
        if not 2 <= len(self.classes) <= MAX_CLASSES:
            raise UserError(
                f"Probe {shown(self.name)} must have 2 to {MAX_CLASSES:,} classes, not {len(self.classes):,}."
            )
        for value, probe in self.classes.items():
            if not value or probe.kind != "binary" or probe.name != f"{self.name}={value}":
                raise UserError(
                    f"The classes of probe {shown(self.name)} have names and binary probes that are called by them; "
                    f"class {shown(value)} has not."
                )
            if probe.z_dim != self.z_dim:
                raise UserError(f"The classes of probe {shown(self.name)} read z of different numbers of dimensions.")

    def __repr__(self) -> str:
        return f"ClassProbe({describe(self)}; z of {self.z_dim})"

    @property
    def z_dim(self) -> int:
        """The number of dimensions of the z that it reads."""
        return next(iter(self.classes.values())).z_dim

    def predict(self, z: Float[AnyArray, "n d"]) -> np.ndarray:
        """Returns the name of the class of each normalized z: that of the greatest logit.

        Raises UserError for z that JAX traces, as names are no arrays of JAX.
        """
        if is_traced(z):
            one = next(iter(self.classes.values())).name
            raise UserError(
                f"Probe {shown(self.name)} predicts the name of a class, which JAX cannot trace: within jit, grad and "
                f"vmap predict the probability of a class, as by the probe {shown(one)}."
            )
        logits = np.stack([probe.logits(z) for probe in self.classes.values()])
        return np.array(list(self.classes))[logits.argmax(0)]

    def as_json(self) -> dict[str, Any]:
        """Returns plain values that `from_json` takes."""
        return {
            "kind": "classes",
            "name": self.name,
            "classes": {value: probe.as_json() for value, probe in self.classes.items()},
            "score": None if self.score is None else dataclasses.asdict(self.score),
        }

    @classmethod
    def from_json(cls, values: Any) -> "ClassProbe":
        """Raises UserError for values that are not those of a probe of classes."""
        name, classes = _entries(values, "name", "classes")
        if not isinstance(name, str) or not isinstance(classes, dict) or len(classes) > MAX_CLASSES:
            raise UserError(
                f"A probe of classes holds a name and at most {MAX_CLASSES:,} classes; that of name {shown(name)} "
                f"does not."
            )
        probes = {value: Probe.from_json(probe) for value, probe in classes.items()}
        return cls(name, probes, Score.from_json(values.get("score")))


def from_json(values: Any) -> Probe | ClassProbe:
    """Returns the probe that `as_json` wrote; without kind it is binary. Raises UserError for other values."""
    is_of_classes = isinstance(values, dict) and values.get("kind") == "classes"
    return ClassProbe.from_json(values) if is_of_classes else Probe.from_json(values)


def directions(probes: Mapping[str, Probe | ClassProbe]) -> dict[str, Probe]:
    """Returns all single directions by name; those of a label of several classes are called "name=class"."""
    single = {name: probe for name, probe in probes.items() if isinstance(probe, Probe)}
    of_classes = [probe for probe in probes.values() if isinstance(probe, ClassProbe)]
    return {part.name: part for probe in of_classes for part in probe.classes.values()} | single


def find(probes: Mapping[str, Probe | ClassProbe], name: str) -> Probe | ClassProbe:
    """Returns the probe of a name, or that of one class by "name=class". Raises UserError with those there are."""
    found = {**directions(probes), **probes}
    if name not in found:
        there_are = f"there are {list_some(found)}" if found else "there are none: make one with fit_probe"
        raise UserError(f"There is no probe {shown(name)}; {there_are}.")
    return found[name]


def describe(probe: Probe | ClassProbe) -> str:
    """Returns a probe in a line, as in "smile: binary, positive is 'yes', AUROC 0.93 on 360 images"."""
    told = [f"{len(probe.classes)} classes" if isinstance(probe, ClassProbe) else probe.kind]
    if isinstance(probe, Probe) and probe.positive:
        told.append(f"positive is '{shown(probe.positive)}'")
    if probe.score is not None:
        told.append(f"{shown(probe.score.metric)} {probe.score.value:.2f} on {probe.score.num_images:,} images")
    return f"{shown(probe.name)}: {', '.join(told)}"


def _product(z: AnyArray, weights: np.ndarray) -> AnyArray:
    # JAX rounds what goes into a matrix product to fewer bits on some devices, but not into a sum
    return (z * weights).sum(-1) if is_traced(z) else z @ weights


def _entries(values: Any, *keys: str) -> list[Any]:
    return [values.get(key) if isinstance(values, dict) else None for key in keys]


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= GREATEST
