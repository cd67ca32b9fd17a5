"""Stage 5: what the trained model does on held-out images, as a table, a JSON file and a picture."""

import collections
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float
from ml_collections import ConfigDict
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from diffae_jax.api import DiffAE
from diffae_jax.data.labels import fingerprint
from diffae_jax.data.sources import Source
from diffae_jax.data.transforms import to_float
from diffae_jax.distributed import together
from diffae_jax.evaluation.figures import save_grid, save_rows
from diffae_jax.evaluation.metrics import frechet_distance, mse, principal_components
from diffae_jax.files import read_json, write_json
from diffae_jax.probes import is_known, kind_of
from diffae_jax.stages.data import choose, open_data, read
from diffae_jax.training.logging import duration, is_main_process, last_speed, say

NUM_PICTURES = 12  # a row
MOST_PIXELS = 2**24  # values of the training images, which classifiers are fitted to
NUM_COMPONENTS = 32  # principal components of the images, in which samples are compared with real ones


def run(config: ConfigDict, folder: Path, mesh: Mesh) -> None:
    """Measures a trained run; writes evaluation/results.json, reconstructions.png and, with a prior, samples.png."""
    training, held_out = open_data(config, folder)
    path = folder / "evaluation" / "results.json"
    model = DiffAE.load(folder, mesh)
    measured = {
        "model": model.digest(),
        "labels": fingerprint(training.labels, held_out.labels),
        **json.loads(config.evaluation.to_json()),
    }
    with together():  # nobody writes before all have looked
        finished = path.exists() and read_json(path)["measured"] == measured
    if finished:
        say(f"evaluation: finished, figures in {path}.")
        return
    if not len(held_out):
        held_out = training
        say("No images are held out (--config.data.held_out_share), so what follows is measured on training images.")
    chosen = choose(len(held_out), config.evaluation.num_images, config.seed)
    x_0 = to_float(read(held_out, chosen))
    say(f"{len(x_0):,} images{expected_time(model, folder, len(x_0))}")

    results: dict[str, Any] = {"measured": measured, "num_images": len(x_0)}
    decoded = reconstruction(model, x_0, results, path.parent)
    found = class_labels(training, held_out)
    # the classifiers hold the pixels of all training images in memory, which is no matter for small data sets alone
    if found and config.model.z_dim is not None and len(training) * math.prod(config.image_shape) <= MOST_PIXELS:
        labels, truth = found
        results["labels"] = recognition(model, training, labels, x_0, truth[chosen], decoded)
    if model.prior is not None:
        unseen = x_0 if held_out is not training else None
        results["samples"] = sampling(model, training, unseen, path.parent)
    elif is_main_process():
        (path.parent / "samples.png").unlink(missing_ok=True)  # of a latent DDIM that is gone
    if is_main_process():
        write_json(path, results)
        say(f"  figures: {path}")


def expected_time(model: DiffAE, folder: Path, num_images: int) -> str:
    """Ends a sentence with the time that evaluation takes, going by the speed of training.

    A training step takes three times as long as the prediction of the noise alone, or longer.
    """
    speed, evaluation = last_speed(folder, "images"), model.config.evaluation
    if not speed:
        return "."
    predictions = 3 * num_images * sum(evaluation.num_steps)
    if model.prior is not None:
        predictions += 2 * evaluation.num_samples * evaluation.num_sample_steps
    return f": about {duration(predictions / (3 * speed) + 1)} or less."


def reconstruction(
    model: DiffAE, x_0: Float[np.ndarray, "n *shape"], results: dict[str, Any], folder: Path
) -> dict[int, Float[np.ndarray, "n *shape"]]:
    """Measures how close images come back with inferred and with random x_T (Sec. 5.4), and draws some.

    The figures go into `results`; what was decoded with random x_T is returned, by number of steps.
    """
    decoded, rows = {}, {"input": x_0[:NUM_PICTURES]}
    for num_steps in model.config.evaluation.num_steps:
        inferred = model.reconstruct(x_0, num_steps)
        decoded[num_steps] = model.reconstruct(x_0, num_steps, infer_x_T=False)
        rows[f"inferred $x_T$,\n{num_steps} steps"] = inferred[:NUM_PICTURES]
        rows[f"random $x_T$,\n{num_steps} steps"] = decoded[num_steps][:NUM_PICTURES]
        errors = {
            "mse_inferred_x_T": float(mse(inferred, x_0).mean()),
            "mse_random_x_T": float(mse(decoded[num_steps], x_0).mean()),
        }
        results[f"steps_{num_steps}"] = errors
        say(
            f"  {num_steps} steps: MSE {errors['mse_inferred_x_T']:.2e} with inferred x_T, "
            f"{errors['mse_random_x_T']:.2e} with random x_T (images in [0, 1])"
        )
    if is_main_process():
        save_rows(folder / "reconstructions.png", rows)
    return decoded


def sampling(
    model: DiffAE, training: Source, unseen: Float[np.ndarray, "n *shape"] | None, folder: Path
) -> dict[str, Any]:
    """Measures how far unconditional samples are from real images, and draws some (Sec. 5.7).

    The real ones are held out, or, where none are, one half of a choice of training images. As yardsticks the same
    distance of other training images, as many as there are samples, below which no sample is expected to come, and of
    images decoded from z of the right mean and deviation but without the latent DDIM.
    """
    config, statistics, seed = model.config.evaluation, model.statistics, model.config.seed
    num_images, num_steps = config.num_samples, config.num_sample_steps
    samples = model.sample(num_images, seed, num_steps, num_steps)
    if is_main_process():
        save_grid(folder / "samples.png", samples[:64])
    results = {"num_samples": num_images, "num_steps": num_steps}

    chosen = choose(len(training), num_images if unseen is not None else 2 * num_images, seed)
    real, name = to_float(read(training, np.random.default_rng(seed).permutation(chosen))), "held-out images"
    if unseen is None:
        real, unseen, name = real[::2], real[1::2], "other training images"
    if min(len(real), len(unseen)) < 2:
        say(f"  {num_images:,} samples; too few real images ({len(unseen)} {name}) to compare them with.")
        return results
    components = principal_components(real, NUM_COMPONENTS)
    z = np.random.default_rng(seed).normal(size=(num_images, len(statistics.mean)))
    from_gaussian = model.decode(statistics.denormalize(z.astype(np.float32)), None, num_steps, seed)
    distances = {
        kind: frechet_distance(components(images), components(unseen))
        for kind, images in (("samples", samples), ("training_images", real), ("gaussian_z", from_gaussian))
    }
    say(
        f"  {num_images:,} samples in {num_steps} steps: Frechet distance {distances['samples']:.2f} to "
        f"{len(unseen):,} {name}, in {components(real[:1]).shape[1]} principal components; of {len(real):,} training "
        f"images {distances['training_images']:.2f}, of images from Gaussian z {distances['gaussian_z']:.2f}"
    )
    return {**results, "reference": name, "frechet_distance_in_principal_components": distances}


def class_labels(training: Source, held_out: Source) -> tuple[np.ndarray, np.ndarray] | None:
    """Returns the first labels of several classes that every image has, of either split, or None where none are."""
    for name, values in training.labels.items():
        truth, counts = held_out.labels[name], collections.Counter(values.tolist())
        of_all_images = is_known(values).all() and is_known(truth).all()
        if of_all_images and kind_of(counts) == "classes" and min(counts.values()) > 1:
            return values, truth
    return None


def recognition(
    model: DiffAE,
    training: Source,
    labels: np.ndarray,
    x_0: np.ndarray,
    truth: np.ndarray,
    decoded: dict[int, np.ndarray],
) -> dict[str, Any]:
    """Returns how well labels are read off z, off the pixels, and off images decoded with random x_T.

    The labels of `training` are `labels` and those of `x_0` are `truth`.
    Classifiers are fitted on training images alone: logistic regression on normalised features, and a support vector
    machine on real images, which then names the decoded ones.
    """
    train_x = to_float(read(training, range(len(training))))
    pixels, held_out_pixels = (images.reshape(len(images), -1) for images in (train_x, x_0))

    def logistic(features, held_out_features):
        # what can be read, not where to move: each kind of feature gets the penalty that suits it, chosen on training
        # images, where a probe has one for good edits
        regression = GridSearchCV(LogisticRegression(max_iter=2000), {"C": [1, 10, 100]}, cv=3)
        classifier = make_pipeline(StandardScaler(), regression).fit(features, labels)
        return float(classifier.score(held_out_features, truth))

    svm = SVC().fit(pixels, labels)
    results = {
        "logistic_regression_on_z": logistic(model.encode(train_x), model.encode(x_0)),
        "logistic_regression_on_pixels": logistic(pixels, held_out_pixels),
        "svm_on_real_images": float(svm.score(held_out_pixels, truth)),
    }
    say(
        f"  labels read by logistic regression: {results['logistic_regression_on_z']:.1%} from z, "
        f"{results['logistic_regression_on_pixels']:.1%} from pixels"
    )
    say(f"  labels named by an SVM trained on real images: {results['svm_on_real_images']:.1%} of the real images")
    for num_steps, images in decoded.items():
        named = float(svm.score(images.reshape(len(images), -1), truth))
        results[f"svm_on_random_x_T_{num_steps}_steps"] = named
        say(f"    {named:.1%} of those decoded from z with random x_T in {num_steps} steps")
    return results
