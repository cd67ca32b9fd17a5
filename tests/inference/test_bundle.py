"""Bundles: the same model after saving and loading, and no byte of another taken for it."""

import hashlib
import io
import json
import os
import random
import resource
import shutil
import signal
import struct
import sys
import time
import zipfile
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

from diffae_jax import DiffAE
from diffae_jax.inference.bundle import read_bundle
from diffae_jax.probes import ClassProbe, Probe, Score
from diffae_jax.runtime.errors import UserError
from diffae_jax.training.checkpoint import Checkpoints
from diffae_jax.training.state import TrainState
from tests.messages import assert_is_one_sentence
from tests.random_models import random_model


@pytest.fixture(scope="module")
def model(one_device):
    hue = {c: Probe(f"hue={c}", row, 0.2) for c, row in zip("rg", np.eye(2, 8, dtype=np.float32), strict=True)}
    probes = {
        "hair/color é": Probe("hair/color é", np.random.default_rng(0).normal(size=8).astype(np.float32), 0.1),
        "hue": ClassProbe("hue", hue, Score("accuracy", 0.5, 7)),
    }
    return random_model(one_device, probes=probes)


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
    assert loaded.probes.keys() == model.probes.keys()
    for name, probe in loaded.probes.items():
        assert probe.as_json() == model.probes[name].as_json()
    assert loaded.origin == {"made": "here"}
    images = np.random.default_rng(1).uniform(-1, 1, (3, 8, 8, 1)).astype(np.float32)
    np.testing.assert_array_equal(loaded.reconstruct(images, 3), model.reconstruct(images, 3))


def test_bundle_on_eight_devices_gives_the_same_images(model, bundle, eight_devices):
    images = np.random.default_rng(1).uniform(-1, 1, (3, 8, 8, 1)).astype(np.float32)
    on_eight = DiffAE.load(bundle, eight_devices).reconstruct(images, 3)
    np.testing.assert_allclose(on_eight, model.reconstruct(images, 3), atol=1e-4)


def test_every_changed_byte_is_noticed(bundle):
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert len(manifest["files"]) == 5
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
    """Replaces a file of a bundle and updates the manifest: damage that no hash reveals."""
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


def npy(header, content=bytes(64)):
    """The bytes of an array file with that header, true or not."""
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(header) + 1) + header.encode() + b"\n" + content


def zipped(method=zipfile.ZIP_STORED, **entries):
    """A zip of array files, "mean" or what takes its place first, then a good "std"."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in {**entries, "std": npy(ROW.format(8, "<f8"))}.items():
            archive.writestr(f"{name}.npy", content)
    return file.getvalue()


ROW = "{{'descr': '{1}', 'fortran_order': False, 'shape': ({0},), }}"


def listed(header, size=None):
    """A file of safetensors with that list of its weights, and nothing behind it."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if size is None else size).to_bytes(8, "little") + text


def empty(dtype="F32"):
    return {"dtype": dtype, "shape": [0], "data_offsets": [0, 0]}


def probe(**changes):
    good = {"name": "a", "weights": [0.5] * 8, "bias": 0}
    return json.dumps(good | changes).encode()


def class_probe(names="01", **changes):
    part = {"weights": [0.5] * 8, "bias": 0}
    classes = {name: {"name": f"a={name}"} | part | changes for name in names}
    return json.dumps({"kind": "classes", "name": "a", "classes": classes}).encode()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda b: edit(b, format=2), "format 2, but this version reads up to 1"),
        (lambda b: edit(b, format="1"), "is not the manifest"),
        (lambda b: edit(b, files={}), "does not list config.json"),
        (lambda b: edit(b, files={"config.json": {}, "weights.safetensors": {}, "../x": {}}), "lists ../x,"),
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
        (
            lambda b: rewritten(b, "config.json", changed(b, channel_mults=["a"])),
            "Each value of model.channel_mults must be a positive whole number",
        ),
        (lambda b: rewritten(b, "latents.npz", b"PK no"), "cannot be read"),
        (lambda b: rewritten(b, "latents.npz", npz(mean=np.zeros(8))), "does not hold mean and std"),
        (lambda b: rewritten(b, "latents.npz", npz(mean=np.zeros(8), std=np.zeros(8))), "each std must be positive"),
        (lambda b: rewritten(b, "latents.npz", npz(mean=np.zeros(3), std=np.ones(3))), "8 dimensions, but the stat"),
        (lambda b: rewritten(b, "latents.npz", npz(mean=np.array([{}]), std=np.ones(8))), "mean.npy is not a row"),
        (lambda b: rewritten(b, "probes/a.json", b'{"name": "a", "weights": [1], "bias": 0}'), "probe a has 1"),
        (lambda b: rewritten(b, "probes/a.json", b'{"name": "a", "weights": [NaN], "bias": 0}'), "finite"),
        (lambda b: edit(b, format=True), "is not the manifest"),
        (lambda b: rewritten(b, "probes/hair%2Fcolor%20%C3%A9.json", b"{}"), "a name, and weights and a bias"),
    ],
)
def test_damaged_bundle_is_refused_in_one_line(bundle, damage, message):
    damage(bundle)
    with pytest.raises(UserError, match=message) as refusal:
        DiffAE.load(bundle)
    assert_is_one_sentence(refusal.value)


DEEP = b'{"model": ' + b"[" * 900 + b"]" * 900 + b"}"
NAN = float("nan")
HOSTILE = {
    "config.json": {
        "layers without end": (lambda c: c["prior"].update(num_layers=10**6), "num_layers must be between 2 and 50"),
        "vast layers": (lambda c: c["prior"].update(width=10**9), "width must be between"),
        "vast z": (lambda c: c["model"].update(z_dim=10**9), "z_dim must be between 1 and 65536, or None"),
        "vast channels": (lambda c: c["model"].update(base_channels=10**9), "base_channels must be between"),
        "levels without end": (lambda c: c["model"].update(channel_mults=[1] * 1000), "1 to 8 values, not 1000"),
        "levels of the encoder": (lambda c: c["model"].update(encoder_channel_mults=[1] * 11), "1 to 8 values"),
        "vast levels": (lambda c: c["model"].update(channel_mults=[10**9]), "number up to 64, not 1000000000"),
        "vast images": (lambda c: c.update(image_shape=[65536, 65536, 3]), "more than 1,073,741,824 values"),
        "integer without end": (lambda c: c.update(seed=10**4000), "finite.*an integer of 13,288 bits"),
        "rate without end": (lambda c: c["train"].update(learning_rate=10**400), "learning_rate = an integer of"),
        "nothing": (lambda c: c["model"].update(base_channels=None), "must be a whole number, not None"),
        "no list": (lambda c: c.update(image_shape=None), "image_shape must be a list, not None"),
        "no group": (lambda c: c.update(model=None), "`model` must be a section, not None"),
        "group as a value": (
            lambda c: c["model"].update(embed_dim={"a": 1}),
            "embed_dim = a dict, but it must be a whole",
        ),
        "not a number": (lambda c: c["train"].update(learning_rate=NAN), "learning_rate must be finite"),
        "infinity": (lambda c: c["train"].update(max_grad_norm=float("inf")), "max_grad_norm must be finite"),
        "truth as a number": (lambda c: c["model"].update(embed_dim=True), "whole number, not True"),
        "truth in a list": (lambda c: c["model"].update(channel_mults=[True]), "whole number .*, not True"),
        "lists in a list": (lambda c: c["model"].update(channel_mults=[[1]]), "whole number .*, not a list"),
        "long key": (lambda c: c.update({"x" * 10**6: 1}), "the key x{120}, which"),
        "key of two lines": (lambda c: c.update({"a\nb\x1b[2J": 1}), r"the key a\\nb\\x1b\[2J, which"),
        "long value": (lambda c: c["train"].update(schedule="x" * 10**6), "must be one of.*, not x{120}\\."),
        "list": (lambda c: c["train"].update(schedule=["x"] * 10**5), "schedule = a tuple|schedule = a list"),
    },
    "config.json of bytes": {
        "deep": (DEEP, "nested more than 16"),
        "deeper": (b"[" * 10**6, "cannot be read"),
        "long": (b" " * 5 * 2**20, "more than the 4,194,304 bytes"),
        "no text": (b"\xff\xfe\xff", "cannot be read"),
        "long integer": (b'{"seed": ' + b"9" * 5000 + b"}", "cannot be read"),
        "list": (b"[1]", "the file must be a section, not a list"),
    },
    "latents.npz": {
        "compressed": (zipped(zipfile.ZIP_DEFLATED, mean=npy(ROW.format(8, "<f8"))), "does not hold mean and std"),
        "other names": (zipped(mean_=npy(ROW.format(8, "<f8"))), "does not hold mean and std"),
        "one more": (zipped(mean=npy(ROW.format(8, "<f8")), more=b""), "does not hold mean and std"),
        "vast": (zipped(mean=npy(ROW.format(10**9, "<f8"))), "mean.npy is not a row"),
        "vaster": (zipped(mean=npy(ROW.format(10**30, "<f8"))), "mean.npy is not a row"),
        "shorter": (zipped(mean=npy(ROW.format(7, "<f8"))), "mean.npy is not a row"),
        "objects": (zipped(mean=npy(ROW.format(8, "|O"))), "mean.npy is not a row"),
        "whole numbers": (zipped(mean=npy(ROW.format(8, "<i8"))), "mean.npy is not a row"),
        "records": (npz(mean=np.zeros(8, [("a", "f4")]), std=np.ones(8)), "mean.npy is not a row"),
        "a number": (npz(mean=np.float32(0), std=np.ones(8)), "mean.npy is not a row"),
        "rows": (npz(mean=np.zeros((8, 1)), std=np.ones(8)), "mean.npy is not a row"),
        "deep header": (zipped(mean=npy("(" * 60_000)), "mean.npy is not a row"),
        "great numbers": (npz(mean=np.full(8, 1e300), std=np.ones(8)), "must be finite"),
        "nothing": (npz(mean=np.zeros(0), std=np.zeros(0)), r"Both must have shape \[D\]"),
        "no zip": (b"\x93NUMPY\1\0", "cannot be read"),
        "long": (bytes(5 * 2**20), "more than the 4,194,304 bytes"),
    },
    "probes/a.json": {
        "beyond any float": (b'{"name": "a", "weights": [1e400], "bias": 0}', "finite float32 numbers"),
        "beyond float32": (probe(weights=[1e39] * 8), "finite float32 numbers"),
        "integer without end": (probe(weights=[10**4000] * 8), "finite float32 numbers"),
        "no direction": (probe(weights=[0] * 8), "probe a have no direction"),
        "a vanishing direction": (probe(weights=[1e-40] * 8), "probe a have no direction"),
        "too great a direction": (probe(weights=[1e38] * 8), "probe a have no direction"),
        "truth": (probe(weights=[True] * 8), "finite float32 numbers"),
        "text": (probe(weights=["1"] * 8), "finite float32 numbers"),
        "text for a row": (probe(weights="11111111"), "finite float32 numbers"),
        "text for a bias": (probe(bias="1"), "finite float32 numbers"),
        "rows": (probe(weights=[[1]] * 8), "finite float32 numbers"),
        "nothing": (probe(weights=[]), "no direction"),
        "no name": (probe(name=""), "needs a name"),
        "number as a name": (probe(name=1), "The probe 1 does not"),
        "another name": (probe(name="b\n" * 10**5), r"must be named b%0Ab.* after its probe\. Rename or remove it"),
        "list": (b"[]", "A probe must have a name"),
        "another kind": (probe(kind="ternary"), "binary or continuous, not ternary"),
        "number as a kind": (probe(kind=1), "must be text"),
        "list as what is positive": (probe(positive=["a"]), "must be text"),
        "text as a score": (probe(score="good"), "score of a probe must have"),
        "score without number": (probe(score={"metric": "R^2", "value": 1.0}), "score of a probe must have"),
        "score of no metric": (
            probe(score={"metric": "", "value": 1.0, "num_images": 1}),
            "score of a probe must have",
        ),
        "infinite score": (probe(score={"metric": "R", "value": 1e999, "num_images": 1}), "score of a probe must have"),
        "vast score": (probe(score={"metric": "R", "value": 1, "num_images": 10**99}), "score of a probe must have"),
        "one class": (class_probe("0"), "2 to 1,000 classes, not 1"),
        "classes without end": (class_probe(map(str, range(1001))), "at most 1,000 classes"),
        "list of classes": (b'{"kind": "classes", "name": "a", "classes": []}', "at most 1,000 classes"),
        "classes of no name": (b'{"kind": "classes", "name": "", "classes": {}}', "needs a name"),
        "class of no name": (class_probe(["", "b"]), "Class  does not"),
        "class of another name": (class_probe(name="b"), "Class 0 does not"),
        "class of numbers": (class_probe(kind="continuous"), "Class 0 does not"),
        "class of classes": (class_probe(kind="classes"), "binary or continuous, not classes"),
        "class without direction": (class_probe(weights=[0] * 8), "probe a=0 have no direction"),
        "classes of other z": (class_probe(weights=[1] * 9), "8 dimensions, but probe a has 9"),
        "classes of several z": (
            class_probe().replace(b"[0.5, ", b"[", 1),
            "read z of different numbers of dimensions",
        ),
    },
    "weights.safetensors": {
        "of 8 bits": (listed({"a": empty("F8_E4M3")}), "its a is neither float32 nor float16"),
        "of halves": (listed({"a": empty("BF16")}), "its a is neither float32 nor float16"),
        "of no type": (listed({"a\nb": 1}), "cannot be read: .*header"),
        "list without end": (listed({}, 2**62), "its header has 4,611,686,018,427,387,904 bytes"),
        "names without end": (listed({f"a{i}": empty() for i in range(10**5)}), "its header has 6,"),
        "list that is none": (listed([]), "cannot be read"),
        "deep list": (listed(b'{"a": ' + b"[" * 10**5), "cannot be read"),
        "too short": (b"\1", "cannot be read"),
        "vast weight": (listed({"a": {"dtype": "F32", "shape": [2**62], "data_offsets": [0, 0]}}), "cannot be read"),
    },
}


def hostile(bundle, file, content):
    if callable(content):
        config = json.loads((bundle / file).read_text())
        content(config)
        content = json.dumps(config).encode()
    rewritten(bundle, file.partition(" ")[0], content)


@pytest.mark.parametrize(("file", "name"), [(file, name) for file, cases in HOSTILE.items() for name in cases])
def test_hostile_bundle_is_refused_at_once(bundle, one_device, file, name):
    content, message = HOSTILE[file][name]
    hostile(bundle, file, content)
    start = time.process_time()  # CPU time of this process only
    with pytest.raises(UserError, match=message) as refusal:
        DiffAE.load(bundle, one_device)
    assert time.process_time() - start < 5
    assert_is_one_sentence(refusal.value)


@pytest.mark.parametrize("name", ["unet" + ".0" * 10**5, "autoencoder.unet.down.00.conv1.bias", "a.", "", "0.\u0663"])
def test_weights_of_odd_names_are_refused(bundle, one_device, name):
    content = (bundle / "weights.safetensors").read_bytes()
    length = 8 + int.from_bytes(content[:8], "little")
    header, end = json.loads(content[8:length]), len(content) - length
    header[name] = {"dtype": "F32", "shape": [0], "data_offsets": [end, end]}
    rewritten(bundle, "weights.safetensors", listed(header) + content[length:])
    with pytest.raises(UserError, match=r"The model has .*, which its config does not describe") as refusal:
        DiffAE.load(bundle, one_device)
    assert_is_one_sentence(refusal.value)


def test_nothing_but_regular_files_are_opened_and_links_are_followed(bundle, one_device, tmp_path):
    for name in ("manifest.json", "config.json", "latents.npz"):
        (bundle / name).rename(tmp_path / name)
        os.mkfifo(bundle / name)
        with pytest.raises(
            UserError, match=r"manifest\.json is not a file|config\.json is missing|latents\.npz is miss"
        ):
            DiffAE.load(bundle, one_device)
        (bundle / name).unlink()
        (bundle / name).symlink_to(tmp_path / name)
    DiffAE.load(bundle, one_device)


def test_home_is_found(model, tmp_path, monkeypatch, one_device):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    model.save("~/saved")
    assert DiffAE.load("~/saved", one_device).digest() == DiffAE.load(tmp_path / "saved", one_device).digest()
    assert read_bundle(Path("~/saved")).config == model.config
    assert not Path("~").exists()


def test_paths_that_the_system_refuses_are_reported(model, bundle, tmp_path, one_device):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for path in (tmp_path / ("x" * 300), tmp_path / "loop", "/" + "x/" * 3000):
        for act in (model.save, lambda path: DiffAE.load(path, one_device)):
            with pytest.raises(UserError, match=r"cannot be|neither a path") as refusal:
                act(path)
            assert_is_one_sentence(refusal.value)
    edit(bundle, files={f"probes/{'x' * 300}.json": {}, "config.json": {}, "weights.safetensors": {}})
    entries = json.loads((bundle / "manifest.json").read_text())["files"]
    for name in ("config.json", "weights.safetensors"):
        entries[name] = {"bytes": (bundle / name).stat().st_size}
    edit(bundle, files=entries)
    with pytest.raises(UserError, match=r"cannot be read \(File name too long"):
        DiffAE.load(bundle, one_device)


ODD = [
    None,
    True,
    -1,
    0,
    1,
    10**30,
    0.5,
    float("nan"),
    1e999,
    "",
    "\x1b[2J\n",
    "\ud800",
    [],
    [[]],
    {},
    {"a": [1]},
    "x" * 10**4,
]


def damaged(value, dice):
    """The same JSON with something in it put in another's place, left out, or called otherwise."""
    if not isinstance(value, dict | list) or not value or dice.random() < 0.2:
        return dice.choice(ODD)
    keys = list(value) if isinstance(value, dict) else range(len(value))
    copy, key = value.copy(), dice.choice(keys)
    if dice.random() < 0.2:
        inner = copy.pop(key)
        if isinstance(value, dict):
            copy[dice.choice([str(odd) for odd in ODD])] = inner
    else:
        copy[key] = damaged(value[key], dice)
    return copy


@pytest.mark.parametrize(
    "name", ["manifest.json", "config.json", "probes/hair%2Fcolor%20%C3%A9.json", "probes/hue.json"]
)
def test_no_damage_of_json_leads_to_another_error(bundle, one_device, name):
    good, dice, outcomes = json.loads((bundle / name).read_text()), random.Random(name), set()
    manifest = (bundle / "manifest.json").read_bytes()
    for _ in range(100):
        (bundle / "manifest.json").write_bytes(manifest)
        content = json.dumps(damaged(good, dice)).encode()
        if name == "manifest.json":
            (bundle / name).write_bytes(content)
        else:
            rewritten(bundle, name, content)
        try:
            read = read_bundle(bundle)
            if name == "config.json":  # the others do not reach the networks, which take their time
                DiffAE.from_bundle(read, one_device)
            outcomes.add("read")
        except UserError as error:
            assert_is_one_sentence(error)
            outcomes.add("refused")
    assert "refused" in outcomes


@pytest.fixture(scope="module")
def run_folder(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    (folder / "config.json").write_text(model.config.to_json())
    checkpoints = Checkpoints(folder / "autoencoder" / "checkpoints")
    checkpoints.save(3, TrainState.create(model.params, optax.sgd(0.1)), {"count": 0, "sums": {}})
    checkpoints.wait()
    checkpoints.close()
    return folder


@pytest.fixture(scope="module")
def older_run(run_folder, tmp_path_factory):
    """A run whose checkpoint has no manifest, as older versions wrote it."""
    folder = tmp_path_factory.mktemp("older") / "run"
    shutil.copytree(run_folder, folder)
    step = folder / "autoencoder" / "checkpoints" / "3"
    (step / "manifest.json").unlink()
    metadata = json.loads((step / "_CHECKPOINT_METADATA").read_text()) | {"custom_metadata": {}}
    (step / "_CHECKPOINT_METADATA").write_text(json.dumps(metadata))
    return folder


def changed_config(**model):
    return lambda run: rewritten_config(run, lambda config: config["model"].update(model))


def rewritten_config(run, change):
    config = json.loads((run / "config.json").read_text())
    change(config)
    (run / "config.json").write_text(json.dumps(config))


def on_files(pattern, act):
    def damage(run):
        files = [file for file in (run / "autoencoder" / "checkpoints" / "3").glob(pattern) if file.is_file()]
        assert files
        for file in files:
            act(file)

    return damage


def cut(file):
    file.write_bytes(file.read_bytes()[:10])


def with_a_scalar(file):
    """Says of the first averaged weight that it is a number."""
    metadata = json.loads(file.read_text())
    tree = metadata["tree_metadata"]
    name = next(name for name in tree if "'ema'" in name)
    tree[name]["value_metadata"]["value_type"] = "scalar"
    file.write_text(json.dumps(metadata))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (changed_config(z_dim=9), r"does not match the run's config\.json.*for example in encoder\.out\.bias"),
        (changed_config(z_dim=None), r"does not match the run's config\.json.*for example in encoder\.blocks"),
        (changed_config(base_channels=64), r"does not match the run's config\.json"),
        (changed_config(attention_resolutions=[8]), r"does not match the run's config\.json.*attention"),
        (changed_config(base_channels=None), "must be a whole number"),
        (
            lambda run: rewritten_config(run, lambda config: config["prior"].update(num_layers=10**6)),
            "between 2 and 50",
        ),
        (on_files("state/d/*", cut), r"checkpoints/3 is damaged: remove it"),
        (on_files("state/d/*", Path.unlink), r"checkpoints/3 is damaged: remove it"),
        (on_files("state/ocdbt.process_0/d/*", Path.unlink), r"checkpoints/3 is damaged: remove it"),
        (on_files("state/_METADATA", cut), r"checkpoints/3 is damaged: remove it"),
        (on_files("state/manifest.ocdbt", Path.unlink), r"checkpoints/3 is damaged: remove it"),
        (on_files("state/_METADATA", with_a_scalar), r"checkpoints/3 is damaged: remove it"),
        (lambda run: shutil.rmtree(run / "autoencoder/checkpoints/3/state"), r"checkpoints/3 is damaged: remove it"),
        (lambda run: shutil.rmtree(run / "autoencoder/checkpoints/3"), "holds no checkpoint yet"),
    ],
)
@pytest.mark.filterwarnings("ignore")  # of what Orbax leaves behind when a file is damaged
def test_damaged_run_without_manifest_is_refused_in_one_line(older_run, tmp_path, one_device, damage, message):
    shutil.copytree(older_run, tmp_path / "run")
    damage(tmp_path / "run")
    with pytest.raises(UserError, match=message) as refusal:
        DiffAE.load(tmp_path / "run", one_device)
    assert_is_one_sentence(refusal.value)


def test_damaged_run_is_refused_with_the_file(run_folder, tmp_path, one_device):
    shutil.copytree(run_folder, tmp_path / "run")
    on_files("state/_METADATA", cut)(tmp_path / "run")
    with pytest.raises(UserError, match=r"No checkpoint in .* is undamaged: .*state/_METADATA has 10 bytes instead"):
        DiffAE.load(tmp_path / "run", one_device)


def test_run_loads_as_the_model_that_was_trained(run_folder, model, one_device):
    loaded = DiffAE.load(run_folder, one_device)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(loaded.params), jax.device_get(model.params))
    assert loaded.origin == {"run": "tiny", "images_seen": 3 * 16}
    assert "trained on 48 images" in repr(loaded)


def test_weights_of_another_model_are_refused_by_name(model, bundle, one_device):
    config = json.loads((bundle / "config.json").read_text())
    config["model"]["z_dim"] = 9
    rewritten(bundle, "config.json", json.dumps(config).encode())
    with pytest.raises(UserError, match=r"has autoencoder\.encoder\.out.* in another shape or type"):
        DiffAE.load(bundle)


def test_bundle_is_replaced_by_a_bundle_and_nothing_else_is(model, bundle, tmp_path):
    model.save(bundle)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle"]
    DiffAE.load(bundle)
    other = tmp_path / "photos"
    other.mkdir()
    (other / "cat.png").write_bytes(b"cat")
    with pytest.raises(UserError, match="is not a bundle"):
        model.save(other)
    assert (other / "cat.png").read_bytes() == b"cat"
    (other / "manifest.json").write_text('{"name": "a web page", "icons": []}')
    with pytest.raises(UserError, match="is not the manifest"):
        model.save(other)
    assert (other / "cat.png").read_bytes() == b"cat"
    (bundle / "probes" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds probes/notes\.txt, which is not part"):
        model.save(bundle)
    (bundle / "probes" / "notes.txt").unlink()
    with pytest.raises(UserError, match="cannot be written"):
        model.save("/proc/nowhere/bundle")
    shutil.rmtree(bundle)
    with pytest.raises(UserError, match=r"is neither a path nor a shipped model: .*digits"):
        DiffAE.load(bundle)


def test_save_touches_nothing_next_to_it(model, bundle, tmp_path):
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
    with pytest.raises(UserError, match="is not a bundle"):
        model.save(foreign)
    assert (foreign / "thesis.txt").read_text() == "mine"


def test_full_disk_is_reported_and_leaves_nothing(model, bundle, tmp_path):
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


def test_a_missing_package_that_only_training_needs_does_not_prevent_loading(model, tmp_path, one_device, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)  # as where it is not installed
    config = model.config.copy_and_resolve_references()
    config.report.tensorboard = True
    config.name = ""
    DiffAE(config, model.params, mesh=one_device).save(tmp_path / "bundle")
    assert DiffAE.load(tmp_path / "bundle", one_device).config.report.tensorboard


def test_weights_that_are_not_finite_are_refused(model, tmp_path, one_device):
    params = jax.tree.map(np.array, jax.device_get(model.params))
    params["unet"]["conv_in"]["bias"][1] = np.nan
    DiffAE(model.config, params, mesh=one_device).save(tmp_path / "bundle")
    with pytest.raises(UserError, match=r"autoencoder\.unet\.conv_in\.bias holds values that are not finite"):
        DiffAE.load(tmp_path / "bundle", one_device)


def test_names_that_no_file_can_have_are_reported(model, tmp_path, one_device):
    for name in ("a\0b", "a\ud800b"):
        with pytest.raises(UserError, match="characters that are not allowed in a path"):
            model.save(tmp_path / name)
        with pytest.raises(UserError, match="characters that are not allowed in a path"):
            DiffAE.load(tmp_path / name, one_device)
    probes = {"long": Probe("\u6f22" * 30, np.ones(8, np.float32), 0.0)}
    with pytest.raises(UserError, match=r"name of probe .* is too long for a file name"):
        DiffAE(model.config, model.params, probes=probes, mesh=one_device).save(tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_baseline_takes_no_statistics(model, one_device):
    config = model.config.copy_and_resolve_references()
    with config.unlocked():
        config.model.z_dim = None
    with pytest.raises(UserError, match=r"tiny is a DDIM baseline.*Leave out statistics and probes"):
        DiffAE(config, model.params, statistics=model.statistics, mesh=one_device)
