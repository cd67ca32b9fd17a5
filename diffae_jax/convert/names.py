"""The official names of our parameters: the table that an import goes by.

Official arrays have their channels first. A kernel there is (out, in, *window) and here (*window, in, out); where the
official network has a 1x1 convolution and ours a dense layer, the window falls away.
"""

import re
from collections.abc import Callable

import numpy as np

from diffae_jax.models.functional import Params, flatten
from diffae_jax.models.unet import BLOCKS_PER_LEVEL

# Within a residual block, an attention or a layer of the latent MLP.
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

# In a file beside averaged weights and statistics, and of no use here.
UNUSED = {
    "the weights before averaging": re.compile(r"(model|classifier)\..+"),
    "second names of the latent DDIM's time projections": re.compile(
        r"ema_model\.latent_net\.layers\.\d+\.cond_layers\.1\.(weight|bias)"
    ),
    "noise for sample grids": re.compile(r"x_T"),
    "z of the training images": re.compile(r"conds"),
}
UNUSED_OF_CLASSIFIER = UNUSED | {"the autoencoder, which the classifier does not need": re.compile(r"ema_model\..+")}


def autoencoder_names(params: Params) -> dict[str, str]:
    """Returns {our flat name: official name} for encoder and UNet, given their parameters or shapes."""
    unet = params["unet"]
    time_embed = "time_embed.time_embed" if "encoder" in params else "time_embed"
    places = {
        "unet.time_in": f"{time_embed}.0",
        "unet.time_out": f"{time_embed}.2",
        "unet.conv_in": "input_blocks.0.0",
        "unet.norm_out": "out.0",
        "unet.conv_out": "out.2",
        **_sequence("unet.down", unet["down"], lambda i: (f"input_blocks.{i + 1}", 0)),
        **_sequence("unet.middle", unet["middle"], _middle),
        **_sequence("unet.up", unet["up"], lambda i: _up(i, unet["up"])),
    }
    if "encoder" in params:
        blocks = params["encoder"]["blocks"]
        num_down = len(blocks) - 2
        places |= {
            "encoder.conv_in": "encoder.input_blocks.0.0",
            "encoder.norm_out": "encoder.out.0",
            "encoder.out": "encoder.out.3",
            **_sequence(
                "encoder.blocks",
                blocks,
                lambda i: _prefixed("encoder", (f"input_blocks.{i + 1}", 0) if i < num_down else _middle(i - num_down)),
            ),
        }
    return _leaves(params, places)


def prior_names(params: Params) -> dict[str, str]:
    """Returns {our flat name: official name} for the latent DDIM, given its parameters or shapes."""
    places = {
        "time_in": "latent_net.time_embed.0",
        "time_out": "latent_net.time_embed.2",
        "out": f"latent_net.layers.{len(params['layers'])}.linear",
    }
    for i in params["layers"]:
        places |= {f"layers.{i}.{ours}": f"latent_net.layers.{i}.{theirs}" for ours, theirs in LATENT_LAYER.items()}
    return _leaves(params, places)


def to_ours(array: np.ndarray, our_name: str, shape: tuple[int, ...]) -> np.ndarray | None:
    """Brings an official array into our layout, float32; None where it does not have that shape then."""
    if our_name.endswith("kernel") and array.ndim >= 2:
        array = np.moveaxis(array, (0, 1), (-1, -2))
        while array.ndim > len(shape) and array.shape[0] == 1:
            array = array[0]
    return np.ascontiguousarray(array, np.float32) if array.shape == shape else None


def _sequence(ours: str, blocks: Params, place: Callable[[int], tuple[str, int]]) -> dict[str, str]:
    """Names the parts of a list of blocks. Officially a block is one entry of a sequence and its attention the next."""
    places = {}
    for i, block in blocks.items():
        sequence, entry = place(i)
        places |= {f"{ours}.{i}.{part}": f"{sequence}.{entry}.{theirs}" for part, theirs in RES_BLOCK.items()}
        if "attention" in block:
            theirs = f"{sequence}.{entry + 1}"
            places |= {f"{ours}.{i}.attention.{part}": f"{theirs}.{name}" for part, name in ATTENTION.items()}
    return places


def _middle(i: int) -> tuple[str, int]:
    return "middle_block", 2 * i  # block, attention, block


def _up(i: int, blocks: Params) -> tuple[str, int]:
    """The last block of a level and the upsampling after it, one more entry in our list, share an official sequence."""
    per_level = BLOCKS_PER_LEVEL + 1
    level, place = divmod(i, per_level + 1)
    if place < per_level:
        return f"output_blocks.{level * per_level + place}", 0
    return f"output_blocks.{level * per_level + per_level - 1}", 2 if "attention" in blocks[i - 1] else 1


def _prefixed(prefix: str, place: tuple[str, int]) -> tuple[str, int]:
    return f"{prefix}.{place[0]}", place[1]


def _leaves(params: Params, places: dict[str, str]) -> dict[str, str]:
    names = {}
    for ours in flatten(params):
        module, leaf = ours.rsplit(".", 1)
        names[ours] = f"{places[module]}.{LEAF[leaf]}"
    return names


# The attributes of CelebA in its own order, which is the order of the official classifier's outputs.
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
