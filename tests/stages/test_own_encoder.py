"""Your own encoder, by name or as a class: from training to a bundle, and what is refused."""

import hashlib
import json
import sys

import jax
import numpy as np
import pytest

from diffae_jax import DiffAE, cli
from diffae_jax.config import from_json
from diffae_jax.inference.loading import name_encoder
from diffae_jax.inference.weights import abstract_weights
from diffae_jax.models import encoder_name
from diffae_jax.models.encoders import ENCODERS
from diffae_jax.models.functional import flatten
from diffae_jax.runtime.errors import UserError
from diffae_jax.runtime.sharding import make_mesh
from diffae_jax.stages.chain import run_stages
from diffae_jax.training.metrics import read_metrics
from tests import own_encoder
from tests.messages import assert_is_one_sentence
from tests.processes import Forked
from tests.runs import finish
from tests.tiny import get_config

NAME = "tests.own_encoder:ConvEncoder"


def run_all_stages():
    """Runs all stages but the evaluation: two by the encoder's name, the others with its class."""
    path = sys.argv[1]
    config = get_config()
    config.train.num_images = 4 * config.train.batch_size
    config.prior.num_latents = 4 * config.prior.batch_size
    config.model.encoder.kind = NAME
    run_stages(config, path, ["autoencoder", "latents"])
    config.model.encoder.kind = "unet"
    run_stages(config, path, ["prior", "probes", "export"], encoder=own_encoder.ConvEncoder)
    assert config.model.encoder.kind == "unet", "the config of the caller is left alone"


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own") / "run"
    finish(Forked("tests.stages.test_own_encoder:run_all_stages", [str(folder)]))
    return folder


@pytest.fixture(scope="module")
def model(run_folder, one_device):
    return DiffAE.load(run_folder / "bundle", one_device)


IMAGES = np.random.default_rng(0).uniform(-1, 1, (5, 8, 8, 1)).astype(np.float32)


def z64(params, images):
    """`ConvEncoder` in float64: 3x3 convolution with stride 2, ReLU, spatial mean, dense layer."""
    p = {name: np.asarray(leaf, np.float64) for name, leaf in flatten(params).items()}
    padded = np.pad(images.astype(np.float64), [(0, 0), (0, 1), (0, 1), (0, 0)])
    h = p["conv.bias"] + sum(
        padded[:, i : i + 7 : 2, j : j + 7 : 2] @ p["conv.kernel"][i, j] for i in range(3) for j in range(3)
    )
    return np.maximum(h, 0).mean((1, 2)) @ p["out.kernel"] + p["out.bias"]


def test_bundle_of_a_run_names_the_encoder_and_holds_its_parameters_alone(run_folder, model):
    assert json.loads((run_folder / "bundle" / "config.json").read_text())["model"]["encoder"] == {"kind": NAME}
    assert flatten(model.params["encoder"]).keys() == {"conv.kernel", "conv.bias", "out.kernel", "out.bias"}
    assert type(model.network.encoder) is own_encoder.ConvEncoder
    rows = [row for row in read_metrics(run_folder) if "grad_norm/encoder" in row]
    assert rows[-1]["grad_norm/encoder"] > 0


def test_z_is_what_the_encoder_computes_without_its_dropout(model):
    expected = z64(model.params["encoder"], IMAGES)
    np.testing.assert_allclose(model.encode(IMAGES), expected, rtol=1e-4, atol=1e-5)


def test_model_decodes_edits_and_samples(run_folder, model, one_device):
    whole = DiffAE.load(run_folder, one_device)
    np.testing.assert_array_equal(whole.encode(IMAGES), model.encode(IMAGES))
    reconstructed = model.decode(model.encode(IMAGES), model.invert(IMAGES, num_steps=2), num_steps=2)
    np.testing.assert_array_equal(model.reconstruct(IMAGES, 2), reconstructed)
    edited = model.edit(IMAGES, "digit=3", num_steps=2)
    assert edited.shape == IMAGES.shape
    assert not np.array_equal(edited, reconstructed)
    assert model.sample(2, num_steps=2, num_latent_steps=2).shape == (2, 8, 8, 1)


def test_shell_says_what_the_encoder_is(run_folder, capsys):
    cli.run(["info", str(run_folder / "bundle")])
    printed = capsys.readouterr().out
    assert f"encoder: {NAME}" in printed
    assert f"parameters of the encoder: {6 * 9 + 6 + 6 * 8 + 8:,}" in printed


def test_run_resumes_only_with_the_same_encoder(run_folder):
    with pytest.raises(UserError, match=r"model\.encoder\.kind: tests.own_encoder:ConvEncoder -> unet"):
        run_stages(get_config(), str(run_folder), ["export"])


# A bundle that comes from elsewhere.


def renamed(bundle, kind):
    """Makes a bundle name another encoder, with a manifest that agrees."""
    config = json.loads((bundle / "config.json").read_text())
    config["model"]["encoder"]["kind"] = kind
    text = json.dumps(config).encode()
    (bundle / "config.json").write_bytes(text)
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["files"]["config.json"] = {"bytes": len(text), "sha256": hashlib.sha256(text).hexdigest()}
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    return bundle


@pytest.fixture
def bundle(model, tmp_path):
    model.save(tmp_path / "bundle")
    return tmp_path / "bundle"


@pytest.fixture
def unseen(tmp_path, monkeypatch):
    """A module that could be imported, and leaves a file where it is."""
    (tmp_path / "unseen_module.py").write_text(
        "from pathlib import Path\n"
        "Path(__file__).with_name('imported').touch()\n"
        "from tests.own_encoder import ConvEncoder\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path / "imported"
    sys.modules.pop("unseen_module", None)


def test_loading_imports_nothing_that_a_bundle_names(bundle, unseen, one_device):
    renamed(bundle, "unseen_module:ConvEncoder")
    with pytest.raises(
        UserError, match=r"unseen_module:ConvEncoder is not imported. .*import unseen_module"
    ) as refusal:
        DiffAE.load(bundle, one_device)
    assert_is_one_sentence(refusal.value)
    assert not unseen.exists()
    given = DiffAE.load(bundle, one_device, encoder=own_encoder.ConvEncoder)
    assert not unseen.exists()
    assert given.config.model.encoder.kind == NAME


def test_shell_imports_what_the_user_names(bundle, unseen, capsys):
    renamed(bundle, "unseen_module:ConvEncoder")
    with pytest.raises(SystemExit):
        cli.run(["info", str(bundle)])
    assert "--import unseen_module" in capsys.readouterr().err
    cli.run(["info", str(bundle), "--import", "unseen_module"])
    assert "encoder: unseen_module:ConvEncoder" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        cli.run(["info", str(bundle), "--import", "no_such_module"])
    assert "no_such_module cannot be imported (ModuleNotFoundError" in capsys.readouterr().err


@pytest.mark.parametrize(
    "kind",
    [
        "tests.own_encoder:NoSuchClass",
        "tests.own_encoder:encoder_of_a_function",
        "os:system",
        "builtins:dict",
        "diffae_jax:DiffAE",
        "flax.nnx:Linear",
        "tests.own_encoder:ConvEncoder.__init__",
        "tests.own_encoder:",
        ":",
        "unett",
        "",
        "x" * 10**6,
        "a\nb:c",
    ],
    ids=lambda kind: repr(kind[:40]),
)
def test_name_of_anything_else_is_refused_and_not_called(bundle, one_device, kind):
    renamed(bundle, kind)
    with pytest.raises(UserError, match="encoder") as refusal:
        DiffAE.load(bundle, one_device)
    assert_is_one_sentence(refusal.value)


# What cannot be an encoder is said before anything is written or trained.


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("WithStatistics", r"holds norm.mean .*, which is not a parameter"),
        ("OfAnotherSize", r"z of shape \(2, 7\): it must be \(2, 8\)"),
        ("WithoutSizes", r"WithoutSizes cannot be used \(TypeError: .*image_shape, z_dim, dtype, rngs"),
        ("WithoutParameters", "no parameters to train"),
        ("InHalfPrecision", "must be float32"),
        ("WithDots", "contains a dot"),
    ],
)
def test_encoder_that_cannot_be_one_is_refused_in_one_sentence(tiny_config, one_device, name, message):
    tiny_config.model.encoder.kind = f"tests.own_encoder:{name}"
    with pytest.raises(UserError, match=message) as refusal:
        abstract_weights(tiny_config, one_device)
    assert_is_one_sentence(refusal.value)


def local_encoder():
    class Local(own_encoder.ConvEncoder):
        pass

    return Local


@pytest.mark.parametrize(
    "given",
    [local_encoder(), own_encoder.encoder_of_a_function, "unet", 3],
    ids=["local class", "function", "name", "number"],
)
def test_what_no_bundle_could_ask_for_is_refused(tiny_config, given):
    with pytest.raises(UserError, match="at the top level of a module") as refusal:
        name_encoder(tiny_config, given)
    assert_is_one_sentence(refusal.value)


def test_class_that_no_bundle_could_ask_for_is_refused_before_the_run(tmp_path):
    with pytest.raises(UserError, match="at the top level of a module"):
        run_stages(get_config(), str(tmp_path / "run"), encoder=local_encoder())
    assert not (tmp_path / "run").exists()


def test_module_that_cannot_be_imported_is_reported_before_the_run(tmp_path):
    config = get_config()
    config.model.encoder.kind = "no_such_module:Encoder"
    with pytest.raises(UserError, match=r"no_such_module cannot be imported .*PYTHONPATH") as refusal:
        run_stages(config, str(tmp_path / "run"))
    assert_is_one_sentence(refusal.value)
    assert not (tmp_path / "run").exists()


# One of the package.


def test_second_encoder_of_the_package_is_one_entry(monkeypatch, tiny_config):
    monkeypatch.setitem(ENCODERS, "conv", own_encoder.ConvEncoder)
    tiny_config.model.encoder.kind = encoder_name(own_encoder.ConvEncoder)
    assert tiny_config.model.encoder.kind == "conv"
    weights = abstract_weights(tiny_config, make_mesh())
    assert flatten(weights["autoencoder"]["encoder"])["out.kernel"].shape == (6, 8)


def test_config_of_an_earlier_version_has_the_encoder_of_the_paper(tmp_path):
    stored = json.loads(get_config().to_json())
    del stored["model"]["encoder"], stored["train"]["loss_terms"]
    (tmp_path / "config.json").write_text(json.dumps(stored))
    assert from_json(tmp_path / "config.json").to_dict() == get_config().to_dict()


def test_baseline_needs_no_encoder(tiny_config, one_device):
    tiny_config.model.z_dim = None
    tiny_config.model.encoder.kind = "no_such_module:Encoder"
    assert jax.tree.leaves(abstract_weights(tiny_config, one_device))
