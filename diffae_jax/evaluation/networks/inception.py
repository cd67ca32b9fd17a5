"""The InceptionV3 of FID (Heusel et al., 2017), as pytorch-fid ported it from TensorFlow.

It differs from torchvision's InceptionV3: mean-pooling excludes the padding, the last block uses
max-pooling, and there are 1,008 classes. The classifier is not built; the features are its input.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jaxtyping import Array, Float, Float64

from diffae_jax.evaluation.networks.weights import read_arrays
from diffae_jax.models.functional import Params, unflatten

SIZE = 299  # pixels per axis of the images that the network was trained on
NUM_FEATURES = 2048
BATCH_NORM_EPSILON = 1e-3
BATCH_NORM = ("weight", "bias", "running_mean", "running_var")
CLASSIFIER = {"fc.weight": (1008, NUM_FEATURES), "fc.bias": (1008,)}  # in the file, but unused


class Conv(NamedTuple):
    """A convolution with batch normalization and ReLU, by its name in the file."""

    name: str
    features: int
    window: tuple[int, int] = (1, 1)
    stride: int = 1
    padded: bool = True  # with zeros, which keep the size if the stride is 1

    @property
    def padding(self) -> list[tuple[int, int]]:
        """Zeros before and after each axis."""
        return [(size // 2, size // 2) if self.padded else (0, 0) for size in self.window]


class Pool(NamedTuple):
    """A 3x3 pooling that excludes values beyond the border."""

    kind: str  # "max", or "mean" with a stride of 1
    stride: int = 1


class Block(NamedTuple):
    """Parallel branches of the same input, which are concatenated. A branch may contain blocks."""

    name: str
    branches: tuple[tuple, ...]


HALVED = {"stride": 2, "padded": False}


def _block_a(name: str, pooled: int) -> Block:
    return Block(
        name,
        (
            (Conv("branch1x1", 64),),
            (Conv("branch5x5_1", 48), Conv("branch5x5_2", 64, (5, 5))),
            (Conv("branch3x3dbl_1", 64), Conv("branch3x3dbl_2", 96, (3, 3)), Conv("branch3x3dbl_3", 96, (3, 3))),
            (Pool("mean"), Conv("branch_pool", pooled)),
        ),
    )


def _block_b(name: str) -> Block:
    return Block(
        name,
        (
            (Conv("branch3x3", 384, (3, 3), **HALVED),),
            (
                Conv("branch3x3dbl_1", 64),
                Conv("branch3x3dbl_2", 96, (3, 3)),
                Conv("branch3x3dbl_3", 96, (3, 3), **HALVED),
            ),
            (Pool("max", 2),),
        ),
    )


def _block_c(name: str, width: int) -> Block:
    row, column = (1, 7), (7, 1)
    return Block(
        name,
        (
            (Conv("branch1x1", 192),),
            (Conv("branch7x7_1", width), Conv("branch7x7_2", width, row), Conv("branch7x7_3", 192, column)),
            (
                Conv("branch7x7dbl_1", width),
                Conv("branch7x7dbl_2", width, column),
                Conv("branch7x7dbl_3", width, row),
                Conv("branch7x7dbl_4", width, column),
                Conv("branch7x7dbl_5", 192, row),
            ),
            (Pool("mean"), Conv("branch_pool", 192)),
        ),
    )


def _block_d(name: str) -> Block:
    return Block(
        name,
        (
            (Conv("branch3x3_1", 192), Conv("branch3x3_2", 320, (3, 3), **HALVED)),
            (
                Conv("branch7x7x3_1", 192),
                Conv("branch7x7x3_2", 192, (1, 7)),
                Conv("branch7x7x3_3", 192, (7, 1)),
                Conv("branch7x7x3_4", 192, (3, 3), **HALVED),
            ),
            (Pool("max", 2),),
        ),
    )


def _block_e(name: str, pool: str) -> Block:
    def cross(prefix: str) -> Block:
        return Block("", ((Conv(f"{prefix}a", 384, (1, 3)),), (Conv(f"{prefix}b", 384, (3, 1)),)))

    return Block(
        name,
        (
            (Conv("branch1x1", 320),),
            (Conv("branch3x3_1", 384), cross("branch3x3_2")),
            (Conv("branch3x3dbl_1", 448), Conv("branch3x3dbl_2", 384, (3, 3)), cross("branch3x3dbl_3")),
            (Pool(pool), Conv("branch_pool", 192)),
        ),
    )


STEPS = (
    Conv("Conv2d_1a_3x3", 32, (3, 3), **HALVED),
    Conv("Conv2d_2a_3x3", 32, (3, 3), padded=False),
    Conv("Conv2d_2b_3x3", 64, (3, 3)),
    Pool("max", 2),
    Conv("Conv2d_3b_1x1", 80),
    Conv("Conv2d_4a_3x3", 192, (3, 3), padded=False),
    Pool("max", 2),
    _block_a("Mixed_5b", 32),
    _block_a("Mixed_5c", 64),
    _block_a("Mixed_5d", 64),
    _block_b("Mixed_6a"),
    _block_c("Mixed_6b", 128),
    _block_c("Mixed_6c", 160),
    _block_c("Mixed_6d", 160),
    _block_c("Mixed_6e", 192),
    _block_d("Mixed_7a"),
    _block_e("Mixed_7b", "mean"),
    _block_e("Mixed_7c", "max"),
)


def _list_convs(steps: tuple, channels: int, prefix: str = "") -> tuple[list[tuple[str, int, Conv]], int]:
    """Returns name, input channels and settings of each convolution, and the output channels."""
    convs: list[tuple[str, int, Conv]] = []
    for step in steps:
        if isinstance(step, Conv):
            convs.append((prefix + step.name, channels, step))
            channels = step.features
        elif isinstance(step, Block):
            inner = prefix + (f"{step.name}." if step.name else "")
            branches = [_list_convs(branch, channels, inner) for branch in step.branches]
            convs += [conv for branch, _ in branches for conv in branch]
            channels = sum(features for _, features in branches)
    return convs, channels


CONVS, _ = _list_convs(STEPS, 3)


def pool(h: Float[Array, "n h w c"], step: Pool) -> Float[Array, "n new_h new_w c"]:
    """Pools 3x3 windows. Stride 1 keeps the size; stride 2 uses no padding."""
    window, strides = (1, 3, 3, 1), (1, step.stride, step.stride, 1)
    padding = "SAME" if step.stride == 1 else "VALID"
    if step.kind == "max":
        return lax.reduce_window(h, -jnp.inf, lax.max, window, strides, padding)
    within = (np.convolve(np.ones(size), np.ones(3))[1:-1] for size in h.shape[1:3])
    counts = np.outer(*within).astype(np.float32)[..., None]  # NumPy, because XLA would fold it for seconds
    return lax.reduce_window(h, 0.0, lax.add, window, strides, padding) / counts


def resize(images: Float[Array, "n h w c"]) -> Float[Array, "n new_h new_w c"]:
    """Resizes bilinearly to 299x299 as pytorch-fid does, without antialiasing."""
    rows, columns = (jnp.asarray(_resize_matrix(size), jnp.float32) for size in images.shape[1:3])
    return jnp.einsum("ih,jw,nhwc->nijc", rows, columns, images, precision=lax.Precision.HIGHEST)


def _resize_matrix(size: int) -> Float64[np.ndarray, "new old"]:
    """Returns the weight of each of `size` pixels in each of 299, with constant borders."""
    at = np.clip((np.arange(SIZE) + 0.5) * size / SIZE - 0.5, 0, size - 1)
    return np.maximum(1 - np.abs(at[:, None] - np.arange(size)), 0)


class Convolution(nnx.Module):
    """A convolution with folded batch normalization, and ReLU. Runs in float32."""

    def __init__(self, conv: Conv, channels: int, *, rngs: nnx.Rngs):
        shape = (*conv.window, channels, conv.features)
        self.stride, self.padding = conv.stride, tuple(conv.padding)
        self.kernel = nnx.Param(nnx.initializers.he_normal()(rngs.params(), shape, jnp.float32))
        self.bias = nnx.Param(jnp.zeros(conv.features, jnp.float32))

    def __call__(self, h: Float[Array, "n h w c"]) -> Float[Array, "n new_h new_w features"]:
        """Returns the activations."""
        strides, layout = (self.stride, self.stride), ("NHWC", "HWIO", "NHWC")
        h = lax.conv_general_dilated(
            h, self.kernel[...], strides, self.padding, dimension_numbers=layout, precision=lax.Precision.HIGHEST
        )
        return nnx.relu(h + self.bias[...])


class InceptionV3(nnx.Module):
    """The network up to the last pooling."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.convs = nnx.List([Convolution(conv, channels, rngs=rngs) for _, channels, conv in CONVS])

    def __call__(self, images: Float[Array, "n h w 3"]) -> Float[Array, "n 2048"]:
        """Returns the features of RGB images in [-1, 1] of at least 75x75. FID uses 299x299."""
        return _run(STEPS, images, iter(self.convs)).mean((1, 2))


def _run(steps: tuple, h: Array, convs: Iterator[Convolution]) -> Array:
    for step in steps:
        match step:
            case Conv():
                h = next(convs)(h)
            case Pool():
                h = pool(h, step)
            case Block():
                h = jnp.concatenate([_run(branch, h, convs) for branch in step.branches], axis=-1)
    return h


def file_shapes() -> dict[str, tuple[int, ...]]:
    """Returns the names and shapes of the tensors that are used from the original file."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, channels, conv in CONVS:
        shapes[f"{name}.conv.weight"] = (conv.features, channels, *conv.window)
        shapes |= {f"{name}.bn.{part}": (conv.features,) for part in BATCH_NORM}
    return shapes


def unused_shapes() -> dict[str, tuple[int, ...]]:
    """Returns names and shapes of the file's unused tensors: classifier and batch counts."""
    return CLASSIFIER | {f"{name}.bn.num_batches_tracked": () for name, _, _ in CONVS}


def read_inception(path: Path) -> Params:
    """Reads the weights of pytorch-fid's InceptionV3 in float32, and folds batch normalization in.

    Raises UserError if the file holds anything else.
    """
    arrays = read_arrays(path, file_shapes(), unused_shapes(), "InceptionV3")
    flat = {}
    for place, (name, _, _) in enumerate(CONVS):
        scale, bias, mean, variance = (arrays[f"{name}.bn.{part}"].astype(np.float64) for part in BATCH_NORM)
        scale = scale / np.sqrt(variance + BATCH_NORM_EPSILON)
        kernel = arrays[f"{name}.conv.weight"].astype(np.float64).transpose(2, 3, 1, 0) * scale
        flat[f"convs.{place}.kernel"] = kernel.astype(np.float32)
        flat[f"convs.{place}.bias"] = (bias - mean * scale).astype(np.float32)
    return unflatten(flat)
