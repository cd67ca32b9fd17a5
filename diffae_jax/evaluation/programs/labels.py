"""Linear probes of labels on z, and recognition of decoded images (Sec. 5.3, Appendix A.2)."""

from collections import Counter
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from diffae_jax.data.sources import choose
from diffae_jax.evaluation.intervals import percentiles, share_figure
from diffae_jax.evaluation.programs import reconstruction
from diffae_jax.evaluation.results import Figure, Section
from diffae_jax.evaluation.study import Study, as_float
from diffae_jax.probes import ClassProbe, is_known, kind_of, score
from diffae_jax.runtime.errors import shown

NAME = "labels"
TITLE = "Labels predicted by linear probes (Sec. 5.3, Appendix A.2)"
REQUIREMENTS: tuple[str, ...] = ("z", "training", "labels", "labels held out", "held out")
PICTURE = ""
MAX_FITTED = 20_000  # training images
MIN_PER_CLASS = 3  # training images
RESAMPLES = 100  # for scores that sort all images
RECOGNIZED = "accuracy of an SVM trained on real images"
REAL, DECODED = "real images", "decoded with random x_T"
FROM = ", from "  # between the label and the features
BY_PROBE = ", by its probe"
INVERSE_PENALTIES = {"C": [1, 10, 100]}


def num_calls(study: Study) -> int:
    """Returns the approximate number of UNet calls, without those that `reconstruction` makes."""
    is_done = reconstruction.NAME in study.settings.programs
    return 0 if is_done else len(study.chosen) * sum(study.settings.num_steps)


def run(study: Study) -> Section:
    """Fits linear models of labels on training images and scores them on held-out images.

    The features are z and, for a small data set, pixels. Cross-validation chooses the penalty.
    Probes for edits use a fixed penalty instead, which gives better editing directions. Those of
    the model are measured too.
    """
    training = choose(len(study.training), MAX_FITTED, study.seed)
    features = {"z": (_encoded(study, "training", training), _encoded(study, "held-out", None))}
    if study.is_small(len(training)):
        pixels = as_float(study.training, training), as_float(study.images, np.arange(len(study.images)))
        features["pixels"] = tuple(images.reshape(len(images), -1) for images in pixels)
    figures: list[Figure] = []
    notes: list[str] = []
    for name, values in study.training.labels.items():
        labels, truth = values[training], study.images.labels.get(name)
        if truth is None:
            notes.append(f"{name} was skipped: the measured images do not have this label.")
            continue
        known, known_truth = is_known(labels), is_known(truth)
        kind = kind_of(labels[known].tolist())
        if problem := _problem(labels[known], truth[known_truth], kind):
            notes.append(f"{name} was skipped: {problem}.")
            continue
        for feature, (fitted, held_out) in features.items():
            model = _fit(kind, fitted[known], labels[known])
            figures += _scores(kind, f"{name}{FROM}{feature}", model, held_out[known_truth], truth[known_truth])
        figures += _by_probe(study, name, kind, features["z"][1], truth)
    figures += _recognized(study, training)
    if any(figure.row.endswith(BY_PROBE) for figure in figures):
        notes.append(
            "The probe of a label gives the direction of edits. Its score is also in the log and in diffae info. Its "
            "penalty is strong, so that edits stay near the data. It usually predicts less well than the model from z."
        )
    return Section(NAME, TITLE, tuple(figures), (), tuple(notes))


def _encoded(study: Study, name: str, indices: np.ndarray | None) -> np.ndarray:
    """Returns z of the training images with these indices or, for None, of all held-out images."""
    source = study.images if indices is None else study.training
    indices = np.arange(len(source)) if indices is None else indices
    chunks = [
        study.cache.load_or_compute(
            f"{NAME}-{name}-{start:07d}",
            lambda rows=indices[start:stop]: {"z": study.model.encode(as_float(source, rows))},
        )["z"]
        for start, stop in study.chunks(len(indices))
    ]
    return np.concatenate(chunks)


def _problem(labels: np.ndarray, truth: np.ndarray, kind: str) -> str:
    """Returns why a label is skipped, from its known values in training and measured images."""
    counts, values = Counter(labels.tolist()), set(truth.tolist())
    if kind == "text":
        return f"it has {len(counts):,} different texts, which are too many classes"
    if not counts or not values:
        return f"no {'measured' if counts else 'training'} image has a value"
    if len(values) < 2:
        return f"all measured images have the value {shown(*values)}"
    value, count = counts.most_common()[-1]
    problem = f"it needs {MIN_PER_CLASS} training images of each value, but {shown(value)} has {count}"
    return problem if _smallest(labels, kind) < MIN_PER_CLASS else ""


def _smallest(labels: np.ndarray, kind: str) -> int:
    """Returns the number of images in the rarest class, or of all for a continuous label."""
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
    logistic = GridSearchCV(LogisticRegression(max_iter=2000), INVERSE_PENALTIES, cv=3)
    return make_pipeline(StandardScaler(), logistic).fit(features, labels)


def _scores(kind: str, row: str, model: Any, features: np.ndarray, truth: np.ndarray) -> list[Figure]:
    """Returns accuracy, AUROC and average precision of classes, or R^2 of a continuous label."""
    from sklearn.metrics import r2_score

    if kind == "continuous":
        values, truth = model.predict(features), truth.astype(np.float64)
        low, high = percentiles(r2_score, truth, values, resamples=RESAMPLES)
        return [Figure("R^2", row, "", float(r2_score(truth, values)), len(truth), low, high)]
    correct = model.predict(features) == truth
    scores = model.predict_proba(features)
    is_class = truth[:, None] == model.classes_
    if kind == "binary":  # only the greater value counts as positive, as for probes
        is_class, scores = is_class[:, 1:], scores[:, 1:]
    figures = [share_figure("accuracy", row, "", correct)]
    for metric, measure in (("AUROC", auroc), ("average precision", average_precision)):
        value = measure(is_class, scores)
        if np.isfinite(value):  # NaN if a class has no held-out image
            low, high = percentiles(measure, is_class, scores, resamples=RESAMPLES)
            figures.append(Figure(metric, row, "", value, len(truth), low, high))
    return figures


def auroc(is_class: Bool[np.ndarray, "n c"], scores: Float[np.ndarray, "n c"]) -> float:
    """Returns the mean over classes of the area under the ROC curve.

    Ranks give it for all classes at once, which is faster than scikit-learn's function for each
    class. NaN if a class has no image or all images.
    """
    from scipy.stats import rankdata

    count = is_class.sum(0)
    if not _is_defined(is_class):
        return float("nan")
    wins = np.where(is_class, rankdata(scores, axis=0), 0).sum(0) - count * (count + 1) / 2  # a tie is half a win
    return float(np.mean(wins / (count * (len(scores) - count))))


def average_precision(is_class: Bool[np.ndarray, "n c"], scores: Float[np.ndarray, "n c"]) -> float:
    """Returns the mean over classes of the average precision. NaN as for `auroc`."""
    from scipy.stats import rankdata

    if not _is_defined(is_class):
        return float("nan")
    found = rankdata(-scores, "max", axis=0)  # images with at least the score of this one
    correct = rankdata(np.where(is_class, -scores, np.inf), "max", axis=0)  # those of them that are in the class
    return float(np.mean(np.where(is_class, correct / found, 0).sum(0) / is_class.sum(0)))


def _is_defined(is_class: Bool[np.ndarray, "n c"]) -> bool:
    return bool((is_class.any(0) & ~is_class.all(0)).all())


def _by_probe(study: Study, name: str, kind: str, z: np.ndarray, truth: np.ndarray) -> list[Figure]:
    """Returns the score of the model's own probe of a label, if it has one of that kind."""
    probe = study.model.probes.get(name)
    if probe is None or kind != ("classes" if isinstance(probe, ClassProbe) else probe.kind):
        return []
    z = study.model.statistics.normalize(z)
    measured = score(probe, z, truth)
    if measured is None:
        return []
    row, count = f"{name}{BY_PROBE}", measured.num_images
    if measured.metric == "accuracy":
        return [share_figure(measured.metric, row, "", np.arange(count) < round(measured.value * count))]

    def resampled(z: np.ndarray, truth: np.ndarray) -> float:
        again = score(probe, z, truth)
        return float("nan") if again is None else again.value

    low, high = percentiles(resampled, z, truth, resamples=RESAMPLES)
    return [Figure(measured.metric, row, "", measured.value, count, low, high)]


def _recognized(study: Study, training: np.ndarray) -> list[Figure]:
    """Returns how often an SVM recognizes images that are decoded with random x_T."""
    complete = (
        name
        for name, values in study.training.labels.items()
        if _has_classes(values, training) and is_known(study.images.labels.get(name, [None])).all()
    )
    labels = next(complete, None)
    if labels is None or not study.is_small(len(training) + len(study.chosen)):
        return []
    from sklearn.svm import SVC

    pixels = as_float(study.training, training)
    svm = SVC().fit(pixels.reshape(len(pixels), -1), study.training.labels[labels][training])
    truth = study.images.labels[labels][study.chosen]
    sets = {(REAL, ""): study.read(0, len(study.chosen))}
    random = next(method for method in reconstruction.methods(study) if method.row == reconstruction.RANDOM)
    for num_steps in study.settings.num_steps:
        sets[DECODED, f"T = {num_steps}"] = reconstruction.decoded(study, random, num_steps)
    return [
        share_figure(RECOGNIZED, row, column, svm.predict(images.reshape(len(images), -1)) == truth)
        for (row, column), images in sets.items()
    ]


def _has_classes(values: np.ndarray, indices: np.ndarray) -> bool:
    labels = values[indices]
    return bool(is_known(values).all()) and kind_of(labels.tolist()) == "classes" and _smallest(labels, "classes") > 1
