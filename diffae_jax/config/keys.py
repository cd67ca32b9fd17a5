"""Declares every config key once: its default value, its meaning and its allowed values.

To add a key, add one line here. `default`, `check`, `differing_keys` and docs/config.md follow
from it.
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
    """One setting. Its type is the type of its default value.

    The elements of a tuple are whole numbers if `low` and `high` are set, otherwise text.
    """

    default: Any
    meaning: str
    low: int | float | None = None  # bounds, inclusive, of a number or of each number in a tuple
    high: int | float | None = None
    positive: bool = False  # a number greater than 0, without upper bound
    choices: Collection[str] = ()  # allowed texts; pass a registry dict itself, so later entries are allowed too
    length: tuple[int, int] | None = None  # minimum and maximum number of elements of a tuple
    none: str = ""  # what None means; empty if None is not allowed
    free: bool = False  # a run may be resumed with a different value


@dataclasses.dataclass(frozen=True)
class Section:
    """A group of keys, such as `train`."""

    meaning: str
    keys: "dict[str, Key | Section]"
    free: bool = False  # all keys of the section are free


PROGRAMS = (  # the measurements of an evaluation: one file each in evaluation/programs/
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
    "frontier",
)
DEFAULT_PROGRAMS = PROGRAMS[:-1]  # frontier needs many compilations
MAX_LEVELS = 8  # of a network; those of the paper have at most 7
MAX_PRIOR_LAYERS = 50

# The upper bounds exceed any current network. They stop a downloaded config from exhausting
# memory.
SIZE = dict(low=1, high=65_536)
MULTS = dict(low=1, high=64, length=(1, MAX_LEVELS))
NUM_STEPS = dict(low=1, high=NUM_TIMESTEPS)
LIST_OF_NUM_STEPS = dict(NUM_STEPS, length=(1, 100))

LEARNING_RATE_SCHEDULES = ("constant", "cosine")
MOST = 10**12  # samples

MODEL = Section(
    "The networks. The defaults are those of Table 5, column FFHQ 128.",
    dict(
        base_channels=Key(128, "feature channels at full resolution, a multiple of 32", low=1, high=4096),
        channel_mults=Key((1, 1, 2, 3, 4), "channels of each UNet level, as multiples of base_channels", **MULTS),
        encoder=Section(
            "The semantic encoder.",
            dict(
                kind=Key(
                    "unet", "unet: the downward half of a UNet, as in the paper; or your class: package.module:Class"
                )
            ),
        ),
        encoder_channel_mults=Key(
            (1, 1, 2, 3, 4, 4), "channels of each encoder level, as multiples of base_channels", **MULTS
        ),
        attention_resolutions=Key(
            (16,),
            "sizes in pixels; a level whose largest spatial axis has a listed size gets self-attention",
            **SIZE,
            length=(0, MAX_LEVELS),
        ),
        embed_dim=Key(512, "width of the time embedding", **SIZE),
        z_dim=Key(512, "dimensions of z", **SIZE, none="the DDIM baseline without z"),
        num_heads=Key(1, "attention heads", low=1, high=1024),
        num_res_blocks=Key(2, "residual blocks of each level; the upward half of the UNet has one more", low=1, high=8),
        dropout=Key(0.1, "fraction of activations set to zero during training", low=0.0, high=0.99),
    ),
)
TRAIN = Section(
    "Training of the autoencoder.",
    dict(
        batch_size=Key(128, "images per training step, over all devices", positive=True),
        num_images=Key(
            130_000_000, "length of training: images seen in total, repeats counted", positive=True, free=True
        ),
        schedule=Key("linear", "noise schedule of the diffusion process", choices=("linear", "cosine")),
        parameterization=Key("eps", "what the UNet predicts: the noise (eps) or v", choices=PARAMETERIZATIONS),
        weighting=Key("uniform", "weight of the loss at each time step; uniform: all equal", choices=WEIGHTINGS),
        learning_rate=Key(1e-4, "learning rate of Adam, the highest during training", positive=True),
        learning_rate_schedule=Key(
            "constant",
            "learning rate after the warm-up; cosine: falls to 0 at num_images, which is then fixed",
            choices=LEARNING_RATE_SCHEDULES,
        ),
        warmup_images=Key(
            0, "images seen while the learning rate rises linearly from 0; fewer than num_images", low=0, high=MOST
        ),
        freeze=Key(
            "none",
            "part that keeps the weights of --init or --branch and is not trained",
            choices=("none", "encoder", "unet"),
        ),
        weight_decay=Key(0.0, "weight decay of AdamW; 0 selects Adam", low=0.0, high=1.0),
        ema_decay=Key(
            0.9999,
            "decay per step of the EMA weights, which all results use; higher: slower average",
            low=0.0,
            high=1.0,
        ),
        ema_warmup=Key(
            False, "let the decay rise from 0.1 to ema_decay, so that short trainings do not average their random start"
        ),
        max_grad_norm=Key(1.0, "gradients with a larger global norm are scaled down to this norm", positive=True),
        loss_terms=Key((), "names of additional loss terms, set by run_stages(loss_terms=...); do not set it yourself"),
        precision=Key(
            "auto",
            "number type of the computation; auto: the fastest type that the device supports",
            choices=("auto", "float32", "bfloat16", "float16"),
        ),
    ),
)
PRIOR = Section(
    "The prior (latent DDIM), which draws new z. The defaults are those of Table 6, column FFHQ.",
    dict(
        num_layers=Key(10, "layers of the MLP, output layer included", low=2, high=MAX_PRIOR_LAYERS),
        width=Key(2048, "width of the hidden layers of the MLP", **SIZE),
        schedule=Key("constant", "noise schedule of the diffusion process", choices=("constant", "linear", "cosine")),
        parameterization=Key("eps", "what the MLP predicts: the noise (eps) or v", choices=PARAMETERIZATIONS),
        loss=Key("l1", "error of the prediction: absolute (l1) or squared (mse)", choices=ERRORS),
        batch_size=Key(256, "z per training step, over all devices", positive=True),
        num_latents=Key(100_000_000, "length of training: z seen in total, repeats counted", positive=True, free=True),
        learning_rate=Key(1e-4, "learning rate of AdamW, the highest during training", positive=True),
        learning_rate_schedule=Key(
            "constant",
            "learning rate after the warm-up; cosine: falls to 0 at num_latents, which is then fixed",
            choices=LEARNING_RATE_SCHEDULES,
        ),
        warmup_latents=Key(
            0, "z seen while the learning rate rises linearly from 0; fewer than num_latents", low=0, high=MOST
        ),
        weight_decay=Key(0.01, "weight decay of AdamW; 0 selects Adam", low=0.0, high=1.0),
        ema_decay=Key(0.9999, "decay per step of the EMA weights, which all results use", low=0.0, high=1.0),
        max_grad_norm=Key(1.0, "gradients with a larger global norm are scaled down to this norm", positive=True),
    ),
)
DATA = Section(
    "The images and their labels. See docs/data.md.",
    dict(
        path=Key("", "location of the images, also in a bucket; digits: the digits of scikit-learn", free=True),
        labels=Key(
            "",
            "labels for probes: a table with the image id in one column, or the word folders, for subfolder names",
            free=True,
        ),
        id_column=Key(
            "",
            "column of the image id in tables of labels and held-out images; empty: the column that matches the images",
            free=True,
        ),
        held_out=Key(
            "",
            "images to hold out: a split, subfolder, slice [:1000], table or path; empty: see held_out_share",
            free=True,
        ),
        held_out_share=Key(
            0.0, "fraction of images to hold out if held_out is empty; chosen by a hash of the id", low=0.0, high=0.99
        ),
        include=Key(
            "", "comma-separated patterns of file names or ids of the images to use, such as *_t1.png; empty: all"
        ),
        exclude=Key("", "comma-separated patterns of the images to leave out, such as *_mask.png"),
        crop=Key(
            "center",
            "crop before scaling; center: the largest centered part; celeba: 128x128 pixels around an aligned face",
            choices=("center", "celeba"),
        ),
        intensity=Key(
            "",
            "range of values scaled to [-1, 1], such as 0..4095 or percentiles 0.5%..99.5%; empty: inferred",
        ),
        flip=Key(True, "mirror training images left-right at random; False if left and right differ in meaning"),
        skip_bad=Key(False, "skip images that cannot be used, and list them; False: refuse to train"),
    ),
)
EXECUTION = Section(
    "How a run computes. These keys change results by rounding errors only.",
    dict(
        sharding=Key(
            "replicated",
            "training state: replicated on each device, or split over all devices (fsdp) to save memory",
            choices=("replicated", "fsdp"),
        ),
        num_microbatches=Key(
            1, "microbatches per batch; they run one after another, so more of them need less memory", positive=True
        ),
        remat=Key(False, "recompute activations in the backward pass: less memory, about a third more time"),
        num_workers=Key(0, "processes that read images; 0: threads", low=0, high=1024),
        steps_per_dispatch=Key(
            10, "training steps of the prior per call of the compiled function; more: less overhead", positive=True
        ),
    ),
    free=True,
)
REPORT = Section(
    "What a run writes while it trains. Intervals are numbers of images or, for the prior, numbers of z.",
    dict(
        log_every=Key(100_000, "images between two rows of metrics.jsonl", positive=True),
        health_every=Key(1_000_000, "images between two checks that the encoder is learning a useful z", positive=True),
        save_every=Key(1_000_000, "images between two checkpoints", positive=True),
        grid_every=Key(1_000_000, "images between two pictures of reconstructions", positive=True),
        num_grid_images=Key(8, "images in a picture of reconstructions", positive=True),
        num_grid_steps=Key(20, "number of steps to invert, decode and sample for the pictures", **NUM_STEPS),
        prior_log_every=Key(1_000_000, "z between two rows of metrics.jsonl", positive=True),
        prior_save_every=Key(10_000_000, "z between two checkpoints of the prior", positive=True),
        prior_grid_every=Key(10_000_000, "z between two pictures of samples", positive=True),
        num_sample_images=Key(64, "images in a picture of samples", positive=True),
        debug_nonfinite=Key(
            False,
            "check each step at once; if it is not finite, name the images and the layer; slower, one process only",
        ),
        tensorboard=Key(False, "also write TensorBoard files; needs pip install diffae_jax[tensorboard]"),
        tracker=Key(
            "none",
            "also send metrics to Weights & Biases or MLflow; needs pip install diffae_jax[wandb] or [mlflow]",
            choices=("none", "wandb", "mlflow"),
        ),
    ),
    free=True,
)
EVALUATION = Section(
    "What is measured after training. See docs/evaluate.md.",
    dict(
        programs=Key(DEFAULT_PROGRAMS, "the measurements to run", choices=PROGRAMS),
        num_images=Key(1024, "maximum number of held-out images to measure", positive=True),
        num_steps=Key(
            (10, 20, 50, 100), "numbers of steps to invert and decode; each is measured", **LIST_OF_NUM_STEPS
        ),
        num_samples=Key(1000, "number of images to draw, unconditionally and for each class", low=2, high=10_000_000),
        num_sample_steps=Key(
            (10, 20, 50, 100), "numbers of steps of the prior and of decoding; each is measured", **LIST_OF_NUM_STEPS
        ),
        num_code_steps=Key(100, "number of steps for all programs that do not use num_steps", **NUM_STEPS),
        samplers=Key(("ddim",), "samplers of new images; each is measured", length=(1, 20)),
        inversions=Key(("ddim",), "methods of inversion; each is measured", length=(1, 20)),
        baseline=Key("", "a DDIM baseline to compare with: a bundle or a run folder"),
        others=Key((), "models with different sizes of z to compare with: bundles or run folders"),
        foreign=Key("", "images of a different kind, for out_of_distribution: a path, or digits"),
        keep_images=Key(False, "keep the generated images as PNG files"),
        download=Key(False, "download the network weights for LPIPS and FID if they are missing"),
        inception=Key("", "file with the Inception weights for FID; empty: the downloaded file"),
        alexnet=Key("", "file with the AlexNet weights for LPIPS; empty: the downloaded file"),
        lpips=Key("", "file with the LPIPS weights; empty: the downloaded file"),
    ),
    free=True,
)
EXPORT = Section(
    "The bundle of the trained model. See docs/share.md.",
    dict(
        license=Key("", "license of the weights for the model card, such as cc-by-4.0; empty: unknown"),
        pictures=Key(True, "put pictures of images and samples into the bundle; False if others must not see them"),
    ),
    free=True,
)
KEYS = dict(
    name=Key("", "name of the run; its run folder is runs/NAME"),
    seed=Key(0, "seed of all random numbers", low=0, high=2**31 - 1),
    image_shape=Key((128, 128, 3), "shape of an image: 1 to 3 spatial sizes, then the channels", **SIZE, length=(2, 4)),
    model=MODEL,
    train=TRAIN,
    prior=PRIOR,
    data=DATA,
    execution=EXECUTION,
    report=REPORT,
    evaluation=EVALUATION,
    export=EXPORT,
)


def default() -> ConfigDict:
    """Returns a config with the default values, which the experiments of the paper share.

    Returns:
        A new config. It is locked: setting an undeclared key raises an error.

    Source: Tables 5 and 6.
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


FLAT_KEYS: dict[str, Key] = dict(_flatten(KEYS))  # by dotted name, such as train.batch_size
