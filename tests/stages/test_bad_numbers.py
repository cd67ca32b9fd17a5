"""Runs whose loss is not finite: what they say, with and without a diagnosis."""

import re
import shutil

import pytest

from tests.runs import finish, start

TOO_FAST = {"autoencoder": "train", "prior": "prior"}
DEBUG = "--config.report.debug_nonfinite=True"


@pytest.mark.parametrize("stage", [pytest.param("autoencoder", marks=pytest.mark.long), "prior"])
def test_step_that_is_not_finite_names_images_and_layer_on_request(whole, tmp_path, stage):
    shutil.copytree(whole[0], tmp_path, ignore=shutil.ignore_patterns(stage, "*.jsonl", ".lock"), dirs_exist_ok=True)
    if stage == "autoencoder":
        shutil.rmtree(tmp_path / "latents")
        shutil.rmtree(tmp_path / "prior")
    key = f"--config.{TOO_FAST[stage]}.learning_rate"
    settings = "--config.train.num_images=640", f"--stages={stage}", f"{key}=1e17"
    said = finish(start(tmp_path, *settings, DEBUG), code=2).splitlines()[-1]
    found = re.fullmatch(
        r"Error: Step (\d+): the loss is (?:inf|nan) and the gradient norm (?:inf|nan), so training stopped \(nothing "
        r"has been saved yet\)\. The loss is not finite for \d+ of \d+ (?:images|latents) \(digit-\d{4}[^()]*\); the "
        rf"first layer whose output is not finite is ([\w.]+)\. Look for broken images, or set a lower {key}\.",
        said,
    )
    assert found, said
    assert found[2].split(".")[0] in ("encoder", "unet", "layers", "out", "time_in", "time_out")
    if stage == "prior":
        return
    said = finish(start(tmp_path, *settings), code=2).splitlines()[-1]
    assert f"Error: Step {found[1]}: the loss is " in said
    assert "For the images and the layer, resume with one process and --config.report.debug_nonfinite=True." in said


def test_training_names_the_length_of_its_whole_calls(whole, tmp_path):
    ignored = shutil.ignore_patterns("prior", "*.jsonl", ".lock")
    shutil.copytree(whole[0], tmp_path, ignore=ignored, dirs_exist_ok=True)
    settings = "--config.train.num_images=640", "--stages=prior", "--config.prior.num_latents=576"
    output = finish(start(tmp_path, *settings))  # 18 steps of 32 latents, in calls of 4 steps
    assert "Entire training: 20 steps, 640 z" in output
    assert "640 of 640 latents" in output
    assert "576" not in output
