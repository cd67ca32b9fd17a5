"""The card in the bundle of a run: its results, its pictures, and what a repeated export keeps."""

import json
import shutil

import pytest

from diffae_jax.evaluation.results import read
from diffae_jax.inference.bundle import MANIFEST, write_recommended
from diffae_jax.inference.recommended import Recommended
from tests.runs import MANY_STEPS, finish, start


@pytest.fixture
def run(whole, tmp_path):
    return shutil.copytree(whole[0], tmp_path / "run")


def export(run, *arguments):
    return finish(start(run, MANY_STEPS, "--stages=export", *arguments))


def test_bundle_of_a_run_has_a_card_with_its_results_and_pictures(whole):
    bundle = whole[0] / "bundle"
    text = (bundle / "README.md").read_text()
    figure = read(whole[0] / "evaluation").section("reconstruction").find("MSE", "inferred x_T")
    assert f"| inferred x_T | {figure.text()} |" in text
    assert "Images: the digits of scikit-learn" in text
    assert "- run: tiny" in text
    for name in ("reconstructions", "samples"):
        assert f"(pictures/{name}.png)" in text
        assert (bundle / "pictures" / f"{name}.png").read_bytes() == (
            whole[0] / "evaluation" / f"{name}.png"
        ).read_bytes()


def test_repeated_export_keeps_an_edited_card_and_follows_the_license(run):
    bundle = run / "bundle"
    weights = (bundle / "weights.safetensors").read_bytes()
    (bundle / "README.md").write_text("# Mine")
    assert "export: finished" in export(run)
    output = export(run, "--config.export.license=mit", "--config.export.pictures=False")
    assert "export: finished" not in output
    assert (bundle / "README.md").read_text() == "# Mine"
    assert not (bundle / "pictures").exists()
    assert json.loads((bundle / "config.json").read_text())["export"] == {"license": "mit", "pictures": False}
    (bundle / "README.md").unlink()
    export(run, "--config.export.license=mit", "--config.export.pictures=False")
    assert 'license: "mit"' in (bundle / "README.md").read_text()
    assert (bundle / "weights.safetensors").read_bytes() == weights


def test_repeated_export_keeps_the_recommended_settings_of_the_same_weights_only(run):
    manifest = run / "bundle" / MANIFEST
    settings = Recommended(2, "ddim", "ddim", "quadratic", {"mse": 0.25})
    write_recommended(run / "bundle", settings)
    export(run, "--config.export.license=mit")
    content = json.loads(manifest.read_text())
    assert content["recommended"] == settings.as_json()
    manifest.write_text(json.dumps(content | {"origin": content["origin"] | {"digest": "of other weights"}}))
    export(run)
    assert "recommended" not in json.loads(manifest.read_text())
