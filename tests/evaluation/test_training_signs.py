"""When an evaluation says that a model looks undertrained."""

import dataclasses
import re

import pytest

from diffae_jax.evaluation.programs import labels, sampling, variations
from diffae_jax.evaluation.results import Figure, Section
from diffae_jax.evaluation.training_signs import undertrained


def figure(metric, row, value, column="", margin=0.02):
    return Figure(metric, row, column, value, 100, value - margin, value + margin)


def section(name, *figures):
    return Section(name, name, figures)


GOOD = (
    section(
        labels.NAME,
        figure("accuracy", "digit, from z", 0.92),
        figure("accuracy", "digit, from pixels", 0.90),
        figure("R^2", "age, from z", 0.71),
        figure("R^2", "age, from pixels", 0.70),
        figure(labels.RECOGNIZED, labels.REAL, 0.95),
        figure(labels.RECOGNIZED, labels.DECODED, 0.50, "T = 10"),
        figure(labels.RECOGNIZED, labels.DECODED, 0.94, "T = 100"),
    ),
    section(variations.NAME, figure(variations.METRIC, "random x_T", 0.3, "T = 20")),
    section(
        sampling.NAME,
        figure("FID", sampling.AUTOENCODED, 9.0, "T = 20"),
        figure("FID", sampling.REAL, 4.0, "real"),
    ),
)
BAD = {
    "class from z": ("digit, from z", 0.80, "z predicts the label digit less well than pixels do: 0.800"),
    "value from z": ("age, from z", 0.50, r"z predicts the label age less well than pixels do \(R\^2\): 0.500"),
    "decoded images": (
        labels.DECODED,
        0.70,
        "recognizes fewer of the images that are decoded .*: 0.700 .* versus 0.95",
    ),
    "random x_T": ("random x_T", 0.6, "x_T causes 0.600 .* of the pixel variance"),
    "far from real": (sampling.AUTOENCODED, 20.0, r"more than 3 times as far .* \(FID\): 20.000 .* versus 4.000"),
}


def with_value(row, value, margin=0.02, sections=GOOD):
    def changed(old):
        return figure(old.metric, row, value, old.column, margin) if old.row == row else old

    return [dataclasses.replace(each, figures=tuple(map(changed, each.figures))) for each in sections]


def test_good_figures_and_missing_ones_say_nothing():
    assert undertrained(GOOD) is None
    assert undertrained([]) is None
    assert undertrained([section("labels", figure("accuracy", "digit, from z", 0.1)), section("throughput")]) is None


@pytest.mark.parametrize(("row", "value", "sentence"), BAD.values(), ids=BAD)
def test_each_sign_alone_is_reported_with_its_figures(row, value, sentence):
    text = undertrained(with_value(row, value))
    assert text.startswith("The model looks undertrained: ")
    assert text.count("; ") == 0
    assert re.search(sentence, text), text


@pytest.mark.parametrize(("row", "value", "sentence"), BAD.values(), ids=BAD)
def test_overlapping_intervals_are_no_sign(row, value, sentence):
    assert undertrained(with_value(row, value, margin=0.5 * max(1, value))) is None


def test_all_signs_are_in_one_sentence():
    sections = GOOD
    for row, value, _ in BAD.values():
        sections = with_value(row, value, sections=sections)
    assert undertrained(sections).count("; ") == 4
