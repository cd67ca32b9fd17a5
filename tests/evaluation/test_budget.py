"""diffae budget: what is measured, which setting is chosen, and how a bundle stores it."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffae_jax import DiffAE, cli
from diffae_jax.evaluation import budget
from diffae_jax.evaluation.budget import Cost, Target
from diffae_jax.evaluation.frontier import Choice
from diffae_jax.inference.bundle import MANIFEST
from diffae_jax.inference.methods import as_round_trip
from diffae_jax.inference.recommended import Recommended
from diffae_jax.runtime.errors import UserError
from tests.messages import assert_is_one_sentence
from tests.random_models import random_model

IMAGES = np.random.default_rng(1).uniform(-1, 1, (3, 8, 8, 1)).astype(np.float32)
RECOMMENDED = Recommended(2, "ddim", "ddim", "quadratic", {"mse": 0.25, "num_calls": 4.0})


def cost(num_steps, num_calls, mse, seconds=1.0, inversion="ddim"):
    return Cost(Choice("ddim", "even", inversion), num_steps, mse, None, num_calls, seconds)


COSTS = [
    cost(5, 10, 1e-2, 0.1),
    cost(10, 20, 1e-3, 0.2),
    cost(20, 40, 2e-3, 0.4),  # worse than with half the calls
    cost(10, 60, 1e-6, 0.9, "exact"),
    cost(50, 100, 1e-4, 1.0),  # worse than the exact inversion
]


# --- the choice ----------------------------------------------------------------------------------


def test_frontier_has_the_settings_that_none_beats_in_calls_and_error():
    assert budget.frontier(COSTS[::-1]) == [COSTS[0], COSTS[1], COSTS[3]]
    same_calls = [cost(1, 2, 0.5), cost(1, 2, 0.4)]
    assert budget.frontier(same_calls) == same_calls[1:]


@pytest.mark.parametrize(
    ("target", "chosen"),
    [
        (Target("mse", 1e-2), 0),
        (Target("mse", 5e-3), 1),
        (Target("mse", 1e-4), 3),
        (Target("seconds", 0.5), 1),
        (Target("seconds", 5.0), 3),
    ],
)
def test_fewest_calls_for_an_error_and_smallest_error_for_a_time(target, chosen):
    assert budget.choose(COSTS, target) == COSTS[chosen]


def test_targets_that_no_setting_reaches_are_reported_with_the_best_one():
    with pytest.raises(UserError, match=r"No setting reaches an MSE of 1e-09: the best is an MSE of 1e-06") as error:
        budget.choose(COSTS, Target("mse", 1e-9))
    assert "with 10 steps, inversion exact, sampler ddim, grid even" in str(error.value)
    assert_is_one_sentence(error.value)
    with pytest.raises(
        UserError, match=r"a time per image of 0\.01 s: the best is a time per image of 0\.1 s, with 5 steps"
    ):
        budget.choose(COSTS, Target("seconds", 0.01))


def test_more_steps_are_measured_only_while_they_may_be_the_choice():
    errors = {5: 1e-1, 10: 1e-2, 20: 1e-3, 50: 1e-4}
    settings = budget.candidates([50, 10, 5, 20], ["ddim", "exact"], ["even"])

    def measure(choice, num_steps):
        better = 10 if choice.inversion == "exact" else 1
        return Cost(choice, num_steps, errors[num_steps] / better, None, num_steps, num_steps / 10)

    def measured(target):
        return [(found.choice.inversion, found.num_steps) for found in budget.search(settings, target, measure)]

    everything = [(inversion, steps) for steps in (5, 10, 20, 50) for inversion in ("ddim", "exact")]
    assert measured(None) == everything
    assert measured(Target("mse", 1e-2)) == everything[:2], "exact reaches it in 5 steps"
    assert measured(Target("mse", 1e-3)) == everything[:4], "exact reaches it in 10 steps"
    assert measured(Target("seconds", 1.5)) == everything[:6], "20 steps take longer"


def test_candidates_are_pairs_that_go_together():
    found = [(*choice, num_steps) for choice, num_steps in budget.candidates([3, 2])]
    assert ("ddim", "even", "exact", 2) in found
    assert ("heun", "quadratic", "gaussian", 3) in found
    for sampler, grid, inversion, _ in found:
        as_round_trip(inversion, sampler, grid)  # raises UserError if they do not
    with pytest.raises(UserError, match=r"No measured inversion uses these grids. Choose among: ddim with even; "):
        budget.candidates([2], ["gaussian"], ["even"])


# --- what is measured and stored -----------------------------------------------------------------


@pytest.fixture(scope="module")
def model(one_device):
    return random_model(one_device)


@pytest.fixture
def bundle(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model.save(Path("bundle"))
    Path("photos").mkdir()
    for i, image in enumerate(IMAGES):
        Image.fromarray(((image[..., 0] + 1) * 127.5).round().astype(np.uint8)).save(f"photos/{i}.png")
    return Path("bundle")


def test_error_and_calls_are_those_of_the_reconstruction(model):
    found = budget.measure(model, IMAGES, Choice("ddim", "quadratic", "ddim"), 2)
    again = model.reconstruct(IMAGES, 2, inversion="ddim", sampler="ddim", grid="quadratic").astype(np.float64)
    np.testing.assert_allclose(found.mse, np.square((again - IMAGES) / 2).mean(), rtol=1e-4)
    assert (found.num_calls, found.lpips) == (4, None)
    assert 0 < found.seconds < 60


def hashes(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).digest() for path in folder.rglob("*") if path.is_file()}


def command(*arguments):
    cli.run(
        ["budget", "bundle", "--data", "photos", "--grids", "even", "quadratic", "--inversions", "ddim", *arguments]
    )


def test_command_stores_the_choice_which_methods_and_info_then_use(bundle, capsys, caplog):
    before = hashes(bundle)
    command("--steps", "2", "1", "--target-mse", "9", "--out", "budget.png")
    output = capsys.readouterr().out
    assert "Measuring up to 4 settings on 3 of 3 images." in output
    assert "network calls" in output
    assert "For an MSE of 9: 1 step, inversion ddim" in output
    assert "--steps=1 --inversion=ddim --sampler=ddim --grid=" in output
    with Image.open("budget.png") as picture:
        assert picture.size == (550, 450)
    after = hashes(bundle)
    assert {name for name in before if before[name] != after[name]} == {MANIFEST}
    loaded = DiffAE.load(bundle)
    stored = loaded.recommended
    assert (stored.num_steps, stored.inversion, stored.sampler) == (1, "ddim", "ddim")
    assert json.loads((bundle / MANIFEST).read_text())["recommended"]["measured"]["num_calls"] == 2
    caplog.clear()
    expected = loaded.reconstruct(IMAGES, 1, inversion="ddim", sampler="ddim", grid=stored.grid)
    assert "recommended" not in caplog.text
    for _ in range(2):
        np.testing.assert_array_equal(loaded.reconstruct(IMAGES), expected)
    assert caplog.text.count(f"Note: {stored} (recommended by this model)") == 1
    cli.run(["reconstruct", "bundle", "photos", "--out", "again"])
    assert "3 images, 1 steps, inferred x_T" in capsys.readouterr().out
    loaded.save("copy")
    assert DiffAE.load("copy").recommended == stored
    cli.run(["info", "copy"])
    assert f"  recommended: {stored} (mse " in capsys.readouterr().out


def test_nothing_is_stored_without_a_target_with_no_save_or_if_the_target_is_missed(bundle, capsys):
    before = hashes(bundle)
    command("--steps", "1", "--no-save", "--target-mse", "9")
    command("--steps", "1")
    assert "To choose one, add --target-mse" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stopped:
        command("--steps", "1", "--target-mse", "1e-12", "--out", "missed.png")
    assert stopped.value.code == 2
    assert "Error: No setting reaches an MSE of 1e-12: the best is an MSE of" in capsys.readouterr().err
    assert Path("missed.png").exists(), "the picture shows what was measured"
    assert hashes(bundle) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--target-mse", "1", "--seconds", "1"), "--seconds: not allowed with argument --target-mse"),
        (("--target-mse", "0"), "--target-mse: it must be above 0, not 0.0"),
        (("--target-lpips", "0.1"), "LPIPS cannot be measured: it needs at least 31x31 pixels"),
        (("--steps", "0"), "1 to 1000 steps, not 0"),
        (("--grids", "odd"), "There is no grid odd"),
        (("--out", "photos.jpg"), "The type of photos.jpg is not supported"),
    ],
    ids=str,
)
def test_wrong_arguments_are_refused_before_the_work(bundle, arguments, message, capsys, monkeypatch):
    monkeypatch.setattr(budget, "measure", None)
    with pytest.raises(SystemExit) as stopped:
        command(*arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_a_run_folder_cannot_store_settings(bundle, capsys):
    Path("bundle", MANIFEST).unlink()
    with pytest.raises(SystemExit):
        command("--target-mse", "9")
    assert "bundle is no bundle, which could store the settings. Give a bundle or --no-save." in capsys.readouterr().err


def test_settings_cannot_be_stored_on_the_hub(capsys):
    with pytest.raises(SystemExit):
        cli.run(["budget", "hf://someone/digits", "--data", "digits", "--target-mse", "9"])
    assert (
        "hf://someone/digits is on the Hub, where settings cannot be stored. Add --no-save." in capsys.readouterr().err
    )


def test_only_held_out_images_of_the_data_of_the_run_are_measured(model, tmp_path, capsys, monkeypatch):
    from diffae_jax.cli.budget import held_out_images

    assert len(held_out_images(model, Path("digits"))) == 360, "the last fifth, as in the evaluation"
    for i in range(20):
        Image.fromarray(np.full((8, 8), i, np.uint8)).save(tmp_path / f"{i:02d}.png")
    config = model.config.copy_and_resolve_references()
    config.data.update(path=str(tmp_path), held_out="[:5]")
    other = DiffAE(config, model.params, mesh=model.mesh)
    assert held_out_images(other, tmp_path).ids == [f"{i:02d}.png" for i in range(5)]
    monkeypatch.chdir(tmp_path)
    for spelling in (Path(), Path("..", tmp_path.name)):
        assert len(held_out_images(other, spelling)) == 5
    config.data.path = "../" + tmp_path.name
    assert len(held_out_images(other, tmp_path)) == 5
    config.data.update(held_out="", held_out_share=0.0)
    assert len(held_out_images(other, tmp_path)) == 20
    assert "holds out none" in capsys.readouterr().out


# --- the stored settings -------------------------------------------------------------------------


def with_stored(bundle, content):
    manifest = json.loads((bundle / MANIFEST).read_text())
    (bundle / MANIFEST).write_text(json.dumps(manifest | {"recommended": content}))
    return bundle


def test_settings_are_for_codes_of_images_and_a_call_that_names_one_uses_none(model):
    recommending = DiffAE(model.config, model.params, recommended=RECOMMENDED, mesh=model.mesh)
    z, x_T = recommending.encode(IMAGES), recommending.invert(IMAGES)
    np.testing.assert_array_equal(x_T, model.invert(IMAGES, num_steps=2, grid="quadratic"))
    np.testing.assert_array_equal(recommending.decode(z, x_T), model.decode(z, x_T, 2, grid="quadratic"))
    np.testing.assert_array_equal(recommending.decode(z, x_T, 2), model.decode(z, x_T, 2))
    np.testing.assert_array_equal(recommending.invert(IMAGES, num_steps=3), model.invert(IMAGES, num_steps=3))
    used = [recommending._with_defaults(None, is_inferred=inferred) for inferred in (True, False)]
    assert used == [(2, "ddim", "ddim", "quadratic"), (100, "ddim", None, None)]


def test_bundles_with_unknown_or_damaged_settings_and_without(bundle, caplog):
    assert DiffAE.load(bundle).recommended is None
    good = RECOMMENDED.as_json()
    assert DiffAE.load(with_stored(bundle, good)).recommended == RECOMMENDED
    assert DiffAE.load(with_stored(bundle, good | {"sampler": "newer"})).recommended is None
    assert "are not used: there is no sampler newer in this version" in caplog.text
    bad_figures = [good | {"measured": {"mse": value}} for value in ("small", 10**400, float("nan"))]
    for bad in (3, [], good | {"num_steps": "ten"}, good | {"grid": None}, *bad_figures):
        with pytest.raises(UserError, match=r"The recommended settings in .* are damaged") as refused:
            DiffAE.load(with_stored(bundle, bad))
        assert_is_one_sentence(refused.value)
    with pytest.raises(UserError, match="1 to 1000 steps, not 5000"):
        DiffAE.load(with_stored(bundle, good | {"num_steps": 5000}))
