"""The report of an evaluation: one HTML file that holds all it shows, for any browser, on a screen or on paper."""

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
from diffae_jax.runtime.errors import UserError, shown
from diffae_jax.runtime.files import atomic_write, read_bytes

TEMPLATE = Path(__file__).with_name("report.html.jinja")
MAX_PICTURE_BYTES = 64 * 2**20
SMALLEST_WIDTH = 400  # pixels, below which a picture is enlarged


@dataclasses.dataclass(frozen=True)
class Embedded:
    """A picture within the page."""

    address: str  # a data URL
    width: int
    height: int
    is_enlarged: bool
    caption: str


def write_report(folder: Path, results: Results) -> Path:
    """Writes report.html beside results.json and returns its path. Raises UserError for a picture that is missing."""
    page = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    page.filters |= {"rounded": rounded, "tables": tables, "common_count": common_count, "of_paper": of_paper}
    written = page.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        results=results,
        name=str(results.config.get("name") or "a model"),
        verdicts=Counter(claim.verdict for claim in results.claims),
        pictures={picture: embedded(folder, picture) for section in results.sections for picture in section.pictures},
        config=list(flat(results.config)),
    )
    path = folder / REPORT
    with atomic_write(path) as scratch:
        scratch.write_text(written, encoding="utf-8")
    return path


def embedded(folder: Path, picture: Picture) -> Embedded:
    """Reads a PNG of the folder. A small one is enlarged by a whole factor, which the browser does pixel by pixel."""
    path = folder / picture.file
    if Path(picture.file).name != picture.file:
        raise UserError(f"{shown(picture.file)} is no picture beside the results: evaluate again.")
    content = read_bytes(path, MAX_PICTURE_BYTES)
    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            width, height = image.size
    except UnidentifiedImageError as error:
        raise UserError(f"{path} is no PNG picture: remove the results beside it to measure again.") from error
    factor = max(1, SMALLEST_WIDTH // width)
    address = "data:image/png;base64," + base64.b64encode(content).decode()
    return Embedded(address, width * factor, height * factor, factor > 1, picture.caption)


def common_count(table: Table) -> str | None:
    """Returns what all figures of a table were counted over, or None where they differ."""
    counts = {f"{figure.count:,} {figure.counted}" for _, figures in table.rows for figure in figures if figure}
    return counts.pop() if len(counts) == 1 else None


def of_paper(table: Table) -> list[bool]:
    """Returns, for each column, whether the paper has a number there."""
    columns = zip(*(figures for _, figures in table.rows), strict=True)
    return [any(figure is not None and figure.paper is not None for figure in figures) for figures in columns]


def flat(config: dict[str, Any], within: str = "") -> Iterator[tuple[str, str]]:
    """Yields the dotted keys of a config and their values as text."""
    for key, value in config.items():
        if isinstance(value, dict) and value:
            yield from flat(value, f"{within}{key}.")
        else:
            yield f"{within}{key}", value if isinstance(value, str) else json.dumps(value)
