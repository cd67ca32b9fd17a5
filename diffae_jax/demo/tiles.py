"""Pictures as HTML: rows of tiles, of which a person may click one."""

import base64
import dataclasses
import html
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Shaped
from PIL import Image

from diffae_jax.data.pictures import to_pil

SMALL = 128  # pixels; a browser enlarges smaller pictures without interpolation
WIDTHS = {
    "small": 112,
    "medium": 224,
    "large": 328,
    "largest": 384,
}  # pixels of a picture, twice as many as its tile has

# Reports a click on a tile or, in a map, near a point. The content of `element` may change.
ON_LOAD = """
element.addEventListener('click', (event) => {
  let target = event.target.closest('[data-index]');
  const map = event.target.closest('svg');
  if (!target && map) {
    const distance = (point) => {
      const box = point.getBoundingClientRect();
      return Math.hypot(box.x + box.width / 2 - event.clientX, box.y + box.height / 2 - event.clientY);
    };
    const points = [...map.querySelectorAll('[data-index]')];
    target = points.reduce((best, point) => distance(point) < distance(best) ? point : best, points[0]);
  }
  if (target) trigger('select', {index: Number(target.dataset.index)});
});
"""


@dataclasses.dataclass(frozen=True)
class Tile:
    """A picture with a caption.

    Attributes:
        source: the address of the picture, such as that of `png_address`.
        caption: the text below it.
        mark: how it is framed: "", "chosen", "yes" or "no".
        is_small: whether the browser enlarges it without interpolation.
    """

    source: str
    caption: str = ""
    mark: str = ""
    is_small: bool = True


def escaped(text: str) -> str:
    """Returns text for HTML. Gradio's templates do not see any of its own signs in it."""
    return html.escape(text).replace("$", "&#36;").replace("{", "&#123;").replace("`", "&#96;")


def tile_of(
    image: Shaped[np.ndarray, "*shape"], caption: str = "", *, slice: int = 0, size: str = "medium", mark: str = ""
) -> Tile:
    """Returns a tile with an image.

    Args:
        image: [*spatial, C], uint8, or float in [-1, 1].
        caption: the text below it.
        slice: which slice of a volume is shown.
        size: a key of `WIDTHS`.
        mark: how it is framed, see `Tile`.
    """
    (picture,) = to_pil((image[slice] if image.ndim == 4 else image)[None])
    is_small = max(picture.size) < SMALL
    picture.thumbnail((WIDTHS[size], WIDTHS[size]))
    return Tile(png_address(picture), caption, mark, is_small)


def png_address(picture: Image.Image) -> str:
    """Returns an address that holds a picture as PNG."""
    content = io.BytesIO()
    picture.save(content, "PNG")
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"


def film_tile(path: Path, caption: str) -> Tile:
    """Returns a tile with the film of a GIF file."""
    return Tile(f"data:image/gif;base64,{base64.b64encode(path.read_bytes()).decode()}", caption)


def tiles(pictures: Sequence[Tile], size: str = "medium", *, can_click: bool = False, can_scroll: bool = False) -> str:
    """Returns tiles as HTML.

    Args:
        pictures: the tiles.
        size: a key of `WIDTHS`.
        can_click: whether a tile is a button. Its event `select` has its index.
        can_scroll: whether there are two rows that scroll, instead of as many as needed.
    """
    scroll = " scroll" if can_scroll else ""
    content = "".join(_tile(tile, i, can_click) for i, tile in enumerate(pictures))
    return f'<div class="tiles {size}{scroll}">{content}</div>'


def _tile(tile: Tile, index: int, can_click: bool) -> str:
    caption = escaped(tile.caption)
    small = ' class="small-picture"' if tile.is_small else ""
    below = f"<span>{caption}</span>" if caption else ""
    if not can_click:
        return f'<div class="tile"><img{small} src="{tile.source}" alt="{caption}">{below}</div>'
    name = caption or f"image {index + 1}"
    pressed = "true" if tile.mark else "false"
    return (
        f'<button type="button" class="tile {tile.mark}" data-index="{index}" aria-pressed="{pressed}" title="{name}">'
        f'<img{small} src="{tile.source}" alt="{name}">{below}</button>'
    )


def table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """Returns a table of text as HTML, with the names of the columns."""
    lines = [("th", head), *(("td", row) for row in body)]
    cells = ["".join(f"<{tag}>{escaped(text)}</{tag}>" for text in row) for tag, row in lines]
    return f'<table class="predictions">{"".join(f"<tr>{line}</tr>" for line in cells)}</table>'


def hint(text: str) -> str:
    """Returns a sentence as HTML, for a place that has no pictures yet."""
    return f'<p class="hint">{escaped(text)}</p>'
