"""The model card: README.md of a bundle, which describes the model to people and to the Hub.

The manifest keeps the facts of the card, so each save writes the card again. A card that someone
has edited is kept as it is, with its pictures: its hash differs from the one in the manifest.
"""

import dataclasses
import hashlib
import json
import re
import shlex
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from ml_collections import ConfigDict

from diffae_jax.probes import ClassProbe, Probe, describe
from diffae_jax.runtime.console import warn
from diffae_jax.runtime.errors import UserError, list_some, shown
from diffae_jax.runtime.files import AnyPath, names_below, os_errors_as_user_errors, read_bytes
from diffae_jax.runtime.hub import is_hub_address

CARD, PICTURES = "README.md", "pictures"
UNKNOWN = "unknown"  # the identifier of the Hub for a license that is not stated
TEMPLATE = Path(__file__).with_name("card.md.jinja")
TAGS = ("diffusion-autoencoder", "diffusion-model", "representation-learning", "jax", "flax")
PICTURE_FILE = re.compile(rf"{PICTURES}/[\w-]{{1,60}}\.png", re.ASCII)
VALUE = "value"  # the column of figures without a setting
MAX_CARD_BYTES, MAX_PICTURE_BYTES = 2**20, 16 * 2**20
MAX_ENTRIES = 100  # of each list in the facts
PNG = b"\x89PNG\r\n\x1a\n"  # the first bytes of a file
FRONT_MATTER = re.compile(r"\A\s*---\n.*?^---\s*$", re.MULTILINE | re.DOTALL)
LICENSE = re.compile(r"^license:(.*)$", re.MULTILINE)  # in the front matter


@dataclasses.dataclass(frozen=True)
class CardTable:
    """A table of results. The first row has the names of the columns."""

    title: str
    rows: tuple[tuple[str, ...], ...]


@dataclasses.dataclass(frozen=True)
class CardPicture:
    """A PNG file in the folder of pictures, such as pictures/samples.png.

    What someone has added to an edited card has no caption.
    """

    file: str
    caption: str
    content: bytes = dataclasses.field(repr=False)


@dataclasses.dataclass(frozen=True)
class Card:
    """What a card says in addition to the config, the probes and the origin of the model.

    Attributes:
        data: sentences about the training images.
        measured_on: a sentence about the images that the results were measured on.
        tables: results of the evaluation.
        pictures: examples, such as reconstructions.
        text: the entire card, if someone has edited it; otherwise None.
    """

    data: tuple[str, ...] = ()
    measured_on: str = ""
    tables: tuple[CardTable, ...] = ()
    pictures: tuple[CardPicture, ...] = ()
    text: str | None = None

    def with_edits_of(self, old: "Card", *, pictures: bool) -> "Card":
        """Returns this card with text and pictures of an old one, if someone has edited that.

        Without `pictures`, only those are kept that someone has added.
        """
        if old.text is None:
            return self
        kept = [picture for picture in old.pictures if pictures or not picture.caption]
        by_file = {picture.file: picture for picture in (*self.pictures, *kept)}
        return dataclasses.replace(self, text=old.text, pictures=tuple(by_file.values()))

    def facts(self) -> dict[str, Any]:
        """Returns the content without `text` and the bytes of pictures, for the manifest."""
        return {
            "data": list(self.data),
            "measured_on": self.measured_on,
            "tables": [{"title": table.title, "rows": [list(row) for row in table.rows]} for table in self.tables],
            "pictures": {picture.file: picture.caption for picture in self.pictures},
        }


def read_card(folder: AnyPath, manifest: dict[str, Any]) -> Card:
    """Reads the card of a bundle.

    A card never makes a model unusable. What is missing, damaged or too large is left out.
    """
    facts = manifest.get("card")
    facts = facts if isinstance(facts, dict) else {}
    try:
        text = edited_text(folder, manifest)
    except UserError:
        text = None
    captions = facts.get("pictures")
    captions = dict(list(captions.items())[:MAX_ENTRIES]) if isinstance(captions, dict) else {}
    if text is not None:
        captions |= {file: "" for file in picture_files(folder)[:MAX_ENTRIES] if file not in captions}
    measured_on = facts.get("measured_on")
    return Card(
        data=_texts(facts.get("data")),
        measured_on=measured_on if isinstance(measured_on, str) else "",
        tables=tuple(
            CardTable(table["title"], tuple(map(_texts, table["rows"][:MAX_ENTRIES])))
            for table in _entries(facts.get("tables"))
            if _is_table(table)
        ),
        pictures=tuple(
            CardPicture(file, caption, content)
            for file, caption in captions.items()
            if PICTURE_FILE.fullmatch(file) and isinstance(caption, str) and (caption or text is not None)
            if (content := _picture(folder / file)) is not None
        ),
        text=text,
    )


def picture_files(folder: AnyPath) -> list[str]:
    """Returns the names of all pictures in a bundle, such as pictures/samples.png."""
    with os_errors_as_user_errors(folder):
        return [name for name in names_below(folder) if PICTURE_FILE.fullmatch(name)]


def check_edits(folder: AnyPath, manifest: dict[str, Any]) -> None:
    """Raises UserError if a card that someone has edited cannot be kept."""
    if edited_text(folder, manifest) is None:
        return
    files = picture_files(folder)
    if len(files) > MAX_ENTRIES:
        raise UserError(
            f"{folder / PICTURES} has {len(files):,} pictures, but a card has up to {MAX_ENTRIES}. Remove some."
        )
    for file in files:
        if _picture(folder / file) is None:
            raise UserError(
                f"{folder / file} cannot be kept: it is not a PNG file of up to {MAX_PICTURE_BYTES:,} bytes. Replace "
                f"or remove it."
            )


def card_files(manifest: dict[str, Any]) -> list[str]:
    """Returns the names of the files of the card in a manifest. They may be missing."""
    facts = manifest.get("card")
    pictures = facts.get("pictures") if isinstance(facts, dict) else None
    names = [name for name in pictures if PICTURE_FILE.fullmatch(name)] if isinstance(pictures, dict) else []
    return [CARD, *names[:MAX_ENTRIES]]


def is_card_file(name: str) -> bool:
    """Whether a file of a bundle may belong to its card."""
    return name == CARD or PICTURE_FILE.fullmatch(name) is not None


def edited_text(folder: AnyPath, manifest: dict[str, Any]) -> str | None:
    """Returns the text of a card that someone has written or edited, otherwise None.

    Raises UserError if it is not a file, too large or not text.
    """
    with os_errors_as_user_errors(folder / CARD):
        if not (folder / CARD).exists():
            return None
    content = read_bytes(folder / CARD, MAX_CARD_BYTES)
    if not is_edited(content, manifest):
        return None
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{folder / CARD} is not text in UTF-8. Save it as UTF-8, or remove it.") from error


def is_edited(content: bytes, manifest: dict[str, Any]) -> bool:
    """Whether a card differs from the one that was written with the manifest.

    A card that has nothing but metadata counts as not edited.
    """
    facts = manifest.get("card")
    if isinstance(facts, dict) and facts.get("sha256") == hashlib.sha256(content).hexdigest():
        return False
    text = content.decode(errors="replace").replace("\r\n", "\n")
    return bool(FRONT_MATTER.sub("", text).strip())


def write_card(
    folder: Path,
    card: Card,
    location: str,
    config: ConfigDict,
    probes: dict[str, Probe | ClassProbe],
    origin: dict[str, Any],
    sizes: dict[str, int],
) -> dict[str, Any]:
    """Writes README.md and its pictures. Returns the entry of the manifest.

    Args:
        folder: the bundle.
        card: the facts of the card.
        location: the path or the address of the bundle, for the examples.
        config: the config of the model.
        probes: the probes of the model by name.
        origin: the origin of the model.
        sizes: the number of parameters of each network.
    """
    text = render(card, location, config, probes, origin, sizes)
    if card.text is not None:
        _warn_of_edits(card, card.text, config.export.license)
    (folder / CARD).write_bytes((card.text or text).encode())
    for picture in card.pictures:
        (folder / picture.file).parent.mkdir(exist_ok=True)
        (folder / picture.file).write_bytes(picture.content)
    return card.facts() | {"sha256": hashlib.sha256(text.encode()).hexdigest()}


def _warn_of_edits(card: Card, text: str, license: str) -> None:
    """Warns if an edited card does not fit the model."""
    if license and _license_in(text) != license:
        warn(f"The edited {CARD} does not state the license {license}. Write `license: {license}` in its first lines.")
    if missing := set(PICTURE_FILE.findall(text)) - {picture.file for picture in card.pictures}:
        warn(f"The edited {CARD} shows {list_some(missing)}, but there is no such file. Remove it from the text.")


def _license_in(text: str) -> str | None:
    front_matter = FRONT_MATTER.match(text.replace("\r\n", "\n"))
    found = LICENSE.search(front_matter[0]) if front_matter else None
    return found and found[1].strip().strip("\"'")


def with_license(text: str, license: str) -> str:
    """Returns the text of a card with a license in its front matter."""
    text = text.replace("\r\n", "\n")
    front_matter, line = FRONT_MATTER.match(text), f"license: {json.dumps(license)}"
    if front_matter is None:
        return f"---\n{line}\n---\n\n{text}"
    head, body = front_matter[0], text[front_matter.end() :]
    head = LICENSE.sub(line, head) if LICENSE.search(head) else head.replace("---\n", f"---\n{line}\n", 1)
    return head + body


def render(
    card: Card,
    location: str,
    config: ConfigDict,
    probes: dict[str, Probe | ClassProbe],
    origin: dict[str, Any],
    sizes: dict[str, int],
) -> str:
    """Returns the text of a card before any edit. The arguments are those of `write_card`."""
    environment = Environment(trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    environment.filters |= {"text": _cell, "shell": shlex.quote, "python": json.dumps}
    *size, channels = config.image_shape
    z_dim, has_prior = config.model.z_dim, bool(sizes.get("prior"))
    size, noun = "x".join(map(str, size)), "channel" if channels == 1 else "channels"
    kind = "DDIM baseline" if z_dim is None else "diffusion autoencoder"
    turns = "an image into a noise map x_T and back" if z_dim is None else (
        f"an image into a vector z of {z_dim} numbers, which describes its content, and a noise map x_T, which keeps "
        f"the details. From both, it restores the image"
    )  # fmt: skip
    text = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        card=card,
        name=config.name,
        license=license_of(config),
        tags=TAGS,
        has_prior=has_prior,
        summary=f"A {kind} for images of {size} with {channels} {noun}. It turns {turns}.",
        z="none" if z_dim is None else f"{z_dim} dimensions",
        z_dim=z_dim,
        prior="yes, so the model can sample new images" if has_prior else "no, so the model cannot sample new images",
        parameters=", ".join(f"{count:,} ({part})" for part, count in sizes.items()),
        location=location,
        on_hub=is_hub_address(location),
        shape=", ".join(map(str, config.image_shape)),
        size=f"{size} pixels",
        channels=f"{channels} {noun}",
        probes=[describe(probe) for probe in probes.values()],
        origin=list(origin_lines(origin)),
    )
    return text.rstrip() + "\n"


def license_of(config: ConfigDict) -> str:
    """Returns the license of the weights, or "unknown"."""
    return config.export.license or UNKNOWN


def origin_lines(origin: dict[str, Any]) -> list[tuple[str, str]]:
    """Returns names and values of an origin as text, for people."""
    lines = []
    for key, value in origin.items():
        if isinstance(value, dict):
            lines += [(shown(key), f"{shown(name)} ({shown(inner)})") for name, inner in value.items()]
        else:
            is_number = type(value) is int and value.bit_length() <= 64
            lines.append((shown(key).replace("_", " "), f"{value:,}" if is_number else shown(value)))
    return lines


def _cell(text: str) -> str:
    """Returns text on one line that is not Markdown or HTML."""
    return re.sub(r"([\\`*<|]|(?<!\w)_|_(?!\w)|\](?=[(\[:]))", r"\\\1", " ".join(text.split()))


def _texts(values: Any) -> tuple[str, ...]:
    return tuple(value for value in _entries(values) if isinstance(value, str))


def _entries(values: Any) -> list[Any]:
    return values[:MAX_ENTRIES] if isinstance(values, list) else []


def _is_table(table: Any) -> bool:
    """Whether a value is a table with a title and rows of the same length."""
    rows = table.get("rows") if isinstance(table, dict) else None
    if not isinstance(rows, list) or not rows or not isinstance(table.get("title"), str):
        return False
    return all(isinstance(row, list) and len(row) == len(rows[0]) and len(_texts(row)) == len(row) for row in rows)


def _picture(file: AnyPath) -> bytes | None:
    """Returns the content of a PNG file, or None if there is none."""
    try:
        content = read_bytes(file, MAX_PICTURE_BYTES)
    except UserError:  # missing, not a file, or too large
        return None
    return content if content.startswith(PNG) else None
