"""Signs that a model was trained too little, from the figures of an evaluation."""

from collections.abc import Iterator, Sequence

from diffae_jax.evaluation.programs import labels, reconstruction, sampling, variations
from diffae_jax.evaluation.results import Figure, Section

FAR = 3  # times the distance of other real images
SHARE = 0.5  # of the pixel variance that z should determine, at least


def undertrained(sections: Sequence[Section]) -> str | None:
    """Returns a sentence that a model looks undertrained, with its figures, or None.

    A sign counts only if the 95 % intervals of its figures do not overlap.
    """
    signs = [sign for section in sections for sign in SIGNS.get(section.name, lambda _: iter(()))(section)]
    if not signs:
        return None
    return (
        f"The model looks undertrained: {'; '.join(signs)}. Longer training (train.num_images) usually helps. If it "
        f"does not, the networks may be too small."
    )


def _of_labels(section: Section) -> Iterator[str]:
    """Compares z with pixels, and decoded images with real ones."""
    for figure in section.figures:
        name, _, feature = figure.row.rpartition(labels.FROM)
        if (figure.metric, feature) in (("accuracy", "z"), ("R^2", "z")):
            pixels = section.find(figure.metric, f"{name}{labels.FROM}pixels")
            if pixels is not None and _is_below(figure, pixels):
                what = "" if figure.metric == "accuracy" else f" ({figure.metric})"
                yield f"z predicts the label {name} less well than pixels do{what}: {_versus(figure, pixels)}"
    decoded = [figure for figure in section.figures if figure.row == labels.DECODED]
    real = section.find(labels.RECOGNIZED, labels.REAL)
    if decoded and real is not None and _is_below(decoded[-1], real):
        yield (
            "an SVM recognizes fewer of the images that are decoded from z with a random x_T than of real images: "
            f"{_versus(decoded[-1], real)}"
        )


def _of_variations(section: Section) -> Iterator[str]:
    share = section.find(variations.METRIC, reconstruction.RANDOM)
    if share is not None and share.low is not None and share.low > SHARE:
        yield f"z determines less than half of an image, because x_T causes {share.text()} of the pixel variance"


def _of_sampling(section: Section) -> Iterator[str]:
    """Compares images decoded from real z with real images, in one feature space."""
    decoded = [figure for figure in section.figures if figure.row == sampling.AUTOENCODED]
    for figure in decoded[-1:]:
        real = section.find(figure.metric, sampling.REAL)
        if real is not None and None not in (figure.low, real.high) and figure.low > FAR * real.high:
            yield (
                f"images decoded from z with a random x_T are more than {FAR} times as far from real images as other "
                f"real images are ({figure.metric}): {_versus(figure, real)}"
            )


def _is_below(figure: Figure, other: Figure) -> bool:
    return None not in (figure.high, other.low) and figure.high < other.low


def _versus(figure: Figure, other: Figure) -> str:
    return f"{figure.text()} versus {other.text()}"


SIGNS = {labels.NAME: _of_labels, variations.NAME: _of_variations, sampling.NAME: _of_sampling}
