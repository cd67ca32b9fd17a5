"""Labels -> probes, with scikit-learn, and how well these do on images that they were not fitted to.

scikit-learn is imported by the functions that use it: it takes more than a second, which loading a model should not.
"""

import collections
import dataclasses
import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float64, Shaped

from diffae_jax.probes.linear import ClassProbe, Probe, Score
from diffae_jax.runtime.errors import UserError, list_some, shown

METRICS = {"binary": "AUROC", "classes": "accuracy", "continuous": "R^2"}
SCORING = {"binary": "roc_auc", "classes": "accuracy", "continuous": "r2"}  # the same, as scikit-learn calls them
MOST_CLASSES = 50
MOST_FOLDS = 5
PENALTIES = np.logspace(-2, 4, 7)  # of continuous labels, chosen by leaving one out
# Under a strong penalty a direction comes close to the difference of the means of two classes, along which there are
# images. A weak one tells a few more images apart, but along directions in which z hardly vary, and edits lead away
# from the data: of digits moved by strength 1, 55 % were recognized as what they should be with 0.01, 47 % with 0.1.
INVERSE_PENALTY = 0.01


def is_known(labels: Iterable[Any]) -> Bool[np.ndarray, "n"]:
    """Returns which labels are there: all but None, NaN and empty text."""
    return np.array([label is not None and label == label and label != "" for label in labels], bool)


def kind_of(labels: Iterable[Any]) -> str:
    """Returns what known labels are: binary, classes, continuous, or text of more values than a probe tells apart.

    Truth and whatever has two values is binary; text and whole numbers of up to 50 values are classes.
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
    """Fits a probe of labels [N] to normalized z [N, D] (Appendix A.2); missing labels are left out.

    The kind, binary, classes or continuous, is that of `kind_of` unless given; of two values the greater is positive.
    With `positive_unlabeled`, labels of 1 or True are positive and all other images, those without label too, count as
    negative; the positives are repeated until they are as many. The score is measured on `held_out`, z and labels, or
    by cross-validation where that is not given or holds too little.

    Raises UserError for z and labels that do not go together, and for labels of too few or too many values.
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
        parts = {value: _binary(f"{name}={value}", z, targets == value, value) for value in np.unique(targets).tolist()}
        probe = ClassProbe(name, parts)
    else:
        ridge = _ridge().fit(z, targets)
        probe = Probe(name, ridge.coef_.astype(np.float32), float(ridge.intercept_), "continuous")
    score = None
    if held_out is not None:
        held_z, held_values = _paired(f"{name}, held out,", *held_out, positive_unlabeled)
        score = _held_out_score(probe, kind, held_z, _targets(held_values, kind, positive))
    return dataclasses.replace(probe, score=score or _cross_validated(kind, z, targets, repeats))


def check_labels(
    name: str, labels: Iterable[Any], *, kind: str | None = None, positive_unlabeled: bool = False
) -> None:
    """Raises UserError for labels that `fit`, with the same settings, would refuse whatever the z."""
    _, values = _known(name, labels, positive_unlabeled)
    _check_values(name, values, kind or kind_of(values), positive_unlabeled)


def components(z_normalized: Float[np.ndarray, "n d"], count: int) -> list[Probe]:
    """Returns the principal directions of normalized z as continuous probes, which read the coordinate along them.

    They need no labels; their score is the share of the variance. Raises UserError for a count that z cannot have.
    """
    most = min(len(z_normalized) - 1, z_normalized.shape[1])
    if not 1 <= count <= most:
        raise UserError(
            f"z of {len(z_normalized):,} images in {z_normalized.shape[1]:,} dimensions have 1 to {most:,} principal "
            f"components, not {count}."
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
    """Returns the z that have a label, and these labels as plain values."""
    z, labels = np.asarray(z), list(labels)
    if z.ndim != 2 or not z.shape[1] or z.dtype.kind not in "fiu":
        raise UserError(f"The z of {shown(name)} must be numbers of shape [N, D], not {z.dtype} of {z.shape}.")
    if len(z) != len(labels):
        raise UserError(f"{shown(name)} has {len(labels):,} labels for the z of {len(z):,} images: give one each.")
    _check_finite(name, z)
    known, values = _known(name, labels, positive_unlabeled)
    return z[known].astype(np.float64), values


def _known(name: str, labels: Iterable[Any], positive_unlabeled: bool) -> tuple[Bool[np.ndarray, "n"], list[Any]]:
    """Returns which labels are used, and these as plain values: whether they are positive where the others are none."""
    labels = [label.item() if isinstance(label, np.generic) else label for label in labels]
    for label in labels:
        if not isinstance(label, str | int | float | None) or (isinstance(label, float) and math.isinf(label)):
            raise UserError(f"Labels are text or finite numbers, and {shown(name)} has {shown(label)}.")
    known = is_known(labels)
    values = [label for label, is_there in zip(labels, known, strict=True) if is_there]
    is_text = any(isinstance(value, str) for value in values)
    if positive_unlabeled:
        if is_text or (any(values) and 1 not in values):
            found = list_some({_text(value) for value in values})
            kind = "text" if is_text else "numbers"
            raise UserError(f"Positive labels are 1 or True, and those of {shown(name)} are {kind}: {found}.")
        return np.ones(len(labels), bool), [label == 1 for label in labels]
    return known, list(map(_text, values)) if is_text else values


def _check_finite(name: str, z: np.ndarray) -> None:
    bad = np.flatnonzero(~np.isfinite(z).all(1))
    if len(bad):
        raise UserError(f"{len(bad):,} of the {len(z):,} z for {shown(name)} are not finite, the first is {bad[0]}.")


def _check_values(name: str, values: list[Any], kind: str, positive_unlabeled: bool) -> None:
    """Raises UserError for labels that no probe of that kind can be fitted to."""
    counts = collections.Counter(values)
    told = f"{len(counts):,} different values"
    if kind not in (*METRICS, "text"):
        raise UserError(f"The kind of a probe is {', '.join(METRICS)} or None, not {shown(kind)}.")
    if len(counts) < 2:
        found = f"all {len(values):,} are {shown(*counts)}" if counts else "there are none"
        raise UserError(f"The labels of {shown(name)} must be of two values at least, and {found}.")
    if kind == "text" or (kind == "classes" and len(counts) > MOST_CLASSES):
        raise UserError(f"{shown(name)} has {told}, and a probe tells at most {MOST_CLASSES} classes apart.")
    if kind == "binary" and len(counts) > 2:
        raise UserError(f"{shown(name)} has {told}, and a binary probe takes two: leave the kind to be found.")
    if kind == "continuous" and (isinstance(values[0], str) or len(values) < 4):
        raise UserError(
            f"A continuous probe takes four numbers or more, and the labels of {shown(name)} are {len(values):,} "
            f"{'texts' if isinstance(values[0], str) else 'numbers'}."
        )
    alone = [_text(value) for value, count in counts.items() if count < 2]
    if kind != "continuous" and alone:
        raise UserError(
            f"Classes of {shown(name)} have one image each ({list_some(alone)}): label two or more of each."
        )
    if positive_unlabeled and kind != "binary":
        raise UserError(f"Labels of {shown(name)} that are positive or unlabeled are of kind binary, not {kind}.")


def _targets(values: list[Any], kind: str, positive: Any) -> np.ndarray:
    """Returns labels as what is fitted: whether they are positive, the names of their classes, or numbers."""
    if kind == "binary":
        return np.array([value == positive for value in values], bool)
    if kind == "classes":
        return np.array(list(map(_text, values)), str)
    if any(isinstance(value, str) for value in values):
        raise UserError("The held-out labels are text and the others numbers: give labels of one kind.")
    return np.asarray(values, np.float64)


def _text(value: Any) -> str:
    """Whole numbers look the same whether their column has missing ones, which makes it floating point, or not."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _ridge() -> Any:
    from sklearn.linear_model import RidgeCV

    return RidgeCV(PENALTIES)


def _logistic(repeats: float) -> Any:
    from sklearn.linear_model import LogisticRegression

    # the weight of a sample in the loss is what repeating it comes to
    return LogisticRegression(C=INVERSE_PENALTY, max_iter=2000, class_weight={False: 1.0, True: repeats})


def _binary(name: str, z: np.ndarray, targets: np.ndarray, positive: str, repeats: float = 1.0) -> Probe:
    fitted = _logistic(repeats).fit(z, targets)
    return Probe(name, fitted.coef_[0].astype(np.float32), float(fitted.intercept_[0]), positive=positive)


def _held_out_score(probe: Probe | ClassProbe, kind: str, z: np.ndarray, targets: np.ndarray) -> Score | None:
    """Returns the score on other images, or None where these are too few to tell."""
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


def _cross_validated(kind: str, z: np.ndarray, targets: np.ndarray, repeats: float) -> Score:
    """Returns the mean score over folds, fewer where a class has fewer images than there would be folds."""
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
