"""Commands that keep finished parts: what they say after a signal, and that they resume."""

import re
import signal
import time

import numpy as np
import pytest

from tests.processes import Forked
from tests.runs import finish, wait_for, wait_for_line

CODES = {signal.SIGTERM: 143, signal.SIGINT: 130}


def diffae(*arguments):
    return Forked("diffae_jax.cli:run", arguments)


def interrupted(process, number):
    """Sends a signal, and returns what is printed last."""
    process.send_signal(number)
    sent = time.monotonic()
    output = finish(process, CODES[number])
    assert time.monotonic() - sent < 10
    assert "Traceback" not in output
    return output.strip().splitlines()[-1]


@pytest.mark.alone  # the moment is short
def test_encode_says_how_many_images_are_encoded_and_resumes(whole, tmp_path):
    np.save(tmp_path / "images.npy", np.random.default_rng(0).integers(0, 256, (10_000, 8, 8), np.uint8))
    command = ("encode", whole[0] / "bundle", tmp_path / "images.npy", "--out", tmp_path / "z.npz")
    process = diffae(*command)
    wait_for(process, tmp_path, "z.npz.chunks/images-*")
    kept = re.fullmatch(
        r"SIGTERM: encoding stopped; ([\d,]+) of 10,000 images are encoded and kept\. "
        r"To resume, run the same command again\.",
        interrupted(process, signal.SIGTERM),
    )
    count = int(kept[1].replace(",", ""))
    assert 1024 <= count < 10_000
    assert f"10,000 images, z of 8 dimensions; {10_000 - count:,} images to go." in finish(diffae(*command))
    with np.load(tmp_path / "z.npz") as arrays:
        assert arrays["z"].shape == (10_000, 8)


@pytest.mark.alone
def test_evaluate_says_how_far_it_is_and_resumes(whole, tmp_path):
    settings = "--data", "digits", "--steps", "2", "--num-images", "16", "--num-samples", "16"
    command = ("evaluate", whole[0] / "bundle", *settings, "--out", tmp_path / "report")
    process = diffae(*command)
    wait_for_line(process, "Reconstruction (Sec")
    said = interrupted(process, signal.SIGINT)
    assert re.fullmatch(
        r"SIGINT: the evaluation stopped; 1 of 3 programs is measured and \d+ chunks? (is|are) kept\. "
        r"The rest takes at most about \d+ s, plus compilation\. To resume, run the same command again\.",
        said,
    )
    output = finish(diffae(*command))
    assert "Reconstruction (Sec" not in output
    assert "Unconditional samples" in output
