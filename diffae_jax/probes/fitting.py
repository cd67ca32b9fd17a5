"""Fits probes to labels with scikit-learn, and scores them on other images.

scikit-learn takes more than a second to import, so only the functions that use it import it.
"""

import collections
import dataclasses
import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float64, Shaped

from diffae_jax.probes.linear import ClassProbe, Probe, Score
from diffae_jax.runtime.arrays import plain, plain_column
from diffae_jax.runtime.errors import UserError, list_some, shown

METRICS = {"binary": "AUROC", "classes": "accuracy", "continuous": "R^2"}
SCORING = {"binary": "roc_auc", "classes": "accuracy", "continuous": "r2"}  # the same metrics in scikit-learn
MOST_CLASSES = 50
MOST_FOLDS = 5
PENALTIES = np.logspace(-2, 4, 7)  # of ridge regression, chosen by leave-one-out cross-validation
# A strong penalty keeps the direction near the difference of class means, so edits stay near the
# data. A weak penalty separates a few more images, but along directions in which z hardly varies.
# With C = 0.01, an SVM recognized 55 % of digits moved by strength 1; with 0.1, 47 %.
INVERSE_PENALTY = 0.01


def is_known(labels: Iterable[Any]) -> Bool[np.ndarray, "n"]:
    """Returns which labels are known: all except None, NaN and empty text."""
    return np.array([label is not None and label == label and label != "" for label in map(plain, labels)], bool)


def kind_of(labels: Iterable[Any]) -> str:
    """Returns the kind of known labels: "binary", "classes", "continuous" or "text".

    Labels with up to two different values are binary. Text and whole numbers with up to 50 values
    are classes. Text with more values is "text", which no probe can be fitted to.
    """
    distinct = set(labels)
    is_text = any(isinstance(label, str) for label in distinct)
    if len(distinct) <= 2:
        return "binary"
    if len(distinct) <= MOST_CLASSES and (is_text or all(float(label).is_integer() for label in distinct)):
        return "classes"
    return "text" if is_text else "continuous"


def fit(
    name: str,
    z_normalized: Shaped[np.ndarray, "..."],
    labels: Iterable[Any],
    *,
    kind: str | None = None,
    positive_unlabeled: bool = False,
    held_out: tuple[np.ndarray, Iterable[Any]] | None = None,
) -> Probe | ClassProbe:
    """Fits a probe of one label to normalized z.

    Args:
        name: the name of the probe.
        z_normalized: normalized z, [N, D].
        labels: a label for each z, [N] or [N, 1]: text, numbers or booleans. None, NaN, NA and
            empty text are left out.
        kind: "binary", "classes" or "continuous"; by default that of `kind_of`. The greater of two
            values is positive.
        positive_unlabeled: if True, labels of 1 or True are positive and all other images, also
            those without a label, count as negative. Positives get a larger weight, so that both
            groups weigh the same. By default False.
        held_out: normalized z [M, D] and labels [M] that the score is measured on. If it is None
            or has too few values, the score is cross-validated.

    Returns:
        A `ClassProbe` for classes, otherwise a `Probe`, with its score.

    Raises:
        UserError: if the labels do not fit z, or if they have too few or too many values.

    Source: Sec. 5.3, Appendix A.2.
    """
    z, values = _paired(name, z_normalized, labels, positive_unlabeled)
    kind = kind or kind_of(values)
    _check_values(name, values, kind, positive_unlabeled)
    positive = max(values)
    targets = _targets(values, kind, positive)
    repeats = max(1.0, float((~targets).sum() / targets.sum())) if positive_unlabeled else 1.0
    if kind == "binary":
        probe = _binary(name, z, targets, _text(positive), repeats)
    elif kind == "classes":
        names = np.unique(targets).tolist()
        classes = {value: _binary(f"{name}={value}", z, targets == value, value) for value in names}
        probe = ClassProbe(name, classes)
    else:
        ridge = _ridge().fit(z, targets)
        probe = Probe(name, ridge.coef_.astype(np.float32), float(ridge.intercept_), "continuous")
    measured = None if held_out is None else score(probe, *held_out, positive_unlabeled=positive_unlabeled)
    return dataclasses.replace(probe, score=measured or _cross_validated(kind, z, targets, repeats))


def score(
    probe: Probe | ClassProbe,
    z_normalized: Shaped[np.ndarray, "..."],
    labels: Iterable[Any],
    *,
    positive_unlabeled: bool = False,
) -> Score | None:
    """Measures how well a probe predicts labels, on images that it was not fitted to.

    Args:
        probe: the probe.
        z_normalized: normalized z, [N, D].
        labels: a label for each z, as for `fit`.
        positive_unlabeled: as for `fit`.

    Returns:
        AUROC (binary), accuracy (classes) or R^2 (continuous). None if there are too few different
        labels.

    Raises:
        UserError: if the labels do not fit z or the probe.
    """
    kind = "classes" if isinstance(probe, ClassProbe) else probe.kind
    z, values = _paired(f"{probe.name}, held out,", z_normalized, labels, positive_unlabeled)
    if kind == "binary":  # a probe keeps its positive value as text
        values = [_text(value) == probe.positive for value in values]
    targets = _targets(values, kind, True)
    if len(set(targets.tolist())) < (1 if kind == "classes" else 2):
        return None
    from sklearn.metrics import accuracy_score, r2_score, roc_auc_score

    z = z.astype(np.float32)
    if kind == "binary":
        value = roc_auc_score(targets, probe.logits(z))
    elif kind == "classes":
        value = accuracy_score(targets, probe.predict(z))
    else:
        value = r2_score(targets, probe.predict(z))
    return Score(METRICS[kind], float(value), len(z))


def check_labels(
    name: str, labels: Iterable[Any], *, kind: str | None = None, positive_unlabeled: bool = False
) -> None:
    """Raises UserError if `fit` with the same settings would refuse these labels for any z."""
    _, values = _known(name, labels, positive_unlabeled)
    _check_values(name, values, kind or kind_of(values), positive_unlabeled)


def components(z_normalized: Float[np.ndarray, "n d"], count: int) -> list[Probe]:
    """Returns the principal directions of normalized z as continuous probes. They need no labels.

    Args:
        z_normalized: normalized z, [N, D].
        count: the number of components, 1 to min(N - 1, D).

    Returns:
        Probes that predict the coordinate along each direction, the largest variance first. Their
        score is the share of the variance.

    Raises:
        UserError: if the count is out of range, or if z has values that are not finite.
    """
    most = min(len(z_normalized) - 1, z_normalized.shape[1])
    if not 1 <= count <= most:
        raise UserError(
            f"count must be 1 to {most:,} for {len(z_normalized):,} z of {z_normalized.shape[1]:,} dimensions, not "
            f"{count}."
        )
    from sklearn.decomposition import PCA

    _check_finite("principal components", z_normalized)
    pca = PCA(count, svd_solver="covariance_eigh").fit(z_normalized.astype(np.float64))
    return [
        Probe(
            f"component {i}",
            axis.astype(np.float32),
            -float(pca.mean_ @ axis),
            "continuous",
            score=Score("share of variance", float(share), len(z_normalized)),
        )
        for i, (axis, share) in enumerate(zip(pca.components_, pca.explained_variance_ratio_, strict=True), 1)
    ]


def _paired(
    name: str, z: Any, labels: Iterable[Any], positive_unlabeled: bool
) -> tuple[Float64[np.ndarray, "n d"], list[Any]]:
    """Returns the z with a known label, and their labels as Python values."""
    z, labels = np.asarray(z), plain_column(name, labels)
    if z.ndim != 2 or not z.shape[1] or z.dtype.kind not in "fiu":
        raise UserError(f"The z of {shown(name)} must be numbers of shape [N, D], not {z.dtype} of shape {z.shape}.")
    if len(z) != len(labels):
        raise UserError(
            f"{shown(name)} has {len(labels):,} labels for the z of {len(z):,} images. Give one label for each."
        )
    _check_finite(name, z)
    known, values = _known(name, labels, positive_unlabeled)
    return z[known].astype(np.float64), values


def _known(name: str, labels: Iterable[Any], positive_unlabeled: bool) -> tuple[Bool[np.ndarray, "n"], list[Any]]:
    """Returns which labels are used, and their values; booleans if `positive_unlabeled`."""
    labels = plain_column(name, labels)
    for label in labels:
        if not isinstance(label, str | int | float | None) or (isinstance(label, float) and math.isinf(label)):
            raise UserError(
                f"Labels must be text or finite numbers, but {shown(name)} has {shown(label)}. Replace it, or use None "
                f"for an unknown label."
            )
    known = is_known(labels)
    values = [label for label, use in zip(labels, known, strict=True) if use]
    is_text = any(isinstance(value, str) for value in values)
    if positive_unlabeled:
        if is_text or (any(values) and 1 not in values):
            distinct = list_some({_text(value) for value in values})
            kind = "text" if is_text else "numbers"
            raise UserError(
                f"Positive labels must be 1 or True, but those of {shown(name)} are {kind}: {distinct}. Replace the "
                f"positive ones with 1."
            )
        return np.ones(len(labels), bool), [label == 1 for label in labels]
    return known, list(map(_text, values)) if is_text else values


def _check_finite(name: str, z: np.ndarray) -> None:
    bad = np.flatnonzero(~np.isfinite(z).all(1))
    if len(bad):
        raise UserError(
            f"{len(bad):,} of the {len(z):,} z for {shown(name)} are not finite; the first is at index {bad[0]}. Leave "
            f"these out."
        )


def _check_values(name: str, values: list[Any], kind: str, positive_unlabeled: bool) -> None:
    """Raises UserError if no probe of that kind can be fitted to these labels."""
    counts = collections.Counter(values)
    number = f"{len(counts):,} different values"
    if kind not in (*METRICS, "text"):
        raise UserError(f"The kind of a probe must be {', '.join(METRICS)} or None, not {shown(kind)}.")
    if len(counts) < 2:
        problem = f"all {len(values):,} are {shown(*counts)}" if counts else "there are none"
        fix = "Label images with other values too"
        raise UserError(f"The labels of {shown(name)} must have at least two different values, but {problem}. {fix}.")
    if kind == "text" or (kind == "classes" and len(counts) > MOST_CLASSES):
        raise UserError(
            f"{shown(name)} has {number}, but a probe has at most {MOST_CLASSES} classes. Merge some of them."
        )
    if kind == "binary" and len(counts) > 2:
        raise UserError(
            f"{shown(name)} has {number}, but a binary probe needs two. Omit `kind`, so that it is inferred."
        )
    if kind == "continuous" and (isinstance(values[0], str) or len(values) < 4):
        raise UserError(
            f"A continuous probe needs at least four numbers, but the labels of {shown(name)} are {len(values):,} "
            f"{'texts' if isinstance(values[0], str) else 'numbers'}."
        )
    single = [_text(value) for value, count in counts.items() if count < 2]
    if kind != "continuous" and single:
        raise UserError(
            f"Classes of {shown(name)} have one image each ({list_some(single)}). Label at least two of each."
        )
    if positive_unlabeled and kind != "binary":
        raise UserError(f'{shown(name)}: positive_unlabeled needs kind="binary", not {kind}. Omit `kind`.')


def _targets(values: list[Any], kind: str, positive: Any) -> np.ndarray:
    """Returns the targets of the fit: booleans (binary), names of classes, or numbers."""
    if kind == "binary":
        return np.array([value == positive for value in values], bool)
    if kind == "classes":
        return np.array(list(map(_text, values)), str)
    if any(isinstance(value, str) for value in values):
        raise UserError("The held-out labels are text, but the other labels are numbers. Use labels of one kind.")
    return np.asarray(values, np.float64)


def _text(value: Any) -> str:
    """Returns a label as text.

    A whole number has no decimals, even if missing values turned its column into floats.
    """
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _ridge() -> Any:
    from sklearn.linear_model import RidgeCV

    return RidgeCV(PENALTIES)


def _logistic(repeats: float) -> Any:
    from sklearn.linear_model import LogisticRegression

    # a weight in the loss has the same effect as repeating the sample
    return LogisticRegression(C=INVERSE_PENALTY, max_iter=2000, class_weight={False: 1.0, True: repeats})


def _binary(name: str, z: np.ndarray, targets: np.ndarray, positive: str, repeats: float = 1.0) -> Probe:
    fitted = _logistic(repeats).fit(z, targets)
    return Probe(name, fitted.coef_[0].astype(np.float32), float(fitted.intercept_[0]), positive=positive)


def _cross_validated(kind: str, z: np.ndarray, targets: np.ndarray, repeats: float) -> Score:
    """Returns the mean score over at most 5 folds, fewer if a class has fewer images than that."""
    from sklearn.model_selection import KFold, StratifiedKFold, cross_val_score
    from sklearn.multiclass import OneVsRestClassifier

    if kind == "continuous":
        estimator = _ridge()
        folds = KFold(min(MOST_FOLDS, len(z) // 2), shuffle=True, random_state=0)
    else:
        logistic = _logistic(repeats)
        estimator = logistic if kind == "binary" else OneVsRestClassifier(logistic)
        smallest = int(np.unique(targets, return_counts=True)[1].min())
        folds = StratifiedKFold(min(MOST_FOLDS, smallest), shuffle=True, random_state=0)
    values = cross_val_score(estimator, z, targets, scoring=SCORING[kind], cv=folds)
    return Score(METRICS[kind], float(values.mean()), len(z))
