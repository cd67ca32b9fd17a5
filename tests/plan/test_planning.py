"""Targets, predicted times, settings that fit, and the command's sentences."""

import dataclasses

import pytest

from diffae_jax import cli
from diffae_jax.config import from_file
from diffae_jax.plan import fitting
from diffae_jax.plan.hlo import Collective, Contents, Kernel
from diffae_jax.plan.planning import Need
from diffae_jax.plan.roofline import predict_times
from diffae_jax.plan.targets import CHIPS, find_target, gpu_description
from diffae_jax.runtime.errors import UserError


@pytest.mark.parametrize(
    ("name", "devices", "slices", "topology"),
    [
        ("t4", 1, 1, "1x1x1"),
        ("v100x8", 8, 1, "1x1x8"),
        ("v100-32x8", 8, 1, "1x1x8"),
        ("h100x16", 16, 2, "2x1x8"),
        ("v4-8", 4, 1, "v4:2x2x1"),
        ("v5p-16", 8, 1, "v5:2x2x2"),
        ("v5e-16", 16, 1, "v5e:4x4"),
        ("2xv6e-8", 16, 2, "v6e:2x4"),
    ],
)
def test_targets(name, devices, slices, topology):
    target = find_target(name)
    assert (target.num_devices, target.num_slices, target.topology) == (devices, slices, topology)


@pytest.mark.parametrize("name", ["", "h10", "v100x0", "v100x12", "h100x9000", "v5e-17", "v4-7", "99xv5e-8", "x8"])
def test_unknown_targets_are_refused_with_those_there_are(name):
    with pytest.raises(UserError, match=r"There is no target .*(Use one like|has the sizes|give 1 to)"):
        find_target(name)


def test_what_the_compiler_is_told_of_a_gpu_names_its_capability_and_memory():
    text = gpu_description(CHIPS["v100"])
    assert "cuda_compute_capability { major: 7 minor: 0 }" in text
    assert "device_memory_size: 16935682048" in text
    assert "minor: 10 patch: 2" in text, "the last cuDNN for Volta is 9.10"


def kernel(flops=0.0, size=0, times=1):
    return Kernel("k", "fusion", flops, size, "bf16", times)


def test_time_is_the_longer_of_arithmetic_and_traffic_of_each_kernel():
    target = find_target("h100")
    chip = dataclasses.replace(target.chip, bandwidth=1e12, peak={"bf16": 1e14, "f32": 1e13})
    target = dataclasses.replace(target, chip=chip)
    contents = Contents((kernel(5.5e13, 10), kernel(1.0, 8 * 10**11, times=3)), (), 0)
    times = predict_times(contents, target)
    assert times.arithmetic == pytest.approx(1.0)  # 55 % of the peak
    assert times.memory == pytest.approx(3.0)  # 80 % of the bandwidth
    assert times.starts == pytest.approx(4 * 2.5e-6)
    assert times.network == 0
    assert times.total == pytest.approx(4.00001)


def test_collectives_within_a_node_and_between_nodes():
    inside = Contents((), (Collective("all-reduce", 10**9, "{{0,1,2,3,4,5,6,7}}", 1),), 0)
    one_node, two_nodes = find_target("h100x8"), find_target("h100x16")
    assert predict_times(inside, one_node).network == pytest.approx(2 * 1e9 * 7 / 8 / (450e9 * 0.7))
    across = Contents((), (Collective("all-reduce", 10**9, "", 1),), 0)
    expected = 2 * 1e9 * 7 / 8 / (450e9 * 0.7) + 2 * 1e9 / 2 / 8 / (50e9 * 0.7)
    assert predict_times(across, two_nodes).network == pytest.approx(expected)
    gathered = Contents((), (Collective("all-gather", 10**9, "{{0,1,2,3,4,5,6,7}}", 1),), 0)
    assert predict_times(gathered, one_node).network == pytest.approx(1e9 * 7 / 8 / (450e9 * 0.7))


@pytest.fixture
def config():
    config = from_file("ffhq256")
    config.train.batch_size = 32
    return config


def test_settings_are_tried_from_cheap_to_costly(config):
    tried = list(fitting.candidates(config, 8))
    assert tried == [
        {},
        {"execution.remat": True},
        {"execution.remat": True, "execution.num_microbatches": 2},
        {"execution.remat": True, "execution.num_microbatches": 4},
        {"execution.remat": True, "execution.num_microbatches": 4, "execution.sharding": "fsdp"},
        {
            "execution.remat": True,
            "execution.num_microbatches": 2,
            "execution.sharding": "fsdp",
            "train.batch_size": 16,
        },
        {"execution.remat": True, "execution.num_microbatches": 1, "execution.sharding": "fsdp", "train.batch_size": 8},
    ]
    for settings in tried:  # each can be split over the devices
        changed = fitting.with_settings(config, settings)
        assert changed.train.batch_size % (8 * changed.execution.num_microbatches) == 0


def test_fit_stops_at_the_first_settings_that_fit_and_says_what_is_missing_if_none_does(config, monkeypatch):
    needed = {"remat": 9e9, "parts": 5e9, "all": 4e9}

    def needs_of(config, target, programs):
        execution = config.execution
        which = "all" if execution.sharding == "fsdp" else "parts" if execution.num_microbatches > 1 else "remat"
        bytes_ = needed[which] if execution.remat else 120e9
        return [Need("train", Contents((), (), 0), 0, int(bytes_), None, 8, "gpu", 1.0)]

    monkeypatch.setattr(fitting, "needs_of", needs_of)  # compiling for real is tested in test_compiled.py
    tried = []
    settings, need = fitting.fit(config, find_target("v100x8"), lambda *attempt: tried.append(attempt))
    assert settings == {"execution.remat": True}
    assert need.memory == 9e9
    assert len(tried) == 2
    needed.update(remat=99e9, parts=88e9, all=77e9)
    with pytest.raises(
        UserError, match=r"does not fit v100x8: it needs at least 77 GB .*remat=True.*fsdp.* has 12.7 GB"
    ):
        fitting.fit(config, find_target("v100x8"), lambda *attempt: None)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["ffhq64", "--target=h10"], "There is no target h10. Use one like t4, v100x8"),
        (["ffhq64", "--target=v5e-17"], "v5e has the sizes v5e-1, v5e-4, v5e-8"),
        (["ffhq64", "--target=h100x8", "--config.train.batch_size=100"], "a multiple of 8"),
        (["ffhq64", "--fit"], "--fit needs --target=MACHINE"),
        (["ffhq64", "--target=t4", "--programs", "walk"], "choose from train, prior, encode, invert, decode, sample"),
        (["ffhq64:ddim", "--target=t4", "--programs", "sample"], "choose from train, invert, decode"),
        (["ffhq64", "--target=t4", "--config.train.batchsize=3"], "did you mean train.batch_size?"),
        (["ffhq64", "--target=t4", "--config.train.batch_size=0"], "train.batch_size must be"),
        (["digits", "--config.train.warmup_images=1_000_000"], "train.warmup_images=1,000,000 must be less than"),
        (["digits:ddim", "--config.train.freeze=encoder"], "a DDIM baseline has no encoder"),
    ],
)
def test_mistakes_are_one_sentence(arguments, sentence, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.run(["plan", *arguments])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("Error: ")
    assert len(error.strip().splitlines()) == 1
    assert sentence in error


def test_target_without_dry_run_is_refused(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.run(["train", "--config=digits", "--target=v5e-8"])
    assert ended.value.code == 2
    assert "--target needs --dry_run" in capsys.readouterr().err
