"""What a type checker makes of the public API."""

import re
import subprocess
import sys

from tests.environment import ROOT

CLIENT = """
import jax
import numpy as np
from diffae_jax import DiffAE, to_pil, to_uint8

model = DiffAE.load("bundle")
images = np.zeros((2, 8, 8, 1), np.float32)
z = model.encode(images)
probe = model.fit_probe("smile", z, [0, 1])
x_T = model.invert(images, z)

reveal_type(model)
reveal_type(z)
reveal_type(x_T)
reveal_type(model.decode(z, x_T))
reveal_type(model.edit(images, "smile"))
reveal_type(model.sample(2))
reveal_type(model.variations(images).mean)
reveal_type(probe)
reveal_type(to_pil(model.decode(z)))
model.decode(jax.numpy.zeros((2, 8)), num_steps=20, seed=jax.numpy.int32(1))
model.move(z, "smile", 0.3)
to_uint8(model.sample(2))
np.save("z.npy", z)
"""
ARRAY = r"numpy\.ndarray\[.*\] \| jax.*\.Array"
REVEALED = [
    r"diffae_jax\.inference\.diffae\.DiffAE",
    *[ARRAY] * 6,
    r"diffae_jax\.probes\.linear\.Probe \| diffae_jax\.probes\.linear\.ClassProbe",
    r".*list\[PIL\.Image\.Image\]",
]


def mypy(path):
    cache = ROOT / ".cache" / "mypy"
    options = ["--follow-imports=silent", f"--cache-dir={cache}", "--no-error-summary", "--hide-error-context"]
    command = [sys.executable, "-m", "mypy", *options, str(path)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


def test_type_checker_passes_and_knows_what_the_methods_return(tmp_path):
    client = tmp_path / "client.py"
    client.write_text(CLIENT)
    process = mypy(client)
    assert process.returncode == 0, process.stdout
    revealed = [line.split('"')[1] for line in process.stdout.splitlines() if "Revealed type" in line]
    assert len(revealed) == len(REVEALED)
    for found, expected in zip(revealed, REVEALED, strict=True):
        assert re.fullmatch(expected, found), found


def test_type_checker_refuses_what_is_no_argument(tmp_path):
    client = tmp_path / "client.py"
    client.write_text('from diffae_jax import DiffAE\nDiffAE.load("bundle").decode("z")\n')
    process = mypy(client)
    assert process.returncode == 1
    assert 'Argument 1 to "decode" of "DiffAE" has incompatible type "str"' in process.stdout
