"""What the paper claims, and whether the figures of an evaluation bear it out."""

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
SAMPLING = "the program sampling, with real images to compare with"


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Two figures, of which the first is claimed to be the better, and what they are called."""

    better: Figure
    worse: Figure

    @property
    def verdict(self) -> Verdict:
        """Holds where the intervals lie apart as claimed, does not where they lie apart otherwise."""
        sign = -1 if self.better.metric in GREATER_IS_BETTER else 1
        if sign * _end(self.better, sign) < sign * _end(self.worse, -sign):
            return "holds"
        if sign * _end(self.better, -sign) > sign * _end(self.worse, sign):
            return "does not hold"
        return "undecided"

    def text(self) -> str:
        """Returns the two figures."""
        at = f" at {self.better.column}" if self.better.column == self.worse.column and self.better.column else ""
        names = [
            figure.row if at or not figure.column else f"{figure.row}, {figure.column}"
            for figure in (self.better, self.worse)
        ]
        return f"{self.better.metric}{at}: {self.better.text()} ({names[0]}) against {self.worse.text()} ({names[1]})"


def _end(figure: Figure, sign: int) -> float:
    """Returns the upper end of a figure's interval for sign 1, the lower for -1, and its value where it has none."""
    end = figure.high if sign > 0 else figure.low
    return figure.value if end is None else end


def _overall(verdicts: list[Verdict]) -> Verdict:
    """Returns the verdict on a claim of several comparisons: it holds where all do, and not where one does not."""
    if "does not hold" in verdicts:
        return "does not hold"
    return "undecided" if "undecided" in verdicts else "holds"


def claims(sections: Sections) -> Iterator[Claim]:
    """Yields every claim, with the verdict "not measured" where there are no figures for it."""
    for make in CLAIMS:
        yield from make(sections)


def _claim(text: str, source: str, comparisons: list[Comparison], takes: str) -> Iterator[Claim]:
    """A claim of comparisons, of which there are some where the evaluation had what it `takes`."""
    if not comparisons:
        yield _not_measured(text, source, takes)
        return
    verdict = _overall([comparison.verdict for comparison in comparisons])
    yield Claim(text, source, verdict, "; ".join(comparison.text() for comparison in comparisons) + ".")


def _not_measured(text: str, source: str, takes: str) -> Claim:
    return Claim(text, source, "not measured", f"It takes {takes}.")


def _compare(
    section: Section | None, metrics: tuple[str, ...], better: str, worse: str, columns: Callable[[str], bool] = bool
) -> list[Comparison]:
    """Compares two rows in each metric and column that both have."""
    figures = section.figures if section else ()
    found = []
    for figure in figures:
        if figure.metric in metrics and figure.row == better and columns(figure.column):
            other = section.find(figure.metric, worse, figure.column)
            if other is not None:
                found.append(Comparison(figure, other))
    return found


def _of_reconstruction(sections: Sections) -> Iterator[Claim]:
    section = sections.get(reconstruction.NAME)
    ours, random, baseline = reconstruction.INFERRED, reconstruction.RANDOM, reconstruction.BASELINE
    yield from _claim(
        "Images come back closer than from the DDIM baseline, at every number of steps.",
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
    takes = f"{RECONSTRUCTION} at T = 20 and T = 100, and a DDIM baseline"
    yield from _claim("20 steps surpass the DDIM baseline's 100.", "Sec. 5.4, Table 2", comparisons, takes)
    yield from _claim(
        "Images come back closer with their own x_T than with a random one.",
        "Table 2 a",
        _compare(section, ERRORS, ours, random),
        RECONSTRUCTION,
    )
    yield from _sizes(section)


def _sizes(section: Section | None) -> Iterator[Claim]:
    """The larger z, the closer: each size against the next smaller one, at the most steps."""
    comparisons = []
    for metric in ERRORS if section else ():
        columns = [figure.column for figure in section.figures if figure.metric == metric]
        smaller = dict.fromkeys(figure.row for figure in section.figures if figure.row.startswith("z of "))
        rows = [reconstruction.RANDOM, *smaller]
        figures = [section.find(metric, row, max(columns, key=_steps)) for row in rows] if columns else []
        comparisons += [Comparison(*pair) for pair in itertools.pairwise(figures) if all(pair)]
    takes = f"{RECONSTRUCTION} and models with a smaller z"
    yield from _claim("The larger z, the closer images come back from it alone.", "Table 2 b to e", comparisons, takes)


def _steps(column: str) -> int:
    """Returns T of a column "T = 20"; 0 of others."""
    name, _, number = column.partition(" = ")
    return int(number) if name == "T" and number.isdecimal() else 0


def _of_denoising(sections: Sections) -> Iterator[Claim]:
    early = (denoising.column(0), denoising.column(denoising.NUM_STEPS // 2 - 1))
    yield from _claim(
        "With z the image can be told earlier than by the DDIM baseline.",
        "Sec. 5.5, Fig. 6",
        _compare(
            sections.get(denoising.NAME), (denoising.METRIC,), reconstruction.INFERRED, reconstruction.BASELINE,
            early.__contains__,
        ),
        "the program denoising and a DDIM baseline",
    )  # fmt: skip


def _of_samples(sections: Sections) -> Iterator[Claim]:
    section = sections.get(sampling.NAME)
    metrics = (
        tuple(dict.fromkeys(figure.metric for figure in section.figures if figure.metric != "KID")) if section else ()
    )
    yield from _claim(
        "Samples come closer to real images than the DDIM baseline's (in all of Table 4 but Horse at T = 100).",
        "Sec. 5.7, Table 4",
        _compare(section, metrics, sampling.SAMPLES, sampling.BASELINE),
        f"{SAMPLING} and a DDIM baseline",
    )
    yield from _claim(
        "Images decoded from z of real images come closer than those from sampled z.",
        "Table 4, + autoencoding",
        _compare(section, metrics, sampling.AUTOENCODED, sampling.SAMPLES),
        SAMPLING,
    )
    yield from _claim(
        "The latent DDIM is needed: z from a Gaussian of the same mean and deviation make worse images.",
        "Sec. 4",
        _compare(section, metrics, sampling.SAMPLES, sampling.GAUSSIAN),
        SAMPLING,
    )


def _of_classes(sections: Sections) -> Iterator[Claim]:
    section = sections.get(conditional.NAME)
    comparisons = []
    for figure in section.figures if section else ():
        naive = section.find(figure.metric, figure.row, conditional.NAIVE)
        # of one seed alone nothing tells how much it would vary
        if naive is not None and naive is not figure and figure.low is not None:
            comparisons.append(Comparison(figure, naive))
    yield from _claim(
        "Samples of a class from a hundred labels come closer to it than all images do (but for Non-Blond).",
        "Sec. 5.6, Table 3",
        comparisons,
        "the program conditional, and labels of training images",
    )


def _find(sections: Sections, name: str, metric: str, row: str, column: str | None = None) -> Figure | None:
    """Returns a figure of a program, or None where that did not run."""
    return sections[name].find(metric, row, column) if name in sections else None


def _below(figure: Figure | None, text: str, source: str, limit: float, takes: str) -> Iterator[Claim]:
    """A claim that a figure lies below a limit."""
    if figure is None:
        yield _not_measured(text, source, takes)
        return
    comparison = Comparison(figure, dataclasses.replace(figure, value=limit, low=limit, high=limit))
    yield Claim(text, source, comparison.verdict, f"{figure.metric}: {figure.text()}, limit {rounded(limit)}.")


def _of_noise_maps(sections: Sections) -> Iterator[Claim]:
    text = "x_T changes minor details alone: less than half of what differs between images."
    share = _find(sections, variations.NAME, variations.METRIC, reconstruction.RANDOM)
    yield from _below(share, text, "Sec. 5.1, Appendix D", 0.5, "the program variations")
    section = sections.get(out_of_distribution.NAME)
    comparisons = []
    for row in (out_of_distribution.SHIFTED, out_of_distribution.NEGATIVE, out_of_distribution.FOREIGN):
        comparisons += _compare(section, (out_of_distribution.AUTOCORRELATION,), out_of_distribution.USUAL, row)
    yield from _claim(
        "x_T of images unlike those of training keeps more of the image: it is less like independent noise.",
        "Appendix J",
        comparisons,
        "the program out_of_distribution",
    )


def _of_copies(sections: Sections) -> Iterator[Claim]:
    takes = "the program neighbors, with training images and others that are not among them"
    for place in neighbors.IN.values():
        copies = _find(sections, neighbors.NAME, neighbors.COPIES, sampling.SAMPLES, f"in {place}")
        text = f"Samples are no copies of training images: hardly any is as near to one in {place}."
        yield from _below(copies, text, "Appendix C", 0.05, takes)


def _of_detection(sections: Sections) -> Iterator[Claim]:
    section = sections.get(detection.NAME)
    figures = sorted(section.figures if section else (), key=lambda figure: _steps(figure.column))
    comparisons = [Comparison(figures[-1], figures[0])] if len(figures) > 1 else []
    takes = "the program detection, at several numbers of steps"
    yield from _claim("More steps make samples harder to detect.", "Appendix K", comparisons, takes)


CLAIMS = (_of_reconstruction, _of_denoising, _of_samples, _of_classes, _of_noise_maps, _of_copies, _of_detection)
