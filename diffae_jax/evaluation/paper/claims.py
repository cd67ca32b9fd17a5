"""The paper's claims, and whether the figures of an evaluation support them."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator

from diffae_jax.evaluation.programs import (
    conditional,
    denoising,
    detection,
    neighbors,
    out_of_distribution,
    reconstruction,
    sampling,
    variations,
)
from diffae_jax.evaluation.results import Claim, Figure, Section, Verdict, rounded

Sections = dict[str, Section]
GREATER_IS_BETTER = ("SSIM",)
ERRORS = ("SSIM", "LPIPS", "MSE")
RECONSTRUCTION = "the program reconstruction"
SAMPLING = "the program sampling and other real images"


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Two figures. The paper claims that the first is better."""

    better: Figure
    worse: Figure

    @property
    def verdict(self) -> Verdict:
        """The verdict: decided if the intervals do not overlap, otherwise undecided."""
        sign = -1 if self.better.metric in GREATER_IS_BETTER else 1
        if sign * _end(self.better, sign) < sign * _end(self.worse, -sign):
            return "holds"
        if sign * _end(self.better, -sign) > sign * _end(self.worse, sign):
            return "does not hold"
        return "undecided"

    def text(self) -> str:
        """Returns both figures as text."""
        at = f" at {self.better.column}" if self.better.column == self.worse.column and self.better.column else ""
        names = [
            figure.row if at or not figure.column else f"{figure.row}, {figure.column}"
            for figure in (self.better, self.worse)
        ]
        return f"{self.better.metric}{at}: {self.better.text()} ({names[0]}) versus {self.worse.text()} ({names[1]})"


def _end(figure: Figure, sign: int) -> float:
    """Returns the upper (1) or lower (-1) end of a figure's interval, or its value without one."""
    end = figure.high if sign > 0 else figure.low
    return figure.value if end is None else end


def _overall(verdicts: list[Verdict]) -> Verdict:
    """Returns the verdict on several comparisons: the worst of them."""
    if "does not hold" in verdicts:
        return "does not hold"
    return "undecided" if "undecided" in verdicts else "holds"


def claims(sections: Sections) -> Iterator[Claim]:
    """Yields all claims. Their verdict is "not measured" if there are no figures for them."""
    for make in CLAIMS:
        yield from make(sections)


def _claim(text: str, source: str, comparisons: list[Comparison], needs: str) -> Iterator[Claim]:
    """Yields a claim with the verdict of its comparisons, or "not measured" if there are none."""
    if not comparisons:
        yield _not_measured(text, source, needs)
        return
    verdict = _overall([comparison.verdict for comparison in comparisons])
    yield Claim(text, source, verdict, "; ".join(comparison.text() for comparison in comparisons) + ".")


def _not_measured(text: str, source: str, needs: str) -> Claim:
    return Claim(text, source, "not measured", f"Needs {needs}.")


def _compare(
    section: Section | None, metrics: tuple[str, ...], better: str, worse: str, columns: Callable[[str], bool] = bool
) -> list[Comparison]:
    """Compares two rows in each metric and column that both have."""
    figures = section.figures if section else ()
    comparisons = []
    for figure in figures:
        if figure.metric in metrics and figure.row == better and columns(figure.column):
            other = section.find(figure.metric, worse, figure.column)
            if other is not None:
                comparisons.append(Comparison(figure, other))
    return comparisons


def _reconstruction_claims(sections: Sections) -> Iterator[Claim]:
    section = sections.get(reconstruction.NAME)
    ours, random, baseline = reconstruction.INFERRED, reconstruction.RANDOM, reconstruction.BASELINE
    yield from _claim(
        "Reconstructions are closer to the images than the DDIM baseline's, at every number of steps.",
        "Table 2",
        _compare(section, ERRORS, ours, baseline),
        f"{RECONSTRUCTION} and a DDIM baseline",
    )
    few, many = "T = 20", "T = 100"
    comparisons = []
    for metric in ERRORS if section else ():
        pair = section.find(metric, ours, few), section.find(metric, baseline, many)
        if all(pair):
            comparisons.append(Comparison(*pair))
    needs = f"{RECONSTRUCTION} at T = 20 and T = 100, and a DDIM baseline"
    text = "Reconstructions in 20 steps are closer than the DDIM baseline's in 100 steps."
    yield from _claim(text, "Sec. 5.4, Table 2", comparisons, needs)
    yield from _claim(
        "Reconstructions with the image's own x_T are closer than with a random x_T.",
        "Table 2 a",
        _compare(section, ERRORS, ours, random),
        RECONSTRUCTION,
    )
    yield from _size_claim(section)


def _size_claim(section: Section | None) -> Iterator[Claim]:
    """Compares each size of z with the next smaller one, at the largest number of steps."""
    comparisons = []
    for metric in ERRORS if section else ():
        columns = [figure.column for figure in section.figures if figure.metric == metric]
        smaller = dict.fromkeys(figure.row for figure in section.figures if figure.row.startswith("z of "))
        rows = [reconstruction.RANDOM, *smaller]
        figures = [section.find(metric, row, max(columns, key=_steps)) for row in rows] if columns else []
        comparisons += [Comparison(*pair) for pair in itertools.pairwise(figures) if all(pair)]
    needs = f"{RECONSTRUCTION} and models with a smaller z"
    text = "With a random x_T, reconstructions are closer if z has more dimensions."
    yield from _claim(text, "Table 2 b to e", comparisons, needs)


def _steps(column: str) -> int:
    """Returns T of a column such as "T = 20", and 0 for any different column."""
    name, _, number = column.partition(" = ")
    return int(number) if name == "T" and number.isdecimal() else 0


def _denoising_claims(sections: Sections) -> Iterator[Claim]:
    early = (denoising.column(0), denoising.column(denoising.NUM_STEPS // 2 - 1))
    yield from _claim(
        "With z, the predicted image is accurate at earlier steps than the DDIM baseline's.",
        "Sec. 5.5, Fig. 6",
        _compare(
            sections.get(denoising.NAME), (denoising.METRIC,), reconstruction.INFERRED, reconstruction.BASELINE,
            early.__contains__,
        ),
        "the program denoising and a DDIM baseline",
    )  # fmt: skip


def _sampling_claims(sections: Sections) -> Iterator[Claim]:
    section = sections.get(sampling.NAME)
    metrics = (
        tuple(dict.fromkeys(figure.metric for figure in section.figures if figure.metric != "KID")) if section else ()
    )
    yield from _claim(
        "Samples are closer to real images than the DDIM baseline's (in Table 4 except Horse at T = 100).",
        "Sec. 5.7, Table 4",
        _compare(section, metrics, sampling.SAMPLES, sampling.BASELINE),
        "the program sampling, other real images, and a DDIM baseline",
    )
    yield from _claim(
        "Images decoded from z of real images are closer to real images than those from sampled z.",
        "Table 4, + autoencoding",
        _compare(section, metrics, sampling.AUTOENCODED, sampling.SAMPLES),
        SAMPLING,
    )
    yield from _claim(
        "The prior is needed: z from a Gaussian with the same mean and standard deviation gives worse images.",
        "Sec. 4",
        _compare(section, metrics, sampling.SAMPLES, sampling.GAUSSIAN),
        SAMPLING,
    )


def _conditional_claims(sections: Sections) -> Iterator[Claim]:
    section = sections.get(conditional.NAME)
    comparisons = []
    for figure in section.figures if section else ():
        naive = section.find(figure.metric, figure.row, conditional.NAIVE)
        # a figure of a single seed has no interval, so it cannot decide
        if naive is not None and naive is not figure and figure.low is not None:
            comparisons.append(Comparison(figure, naive))
    yield from _claim(
        "Samples of a class, from a probe with 100 labels, are closer to it than unselected images (except Non-Blond).",
        "Sec. 5.6, Table 3",
        comparisons,
        "the program conditional and labels of training images",
    )


def _find(sections: Sections, name: str, metric: str, row: str, column: str | None = None) -> Figure | None:
    """Returns a figure of a program, or None if the program did not run."""
    return sections[name].find(metric, row, column) if name in sections else None


def _claim_below(figure: Figure | None, text: str, source: str, limit: float, needs: str) -> Iterator[Claim]:
    """Yields a claim that a figure is below a limit."""
    if figure is None:
        yield _not_measured(text, source, needs)
        return
    comparison = Comparison(figure, dataclasses.replace(figure, value=limit, low=limit, high=limit))
    yield Claim(text, source, comparison.verdict, f"{figure.metric}: {figure.text()}, limit {rounded(limit)}.")


def _noise_map_claims(sections: Sections) -> Iterator[Claim]:
    text = "x_T changes only minor details: it causes less than half of the pixel variance."
    share = _find(sections, variations.NAME, variations.METRIC, reconstruction.RANDOM)
    yield from _claim_below(share, text, "Sec. 5.1, Appendix D", 0.5, "the program variations")
    section = sections.get(out_of_distribution.NAME)
    comparisons = []
    for row in (out_of_distribution.SHIFTED, out_of_distribution.NEGATIVE, out_of_distribution.FOREIGN):
        comparisons += _compare(section, (out_of_distribution.AUTOCORRELATION,), out_of_distribution.USUAL, row)
    yield from _claim(
        "x_T of out-of-distribution images keeps more of the image, so it resembles independent noise less.",
        "Appendix J",
        comparisons,
        "the program out_of_distribution",
    )


def _copy_claims(sections: Sections) -> Iterator[Claim]:
    needs = "the program neighbors, with training images and held-out images that are not among them"
    for space in neighbors.SPACES.values():
        copies = _find(sections, neighbors.NAME, neighbors.COPIES, sampling.SAMPLES, f"in {space}")
        text = (
            f"Samples are not copies: in {space}, fewer than 5 % are closer to a training image than 99 % of held-out "
            f"images are."
        )
        yield from _claim_below(copies, text, "Appendix C", 0.05, needs)


def _detection_claims(sections: Sections) -> Iterator[Claim]:
    section = sections.get(detection.NAME)
    figures = sorted(section.figures if section else (), key=lambda figure: _steps(figure.column))
    comparisons = [Comparison(figures[-1], figures[0])] if len(figures) > 1 else []
    needs = "the program detection at several numbers of steps"
    yield from _claim("More steps make samples harder to detect.", "Appendix K", comparisons, needs)


CLAIMS = (
    _reconstruction_claims,
    _denoising_claims,
    _sampling_claims,
    _conditional_claims,
    _noise_map_claims,
    _copy_claims,
    _detection_claims,
)
