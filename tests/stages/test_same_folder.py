"""Runs in the folder of a run: finished, changed or damaged since."""

import json
import re
import shutil

import pytest

from diffae_jax.inference.diffae import DiffAE
from diffae_jax.runtime.errors import UserError
from tests.runs import FEW_STEPS, MANY_STEPS, TRAINING, assert_same_run, files, finish, rows, start


def test_finished_run_is_not_repeated(whole):
    workdir, _ = whole
    before = files(workdir)
    output = finish(start(workdir, MANY_STEPS))
    assert "autoencoder: finished, 640 images seen" in output
    assert "latents: finished, z of 1,797 images" in output
    assert "prior: finished, 2,560 z seen" in output
    assert "probes: finished, digit." in output
    assert "evaluation: finished" in output
    assert "export: finished" in output
    assert files(workdir) == before


def test_probes_that_are_missing_or_of_other_z_are_fitted_again(whole, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(whole[0], workdir)
    shutil.rmtree(workdir / "probes")
    output = finish(start(workdir, MANY_STEPS, "--stages=evaluation,export"))
    assert "evaluation: finished" in output
    assert DiffAE.load(workdir / "bundle").probes == {}
    finish(start(workdir, MANY_STEPS))
    assert files(workdir / "probes") == files(whole[0] / "probes")
    assert files(workdir / "bundle") == files(whole[0] / "bundle")
    for name in ("autoencoder", "labels"):
        inputs = json.loads((workdir / "probes" / "inputs.json").read_text()) | {name: "another"}
        (workdir / "probes" / "inputs.json").write_text(json.dumps(inputs))
        (workdir / "probes" / "old.json").write_bytes((workdir / "probes" / "digit.json").read_bytes())
        if name == "autoencoder":
            assert DiffAE.load(workdir).probes == {}
        else:
            (workdir / "probes" / "old.json").unlink()
        assert "digit: 10 classes" in finish(start(workdir, MANY_STEPS, "--stages=probes"))
        assert files(workdir / "probes") == files(whole[0] / "probes")
    (workdir / "probes" / "digit.json").write_text("{}")
    with pytest.raises(UserError, match=r"digit.json has 2 bytes instead of .*--stages=probes"):
        DiffAE.load(workdir)
    assert "digit.json has 2 bytes instead of" in finish(start(workdir, MANY_STEPS))
    assert files(workdir / "probes") == files(whole[0] / "probes")


def test_other_config_is_refused_and_nothing_is_lost(whole):
    workdir, _ = whole
    before = files(workdir)
    output = finish(start(workdir, "--config.train.learning_rate=0.5", "--config.model.z_dim=9"), code=2)
    assert "model.z_dim: 8 -> 9; train.learning_rate: 0.001 -> 0.5" in output
    assert "Traceback" not in output
    output = finish(start(workdir, MANY_STEPS, "--config.prior.width=33"), code=2)
    assert re.search(r"prior.width: 32 -> 33.*remove .*/prior to train a new prior", output)
    output = finish(start(workdir, "--config.train.num_images=800"), code=2)
    assert re.search(r"from step 40 to 50 would make .*/latents and .*/prior invalid\. ", output)
    assert files(workdir) == before


@pytest.mark.long  # trains two priors
def test_another_prior_of_the_same_autoencoder_is_trained_once_the_old_one_is_removed(whole, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(whole[0], workdir)
    shutil.rmtree(workdir / "prior")
    output = finish(start(workdir, MANY_STEPS, "--config.prior.width=33"))
    assert "evaluation: finished" not in output, "its samples are those of the old prior"
    model = DiffAE.load(workdir / "bundle")
    assert model.config.prior.width == 33
    assert model.prior["layers"][0]["linear"]["kernel"].shape == (8, 33)
    shutil.rmtree(workdir / "prior")
    finish(start(workdir, MANY_STEPS, "--config.prior.width=33", "--stages=evaluation,export"))
    assert DiffAE.load(workdir / "bundle").prior is None
    assert not (workdir / "evaluation" / "samples.png").exists()
    shutil.rmtree(workdir / "latents")
    finish(start(workdir, MANY_STEPS, "--config.prior.width=33", "--stages=export"))
    assert DiffAE.load(workdir / "bundle").statistics is None


def test_damaged_bundle_of_a_run_is_written_again(whole, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(whole[0], workdir)
    weights = workdir / "bundle" / "weights.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    output = finish(start(workdir, MANY_STEPS, "--stages=export"))
    assert "SHA-256 differs" in output
    assert files(workdir / "bundle") == files(whole[0] / "bundle")
    (workdir / "bundle" / "manifest.json").write_text("{")
    assert "renamed to" in finish(start(workdir, MANY_STEPS, "--stages=export"))
    assert files(workdir / "bundle") == files(whole[0] / "bundle")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda latents: (latents / "inputs.json").unlink(), "so its inputs are unknown"),
        (lambda latents: (latents / "inputs.json").write_text("{"), "cannot be read as JSON"),
        (lambda latents: (latents / "inputs.json").write_text("[]"), "inputs.json is damaged"),
    ],
    ids=["no record", "cut record", "other record"],
)
def test_damaged_latents_are_reported_in_one_line(whole, tmp_path, damage, message):
    workdir = tmp_path / "run"
    shutil.copytree(whole[0], workdir)
    damage(workdir / "latents")
    output = finish(start(workdir, MANY_STEPS, "--stages=latents,prior"), code=2)
    assert message in output
    assert "Traceback" not in output


def test_damaged_checkpoints_and_latents_are_made_again_and_equal_to_before(whole, tmp_path):
    """The last step of both networks, a chunk of z and the statistics are damaged."""
    workdir = tmp_path / "run"
    shutil.copytree(whole[0], workdir)
    damaged = [
        *(next((workdir / stage / "checkpoints" / step / "state").glob("ocdbt.process_0/d/*"))
          for stage, step in (("autoencoder", "40"), ("prior", "80"))),
        workdir / "latents" / "training-00000.npz",
        workdir / "latents" / "statistics.npz",
    ]  # fmt: skip
    for file in damaged:
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    output = finish(start(workdir, MANY_STEPS))
    for line in (
        r"checkpoint of step 40 is damaged: .*40/state/ocdbt.process_0/d/\w+ does not match .*40.damaged, and step 36",
        "Resuming after step 36 ",
        "training-00000.npz is missing or damaged. Its images are encoded again",
        "statistics.npz cannot be read: .* The statistics of z are computed again",
        r"checkpoint of step 80 is damaged: .*80.damaged, and step 72",
        "Resuming after step 72 ",
        "evaluation: finished",
        "export: finished",
    ):
        assert re.search(line, output), line
    assert "Traceback" not in output
    for stage in ("autoencoder", "prior"):
        assert_same_run(workdir, whole[0], stage)
    for made in ("latents", "bundle"):
        assert files(workdir / made) == files(whole[0] / made)
    output = finish(start(workdir, MANY_STEPS))
    assert "autoencoder: finished" in output
    assert "is damaged" not in output


def test_latents_of_another_autoencoder_are_refused(whole, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(whole[0], workdir)
    shutil.rmtree(workdir / "autoencoder" / "checkpoints" / "40")
    before = files(workdir)
    for stages, message in (
        ("latents", r"latents was made from different inputs .*autoencoder_step: 40 then, 36 now.*remove that folder"),
        ("prior", r"were encoded by a different autoencoder than the one next to it\. Remove "),
    ):
        output = finish(start(workdir, MANY_STEPS, f"--stages={stages}"), code=2)
        assert re.search(message, output)
        assert "Traceback" not in output
    assert files(workdir) == before


def test_fixed_mistake_is_accepted_in_the_same_folder(tmp_path):
    finish(start(tmp_path, "--config.model.base_channels=40"), code=2)
    finish(start(tmp_path, TRAINING, FEW_STEPS))
    assert rows(tmp_path)[-1]["step"] == 4
