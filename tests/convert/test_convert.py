"""Importing official checkpoints: every weight is used once, and every other file is refused."""

import cProfile
import pstats
import re
import subprocess
import sys
import time
import tracemalloc

import jax
import numpy as np
import pytest

from diffae_jax import DiffAE
from diffae_jax.config import MAX_LEVELS, MAX_PRIOR_LAYERS
from diffae_jax.convert import import_official
from diffae_jax.convert.names import CELEBA_ATTRIBUTES
from diffae_jax.models.functional import flatten
from diffae_jax.runtime.errors import UserError
from diffae_jax.torch_files.stored import Storage
from tests.environment import ROOT, environment
from tests.official import official_checkpoint, official_state
from tests.torch_writer import Foreign, Raw, write_checkpoint

STEPS = 2


@pytest.fixture(scope="module")
def state():
    return official_state()


@pytest.fixture(scope="module")
def checkpoint(state, tmp_path_factory):
    path = tmp_path_factory.mktemp("official") / "last.ckpt"
    tree = official_checkpoint(state)
    tree["callbacks"] = {Foreign("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint"): {"best": None}}
    write_checkpoint(path, tree)
    return path


@pytest.fixture(scope="module")
def model(checkpoint, one_device):
    return import_official(checkpoint, mesh=one_device)


def write(tmp_path, tree, name="last.ckpt"):
    write_checkpoint(tmp_path / name, tree)
    return tmp_path / name


def test_config_is_inferred_from_the_file(model):
    config = model.config
    assert config.name == "made_here"
    assert config.image_shape == (16, 16, 3)
    assert config.model.to_dict() == dict(
        base_channels=32,
        channel_mults=(1, 2),
        encoder={"kind": "unet"},
        encoder_channel_mults=(1, 2, 2),
        attention_resolutions=(8,),
        embed_dim=48,
        z_dim=24,
        num_heads=1,
        num_res_blocks=2,
        dropout=0.1,
    )
    assert (config.prior.num_layers, config.prior.width, config.prior.schedule) == (3, 40, "constant")
    assert config.train.schedule == "linear"
    assert model.origin["images_seen"] == 128_000


@pytest.mark.parametrize("hyper", [{}, {"img_size": "wide", "net_ch": 7, "net_ch_mult": None, "name": 3}, None])
def test_config_is_inferred_without_usable_hyper_parameters(state, tmp_path, one_device, model, hyper):
    tree = official_checkpoint(state, hyper=hyper or {})
    if hyper is None:
        del tree["hyper_parameters"]
    config = import_official(write(tmp_path, tree), mesh=one_device).config
    assert (config.image_shape, config.model.to_dict()) == (model.config.image_shape, model.config.model.to_dict())


@pytest.mark.parametrize(
    ("ours", "official"),
    [
        ("unet.conv_in.kernel", "input_blocks.0.0.weight"),
        ("unet.down.2.conv1.kernel", "input_blocks.3.0.in_layers.2.weight"),
        ("unet.down.3.attention.qkv.kernel", "input_blocks.4.1.qkv.weight"),
        ("unet.middle.1.conv2.kernel", "middle_block.2.out_layers.3.weight"),
        ("unet.up.2.z_proj.kernel", "output_blocks.2.0.cond_emb_layers.1.weight"),
        ("unet.up.3.conv1.kernel", "output_blocks.2.2.in_layers.2.weight"),
        ("unet.up.4.skip.kernel", "output_blocks.3.0.skip_connection.weight"),
        ("encoder.blocks.9.norm1.scale", "encoder.middle_block.2.in_layers.0.weight"),
        ("encoder.out.bias", "encoder.out.3.bias"),
    ],
)
def test_weights_have_the_right_names(model, state, ours, official):
    array = state[official]
    expected = np.moveaxis(array, (0, 1), (-1, -2)) if ours.endswith("kernel") else array
    found = np.asarray(flatten(model.params)[ours])
    np.testing.assert_array_equal(found, expected.reshape(found.shape))


def test_every_weight_is_used_once(model, state):
    filled = [np.asarray(a) for a in jax.tree.leaves((model.params, model.prior))]
    theirs = [array for name, array in state.items() if "cond_layers" not in name]
    assert sorted(float(a.astype(np.float64).sum()) for a in filled) == pytest.approx(
        sorted(float(a.astype(np.float64).sum()) for a in theirs)
    )
    assert sum(model.origin["unused"].values()) == len(state) + 1 + 4  # model.*, x_T, duplicate names


def test_import_save_load_decode_is_bit_identical(model, tmp_path, one_device):
    z, x_T = model.statistics.mean[None] + np.zeros((2, 1), np.float32), np.zeros((2, 16, 16, 3), np.float32)
    model.save(tmp_path / "bundle")
    loaded = DiffAE.load(tmp_path / "bundle", one_device)
    np.testing.assert_array_equal(loaded.decode(z, x_T, STEPS), model.decode(z, x_T, STEPS))
    assert loaded.origin == model.origin


def test_deeper_and_wider_models_and_the_baseline(tmp_path, one_device):
    layout = dict(base=32, mults=(1, 1, 2), size=32, attention=(16, 8), z=None)
    tree = official_checkpoint(official_state(**layout), z=None, size=32)
    baseline = import_official(write(tmp_path, tree), mesh=one_device)
    assert baseline.config.model.z_dim is None
    assert baseline.config.model.attention_resolutions == (16, 8)
    assert baseline.prior is None
    assert baseline.statistics is None


def test_latents_and_classifier(state, tmp_path, one_device):
    path = write(tmp_path, official_checkpoint(official_state(latent=None), statistics=False))
    assert import_official(path, mesh=one_device).statistics is None
    mean, std = np.arange(24, dtype=np.float32), np.full(24, 2, np.float32)
    latents = write(
        tmp_path, {"conds": np.zeros((5, 24), np.float32), "conds_mean": mean, "conds_std": std}, "latent.pkl"
    )
    weight, bias = (
        np.random.default_rng(0).normal(size=(40, 25)).astype(np.float32)[:, :24],
        np.arange(40.0, dtype="f4"),
    )
    tensors = {
        "classifier.weight": weight + 1,
        "classifier.bias": bias + 1,
        "conds_mean": mean[None],
        "conds_std": std[None],
    }
    tensors |= {"ema_classifier.weight": weight.copy(), "ema_classifier.bias": bias, "ema_model.out.0.bias": bias}
    classifier = write(tmp_path, {"state_dict": tensors}, "cls.ckpt")
    model = import_official(path, latents, classifier, mesh=one_device)
    np.testing.assert_array_equal(model.statistics.mean, mean)
    assert tuple(model.probes) == CELEBA_ATTRIBUTES
    np.testing.assert_array_equal(model.probes["Smiling"].weights, weight[31])
    assert model.probes["Young"].bias == 39

    other = write(tmp_path, {"conds_mean": mean + 1, "conds_std": std}, "other.pkl")
    with pytest.raises(UserError, match="belongs to a different autoencoder"):
        import_official(path, other, classifier)
    fewer = write(tmp_path, {"conds_mean": mean[:9], "conds_std": std[:9]}, "fewer.pkl")
    with pytest.raises(UserError, match=r"fewer\.pkl has statistics of 9 and 9 dimensions, but z of the model has 24"):
        import_official(path, fewer)
    flat = write(tmp_path, {"conds_mean": mean, "conds_std": std * 0}, "flat.pkl")
    with pytest.raises(UserError, match=r"flat\.pkl cannot be used: .*each std must be positive"):
        import_official(path, flat)
    with pytest.raises(UserError, match="lacks conds_mean"):
        import_official(path, path)
    with pytest.raises(UserError, match="has no state_dict"):
        import_official(latents)
    with pytest.raises(UserError, match=r"no EMA weights|lacks ema_model"):
        import_official(classifier)
    tensors["ema_classifier.bias"] = bias * np.nan
    broken = write(tmp_path, {"state_dict": tensors}, "broken.ckpt")
    with pytest.raises(UserError, match=r"has values in ema_classifier\.bias that are not finite"):
        import_official(path, latents, broken)
    tensors["ema_classifier.bias"], tensors["ema_classifier.weight"] = bias, weight * (np.arange(40) != 3)[:, None]
    with pytest.raises(UserError, match=r"flat\.ckpt cannot be used: The weights of probe Bags_Under_Eyes have no dir"):
        import_official(path, latents, write(tmp_path, {"state_dict": tensors}, "flat.ckpt"))
    tensors["ema_classifier.weight"] = np.ones((40, 23), np.float32)
    with pytest.raises(UserError, match=r"narrow\.ckpt has ema_classifier\.weight of shape \(40, 23\)"):
        import_official(path, latents, write(tmp_path, {"state_dict": tensors}, "narrow.ckpt"))
    with pytest.raises(UserError, match="lacks ema_classifier"):
        import_official(path, classifier=path)


def without(name):
    return lambda tree: tree["state_dict"].pop(name)


def entry(name, value):
    return lambda tree: tree["state_dict"].update({name: value})


def hyper(**values):
    return lambda tree: tree["hyper_parameters"].update(values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            without("ema_model.output_blocks.2.2.in_layers.2.weight"),
            r"lacks ema_model\.output_blocks\.2\.2\.in_layers\.2\.weight",
        ),
        (without("ema_model.time_embed.time_embed.0.weight"), r"lacks ema_model\.time_embed"),
        (without("ema_model.encoder.out.3.weight"), r"lacks ema_model\.encoder\.out\.3\.weight"),
        (without("ema_model.latent_net.layers.2.linear.bias"), r"latent_net\.layers\.2\.linear\.bias"),
        (entry("ema_model.noise_net.weight", np.zeros(3, np.float32)), r"unknown weights ema_model\.noise_net\.weight"),
        (entry("surprise", np.zeros(3, np.float32)), "unknown weights surprise"),
        (
            entry("ema_model.out.2.weight", np.zeros((3, 33, 3, 3), np.float32)),
            r"out\.2\.weight of shape \(3, 33, 3, 3\)",
        ),
        (entry("ema_model.time_embed.time_embed.0.weight", np.zeros(3, np.float32)), "instead of 2 dimensions"),
        (entry("ema_model.time_embed.time_embed.0.weight", np.zeros((3, 0), np.float32)), "instead of 2 dimensions"),
        (entry("ema_model.time_embed.time_embed.0.weight", np.zeros((48, 3), np.float32)), "not multiples of 3"),
        (entry("note", "text"), "not tensors: note"),
        (without("conds_mean"), "lacks conds_mean or conds_std"),
        (hyper(T=4000), "T = 4000"),
        (hyper(net_latent_condition_bias=0.0), "net_latent_condition_bias"),
        (hyper(beatgans_rescale_timesteps=True), "beatgans_rescale_timesteps = True"),
        (hyper(net_enc_tanh=True), "net_enc_tanh = True"),
        (hyper(net_beatgans_resnet_condition_scale_bias=0), "net_beatgans_resnet_condition_scale_bias = 0"),
        (hyper(latent_znormalize=False), "latent_znormalize = False"),
        (hyper(latent_clip_sample=True), "latent_clip_sample = True"),
        (hyper(latent_rescale_timesteps=True), "latent_rescale_timesteps = True"),
        (hyper(net_latent_time_last_act=True), "net_latent_time_last_act = True"),
        (hyper(beta_scheduler="sigmoid"), "= sigmoid"),
        (hyper(img_size=15), "15"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_unsupported_models_are_refused_by_name(state, tmp_path, change, message):
    tree = official_checkpoint(state)
    change(tree)
    with pytest.raises(UserError, match=message) as refusal:
        import_official(write(tmp_path, tree))
    assert "\n" not in str(refusal.value)


DEEP = Raw(b"]" * 5_000 + b"a" * 4_999)  # nested lists
OUT = "ema_model.out.2.bias"


def many(name):
    """Adds a small tensor under 3,000 names."""
    weight = np.zeros((32, 1, 1, 1), np.float32)
    return lambda tree: tree["state_dict"].update({name.format(i): weight for i in range(3000)})


def largest(tree):
    """Gives a file the names of the largest network that an import builds, without its weights."""
    weight = np.zeros((32, 1, 1, 1), np.float32)
    names = [
        f"{prefix}input_blocks.{3 * level + place}.{name}"
        for prefix in ("", "encoder.")
        for level in range(MAX_LEVELS)
        for place, name in ((0, "x"), (1, "0.in_layers.2.weight"), (1, "1.qkv.weight"), (2, "x"))
    ]
    names += [f"latent_net.layers.{i}.x" for i in range(MAX_PRIOR_LAYERS)]
    names += ["input_blocks.0.0.weight", "encoder.out.3.weight"]
    tensors = dict.fromkeys((f"ema_model.{name}" for name in names), weight)
    tensors["ema_model.time_embed.time_embed.0.weight"] = np.zeros((32, 32), np.float32)
    tensors["ema_model.latent_net.layers.0.linear.weight"] = np.zeros((32, 32), np.float32)
    tree.update(state_dict=tensors, hyper_parameters={"img_size": 2**MAX_LEVELS})


HOSTILE = {
    "largest network": (largest, "lacks ema_model"),
    "too many layers": (many("ema_model.latent_net.layers.{}.linear.weight"), r"has 3,000 latent_net\.layers"),
    "too many levels": (many("ema_model.input_blocks.{}.0.in_layers.2.weight"), "has 3000 input_blocks"),
    "levels of the encoder": (many("ema_model.encoder.input_blocks.{}.0.x"), r"has 3000 encoder\.input_blocks"),
    "deep schedule": (hyper(beta_scheduler=DEEP), "beta_scheduler = a list"),
    "deep entry": (entry("note", DEEP), "not tensors: note"),
    "long schedule": (hyper(beta_scheduler="x" * 10**6), r"beta_scheduler = x{120}\."),
    "schedule of two lines": (hyper(beta_scheduler="a\nb\x1b[2J"), r"beta_scheduler = a\\nb\\x1b\[2J\."),
    "huge number of steps": (hyper(T=2**2000), "T = an integer of 2,001 bits"),
    "huge image size": (
        hyper(img_size=2**2000),
        "Each value of image_shape must be a positive whole number up to 65536",
    ),
    "huge number of heads": (hyper(net_beatgans_attn_head=2**2000), "num_heads must be finite"),
    "long name": (entry("ema_model." + "x" * 10**6, np.zeros(3, np.float32)), "unknown weights ema_model.x{100}"),
    "name of two lines": (entry("ema_model.\n\x1b", np.zeros(3, np.float32)), r"unknown weights ema_model.\\n\\x1b"),
    "long entry": (entry("x" * 10**6, 1), "not tensors: x{120}:|not tensors: x{120}"),
    "NaN": (
        entry(OUT, np.full(3, np.nan, np.float32)),
        r"values in ema_model\.out\.2\.bias that are not finite",
    ),
    "infinity": (entry(OUT, np.full(3, -np.inf, np.float32)), "that are not finite"),
    "beyond float32": (entry(OUT, np.full(3, 1e300)), "that are not finite"),
    "integer weight": (entry(OUT, np.zeros(3, np.int64)), r"ema_model\.out\.2\.bias of type int64"),
    "boolean weight": (entry(OUT, np.zeros(3, bool)), r"ema_model\.out\.2\.bias of type bool"),
    "integer statistics": (entry("conds_std", np.ones((1, 24), np.int32)), "conds_std of type int32"),
    "empty statistics": (
        lambda tree: tree["state_dict"].update(dict.fromkeys(("conds_mean", "conds_std"), np.zeros(0, np.float32))),
        "has statistics of 0 and 0 dimensions",
    ),
}


MOST_CALLS = 15_000_000  # of functions, mostly by the type checks of the tests: a few seconds
SECONDS_OF_A_CALL = 1e-6  # with the profiler, on a slow machine


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_file_is_refused_quickly_with_one_sentence(state, tmp_path, one_device, name):
    change, message = HOSTILE[name]
    tree = official_checkpoint(state)
    change(tree)
    path = write(tmp_path, tree)
    start = time.process_time()  # processor time, independent of other processes
    with cProfile.Profile() as work, pytest.raises(UserError, match=message) as refusal:
        import_official(path, mesh=one_device)
    num_calls = pstats.Stats(work).total_calls  # of functions: the same on every machine
    assert num_calls < MOST_CALLS
    assert time.process_time() - start - num_calls * SECONDS_OF_A_CALL < 4  # of work within a few calls
    assert str(refusal.value).isprintable()
    assert len(str(refusal.value)) <= 400


@pytest.mark.parametrize(
    ("step", "seen"),
    [(True, None), (2**2000, None), (-1, None), (1.5, None), (DEEP, None), (7, 7 * 128)],
    ids=["boolean", "huge", "negative", "float", "deep", "valid"],
)
def test_unusable_origin_values_do_not_prevent_saving(state, tmp_path, one_device, step, seen):
    tree = official_checkpoint(state, hyper=dict(img_size=16, batch_size=128, name=DEEP))
    tree["global_step"] = step
    model = import_official(write(tmp_path, tree), mesh=one_device)
    assert (model.origin.get("images_seen"), model.config.name) == (seen, "official")
    model.save(tmp_path / "bundle")
    assert DiffAE.load(tmp_path / "bundle", one_device).origin == model.origin


def test_flipped_bits_of_weights_are_detected(checkpoint, state, tmp_path, one_device):
    whole, dice = checkpoint.read_bytes(), np.random.default_rng(0)
    for name in ("out.2.bias", "input_blocks.1.0.in_layers.2.weight", "latent_net.layers.0.linear.weight"):
        content = state[name].tobytes()
        flipped = bytearray(whole)
        assert whole.count(content) == 1
        flipped[whole.index(content) + dice.integers(len(content))] ^= 1 << dice.integers(8)
        (tmp_path / "flipped.ckpt").write_bytes(flipped)
        with pytest.raises(UserError, match=r"has a damaged tensor at byte .*\. Download or copy it again"):
            import_official(tmp_path / "flipped.ckpt", mesh=one_device)


def test_latent_ddim_settings_are_ignored_without_a_latent_ddim(tmp_path, one_device):
    hyper = dict(
        img_size=16,
        net_latent_condition_bias=0.0,  # as in the official code's defaults
        latent_znormalize=False,
        latent_clip_sample=True,
        beatgans_rescale_timesteps=False,
        net_enc_tanh=False,
        net_beatgans_resnet_condition_scale_bias=1.0,
    )
    tree = official_checkpoint(official_state(latent=None), hyper=hyper)
    assert import_official(write(tmp_path, tree), mesh=one_device).prior is None


def test_counting_blocks_does_not_copy_long_names(state, tmp_path):
    tree = official_checkpoint(state)
    tree["state_dict"]["ema_model.input_blocks.0." + "." * 9_000_000] = np.zeros(1, np.float32)
    path = write(tmp_path, tree)
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match="unknown weights"):
            import_official(path)
        assert tracemalloc.get_traced_memory()[1] < 100e6
    finally:
        tracemalloc.stop()


def test_prior_without_statistics_is_refused(state, tmp_path):
    with pytest.raises(UserError, match="--latents"):
        import_official(write(tmp_path, official_checkpoint(state, statistics=False)))


def unchanged(tree):
    pass


@pytest.mark.parametrize(
    ("change", "other", "message"),
    [
        (without(OUT), {}, "lacks ema_model.out.2.bias"),
        (entry("ema_model.noise_net.weight", np.zeros(3, np.float32)), {}, "unknown weights"),
        (entry(OUT, np.zeros(4, np.float32)), {}, "of shape"),
        (entry(OUT, np.zeros(3, np.int32)), {}, "of type int32"),
        (unchanged, {"latents": "no.pkl"}, "does not exist"),
        (unchanged, {"latents": "last.ckpt"}, "lacks conds_mean"),
        (unchanged, {"classifier": "no.ckpt"}, "does not exist"),
        (unchanged, {"classifier": "last.ckpt"}, "lacks ema_classifier"),
        (lambda tree: [without(name)(tree) for name in ("conds_mean", "conds_std")], {}, "--latents"),
    ],
    ids=[
        "missing",
        "extra",
        "size",
        "type",
        "no latents",
        "wrong latents",
        "no classifier",
        "wrong classifier",
        "none",
    ],
)
def test_other_errors_are_raised_before_weights_are_read(
    state, tmp_path, one_device, monkeypatch, change, other, message
):
    tree, reads, read = official_checkpoint(state), [], Storage.read
    change(tree)
    path = write(tmp_path, tree)
    monkeypatch.setattr(Storage, "read", lambda self, *span: reads.append(self.elements) or read(self, *span))
    with pytest.raises(UserError, match=message):
        import_official(path, mesh=one_device, **{key: tmp_path / name for key, name in other.items()})
    assert set(reads) <= {24}, "more was read than statistics"


def test_weights_with_gaps_are_refused_and_transposed_weights_are_not(state, tmp_path, one_device, model, monkeypatch):
    name = "ema_model.latent_net.layers.0.linear.weight"  # (40, 24)
    tree = official_checkpoint(state)
    tree["state_dict"][name] = np.asfortranarray(state["latent_net.layers.0.linear.weight"])
    turned = import_official(write(tmp_path, tree), mesh=one_device)
    np.testing.assert_array_equal(*(flatten(m.prior)["layers.0.linear.kernel"] for m in (turned, model)))
    tree["state_dict"][name] = np.zeros((40, 25), np.float32)[:, :24]
    monkeypatch.setattr(Storage, "read", None)  # reading raises
    with pytest.raises(UserError, match=r"layers\.0\.linear\.weight with gaps between its numbers"):
        import_official(write(tmp_path, tree), mesh=one_device)


def diffae(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "diffae_jax.cli", *map(str, arguments)],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
    )


def test_command_writes_a_bundle_and_prints_a_description(checkpoint, tmp_path):
    done = diffae("import", checkpoint, "--out", tmp_path / "bundle")
    assert done.returncode == 0, done.stderr
    for text in ("made_here", "16x16x3", "images seen: 128,000", "latent DDIM", "statistics of z: yes", "unused"):
        assert text in done.stdout
    assert DiffAE.load(tmp_path / "bundle").image_shape == (16, 16, 3)


def test_command_reports_mistakes_in_one_sentence(checkpoint, tmp_path):
    (tmp_path / "no.ckpt").write_text("no checkpoint")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "photo.png").write_text("")
    for arguments, message in (
        ((tmp_path / "no.ckpt", "--out", tmp_path / "b"), "is not a file written by torch.save"),
        ((checkpoint, "--out", tmp_path / "taken"), "already exists"),
        ((checkpoint, "--overwrite", "--out", tmp_path / "taken"), "is not a bundle"),
        ((checkpoint, "--image-size", "15", "--out", tmp_path / "b"), "15"),
    ):
        done = diffae("import", *arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert re.fullmatch(r"Error: [^\n]*" + re.escape(message) + r"[^\n]*\n", done.stderr), done.stderr
    assert not (tmp_path / "b").exists()
    assert diffae("import").returncode == 2
    assert "--latents" in diffae("import", "--help").stdout


def test_neither_pytorch_nor_lightning_is_needed(checkpoint):
    program = """
import sys

class Missing:  # scipy treats an entry of None in sys.modules as a module
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "pytorch_lightning", "lightning"):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Missing())
from diffae_jax.convert import import_official
assert import_official(sys.argv[1]).prior is not None
"""
    command = [sys.executable, "-c", program, checkpoint]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
