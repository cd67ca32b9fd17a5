"""A model in other processes: it can be sent to spawned ones and is refused in forked ones."""

import multiprocessing
import os
import pickle
import select
import signal
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor

import jax
import numpy as np
import pytest

from diffae_jax import DiffAE
from diffae_jax.models.functional import flatten
from diffae_jax.probes import ClassProbe, Probe
from diffae_jax.runtime.errors import UserError
from diffae_jax.runtime.sharding import make_mesh
from tests.environment import ROOT, environment
from tests.messages import assert_is_one_sentence
from tests.random_models import random_model

IMAGES = np.random.default_rng(1).uniform(-1, 1, (5, 8, 8, 1)).astype(np.float32)


@pytest.fixture(scope="module")
def model(eight_devices):
    return random_model(eight_devices)


def arrays(tree, seen=()):
    """Every array of JAX in an object, through lists, dicts and the attributes of its parts."""
    if id(tree) in seen:
        return []
    seen = (*seen, id(tree))
    if isinstance(tree, jax.Array):
        return [tree]
    inner = list(tree.values()) if isinstance(tree, dict) else tree if isinstance(tree, list | tuple) else []
    inner = inner or list(getattr(tree, "__dict__", {}).values())
    return [array for part in inner for array in arrays(part, seen)]


def test_pickle_holds_arrays_of_the_host_and_everything_of_the_model(model):
    assert arrays(model.__getstate__()) == []
    copy = pickle.loads(pickle.dumps(model))
    for mine, its in ((model.params, copy.params), (model.prior, copy.prior)):
        mine, its = flatten(mine), flatten(its)
        assert mine.keys() == its.keys()
        for name in mine:
            np.testing.assert_array_equal(mine[name], its[name])
    assert copy.digest() == model.digest()
    assert copy.config.to_dict() == model.config.to_dict()
    assert repr(copy) == repr(model)
    assert copy.origin == model.origin
    np.testing.assert_array_equal(copy.encode(IMAGES), model.encode(IMAGES))


def test_model_computes_the_same_in_a_spawned_process(model):
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        assert pool.submit(os.getpid).result(timeout=120) != os.getpid()
        z = pool.submit(model.encode, IMAGES).result(timeout=120)
    np.testing.assert_array_equal(z, model.encode(IMAGES))


def said_in_a_fork(*calls, seconds=30):
    """What each call says that is made in a fork of this process; it is killed if it hangs."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:  # nothing of pytest may run here
        try:
            said = []
            for call in calls:
                try:
                    call()
                    said.append("nothing")
                except BaseException as error:
                    said.append(f"{type(error).__name__}: {error}")
                os.write(write, f"{said[-1]}\n".encode())
        finally:
            os._exit(0)
    os.close(write)
    said = b""
    try:
        while select.select([read], [], [], seconds)[0] and (more := os.read(read, 2**16)):
            said += more
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(read)
    return said.decode().splitlines()


@pytest.mark.filterwarnings("ignore:.*fork:RuntimeWarning", "ignore:.*fork:DeprecationWarning")
def test_fork_is_refused_in_a_sentence_instead_of_hanging(model, tmp_path):
    model.encode(IMAGES)
    model.save(tmp_path / "bundle")
    calls = {
        "encode": lambda: model.encode(IMAGES),
        "decode": lambda: model.decode(np.zeros((1, 8), np.float32), num_steps=2),
        "sample": lambda: model.sample(1, num_steps=2, num_latent_steps=2),
        "sample_class": lambda: model.sample_class(1, "hair/color é", num_steps=2, num_latent_steps=2),
        "interpolate": lambda: model.interpolate(IMAGES[0], IMAGES[1], num_steps=2),
        "path": lambda: model.path(np.zeros((2, 8), np.float32), IMAGES[:2], 3),
        "load": lambda: DiffAE.load(tmp_path / "bundle"),
        "save": lambda: model.save(tmp_path / "again"),
        "digest": model.digest,
        "pickle": lambda: pickle.dumps(model),
        "mesh": make_mesh,
    }
    said = said_in_a_fork(*calls.values())
    for name, line in zip(calls, said, strict=False):
        assert line.startswith("UserError: This process is a fork"), (name, line)
        assert 'multiprocessing.get_context("spawn")' in line
        assert_is_one_sentence(UserError(line))
    assert len(said) == len(calls), f"{list(calls)[len(said)]} hangs"
    assert model.encode(IMAGES).shape == (5, 8), "the process that was forked continues"


def test_repr_says_in_one_line_what_a_model_and_a_probe_are(model):
    assert repr(model).startswith("DiffAE(tiny: 8x8x1, z of 8, prior, probes hair/color é; float32 on 8 cpu devices")
    probe = Probe("smile", np.ones(8, np.float32), 0.0)
    classes = ClassProbe("digit", {name: Probe(f"digit={name}", np.ones(8, np.float32), 0.0) for name in "ab"})
    for text, words in (
        (repr(probe), ("Probe(", "smile", "z of 8")),
        (repr(classes), ("ClassProbe(", "digit", "of 8")),
    ):
        assert all(word in text for word in words), text
        assert text.isprintable()
        assert len(text) < 200


SCRIPT = """
import sys
import numpy as np
from diffae_jax.config import from_file
from diffae_jax.data.batches import training_batches
from diffae_jax.data.sources import Arrays
from diffae_jax.stages.chain import run_stages

def main():
    images = np.zeros((16, 8, 8, 1), np.uint8)
    config = from_file("tests/tiny.py")
    config.execution.num_workers = 2
    if len(sys.argv) > 1:
        run_stages(config, sys.argv[1], images=images)
    batches = training_batches(Arrays(images, list(map(str, range(16)))), batch_size=8, seed=0, num_workers=2)
    print(next(batches)["image"].shape)

"""


def run_script(path, *arguments):
    return subprocess.run(
        [sys.executable, path, *arguments],
        cwd=ROOT,
        env=environment(PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("arguments", [["run"], []], ids=["run", "batches"])
def test_script_without_a_guard_starts_no_workers(arguments, tmp_path):
    (tmp_path / "script.py").write_text(f"{SCRIPT}main()\n")
    done = run_script(tmp_path / "script.py", *(str(tmp_path / name) for name in arguments))
    *trace, message = done.stderr.splitlines()
    assert message == (
        f"diffae_jax.runtime.errors.UserError: execution.num_workers=2 starts processes that import "
        f"{tmp_path / 'script.py'}, which would train again in each of them. Move the code of this script below "
        f'`if __name__ == "__main__":`.'
    )
    assert len(trace) < 15
    assert not (tmp_path / "run").exists()


def test_script_with_a_guard_reads_with_workers(tmp_path):
    (tmp_path / "script.py").write_text(f'{SCRIPT}if __name__ == "__main__":\n    main()\n')
    done = run_script(tmp_path / "script.py")
    assert (done.returncode, done.stdout) == (0, "(8, 8, 8, 1)\n"), done.stderr
