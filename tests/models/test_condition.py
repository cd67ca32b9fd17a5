"""A second condition, z and a label, needs only one class: blocks and sampling stay unchanged."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from diffae_jax.models import DiffusionAutoencoder, split
from diffae_jax.models.condition import ZCondition
from diffae_jax.models.functional import flatten
from tests.environment import QUICKLY
from tests.jaxprs import equations

SIZES = dict(
    image_shape=(4, 4, 1),
    base_channels=32,
    channel_mults=(1,),
    encoder_channel_mults=(1,),
    attention_resolutions=(),
    embed_dim=16,
    num_res_blocks=1,
    z_dim=6,
)
GRID = jnp.arange(0, 1000, 250)


class ZAndLabel(ZCondition):
    """What is given as z is (z [N, D], label [N])."""

    def __init__(self, *, z_dim, rngs):
        super().__init__(z_dim=z_dim, rngs=rngs)
        self.labels = nnx.Embed(10, z_dim, rngs=rngs)

    def __call__(self, projections, z):
        z, label = z
        return super().__call__(projections, z + self.labels(label))


def drawn(params, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda a: a + 0.1 * rng.normal(size=a.shape).astype(np.float32), params)


def test_label_beside_z_is_a_condition_of_its_own():
    graphdef, params = split(DiffusionAutoencoder(**SIZES, condition=ZAndLabel, rngs=nnx.Rngs(0)))
    plain, plain_params = split(DiffusionAutoencoder(**SIZES, rngs=nnx.Rngs(0)))
    own = flatten(params).keys() - flatten(plain_params).keys()
    assert own == {"unet.condition.labels.embedding"}
    assert not flatten(plain_params).keys() - flatten(params).keys()
    params = drawn(params)
    embedding = params["unet"]["condition"]["labels"]["embedding"]
    same = {**params, "unet": {name: part for name, part in params["unet"].items() if name != "condition"}}
    rng = np.random.default_rng(1)
    x_t, z = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((3, 4, 4, 1), (3, 6)))
    label, t = jnp.asarray([7, 0, 7]), jnp.asarray([3, 500, 999])
    ours = jax.jit(lambda params: nnx.merge(graphdef, params)(x_t, t, (z, label)), **QUICKLY)(params)
    expected = jax.jit(lambda params: nnx.merge(plain, params)(x_t, t, z + embedding[label]), **QUICKLY)(same)
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6)
    other = jax.jit(lambda params: nnx.merge(graphdef, params)(x_t, t, (z, label + 1)), **QUICKLY)(params)
    assert np.abs(other - ours).max() > 1e-3


def test_label_is_looked_up_once_before_the_sampling_loop():
    graphdef, params = split(DiffusionAutoencoder(**SIZES, condition=ZAndLabel, rngs=nnx.Rngs(0)))

    def loop(params, x_T, z, label):
        eps_fn = nnx.merge(graphdef, params).noise_predictor(GRID, (z, label))
        return lax.scan(lambda x, t: (eps_fn(x, t), None), x_T, GRID)[0]

    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((2, 4, 4, 1), (2, 6))]
    outer = jax.make_jaxpr(loop)(params, *shapes, jax.ShapeDtypeStruct((2,), jnp.int32)).jaxpr
    (scan,) = [equation for equation in equations(outer) if equation.primitive.name == "scan"]

    def projections(jaxpr):
        """How many products there are with a matrix of the width of z."""
        dots = [equation for equation in equations(jaxpr) if equation.primitive.name == "dot_general"]
        return sum(6 in dot.invars[0].aval.shape for dot in dots)

    num_blocks = 1 + 2 + 2
    assert projections(outer) == num_blocks
    assert projections(scan.params["jaxpr"].jaxpr) == 0
