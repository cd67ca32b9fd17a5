"""The results of an evaluation: figures with intervals, pictures, and the paper's claims.

results.json holds exactly this data. Its figures are records that any program can read as a table.
"""

import dataclasses
import json
import math
from collections.abc import Iterable
from typing import Any, Literal

from diffae_jax.runtime.checksums import hash_json
from diffae_jax.runtime.errors import UserError
from diffae_jax.runtime.files import AnyPath, read_json, write_json

RESULTS = "results.json"
REPORT = "report.html"

Verdict = Literal["holds", "does not hold", "undecided", "not measured"]


@dataclasses.dataclass(frozen=True)
class Figure:
    """One measured number."""

    metric: str  # such as SSIM, MSE, LPIPS or accuracy
    row: str  # what was measured, such as "inferred x_T"
    column: str  # the setting, such as "T = 20"; empty if there is only one
    value: float
    count: int  # the number of images, or of what `counted` names
    low: float | None = None  # lower end of the 95 % interval
    high: float | None = None  # upper end
    paper: float | None = None  # the same number in the paper, if comparable
    counted: str = "images"

    def text(self) -> str:
        """Returns the number and its interval as text, such as "0.52 [0.48, 0.56]"."""
        value, *ends = self.texts()
        return f"{value} [{', '.join(ends)}]" if ends else value

    def texts(self) -> tuple[str, ...]:
        """Returns the number and the ends of its interval as texts.

        The width of the interval decides the number of digits.
        """
        if self.low is None or self.high is None:
            return (rounded(self.value),)
        numbers = self.value, self.low, self.high
        width = self.high - self.low
        if not 1e-3 <= abs(self.value) < 1e6 or not 1e-6 < width < math.inf:
            return tuple(map(rounded, numbers))
        digits = max(0, 1 - math.floor(math.log10(width)))  # two significant digits of the width
        return tuple(f"{number:,.{digits}f}" for number in numbers)


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture file next to results.json, and its caption."""

    file: str
    caption: str


@dataclasses.dataclass(frozen=True)
class Section:
    """The results of one program."""

    name: str  # name of the program
    title: str  # names the table or figure of the paper
    figures: tuple[Figure, ...] = ()
    pictures: tuple[Picture, ...] = ()
    notes: tuple[str, ...] = ()  # sentences about what was skipped and what a number means

    def find(self, metric: str, row: str, column: str | None = None) -> Figure | None:
        """Returns the figure of a metric, row and column (None: the first one), or None."""
        for figure in self.figures:
            if (figure.metric, figure.row) == (metric, row) and column in (None, figure.column):
                return figure
        return None


@dataclasses.dataclass(frozen=True)
class Claim:
    """A claim of the paper, and whether the figures support it."""

    text: str
    source: str  # where the paper makes the claim
    verdict: Verdict
    evidence: str  # the figures behind the verdict


@dataclasses.dataclass(frozen=True)
class Results:
    """All results of an evaluation, and what they depend on."""

    measured: dict[str, Any]  # the model, images and settings; if these change, the figures are stale
    about: dict[str, str]  # for readers: model, images, version, commit, time
    config: dict[str, Any]  # the model's config
    sections: tuple[Section, ...]
    claims: tuple[Claim, ...]

    def section(self, name: str) -> Section | None:
        """Returns the results of the program of that name, or None if it did not run."""
        return next((section for section in self.sections if section.name == name), None)


def write(folder: AnyPath, results: Results) -> None:
    """Writes results.json, with a hash of its content."""
    content = json.loads(json.dumps(dataclasses.asdict(results)))  # as it looks when it is read
    write_json(folder / RESULTS, content | {"sha256": hash_json(content)})


def read(folder: AnyPath) -> Results:
    """Reads results.json. Raises UserError if it is damaged or has a different format."""
    path = folder / RESULTS
    content = read_json(path)
    try:
        if content.pop("sha256", None) not in (None, hash_json(content)):  # older versions wrote no hash
            raise UserError(f"{path} is damaged (SHA-256 differs). Remove it to measure again.")
        sections = [
            Section(
                section["name"],
                section["title"],
                tuple(Figure(**figure) for figure in section["figures"]),
                tuple(Picture(**picture) for picture in section["pictures"]),
                tuple(section["notes"]),
            )
            for section in content["sections"]
        ]
        claims = tuple(Claim(**claim) for claim in content["claims"])
        return Results(content["measured"], content["about"], content["config"], tuple(sections), claims)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} was not written by this version. Remove it to measure again.") from error


def rounded(value: float) -> str:
    """Returns a number as text with three significant digits, or as an integer above 100.

    Very small and very large numbers get an exponent. Numbers from 0.99 to 1, such as SSIM and
    AUROC, get five decimals because their distance from 1 matters.
    """
    if value == 0 or not math.isfinite(value):
        return str(value) if value else "0"
    if 0.99 <= value < 1:
        return f"{value:.5f}"
    digits, exponent = f"{value:.2e}".split("e")  # rounding first gives 9.996 the exponent of 10.0
    if not -3 <= int(exponent) < 6:
        return f"{digits}e{int(exponent)}"
    return f"{value:,.{max(0, 2 - int(exponent))}f}"


@dataclasses.dataclass(frozen=True)
class Table:
    """The figures of one metric: a row for each object measured and a column for each setting."""

    metric: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Figure | None, ...]], ...]


def tables(figures: Iterable[Figure]) -> list[Table]:
    """Returns a table for each metric, with metrics, rows and columns in order of appearance."""
    figures = list(figures)
    result = []
    for metric in dict.fromkeys(figure.metric for figure in figures):
        cells = {(figure.row, figure.column): figure for figure in figures if figure.metric == metric}
        columns = tuple(dict.fromkeys(column for _, column in cells))
        rows = tuple(
            (row, tuple(cells.get((row, column)) for column in columns))
            for row in dict.fromkeys(row for row, _ in cells)
        )
        result.append(Table(metric, columns, rows))
    return result


def as_text(section: Section) -> str:
    """Returns a section as plain-text tables for a terminal."""
    lines = [section.title]
    for table in tables(section.figures):
        cells = [[table.metric, *table.columns]]
        for row, figures in table.rows:
            cells.append([row, *("" if figure is None else figure.text() for figure in figures)])
            if any(figure is not None and figure.paper is not None for figure in figures):
                paper_values = [figure and figure.paper for figure in figures]
                cells.append(["  paper", *("" if value is None else rounded(value) for value in paper_values)])
        widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
        lines += [
            "  " + "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in cells
        ]
    return "\n".join([*lines, *(f"  {note}" for note in section.notes)])
