"""Bundles: the same model after saving and loading, and no byte of another taken for it."""

import hashlib
import io
import json
import resource
import shutil
import signal

import jax
import numpy as np
import pytest
from flax import nnx

from diffae_jax import DiffAE
from diffae_jax.api import builder, prior_builder
from diffae_jax.data.latents import LatentStatistics
from diffae_jax.errors import UserError
from diffae_jax.models import split
from diffae_jax.probes import Probe


@pytest.fixture(scope="module")
def model(one_device):
    from tests.tiny import get_config

    config = get_config()
    config.prior.update(num_layers=3, width=16)
    rng = np.random.default_rng(0)
    autoencoder = split(builder(config, "float32")(nnx.Rngs(0)))[1]
    # the output layers start at zero; with weights everywhere, every weight is seen
    autoencoder = jax.tree.map(lambda a: rng.normal(scale=0.1, size=a.shape).astype(np.float32), autoencoder)
    return DiffAE(
        config,
        autoencoder,
        statistics=LatentStatistics(*rng.uniform(1, 2, (2, 8)).astype(np.float32)),
        prior=split(prior_builder(config, "float32")(nnx.Rngs(1)))[1],
        probes={"hair/colour é": Probe("hair/colour é", rng.normal(size=8).astype(np.float32), 0.1)},
        origin={"made": "here"},
        mesh=one_device,
    )


@pytest.fixture
def bundle(model, tmp_path):
    model.save(tmp_path / "bundle")
    return tmp_path / "bundle"


def test_loaded_model_is_the_saved_one_bit_for_bit(model, bundle, one_device):
    loaded = DiffAE.load(bundle, one_device)
    assert loaded.config.to_dict() == model.config.to_dict()
    for ours, theirs in ((loaded.params, model.params), (loaded.prior, model.prior)):
        jax.tree.map(np.testing.assert_array_equal, jax.device_get(ours), jax.device_get(theirs))
    np.testing.assert_array_equal(loaded.statistics.mean, model.statistics.mean)
    np.testing.assert_array_equal(loaded.statistics.std, model.statistics.std)
    (probe,) = loaded.probes.values()
    assert probe.as_json() == model.probes["hair/colour é"].as_json()
    assert loaded.origin == {"made": "here"}
    images = np.random.default_rng(1).uniform(-1, 1, (3, 8, 8, 1)).astype(np.float32)
    np.testing.assert_array_equal(loaded.reconstruct(images, 3), model.reconstruct(images, 3))


def test_bundle_on_eight_devices_gives_the_same_images(model, bundle, eight_devices):
    images = np.random.default_rng(1).uniform(-1, 1, (3, 8, 8, 1)).astype(np.float32)
    spread = DiffAE.load(bundle, eight_devices).reconstruct(images, 3)
    np.testing.assert_allclose(spread, model.reconstruct(images, 3), atol=1e-5)


def test_every_changed_byte_is_noticed(bundle):
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert len(manifest["files"]) == 4
    for name in manifest["files"]:
        path = bundle / name
        good = path.read_bytes()
        path.write_bytes(good[:-2] + bytes([good[-2] ^ 1]) + good[-1:])
        with pytest.raises(UserError, match="SHA-256 differs"):
            DiffAE.load(bundle)
        path.write_bytes(good[:-1])
        with pytest.raises(UserError, match=f"{len(good) - 1} bytes instead of {len(good)}"):
            DiffAE.load(bundle)
        path.unlink()
        with pytest.raises(UserError, match="is missing"):
            DiffAE.load(bundle)
        path.write_bytes(good)
    DiffAE.load(bundle)


def edit(bundle, **changes):
    path = bundle / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def rewritten(bundle, name, text):
    """Writes a file of a bundle anew, with a manifest that agrees: damage that no hash shows."""
    (bundle / name).write_bytes(text)
    files = json.loads((bundle / "manifest.json").read_text())["files"]
    files[name] = {"bytes": len(text), "sha256": hashlib.sha256(text).hexdigest()}
    edit(bundle, files=files)


def changed(bundle, **model):
    config = json.loads((bundle / "config.json").read_text())
    config["model"] |= model
    return json.dumps(config).encode()


def npz(**arrays):
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda b: edit(b, format=2), "format 2 and this version reads up to 1"),
        (lambda b: edit(b, format="1"), "is not the manifest"),
        (lambda b: edit(b, files={}), "does not list config.json"),
        (lambda b: edit(b, files={"config.json": {}, "weights.safetensors": {}, "../x": {}}), "'../x'"),
        (lambda b: edit(b, files={"/etc/passwd": {}, "config.json": {}, "weights.safetensors": {}}), "passwd"),
        (lambda b: (b / "manifest.json").write_text("[]"), "is not the manifest"),
        (lambda b: (b / "manifest.json").write_text('{"format": 1'), "cannot be read"),
        (lambda b: rewritten(b, "weights.safetensors", b"\xff" * 64), "cannot be read"),
        (lambda b: rewritten(b, "weights.safetensors", b"\x02\0\0\0\0\0\0\0{}"), "lacks"),
        (lambda b: rewritten(b, "config.json", b"{"), "cannot be read"),
        (lambda b: rewritten(b, "config.json", b'{"surprise": 1}'), "surprise"),
        (lambda b: rewritten(b, "config.json", b"[" * 100_000), "cannot be read"),
        (
            lambda b: rewritten(b, "config.json", changed(b, base_channels=0)),
            "base_channels must be between 1 and 4096",
        ),
        (lambda b: rewritten(b, "config.json", changed(b, base_channels=40)), "40 channels cannot be split"),
        (lambda b: rewritten(b, "config.json", changed(b, channel_mults=["a"])), "positive whole numbers"),
        (lambda b: rewritten(b, "latents.npz", b"PK no"), "cannot be read"),
        (lambda b: rewritten(b, "latents.npz", npz(mean=np.zeros(8))), "std is not a file"),
        (lambda b: rewritten(b, "latents.npz", npz(mean=np.zeros(8), std=np.zeros(8))), "positive deviations"),
        (lambda b: rewritten(b, "latents.npz", npz(mean=np.zeros(3), std=np.ones(3))), "8 dimensions, and the stat"),
        (lambda b: rewritten(b, "latents.npz", npz(mean=np.array([{}]), std=np.ones(8))), "Object arrays"),
        (lambda b: rewritten(b, "probes/a.json", b'{"name": "a", "weights": [1], "bias": 0}'), "probe a 1"),
        (lambda b: rewritten(b, "probes/a.json", b'{"name": "a", "weights": [NaN], "bias": 0}'), "finite"),
        (lambda b: edit(b, format=True), "is not the manifest"),
        (lambda b: rewritten(b, "probes/hair%2Fcolour%20%C3%A9.json", b"{}"), "name, weights and bias"),
    ],
)
def test_damaged_bundle_is_refused_in_one_sentence(bundle, damage, message):
    damage(bundle)
    with pytest.raises(UserError, match=message) as refusal:
        DiffAE.load(bundle)
    assert "\n" not in str(refusal.value)


def test_weights_of_another_model_are_refused_by_name(model, bundle, one_device):
    config = json.loads((bundle / "config.json").read_text())
    config["model"]["z_dim"] = 9
    rewritten(bundle, "config.json", json.dumps(config).encode())
    with pytest.raises(UserError, match=r"has in another shape or type autoencoder\.encoder\.out"):
        DiffAE.load(bundle)


def test_bundle_is_replaced_by_a_bundle_and_nothing_else_is(model, bundle, tmp_path):
    model.save(bundle)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle"]
    DiffAE.load(bundle)
    other = tmp_path / "photos"
    other.mkdir()
    (other / "cat.png").write_bytes(b"cat")
    with pytest.raises(UserError, match="is no bundle"):
        model.save(other)
    assert (other / "cat.png").read_bytes() == b"cat"
    (other / "manifest.json").write_text('{"name": "a web page", "icons": []}')
    with pytest.raises(UserError, match="is not the manifest"):
        model.save(other)
    assert (other / "cat.png").read_bytes() == b"cat"
    (bundle / "probes" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds probes/notes\.txt, which is no part"):
        model.save(bundle)
    (bundle / "probes" / "notes.txt").unlink()
    with pytest.raises(UserError, match="cannot be written"):
        model.save("/proc/nowhere/bundle")
    shutil.rmtree(bundle)
    with pytest.raises(UserError, match="neither a bundle nor the folder"):
        DiffAE.load(bundle)


def test_save_touches_nothing_beside_its_place(model, bundle, tmp_path):
    for name in (".bundle.new", ".bundle.old", ".bundle.abc"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine").write_text("mine")
    model.save(bundle)
    DiffAE.load(bundle)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".bundle.abc", ".bundle.new", ".bundle.old", "bundle"]
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("mine")
    (foreign / "manifest.json").write_text('{"format": 1, "files": {"thesis.txt": {}}}')
    with pytest.raises(UserError, match="is no bundle"):
        model.save(foreign)
    assert (foreign / "thesis.txt").read_text() == "mine"


def test_full_disk_is_told_and_leaves_nothing(model, bundle, tmp_path):
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(UserError, match="cannot be written"):
            model.save(bundle)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    DiffAE.load(bundle)
