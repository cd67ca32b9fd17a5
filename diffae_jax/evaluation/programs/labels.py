"""How well labels are read off z, and whether decoded images are still what they were (Sec. 5.3, Appendix A.2)."""

from collections.abc import Callable
from typing import Any

import numpy as np

from diffae_jax.data.sources import choose
from diffae_jax.evaluation.intervals import percentiles, share_figure
from diffae_jax.evaluation.programs import reconstruction
from diffae_jax.evaluation.results import Figure, Section
from diffae_jax.evaluation.study import Study, as_float
from diffae_jax.probes import is_known, kind_of

NAME = "labels"
TITLE = "Labels read by linear probes (Sec. 5.3, Appendix A.2)"
NEEDS: tuple[str, ...] = ("z", "training", "labels", "labels held out", "held out")
PICTURE = ""
MOST_FITTED = 20_000  # images
RESAMPLES = 100  # of what takes a sort of all images
NAMED = "named correctly by an SVM that was trained on real images"
PENALTIES = {"C": [1, 10, 100]}  # inverse ones


def calls(study: Study) -> int:
    """Returns about how many times the UNet is called, where the reconstruction does not do so anyway."""
    is_done = reconstruction.NAME in study.settings.programs
    return 0 if is_done else len(study.chosen) * sum(study.settings.num_steps)


def run(study: Study) -> Section:
    """Fits linear classifiers and regressions of labels to z and, of a small data set, to pixels; scores held-out ones.

    What can be read is asked here, not where to move: so the penalty is chosen by cross-validation for each kind of
    feature, where a probe has one for good edits. Fitted to training images alone.
    """
    training = choose(len(study.training), MOST_FITTED, study.seed)
    features = {"z": (_encoded(study, "training", training), _encoded(study, "held-out", None))}
    if study.is_small(len(training)):
        pixels = as_float(study.training, training), as_float(study.images, np.arange(len(study.images)))
        features["pixels"] = tuple(images.reshape(len(images), -1) for images in pixels)
    figures: list[Figure] = []
    notes: list[str] = []
    for name, values in study.training.labels.items():
        labels, truth = values[training], study.images.labels.get(name)
        if truth is None:
            notes.append(f"{name} is left out: the measured images do not have it.")
            continue
        known, known_truth = is_known(labels), is_known(truth)
        kind = kind_of(labels[known].tolist())
        if kind == "text" or len(set(truth[known_truth].tolist())) < 2 or _smallest(labels[known], kind) < 3:
            notes.append(f"{name} is left out: it is text of too many values, or has too few images of one.")
            continue
        for what, (fitted, held_out) in features.items():
            model = _fit(kind, fitted[known], labels[known])
            figures += _scores(kind, f"{name}, from {what}", model, held_out[known_truth], truth[known_truth])
    figures += _named(study, training)
    return Section(NAME, TITLE, tuple(figures), (), tuple(notes))


def _encoded(study: Study, what: str, numbers: np.ndarray | None) -> np.ndarray:
    """Returns z of training images of these numbers, or of all images that are held out."""
    source = study.images if numbers is None else study.training
    numbers = np.arange(len(source)) if numbers is None else numbers
    parts = [
        study.cache.keep(
            f"{NAME}-{what}-{start:07d}",
            lambda chunk=numbers[start:stop]: {"z": study.model.encode(as_float(source, chunk))},
        )["z"]
        for start, stop in study.chunks(len(numbers))
    ]
    return np.concatenate(parts)


def _smallest(labels: np.ndarray, kind: str) -> int:
    """Returns how many images the rarest class has."""
    if kind == "continuous" or not len(labels):
        return len(labels)
    return int(np.unique(labels, return_counts=True)[1].min())


def _fit(kind: str, features: np.ndarray, labels: np.ndarray) -> Any:
    from sklearn.linear_model import LogisticRegression, RidgeCV
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if kind == "continuous":
        return make_pipeline(StandardScaler(), RidgeCV(np.logspace(-2, 4, 7))).fit(features, labels.astype(np.float64))
    logistic = GridSearchCV(LogisticRegression(max_iter=2000), PENALTIES, cv=3)
    return make_pipeline(StandardScaler(), logistic).fit(features, labels)


def _scores(kind: str, row: str, model: Any, features: np.ndarray, truth: np.ndarray) -> list[Figure]:
    """Returns accuracy, AUROC and average precision of classes, a mean over them, or R^2 of numbers."""
    from sklearn.metrics import average_precision_score, r2_score, roc_auc_score

    if kind == "continuous":
        values, truth = model.predict(features), truth.astype(np.float64)
        low, high = percentiles(r2_score, truth, values, resamples=RESAMPLES)
        return [Figure("R^2", row, "", float(r2_score(truth, values)), len(truth), low, high)]
    right = model.predict(features) == truth
    scores = model.predict_proba(features)
    is_class = truth[:, None] == model.classes_
    if kind == "binary":  # of the greater value, as a probe's
        is_class, scores = is_class[:, 1:], scores[:, 1:]
    figures = [share_figure("accuracy", row, "", right)]
    for metric, score in (("AUROC", roc_auc_score), ("average precision", average_precision_score)):
        over_classes = _mean_over_classes(score)
        value = over_classes(is_class, scores)
        if np.isfinite(value):  # where a class has no held-out image there is none
            low, high = percentiles(over_classes, is_class, scores, resamples=RESAMPLES)
            figures.append(Figure(metric, row, "", value, len(truth), low, high))
    return figures


def _mean_over_classes(score: Callable[[np.ndarray, np.ndarray], float]) -> Callable[[np.ndarray, np.ndarray], float]:
    """Returns the mean of a score over classes; NaN where one of them has no image or all."""

    def mean(is_class, scores):
        if not (is_class.any(0) & ~is_class.all(0)).all():
            return float("nan")
        return float(np.mean([score(*columns) for columns in zip(is_class.T, scores.T, strict=True)]))

    return mean


def _named(study: Study, training: np.ndarray) -> list[Figure]:
    """Returns how many images decoded with random x_T a classifier of real images still names correctly."""
    complete = (
        name
        for name, values in study.training.labels.items()
        if _is_of_classes(values, training) and is_known(study.images.labels.get(name, [None])).all()
    )
    labels = next(complete, None)
    if labels is None or not study.is_small(len(training) + len(study.chosen)):
        return []
    from sklearn.svm import SVC

    pixels = as_float(study.training, training)
    svm = SVC().fit(pixels.reshape(len(pixels), -1), study.training.labels[labels][training])
    truth = study.images.labels[labels][study.chosen]
    sets = {("real images", ""): study.read(0, len(study.chosen))}
    random = next(method for method in reconstruction.methods(study) if method.row == reconstruction.RANDOM)
    for num_steps in study.settings.num_steps:
        sets["decoded with random x_T", f"T = {num_steps}"] = reconstruction.decoded(study, random, num_steps)
    return [
        share_figure(NAMED, row, column, svm.predict(images.reshape(len(images), -1)) == truth)
        for (row, column), images in sets.items()
    ]


def _is_of_classes(values: np.ndarray, numbers: np.ndarray) -> bool:
    labels = values[numbers]
    return bool(is_known(values).all()) and kind_of(labels.tolist()) == "classes" and _smallest(labels, "classes") > 1
