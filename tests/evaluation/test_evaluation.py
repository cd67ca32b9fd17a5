"""Evaluation programs against closed forms, brute force and the model; and rejected input."""

import json
import re
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict
from PIL import Image
from scipy.stats import norm

from diffae_jax import DiffAE, cli
from diffae_jax.cli.evaluate import evaluation_settings
from diffae_jax.config import PROGRAMS as NAMES
from diffae_jax.config import default
from diffae_jax.data.sources import Arrays, choose
from diffae_jax.data.transforms import to_float, to_uint8
from diffae_jax.evaluation import results, study
from diffae_jax.evaluation.chunk_cache import ChunkCache
from diffae_jax.evaluation.evaluate import evaluate
from diffae_jax.evaluation.frontier import Choice
from diffae_jax.evaluation.intervals import mean_figure, percentiles, share_figure, spread_of_distance
from diffae_jax.evaluation.metrics import frechet_distance, kernel_distance, mse, ssim
from diffae_jax.evaluation.networks.detector import detect, splits
from diffae_jax.evaluation.networks.feature_spaces import FeatureSpace, lpips_distances, random_space
from diffae_jax.evaluation.networks.lpips import LPIPS
from diffae_jax.evaluation.paper import claims
from diffae_jax.evaluation.paper import published as paper
from diffae_jax.evaluation.programs import (
    PROGRAMS,
    conditional,
    frontier,
    neighbors,
    out_of_distribution,
    reconstruction,
    sampling,
)
from diffae_jax.evaluation.programs.denoising import METRIC as PREDICTED
from diffae_jax.evaluation.results import Figure, Section
from diffae_jax.evaluation.study import Networks, Study, choose_in_order
from diffae_jax.inference.encode_dataset import open_for
from diffae_jax.models.functional import flatten, split, unflatten
from diffae_jax.runtime.errors import UserError
from tests.environment import environment
from tests.processes import Forked
from tests.random_models import random_model
from tests.runs import finish, wait_for

RNG = np.random.default_rng(0)


def images(count, seed=0, labeled=True):
    """Random images of the tiny model's shape, with a label that depends on their brightness."""
    rng = np.random.default_rng(seed)
    bright = np.arange(count) % 2
    pixels = rng.integers(0, 128, (count, 8, 8, 1)) + 100 * bright[:, None, None, None]
    labels = {"bright": bright, "shade": bright + rng.normal(0, 0.1, count)} if labeled else {}
    return Arrays(pixels.astype(np.uint8), [f"{seed}-{i:03d}" for i in range(count)], labels)


def settings(**changes):
    """Of as many images and steps in most tests, as networks are compiled for each number."""
    config = default().evaluation
    config.update(num_images=57, num_steps=(2,), num_samples=58, num_sample_steps=(2,), num_code_steps=2)
    config.update(changes)
    return config


@pytest.fixture(scope="module")
def model(one_device):
    return random_model(one_device)


@pytest.fixture(scope="module")
def bundle(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "bundle"
    model.save(path)
    return path


@pytest.fixture(scope="module")
def baseline(one_device):
    """A random model without z."""
    whole = random_model(one_device, seed=1)
    config = ConfigDict(whole.config)
    config.name, config.model.z_dim = "tiny_ddim", None
    flat = {name: leaf for name, leaf in flatten({"unet": whole.params["unet"]}).items() if ".z_" not in name}
    return DiffAE(config, unflatten(flat), mesh=one_device)


@pytest.fixture(scope="module")
def everything(model, baseline, tmp_path_factory):
    """The results of all programs on random models, and their folder.

    All sets have almost the same size, so that they share compiled functions. So do those of 10
    steps, which the programs denoising and throughput take too.
    """
    folder = tmp_path_factory.mktemp("evaluation")
    found = evaluate(
        model,
        images(58, seed=1),
        images(62, seed=2),
        settings(keep_images=True, num_steps=(2, 10)),
        folder,
        baseline=baseline,
        foreign=images(57, seed=3),
        images_per_second=100.0,
    )
    return found, folder


def test_every_program_of_the_config_measures_and_writes_its_picture(everything):
    found, folder = everything
    assert tuple(PROGRAMS) == NAMES == (*(section.name for section in found.sections), "frontier")
    for section in found.sections:
        assert section.figures, section.name
        assert not any("kipped" in note and "FID" not in note and "LPIPS" not in note for note in section.notes)
        for figure in section.figures:
            assert np.isfinite(figure.value), figure
            assert figure.count > 0, figure
            if figure.low is not None and "Frechet" not in figure.metric:
                assert figure.low <= figure.value <= figure.high, figure
        for picture in section.pictures:
            assert np.asarray(Image.open(folder / picture.file).convert("L")).std() > 5, picture
    assert results.read(folder) == found
    assert found.about["images"] == "57 of 58 held-out images"


def test_the_frontier_measures_what_the_model_does(model, tmp_path, monkeypatch):
    reconstructions = Choice("ddim", "even", "ddim"), Choice("ddim", "even", "exact")
    monkeypatch.setattr(frontier, "RECONSTRUCTIONS", reconstructions)  # fewer compilations
    monkeypatch.setattr(frontier, "DECODINGS", (Choice("ddim", "even"),))
    monkeypatch.setattr("diffae_jax.evaluation.frontier.NUM_TARGET_STEPS", 3)
    chunks, original = [], ChunkCache.load_or_compute

    def load_or_compute(cache, name, compute):
        chunks.append(name)
        return original(cache, name, compute)

    monkeypatch.setattr(ChunkCache, "load_or_compute", load_or_compute)
    found = evaluate(model, images(57), None, settings(programs=("frontier",)), tmp_path / "report")
    section, x_0 = found.section("frontier"), to_float(images(57).images)
    figure = section.find(frontier.RECONSTRUCTED, "ddim, even")
    assert figure.value == pytest.approx(mse(model.reconstruct(x_0, 2), x_0).mean(), rel=1e-4)
    assert section.find(frontier.CALLS, "ddim, even").value == 4
    assert section.find(frontier.CALLS_OF_DECODING, "ddim, even").value == 2
    assert section.find(frontier.CALLS, "exact, even").value > 4
    x_T = model.invert(x_0, num_steps=2)
    assert section.find("deviation of x_T", "ddim, even").value == pytest.approx(x_T.std(), rel=1e-4)
    centered = (x_T - x_T.mean()) / x_T.std()
    assert section.find("kurtosis of x_T", "ddim, even").value == pytest.approx((centered**4).mean(), rel=1e-3)
    assert section.find(frontier.JUMPS, "ddim, even").value >= 1
    points = [name for name in chunks if name.startswith("frontier-")]
    assert len(set(points)) == len(points) == 4, "a resumed evaluation must find each again"
    assert np.asarray(Image.open(tmp_path / "report" / frontier.PICTURE).convert("L")).std() > 5


def test_figures_by_sampler_and_inversion(model, tmp_path):
    changes, held_out = dict(programs=("reconstruction", "sampling")), images(116)
    names = dict(samplers=("ddim", "dpmpp_2m"), inversions=("ddim", "gaussian"))
    found = evaluate(model, held_out, None, settings(**changes, **names), tmp_path / "report")
    x_0 = to_float(held_out.images[choose_in_order(held_out, 57, seed=0)])
    row = f"{reconstruction.INFERRED}, gaussian"
    expected = mse(model.reconstruct(x_0, 2, inversion="gaussian"), x_0).mean()
    assert found.section("reconstruction").find("MSE", row).value == pytest.approx(expected, rel=1e-3)
    rows = {figure.row for figure in found.section("sampling").figures}
    assert {sampling.SAMPLES, f"{sampling.SAMPLES}, dpmpp_2m"} <= rows
    with pytest.raises(UserError, match="no sampler euler"):
        evaluate(model, held_out, None, settings(**changes, samplers=("euler",)), tmp_path / "other")


def test_reconstruction_is_that_of_the_model(everything, model, baseline):
    section = everything[0].section("reconstruction")
    x_0 = to_float(images(58, seed=1).images[choose_in_order(images(58, seed=1), 57, seed=0)])
    for num_steps in (2, 10):
        for row, decoded in (
            (reconstruction.INFERRED, model.reconstruct(x_0, num_steps)),
            (reconstruction.RANDOM, model.reconstruct(x_0, num_steps, infer_x_T=False)),
            (reconstruction.BASELINE, baseline.reconstruct(x_0, num_steps)),
        ):
            for metric, errors in (("MSE", mse(decoded, x_0)), ("SSIM", ssim(decoded, x_0))):
                figure = section.find(metric, row, f"T = {num_steps}")
                assert figure.value == pytest.approx(errors.mean(), rel=1e-4)
                assert figure.count == 57
    # the last prediction of a decoding is what it returns
    last = everything[0].section("denoising").find(PREDICTED, reconstruction.INFERRED, "t_0")
    assert last.value == pytest.approx(mse(model.reconstruct(x_0, 10), x_0).mean(), rel=1e-3)


def test_distances_are_those_of_the_sets_that_are_named(everything, model):
    section = everything[0].section("sampling")
    held_out, training = (to_float(images(*of).images) for of in ((58, 1), (62, 2)))
    assert "58 held-out images. As a yardstick, the last row compares 58 other real images" in section.notes[0]
    others = training[np.random.default_rng(0).permutation(62)[:58]]
    components = sampling.principal_space(others)
    metric = components.frechet_name
    assert "FID" not in {figure.metric for figure in section.figures}
    autoencoded = model.decode(model.encode(others), model.noise(np.arange(58)), 2)
    for row, column, drawn in (
        (sampling.SAMPLES, "T = 2", model.sample(58, 0, 2, 2)),
        (sampling.AUTOENCODED, "T = 2", autoencoded),
        (sampling.REAL, "real", others),
    ):
        expected = frechet_distance(components.features(drawn), components.features(held_out))
        assert section.find(metric, row, column).value == pytest.approx(expected, rel=1e-3)


def test_generated_images_are_kept_where_asked(everything, model):
    folder = everything[1] / "images"
    samples = model.sample(58, 0, 2, 2)
    for i in (0, 57):
        kept = np.asarray(Image.open(folder / "sampling" / "samples-2" / f"{i:06d}.png"))
        np.testing.assert_allclose(kept, to_uint8(samples[i])[..., 0], atol=1)
    assert len(list((folder / "reconstruction" / "inferred-10").iterdir())) == 57


def test_labels_that_depend_on_brightness_are_predicted_from_pixels(everything):
    section = everything[0].section("labels")
    for metric in ("accuracy", "AUROC", "average precision"):
        assert section.find(metric, "bright, from pixels").value > 0.95
    assert section.find("R^2", "shade, from pixels").value > 0.8
    assert section.find("accuracy", "bright, from z").count == 58


def test_the_score_of_a_probe_is_the_one_that_was_logged(one_device, tmp_path):
    """That of the evaluation is measured again, on the same held-out images."""
    model, held_out, training = random_model(one_device), images(58, seed=1), images(62, seed=2)
    held_out.labels["kind"], training.labels["kind"] = (np.arange(count) % 3 for count in (58, 62))
    z, unseen = model.encode(training.images), model.encode(held_out.images)
    for name, values in training.labels.items():
        model.fit_probe(name, z, values, held_out=(unseen, held_out.labels[name]))
    found = evaluate(model, held_out, training, settings(programs=("labels",)), tmp_path).section("labels")
    for name, metric in (("bright", "AUROC"), ("kind", "accuracy"), ("shade", "R^2")):
        figure, logged = found.find(metric, f"{name}, by its probe"), model.probes[name].score
        assert (figure.value, figure.count) == (pytest.approx(logged.value, abs=1e-6), logged.num_images)
        assert figure.low < figure.value < figure.high
    assert any("gives the direction of edits" in note for note in found.notes)


def test_measured_images_are_a_random_choice_that_begins_with_all_classes():
    """Images of a folder are sorted by class, and pictures show the first ones."""
    kinds = np.repeat(np.arange(6), 100)
    chosen = choose_in_order(Arrays(images(600).images, [str(i) for i in range(600)], {"kind": kinds}), 300, seed=4)
    assert np.bincount(kinds[chosen[:12]]).tolist() == [2] * 6
    np.testing.assert_array_equal(np.sort(chosen), choose(600, 300, seed=4))
    assert set(kinds[chosen[12:44]]) == set(range(6)), "the next ones are random"


@pytest.mark.long  # a killed evaluation has chunks too
def test_many_small_chunks_give_the_same_results(model, tmp_path, monkeypatch):
    monkeypatch.setattr("diffae_jax.evaluation.study.CHUNK", 7)
    usual = settings(programs=("reconstruction", "sampling", "neighbors", "out_of_distribution"))
    found = evaluate(model, images(30, seed=1), images(60, seed=2), usual, tmp_path / "small")
    monkeypatch.undo()
    whole = evaluate(model, images(30, seed=1), images(60, seed=2), usual, tmp_path / "whole")
    for section, expected in zip(found.sections, whole.sections, strict=True):
        for figure, other in zip(section.figures, expected.figures, strict=True):
            for name in ("metric", "row", "column", "count"):
                assert getattr(figure, name) == getattr(other, name)
            # a different batch size rounds differently
            np.testing.assert_allclose(figure.value, other.value, rtol=2e-3, atol=1e-5)


def test_lpips_and_fid_are_measured_if_their_networks_are_available(one_device, tmp_path):
    shape = (32, 32, 3)
    model = random_model(one_device, image_shape=shape)
    rng = np.random.default_rng(0)
    held_out, training = (
        Arrays(rng.integers(0, 256, (4, *shape), np.uint8), [f"{name}-{i}" for i in range(4)])
        for name in ("held out", "training")
    )
    # LPIPS of random weights, and a space under the name of the one that is called FID
    distance = lpips_distances(split(LPIPS(rngs=nnx.Rngs(0)))[1], one_device)
    convolutions = random_space(shape, one_device)
    space = FeatureSpace("Inception", convolutions.dim, convolutions.features, "FID", "KID")
    found = evaluate(
        model,
        held_out,
        training,
        settings(programs=("reconstruction", "sampling", "neighbors"), num_samples=4),
        tmp_path,
        networks=Networks(space, distance),
    )
    x_0 = to_float(held_out.images)
    figure = found.section("reconstruction").find("LPIPS", reconstruction.INFERRED, "T = 2")
    assert figure.value == pytest.approx(distance(model.reconstruct(x_0, 2), x_0).mean(), rel=1e-3)
    sampled = found.section("sampling")
    features = (space.features(images) for images in (model.sample(4, 0, 2, 2), x_0))
    fid = sampled.find("FID", sampling.SAMPLES)
    assert fid.value == pytest.approx(frechet_distance(*features), rel=1e-3)
    assert fid.low < fid.value < fid.high
    assert sampled.find("KID", sampling.SAMPLES).value == pytest.approx(
        kernel_distance(space.features(model.sample(4, 0, 2, 2)), space.features(x_0), subset_size=2).mean, rel=1e-3
    )
    assert not found.section("reconstruction").notes[1:]


# --- resuming ------------------------------------------------------------------------------------


def evaluate_in_small_chunks():
    """The command, for a process of its own."""
    study.CHUNK = 24
    cli.run()


def start(bundle, folder):
    """Starts an evaluation in two chunks of one size, for which networks are compiled once."""
    arguments = [
        *("evaluate", str(bundle), "--data", "digits", "--out", str(folder)),
        *("--programs", "reconstruction", "variations", "sampling", "--steps", "2", "--num-images", "48"),
        *("--num-samples", "48"),
    ]
    return Forked(f"{__name__}:evaluate_in_small_chunks", arguments)


def test_killed_evaluation_resumes_with_the_same_results(bundle, tmp_path):
    folder = tmp_path / "killed"
    process = start(bundle, folder)
    wait_for(process, folder, "chunks/variations*.npz")
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (folder / "report.html").exists(), "it was killed too late to show anything"
    assert results.read(folder).section("reconstruction") is not None
    (folder / "chunks" / "reconstruction-inferred-2-0000000.npz").write_bytes(b"never read again")
    finish(start(bundle, folder))
    assert not (folder / "chunks").exists()
    whole = tmp_path / "whole"
    finish(start(bundle, whole))
    assert results.read(folder).sections == results.read(whole).sections
    assert "Already finished" in finish(start(bundle, whole))


def test_further_program_keeps_earlier_results(model, tmp_path):
    data = images(58, seed=1), images(62, seed=2)
    first = evaluate(model, *data, settings(programs=("variations",)), tmp_path)
    assert evaluate(model, *data, settings(programs=("variations",)), tmp_path) is None
    more = evaluate(model, *data, settings(programs=("reconstruction",)), tmp_path)
    assert [section.name for section in more.sections] == ["reconstruction", "variations"]
    assert more.section("variations") == first.sections[0]
    # a different seed measures everything again and removes all earlier results
    other = evaluate(model, *data, settings(programs=("reconstruction",)), tmp_path, seed=1)
    assert [section.name for section in other.sections] == ["reconstruction"]
    assert not (tmp_path / "variations.png").exists()


def test_results_with_names_of_an_earlier_version_are_measured_again(model, tmp_path):
    data, usual = images(58, seed=1), settings(programs=("variations",))
    first = evaluate(model, data, None, usual, tmp_path)
    content = json.loads((tmp_path / "results.json").read_text())
    del content["measured"]["names"]
    content["sections"][0]["figures"][0]["metric"] = "an older name"
    (tmp_path / "results.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"an evaluation with different inputs \(names\)"):
        evaluate(model, data, None, usual, tmp_path, replace=False)
    assert evaluate(model, data, None, usual, tmp_path).sections == first.sections


def test_missing_report_is_written_from_the_results(model, tmp_path):
    data, usual = images(58, seed=1), settings(programs=("reconstruction",))
    evaluate(model, data, None, usual, tmp_path)
    written = (tmp_path / "report.html").read_bytes()
    (tmp_path / "report.html").unlink()
    found = json.loads((tmp_path / "results.json").read_text())["sections"]
    assert evaluate(model, data, None, usual, tmp_path) is not None
    assert json.loads((tmp_path / "results.json").read_text())["sections"] == found
    assert len((tmp_path / "report.html").read_bytes()) == pytest.approx(len(written), abs=200)


def test_same_weights_under_another_schedule_are_another_model(model, tmp_path):
    data, usual = images(58, seed=1), settings(programs=("reconstruction",))
    first = evaluate(model, data, None, usual, tmp_path)
    config = ConfigDict(model.config.to_dict())
    config.train.schedule = "linear" if config.train.schedule == "cosine" else "cosine"
    other = DiffAE(config, model.params, mesh=model.mesh)
    with pytest.raises(UserError, match=r"an evaluation with different inputs \(model\)"):
        evaluate(other, data, None, usual, tmp_path, replace=False)
    assert results.read(tmp_path) == first
    assert evaluate(other, data, None, usual, tmp_path).sections != first.sections


def test_damaged_chunk_is_computed_again(tmp_path, capsys):
    ChunkCache(tmp_path, {}).load_or_compute("a", lambda: {"x": np.ones(3)})
    for content in (b"", (tmp_path / "a.npz").read_bytes()[:-20]):
        (tmp_path / "a.npz").write_bytes(content)
        assert ChunkCache(tmp_path, {}).load_or_compute("a", lambda: {"x": np.ones(3)})["x"].sum() == 3
        assert "a.npz is damaged" in capsys.readouterr().out


def test_chunks_of_different_inputs_are_removed(tmp_path):
    cache = ChunkCache(tmp_path / "chunks", {"model": 1})
    name = "of class a/b, 50 %"
    assert cache.load_or_compute(name, lambda: {"a": np.ones(2)})["a"].sum() == 2
    again = ChunkCache(tmp_path / "chunks", {"model": 1})
    assert again.load_or_compute(name, lambda: pytest.fail("it is there"))["a"].sum() == 2
    (tmp_path / "chunks" / "thesis.txt").write_text("mine")
    other = ChunkCache(tmp_path / "chunks", {"model": 2})
    assert other.load_or_compute(name, lambda: {"a": np.zeros(2)})["a"].sum() == 0
    other.remove()
    assert [path.name for path in (tmp_path / "chunks").iterdir()] == ["thesis.txt"]


# --- mathematics ---------------------------------------------------------------------------------


def test_interval_of_a_mean_is_that_of_the_normal_distribution():
    values = RNG.normal(3, 2, 400)
    figure = mean_figure("m", "r", "c", values)
    half = norm.ppf(0.975) * values.std() / 20
    assert figure.value == pytest.approx(values.mean())
    assert (figure.high - figure.low) / 2 == pytest.approx(half, rel=0.1)
    assert mean_figure("m", "r", "c", values[:1]).low is None
    assert percentiles(lambda x: float("nan"), values) == (None, None)


def test_interval_of_a_share_is_that_of_wilson():
    figure = share_figure("m", "r", "c", np.zeros(20, bool))
    z = norm.ppf(0.975)
    assert (figure.value, figure.low) == (0, 0)
    assert figure.high == pytest.approx(z**2 / (20 + z**2))
    half = share_figure("m", "r", "c", np.arange(100) < 50)
    assert half.high - half.low == pytest.approx(2 * z * 0.05, rel=0.03)


def test_interval_of_the_kernel_distance_is_as_wide_as_fresh_sets_are_apart(monkeypatch):
    monkeypatch.setattr(sampling, "spread_of_distance", lambda *_: 0.0)  # that of the FID takes seconds
    space = FeatureSpace("Inception", 8, lambda images: images, "FID", "KID")

    def figures(seed):
        rng = np.random.default_rng(seed)
        sets = [{"Inception": rng.normal(shift, 1, (n, 8))} for shift, n in ((0.2, 500), (0.0, 350))]
        return sampling.distances(space, "r", "c", *sets)

    true = np.std([figures(seed)[1].value for seed in range(25)], ddof=1)
    kid = figures(100)[1]
    assert kid.metric == "KID"
    assert (kid.high - kid.low) / 2 / norm.ppf(0.975) == pytest.approx(true, rel=0.6)


def test_spread_of_a_distance_is_that_over_fresh_sets():
    def fresh(seed):
        rng = np.random.default_rng(seed)
        return rng.normal(size=(300, 4)), rng.normal(0.3, 1, (300, 4))

    true = np.std([frechet_distance(*fresh(seed)) for seed in range(200)], ddof=1)
    found = spread_of_distance(frechet_distance, *fresh(1000), resamples=200)
    assert found == pytest.approx(true, rel=0.35)


def test_normality_of_known_noise():
    rng = np.random.default_rng(0)
    rho, steps = 0.6, rng.normal(size=(20, 4000))
    values = np.zeros_like(steps)
    values[:, 0] = steps[:, 0] / np.sqrt(1 - rho**2)
    for i in range(1, steps.shape[1]):
        values[:, i] = rho * values[:, i - 1] + steps[:, i]
    found = {key: value.mean() for key, value in out_of_distribution.normality(values[..., None]).items()}
    assert found[out_of_distribution.AUTOCORRELATION] == pytest.approx(rho, abs=0.02)
    assert found["standard deviation of x_T"] == pytest.approx(1 / np.sqrt(1 - rho**2), rel=0.03)
    skewed = {k: v.mean() for k, v in out_of_distribution.normality(rng.exponential(size=(20, 50, 50, 2))).items()}
    assert skewed["mean of x_T"] == pytest.approx(1, abs=0.02)
    assert skewed["skewness of x_T"] == pytest.approx(2, abs=0.1)
    assert skewed["excess kurtosis of x_T"] == pytest.approx(6, abs=0.6)
    assert abs(skewed[out_of_distribution.AUTOCORRELATION]) < 0.01


def test_shifted_images_move_to_the_right():
    x = np.arange(2.0 * 3 * 8).reshape(2, 3, 8, 1)
    shifted = out_of_distribution.shifted(x)
    np.testing.assert_array_equal(shifted[:, :, 2:], x[:, :, :6])
    np.testing.assert_array_equal(shifted[:, :, :2], np.repeat(x[:, :, :1], 2, 2))


def test_chunk_that_is_not_finite_is_reported_and_not_written(tmp_path):
    cache = ChunkCache(tmp_path / "chunks", {})
    broken = {"x": np.array([0.0, np.nan, 1.0]), "n": np.arange(3)}
    with pytest.raises(UserError, match=r"1 of 3 values of sampling-0 are not finite\. .*float32"):
        cache.load_or_compute("sampling-0", lambda: broken)
    assert not list(tmp_path.glob("chunks/*.npz"))


def test_planted_copies_are_found(model, tmp_path, monkeypatch):
    training, held_out = images(60, seed=2), images(30, seed=1)
    copies = to_float(training.images[:24])
    monkeypatch.setattr(type(model), "sample", lambda self, *_: copies)
    found = evaluate(
        model, held_out, training, settings(programs=("neighbors",), num_images=24, num_samples=24), tmp_path
    )
    section = found.section("neighbors")
    assert section.find(neighbors.COPIES, "samples", "in pixels").value == 1
    assert section.find(neighbors.DISTANCE, "samples", "in pixels").value < 1e-3
    flat = [
        to_float(source.images[: 24 if source is held_out else 60]).reshape(-1, 64) for source in (held_out, training)
    ]
    chosen = np.sort(np.random.default_rng(0).choice(30, 24, replace=False))
    flat[0] = to_float(held_out.images[chosen]).reshape(24, 64)
    brute = np.sqrt(np.square((flat[0][:, None] - flat[1][None]) / 2).mean(-1)).min(1)
    assert section.find(neighbors.DISTANCE, "held-out images", "in pixels").value == pytest.approx(
        brute.mean(), rel=1e-5
    )
    text = (
        "Samples are not copies: in pixels, fewer than 5 % are closer to a training image than 99 % of held-out "
        "images are."
    )
    assert {claim.text: claim.verdict for claim in found.claims}[text] == "does not hold"


def test_detector_detects_a_difference_only_if_there_is_one():
    rng = np.random.default_rng(0)
    same = [rng.integers(0, 256, (200, 8, 8, 1), np.uint8) for _ in range(2)]
    subsets = splits(*same, seed=0)
    assert [len(subset.images) for subset in subsets] == [280, 40, 80]
    assert [subset.generated.mean() for subset in subsets] == [0.5] * 3
    assert 0.3 < detect(*subsets, seed=0).mean() < 0.7
    smooth = np.repeat(same[1][:, ::2], 2, axis=1)
    assert detect(*splits(same[0], smooth, seed=0), seed=0).mean() > 0.9


# --- claims --------------------------------------------------------------------------------------


def figures(metric, **rows):
    return [
        Figure(metric, row, f"T = {steps}", value, 10, value - 0.05, value + 0.05)
        for row, values in rows.items()
        for steps, value in values.items()
    ]


def measured(*sections):
    """The claims that have figures. All others state what they need."""
    found = list(claims.claims({section.name: section for section in sections}))
    assert all(claim.evidence.startswith("Needs ") for claim in found if claim.verdict == "not measured")
    assert len(found) == len({claim.text for claim in found}) == 14
    return [claim for claim in found if claim.verdict != "not measured"]


@pytest.mark.parametrize(
    ("metric", "ours", "random", "verdict"),
    [
        ("MSE", 0.1, 0.3, "holds"),
        ("MSE", 0.3, 0.1, "does not hold"),
        ("MSE", 0.1, 0.15, "undecided"),
        ("SSIM", 0.9, 0.5, "holds"),
        ("SSIM", 0.5, 0.9, "does not hold"),
    ],
)
def test_claim_holds_where_intervals_lie_apart_in_its_direction(metric, ours, random, verdict):
    rows = {"inferred x_T": {20: ours}, "random x_T": {20: random}}
    section = Section("reconstruction", "", tuple(figures(metric, **rows)))
    (claim,) = measured(section)
    assert claim.verdict == verdict
    assert f"{metric} at T = 20" in claim.evidence


def test_claim_of_several_figures_holds_where_all_do():
    rows = {"inferred x_T": {20: 0.1, 100: 0.1}, "DDIM baseline, inferred x_T": {20: 0.5, 100: 0.12}}
    section = Section("reconstruction", "", tuple(figures("MSE", **rows)))
    found = {claim.source: claim.verdict for claim in measured(section)}
    assert found == {"Table 2": "undecided", "Sec. 5.4, Table 2": "undecided"}


def test_sizes_are_compared_each_with_the_next():
    rows = {"random x_T": {100: 0.1}, "z of 16, random x_T": {100: 0.3}, "z of 4, random x_T": {100: 0.15}}
    section = Section("reconstruction", "", tuple(figures("MSE", **rows)))
    found = [claim for claim in measured(section) if "z has more dimensions" in claim.text]
    assert [claim.verdict for claim in found] == ["does not hold"]


def test_figures_of_the_paper_are_found_by_the_name_of_the_experiment():
    assert paper.experiment("ffhq128_autoenc_130M") == "ffhq128"
    assert paper.experiment("ffhq128_48m_z64") == "ffhq128_48m"
    assert paper.experiment("digits") == ""
    assert paper.reconstruction("ffhq128", "SSIM", "inferred x_T", 100) == 0.991
    assert paper.reconstruction("ffhq128", "SSIM", "inferred x_T", 30) is None
    assert paper.sampling("horse128", "samples", 10) == 11.97
    assert paper.conditional("celeba64", "Male", "positive and unlabeled") == 9.54
    assert paper.throughput("ffhq128", True) == 41.65


# --- messages ------------------------------------------------------------------------------------


def test_programs_that_lack_something_are_skipped(model, baseline, tmp_path, capsys):
    one = images(1, labeled=False)
    programs = ("reconstruction", "labels", "variations", "sampling", "neighbors", "detection")
    found = evaluate(model, one, None, settings(programs=programs, num_samples=5), tmp_path / "one")
    said = capsys.readouterr().out
    for sentence in (
        "labels was skipped: it needs the training images, and none were given (--training).",
        "variations was skipped: it needs at least two images, not 1.",
        "neighbors was skipped: it needs the training images, and none were given (--training).",
        "detection was skipped: it needs at least 40 real images, not 1.",
        "too few real images to compare samples with: two sets of at least 2 are needed, but they have 0 and 1. Give",
    ):
        assert sentence in said, sentence
    assert found.section("reconstruction").figures
    assert found.section("labels").notes == (
        "Skipped: it needs the training images, and none were given (--training).",
    )
    found = evaluate(
        baseline, images(57, seed=1), None, settings(programs=("reconstruction", "variations")), tmp_path / "b"
    )
    assert "variations was skipped: a DDIM baseline has no z." in capsys.readouterr().out
    assert {figure.row for figure in found.section("reconstruction").figures} == {reconstruction.BASELINE}


def test_overlap_with_training_images_is_reported(model, tmp_path, capsys):
    training = images(60, seed=2)
    own = images(57, seed=1).images[6:]
    shared = Arrays(np.concatenate([training.images[5:11], own]), [f"copy-{i}" for i in range(57)])
    found = evaluate(model, shared, training, settings(programs=("reconstruction",)), tmp_path / "arrays")
    sentence = "6 of the 57 images are also training images (copy-0, copy-1, copy-2 and 3 more)"
    assert sentence in capsys.readouterr().out
    assert sentence in found.about["note"]
    for name, source in (("training", training.images[:8]), ("test", training.images[6:12])):
        (tmp_path / name).mkdir()
        for i, image in enumerate(source):
            Image.fromarray(image[..., 0]).save(tmp_path / name / f"{name}{i}.png")
    files = [open_for(model, tmp_path / name) for name in ("test", "training")]
    evaluate(model, *files, settings(programs=("reconstruction",)), tmp_path / "files")
    assert "2 of the 6 images are also training images (test0.png, test1.png)" in capsys.readouterr().out


def test_images_of_a_different_size_are_reported(model, tmp_path, capsys):
    (tmp_path / "photos").mkdir()
    for i, size in enumerate([(8, 8)] * 56 + [(20, 30)]):
        Image.fromarray(RNG.integers(0, 256, size, np.uint8)).save(tmp_path / "photos" / f"{i}.png")
    evaluate(
        model, open_for(model, tmp_path / "photos"), None, settings(programs=("reconstruction",)), tmp_path / "out"
    )
    assert "1 of the 57 images are scaled to 8x8 and cropped." in capsys.readouterr().out


def test_weights_that_are_not_finite_are_reported(model, tmp_path):
    name = "unet.conv_in.kernel"
    params = unflatten(flatten(model.params) | {name: flatten(model.params)[name] * np.nan})
    broken = DiffAE(model.config, params, mesh=model.mesh)
    with pytest.raises(UserError, match="57 of 57 x_T hold values that are not finite"):
        evaluate(broken, images(57), None, settings(programs=("reconstruction",)), tmp_path)
    assert not list(tmp_path.glob("*.json"))


def test_models_that_cannot_be_compared_are_rejected(model, baseline, tmp_path):
    config = ConfigDict(model.config)
    config.image_shape = (16, 16, 1)
    wide = DiffAE(config, model.params, mesh=model.mesh)
    for compared, message in (
        (dict(baseline=model), "tiny has a z, so it cannot be the baseline. Use a DDIM without z"),
        (dict(others=(model,)), "2 models have a z of 8 dimensions, .* Use models whose z differ in size"),
        (dict(others=(baseline,)), "A model has no z, .* Use models whose z differ in size"),
        (dict(baseline=wide), r"is for images of \(16, 16, 1\), and tiny for \(8, 8, 1\)"),
    ):
        with pytest.raises(UserError, match=message):
            evaluate(model, images(4), None, settings(), tmp_path, **compared)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--programs", "fid"], "evaluation.programs may contain only reconstruction, .*, not fid"),
        (["--steps", "0"], "1 to 1000 steps, not 0"),
        (["--num-images", "1"], "it must be from 2 to 10,000,000, not 1"),
        (["--data", "nowhere"], "nowhere is missing. Check the path"),
        (["--baseline", "nowhere"], "nowhere is neither a path nor a shipped model"),
        (["--baseline", "BUNDLE"], "tiny has a z, so it cannot be the baseline. Use a DDIM without z"),
        (["--others", "BUNDLE"], "2 models have a z of 8 dimensions, .* Use models whose z differ in size"),
        (["--inception", "nowhere.pth"], "nowhere.pth is missing"),
        (["--labels", "nowhere.csv"], "nowhere.csv is missing"),
        (["--id-column", "image"], "--id-column needs --labels"),
        (["--out", "full"], r"full already exists\. Use another path or --overwrite"),
        (["--out", "file.png"], r"The type of file.png is not supported here\. Use a folder"),
    ],
)
def test_mistakes_give_a_short_message_and_nothing_is_written(
    bundle,
    tmp_path,
    monkeypatch,
    capsys,
    arguments,
    message,
):
    monkeypatch.chdir(tmp_path)
    Path("full").mkdir()
    Path("full", "thesis.txt").write_text("mine")
    arguments = [str(bundle) if word == "BUNDLE" else word for word in arguments]
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit) as exit_:
        cli.run(["evaluate", str(bundle), "--data", "digits", "--out", "new", *arguments])
    said = capsys.readouterr().err
    assert exit_.value.code == 2
    assert said.startswith("Error: ")
    assert said.count("\n") == 1, said
    assert re.search(message, said), said
    assert sorted(tmp_path.rglob("*")) == before


def test_a_different_evaluation_is_only_overwritten_on_request(bundle, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    usual = ["evaluate", str(bundle), "--data", "digits", "--programs", "variations", "--steps", "2", "--out", "new"]
    cli.run([*usual, "--num-images", "5"])
    found = json.loads(Path("new/results.json").read_text())
    with pytest.raises(SystemExit):
        cli.run([*usual, "--num-images", "6"])
    error = capsys.readouterr().err
    assert "new holds an evaluation with different inputs (settings). Use a different folder or --overwrite" in error
    assert json.loads(Path("new/results.json").read_text()) == found
    cli.run([*usual, "--num-images", "6", "--overwrite"])
    assert results.read(Path("new")).section("variations").figures[0].count == 6


def test_settings_of_the_authors_machine_in_a_bundle_are_ignored(model, tmp_path):
    config = ConfigDict(model.config.to_dict())
    config.evaluation.update(inception="/theirs/weights.pth", download=True, keep_images=True)
    theirs = DiffAE(config, model.params, mesh=model.mesh)
    arguments = cli.parser().parse_args(["evaluate", "theirs", "--data", "digits", "--steps", "5", "--out", "new"])
    found = evaluation_settings(theirs, arguments)
    assert (found.inception, found.download, found.keep_images) == ("", False, False)
    assert (found.num_steps, found.num_code_steps) == ((5,), 5)
    assert theirs.config.evaluation.num_code_steps == 2, "the model's config changed"


def test_labels_that_look_like_paths_stay_in_the_output_folder(model, tmp_path):
    training = images(60, seed=2)
    named = Arrays(training.images, training.ids, {"../../evil/x": training.labels["bright"]})
    folder = tmp_path / "a" / "b" / "out"
    found = evaluate(model, images(58, seed=1), named, settings(programs=("conditional",), keep_images=True), folder)
    assert {figure.row for figure in found.section("conditional").figures} == {"../../evil/x", "not ../../evil/x"}
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["out"]


def test_classes_of_the_paper_come_first(model, tmp_path):
    rng = np.random.default_rng(0)
    labels = {name: rng.integers(0, 2, 60) for name in ("Arched_Eyebrows", "Bald", "Male", "Blond_Hair")}
    labels["Male"] = labels["Male"].astype(float)
    labels["Male"][:5] = np.nan  # not all are known
    source = images(60, seed=2)
    config = ConfigDict(model.config.to_dict())
    config.name = "celeba64_autoenc"
    celeba = DiffAE(config, model.params, mesh=model.mesh)
    study = Study(
        celeba,
        source,
        Arrays(source.images, source.ids, labels),
        settings(),
        0,
        tmp_path,
        ChunkCache(tmp_path, {}),
        Networks(),
    )
    found = conditional.targets(study)
    assert list(found) == ["Male", "not Male", "Blond_Hair", "not Blond_Hair"]
    assert sum(map(len, found["Male"])) == 55


@pytest.mark.long
def test_thousand_images_take_less_than_four_gigabytes(one_device, tmp_path):
    rng = np.random.default_rng(0)
    random_model(one_device, image_shape=(16, 16, 3)).save(tmp_path / "bundle")
    for name in ("test", "training"):
        (tmp_path / name).mkdir()
        for i in range(1000):
            Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(tmp_path / name / f"{i:04d}.png")
    arguments = [
        *(sys.executable, "-m", "diffae_jax.cli", "evaluate", str(tmp_path / "bundle")),
        *("--data", str(tmp_path / "test"), "--training", str(tmp_path / "training")),
        *("--programs", "reconstruction", "sampling", "--steps", "1", "--num-images", "1000", "--num-samples", "1000"),
        *("--out", str(tmp_path / "out")),
    ]
    subprocess.run(arguments, check=True, env=environment(), capture_output=True)
    assert results.read(tmp_path / "out").section("reconstruction").figures[0].count == 1000
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss < 4 * 2**20  # KiB
