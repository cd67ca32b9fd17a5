"""Runs that are killed, stopped by a signal, or in the way of another."""

import random
import re
import shutil
import signal
import time

import pytest

from tests.runs import (
    MANY_STEPS,
    TRAINING,
    assert_same_run,
    files,
    finish,
    rows_of,
    start,
    wait_for,
    wait_for_checkpoint,
    wait_for_line,
)

MOMENTS = (  # what has just been written
    "autoencoder/checkpoints/4/_CHECKPOINT_METADATA",
    "autoencoder/checkpoints/24/_CHECKPOINT_METADATA",
    "latents/training-00000.npz",
    "prior/checkpoints/16/_CHECKPOINT_METADATA",
    "evaluation/reconstructions.png",
    ".bundle.*/new/weights.safetensors",
)


@pytest.mark.alone  # some of the moments are short
@pytest.mark.parametrize(
    "patterns", [MOMENTS[1:4:2], pytest.param(MOMENTS, marks=pytest.mark.long)], ids=["in two stages", "in each stage"]
)
def test_killed_again_and_again_ends_bit_identical(whole, tmp_path, patterns):
    moments, arguments = random.Random(0), [MANY_STEPS]
    if not any("evaluation" in pattern for pattern in patterns):  # its results, which the model card shows, are there
        shutil.copytree(whole[0] / "evaluation", tmp_path / "evaluation")
        arguments += ["--stages=autoencoder,latents,prior,probes,export"]
    for pattern in patterns:
        process = start(tmp_path, *arguments)
        wait_for(process, tmp_path, pattern)
        time.sleep(moments.uniform(0, 0.05) if "checkpoints" in pattern else 0)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert not (tmp_path / "bundle").exists(), "it was killed too late to show anything"
        if pattern.startswith("latents"):
            assert not (tmp_path / "latents" / "statistics.npz").exists(), "all parts were there already"
        if pattern.startswith("prior"):
            assert rows_of(tmp_path, "prior")[-1]["step"] < 80
    output = finish(start(tmp_path, *arguments))
    assert ("prior: finished" in output) == (not patterns[-1].startswith("prior"))
    for stage in ("autoencoder", "prior"):
        assert_same_run(tmp_path, whole[0], stage)
    assert files(tmp_path / "bundle") == files(whole[0] / "bundle")
    assert not list(tmp_path.glob(".bundle*")), "what a killed export left"


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.long)]
)
def test_signal_saves_and_reports_how_to_resume(whole, tmp_path, number, code):
    process = start(tmp_path, MANY_STEPS, TRAINING)
    wait_for_checkpoint(process, tmp_path, 4)
    process.send_signal(number)
    sent = time.monotonic()
    output = finish(process, code=code)
    assert time.monotonic() - sent < 10
    assert "Traceback" not in output
    assert "To resume, run the same command again." in output
    assert ("Stopping after this step." in output) == (number == signal.SIGINT)
    finish(start(tmp_path, MANY_STEPS, TRAINING))
    assert_same_run(tmp_path, whole[0])


RESUME = r"To resume, run the same command again\.\n"
STAGES = {  # what the stage has printed or written before the signal, and what is printed then
    "autoencoder": ("Compiling the training step", "the stage autoencoder stopped; no step is saved yet"),
    "latents": ("latents/training-00000.npz", r"encoding stopped; 1,\d{3} of 1,797 images are encoded and kept"),
    "prior": ("Compiling the training step", "the stage prior stopped; no step is saved yet"),
    "probes": ("Stage probes", "the stage probes stopped; nothing of this stage is kept"),
    "evaluation": (
        "Reconstruction (Sec",
        r"the evaluation stopped; 1 of 3 programs is measured and \d+ chunks? (is|are) kept\. The rest takes at most "
        r"about \d+ s, plus compilation",
    ),
    "export": ("Stage export", "the stage export stopped; nothing of this stage is kept"),
}
SAME = (".npz", ".png", ".safetensors")  # files that do not depend on the clock
FOLDERS = dict(zip(STAGES, ("autoencoder", "latents", "prior", "probes", "evaluation", "bundle"), strict=True))


@pytest.mark.alone  # a stage takes a moment
@pytest.mark.parametrize(
    "stage",
    [pytest.param(name, marks=[pytest.mark.long] * (name in ("prior", "probes", "evaluation"))) for name in STAGES],
)
def test_signal_in_each_stage_ends_it_with_what_is_kept_and_a_run_resumes(whole, tmp_path, stage):
    place = list(STAGES).index(stage)
    for made in list(FOLDERS.values())[:place]:
        shutil.copytree(whole[0] / made, tmp_path / made)
    shutil.copy(whole[0] / "data.json", tmp_path)
    shutil.copy(whole[0] / "config.json", tmp_path)
    number, code = ((signal.SIGTERM, 143), (signal.SIGINT, 130))[place % 2]
    moment, text = STAGES[stage]
    process = start(tmp_path, MANY_STEPS, f"--stages={stage}")
    if moment.endswith(".npz"):
        wait_for(process, tmp_path, moment)
    else:
        wait_for_line(process, moment)
    process.send_signal(number)
    sent = time.monotonic()
    output = finish(process, code=code)
    assert time.monotonic() - sent < 10
    assert re.search(rf"\n{number.name}: {text}\. {RESUME}\Z", output), output
    assert "Traceback" not in output
    assert not [*tmp_path.rglob(".*tmp*"), *tmp_path.glob(".bundle*")]
    if stage == "autoencoder":
        return  # other tests resume its training
    finish(start(tmp_path, MANY_STEPS, f"--stages={stage}"))
    left = {name: content for name, content in files(whole[0] / FOLDERS[stage]).items() if name.endswith(SAME)}
    assert {name: content for name, content in files(tmp_path / FOLDERS[stage]).items() if name.endswith(SAME)} == left


def test_second_run_on_a_folder_in_use_is_refused(tmp_path):
    first = start(tmp_path, MANY_STEPS)
    wait_for_checkpoint(first, tmp_path, 4)
    output = finish(start(tmp_path, MANY_STEPS), code=75)
    assert "in use by another run" in output
    assert "Traceback" not in output
    first.send_signal(signal.SIGKILL)
    first.wait()
