"""The models that ship with the package: by name, complete, and small."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from benchmarks import ship
from diffae_jax import DiffAE, cli
from diffae_jax.data.detect import open_images
from diffae_jax.data.labels.tables import read_table
from diffae_jax.inference.bundle import read_manifest
from diffae_jax.pretrained import catalog, examples, folder_of, is_shipped, names
from diffae_jax.probes import score
from diffae_jax.runtime.errors import UserError
from diffae_jax.stages.origin import address_of
from tests.messages import assert_is_one_sentence

every_model = pytest.mark.parametrize("name", names())


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def command(*arguments):
    with pytest.raises(SystemExit) as ended:
        cli.run(list(arguments))
    return ended.value.code


def test_digits_ship():
    assert "digits" in names()
    assert set(names()) <= set(ship.MODELS)


@every_model
def test_a_shipped_model_is_complete(name, one_device):
    model = DiffAE.load(name, one_device)
    assert model.config.name == name
    assert model.prior is not None
    assert model.statistics is not None
    assert model.probes
    assert model.origin["digest"] == model.digest()
    assert model.card.tables[-1].title == "Weights stored with half precision"
    assert model.card.tables[0].title.startswith("Reconstruction")


@every_model
def test_files_are_small_and_name_no_folder_of_a_machine(name):
    folders = folder_of(name), examples(name).folder
    assert ship.total_bytes(*folders) <= ship.MODELS[name].max_bytes
    for folder in folders:
        for file in (*folder.rglob("*.json"), *folder.rglob("*.md")):
            assert not [root for root in ("/home/", "/root/", "/work/", "/tmp/") if root in file.read_text()], file


@every_model
def test_half_precision_is_within_its_limits(name):
    *_, table = read_manifest(folder_of(name))["card"]["tables"]
    for figure, limit, full, half in ((row[0], *map(float, row[1:])) for row in table["rows"][1:]):
        assert half >= limit if limit < full else half <= limit, figure


@pytest.mark.parametrize(
    "name", [name if name == "digits" else pytest.param(name, marks=pytest.mark.long) for name in names()]
)
def test_examples_fit_the_model_and_its_probes(name, one_device):
    shown, model = examples(name), DiffAE.load(name, one_device)
    assert shown.images.shape == (32, *model.image_shape)
    assert shown.license
    assert shown.source
    assert len({image.tobytes() for image in shown.images}) == 32
    z = model.statistics.normalize(model.encode(shown.images))
    for probe in model.probes.values():
        assert score(probe, z, shown.labels[probe.name]).value > 0.6
    few = shown.images[:8]
    assert np.square((model.reconstruct(few, 20) + 1) / 2 - few / 255).mean() < 2e-3


@every_model
def test_commands_take_the_folder_of_examples_as_images(name, one_device):
    shown = examples(name)
    opened = open_images(shown.folder, shown.images.shape[1:]).source
    np.testing.assert_array_equal(np.stack([opened[i] for i in range(32)]), shown.images)
    table = read_table(shown.folder / "labels.json")
    assert set(table.columns) >= set(shown.labels)


def test_commands_take_a_name(tmp_path, capsys):
    cli.run(["info", "digits"])
    assert "probe digit: 10 classes" in capsys.readouterr().out
    cli.run(["sample", "digits", "--num", "2", "--steps", "2", "--out", "new.png"])
    assert (tmp_path / "new.png").exists()


def test_an_existing_path_takes_precedence_over_a_name(tmp_path, capsys):
    assert is_shipped("digits")
    assert not is_shipped("./digits")
    (tmp_path / "digits").mkdir()
    assert not is_shipped("digits")
    with pytest.raises(
        UserError, match=r"digits is neither a bundle .* or rename it to use the shipped model"
    ) as error:
        DiffAE.load("digits")
    assert_is_one_sentence(error.value)
    shutil.copytree(folder_of("digits"), "digits", dirs_exist_ok=True)
    (tmp_path / "digits" / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"digits/config\.json has 2 bytes"):
        DiffAE.load("digits")


def test_an_unknown_name_is_reported(capsys):
    with pytest.raises(UserError, match=r"digit is neither a path nor a shipped model: .*digits") as error:
        DiffAE.load("digit")
    assert_is_one_sentence(error.value)
    with pytest.raises(UserError, match=r"no shipped model digit\. Choose one of: .*digits"):
        examples("digit")
    assert command("info", "digit") == 2
    assert "Error: digit is neither a path nor a shipped model" in capsys.readouterr().err


def test_settings_are_not_stored_in_the_package(capsys):
    before = {path: path.read_bytes() for path in folder_of("digits").rglob("*") if path.is_file()}
    assert command("budget", "digits", "--data", "digits", "--target-mse", "1") == 2
    assert "digits is part of the package, where settings cannot be stored. Add --no-save." in capsys.readouterr().err
    assert {path: path.read_bytes() for path in folder_of("digits").rglob("*") if path.is_file()} == before


def test_a_run_records_the_name_of_the_model_it_starts_from(tmp_path):
    assert address_of("digits") == "digits"
    (tmp_path / "digits").mkdir()
    assert address_of("digits") == str(tmp_path / "digits")


def test_damage_is_reported_with_the_name_and_a_fix(tmp_path, monkeypatch):
    copy = Path(shutil.copytree(folder_of("digits"), tmp_path / "package" / "digits"))
    monkeypatch.setattr(catalog, "HERE", tmp_path / "package")
    os.truncate(copy / "weights.safetensors", 100)
    with pytest.raises(UserError, match=r"^digits: weights.safetensors has 100 bytes .* Install diffae_jax again\.$"):
        DiffAE.load("digits")
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps(manifest | {"files": {}}))
    with pytest.raises(UserError, match=r"^digits: manifest.json does not list config"):
        DiffAE.load("digits")
