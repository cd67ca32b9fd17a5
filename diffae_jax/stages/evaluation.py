"""Last stage: what the trained model does on held-out images, as a table, a JSON file and a picture."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from diffae_jax.api import DiffAE
from diffae_jax.data.sources import Source
from diffae_jax.data.transforms import to_float
from diffae_jax.evaluation.figures import save_rows
from diffae_jax.evaluation.metrics import mse
from diffae_jax.stages.data import open_data, read
from diffae_jax.stages.run_folder import latest_step, write_json
from diffae_jax.training.logging import is_main_process, say

NUM_PICTURES = 12


def run(config: ConfigDict, folder: Path, mesh: Mesh) -> None:
    """Measures a trained run and writes evaluation/results.json and evaluation/reconstructions.png."""
    training, held_out = open_data(config, folder)
    path = folder / "evaluation" / "results.json"
    measured = {"step": latest_step(folder), **json.loads(config.evaluation.to_json())}
    if path.exists() and json.loads(path.read_text())["measured"] == measured:
        say(f"evaluation: finished, figures in {path}.")
        return
    model = DiffAE.load(folder, mesh)
    if len(held_out):
        say(f"Evaluation: {min(len(held_out), config.evaluation.num_images):,} held-out images.")
    else:
        held_out = training
        say("Evaluation: no images are held out (--config.data.held_out_share), so on training images.")
    x_0 = to_float(read(held_out, config.evaluation.num_images))

    results: dict[str, Any] = {"measured": measured, "num_images": len(x_0)}
    decoded, rows = {}, {"input": x_0[:NUM_PICTURES]}
    for num_steps in config.evaluation.num_steps:
        inferred = model.reconstruct(x_0, num_steps)
        decoded[num_steps] = model.reconstruct(x_0, num_steps, infer_x_T=False)
        rows[f"inferred $x_T$,\n{num_steps} steps"] = inferred[:NUM_PICTURES]
        rows[f"random $x_T$,\n{num_steps} steps"] = decoded[num_steps][:NUM_PICTURES]
        results[f"steps_{num_steps}"] = {
            "mse_inferred_x_T": float(mse(inferred, x_0).mean()),
            "mse_random_x_T": float(mse(decoded[num_steps], x_0).mean()),
        }
        say(
            f"  {num_steps} steps: MSE {results[f'steps_{num_steps}']['mse_inferred_x_T']:.2e} with inferred x_T, "
            f"{results[f'steps_{num_steps}']['mse_random_x_T']:.2e} with random x_T (images in [0, 1])"
        )
    if held_out.labels is not None and config.model.z_dim is not None:
        results["labels"] = recognition(model, training, held_out, x_0, decoded)
    if is_main_process():
        picture = folder / "evaluation" / "reconstructions.png"
        save_rows(picture, rows)
        write_json(path, results)
        say(f"  pictures: {picture}\n  figures: {path}")


def recognition(
    model: DiffAE, training: Source, held_out: Source, x_0: np.ndarray, decoded: dict[int, np.ndarray]
) -> dict[str, Any]:
    """Returns how well labels are read off z, off the pixels, and off images decoded with random x_T.

    Classifiers are fitted on training images alone: logistic regression on normalised features (Appendix A.2), and a
    support vector machine on real images, which then names the decoded ones.
    """
    train_x = to_float(read(training, len(training)))
    labels, truth = training.labels, held_out.labels[: len(x_0)]
    pixels, held_out_pixels = (images.reshape(len(images), -1) for images in (train_x, x_0))

    def logistic(features, held_out_features):
        # each kind of feature gets the penalty that suits it, chosen by cross-validation on the training images
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
