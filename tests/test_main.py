"""The command: what a whole run leaves, and mistakes."""

import collections
import json
import re

import numpy as np
import pytest
from PIL import Image

from diffae_jax.data.formats.digits import digits
from diffae_jax.data.latents import read_chunks
from diffae_jax.data.transforms import to_float
from diffae_jax.evaluation import results
from diffae_jax.inference.diffae import DiffAE
from diffae_jax.runtime.errors import UserError
from tests.runs import command, finish, rows_of, start


def test_run_leaves_everything_that_was_promised(whole):
    workdir, output = whole
    assert json.loads((workdir / "config.json").read_text())["name"] == "tiny"
    logged = rows_of(workdir, "autoencoder")
    assert [row["step"] for row in logged if "loss" in row] == [5, 10, 15, 20, 25, 30, 35, 40]
    assert all(np.isfinite(row["loss"]) for row in logged if "loss" in row)
    assert logged[0]["images"] == 80
    assert {"z/effective_rank", "z/loss_own", "z/loss_shuffled"} <= {name for row in logged for name in row}
    grid = Image.open(workdir / "autoencoder" / "grids" / "0000000640.png")
    assert np.asarray(grid.convert("L")).std() > 10
    reconstruction = results.read(workdir / "evaluation").section("reconstruction")
    inferred, random_ = (reconstruction.find("MSE", f"{kind} x_T", "T = 2") for kind in ("inferred", "random"))
    assert inferred.count == 16
    assert 0 < inferred.value < random_.value
    assert "<img" in (workdir / "evaluation" / "report.html").read_text()
    assert not (workdir / "evaluation" / "chunks").exists()
    assert (workdir / "evaluation" / "reconstructions.png").exists()
    for promise in ("parameters", "FLOP", "1,437 to train on, 360 held out", "images/s", "left", "z: effective rank"):
        assert promise in output, promise


def test_run_continues_from_z_to_samples_and_a_bundle(whole):
    workdir, output = whole
    logged = rows_of(workdir, "prior")
    # ten steps lie within a call of four: what is due within one comes after it
    assert [row["step"] for row in logged] == [12, 20, 32, 40, 52, 60, 72, 80]
    assert logged[0]["latents"] == 12 * 32
    assert logged[-1]["loss"] < logged[0]["loss"]
    for picture in ("prior/grids/0000002560.png", "evaluation/samples.png"):
        assert np.asarray(Image.open(workdir / picture).convert("L")).std() > 10
    distances = results.read(workdir / "evaluation").section("sampling").figures
    assert {figure.row for figure in distances} >= {"samples", "+ autoencoding", "other real images"}
    assert {figure.count for figure in distances} == {16}
    encoding = "z of 8 dimensions; 1,797 images left to encode, in less than"
    for promise in (encoding, "latents/s", "Frechet distance", "samples.png"):
        assert promise in output, promise
    assert f'DiffAE.load("{workdir / "bundle"}")' in output.splitlines()[-4]


def test_z_of_every_image_is_there_once_in_order_and_without_flips(whole):
    workdir, _ = whole
    model = DiffAE.load(workdir)
    for split, source in zip(("training", "held_out"), digits(), strict=True):
        parts = list(read_chunks(workdir / "latents", split))
        assert [name for ids, _ in parts for name in ids] == list(source.ids)
        z = np.concatenate([z for _, z in parts])
        np.testing.assert_allclose(z, model.encode(to_float(source.images)), atol=1e-5)
        if split == "training":
            np.testing.assert_allclose(model.statistics.mean, z.astype(np.float64).mean(0), rtol=1e-6)
            np.testing.assert_allclose(model.statistics.std, z.astype(np.float64).std(0, ddof=1), rtol=1e-6)


def test_bundle_of_a_run_is_the_model_of_the_run(whole):
    workdir, _ = whole
    run, bundle = DiffAE.load(workdir), DiffAE.load(workdir / "bundle")
    settings = dict(seed=3, num_steps=3, num_latent_steps=4)
    np.testing.assert_array_equal(bundle.sample(4, **settings), run.sample(4, **settings))
    assert bundle.origin["images_seen"] == 640
    assert bundle.origin["latents_seen"] == 2560
    assert bundle.probes["digit"].as_json() == run.probes["digit"].as_json()


def test_probes_read_z_of_the_held_out_images_as_well_as_is_said(whole):
    workdir, output = whole
    model, held_out = DiffAE.load(workdir), digits()[1]
    score = model.probes["digit"].score
    assert (
        f"  digit: 10 classes (digit=0, digit=1, digit=2 and 7 more), accuracy {score.value:.2f} on 360 images"
        in output
    )
    predicted = model.predict(model.encode(to_float(held_out.images)), "digit")
    assert np.mean(predicted == held_out.labels["digit"].astype(str)) == pytest.approx(score.value, abs=0.01)
    assert score.value > 0.3


def test_trained_run_loads_as_a_model(whole):
    model = DiffAE.load(whole[0])
    images = to_float(digits()[1].images[:5])
    z = model.encode(images)
    assert z.shape == (5, 8)
    x_T = model.invert(images, z, num_steps=5)
    np.testing.assert_array_equal(model.decode(z, x_T, num_steps=5), model.reconstruct(images, num_steps=5))
    alone = model.decode(z[:2], num_steps=5, seed=3)
    np.testing.assert_allclose(alone, model.decode(z, num_steps=5, seed=3)[:2], atol=1e-4)
    assert np.abs(alone - model.decode(z[:2], num_steps=5, seed=4)).max() > 0.01


def test_model_refuses_what_it_cannot_take(whole):
    model = DiffAE.load(whole[0])
    with pytest.raises(UserError, match=r"\(2, 1, 8, 8\).*\(N, \*\(8, 8, 1\)\)"):
        model.encode(np.zeros((2, 1, 8, 8), np.float32))
    with pytest.raises(UserError, match=r"2 of 2 images hold values that are not finite"):
        model.invert(np.full((2, 8, 8, 1), np.nan, np.float32), num_steps=5)
    with pytest.raises(UserError, match="z, x_T or both"):
        model.decode(None)


def test_every_program_is_compiled_once(whole):
    _, output = whole
    compilations = re.findall(r"Compiling (?:jit\()?(\w+)\)? with global shapes and types (.*)", output)
    ours = {"train_step", "init", "measure", "encode", "invert", "decode", "sample"}
    counts = collections.Counter(compilation for compilation in compilations if compilation[0] in ours)
    assert {name for name, _ in counts} == ours
    once_a_network = [count for (name, _), count in counts.items() if name == "init"]
    assert once_a_network == [2], counts  # autoencoder and latent DDIM both start from a key
    assert {count for (name, _), count in counts.items() if name != "init"} == {1}, counts
    assert sum(name == "train_step" for name, _ in counts) == 2, "one of the autoencoder, one of the latent DDIM"


@pytest.mark.parametrize(
    ("arguments", "devices", "message"),
    [
        (["--config.train.batchsize=3"], 1, "batchsize"),
        (["--config=configs/nowhere.py"], 1, "configs/nowhere.py"),
        (["--config=configs/ffhq64.py:dim"], 1, "use ddim (the baseline without z)"),
        (["--stages=encoder"], 1, "the stages are autoencoder, latents, prior, probes, evaluation, export"),
        (["--stages=latents"], 1, "--stages=autoencoder"),
        (["--stages=prior"], 1, "nor the folder of a trained run"),
        (["--config.prior.batch_size=20"], 8, "--config.prior.batch_size a multiple of 8"),
        (["--config.prior.loss=l2"], 1, "l2"),
        (["--config.execution.steps_per_dispatch=0"], 1, "steps_per_dispatch"),
        (["--config.train.batch_size=12"], 8, "A batch of 12 cannot be split over 8 devices"),
        (["--config.train.batch_size=2000"], 1, "1,437 training images are fewer than one batch of 2000"),
        (["--config.model.base_channels=40"], 1, "40 channels cannot be split into 32 normalization groups"),
        (["--config.data.path="], 1, "--config.data.path=PATH"),
        (["--config.data.path=/nowhere"], 1, "/nowhere is missing"),
        (
            ["--config.data.path=IMAGES", "--config.image_shape=(16, 16, 1)"],
            1,
            "32 of 32 images do not fit image_shape=",
        ),
        (["--config.data.path=IMAGES", "--config.data.crop=celeba"], 1, "but the crop celeba needs aligned images"),
        (["--config.data.intensity=1..0"], 1, "data.intensity must be LOW..HIGH"),
        (["--stages=evaluation"], 1, "nor the folder of a trained run"),
        (["--workdir=/proc/nowhere"], 1, "cannot be written"),
        (["--num_processes=2"], 1, "Set all of --coordinator, --num_processes and --process_id"),
        (["digits"], 1, "digits"),
        (["--config.train.precision=float8"], 1, "float8"),
        (["--config.execution.sharding=zero"], 1, "zero"),
        (["--config.train.schedule=sigmoid"], 1, "sigmoid"),
        (["--config.train.batch_size=0"], 1, "batch_size"),
        (["--config.train.num_images=0"], 1, "num_images"),
        (["--config.evaluation.num_steps=(2000,)"], 1, "2000"),
        (["--config.model.channel_mults=()"], 1, "channel_mults"),
        (["--config.seed=-1"], 1, "seed"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_are_reported_in_one_line(arguments, devices, message, tmp_path, image_folder):
    arguments = [argument.replace("IMAGES", str(image_folder)) for argument in arguments]
    output = finish(start(tmp_path / "run", *arguments, devices=devices), code=2)
    assert message in output
    assert "Traceback" not in output
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_command_ends_with_2_after_a_mistake(tmp_path):
    output = command(tmp_path / "run", "--config.train.batch_size=0", code=2)
    assert output == "\nError: train.batch_size must be positive, not 0.\n"
