"""The evaluation programs, one module each, and their requirements."""

from collections.abc import Callable
from typing import Protocol

from diffae_jax.evaluation.programs import (
    conditional,
    denoising,
    detection,
    frontier,
    labels,
    neighbors,
    out_of_distribution,
    reconstruction,
    sampling,
    throughput,
    variations,
)
from diffae_jax.evaluation.results import Section
from diffae_jax.evaluation.study import Study


class Program(Protocol):
    """The interface of a program module."""

    NAME: str
    TITLE: str  # names the table or figure of the paper
    REQUIREMENTS: tuple[str, ...]  # keys of REQUIREMENT_CHECKS below
    PICTURE: str  # the file that the program writes, or ""

    def run(self, study: Study) -> Section:
        """Measures and returns the results."""

    def num_calls(self, study: Study) -> int:
        """Returns the approximate number of UNet calls. A batch of N images counts as N calls."""


def _why_no_sets(study: Study) -> str | None:
    real = sampling.ReferenceSets.of(study)
    counts = len(real.reference.indices), len(real.others.indices)
    if min(counts) >= sampling.MIN_IMAGES:
        return None
    return f"it needs two sets of at least two real images, but they have {counts[0]:,} and {counts[1]:,}"


def _why_too_few_to_detect(study: Study) -> str | None:
    count = len(detection.real_images(study)[1])
    if count >= detection.MIN_IMAGES:
        return None
    return f"it needs at least {detection.MIN_IMAGES} real images, not {count:,}"


def _unless(condition: Callable[[Study], bool], reason: str) -> Callable[[Study], str | None]:
    return lambda study: None if condition(study) else reason


# Each check returns None, or the reason why the requirement is not met.
REQUIREMENT_CHECKS: dict[str, Callable[[Study], str | None]] = {
    "z": _unless(lambda study: study.has_z, "a DDIM baseline has no z"),
    "prior": _unless(
        lambda study: not study.has_z or study.model.prior is not None, "the model has no prior to sample z from"
    ),
    "training": _unless(
        lambda study: study.training is not None, "it needs the training images, and none were given (--training)"
    ),
    "held out": _unless(lambda study: study.images is not study.training, "no images are held out from training"),
    "labels": _unless(lambda study: bool(study.training.labels), "the training images have no labels"),
    "classes": _unless(
        lambda study: bool(conditional.targets(study)), "no label of the training images has two or more classes"
    ),
    "labels held out": _unless(lambda study: bool(study.images.labels), "the held-out images have no labels"),
    "two images": lambda study: None if len(study.chosen) > 1 else "it needs at least two images, not 1",
    "two sets": _why_no_sets,
    "enough to detect": _why_too_few_to_detect,
}


PROGRAMS: dict[str, Program] = {
    program.NAME: program
    for program in (
        reconstruction,
        denoising,
        labels,
        variations,
        sampling,
        conditional,
        neighbors,
        out_of_distribution,
        detection,
        throughput,
        frontier,
    )
}


def skip_reason(name: str, study: Study) -> str | None:
    """Returns why a program must be skipped, or None if all its requirements are met."""
    reasons = (REQUIREMENT_CHECKS[requirement](study) for requirement in PROGRAMS[name].REQUIREMENTS)
    return next(filter(None, reasons), None)
