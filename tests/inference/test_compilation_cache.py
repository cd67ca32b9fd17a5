"""Programs that DiffAE compiles are cached for the next process."""

import subprocess
import sys

from tests.environment import ROOT, environment
from tests.random_models import random_model

ENCODE = """
import sys
import jax, numpy as np
from diffae_jax import DiffAE

if sys.argv[1] == "after another program":
    jax.jit(lambda x: x @ x)(np.ones((3, 3)))
events = []
jax.monitoring.register_event_listener(lambda event, **_: events.append(event.split("/")[-1]))
DiffAE.load(sys.argv[2]).encode(np.zeros((2, 8, 8, 1), np.float32))
print(events.count("cache_misses"), events.count("cache_hits"))
"""


def encode(when, bundle, cache_home):
    """Encodes in another process; returns how many programs the cache lacked and had."""
    settings = dict(XDG_CACHE_HOME=str(cache_home), JAX_COMPILATION_CACHE_DIR="")
    settings["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"  # cache all programs, even on a fast machine
    command = [sys.executable, "-W", "ignore", "-c", ENCODE, when, str(bundle)]
    process = subprocess.run(command, env=environment(**settings), cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    return tuple(map(int, process.stdout.split()))


def test_second_process_reads_what_the_first_compiled_whatever_either_compiled_before(one_device, tmp_path):
    random_model(one_device).save(bundle := tmp_path / "bundle")
    compiled, found = encode("after another program", bundle, tmp_path)
    assert compiled > 0
    assert found == 0
    cache = tmp_path / "diffae_jax" / "compiled"
    kept = sorted(cache.glob("*-cache"))
    for when in ("at once", "after another program"):
        assert encode(when, bundle, tmp_path) == (0, compiled)
    assert sorted(cache.glob("*-cache")) == kept
