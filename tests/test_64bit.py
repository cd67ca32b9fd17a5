"""With JAX_ENABLE_X64=1, training, latents, sampling and probes still compute in float32."""

import subprocess
import sys

import numpy as np
import pytest

from tests.environment import ROOT, environment

# Training and use of a model with every seam in use: v, a weighting, a loss term, microbatches, a
# probe.
PROGRAM = """
import sys
from pathlib import Path
import jax, numpy as np
from diffae_jax import DiffAE
from diffae_jax.models.functional import flatten
from diffae_jax.probes import Probe
from diffae_jax.stages.chain import run_stages
from diffae_jax.training.metrics import read_metrics
from tests.tiny import get_config

folder = Path(sys.argv[1])
assert jax.config.jax_enable_x64 == (sys.argv[2] == "1")
config = get_config()
config.train.update(num_images=8 * 16, parameterization="v")
config.prior.update(num_latents=16 * 32, parameterization="v")
config.execution.num_microbatches = 2
config.report.update(health_every=8 * 16, save_every=8 * 16, grid_every=8 * 16, prior_save_every=16 * 32)
stages = ["autoencoder", "latents", "prior", "export"]
run_stages(config, str(folder), stages, loss_terms={"size": lambda z, batch, keys: 0.01 * (z**2).mean(1)})
model = DiffAE.load(folder / "bundle")
model.probes["half"] = Probe("half", np.ones(8, np.float32), 0.1)
images = np.random.default_rng(0).uniform(-1, 1, (4, 8, 8, 1)).astype(np.float32)
z = model.encode(images)
x_T = model.invert(images, z, 3)
latents, numbers = model.sample_latents(3, "half", num_latent_steps=2)
of_path = model.path(z[:2], x_T[:2], 3)
found = {
    "z": z,
    "x_T": x_T,
    "decoded": model.decode(z, x_T, 3),
    "edited": model.edit(images, "half", 0.3, 3),
    "z of a path": of_path[0],
    "x_T of a path": of_path[1],
    "noise": model.noise(np.arange(4)),
    "sampled": model.sample(4, 1, 3, 2),
    "sampled class": model.sample_class(3, "half", num_steps=3, num_latent_steps=2),
    "latents of a class": latents,
    **{f"weights {name}": np.asarray(leaf) for name, leaf in flatten(model.params).items()},
    **{f"weights of the prior {name}": np.asarray(leaf) for name, leaf in flatten(model.prior).items()},
}
losses = [row["loss"] for row in read_metrics(folder) if "loss" in row]
np.savez(folder / "found.npz", **found)
np.savez(folder / "rest.npz", numbers=numbers, losses=losses)
"""


def start(folder, x64):
    folder.mkdir()
    settings = dict(JAX_PLATFORMS="cpu", PYTHONPATH=str(ROOT), JAX_ENABLE_X64=x64)
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(folder), x64],
        env=environment(**settings),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.long  # test_transformations.py calls each method with 64 bits
def test_results_are_those_of_32_bits(tmp_path):
    programs = [start(tmp_path / x64, x64) for x64 in "01"]
    for program in programs:
        _, error = program.communicate()
        assert program.returncode == 0, error
    # rounding differs where the compiler fuses constants of another type; the gradient of Adam
    # enlarges that
    narrow, wide = (np.load(tmp_path / x64 / "found.npz") for x64 in "01")
    assert narrow.files == wide.files
    for name in narrow.files:
        assert narrow[name].dtype == wide[name].dtype == np.float32, name
        np.testing.assert_allclose(wide[name], narrow[name], atol=2e-4, rtol=1e-4, err_msg=name)
    narrow, wide = (np.load(tmp_path / x64 / "rest.npz") for x64 in "01")
    np.testing.assert_array_equal(wide["numbers"], narrow["numbers"])
    np.testing.assert_allclose(wide["losses"], narrow["losses"], rtol=1e-4)
