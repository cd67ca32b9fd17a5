"""Damage of checkpoints is detected, and the newest undamaged one is used."""

import itertools
import json
import shutil
import signal
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from orbax.checkpoint import v1 as ocp

from diffae_jax.runtime.checksums import hash_json
from diffae_jax.runtime.errors import UserError
from diffae_jax.runtime.sharding import make_mesh, on_host, replicated, shard_array, split_batch, state_shardings
from diffae_jax.training import checkpoint
from diffae_jax.training.checkpoint import Checkpoints, find_undamaged, latest_step, load_ema, set_aside_damaged
from diffae_jax.training.loop import Window
from diffae_jax.training.manifest import damage_of, digest_arrays
from diffae_jax.training.state import TrainState
from tests.messages import assert_is_one_sentence
from tests.processes import Forked
from tests.runs import wait_for

NO_WINDOW = {"count": 0, "sums": {}}


def state_of(step, mesh, sharding="replicated"):
    """A state with a small array and one that FSDP splits."""
    rng = np.random.default_rng(step)
    params = {
        "encoder": {"kernel": rng.normal(size=(8, 2**13)).astype(np.float32)},
        "unet": {"bias": rng.normal(size=7).astype(np.float32)},
    }
    state = TrainState.create(params, optax.adam(0.1))
    return jax.tree.map(lambda a, s: shard_array(np.asarray(a), s), state, state_shardings(state, mesh, sharding))


def abstract(state):
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), state)


def write_steps(folder, mesh, sharding="replicated", steps=(1, 2)):
    checkpoints = Checkpoints(folder)
    for step in steps:
        checkpoints.save(step, state_of(step, mesh, sharding), NO_WINDOW)
    checkpoints.wait()
    checkpoints.close()


@pytest.fixture(params=["one device", "eight devices with FSDP"])
def steps(request, made_once, one_device, eight_devices, tmp_path):
    """A folder with the checkpoints of steps 1 and 2, and the mesh that they are for."""
    mesh, sharding = (one_device, "replicated") if request.param == "one device" else (eight_devices, "fsdp")
    shared = made_once(f"checkpoints_{sharding}", lambda folder: write_steps(folder / "steps", mesh, sharding))
    shutil.copytree(shared / "steps", tmp_path / "steps")
    return tmp_path / "steps", mesh


def flips(step, count, seed=0):
    """Places to flip a bit: the same number over all bytes and over all files of a step."""
    rng = np.random.default_rng(seed)
    files = sorted(file for file in step.rglob("*") if file.is_file() and file.stat().st_size)
    sizes = [file.stat().st_size for file in files]
    ends = np.cumsum(sizes)
    for position in rng.integers(0, ends[-1], count // 2):
        file = int(np.searchsorted(ends, position, side="right"))
        yield files[file], int(position - (ends[file] - sizes[file])), int(rng.integers(8))
    for file in rng.integers(0, len(files), count - count // 2):
        yield files[file], int(rng.integers(sizes[file])), int(rng.integers(8))


def assert_found(folder, mesh, whole):
    """Either step 1 is used instead of step 2, or step 2 is used and equals what was saved."""
    step, damages = find_undamaged(folder)
    if step == 2:
        checkpoints = Checkpoints(folder)
        restored, _ = checkpoints.restore(2, abstract(whole))
        checkpoints.close()
        jax.tree.map(np.testing.assert_array_equal, on_host(restored), on_host(whole))
        return False
    assert step == 1
    assert_is_one_sentence(UserError(f"{damages[2]}."))
    return True


def test_checkpoint_of_fsdp_on_eight_devices_loads_on_one_and_the_other_way_round(one_device, eight_devices, tmp_path):
    meshes = {"replicated": one_device, "fsdp": eight_devices}
    for saved, loaded in (("fsdp", "replicated"), ("replicated", "fsdp")):
        state, other = state_of(1, meshes[saved], saved), state_of(2, meshes[loaded], loaded)
        split = [leaf for leaf in jax.tree.leaves((state, other)) if not leaf.sharding.is_fully_replicated]
        assert split, "FSDP must split an array"
        write_steps(tmp_path / saved, meshes[saved], saved, steps=(1,))
        checkpoints = Checkpoints(tmp_path / saved)
        restored, window = checkpoints.restore(1, abstract(other))
        checkpoints.close()
        assert Window(**window) == Window()
        jax.tree.map(np.testing.assert_array_equal, on_host(restored), on_host(state))
        assert jax.tree.map(lambda a: a.sharding, restored) == jax.tree.map(lambda a: a.sharding, other)


@pytest.mark.parametrize("count", [60, pytest.param(1000, marks=pytest.mark.long)])
def test_no_flipped_bit_of_a_checkpoint_is_used_silently(steps, count):
    folder, mesh = steps
    whole = state_of(2, mesh, "fsdp" if mesh.size > 1 else "replicated")
    found = 0
    for file, position, bit in flips(folder / "2", count):
        content = file.read_bytes()
        damaged = bytearray(content)
        damaged[position] ^= 1 << bit
        file.write_bytes(damaged)
        found += assert_found(folder, mesh, whole)
        file.write_bytes(content)
    assert found > 0.95 * count  # a flip in the white space of the manifest has no effect
    assert find_undamaged(folder) == (2, {})


def test_every_truncated_or_missing_file_is_found(steps):
    folder, mesh = steps
    whole = state_of(2, mesh, "fsdp" if mesh.size > 1 else "replicated")
    for file in sorted(file for file in (folder / "2").rglob("*") if file.is_file()):
        content = file.read_bytes()
        for kept in {0, 1, len(content) // 2, len(content) - 1} & set(range(len(content))):
            file.write_bytes(content[:kept])
            last_newline = file.name == "manifest.json" and kept == len(content) - 1  # has no effect
            assert assert_found(folder, mesh, whole) != last_newline, (file, kept)
        file.unlink()
        assert assert_found(folder, mesh, whole), file
        file.write_bytes(content)
    (folder / "2" / "state" / "another").write_text("file")
    assert "another is not in the manifest" in find_undamaged(folder)[1][2]


def test_damaged_step_is_set_aside_and_the_one_before_is_used(steps, caplog):
    folder, mesh = steps
    file = next((folder / "2" / "state").rglob("d/*"))
    file.write_bytes(file.read_bytes()[:-1])
    before = on_host(state_of(1, mesh, "fsdp" if mesh.size > 1 else "replicated"))
    params, step, _ = load_ema(folder, abstract(state_of(1, mesh).ema))
    assert step == 1
    assert "the checkpoint of step 2 is damaged" in caplog.text
    assert latest_step(folder) == 2, "a reader changes nothing"
    jax.tree.map(np.testing.assert_array_equal, on_host(params), before.ema)
    caplog.clear()
    set_aside_damaged(folder)
    assert str(file) in caplog.text
    assert "renamed to" in caplog.text
    assert sorted(path.name for path in folder.iterdir()) == ["1", "2.damaged"]
    checkpoints = Checkpoints(folder)
    assert checkpoints.latest == 1
    restored, _ = checkpoints.restore(1, abstract(state_of(1, mesh)))
    jax.tree.map(np.testing.assert_array_equal, on_host(restored), before)
    checkpoints.save(2, state_of(2, mesh), NO_WINDOW)
    checkpoints.wait()
    checkpoints.close()
    assert sorted(path.name for path in folder.iterdir()) == ["1", "2", "2.damaged"]


def test_folder_without_an_undamaged_step_is_refused_and_not_changed(steps):
    folder, mesh = steps
    for step in ("1", "2"):
        (folder / step / "manifest.json").write_text("{}")
    with pytest.raises(UserError, match=r"No checkpoint in .* is undamaged: .*2/manifest.json is damaged.*remove it"):
        set_aside_damaged(folder)
    with pytest.raises(UserError, match="No checkpoint in"):
        load_ema(folder, abstract(state_of(1, mesh).ema))
    assert sorted(path.name for path in folder.iterdir()) == ["1", "2"]


def test_older_checkpoint_without_manifest_is_used_and_reported_once(one_device, tmp_path, caplog):
    state = state_of(3, one_device)
    ocp.save_checkpointables(tmp_path / "3", {"state": state, "window": NO_WINDOW})
    for _ in range(2):
        params, step, _ = load_ema(tmp_path, abstract(state.ema))
    assert step == 3
    jax.tree.map(np.testing.assert_array_equal, on_host(params), on_host(state.ema))
    assert caplog.text.count("older version, without a manifest") == 1
    checkpoints = Checkpoints(tmp_path)
    restored, _ = checkpoints.restore(3, abstract(state))
    checkpoints.close()
    jax.tree.map(np.testing.assert_array_equal, on_host(restored), on_host(state))


def test_array_that_is_not_what_was_saved_is_refused(one_device, tmp_path):
    """The files are whole, but they hold something else: what hashes of files cannot detect."""
    write_steps(tmp_path, one_device, steps=(1,))
    manifest = json.loads((tmp_path / "1" / "manifest.json").read_text())
    del manifest["sha256"]
    manifest["arrays"] = digest_arrays(state_of(2, one_device))
    (tmp_path / "1" / "manifest.json").write_text(json.dumps(manifest | {"sha256": hash_json(manifest)}))
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(UserError, match=r"1 is damaged: .* is not as it was when it was saved"):
        checkpoints.restore(1, abstract(state_of(1, one_device)))
    checkpoints.close()
    with pytest.raises(UserError, match=r"1 is damaged: ema\.encoder\.kernel is not as it was"):
        load_ema(tmp_path, abstract(state_of(1, one_device).ema))


def test_step_of_a_newer_version_is_refused(one_device, tmp_path):
    write_steps(tmp_path, one_device, steps=(1,))
    manifest = json.loads((tmp_path / "1" / "manifest.json").read_text())
    del manifest["sha256"]
    manifest["format"] = 2
    (tmp_path / "1" / "manifest.json").write_text(json.dumps(manifest | {"sha256": hash_json(manifest)}))
    with pytest.raises(UserError, match="written by a newer version"):
        find_undamaged(tmp_path)


def test_files_are_hashed_once_while_they_do_not_change(one_device, tmp_path, monkeypatch):
    write_steps(tmp_path, one_device, steps=(1,))
    hashed = []
    monkeypatch.setattr(checkpoint.manifest, "damage_of", lambda path: hashed.append(path) or damage_of(path))
    for _ in range(3):
        assert find_undamaged(tmp_path) == (1, {})
    assert len(hashed) == 1


def save_forever():
    """Saves step after step, from the newest on, until this process is killed."""
    folder = Path(sys.argv[1])
    mesh = make_mesh(jax.devices()[:1])
    checkpoints = Checkpoints(folder)
    for step in itertools.count((checkpoints.latest or 0) + 1):
        checkpoints.save(step, state_of(step, mesh), NO_WINDOW)


@pytest.mark.parametrize(
    ("seed", "kills"), [(0, 4), *(pytest.param(seed, 50, marks=pytest.mark.long) for seed in range(1, 21))]
)
def test_save_that_is_killed_loses_nothing(seed, kills, one_device, tmp_path):
    """Half of the kills are aimed at a save, the others come at random."""
    rng, newest = np.random.default_rng(seed), 0
    for kill in range(kills):
        process = Forked("tests.training.test_checkpoints:save_forever", [str(tmp_path)])
        wait_for(process, tmp_path, str(newest + 1))
        if kill % 2:
            wait_for(process, tmp_path, "*.tmp")
        time.sleep(rng.uniform(0, 0.03 if kill % 2 else 0.5))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        step, damages = find_undamaged(tmp_path)
        assert not damages
        assert step > newest
        checkpoints = Checkpoints(tmp_path)
        restored, _ = checkpoints.restore(step, abstract(state_of(step, one_device)))
        checkpoints.close()
        jax.tree.map(np.testing.assert_array_equal, on_host(restored), on_host(state_of(step, one_device)))
        assert len(list(tmp_path.iterdir())) <= 2, "what was unfinished is removed"
        newest = step


# --- the digest of arrays ------------------------------------------------------------------------


def expected_digest(values):
    """The definition in Python's integers, which have no width."""

    def mixed(x):
        x = ((x ^ (x >> 16)) * 0x85EBCA6B) % 2**32
        x = ((x ^ (x >> 13)) * 0xC2B2AE35) % 2**32
        return x ^ (x >> 16)

    bits = np.ascontiguousarray(values).view(np.uint32).ravel().tolist()
    return f"{sum(mixed(b ^ mixed(i)) for i, b in enumerate(bits)) % 2**32:08x}"


def test_digest_is_that_of_the_definition_on_host_and_devices_however_split(one_device, eight_devices):
    rng = np.random.default_rng(0)
    small, large = rng.normal(size=(3, 5)).astype(np.float32), rng.normal(size=(2, 2**15)).astype(np.float32)
    tree = {"a": {"small": small, "count": np.int32(7)}, "large": large}
    expected = {"a.count": expected_digest(np.int32(7)), "a.small": expected_digest(small)}
    expected["large"] = expected_digest(large)
    for sharding in (replicated(one_device), replicated(eight_devices), split_batch(eight_devices, axis=1)):
        on_devices = {"a": tree["a"], "large": shard_array(large, sharding)}
        assert digest_arrays(on_devices) == expected
    assert digest_arrays({**tree, "large": jnp.asarray(large)}) == expected


def test_digest_changes_with_each_bit_and_with_the_order():
    values = np.arange(64, dtype=np.float32)
    digests = {digest_arrays({"a": values})["a"], digest_arrays({"a": values[::-1].copy()})["a"]}
    for position in range(64):
        for bit in range(32):
            changed = values.copy()
            changed.view(np.uint32)[position] ^= np.uint32(1 << bit)
            digests.add(digest_arrays({"a": changed})["a"])
    assert len(digests) == 2 + 64 * 32
