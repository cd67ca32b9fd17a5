"""Checks before the first step. They find what a later stage would refuse, days later."""

from collections.abc import Collection

import jax
import numpy as np
from ml_collections import ConfigDict

from diffae_jax.data.detect import open_images
from diffae_jax.data.inspect.scan import check_all
from diffae_jax.data.sources import Source, TransformedSource
from diffae_jax.evaluation.evaluate import check_comparable
from diffae_jax.evaluation.networks import weights
from diffae_jax.evaluation.networks.feature_spaces import inception_problem, lpips_problem
from diffae_jax.inference import bundle
from diffae_jax.inference.loading import read_config
from diffae_jax.runtime.buckets import BucketPath
from diffae_jax.runtime.errors import UserError, counted
from diffae_jax.runtime.files import AnyPath
from diffae_jax.runtime.sharding import check_batch_size


def check_settings(config: ConfigDict, stages: Collection[str], num_devices: int) -> None:
    """Raises UserError if one of the stages will refuse the config."""
    if config.report.debug_nonfinite and jax.process_count() > 1:
        raise UserError(
            f"report.debug_nonfinite works with one process, and there are {jax.process_count()}: resume the run with "
            f"one process, or leave it out."
        )
    if config.model.z_dim is not None and "prior" in stages:
        check_batch_size("prior.batch_size", config.prior.batch_size, num_devices)
    if "evaluation" in stages:
        settings = config.evaluation
        baseline = read_config(settings.baseline) if settings.baseline else None
        check_comparable(config, baseline, [read_config(path) for path in settings.others])
        if settings.foreign:
            open_images(settings.foreign, tuple(config.image_shape))
        check_weights(settings, tuple(config.image_shape))


def check_weights(settings: ConfigDict, image_shape: tuple[int, ...]) -> None:
    """Raises UserError if a file that an evaluation will use is not the published one."""
    used = {} if inception_problem(image_shape) else {"inception": weights.INCEPTION}
    used |= {} if lpips_problem(image_shape) else {"alexnet": weights.ALEXNET, "lpips": weights.LPIPS_LINEAR}
    for name, file in used.items():
        if settings[name]:
            weights.find(file, settings[name])


def check_folder(config: ConfigDict, folder: AnyPath, stages: Collection[str]) -> None:
    """Raises UserError if one of the stages cannot write to the run folder."""
    if config.report.tensorboard and isinstance(folder, BucketPath):
        raise UserError(
            f"TensorBoard files grow, and objects in {folder} cannot: set report.tensorboard to False, and read "
            f"metrics.jsonl."
        )
    if "export" in stages:
        bundle.check_free(folder / "bundle")


def check_images(config: ConfigDict, stages: Collection[str], training: TransformedSource) -> None:
    """Raises UserError if one of the stages will refuse the images, or the foreign images."""
    if config.model.z_dim is not None and "latents" in stages and _are_all_the_same(training):
        same = f"{counted(len(training), 'image')} with the same pixels" if len(training) > 1 else "a single image"
        raise UserError(
            f"The statistics of z need at least two different training images, not {same}. Add images, or train only "
            f"the autoencoder with --stages=autoencoder."
        )
    foreign = config.evaluation.foreign
    if foreign and "evaluation" in stages and "out_of_distribution" in config.evaluation.programs:
        check_all(TransformedSource(open_images(foreign, tuple(config.image_shape)).source, training.transform))


def _are_all_the_same(images: Source) -> bool:
    first = images[0]
    return all(np.array_equal(images[i], first) for i in range(1, len(images)))  # ends at the first difference
