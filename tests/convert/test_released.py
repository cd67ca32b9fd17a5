"""Official models by the name of their folder: which files are used, and which are missing."""

import re

import numpy as np
import pytest

from diffae_jax import cli
from diffae_jax.convert import import_official
from diffae_jax.convert.names import CELEBA_ATTRIBUTES
from diffae_jax.convert.released import RELEASED, Files, find
from diffae_jax.runtime.errors import UserError
from tests.messages import assert_is_one_sentence
from tests.official import official_checkpoint, official_state
from tests.torch_writer import write_checkpoint

MEAN, STD = np.arange(24, dtype=np.float32), np.full(24, 2, np.float32)
STATISTICS = {"conds_mean": MEAN, "conds_std": STD}
PUBLISHED = (  # the folders that the page of the official code links to, and the names of its templates
    *("ffhq128_ddpm_72M", "ffhq128_ddpm_130M", "bedroom128_ddpm", "horse128_ddpm"),
    *("ffhq256_autoenc", "ffhq128_autoenc_72M", "ffhq128_autoenc_130M", "bedroom128_autoenc", "horse128_autoenc"),
    *("ffhq256_autoenc_latent", "ffhq128_autoenc_latent", "bedroom128_autoenc_latent", "horse128_autoenc_latent"),
)
CELEBA = ("celeba64d2c_ddpm", "celeba64d2c_autoenc", "celeba64d2c_autoenc_latent")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path / "checkpoints"


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")


def test_models_are_those_of_the_official_page_and_of_celeba():
    assert sorted(name for name, model in RELEASED.items() if model.is_published) == sorted(PUBLISHED)
    assert sorted(name for name, model in RELEASED.items() if not model.is_published) == sorted(CELEBA)
    classifiers = {name: model.classifier for name, model in RELEASED.items() if model.classifier}
    assert classifiers == {
        **dict.fromkeys(("ffhq128_autoenc_130M", "ffhq128_autoenc_latent"), "ffhq128_autoenc_cls"),
        **dict.fromkeys(("ffhq256_autoenc", "ffhq256_autoenc_latent"), "ffhq256_autoenc_cls"),
    }


@pytest.mark.parametrize("name", RELEASED)
def test_folder_stands_for_its_files(folder, name):
    model = RELEASED[name]
    with pytest.raises(UserError, match=rf"checkpoints/{name}/last\.ckpt is missing\. Download") as caught:
        find(name)
    assert_is_one_sentence(caught.value)
    touch(folder, f"{name}/last.ckpt")
    assert find(name) == Files(folder.relative_to(folder.parent) / name / "last.ckpt")
    assert find(folder / name) == Files(folder / name / "last.ckpt")
    assert find(folder / name / "last.ckpt") == Files(folder / name / "last.ckpt")
    latents = model.latents and f"{model.latents}/latent.pkl"
    classifier = model.classifier and f"{model.classifier}/last.ckpt"
    touch(folder, *filter(None, (latents, classifier)))
    expected = [folder / file if file else None for file in (latents, classifier)]
    assert find(folder / name) == Files(folder / name / "last.ckpt", *expected)


def test_latents_may_have_the_name_on_the_official_page(folder):
    touch(folder, "horse128_autoenc/last.ckpt", "horse128_autoenc/latent.ckpt")
    assert find(folder / "horse128_autoenc").latents == folder / "horse128_autoenc" / "latent.ckpt"


def test_other_names_are_refused_in_one_sentence(folder):
    touch(folder, "horse128_ddpm/last.ckpt", "mine/last.ckpt")
    for name, message in (
        ("horse", "'horse' is neither|horse is neither"),
        (folder, r"checkpoints holds several models \(horse128_ddpm\)"),
        (folder / "mine", "is neither a checkpoint nor the folder of an official model"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            find(name)
        assert_is_one_sentence(caught.value)


def test_import_by_name_reads_checkpoint_latents_and_classifier(folder, one_device):
    weight = np.random.default_rng(0).normal(size=(40, 24)).astype(np.float32)
    tensors = {"ema_classifier.weight": weight, "ema_classifier.bias": np.zeros(40, np.float32), **STATISTICS}
    state = official_state(latent=None)
    for name, tree in (
        ("ffhq128_autoenc_130M/last.ckpt", official_checkpoint(state, statistics=False)),
        ("ffhq128_autoenc_130M/latent.pkl", {"conds": np.zeros((5, 24), np.float32), **STATISTICS}),
        ("ffhq128_autoenc_cls/last.ckpt", {"state_dict": tensors}),
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_checkpoint(folder / name, tree)
    model = import_official("ffhq128_autoenc_130M", mesh=one_device)
    np.testing.assert_array_equal(model.statistics.mean, MEAN)
    assert tuple(model.probes) == CELEBA_ATTRIBUTES
    assert model.origin["folder"] == "ffhq128_autoenc_130M"
    assert model.origin["imported_from"] == "last.ckpt"


def test_list_names_each_file_and_whether_it_is_there(folder, capsys):
    touch(folder, "ffhq128_autoenc_latent/last.ckpt", "ffhq128_autoenc_cls/last.ckpt")
    cli.run(["import", "--list"])
    output = capsys.readouterr().out
    assert re.search(r"^Official models in checkpoints\.", output)
    of_ffhq = output.partition("ffhq128_autoenc_latent:")[2].partition("ffhq256")[0].splitlines()[1:]
    assert [line.split(",")[0].split() for line in of_ffhq] == [
        ["found", "ffhq128_autoenc_latent/last.ckpt"],
        ["found", "ffhq128_autoenc_cls/last.ckpt"],
    ]
    assert "missing ffhq128_autoenc_130M/latent.pkl, to normalize z" in output
    for name in (*PUBLISHED, *CELEBA):
        assert f"{name}/last.ckpt" in output
    cli.run(["import", "elsewhere", "--list"])
    assert "found" not in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        cli.run(["import", "ffhq128_autoenc_latent"])
    assert stop.value.code == 2
    assert capsys.readouterr().err == "Error: diffae import needs a checkpoint and --out, or --list.\n"
