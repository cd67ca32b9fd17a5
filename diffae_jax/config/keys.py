"""Every setting of an experiment, declared once: its default value, its meaning and the values it may have.

A new key is one line here. `default`, `check` and `differing_keys` and the page docs/config.md are derived from it.
"""

import dataclasses
from collections.abc import Collection, Iterator
from typing import Any

from ml_collections import ConfigDict

from diffae_jax.diffusion.process import ERRORS, PARAMETERIZATIONS, WEIGHTINGS
from diffae_jax.diffusion.schedule import NUM_TIMESTEPS

KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", tuple: "a list"}


@dataclasses.dataclass(frozen=True)
class Key:
    """One setting. Its type is that of its default value.

    The elements of a list are whole numbers if they have bounds, otherwise text.
    """

    default: Any
    meaning: str
    low: int | float | None = None  # bounds of a number, or of each number in a list; both included
    high: int | float | None = None
    positive: bool = False  # a number greater than 0, without upper bound
    choices: Collection[str] = ()  # for text, or for each element of a list; a table, so that new entries count
    length: tuple[int, int] | None = None  # fewest and most elements of a list
    none: str = ""  # what None means, if the key may be None
    free: bool = False  # a run may be resumed with another value


@dataclasses.dataclass(frozen=True)
class Section:
    """Keys that belong together."""

    meaning: str
    keys: "dict[str, Key | Section]"
    free: bool = False  # all keys of the section are free


PROGRAMS = (  # of an evaluation: a file each in evaluation/programs/
    "reconstruction",
    "denoising",
    "labels",
    "variations",
    "sampling",
    "conditional",
    "neighbors",
    "out_of_distribution",
    "detection",
    "throughput",
)
MAX_LEVELS = 8  # of a network; the published ones have at most 7
MAX_PRIOR_LAYERS = 50

# Upper bounds are far beyond any network of today: they keep a config from elsewhere from exhausting the machine.
SIZE = dict(low=1, high=65_536)
MULTS = dict(low=1, high=64, length=(1, MAX_LEVELS))
NUM_STEPS = dict(low=1, high=NUM_TIMESTEPS)
LIST_OF_NUM_STEPS = dict(NUM_STEPS, length=(1, 100))

MODEL = Section(
    "The networks (Table 5, column FFHQ 128).",
    dict(
        base_channels=Key(128, "channels at full resolution", low=1, high=4096),
        channel_mults=Key((1, 1, 2, 3, 4), "multiples of base_channels in the UNet, one per level", **MULTS),
        encoder=Section(
            "The encoder of z.",
            dict(kind=Key("unet", "half a UNet, as in the paper; or of your own, package.module:Class")),
        ),
        encoder_channel_mults=Key((1, 1, 2, 3, 4, 4), "the same in the encoder", **MULTS),
        attention_resolutions=Key(
            (16,), "levels have attention if the size of their largest axis is listed", **SIZE, length=(0, MAX_LEVELS)
        ),
        embed_dim=Key(512, "width of the time embedding", **SIZE),
        z_dim=Key(512, "dimensions of z", **SIZE, none="the DDIM baseline without z"),
        num_heads=Key(1, "heads of attention", low=1, high=1024),
        dropout=Key(0.1, "share of activations dropped in training", low=0.0, high=0.99),
    ),
)
TRAIN = Section(
    "Training of the autoencoder.",
    dict(
        batch_size=Key(128, "images per step, over all devices", positive=True),
        num_images=Key(130_000_000, "images seen, repeats counted", positive=True, free=True),
        schedule=Key("linear", "noise schedule", choices=("linear", "cosine")),
        parameterization=Key("eps", "what the UNet predicts: the noise, or v", choices=PARAMETERIZATIONS),
        weighting=Key("uniform", "of the loss over time steps", choices=WEIGHTINGS),
        learning_rate=Key(1e-4, "of Adam", positive=True),
        weight_decay=Key(0.0, "of AdamW; 0: Adam", low=0.0, high=1.0),
        ema_decay=Key(0.9999, "decay per step of the averaged weights, which the model uses", low=0.0, high=1.0),
        max_grad_norm=Key(1.0, "larger gradients are scaled down to this norm", positive=True),
        loss_terms=Key((), "names of the terms that run_stages was given to add to the loss; it writes them here"),
        precision=Key(
            "auto",
            "of the computation; auto: the fastest the device supports",
            choices=("auto", "float32", "bfloat16", "float16"),
        ),
    ),
)
PRIOR = Section(
    "The latent DDIM, which draws new z (Table 6, column FFHQ), and its training.",
    dict(
        num_layers=Key(10, "layers of the MLP", low=2, high=MAX_PRIOR_LAYERS),
        width=Key(2048, "width of its hidden layers", **SIZE),
        schedule=Key("constant", "noise schedule", choices=("constant", "linear", "cosine")),
        parameterization=Key("eps", "what the MLP predicts: the noise, or v", choices=PARAMETERIZATIONS),
        loss=Key("l1", "error of what it predicts: absolute or squared", choices=ERRORS),
        batch_size=Key(256, "z per step, over all devices", positive=True),
        num_latents=Key(100_000_000, "z seen, repeats counted", positive=True, free=True),
        learning_rate=Key(1e-4, "of AdamW", positive=True),
        weight_decay=Key(0.01, "of AdamW", low=0.0, high=1.0),
        ema_decay=Key(0.9999, "decay per step of the averaged weights", low=0.0, high=1.0),
        max_grad_norm=Key(1.0, "larger gradients are scaled down to this norm", positive=True),
    ),
)
DATA = Section(
    "The images; docs/data.md explains them at length.",
    dict(
        path=Key("", "where the images are; digits: those of scikit-learn", free=True),
        labels=Key("", "for probes: a table, id or file name first; folders: the subfolder of each image", free=True),
        held_out=Key("", "kept from training: a split, subfolder, [:1000], table or path; empty: a share", free=True),
        held_out_share=Key(0.0, "share of the images, chosen by a hash of their ids", low=0.0, high=0.99),
        crop=Key("center", "celeba: 128x128 of the aligned faces", choices=("center", "celeba")),
        intensity=Key("", "values that become -1 and 1: 0..4095, or percentiles 0.5%..99.5%; empty: inferred"),
        flip=Key(True, "mirror images at random; turn off if left and right mean something"),
        skip_bad=Key(False, "leave out images that cannot be used, and list them, instead of refusing to train"),
    ),
)
EXECUTION = Section(
    "How a run computes. Nothing here changes the result beyond rounding.",
    dict(
        sharding=Key("replicated", "of the state; fsdp: split over all devices", choices=("replicated", "fsdp")),
        num_microbatches=Key(1, "parts of a batch, computed one after the other to save memory", positive=True),
        remat=Key(False, "recompute activations in the backward pass, to save memory"),
        num_workers=Key(0, "processes that read images; 0: threads", low=0, high=1024),
        steps_per_dispatch=Key(10, "steps of the latent DDIM per call, so that none waits for the host", positive=True),
    ),
    free=True,
)
REPORT = Section(
    "What a run writes while it trains, and when. Intervals are in images seen, those of the prior in z seen.",
    dict(
        log_every=Key(100_000, "interval of a line in metrics.jsonl", positive=True),
        health_every=Key(1_000_000, "interval of measuring whether z learns", positive=True),
        save_every=Key(1_000_000, "interval of a checkpoint", positive=True),
        grid_every=Key(1_000_000, "interval of a picture of reconstructions", positive=True),
        num_grid_images=Key(8, "images in it", positive=True),
        num_grid_steps=Key(20, "steps of inversion and decoding for it", **NUM_STEPS),
        prior_log_every=Key(1_000_000, "interval of a line in metrics.jsonl", positive=True),
        prior_save_every=Key(10_000_000, "interval of a checkpoint", positive=True),
        prior_grid_every=Key(10_000_000, "interval of a picture of samples", positive=True),
        num_sample_images=Key(64, "images in it", positive=True),
        tensorboard=Key(False, "write for TensorBoard, too; needs the extra of that name"),
    ),
    free=True,
)
EVALUATION = Section(
    "What is measured after training.",
    dict(
        programs=Key(PROGRAMS, "the measurements; docs/evaluate.md explains them", choices=PROGRAMS),
        num_images=Key(1024, "held-out images measured, at most", positive=True),
        num_steps=Key((10, 20, 50, 100), "steps of inversion and decoding", **LIST_OF_NUM_STEPS),
        num_samples=Key(1000, "samples, unconditional and of each class", low=2, high=10_000_000),
        num_sample_steps=Key((10, 20, 50, 100), "steps of the latent DDIM and of decoding", **LIST_OF_NUM_STEPS),
        num_code_steps=Key(100, "steps where only one number of steps is measured", **NUM_STEPS),
        baseline=Key("", "a DDIM without z to compare with: a bundle, or the folder of a run"),
        others=Key((), "paths of models with a z of other sizes, to compare with"),
        foreign=Key("", "a folder of images of another kind; digits: those of scikit-learn"),
        keep_images=Key(False, "keep generated images as PNG files"),
        download=Key(False, "download the weights that LPIPS and FID need, if they are not at hand"),
        inception=Key("", "file of the weights for FID; empty: the downloaded one"),
        alexnet=Key("", "file of the weights of AlexNet for LPIPS; empty: the downloaded one"),
        lpips=Key("", "file of the weights of LPIPS; empty: the downloaded one"),
    ),
    free=True,
)
KEYS = dict(
    name=Key("", "of the run, whose folder is runs/NAME"),
    seed=Key(0, "of everything random", low=0, high=2**31 - 1),
    image_shape=Key((128, 128, 3), "1 to 3 spatial axes, then channels", **SIZE, length=(2, 4)),
    model=MODEL,
    train=TRAIN,
    prior=PRIOR,
    data=DATA,
    execution=EXECUTION,
    report=REPORT,
    evaluation=EVALUATION,
)


def default() -> ConfigDict:
    """Returns the settings that the paper's experiments share; a config changes the rest.

    It is locked: a key that is not declared is an error, in a config file as on the command line.
    """
    return ConfigDict(_defaults(KEYS)).lock()


def _defaults(keys: dict[str, Key | Section]) -> dict[str, Any]:
    return {name: _defaults(key.keys) if isinstance(key, Section) else key.default for name, key in keys.items()}


def _flatten(keys: dict[str, Key | Section], prefix: str = "", free: bool = False) -> Iterator[tuple[str, Key]]:
    for name, key in keys.items():
        if isinstance(key, Section):
            yield from _flatten(key.keys, f"{prefix}{name}.", free or key.free)
        else:
            yield prefix + name, dataclasses.replace(key, free=free or key.free)


FLAT_KEYS: dict[str, Key] = dict(_flatten(KEYS))  # by their names with dots, as they are written on the command line
