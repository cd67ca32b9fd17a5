"""The command that makes a shipped model: what it stores, and what it refuses."""

import dataclasses
import re

import numpy as np
import pytest
from safetensors import safe_open

from benchmarks import ship
from diffae_jax import DiffAE
from diffae_jax.data.formats.digits import digits
from diffae_jax.models.functional import flatten
from diffae_jax.pretrained import catalog
from tests.messages import assert_is_one_sentence
from tests.random_models import random_model


@pytest.fixture(scope="module")
def model(one_device):
    model = random_model(one_device, probes={})
    training, held_out = digits()
    model.config.data.update(path="digits", labels="", held_out="")
    model.config.evaluation.update(num_code_steps=2, alexnet="/home/me/alexnet.pth")
    model.fit_probe("digit", model.encode(training.images[:300]), training.labels["digit"][:300])
    return model


@pytest.fixture(scope="module")
def bundle(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("trained") / "bundle"
    model.save(path)
    return path


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
        assert {opened.get_slice(name).get_dtype() for name in opened.keys()} == {"F16"}
    assert shipped.probes["digit"].as_json() == model.probes["digit"].as_json()


def test_card_has_the_figures_of_both_precisions_and_the_digests(model, out, one_device):
    shipped = DiffAE.load(out / "digits", one_device)
    (table,) = shipped.card.tables
    assert [row[0] for row in table.rows] == [
        "figure",
        "MSE of reconstructions in 2 steps, 256 images",
        "root mean square difference of z, in standard deviations",
        "accuracy of the probe digit",
    ]
    for _, limit, full, half in table.rows[1:]:
        assert np.isfinite([float(limit), float(full), float(half)]).all()
    assert 0 < float(table.rows[2][3]) < 0.01
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


@pytest.mark.parametrize(
    ("name", "limit", "message"),
    [
        ("MAX_MSE", 0.0, "MSE of reconstructions in 2 steps, 256 images is .* instead of .*, and the limit is 0"),
        ("MAX_Z", 0.0, "root mean square difference of z, in standard deviations is"),
        ("MAX_SCORE", -1.0, "accuracy of the probe digit is"),
    ],
)
def test_a_result_beyond_its_limit_is_refused(bundle, tmp_path, monkeypatch, name, limit, message):
    monkeypatch.setattr(ship, name, limit)
    assert re.search(message, refusal(bundle, tmp_path))


def test_a_model_beyond_the_size_is_refused(bundle, tmp_path, monkeypatch):
    monkeypatch.setitem(ship.MODELS, "digits", dataclasses.replace(ship.MODELS["digits"], max_bytes=1000))
    assert "more than the limit of 1,000. Ship a smaller model" in refusal(bundle, tmp_path)


def test_weights_that_half_precision_cannot_hold_are_refused(one_device, tmp_path):
    model = random_model(one_device)
    name = next(iter(flatten(model.params)))
    node = model.params
    for key in name.split(".")[:-1]:
        node = node[key]
    node[name.split(".")[-1]] = node[name.split(".")[-1]] + 1e6
    model.config.data.path = "digits"
    model.save(tmp_path / "bundle")
    (tmp_path / "out").mkdir()
    message = refusal(tmp_path / "bundle", tmp_path / "out")
    assert f"Half precision cannot hold autoencoder.{name}" in message


def test_a_model_without_held_out_images_is_refused(model, bundle, tmp_path):
    model.config.data.path = str(tmp_path / "images.npy")
    np.save(tmp_path / "images.npy", digits()[1].images)
    model.save(tmp_path / "bundle")
    model.config.data.path = "digits"
    (tmp_path / "out").mkdir()
    assert "holds out no images" in refusal(tmp_path / "bundle", tmp_path / "out")
