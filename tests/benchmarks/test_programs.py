"""The programs that the benchmarks time: what they compute, and their times for those who ask.

pytest tests/benchmarks --benchmark-enable
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffae_jax.config import from_file
from diffae_jax.diffusion.process import image_process
from diffae_jax.inference import programs
from diffae_jax.models import abstract_model
from diffae_jax.models.build import builder
from diffae_jax.models.functional import init_params
from diffae_jax.plan.compiling import inference_arguments
from diffae_jax.runtime.sharding import make_mesh
from diffae_jax.stages.autoencoder import autoencoder_loss, autoencoder_program
from tests.jaxprs import flops

# GFLOP of an image: the encoder, the UNet, and a training step (three passes), from counting the
# layers of the paper's Table 5 by hand.
COSTS = {"ffhq64": (3.1, 26.7, 89), "ffhq128": (19.0, 147.7, 500), "ffhq256": (70.8, 554.4, 1876)}


LARGE = [pytest.param(name, marks=pytest.mark.long) for name in ("ffhq128", "ffhq256")]
TINY = "tests/tiny.py"


@pytest.fixture(scope="module")
def one_device():
    return make_mesh(jax.devices()[:1])


@functools.cache
def config_of(name, steps):
    config = from_file(name)
    config.train.precision = "float32"
    config.train.update(batch_size=2)
    config.evaluation.num_code_steps = steps
    return config


def traced(mesh, name, program, steps):
    arguments = inference_arguments(config_of(name, steps), mesh, program, batch=1)
    arrays = {key: arguments.pop(key) for key in ("params", "images", "x_T", "z") if key in arguments}
    function = functools.partial(getattr(programs, program), **arguments)
    return jax.make_jaxpr(lambda arrays: function(**arrays))(arrays).jaxpr


@pytest.mark.parametrize(
    "name", ["ffhq64", *(pytest.param(name, marks=pytest.mark.long) for name in ("ffhq128", "ffhq256"))]
)
def test_encoding_and_decoding_cost_what_the_networks_cost(one_device, name):
    encoder, unet, _ = (1e9 * cost for cost in COSTS[name])
    assert flops(traced(one_device, name, "encode", 1)) == pytest.approx(encoder, rel=0.03)
    per_step = {steps: flops(traced(one_device, name, "decode", steps)) / steps for steps in (1, 10)}
    assert per_step[10] == pytest.approx(unet, rel=0.03)
    assert per_step[10] <= per_step[1], "a step costs the UNet alone"


@pytest.mark.long
@pytest.mark.parametrize("name", ["ffhq64", "ffhq128"])
def test_training_costs_three_passes(name):
    config = config_of(name, 1)
    build = builder(config, "float32")
    graphdef, _ = abstract_model(build)
    loss_fn = autoencoder_loss(graphdef, image_process(config))
    params = jax.eval_shape(functools.partial(init_params, build), jax.random.key(0))
    batch = {"image": jax.ShapeDtypeStruct((2, *config.image_shape), jnp.uint8)}
    gradient = jax.grad(lambda *arguments: loss_fn(*arguments)[0].mean())
    counted = flops(jax.make_jaxpr(gradient)(params, batch, jax.random.split(jax.random.key(0), 2)).jaxpr)
    assert counted / 2 == pytest.approx(1e9 * COSTS[name][2], rel=0.03)


@functools.cache
def decoder(mesh, batch, steps):
    arguments = inference_arguments(config_of(TINY, steps), mesh, "decode", batch)
    return programs.decode.lower(**arguments).compile()


def test_memory_of_sampling_does_not_depend_on_the_steps(one_device):
    def growth(batch):
        few, many = (decoder(one_device, batch, steps).memory_analysis().temp_size_in_bytes for steps in (4, 40))
        return many - few

    assert growth(4) / 36 < 2_000, "the embedding of a time step, which all images share"
    assert abs(growth(16) - growth(4)) < 16 * 64 * 4, "less than the images of one step, in bytes"


def test_decoding_moves_nothing_between_host_and_devices(one_device):
    for operation in ("infeed", "outfeed", "SendDone", "RecvDone", "callback"):
        assert operation not in decoder(one_device, 4, 40).as_text(), operation


def random(info):
    if jax.dtypes.issubdtype(info.dtype, jax.dtypes.prng_key):
        return jax.random.key(0)
    return jnp.asarray(np.random.default_rng(0).uniform(0, 0.05, info.shape), info.dtype)


def test_time_of_decoding(one_device, benchmark):
    program = decoder(one_device, 4, 40)
    arguments, named = jax.tree.map(random, program.args_info)
    images = benchmark(lambda: jax.block_until_ready(program(*arguments, **named)))
    assert np.isfinite(images).all()


def test_time_of_a_training_step(one_device, benchmark):
    config = from_file(TINY)
    step = autoencoder_program(config, one_device).step
    arguments, _ = jax.tree.map(random, step.args_info)
    state = arguments[0]

    def call():
        nonlocal state
        state, metrics = jax.block_until_ready(step(state, *arguments[1:]))
        return metrics

    metrics = benchmark(call)
    assert np.isfinite(metrics["loss"])
    assert arguments[0].step.is_deleted(), "the state is donated"
