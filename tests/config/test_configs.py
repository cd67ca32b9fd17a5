"""Every config file: it builds, it says what it is, and it holds the values of the paper."""

import ast
import inspect
import json
import runpy
import sys
from functools import cache

import jax
import pytest
from ml_collections import ConfigDict

from diffae_jax.config import (
    check,
    check_run,
    default,
    differing_keys,
    format_intensity,
    from_json,
    parse_intensity,
    variant,
)
from diffae_jax.config.differences import shapes_networks
from diffae_jax.config.keys import FLAT_KEYS
from diffae_jax.diffusion.schedule import NUM_TIMESTEPS
from diffae_jax.models import abstract_model
from diffae_jax.models.build import builder
from diffae_jax.runtime.errors import UserError
from tests.environment import ROOT
from tests.messages import assert_is_one_sentence

CONFIGS = ROOT / "configs"
FILES = sorted(CONFIGS.glob("[!_]*.py"))


def get_config_of(path):
    return runpy.run_path(str(path))["get_config"]


def takes_variant(path):
    return bool(inspect.signature(get_config_of(path)).parameters)


# Each file alone, and with its variant where it has one.
EXPERIMENTS = [(path, None) for path in FILES]
EXPERIMENTS += [(path, variant) for path in FILES if takes_variant(path) for variant in ("ddim", "z64")]
every_experiment = pytest.mark.parametrize(
    ("path", "variant"),
    EXPERIMENTS,
    ids=[path.stem + (f":{variant}" if variant else "") for path, variant in EXPERIMENTS],
)


def config_of(path, variant=None):
    return get_config_of(path)(variant) if variant else get_config_of(path)()


def flat(config, prefix=""):
    """All values under their dotted names."""
    values = {}
    for key, value in config.items():
        values |= flat(value, f"{prefix}{key}.") if isinstance(value, ConfigDict) else {prefix + key: value}
    return values


@cache
def parameter_shapes(settings):
    """Parameter shapes of a model, built once for all configs that share it."""
    return abstract_model(builder(ConfigDict(json.loads(settings, object_hook=with_tuples)), "float32"))[1]


def with_tuples(settings):
    return {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}


@every_experiment
def test_config_builds_its_model(path, variant):
    config = config_of(path, variant)
    settings = {"image_shape": config.image_shape, "model": config.model.to_dict(), "execution": {"remat": False}}
    params = parameter_shapes(json.dumps(settings))
    assert set(params) == ({"unet"} if config.model.z_dim is None else {"unet", "encoder"})
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jax.numpy.dtype("float32")}


@every_experiment
def test_config_is_named_as_its_file(path, variant):
    config = config_of(path, variant)
    assert config.name == path.stem + (f"_{variant}" if variant else "")
    assert config.model.z_dim == {None: config_of(path).model.z_dim, "ddim": None, "z64": 64}[variant]


@every_experiment
def test_config_has_the_keys_of_the_default_and_no_others(path, variant):
    config, reference = flat(config_of(path, variant)), flat(default())
    assert config.keys() == reference.keys()  # a key written wrong would otherwise be a new one, and do nothing
    kinds = {key: (type(value), type(reference[key])) for key, value in config.items()}
    assert {key: kind for key, kind in kinds.items() if kind[0] is not kind[1]} == (
        {"model.z_dim": (type(None), int)} if variant == "ddim" else {}
    )


@pytest.mark.parametrize("path", FILES, ids=[path.stem for path in FILES])
def test_docstring_gives_the_command(path):
    docstring = ast.get_docstring(ast.parse(path.read_text()))
    assert f"python -m diffae_jax.main --config=configs/{path.name}" in docstring
    assert (f"--config=configs/{path.name}:ddim" in docstring) == takes_variant(path)


# Table 5 of the paper, one column a config. The encoder has the base channels and attention of the
# UNet.
TABLE_5 = {
    "row": ("celeba64", "ffhq64", "ffhq128", "horse128", "bedroom128", "ffhq256"),
    "image_shape": ((64, 64, 3), (64, 64, 3), (128, 128, 3), (128, 128, 3), (128, 128, 3), (256, 256, 3)),
    "train.batch_size": (128, 128, 128, 128, 128, 64),
    "model.base_channels": (64, 64, 128, 128, 128, 128),
    "model.channel_mults": (
        (1, 2, 4, 8),
        (1, 2, 4, 8),
        (1, 1, 2, 3, 4),
        (1, 1, 2, 3, 4),
        (1, 1, 2, 3, 4),
        (1, 1, 2, 2, 4, 4),
    ),
    "model.attention_resolutions": ((16,),) * 6,
    "train.num_images": (72_000_000, 48_000_000, 130_000_000, 130_000_000, 120_000_000, 90_000_000),
    "model.encoder_channel_mults": (
        (1, 2, 4, 8, 8),
        (1, 2, 4, 8, 8),
        (1, 1, 2, 3, 4, 4),
        (1, 1, 2, 3, 4, 4),
        (1, 1, 2, 3, 4, 4),
        (1, 1, 2, 2, 4, 4, 4),
    ),
    "model.z_dim": (512,) * 6,
    "train.schedule": ("linear",) * 6,
    "train.learning_rate": (1e-4,) * 6,
    "train.weight_decay": (0.0,) * 6,
}
# Table 6, one column a config; the decay of FFHQ and CelebA is that of AdamW.
TABLE_6 = {
    "prior.batch_size": (512, 256, 256, 2048, 2048, 256),
    "prior.num_latents": (300_000_000, 100_000_000, 100_000_000, 2_000_000_000, 2_000_000_000, 100_000_000),
    "prior.num_layers": (10, 10, 10, 20, 20, 10),
    "prior.width": (2048,) * 6,
    "prior.schedule": ("constant",) * 6,
    "prior.learning_rate": (1e-4,) * 6,
    "prior.weight_decay": (0.01, 0.01, 0.01, 0.0, 0.0, 0.01),
    "prior.loss": ("l1",) * 6,
}
# What the tables leave out and the official code has.
OFFICIAL = {
    "model.embed_dim": 512,
    "model.dropout": 0.1,
    "train.ema_decay": 0.9999,
    "train.max_grad_norm": 1.0,
    "prior.ema_decay": 0.9999,
    "prior.max_grad_norm": 1.0,
    "data.flip": True,
}


@pytest.mark.parametrize("column", range(6), ids=TABLE_5["row"])
@pytest.mark.parametrize("key", [key for key in TABLE_5 | TABLE_6 if key != "row"])
def test_value_is_that_of_table_5_or_6(key, column):
    config = config_of(CONFIGS / f"{TABLE_5['row'][column]}.py")
    assert flat(config)[key] == (TABLE_5 | TABLE_6)[key][column]


@pytest.mark.parametrize("name", TABLE_5["row"])
def test_values_that_the_tables_leave_out_are_the_official_ones(name):
    config = flat(config_of(CONFIGS / f"{name}.py"))
    assert {key: config[key] for key in OFFICIAL} == OFFICIAL
    assert NUM_TIMESTEPS == 1000


@pytest.mark.parametrize("name", TABLE_5["row"])
def test_ddim_baseline_differs_in_name_and_z_alone(name):
    path = CONFIGS / f"{name}.py"
    config, baseline = flat(config_of(path)), flat(config_of(path, "ddim"))
    assert {key for key in config if config[key] != baseline[key]} == {"name", "model.z_dim"}


# What is wrong is refused.


def test_unknown_key_is_refused():
    config = config_of(CONFIGS / "digits.py")
    with pytest.raises((AttributeError, KeyError), match="batchsize"):
        config.train.batchsize = 32


@pytest.mark.parametrize("path", [path for path in FILES if takes_variant(path)], ids=lambda path: path.stem)
def test_unknown_variant_is_refused_with_those_there_are(path):
    for unknown in ("ddpm", "z", "z0", "z064", "z999999", "64"):
        with pytest.raises(UserError, match=rf"^[^.]* variant {unknown} [^.]*ddim[^.]*z64[^.]*\.$"):
            get_config_of(path)(unknown)
    assert config_of(path) == get_config_of(path)("")


def changed(**changes):
    config = default()
    config.update_from_flattened_dict({key.replace("__", "."): value for key, value in changes.items()})
    return config.to_dict()


@pytest.mark.parametrize(
    ("key", "old", "new"),
    [
        ("seed", 0, 1),
        ("train.learning_rate", 1e-4, 2e-4),
        ("train.batch_size", 128, 64),
        ("data.crop", "center", "celeba"),
        ("model.z_dim", 512, 64),
        ("image_shape", [128, 128, 3], [64, 64, 3]),
    ],
)
def test_differing_keys_names_the_key_and_both_values(key, old, new):
    value = tuple(new) if isinstance(new, list) else new
    assert differing_keys(default().to_dict(), changed(**{key: value})) == [f"{key}: {old} -> {new}"]


def test_differing_keys_lists_all_and_shows_what_is_absent():
    old = default().to_dict()
    del old["train"]["ema_decay"]
    new = changed(seed=3, name="other")
    assert differing_keys(old, new) == ["name:  -> other", "seed: 0 -> 3", "train.ema_decay: absent -> 0.9999"]


def test_differing_keys_ignores_what_changes_no_result_and_how_sequences_are_stored():
    free = changed(
        execution__sharding="fsdp",
        execution__num_microbatches=4,
        report__log_every=7,
        evaluation__num_images=3,
        train__num_images=140_000_000,
        prior__num_latents=1,
        data__path="elsewhere",
    )
    assert differing_keys(default().to_dict(), free) == []
    another_prior = changed(prior__width=512, prior__learning_rate=1.0)
    assert len(differing_keys(default().to_dict(), another_prior)) == 2
    assert differing_keys(default().to_dict(), another_prior, also_free=("prior",)) == []
    stored = json.loads(json.dumps(default().to_dict()))
    assert differing_keys(stored, default().to_dict()) == []


def test_key_that_means_nothing_any_more_is_left_out(tmp_path):
    stored = default().to_dict()
    stored["data"]["kind"] = "folder"
    (tmp_path / "config.json").write_text(json.dumps(stored))
    assert from_json(tmp_path / "config.json").to_dict() == default().to_dict()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", None),
        ("0..4095", (0.0, 4095.0, False)),
        ("-1000..3e3", (-1000.0, 3000.0, False)),
        ("0.5%..99.5%", (0.5, 99.5, True)),
    ],
)
def test_intensity_is_two_values_or_percentiles(text, expected):
    assert parse_intensity(text) == expected
    if expected and not expected[2]:
        assert parse_intensity(format_intensity(expected[:2])) == expected


@pytest.mark.parametrize(
    "text", ["1", "..", "1..0", "1..1", "1%..2", "a..b", "0..nan", "0..inf", "-1%..5%", "1%..101%"]
)
def test_invalid_intensity_is_refused(text):
    config = default()
    config.data.intensity = text
    with pytest.raises(UserError, match=r"data\.intensity"):
        check(config)


def test_key_that_once_was_one_number_may_be_a_list_now(tmp_path):
    stored = default().to_dict()
    stored["evaluation"]["num_sample_steps"] = 20
    (tmp_path / "config.json").write_text(json.dumps(stored))
    config = from_json(tmp_path / "config.json")
    check(config)
    assert config.evaluation.num_sample_steps == (20,)


def test_programs_of_earlier_versions_have_their_new_names(tmp_path):
    stored = default().to_dict()
    stored["evaluation"]["programs"] = ["labels", "neighbours"]
    (tmp_path / "config.json").write_text(json.dumps(stored))
    config = from_json(tmp_path / "config.json")
    check(config)
    assert config.evaluation.programs == ("labels", "neighbors")


def test_missing_tensorboard_is_reported_before_the_run(monkeypatch):
    config = default()
    config.report.tensorboard = True
    config.name, config.data.path = "a", "digits"
    check_run(config)
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(UserError, match=r'needs tensorboardX\. Run pip install "diffae_jax\[tensorboard\]"') as refusal:
        check_run(config)
    assert_is_one_sentence(refusal.value)


@pytest.mark.parametrize("tracker", ["wandb", "mlflow"])
def test_missing_tracker_is_reported_before_the_run(monkeypatch, tracker):
    config = default()
    config.report.tracker, config.name = tracker, "a"
    check_run(config)
    monkeypatch.setitem(sys.modules, tracker, None)
    with pytest.raises(UserError, match=rf'needs {tracker}\. Run pip install "diffae_jax\[{tracker}\]"') as refusal:
        check_run(config)
    assert_is_one_sentence(refusal.value)


@pytest.mark.parametrize(("section", "noun"), [("train", "images"), ("prior", "latents")])
def test_warmup_is_shorter_than_the_training(section, noun):
    config = default()
    config.name = "a"
    config[section].update({f"num_{noun}": 1000, f"warmup_{noun}": 999})
    check(config)
    config[section][f"warmup_{noun}"] = 1000
    message = rf"^{section}\.warmup_{noun}=1,000 must be less than {section}\.num_{noun}=1,000, or the learning rate "
    with pytest.raises(UserError, match=message) as refusal:
        check(config)
    assert_is_one_sentence(refusal.value)


def test_baseline_has_no_encoder_to_freeze():
    config = variant(default(), "ddim")
    config.train.freeze = "unet"
    check(config)
    config.train.freeze = "encoder"
    with pytest.raises(UserError, match=r"train\.freeze=encoder cannot be used: a DDIM baseline has no encoder\. "):
        check(config)


@pytest.mark.parametrize(("key", "noun"), [("samplers", "sampler"), ("inversions", "inversion")])
def test_unknown_method_to_measure_is_reported_before_the_run(key, noun):
    config = default()
    config.name = "a"
    config.evaluation[key] = ("ddim", "ddmi")
    check(config)  # a trained model may come from a program with more of them
    with pytest.raises(UserError, match=rf"^There is no {noun} ddmi\. Choose one of: ddim, ") as refusal:
        check_run(config)
    assert_is_one_sentence(refusal.value)


@pytest.mark.parametrize(("section", "length"), [("train", "num_images"), ("prior", "num_latents")])
def test_length_is_fixed_only_if_the_learning_rate_depends_on_it(section, length):
    old, new = default().to_dict(), default().to_dict()
    new[section][length] += 1
    assert differing_keys(old, new) == []
    for config in (old, new):
        config[section]["learning_rate_schedule"] = "cosine"
    assert differing_keys(old, new) == [f"{section}.{length}: {old[section][length]} -> {new[section][length]}"]


def test_keys_that_shape_the_networks():
    names = {name for name in FLAT_KEYS if shapes_networks(name)}
    assert {"image_shape", "model.z_dim", "model.encoder.kind", "model.num_heads"} < names
    assert not names & {"model.dropout", "train.batch_size", "prior.width", "data.crop"}
