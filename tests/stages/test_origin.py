"""Runs that start from a model (--init) or continue another run differently (--branch)."""

import contextlib
import functools
import json
import shutil
import signal

import jax
import numpy as np
import pytest

from diffae_jax.config import from_json
from diffae_jax.data.batches import rows_of_batch
from diffae_jax.inference.bundle import read_bundle
from diffae_jax.inference.diffae import DiffAE
from diffae_jax.inference.weights import abstract_weights
from diffae_jax.models.functional import flatten
from diffae_jax.runtime.errors import UserError
from diffae_jax.stages.chain import run_stages
from diffae_jax.stages.origin import (
    address_of,
    branch_of,
    check_origin,
    describe_init,
    fit_weights,
    patterns,
    record_origin,
    starting_weights,
)
from diffae_jax.stages.run_folder import is_begun, workdir_of
from diffae_jax.training.checkpoint import Checkpoints
from tests.messages import assert_is_one_sentence
from tests.runs import (
    TRAINING,
    assert_same_run,
    final_state,
    final_weights,
    finish,
    rows_of,
    start,
    two_processes,
    wait_for_checkpoint,
)

STILL = "--config.train.learning_rate=1e-30"  # smaller than the last bit of any weight that is not 0
STEPS = "--config.train.num_images=192"  # 12 steps


@pytest.fixture(scope="module")
def model(whole, tmp_path_factory):
    """A copy of the bundle of a run, which a test may remove."""
    folder = tmp_path_factory.mktemp("model") / "faces"
    shutil.copytree(whole[0] / "bundle", folder)
    return folder


def weights_of(bundle, part="autoencoder"):
    weights = read_bundle(bundle).weights
    return {name.removeprefix(f"{part}."): array for name, array in weights.items() if name.startswith(part)}


def assert_equal_but_bits_below(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        np.testing.assert_allclose(array, theirs[name], atol=1e-28, rtol=0, err_msg=name)


def test_all_networks_start_from_the_averaged_weights_of_the_model(model, tmp_path):
    flags = f"--init={model}", STILL, "--config.prior.learning_rate=1e-30"
    stages = "--stages=autoencoder,latents,prior,export"
    output = finish(
        start(tmp_path / "run", *flags, stages, "--config.prior.num_latents=128", "--config.name=portraits")
    )
    assert f"The autoencoder starts from {model}: all of its parameters.\n" in output
    assert f"The prior starts from {model}: all of its parameters.\n" in output
    assert "WARNING: the model was trained" not in output
    assert_equal_but_bits_below(final_weights(tmp_path / "run"), weights_of(model))
    for part in ("autoencoder", "prior"):
        ours = weights_of(tmp_path / "run" / "bundle", part)
        for name, array in weights_of(model, part).items():
            np.testing.assert_allclose(ours[name], array, rtol=1e-5, err_msg=name)  # the average rounds
    origin = DiffAE.load(tmp_path / "run" / "bundle").origin
    assert (origin["run"], origin["images_seen"]) == ("portraits", 192)
    assert origin["init"] == {
        "name": "faces",
        "run": "tiny",
        "images_seen": 640,
        "latents_seen": 2560,
        "diffae_jax": origin["diffae_jax"],
        "digest": DiffAE.load(model).digest(),
    }


def test_killed_run_from_a_model_ends_as_if_it_had_not_been_and_needs_the_model_no_more(whole, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(whole[0] / "bundle", model)
    flags = f"--init={model}", STEPS, TRAINING, "--config.train.freeze=encoder"
    finish(start(tmp_path / "once", *flags))
    process = start(tmp_path / "killed", *flags)
    wait_for_checkpoint(process, tmp_path / "killed", 4)
    process.send_signal(signal.SIGKILL)
    process.wait()
    shutil.rmtree(model)
    finish(start(tmp_path / "killed", *flags))
    assert_same_run(tmp_path / "killed", tmp_path / "once")

    ours, theirs = final_weights(tmp_path / "once"), weights_of(whole[0] / "bundle")
    for name, array in ours.items():
        assert name.startswith("encoder.") == np.array_equal(array, theirs[name]), name
    ema = final_state(tmp_path / "once")["ema"]["encoder"]
    jax.tree.map(np.testing.assert_array_equal, ema, final_state(tmp_path / "once")["params"]["encoder"])

    output = finish(start(tmp_path / "once", f"--init={whole[0]}", *flags[1:]), code=2)
    assert f"began from {model}, not from {whole[0]}. To resume it, leave out --init; " in output
    assert "Traceback" not in output
    assert "finished, 192 images" in finish(start(tmp_path / "once", *flags[1:])), "the flag may be left out"


def test_branch_with_twice_the_batch_continues_exactly(whole, tmp_path):
    parent = tmp_path / "whole"
    shutil.copytree(whole[0], parent)
    flags = "--branch=large", "--config.train.batch_size=32", "--config.train.num_images=896", TRAINING
    changed = "--config.train.weight_decay=0.01", "--config.train.learning_rate=5e-4"  # Adam becomes AdamW
    process = start(parent, *flags, *changed)
    wait_for_checkpoint(process, tmp_path / "large", 20)
    process.send_signal(signal.SIGSTOP)
    first, before = final_state_at(tmp_path / "large", 20), final_state(parent)
    assert int(first["step"]) == 640 // 32
    for name in ("params", "ema"):
        jax.tree.map(np.testing.assert_array_equal, first[name], before[name])
    for ours, theirs in zip(*(jax.tree.leaves(state["opt_state"]) for state in (first, before)), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    process.send_signal(signal.SIGKILL)
    process.wait()
    shutil.copytree(tmp_path / "large", tmp_path / "copy")
    output = finish(start(parent, *flags, *changed))
    assert "Resuming after step 20 (640 images)." in output
    shutil.move(parent, tmp_path / "gone")
    config = from_json(tmp_path / "large" / "config.json")
    assert (config.name, config.train.batch_size) == ("large", 32)
    again = tmp_path / "copy"
    finish(start(again, *flags[1:], *changed))  # the config has the name of the parent
    assert from_json(again / "config.json").name == "large"
    assert_same_run(again, tmp_path / "large")
    rows = [row for row in rows_of(again, "autoencoder") if "loss" in row]
    last = [row for row in rows_of(whole[0], "autoencoder") if "loss" in row][-1]
    assert (rows[0]["images"], rows[-1]["images"]) == (22 * 32, 896)
    assert abs(rows[0]["loss"] / last["loss"] - 1) < 0.3, "and not the loss of new weights, which is about 1"
    assert DiffAE.load(again).origin["branch"] == {"run": "tiny", "images_seen": 640}
    message = "model.z_dim: 8 -> 9. To start a new run from the weights that fit, use --init="
    assert message in finish(start(tmp_path / "gone", "--branch=other", "--config.model.z_dim=9"), code=2)
    assert not (tmp_path / "other").exists()


def test_step_that_the_parent_has_replaced_is_named(whole, tmp_path, one_device):
    parent, folder = tmp_path / "whole", tmp_path / "branch"
    shutil.copytree(whole[0], parent)
    folder.mkdir()
    config = from_json(parent / "config.json")
    record_origin(config, folder, None, parent, one_device)
    branch = branch_of(config, folder)
    shutil.move(parent / "autoencoder" / "checkpoints" / "40", parent / "autoencoder" / "checkpoints" / "44")
    with (
        contextlib.closing(Checkpoints(folder / "autoencoder" / "checkpoints")) as checkpoints,
        pytest.raises(UserError, match=rf"Step 40 of {parent} is gone, because that run is still training") as refusal,
    ):
        branch.begin(config, folder, checkpoints, one_device)
    assert_is_one_sentence(refusal.value)
    assert not is_begun(folder)
    assert branch_of(config, folder).step == 44, "the same command continues"


@pytest.mark.long
def test_two_processes_continue_the_same_step_of_another_run(whole, tmp_path):
    parent = tmp_path / "whole"
    shutil.copytree(whole[0], parent)
    processes = two_processes(parent, "--branch=two", "--config.train.num_images=704", TRAINING)
    outputs = [finish(process) for process in processes]
    assert f"Continues {parent} after 640 images." in outputs[0]
    assert int(final_state(tmp_path / "two")["step"]) == 704 // 16


def final_state_at(folder, step):
    from orbax.checkpoint import v1 as ocp

    return ocp.load_checkpointables(folder / "autoencoder" / "checkpoints" / str(step))["state"]


def test_images_of_a_branch_follow_those_of_its_parent():
    seen = [rows_of_batch(100, batch_size=16, seed=3, step=step) for step in range(1, 7)]
    following = [rows_of_batch(100, batch_size=24, seed=3, step=step) for step in range(5, 7)]
    order = np.concatenate([rows_of_batch(100, batch_size=12, seed=3, step=step) for step in range(1, 13)])
    np.testing.assert_array_equal(np.concatenate([*seen, *following]), order)


# --- refusals, which start no training -----------------------------------------------------------


def begun(folder, config, step=4):
    """A folder that looks like that of a run."""
    (folder / "autoencoder" / "checkpoints" / str(step)).mkdir(parents=True)
    (folder / "config.json").write_text(config.to_json())
    return folder


def refused(mesh, *arguments):
    with pytest.raises(UserError) as refusal:
        check_origin(*arguments, mesh)
    assert_is_one_sentence(refusal.value)
    return str(refusal.value)


def test_what_a_run_cannot_start_from_is_refused_before_anything_is_written(tmp_path, tiny_config, one_device):
    refusal = functools.partial(refused, one_device)
    new, old, no = tmp_path / "new", begun(tmp_path / "old", tiny_config), str(tmp_path / "no")
    assert "is neither a path nor a shipped model" in refusal(tiny_config, new, no, None)
    assert "began from nothing, not from" in refusal(tiny_config, old, no, None)
    assert "use one of them" in refusal(tiny_config, new, str(old), old)
    assert "holds no checkpoint, so there is nothing to continue" in refusal(tiny_config, new, None, tmp_path / "no")
    assert "is the run itself" in refusal(tiny_config, old, None, old)
    assert "is not a branch of" in refusal(tiny_config, begun(tmp_path / "other", tiny_config), None, old)
    assert not new.exists()
    for name in ("", "..", "a/b", "/a"):
        with pytest.raises(UserError, match="must be the name of a new run, such as --branch=old2"):
            workdir_of(old, tiny_config, name)
    tiny_config.train.freeze = "unet"
    assert "this run starts from nothing: add --init=MODEL" in refusal(tiny_config, new, None, None)
    check_origin(tiny_config, new, str(old), None, one_device)
    check_origin(tiny_config, new, None, old, one_device)
    tiny_config.model.dropout = 0.5  # changes no weight
    check_origin(tiny_config, new, None, old, one_device)
    tiny_config.image_shape = (16, 16, 1)
    assert "image_shape: [8, 8, 1] -> [16, 16, 1]" in refusal(tiny_config, new, None, old)


@pytest.fixture
def recorded(model, tmp_path, one_device):
    """Records a model as the start of a new run of a config, and returns the printed lines."""

    def record(config, capsys):
        folder = tmp_path / "run"
        folder.mkdir(exist_ok=True)
        (folder / "origin.json").unlink(missing_ok=True)
        record_origin(config, folder, str(model), None, one_device)
        return capsys.readouterr().out

    return record


def test_other_sizes_start_anew_where_they_do_not_fit_and_are_named(recorded, model, tiny_config, one_device, capsys):
    tiny_config.image_shape = (16, 32, 3)
    tiny_config.train.schedule = "cosine"
    output = recorded(tiny_config, capsys)
    assert "  Random, because their shapes differ: encoder.conv_in.kernel, unet.conv_in.kernel, unet.conv_out.bias, "
    assert "unet.conv_out.kernel.\n" in output
    assert "The prior starts from " in output
    assert "  WARNING: the model was trained with train.schedule=linear, not cosine.\n" in output
    network = abstract_weights(tiny_config, one_device)["autoencoder"]
    fit = fit_weights(weights_of(model), network)
    assert len(fit.weights) == len(flatten(network)) - 4

    tiny_config.image_shape = (16, 32, 1)
    assert "The autoencoder starts from " in (output := recorded(tiny_config, capsys))
    assert "Random" not in output, "the networks are convolutional"

    tiny_config.model.z_dim = 9
    output = recorded(tiny_config, capsys)
    assert (
        "encoder.out.bias, encoder.out.kernel, unet.down.*.z_proj.kernel, unet.middle.*.z_proj.kernel (2), " in output
    )
    assert f"The prior starts from nothing, because {model} has none of these shapes.\n" in output

    tiny_config.model.update(attention_resolutions=(16, 32), num_res_blocks=2)
    output = recorded(tiny_config, capsys)
    assert "  Random, because the model does not have them: encoder.blocks." in output
    assert "  WARNING: the model was trained with model.num_res_blocks=1, not 2.\n" in output


def test_model_that_does_not_fit_is_refused_and_the_folder_is_still_free(
    model, recorded, tiny_config, tmp_path, capsys
):
    tiny_config.train.freeze, tiny_config.model.z_dim = "unet", 9
    with pytest.raises(UserError, match=r"train\.freeze=unet would keep random weights, because these do not fit"):
        run_stages(tiny_config, tmp_path / "run", init=model)
    tiny_config.train.freeze = "none"
    tiny_config.model.update(base_channels=64, embed_dim=96, z_dim=7)
    tiny_config.image_shape = (8, 8, 2)
    with pytest.raises(UserError, match=r"No weights of .* fit the networks of this config\. Use the networks that it"):
        run_stages(tiny_config, tmp_path / "run", init=model)
    assert not (tmp_path / "run").exists()

    recorded(tiny_config, capsys)  # as a run that was killed before its first checkpoint
    with pytest.raises(UserError, match=f"No weights of {model} fit"):
        run_stages(tiny_config, tmp_path / "run")
    assert not (tmp_path / "run" / "config.json").exists()


def test_prior_of_a_branch_does_not_need_the_model_of_its_parent(recorded, tiny_config, tmp_path, one_device, capsys):
    recorded(tiny_config, capsys)
    network = abstract_weights(tiny_config, one_device)["prior"]
    assert starting_weights(tmp_path / "run", "prior", network).keys() == flatten(network).keys()
    origin = json.loads((tmp_path / "run" / "origin.json").read_text())
    shutil.rmtree(tmp_path / "run" / "init")
    (tmp_path / "run" / "origin.json").write_text(json.dumps(origin | {"branch": {"path": "parent", "model": {}}}))
    assert starting_weights(tmp_path / "run", "prior", network) == {}


def test_damaged_copy_of_the_model_is_refused(recorded, tiny_config, tmp_path, one_device, capsys):
    recorded(tiny_config, capsys)
    weights = tmp_path / "run" / "init" / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-5] ^= 1
    weights.write_bytes(content)
    with pytest.raises(UserError, match=r"weights\.safetensors does not match the manifest"):
        describe_init(tiny_config, tmp_path / "run", one_device)


def test_address_of_a_model_is_absolute_or_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert address_of("faces") == address_of(tmp_path / "faces") == str(tmp_path / "faces")
    assert address_of("hf://me/faces@v1") == "hf://me/faces@v1"
    assert address_of("gs://bucket/faces") == "gs://bucket/faces"


def test_names_of_weights_are_shortened():
    names = ["unet.down.0.1.conv.kernel", "unet.down.1.0.conv.kernel", "encoder.conv1.bias", "unet.up.2.kernel"]
    assert patterns(names) == "encoder.conv1.bias, unet.down.*.*.conv.kernel (2), unet.up.*.kernel"


def test_origin_of_a_run_is_read_back_or_refused(tmp_path, tiny_config, one_device):
    folder = begun(tmp_path / "run", tiny_config)
    (folder / "origin.json").write_text(json.dumps({"init": 3}))
    with pytest.raises(UserError, match=r"origin\.json is damaged"):
        check_origin(tiny_config, folder, None, None, one_device)
