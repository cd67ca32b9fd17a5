"""Maps the names and layouts of official parameters to the names and layouts of this package.

PyTorch arrays are channels-first: a kernel is (out, in, *window) there and (*window,
in, out) here. If the official network has a 1x1 convolution and ours has a dense layer, the window
axes are dropped.
"""

import re
from collections.abc import Callable

import numpy as np

from diffae_jax.models.functional import Params, flatten

NUM_RES_BLOCKS = 2  # of each level, in all official models

# {our name: official name} in a residual block, an attention block and a latent MLP layer.
RES_BLOCK = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_proj": "emb_layers.1",
    "z_proj": "cond_emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "skip": "skip_connection",
}
ATTENTION = {"norm": "norm", "qkv": "qkv", "out": "proj_out"}
LATENT_LAYER = {"linear": "linear", "time_proj": "linear_emb", "norm": "norm"}
LEAF = {"kernel": "weight", "scale": "weight", "bias": "bias"}

STATISTICS = ("conds_mean", "conds_std")  # of z

# {reason: name pattern} of the checkpoint tensors that the import ignores.
UNUSED = {
    "weights before averaging": re.compile(r"(model|classifier)\..+"),
    "duplicate names of the latent DDIM's time projections": re.compile(
        r"ema_model\.latent_net\.layers\.\d+\.cond_layers\.1\.(weight|bias)"
    ),
    "x_T of sample grids": re.compile(r"x_T"),
    "z of the training images": re.compile(r"conds"),
}
UNUSED_OF_CLASSIFIER = UNUSED | {"weights of the autoencoder": re.compile(r"ema_model\..+")}


def autoencoder_names(params: Params) -> dict[str, str]:
    """Returns {our dotted name: official name} of encoder and UNet.

    A dotted name is a path, such as unet.down.0.conv1.kernel. `params` may hold arrays or only
    their shapes.
    """
    unet = params["unet"]
    time_embed = "time_embed.time_embed" if "encoder" in params else "time_embed"
    modules = {
        "unet.time_in": f"{time_embed}.0",
        "unet.time_out": f"{time_embed}.2",
        "unet.conv_in": "input_blocks.0.0",
        "unet.norm_out": "out.0",
        "unet.conv_out": "out.2",
        **_block_modules("unet.down", unet["down"], lambda i: (f"input_blocks.{i + 1}", 0)),
        **_block_modules("unet.middle", unet["middle"], _locate_middle),
        **_block_modules("unet.up", unet["up"], lambda i: _locate_up(i, unet["up"])),
    }
    if "encoder" in params:
        blocks = params["encoder"]["blocks"]
        num_down = len(blocks) - 2
        modules |= {
            "encoder.conv_in": "encoder.input_blocks.0.0",
            "encoder.norm_out": "encoder.out.0",
            "encoder.out": "encoder.out.3",
            **_block_modules(
                "encoder.blocks",
                blocks,
                lambda i: _prefixed(
                    "encoder", (f"input_blocks.{i + 1}", 0) if i < num_down else _locate_middle(i - num_down)
                ),
            ),
        }
    return _parameter_names(params, modules)


def prior_names(params: Params) -> dict[str, str]:
    """Returns {our dotted name: official name} of the prior (official: latent DDIM).

    `params` may hold arrays or only their shapes.
    """
    modules = {
        "time_in": "latent_net.time_embed.0",
        "time_out": "latent_net.time_embed.2",
        "out": f"latent_net.layers.{len(params['layers'])}.linear",
    }
    for i in params["layers"]:
        modules |= {f"layers.{i}.{ours}": f"latent_net.layers.{i}.{theirs}" for ours, theirs in LATENT_LAYER.items()}
    return _parameter_names(params, modules)


def to_our_layout(array: np.ndarray, our_name: str, shape: tuple[int, ...]) -> np.ndarray | None:
    """Returns an official array in our layout as float32, or None if it does not fit `shape`."""
    if our_name.endswith("kernel") and array.ndim >= 2:
        array = np.moveaxis(array, (0, 1), (-1, -2))
        while array.ndim > len(shape) and array.shape[0] == 1:
            array = array[0]
    return np.ascontiguousarray(array, np.float32) if array.shape == shape else None


def _block_modules(ours: str, blocks: Params, locate: Callable[[int], tuple[str, int]]) -> dict[str, str]:
    """Maps the modules of a list of blocks to official names.

    `locate` returns the official sequence and entry of block i.
    Officially, a block is one entry of a sequence and its attention is the next entry.
    """
    modules = {}
    for i, block in blocks.items():
        sequence, entry = locate(i)
        modules |= {f"{ours}.{i}.{part}": f"{sequence}.{entry}.{theirs}" for part, theirs in RES_BLOCK.items()}
        if "attention" in block:
            theirs = f"{sequence}.{entry + 1}"
            modules |= {f"{ours}.{i}.attention.{part}": f"{theirs}.{name}" for part, name in ATTENTION.items()}
    return modules


def _locate_middle(i: int) -> tuple[str, int]:
    return "middle_block", 2 * i  # block, attention, block


def _locate_up(i: int, blocks: Params) -> tuple[str, int]:
    """Returns the official sequence and entry of block i of the UNet's upward half.

    The last block of a level and the upsampling after it are two entries of our list. Officially
    they share one sequence.
    """
    per_level = NUM_RES_BLOCKS + 1
    level, position = divmod(i, per_level + 1)
    if position < per_level:
        return f"output_blocks.{level * per_level + position}", 0
    return f"output_blocks.{level * per_level + per_level - 1}", 2 if "attention" in blocks[i - 1] else 1


def _prefixed(prefix: str, location: tuple[str, int]) -> tuple[str, int]:
    return f"{prefix}.{location[0]}", location[1]


def _parameter_names(params: Params, modules: dict[str, str]) -> dict[str, str]:
    names = {}
    for ours in flatten(params):
        module, leaf = ours.rsplit(".", 1)
        names[ours] = f"{modules[module]}.{LEAF[leaf]}"
    return names


# In the order of the CelebA files, which is also the order of the official classifier's outputs.
CELEBA_ATTRIBUTES = (
    "5_o_Clock_Shadow",
    "Arched_Eyebrows",
    "Attractive",
    "Bags_Under_Eyes",
    "Bald",
    "Bangs",
    "Big_Lips",
    "Big_Nose",
    "Black_Hair",
    "Blond_Hair",
    "Blurry",
    "Brown_Hair",
    "Bushy_Eyebrows",
    "Chubby",
    "Double_Chin",
    "Eyeglasses",
    "Goatee",
    "Gray_Hair",
    "Heavy_Makeup",
    "High_Cheekbones",
    "Male",
    "Mouth_Slightly_Open",
    "Mustache",
    "Narrow_Eyes",
    "No_Beard",
    "Oval_Face",
    "Pale_Skin",
    "Pointy_Nose",
    "Receding_Hairline",
    "Rosy_Cheeks",
    "Sideburns",
    "Smiling",
    "Straight_Hair",
    "Wavy_Hair",
    "Wearing_Earrings",
    "Wearing_Hat",
    "Wearing_Lipstick",
    "Wearing_Necklace",
    "Wearing_Necktie",
    "Young",
)
