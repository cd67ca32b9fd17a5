"""The facts of a run that its model card shows: training data, results and pictures."""

from ml_collections import ConfigDict

from diffae_jax.data.inspect.scan import read_record
from diffae_jax.evaluation.results import RESULTS, Results, Table, read, tables
from diffae_jax.inference.card import MAX_PICTURE_BYTES, PICTURES, VALUE, Card, CardPicture, CardTable
from diffae_jax.runtime.errors import UserError
from diffae_jax.runtime.files import AnyPath, read_bytes

# measurements that depend on the model and its images alone, not on the machine
PROGRAMS = ("reconstruction", "denoising", "labels", "variations", "sampling", "conditional", "neighbors")
SHOWN = {"reconstruction": "reconstructions", "sampling": "samples"}  # name in the bundle of a program's first picture
ABOUT_DATA = ("Images:", "Sizes:", "Channels:", "Values:")  # starts of sentences without paths or file names


def card_of_run(config: ConfigDict, folder: AnyPath, digest: str) -> Card:
    """Returns the facts of a run for the card of its model.

    Args:
        config: the config, whose `export.pictures` decides about pictures.
        folder: the run folder.
        digest: that of the model; results of other models are left out.

    Returns:
        The facts. Those of stages that have not run are empty.

    Raises:
        UserError: if the record of the data is damaged.
    """
    summary = read_record(folder).get("summary")
    lines = summary if isinstance(summary, list) else []
    data = tuple(line for line in lines if isinstance(line, str) and line.startswith(ABOUT_DATA))
    results = _results_of(folder / "evaluation", digest)
    if results is None:
        return Card(data=data)
    sections = [section for section in results.sections if section.name in PROGRAMS]
    images = results.about.get("images", "")
    return Card(
        data=data,
        measured_on=f"Measured on {images}." if images else "",
        tables=tuple(_as_card_table(section.title, table) for section in sections for table in tables(section.figures)),
        pictures=_pictures_of(results, folder / "evaluation") if config.export.pictures else (),
    )


def _results_of(folder: AnyPath, digest: str) -> Results | None:
    """Returns the results of an evaluation of this model, or None if there are none."""
    if not (folder / RESULTS).exists():
        return None
    try:
        results = read(folder)
    except UserError:  # the evaluation reports it
        return None
    model = results.measured.get("model")
    return results if isinstance(model, dict) and model.get("digest") == digest else None


def _as_card_table(title: str, table: Table) -> CardTable:
    header = (table.metric, *(column or VALUE for column in table.columns))
    rows = [(row, *("" if figure is None else figure.text() for figure in figures)) for row, figures in table.rows]
    return CardTable(title, (header, *rows))


def _pictures_of(results: Results, folder: AnyPath) -> tuple[CardPicture, ...]:
    found = []
    for program, name in SHOWN.items():
        section = results.section(program)
        for picture in section.pictures[:1] if section else ():
            content = read_bytes(folder / picture.file, MAX_PICTURE_BYTES)
            found.append(CardPicture(f"{PICTURES}/{name}.png", picture.caption, content))
    return tuple(found)
