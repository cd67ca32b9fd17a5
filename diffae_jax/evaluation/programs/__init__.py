"""The paper's measurements, one file each, and what each of them needs."""

from collections.abc import Callable
from typing import Protocol

from diffae_jax.evaluation.programs import (
    conditional,
    denoising,
    detection,
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
    """What each of these files is."""

    NAME: str
    TITLE: str  # with the table or figure of the paper
    NEEDS: tuple[str, ...]  # keys of NEEDS below
    PICTURE: str  # the file that it writes, or ""

    def run(self, study: Study) -> Section:
        """Measures."""

    def calls(self, study: Study) -> int:
        """Returns about how many times the UNet is called, once for each image."""


def _of_sets(study: Study) -> str | None:
    """Why there is no comparison of sets of images."""
    real = sampling.ReferenceSets.of(study)
    counts = len(real.reference.numbers), len(real.others.numbers)
    if min(counts) >= sampling.FEWEST:
        return None
    return f"it takes two sets of two real images or more, not of {counts[0]:,} and {counts[1]:,}"


def _unless(condition: Callable[[Study], bool], why: str) -> Callable[[Study], str | None]:
    return lambda study: None if condition(study) else why


NEEDS: dict[str, Callable[[Study], str | None]] = {  # why a program cannot be run, or None
    "z": _unless(lambda study: study.has_z, "a DDIM baseline has no z"),
    "prior": _unless(
        lambda study: not study.has_z or study.model.prior is not None, "the model has no latent DDIM to draw z from"
    ),
    "training": _unless(lambda study: study.training is not None, "the training images are not at hand"),
    "held out": _unless(lambda study: study.images is not study.training, "no images are held out from training"),
    "labels": _unless(lambda study: bool(study.training.labels), "the training images have no labels"),
    "classes": _unless(
        lambda study: bool(conditional.targets(study)), "no label of the training images has two classes or more"
    ),
    "labels held out": _unless(lambda study: bool(study.images.labels), "the held-out images have no labels"),
    "two images": lambda study: None if len(study.chosen) > 1 else "it takes two images or more, not 1",
    "sets": _of_sets,
    "many": lambda study: (
        None
        if (count := len(detection.real_images(study)[1])) >= detection.FEWEST
        else f"it takes {detection.FEWEST} real images or more, not {count:,}"
    ),
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
    )
}


def missing_requirement(name: str, study: Study) -> str | None:
    """Returns why a program cannot be run, or None where it can."""
    return next(filter(None, (NEEDS[need](study) for need in PROGRAMS[name].NEEDS)), None)
