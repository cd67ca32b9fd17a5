"""What an evaluation found: figures with their counts and intervals, pictures, and what the paper says of them.

All of it is plain data, and results.json is this data: one list of figures that any program can read as a table.
"""

import dataclasses
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from diffae_jax.runtime.errors import UserError
from diffae_jax.runtime.files import read_json, write_json

RESULTS = "results.json"
REPORT = "report.html"

Verdict = Literal["holds", "does not hold", "undecided", "not measured"]


@dataclasses.dataclass(frozen=True)
class Figure:
    """One number: what was measured (`metric`), of what (`row`), under which setting (`column`, such as T = 20)."""

    metric: str  # as SSIM, MSE, LPIPS, accuracy
    row: str  # as "inferred x_T"
    column: str  # as "T = 20"; empty where there is one setting
    value: float
    count: int  # images, or whatever `counted` says
    low: float | None = None  # of the 95 % interval, where there is one
    high: float | None = None
    paper: float | None = None  # the same number in the paper, where comparable
    counted: str = "images"

    def text(self) -> str:
        """Returns the number as people write it, with its interval."""
        value, *ends = self.texts()
        return f"{value} [{', '.join(ends)}]" if ends else value

    def texts(self) -> tuple[str, ...]:
        """Returns the number and the ends of its interval, where there is one, with the digits that this decides."""
        if self.low is None or self.high is None:
            return (rounded(self.value),)
        numbers = self.value, self.low, self.high
        width = self.high - self.low
        if not 1e-3 <= abs(self.value) < 1e6 or not 1e-6 < width < math.inf:
            return tuple(map(rounded, numbers))
        digits = max(0, 1 - math.floor(math.log10(width)))  # two of the width
        return tuple(f"{number:,.{digits}f}" for number in numbers)


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture beside results.json, and what it shows."""

    file: str
    caption: str


@dataclasses.dataclass(frozen=True)
class Section:
    """What one program measured."""

    name: str  # of the program
    title: str  # with the table or figure of the paper
    figures: tuple[Figure, ...] = ()
    pictures: tuple[Picture, ...] = ()
    notes: tuple[str, ...] = ()  # a sentence each: what was left out and how to get it, what a number means

    def find(self, metric: str, row: str, column: str | None = None) -> Figure | None:
        """Returns the figure of that name, or None; without a column, the first one."""
        for figure in self.figures:
            if (figure.metric, figure.row) == (metric, row) and column in (None, figure.column):
                return figure
        return None


@dataclasses.dataclass(frozen=True)
class Claim:
    """What the paper says, where it says so, whether it holds here, and the figures that decide."""

    text: str
    source: str
    verdict: Verdict
    evidence: str


@dataclasses.dataclass(frozen=True)
class Results:
    """All that an evaluation found, and of what."""

    measured: dict[str, Any]  # what the figures depend on: model, images, settings; figures of others are stale
    about: dict[str, str]  # for people: model, images, version, commit, time
    config: dict[str, Any]  # of the model
    sections: tuple[Section, ...]
    claims: tuple[Claim, ...]

    def section(self, name: str) -> Section | None:
        """Returns what the program of that name measured, or None where it did not run."""
        return next((section for section in self.sections if section.name == name), None)


def write(folder: Path, results: Results) -> None:
    """Writes results.json."""
    write_json(folder / RESULTS, dataclasses.asdict(results))


def read(folder: Path) -> Results:
    """Reads results.json. Raises UserError for a file that is none of these."""
    path = folder / RESULTS
    found = read_json(path)
    try:
        sections = [
            Section(
                section["name"],
                section["title"],
                tuple(Figure(**figure) for figure in section["figures"]),
                tuple(Picture(**picture) for picture in section["pictures"]),
                tuple(section["notes"]),
            )
            for section in found["sections"]
        ]
        claims = tuple(Claim(**claim) for claim in found["claims"])
        return Results(found["measured"], found["about"], found["config"], tuple(sections), claims)
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} is no result of this version: remove it to measure again.") from error


def rounded(value: float) -> str:
    """Writes a number with three significant digits, whole above a hundred; those very small or large with an exponent.

    Just below 1, where SSIM and AUROC lie, it is the distance from 1 that counts.
    """
    if value == 0 or not math.isfinite(value):
        return str(value) if value else "0"
    if 0.99 <= value < 1:
        return f"{value:.5f}"
    digits, exponent = f"{value:.2e}".split("e")  # rounded first: 9.996 is 10.0 and 0.0009996 a thousandth
    if not -3 <= int(exponent) < 6:
        return f"{digits}e{int(exponent)}"
    return f"{value:,.{max(0, 2 - int(exponent))}f}"


@dataclasses.dataclass(frozen=True)
class Table:
    """Figures of one metric, a row for each thing measured and a column for each setting."""

    metric: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Figure | None, ...]], ...]


def tables(figures: Iterable[Figure]) -> list[Table]:
    """Returns a table for each metric, in the order in which metrics, rows and columns first come."""
    figures = list(figures)
    made = []
    for metric in dict.fromkeys(figure.metric for figure in figures):
        cells = {(figure.row, figure.column): figure for figure in figures if figure.metric == metric}
        columns = tuple(dict.fromkeys(column for _, column in cells))
        rows = tuple(
            (row, tuple(cells.get((row, column)) for column in columns))
            for row in dict.fromkeys(row for row, _ in cells)
        )
        made.append(Table(metric, columns, rows))
    return made


def as_text(section: Section) -> str:
    """Returns a section as tables for a terminal."""
    lines = [section.title]
    for table in tables(section.figures):
        cells = [[table.metric, *table.columns]]
        for row, figures in table.rows:
            cells.append([row, *("" if figure is None else figure.text() for figure in figures)])
            if any(figure is not None and figure.paper is not None for figure in figures):
                of_paper = [figure and figure.paper for figure in figures]
                cells.append(["  paper", *("" if value is None else rounded(value) for value in of_paper)])
        widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
        lines += [
            "  " + "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in cells
        ]
    return "\n".join([*lines, *(f"  {note}" for note in section.notes)])
