"""The networks against float64 references, published sizes and costs, and expected structure."""

import math
import runpy
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax
from jax.flatten_util import ravel_pytree

from diffae_jax.diffusion.process import Process
from diffae_jax.models import DiffusionAutoencoder, LatentMLP, UNet, abstract_model, split
from diffae_jax.models.blocks import (
    Attention,
    GroupNorm,
    ResBlock,
    adagn_silu,
    conv,
    downsample,
    dropout,
    linear,
    timestep_embedding,
    upsample,
)
from diffae_jax.models.build import builder
from diffae_jax.stages.autoencoder import autoencoder_loss
from diffae_jax.training.state import TrainState, make_optimizer
from diffae_jax.training.step import train_step
from tests.environment import QUICKLY, ROOT
from tests.jaxprs import equations

CONFIGS = ROOT / "configs"
TINY = dict(
    image_shape=(8, 8, 3),
    base_channels=32,
    channel_mults=(1, 2),
    encoder_channel_mults=(1, 2),
    attention_resolutions=(4,),
    embed_dim=48,
    z_dim=16,
    dropout=0.5,
)
ONE_LEVEL = dict(image_shape=(4, 4, 3), channel_mults=(1,), encoder_channel_mults=(1,), num_res_blocks=1)


def tiny(**changes):
    return partial(DiffusionAutoencoder, **TINY | changes)


def filled(build, seed=0):
    """The module of `build(rngs=...)` with random parameters, including zero-initialized ones."""
    graphdef, params = abstract_model(lambda rngs: build(rngs=rngs))
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        noise = rng.normal(size=leaf.shape)
        if leaf.ndim > 1:
            noise /= math.sqrt(math.prod(leaf.shape[:-1]))
        else:
            noise = (path[-1].key == "scale") + 0.3 * noise
        return jnp.asarray(noise, leaf.dtype)

    return nnx.merge(graphdef, jax.tree_util.tree_map_with_path(draw, params))


def structure(build):
    """The module that `build(rngs=...)` makes, with shapes in place of arrays."""
    return nnx.merge(*abstract_model(lambda rngs: build(rngs=rngs)))


def compiled(module):
    """The module as one compiled function of arrays."""
    graphdef, params = split(module)
    function = jax.jit(lambda params, *args: nnx.merge(graphdef, params)(*args), **QUICKLY)
    return partial(function, params)


def normal(*shape, seed=1):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def relative_error(actual, expected):
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape
    return np.linalg.norm(actual - expected) / np.linalg.norm(expected)


def primitives(jaxpr):
    return [equation.primitive.name for equation in equations(jaxpr)]


# The references: float64 numpy, written from the formulas alone.


def f64(variable):
    return np.asarray(variable[...], np.float64)


def silu64(h):
    return h / (1 + np.exp(-h))


def group_norm64(norm, h):
    n, channels = h.shape[0], h.shape[-1]
    groups = h.reshape(n, -1, 32, channels // 32)
    centered = groups - groups.mean((1, 3), keepdims=True)
    normalized = centered / np.sqrt(np.square(centered).mean((1, 3), keepdims=True) + 1e-5)
    return normalized.reshape(h.shape) * f64(norm.scale) + f64(norm.bias)


def linear64(layer, h):
    return h @ f64(layer.kernel) + f64(layer.bias)


def conv64(layer, h):
    kernel = f64(layer.kernel)
    taps, spatial = kernel.shape[:-2], h.shape[1:-1]
    padded = np.pad(h, [(0, 0), *((size // 2, size // 2) for size in taps), (0, 0)])
    out = np.zeros((*h.shape[:-1], kernel.shape[-1])) + f64(layer.bias)
    for tap in np.ndindex(*taps):
        window = tuple(slice(start, start + size) for start, size in zip(tap, spatial, strict=True))
        out += padded[(slice(None), *window)] @ kernel[tap]
    return out


def downsample64(h):
    rank = h.ndim - 2
    corners = [h[(slice(None), *(slice(start, None, 2) for start in corner))] for corner in np.ndindex(*(2,) * rank)]
    return sum(corners) / 2**rank


def upsample64(h):
    for axis in range(1, h.ndim - 1):
        h = np.repeat(h, 2, axis)
    return h


def attention64(attention, num_heads, h):
    n, channels = h.shape[0], h.shape[-1]
    d = channels // num_heads
    qkv = linear64(attention.qkv, group_norm64(attention.norm, h)).reshape(n, -1, 3 * channels)
    attended = np.zeros((n, qkv.shape[1], channels))
    for sample in range(n):
        for head in range(num_heads):
            q, k, v = np.split(qkv[sample, :, 3 * d * head : 3 * d * (head + 1)], 3, axis=-1)
            for query in range(len(q)):
                weights = np.exp(k @ q[query] / math.sqrt(d))
                attended[sample, query, d * head : d * (head + 1)] = weights @ v / weights.sum()
    return h + linear64(attention.out, attended).reshape(h.shape)


def adagn64(norm, h, t_scale, t_shift, z_scale):
    over_space = (slice(None), *(None,) * (h.ndim - 2))
    h = group_norm64(norm, h) * (1 + t_scale[over_space]) + t_shift[over_space]
    return h if z_scale is None else h * (1 + z_scale[over_space])


def res_block64(block, x, embedding=None, z=None, resample=None, num_heads=1):
    resampled = {None: lambda h: h, "down": downsample64, "up": upsample64}[resample]
    h = conv64(block.conv1, resampled(silu64(group_norm64(block.norm1, x))))
    if embedding is not None:
        t_scale, t_shift = np.split(linear64(block.time_proj, silu64(embedding)), 2, axis=-1)
        z_scale = None if z is None else linear64(block.z_proj, silu64(z))
        h = conv64(block.conv2, silu64(adagn64(block.norm2, h, t_scale, t_shift, z_scale)))
    x = resampled(x)
    h = h + (x if block.skip is None else conv64(block.skip, x))
    return h if block.attention is None else attention64(block.attention, num_heads, h)


def timestep_embedding64(t, dim):
    angles = np.asarray(t, np.float64)[:, None] / 10000.0 ** (np.arange(dim // 2) / (dim // 2))
    return np.concatenate([np.cos(angles), np.sin(angles)], axis=-1)


def unet64(unet, x_t, t, z, num_levels, num_res_blocks=2):
    """The UNet as in the paper: per level two blocks down, three up, each with a skip."""
    psi = timestep_embedding64(t, unet.base_channels)
    embedding = linear64(unet.time_out, silu64(linear64(unet.time_in, psi)))
    down, up = iter(unet.down), iter(unet.up)
    h = conv64(unet.conv_in, x_t)
    skips = [h]
    for level in range(num_levels):
        for index in range(num_res_blocks + (level > 0)):
            resample = "down" if level and not index else None
            h = res_block64(next(down), h, embedding, z, resample)
            skips.append(h)
    for block in unet.middle:
        h = res_block64(block, h, embedding, z)
    for level in reversed(range(num_levels)):
        for _ in range(num_res_blocks + 1):
            h = res_block64(next(up), np.concatenate([h, skips.pop()], axis=-1), embedding, z)
        if level:
            h = res_block64(next(up), h, embedding, z, "up")
    assert not skips
    assert not [*down, *up]
    return conv64(unet.conv_out, silu64(group_norm64(unet.norm_out, h)))


def encoder64(encoder, x_0, num_levels):
    blocks = iter(encoder.blocks)
    h = conv64(encoder.conv_in, x_0)
    for level in range(num_levels):
        for index in range(2 + (level > 0)):
            h = res_block64(next(blocks), h, resample="down" if level and not index else None)
    for _ in range(2):
        h = res_block64(next(blocks), h)
    assert not [*blocks]
    return linear64(encoder.out, silu64(group_norm64(encoder.norm_out, h)).mean(tuple(range(1, h.ndim - 1))))


# Sizes and costs that are published.


def num_parameters(params):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


@cache
def paper_model(name, variant=None):
    """Graph and parameter shapes of the model of a config file."""
    config = runpy.run_path(str(CONFIGS / f"{name}.py"))["get_config"](variant)
    return abstract_model(builder(config, "float32"))


@pytest.mark.parametrize(
    ("name", "whole", "encoder", "baseline"),
    [
        ("ffhq64", "90.84", "19.32", "67.84"),
        ("ffhq128", "128.55", "24.67", "98.62"),
        ("ffhq256", "168.49", "30.15", "131.71"),
    ],
)
def test_parameter_counts_equal_the_official_networks(name, whole, encoder, baseline):
    (_, params), (_, baseline_params) = paper_model(name), paper_model(name, "ddim")
    counts = [num_parameters(tree) / 1e6 for tree in (params, params["encoder"], baseline_params)]
    assert [f"{count:.2f}" for count in counts] == [whole, encoder, baseline]


def images128(n, dtype=jnp.float32):
    return jax.ShapeDtypeStruct((n, 128, 128, 3), dtype)


def gigaflops(function, *shapes):
    """XLA's count for a function that is lowered and never compiled."""
    return jax.jit(function).lower(*shapes).cost_analysis()["flops"] / 1e9


def test_forward_flops_of_ffhq128_are_those_of_the_official_networks():
    graphdef, params = paper_model("ffhq128")
    t, z = jax.ShapeDtypeStruct((1,), jnp.int32), jax.ShapeDtypeStruct((1, 512), jnp.float32)
    encoder = gigaflops(lambda params, x_0: nnx.merge(graphdef, params).encode(x_0), params, images128(1))
    unet = gigaflops(lambda params, *args: nnx.merge(graphdef, params)(*args), params, images128(1), t, z)

    def autoencoder(params, x_0, x_t, t):
        model = nnx.merge(graphdef, params)
        return model(x_t, t, model.encode(x_0))

    whole = gigaflops(autoencoder, params, images128(1), images128(1), t)
    assert (encoder, unet, whole) == pytest.approx((19.0, 147.7, 166.7), rel=0.03)


@pytest.mark.long  # the cost of each network is that of the test above
def test_training_flops_of_ffhq128_are_three_times_the_forward_ones():
    graphdef, params = paper_model("ffhq128")
    optimizer = make_optimizer(1e-4)
    loss_fn = autoencoder_loss(graphdef, Process("linear"))
    step = partial(train_step, loss_fn=loss_fn, optimizer=optimizer, ema_decay=0.9999, max_grad_norm=1.0)
    state = jax.eval_shape(lambda params: TrainState.create(params, optimizer), params)
    key = jax.eval_shape(jax.random.key, 0)
    per_image = gigaflops(step, state, {"image": images128(8, jnp.uint8)}, key) / 8
    assert per_image == pytest.approx(500, rel=0.03)


def test_multiply_adds_of_ffhq128_equal_the_official_networks():
    """Counts from the layers, including padding, as profilers of other frameworks do."""
    graphdef, params = paper_model("ffhq128")
    t, z = jax.ShapeDtypeStruct((1,), jnp.int32), jax.ShapeDtypeStruct((1, 512), jnp.float32)

    def flops(function, *shapes):
        total = 0
        for equation in equations(jax.make_jaxpr(function)(*shapes).jaxpr):
            if equation.primitive.name == "conv_general_dilated":
                *taps_and_inputs, _ = equation.invars[1].aval.shape  # channels last
                total += 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(taps_and_inputs)
            elif equation.primitive.name == "dot_general":
                (contracted, _), _ = equation.params["dimension_numbers"]
                summed = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
                total += 2 * math.prod(equation.outvars[0].aval.shape) * summed
        return f"{total / 1e9:.1f}"

    assert flops(lambda params, x_0: nnx.merge(graphdef, params).encode(x_0), params, images128(1)) == "19.0"
    assert flops(lambda params, *args: nnx.merge(graphdef, params)(*args), params, images128(1), t, z) == "147.7"


# Blocks.


@pytest.mark.parametrize(
    ("mean", "tolerance"),
    [(0, 1e-6), (3, 1e-6), (30, 5e-6), (300, 5e-5)],  # what remains is the rounding of h itself
)
@pytest.mark.parametrize("shape", [(2, 40, 64), (3, 8, 8, 32), (2, 4, 4, 4, 96)])
def test_groupnorm_equals_float64_reference(shape, mean, tolerance):
    norm = filled(partial(GroupNormOf, shape[-1])).norm
    h = normal(*shape) + np.float32(mean)
    assert relative_error(compiled(norm)(h), group_norm64(norm, h.astype(np.float64))) < tolerance


class GroupNormOf(nnx.Module):
    def __init__(self, channels, rngs):
        self.norm = GroupNorm(channels)


def test_groupnorm_of_bfloat16_takes_its_statistics_in_float32():
    norm = filled(partial(GroupNormOf, 32)).norm
    h = jnp.asarray(normal(2, 64, 64, 32) + 4, jnp.bfloat16)
    normalized = compiled(norm)(h)
    assert normalized.dtype == jnp.bfloat16
    expected = group_norm64(norm, np.asarray(h, np.float64))
    assert relative_error(normalized, expected) < 2e-3  # the rounding of the result; of the statistics it is 1e-2
    assert abs(np.asarray(normalized, np.float64).mean() - expected.mean()) < 1e-4


@pytest.mark.parametrize("rows", [1, 3], ids=["one time step for all", "one time step a sample"])
@pytest.mark.parametrize("with_z", [True, False], ids=["z", "baseline"])
def test_adagn_equals_equation_7_step_by_step(rows, with_z):
    norm = filled(partial(GroupNormOf, 64)).norm
    h, time = normal(3, 4, 6, 64), normal(rows, 128, seed=2)
    z_scale = normal(3, 64, seed=3) if with_z else None
    t_scale, t_shift = time[:, :64].astype(np.float64), time[:, 64:].astype(np.float64)
    graphdef, params = split(norm)
    fused = jax.jit(lambda params, *args: adagn_silu(nnx.merge(graphdef, params), *args))(params, h, time, z_scale)
    expected = silu64(adagn64(norm, h.astype(np.float64), t_scale, t_shift, z_scale))
    assert relative_error(fused, expected) < 1e-6


@pytest.mark.parametrize("dim", [32, 128])
def test_timestep_embedding_equals_float64_reference(dim):
    t = np.arange(1000, dtype=np.int32)
    embedding = np.asarray(jax.jit(timestep_embedding, static_argnums=1)(t, dim))
    np.testing.assert_allclose(embedding, timestep_embedding64(t, dim), atol=1e-4)  # angles to 999 in float32
    assert (embedding[0, : dim // 2] == 1).all()  # cosines first
    assert (embedding[0, dim // 2 :] == 0).all()


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_resampling_equals_reference_in_each_rank(rank):
    h = normal(2, *(4, 6, 8)[:rank], 5)
    np.testing.assert_allclose(jax.jit(downsample)(h), downsample64(h), atol=1e-6)
    np.testing.assert_array_equal(jax.jit(upsample)(h), upsample64(h))


@pytest.mark.parametrize("num_heads", [1, 2])
@pytest.mark.parametrize("spatial", [(5,), (3, 4)])
def test_attention_equals_loop_over_heads_and_positions(num_heads, spatial):
    attention = filled(partial(Attention, 64, num_heads=num_heads, dtype=None))
    h = normal(2, *spatial, 64)
    expected = attention64(attention, num_heads, h.astype(np.float64))
    assert relative_error(expected, h) > 0.1  # attention takes part
    assert relative_error(compiled(attention)(h), expected) < 1e-6


@pytest.mark.parametrize(
    ("channels", "settings"),
    [
        ((32, 32), dict(rank=2, embed_dim=24, z=True)),
        ((32, 64), dict(rank=2, embed_dim=24, z=True, num_heads=2)),
        ((64, 32), dict(rank=2, embed_dim=24)),
        ((32, 32), dict(rank=2, embed_dim=24, z=True, resample="down")),
        ((32, 32), dict(rank=1, embed_dim=24, z=True, resample="up")),
        ((32, 64), dict(rank=2)),
        ((32, 32), dict(rank=3, resample="down")),
    ],
    ids=["same", "wider, attention", "narrower, no z", "down", "up, rank 1", "first half", "first half, down, rank 3"],
)
def test_resblock_equals_float64_reference(channels, settings):
    settings = dict(settings)
    z_proj = (lambda channels, rngs: linear(8, channels, rngs=rngs)) if settings.pop("z", False) else None
    block = filled(partial(ResBlock, *channels, z_proj=z_proj, **settings))
    x = normal(2, *(4, 6, 2)[: settings["rank"]], channels[0])
    embedding = normal(2, 24, seed=2).astype(np.float64) if "embed_dim" in settings else None
    z = normal(2, 8, seed=3).astype(np.float64) if z_proj is not None else None
    t_scale_shift = None if embedding is None else linear64(block.time_proj, silu64(embedding)).astype(np.float32)
    z_scale = None if z is None else linear64(block.z_proj, silu64(z)).astype(np.float32)
    num_heads = settings.get("num_heads", 1)
    expected = res_block64(block, x.astype(np.float64), embedding, z, settings.get("resample"), num_heads)
    assert relative_error(compiled(block)(x, t_scale_shift, z_scale), expected) < 1e-6


@pytest.mark.parametrize("spatial", [(1,), (2,), (2, 2), (1, 2), (2, 1, 2), (2, 2, 2), (2, 3), (4,)], ids=str)
def test_convolution_of_the_smallest_maps_is_one_matrix_product(spatial):
    layer = conv(5, 7, rank=len(spatial), rngs=nnx.Rngs(0))
    h = normal(3, *spatial, 5)
    operations = [equation.primitive.name for equation in equations(jax.make_jaxpr(layer)(h).jaxpr)]
    assert operations.count("conv_general_dilated") == (max(spatial) > 2)
    assert operations.count("dot_general") == (max(spatial) <= 2)
    assert relative_error(layer(h), conv64(layer, h.astype(np.float64))) < 1e-6


# Initialization.


@pytest.mark.parametrize(
    ("layer", "fan_in"),
    [
        (partial(linear, 100, 300), 100),
        (partial(conv, 40, 200, rank=1), 120),
        (partial(conv, 20, 300, rank=2), 180),
        (partial(conv, 20, 200, rank=3, size=1), 20),
    ],
    ids=["linear", "conv rank 1", "conv rank 2", "conv 1x1x1"],
)
def test_layers_start_uniform_within_the_inverse_root_of_fan_in(layer, fan_in):
    layer = layer(rngs=nnx.Rngs(0))
    bound = 1 / math.sqrt(fan_in)
    for variable in (layer.kernel, layer.bias):
        values = f64(variable)
        assert 0.98 * bound < np.abs(values).max() <= bound * (1 + 1e-6)
        assert values.std() == pytest.approx(bound / math.sqrt(3), rel=0.01 if values.ndim > 1 else 0.1)
        assert abs(values.mean()) < 4 * bound / math.sqrt(3 * values.size)


@pytest.fixture(scope="module")
def fresh():
    """A model of one level, as it is initialized."""
    return tiny(**ONE_LEVEL)(rngs=nnx.Rngs(0))


def test_every_parameter_starts_as_the_official_framework_does(fresh):
    leaves = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(split(fresh)[1])}
    zeros = 0
    for name, leaf in leaves.items():
        if "norm" in name:
            assert (leaf == (1 if "scale" in name else 0)).all(), name
        elif any(layer in name for layer in ("conv2", "conv_out", "['attention']['out']")):
            assert (leaf == 0).all(), name
            zeros += 1
        else:
            kernel = leaves[name.replace("'bias'", "'kernel'")]
            bound = 1 / math.sqrt(math.prod(kernel.shape[:-1]))
            assert 0.5 * bound < jnp.abs(leaf).max() <= bound * (1 + 1e-6), name
            assert len(np.unique(leaf)) > 0.9 * leaf.size, name
    unet, encoder = fresh.unet, fresh.encoder
    attentions = [block for block in (*unet.blocks, *encoder.blocks) if block.attention is not None]
    assert zeros == 2 * (len(unet.blocks) + 1 + len(attentions))  # kernel and bias of each


def test_fresh_unet_predicts_exactly_zero(fresh):
    eps = compiled(fresh)(normal(2, 4, 4, 3), np.array([0, 999]), normal(2, 16))
    np.testing.assert_array_equal(eps, np.zeros((2, 4, 4, 3)))


def test_modules_hold_parameters_only(fresh):
    _, params, rest = nnx.split(fresh, nnx.Param, ...)
    assert jax.tree.leaves(rest) == []
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}


# Whole networks.


@pytest.fixture(scope="module")
def model():
    """The tiny model with every parameter random."""
    return filled(tiny())


@pytest.fixture(scope="module")
def unet(model):
    """Its UNet, compiled for batches of two."""
    return compiled(model)


X_T, Z, T = jnp.asarray(normal(2, 8, 8, 3)), jnp.asarray(normal(2, 16, seed=2)), jnp.array([7, 912])


def test_unet_equals_float64_reference(model, unet):
    eps = unet(X_T, T, Z)
    assert eps.dtype == jnp.float32
    expected = unet64(model.unet, np.asarray(X_T, np.float64), T, np.asarray(Z, np.float64), num_levels=2)
    assert relative_error(eps, expected) < 1e-5


def test_encoder_equals_float64_reference(model):
    z = compiled(model.encoder)(X_T)
    assert z.dtype == jnp.float32
    assert relative_error(z, encoder64(model.encoder, np.asarray(X_T, np.float64), num_levels=2)) < 1e-5


@pytest.mark.parametrize(
    ("image_shape", "num_res_blocks"),
    [((16, 1), 1), pytest.param((16, 1), 3, marks=pytest.mark.long), ((4, 4, 4, 5), 1)],
    ids=["signal of one channel", "signal, more blocks", "volume of five channels"],
)
def test_baseline_equals_float64_reference_in_other_ranks(image_shape, num_res_blocks):
    sizes = dict(image_shape=image_shape, channel_mults=(1, 1), num_res_blocks=num_res_blocks)
    model = filled(tiny(**sizes, z_dim=None))
    x_t = normal(2, *image_shape)
    expected = unet64(model.unet, x_t.astype(np.float64), T, None, 2, num_res_blocks)
    assert relative_error(compiled(model)(x_t, T), expected) < 1e-5


@pytest.mark.parametrize("channels", [1, 2, 5])
@pytest.mark.parametrize("spatial", [(8,), (8, 4), (8, 4, 2)])
def test_images_of_any_rank_and_channels_pass(spatial, channels):
    levels = dict(channel_mults=(1,), encoder_channel_mults=(1, 1), num_res_blocks=1)
    graphdef, params = abstract_model(lambda rngs: tiny(image_shape=(*spatial, channels), **levels)(rngs=rngs))

    def forward(params, x_0, x_t, t):
        model = nnx.merge(graphdef, params)
        z = model.encode(x_0)
        return z, model(x_t, t, z)

    x = jax.ShapeDtypeStruct((3, *spatial, channels), jnp.float32)
    z, eps = jax.eval_shape(forward, params, x, x, jax.ShapeDtypeStruct((3,), jnp.int32))
    assert (z.shape, z.dtype) == ((3, 16), jnp.float32)
    assert (eps.shape, eps.dtype) == (x.shape, jnp.float32)


def test_each_level_has_the_stated_number_of_blocks():
    levels = dict(channel_mults=(1, 2, 2), encoder_channel_mults=(1, 2))
    for number in (1, 2, 3):
        model = structure(tiny(**levels, num_res_blocks=number))
        assert len(model.unet.down) == 3 * number + 2  # with those that change the size
        assert len(model.unet.up) == 3 * (number + 1) + 2
        assert len(model.encoder.blocks) == 2 * number + 1 + 2  # with the middle


def test_baseline_has_neither_encoder_nor_z():
    model = structure(tiny(z_dim=None))
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(split(model)[1])]
    assert model.encoder is None
    assert model.encode(X_T) is None
    assert not [path for path in paths if "z_proj" in path or "encoder" in path]


def test_attention_is_at_listed_resolutions_and_once_in_the_middle():
    mults = dict(channel_mults=(1, 2, 2), encoder_channel_mults=(1, 2, 2))
    model = structure(tiny(**mults, image_shape=(8, 4, 3), attention_resolutions=(4,)))  # the larger side counts

    def has_attention(blocks):
        return "".join("A" if block.attention is not None else "." for block in blocks)

    assert has_attention(model.unet.down) == "..  .AA  ...".replace(" ", "")
    assert has_attention(model.unet.middle) == "A."
    assert has_attention(model.unet.up) == "....  AAA.  ...".replace(" ", "")
    assert has_attention(model.encoder.blocks) == "..  .AA  ...  A.".replace(" ", "")
    nowhere = structure(tiny(**mults, z_dim=None, attention_resolutions=()))
    assert has_attention(nowhere.unet.blocks).count("A") == 1
    everywhere = structure(tiny(**mults, z_dim=None, attention_resolutions=(8, 4, 2)))
    assert has_attention(everywhere.unet.blocks).count("A") == 3 * 2 + 1 + 3 * 3


GRID = jnp.arange(0, 1000, 100)


def test_noise_predictor_equals_plain_call_at_every_step(model, unet):
    graphdef, params = split(model)
    predict = jax.jit(lambda params, x_t, t, z: nnx.merge(graphdef, params).noise_predictor(GRID, z)(x_t, t), **QUICKLY)
    for t in GRID:
        assert relative_error(predict(params, X_T, t, Z), unet(X_T, np.full(2, t), Z)) < 1e-6
    assert np.isnan(predict(params, X_T, np.int32(GRID[0] + 1), Z)).all(), "a step outside the grid must not pass"


def test_sampling_loop_computes_only_what_depends_on_x_t(model):
    graphdef, params = split(model)

    def loop(params, x_T, z):
        eps_fn = nnx.merge(graphdef, params).noise_predictor(GRID, z)
        return lax.scan(lambda x, t: (eps_fn(x, t), None), x_T, GRID)[0]

    def once(params, x_t, t, z):
        return nnx.merge(graphdef, params)(x_t, t, z)

    outer = jax.make_jaxpr(loop)(params, X_T, Z).jaxpr
    (scan,) = [equation for equation in equations(outer) if equation.primitive.name == "scan"]
    body = primitives(scan.params["jaxpr"])
    plain = primitives(jax.make_jaxpr(once)(params, X_T, T, Z).jaxpr)
    num_blocks, num_attentions = 14, 6
    assert body.count("dot_general") == 4 * num_attentions  # q k v, logits, average, out
    assert plain.count("dot_general") == 4 * num_attentions + 2 * num_blocks + 2  # time and z of each block, time MLP
    assert body.count("conv_general_dilated") == plain.count("conv_general_dilated")
    assert not {"cos", "sin"} & set(body)


# Dropout.


@pytest.fixture(scope="module")
def small():
    """A model of one level with every parameter random, for 4x4 images."""
    return filled(SMALL)


SMALL = tiny(**ONE_LEVEL, attention_resolutions=(4,))


@pytest.fixture(scope="module")
def small_network(small):
    return compiled(small)


def test_dropout_zeroes_at_its_rate_and_keeps_the_expectation():
    rate, shape = 0.1, (8, 100, 100)
    keys = jax.random.split(jax.random.key(0), shape[0])
    dropped = np.asarray(jax.jit(dropout, static_argnums=1)(np.ones(shape, np.float32), rate, keys))
    deviation = math.sqrt(rate * (1 - rate) / dropped.size)
    assert abs((dropped == 0).mean() - rate) < 4 * deviation
    assert abs(dropped.mean(dtype=np.float64) - 1) < 4 * deviation / (1 - rate)
    np.testing.assert_allclose(dropped[dropped != 0], 1 / (1 - rate), rtol=1e-6)
    per_sample = (dropped == 0).mean((1, 2))
    assert len(np.unique(per_sample)) > 1
    assert (abs(per_sample - rate) < 5 * deviation * math.sqrt(shape[0])).all()


def test_dropout_mask_of_a_sample_depends_on_its_key_alone():
    keys = jax.random.split(jax.random.key(0), 4)
    h = jnp.asarray(normal(4, 5, 7))
    drop = jax.jit(dropout, static_argnums=1)
    whole = np.asarray(drop(h, 0.5, keys))
    for order in ([2], [3, 1], [1, 0, 3, 2]):
        order = jnp.array(order)
        np.testing.assert_array_equal(drop(h[order], 0.5, keys[order]), whole[order])
    assert not ((whole == 0) == (whole == 0)[0]).all()


def test_dropout_in_the_unet_is_each_samples_own(small, small_network):
    keys, others = jax.random.split(jax.random.key(0)), jax.random.split(jax.random.key(1))
    x_t, z = X_T[:, ::2, ::2], Z
    without = small_network(x_t, T, z)
    dropped = small_network(x_t, T, z, keys)
    mixed = jnp.stack([keys[0], others[1]])
    changed = small_network(x_t.at[1].multiply(2), T.at[1].set(3), z.at[1].multiply(-1), mixed)
    np.testing.assert_array_equal(changed[0], dropped[0])
    assert relative_error(changed[1], dropped[1]) > 0.1
    assert relative_error(dropped, without) > 0.1  # without keys nothing is dropped
    assert relative_error(small_network(x_t, T, z, others)[0], dropped[0]) > 0.1


def test_each_block_of_the_unet_draws_its_own_masks(small):
    keys = jax.random.split(jax.random.key(0))
    modulations = small.unet._modulations(small.unet.time_modulation(T), None, keys)
    of_blocks = np.array([jax.random.key_data(keys_of_block) for *_, keys_of_block in modulations])
    assert len(of_blocks) == len(small.unet.blocks)
    assert len(np.unique(of_blocks.reshape(-1, 2), axis=0)) == 2 * len(of_blocks)


# Memory and precision.


def test_remat_changes_memory_and_not_gradients():
    x_t, t = jnp.asarray(normal(16, 16, 16, 3)), jnp.arange(16)
    gradients, kept_bytes, compiled_bytes = {}, {}, {}
    for remat in (False, True):
        settings = dict(image_shape=(16, 16, 3), base_channels=32, channel_mults=(1,))
        sizes = dict(embed_dim=32, attention_resolutions=(), condition=None)
        graphdef, params = split(filled(partial(UNet, **settings, **sizes, remat=remat)))

        def loss(params, graphdef=graphdef):
            return jnp.square(nnx.merge(graphdef, params)(x_t, t)).mean()

        kept = jax.tree.leaves(jax.eval_shape(lambda params, loss=loss: jax.vjp(loss, params)[1], params))
        kept_bytes[remat] = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in kept)
        gradient = jax.jit(jax.grad(loss)).lower(params).compile()
        compiled_bytes[remat] = gradient.memory_analysis().temp_size_in_bytes
        gradients[remat] = ravel_pytree(gradient(params))[0]
    assert kept_bytes[True] < 0.25 * kept_bytes[False]  # without remat, too, only the input of a norm is kept
    if jax.__version_info__ >= (0, 12):  # before, the CPU compiler reused no memory of recomputed activations
        assert compiled_bytes[True] < 0.75 * compiled_bytes[False]
    assert relative_error(gradients[True], gradients[False]) < 1e-6


def forward_of(graphdef):
    def forward(params, x_0, x_t, t, z):
        model = nnx.merge(graphdef, params)
        return model.encode(x_0), model(x_t, t, z)

    return forward


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [pytest.param(jnp.bfloat16, 0.03, marks=pytest.mark.long), (jnp.float16, 0.004)]
)
def test_half_precision_results_are_float32_and_close(small, small_network, dtype, tolerance):
    graphdef, _ = abstract_model(lambda rngs: SMALL(dtype=dtype, rngs=rngs))
    x = X_T[:, ::2, ::2]
    z, eps = jax.jit(forward_of(graphdef), **QUICKLY)(split(small)[1], x, x, T, Z)
    for actual, expected in ((z, compiled(small.encoder)(x)), (eps, small_network(x, T, Z))):
        assert actual.dtype == jnp.float32
        assert relative_error(actual, expected) < tolerance


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_reaches_every_convolution_and_no_parameter(dtype):
    graphdef, params = abstract_model(lambda rngs: tiny(dtype=dtype)(rngs=rngs))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    jaxpr = jax.make_jaxpr(forward_of(graphdef))(params, X_T, X_T, T, Z).jaxpr
    convolutions = [equation for equation in equations(jaxpr) if equation.primitive.name == "conv_general_dilated"]
    assert {operand.aval.dtype for equation in convolutions for operand in equation.invars} == {jnp.dtype(dtype)}


# What cannot be built is said.


@pytest.mark.parametrize(
    ("changes", "numbers"),
    [
        (dict(base_channels=48), ["48", "32"]),
        (dict(base_channels=16, channel_mults=(2, 3)), ["48", "32"]),
        (dict(image_shape=(12, 12, 3), channel_mults=(1, 1, 1, 1)), ["(12, 12)", "3", "8"]),
        (dict(image_shape=(8, 6, 3), encoder_channel_mults=(1, 1, 1)), ["(8, 6)", "2", "4"]),
        (dict(image_shape=(8,)), ["1", "3", "(8,)"]),
        (dict(image_shape=(2, 2, 2, 2, 1)), ["1", "3", "(2, 2, 2, 2, 1)"]),
        (dict(num_heads=3), ["64", "3"]),
    ],
    ids=["groups", "groups of a level", "size of the UNet", "size of the encoder", "no axis", "four axes", "heads"],
)
def test_impossible_models_are_refused_in_one_sentence_with_the_numbers(changes, numbers):
    with pytest.raises(ValueError) as raised:  # noqa: PT011
        structure(tiny(**changes))
    message = str(raised.value)
    assert message.count(". ") <= 1
    assert message.endswith(".")
    assert all(number in message for number in numbers)


@pytest.mark.parametrize(("num_layers", "millions"), [(10, 54.11), (20, 117.11)])
def test_latent_mlp_has_the_official_number_of_parameters(num_layers, millions):
    _, params = abstract_model(lambda rngs: LatentMLP(z_dim=512, num_layers=num_layers, width=2048, rngs=rngs))
    assert round(sum(leaf.size for leaf in jax.tree.leaves(params)) / 1e6, 2) == millions


def test_latent_mlp_is_what_the_paper_draws():
    """Fig. 8 in float64: all layers but the first see the input; time scales all but the last."""
    model = LatentMLP(z_dim=6, num_layers=3, width=10, rngs=nnx.Rngs(0))
    z, t = jax.random.normal(jax.random.key(1), (2, 6)), jnp.asarray([7, 900])
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), split(model)[1])

    def dense(x, layer):
        return x @ layer["kernel"] + layer["bias"]

    def silu(x):
        return x / (1 + np.exp(-x))

    angles = np.asarray(t)[:, None] * 10000.0 ** (-np.arange(32) / 32)
    embedding = np.concatenate([np.cos(angles), np.sin(angles)], axis=-1)
    embedding = dense(silu(dense(embedding, p["time_in"])), p["time_out"])
    x = np.asarray(z, np.float64)
    h = x
    for i in range(2):
        inputs = x if i == 0 else np.concatenate([h, x], axis=-1)
        h = dense(inputs, p["layers"][i]["linear"]) * (1 + dense(silu(embedding), p["layers"][i]["time_proj"]))
        h = (h - h.mean(-1, keepdims=True)) / np.sqrt(h.var(-1, keepdims=True) + 1e-5)
        h = silu(h * p["layers"][i]["norm"]["scale"] + p["layers"][i]["norm"]["bias"])
    expected = dense(np.concatenate([h, x], axis=-1), p["out"])
    np.testing.assert_allclose(compiled(model)(z, t), expected, rtol=1e-4, atol=1e-5)
    eps_fn = jax.jit(model.noise_predictor(t), **QUICKLY)
    np.testing.assert_allclose(eps_fn(z, 900)[1], expected[1], rtol=1e-4, atol=1e-5)
    assert np.isnan(eps_fn(z, 8)).all()


def test_networks_of_equal_configs_are_built_once_and_given_to_each_caller_as_a_copy(tiny_config, monkeypatch):
    built = []
    initialize = UNet.__init__
    monkeypatch.setattr(UNet, "__init__", lambda *args, **settings: (built.append(1), initialize(*args, **settings))[1])
    tiny_config.model.z_dim = 7  # of no other test
    graphdef, params = abstract_model(builder(tiny_config, "float32"))
    params["unet"].clear()
    again = abstract_model(builder(tiny_config, "float32"))
    assert again[0] is graphdef
    assert again[1]["unet"]
    assert len(built) == 1
    tiny_config.model.z_dim = 6
    wider = abstract_model(builder(tiny_config, "float32"))[1]
    assert len(built) == 2
    assert jax.tree.map(jnp.shape, wider) != jax.tree.map(jnp.shape, again[1])
