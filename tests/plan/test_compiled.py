"""Programs compiled for machines that are not there, with the compilers of `make test-plans`."""

import json

import pytest

from diffae_jax import cli
from diffae_jax.config import from_file
from diffae_jax.plan.planning import needs_of
from diffae_jax.plan.targets import find_target

pytestmark = pytest.mark.compilers


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A folder for the plans of this module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def digits():
    config = from_file("digits")
    config.train.batch_size = 256
    return config


def test_digits_on_a_tpu_slice_and_again_from_the_cache(cache, tmp_path, capsys):
    arguments = ["plan", "digits", "--target=v5e-8", "--programs", "train", "--json", str(tmp_path / "plan.json")]
    cli.run(arguments)
    first = capsys.readouterr().out
    assert "digits on 8 x TPU v5 lite, bfloat16, 1.89 M parameters" in first
    assert "compiled train in" in first
    (figures,) = json.loads((tmp_path / "plan.json").read_text())
    assert figures["host_transfers"] == 0
    assert 1 <= figures["flops"] * 8 / (32 * 136e6) < 1.4  # products with padding count, too
    assert [c["kind"] for c in figures["collectives"]] == ["all-reduce"] * len(figures["collectives"])
    assert 1 <= len(figures["collectives"]) <= 4
    cli.run(arguments)
    assert "compiled train in" not in capsys.readouterr().out


@pytest.mark.parametrize("target", ["v100x8", "h100x8"])
def test_digits_on_gpus(cache, digits, target):
    (need,) = needs_of(digits, find_target(target), ["train"])
    assert need.num_devices == 8
    assert 1 <= need.contents.flops * 8 / (256 * 136e6) < 1.3  # products with padding count, too
    assert need.contents.host_transfers == 0
    half = {"v100x8": "f16", "h100x8": "bf16"}[target]
    flops = {dtype: sum(k.flops for k in need.contents.kernels if k.dtype == dtype) for dtype in (half, "f32")}
    assert flops[half] > 0.9 * (flops[half] + flops["f32"]), "only time embedding and z are float32"
    reduced = sum(c.bytes for c in need.contents.collectives if c.kind == "all-reduce")
    assert reduced == pytest.approx(4 * 1_361_000, rel=0.5)


@pytest.mark.parametrize("target", ["v5e-8", "h100x8"])
def test_every_step_of_a_decoding_counts(cache, digits, target):
    (need,) = needs_of(digits, find_target(target), ["decode"])
    steps = digits.evaluation.num_code_steps
    inside = sum(kernel.flops for kernel in need.contents.kernels if kernel.times == steps)
    assert inside * steps > 0.9 * need.contents.flops > 0


def test_two_slices_of_tpus_reduce_over_the_network(cache, digits):
    (need,) = needs_of(digits, find_target("2xv5e-4"), ["train"])
    assert need.num_devices == 8
    assert need.times.network > 0
