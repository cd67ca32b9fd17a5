"""The data of a run, the same from its first step to its last."""

import json
from pathlib import Path

from ml_collections import ConfigDict

from diffae_jax.data.sources import Files, Source, check_files, fingerprint, open_sources
from diffae_jax.errors import UserError
from diffae_jax.files import write_json
from diffae_jax.training.checkpoint import latest_step
from diffae_jax.training.logging import is_main_process


def open_data(config: ConfigDict, folder: Path) -> tuple[Source, Source]:
    """Opens the training and held-out images of a config.

    Raises UserError for images that are not those that the run began with.
    """
    sources = open_sources(
        config.data.kind,
        path=config.data.path,
        image_shape=tuple(config.image_shape),
        held_out_share=config.data.held_out_share,
        labels=config.data.labels,
    )
    record = folder / "data.json"
    if latest_step(folder / "autoencoder" / "checkpoints") is not None and record.exists():
        began_with, found = json.loads(record.read_text()), describe_files(*sources)
        if found != began_with:
            raise UserError(
                f"{folder} was trained on other images ({began_with['training']} then, {found['training']} now, or "
                f"other names and sizes): give the folder that it began with, or another --workdir."
            )
    return sources


def check_data(folder: Path, training: Source, held_out: Source) -> None:
    """Reads every image file once, unless this run did. Raises UserError with the first that is broken."""
    record, found = folder / "data.json", describe_files(training, held_out)
    if record.exists() and json.loads(record.read_text()) == found:
        return
    for source in (training, held_out):
        if isinstance(source, Files):
            check_files(source, show_progress=is_main_process())
    if is_main_process():
        write_json(record, found)


def describe_files(training: Source, held_out: Source) -> dict[str, int | str]:
    """Returns what tells one data set from another."""
    files = [source for source in (training, held_out) if isinstance(source, Files)]
    return {"training": len(training), "held_out": len(held_out), "files": fingerprint(*files)}
