"""Writes a model card as one self-contained HTML file."""

import base64
import html
import importlib.util
import itertools
from collections.abc import Iterable
from pathlib import Path

from diffae_jax.inference.card import FRONT_MATTER, CardPicture
from diffae_jax.runtime.errors import UserError
from diffae_jax.runtime.files import atomic_write, os_errors_as_user_errors

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
body {{ max-width: 50rem; margin: 2rem auto; padding: 0 1rem; font: 1rem/1.5 system-ui, sans-serif; }}
table {{ border-collapse: collapse; display: block; overflow-x: auto; }}
th, td {{ padding: 0.2rem 0.6rem; border-bottom: 1px solid #ccc; text-align: left; }}
pre {{ padding: 0.8rem; background: #f3f3f3; overflow-x: auto; }}
img {{ max-width: 100%; min-width: min(25rem, 100%); image-rendering: pixelated; }}
</style>
</head>
<body>
{body}</body>
</html>
"""


def check_available() -> None:
    """Raises UserError if the library that converts Markdown is missing."""
    if importlib.util.find_spec("markdown_it") is None:
        raise UserError('A card as HTML needs markdown-it-py, which is missing: pip install "diffae_jax[hub]".')


def write_page(path: Path, text: str, pictures: Iterable[CardPicture]) -> None:
    """Writes a card as HTML, with its pictures inside.

    HTML in the text is shown as text, and the page loads nothing.

    Args:
        path: the file to write.
        text: the card as Markdown, with its front matter.
        pictures: the pictures that the text may show.

    Raises:
        UserError: if the file cannot be written or the library is missing.
    """
    check_available()
    from markdown_it import MarkdownIt

    addresses = {
        picture.file: "data:image/png;base64," + base64.b64encode(picture.content).decode() for picture in pictures
    }
    markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = markdown.parse(FRONT_MATTER.sub("", text.replace("\r\n", "\n")))
    for token in tokens:
        for inner in token.children or ():
            if inner.type == "image":
                inner.attrs["src"] = addresses.get(str(inner.attrs["src"]), "")
    titles = [following.content for token, following in itertools.pairwise(tokens) if token.type == "heading_open"]
    title = html.escape(titles[0] if titles else "Model card")
    with os_errors_as_user_errors(path, "written"), atomic_write(path) as scratch:
        body = markdown.renderer.render(tokens, markdown.options, {})
        scratch.write_text(PAGE.format(title=title, body=body), encoding="utf-8")
