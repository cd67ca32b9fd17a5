"""The command that makes a shipped model: what it stores, and what it refuses."""

import dataclasses
import re

import numpy as np
import pytest
from safetensors import safe_open

from benchmarks import ship
from diffae_jax import DiffAE
from diffae_jax.data.formats.digits import digits
from diffae_jax.models.functional import flatten, unflatten
from diffae_jax.pretrained import catalog
from diffae_jax.runtime.errors import UserError
from tests.messages import assert_is_one_sentence
from tests.random_models import random_model


@pytest.fixture(scope="module")
def model(one_device):
    model = random_model(one_device, probes={})
    training, _ = digits()
    model.config.data.update(path="digits", labels="", held_out="")
    model.config.evaluation.update(num_code_steps=2, alexnet="/home/me/alexnet.pth")
    model.fit_probe("digit", model.encode(training.images[:300]), training.labels["digit"][:300])
    return model


@pytest.fixture(scope="module")
def bundle(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("trained") / "bundle"
    model.save(path)
    return path


@pytest.fixture(scope="module", autouse=True)
def suited_to_a_random_model():
    """Its z vary little, so rounding moves them further in standard deviations."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ship, "NUM_IMAGES", 32)
        patch.setattr(ship, "MAX_Z", 0.02)
        yield


@pytest.fixture(scope="module")
def out(bundle, tmp_path_factory):
    path = tmp_path_factory.mktemp("package")
    ship.main(["digits", str(bundle), "--out", str(path)])
    return path


def refusal(bundle, out):
    with pytest.raises(SystemExit) as refused:
        ship.main(["digits", str(bundle), "--out", str(out)])
    assert not list(out.iterdir())
    assert_is_one_sentence(refused.value)
    return str(refused.value)


def test_weights_are_the_nearest_halves_and_take_half_the_space(model, bundle, out, one_device):
    shipped = DiffAE.load(out / "digits", one_device)
    for name, array in flatten({"a": shipped.params, "p": shipped.prior}).items():
        assert array.dtype == np.float32
        expected = np.asarray(flatten({"a": model.params, "p": model.prior})[name]).astype(np.float16)
        np.testing.assert_array_equal(np.asarray(array), expected)
    sizes = [(folder / "weights.safetensors").stat().st_size for folder in (out / "digits", bundle)]
    assert 0.5 < sizes[0] / sizes[1] < 0.56
    with safe_open(out / "digits" / "weights.safetensors", "np") as opened:
        names = opened.keys()
        assert {opened.get_slice(name).get_dtype() for name in names} == {"F16"}
    assert shipped.probes["digit"].as_json() == model.probes["digit"].as_json()


def test_card_has_the_figures_of_both_precisions_and_the_digests(model, out, one_device):
    shipped = DiffAE.load(out / "digits", one_device)
    (table,) = shipped.card.tables
    assert [row[0] for row in table.rows] == [
        "figure",
        "MSE of reconstructions in 2 steps, 32 images",
        "root mean square difference of z, in standard deviations",
        "accuracy of the probe digit",
    ]
    for _, limit, full, half in table.rows[1:]:
        assert np.isfinite([float(limit), float(full), float(half)]).all()
    assert 0 < float(table.rows[2][3]) < ship.MAX_Z
    assert shipped.origin["digest"] == shipped.digest()
    assert shipped.origin["digest_of_float32"] == model.digest()
    assert "Weights stored with half precision" in (out / "digits" / "README.md").read_text()


def test_no_folder_of_this_machine_is_shipped(bundle, out):
    assert "/home/me" in (bundle / "config.json").read_text()
    for file in (*out.rglob("*.json"), *out.rglob("*.md")):
        assert "/home/me" not in file.read_text(), file
    config = ship.without_paths(DiffAE.load(bundle).config)
    config.data.path = "/home/me/cells.zip"
    assert ship.without_paths(config).data.path == "cells.zip"


def test_examples_are_held_out_and_of_all_classes(out, monkeypatch):
    monkeypatch.setattr(catalog, "HERE", out)
    shown, held_out = catalog.examples("digits"), digits()[1]
    assert shown.images.shape == (32, 8, 8, 1)
    assert sorted(shown.labels["digit"][:10]) == list(range(10))
    known = {image.tobytes(): digit for image, digit in zip(held_out.images, held_out.labels["digit"], strict=True)}
    assert [known[image.tobytes()] for image in shown.images] == shown.labels["digit"].tolist()
    assert shown.license == "CC BY 4.0"
    assert "UCI" in shown.source


def test_shipping_again_replaces_the_older_version(bundle, out, tmp_path):
    for folder in ("digits", "example_images/digits"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "old.png").write_bytes(b"old")
    ship.main(["digits", str(bundle), "--out", str(tmp_path)])
    assert not list(tmp_path.rglob("old.png"))
    files = [{file.relative_to(path) for file in path.rglob("*")} for path in (out, tmp_path)]
    assert files[0] == files[1]


def test_a_result_beyond_its_limit_is_refused_and_nothing_is_written(bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(ship, "MAX_Z", 0.0)
    message = refusal(bundle, tmp_path)
    assert re.search("root mean square difference of z, in standard deviations is .* instead of 0, and the", message)


@pytest.mark.parametrize(
    ("full", "half", "limit", "is_score", "is_refused"),
    [
        (1.0, 1.04, 1.05, False, False),
        (1.0, 0.5, 1.05, False, False),
        (1.0, 1.06, 1.05, False, True),
        (0.9, 0.89, 0.89, True, False),
        (0.9, 0.95, 0.89, True, False),
        (0.9, 0.88, 0.89, True, True),
        (0.9, float("nan"), 0.89, True, True),
        (1.0, float("nan"), 1.05, False, True),
    ],
)
def test_errors_must_not_grow_and_scores_must_not_fall(full, half, limit, is_score, is_refused):
    rows = [ship.Comparison("MSE", 1.0, 1.0, 1.0), ship.Comparison("figure", full, half, limit, is_score)]
    if not is_refused:
        ship.check(rows)
        return
    with pytest.raises(UserError, match=f"figure is {half:.4g} instead of {full:.4g}, and the limit is {limit:.4g}"):
        ship.check(rows)


def test_a_model_beyond_the_size_is_refused(out, monkeypatch):
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    folders = out / "digits", out / "example_images"
    for limit in (size, size - 1):
        monkeypatch.setitem(ship.MODELS, "digits", dataclasses.replace(ship.MODELS["digits"], max_bytes=limit))
        if limit == size:
            ship.check_size("digits", *folders)
            continue
        with pytest.raises(UserError, match=f"digits takes {size:,} bytes, more than the limit of {limit:,}"):
            ship.check_size("digits", *folders)


def test_weights_that_half_precision_cannot_hold_are_refused(one_device):
    model = random_model(one_device)
    weights = flatten(model.params)
    name = min(weights)
    weights[name] = weights[name] + 1e6
    model.params = unflatten(weights)
    with pytest.raises(UserError, match=re.escape(f"Half precision cannot hold autoencoder.{name}")):
        ship.half_precision(model)


def test_a_model_without_held_out_images_is_refused(model, bundle, tmp_path):
    model.config.data.path = str(tmp_path / "images.npy")
    np.save(tmp_path / "images.npy", digits()[1].images)
    model.save(tmp_path / "bundle")
    model.config.data.path = "digits"
    (tmp_path / "out").mkdir()
    assert "holds out no images" in refusal(tmp_path / "bundle", tmp_path / "out")
