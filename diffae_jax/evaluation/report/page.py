"""Writes the report of an evaluation: one self-contained HTML file, for a screen or for print."""

import base64
import dataclasses
import io
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from PIL import Image, UnidentifiedImageError

from diffae_jax.evaluation.results import REPORT, Picture, Results, Table, rounded, tables
from diffae_jax.evaluation.training_signs import undertrained
from diffae_jax.runtime.errors import UserError, shown
from diffae_jax.runtime.files import AnyPath, atomic_write, read_bytes

TEMPLATE = Path(__file__).with_name("report.html.jinja")
MAX_PICTURE_BYTES = 64 * 2**20
MIN_WIDTH = 400  # pixels; narrower pictures are enlarged
WIDE = 704  # pixels; on a narrow screen, wider pictures scroll instead of shrinking to unreadable captions


@dataclasses.dataclass(frozen=True)
class Embedded:
    """A picture that is embedded in the page."""

    url: str  # a data URL
    width: int
    height: int
    is_enlarged: bool
    is_wide: bool
    caption: str


def write_report(folder: AnyPath, results: Results) -> AnyPath:
    """Writes report.html next to results.json and returns its path.

    Raises UserError if a picture is missing.
    """
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    environment.filters |= {"rounded": rounded, "tables": tables, "common_count": common_count, "in_paper": in_paper}
    html = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        results=results,
        warning=undertrained(results.sections),
        name=str(results.config.get("name") or "a model"),
        verdicts=Counter(claim.verdict for claim in results.claims),
        pictures={picture: embedded(folder, picture) for section in results.sections for picture in section.pictures},
        config=list(flat(results.config)),
    )
    path = folder / REPORT
    with atomic_write(path) as scratch:
        scratch.write_text(html, encoding="utf-8")
    return path


def embedded(folder: AnyPath, picture: Picture) -> Embedded:
    """Reads a PNG file of the folder. A small one is displayed larger, by an integer factor."""
    path = folder / picture.file
    if Path(picture.file).name != picture.file:
        raise UserError(f"{shown(picture.file)} is not a file next to results.json. Run the evaluation again.")
    content = read_bytes(path, MAX_PICTURE_BYTES)
    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            width, height = image.size
    except UnidentifiedImageError as error:
        raise UserError(
            f"{path} is not a PNG file. Remove results.json from the same folder and run the evaluation again."
        ) from error
    factor = max(1, MIN_WIDTH // width)
    url = "data:image/png;base64," + base64.b64encode(content).decode()
    return Embedded(url, width * factor, height * factor, factor > 1, width > WIDE, picture.caption)


def common_count(table: Table) -> str | None:
    """Returns the count of all figures, such as "240 images", or None if counts differ."""
    counts = {f"{figure.count:,} {figure.counted}" for _, figures in table.rows for figure in figures if figure}
    return counts.pop() if len(counts) == 1 else None


def in_paper(table: Table) -> list[bool]:
    """Returns for each column whether the paper has a value in it."""
    columns = zip(*(figures for _, figures in table.rows), strict=True)
    return [any(figure is not None and figure.paper is not None for figure in figures) for figures in columns]


def flat(config: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yields the dotted keys of a config and their values as text."""
    for key, value in config.items():
        if isinstance(value, dict) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value)
