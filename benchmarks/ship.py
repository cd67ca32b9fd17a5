"""Makes a model that ships with the package, from a trained run or a bundle.

    python -m benchmarks.ship digits runs/digits/bundle

Stores the weights with half precision, and writes held-out example images next to the model. The
command refuses a model whose results on held-out images differ too much from those with full
precision. The figures of both are in the model card, and the manifest has a SHA-256 of each file.
"""

import argparse
import dataclasses
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from diffae_jax import DiffAE, to_pil
from diffae_jax.cli.inputs import load_with_card
from diffae_jax.config import default
from diffae_jax.data.sources import Source, Subset, TransformedSource, choose, read
from diffae_jax.data.splits import open_splits
from diffae_jax.data.transforms import to_float
from diffae_jax.data.varied import choose_varied
from diffae_jax.evaluation.metrics import mse
from diffae_jax.inference.bundle import Bundle, write_bundle
from diffae_jax.inference.card import CardTable
from diffae_jax.models.functional import flatten
from diffae_jax.pretrained import catalog
from diffae_jax.probes import score
from diffae_jax.runtime.console import say
from diffae_jax.runtime.errors import UserError, list_some
from diffae_jax.runtime.files import names_below, write_json

NUM_EXAMPLES = 32
NUM_IMAGES = 128  # compared, at most
MAX_MSE = 1.05  # times that of full precision
MAX_Z = 0.005  # standard deviations of z, in the root mean square
MAX_SCORE = 0.01  # by which AUROC, accuracy or R^2 of a probe may differ


@dataclasses.dataclass(frozen=True)
class Shipped:
    """What is fixed for a shipped model: its largest size, and where its images come from."""

    max_bytes: int
    source: str
    license: str


MODELS = {
    "digits": Shipped(
        5 * 10**6,
        "Optical Recognition of Handwritten Digits by E. Alpaydin and C. Kaynak, UCI Machine Learning Repository; the "
        "test set, as in scikit-learn",
        "CC BY 4.0",
    ),
    "cells": Shipped(12 * 10**6, "cells cut from the blood smears of the BCCD data set", "MIT"),
}


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A figure with full and with half precision, and how bad the second may be."""

    name: str
    full: float
    half: float
    limit: float
    is_score: bool = False  # greater is better

    @property
    def is_too_bad(self) -> bool:
        """Whether half precision is beyond the limit, or not a number."""
        return not (self.half >= self.limit if self.is_score else self.half <= self.limit)

    def texts(self) -> tuple[str, ...]:
        """Returns the row of a table: name, limit, full, half."""
        return self.name, *(f"{value:.4g}" for value in (self.limit, self.full, self.half))


def main(arguments: list[str] | None = None) -> None:
    """Makes the model and its examples, or exits with one sentence."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=MODELS)
    parser.add_argument("model", type=Path, help="a bundle or a run folder; its config names the images")
    parser.add_argument("--out", type=Path, default=catalog.HERE, help="by default the package")
    given = parser.parse_args(arguments)
    try:
        ship(given.name, given.model, given.out)
    except UserError as error:
        sys.exit(f"Error: {error}")


def ship(name: str, path: Path, out: Path) -> None:
    """Writes OUT/NAME and OUT/example_images/NAME.

    Raises UserError if half precision changes the results too much, or if the files are too large.
    """
    model = load_with_card(path)
    held_out = held_out_images(model)
    with tempfile.TemporaryDirectory() as scratch:
        new = Path(scratch) / name
        write_bundle(new, half_precision(model))
        half = DiffAE.load(new, model.mesh)
        rows = compare(model, half, held_out)
        for row in rows:
            say("  ".join(row.texts()))
        check(rows)
        half.card = dataclasses.replace(model.card, tables=(*model.card.tables, as_table(rows)))
        half.origin |= {"weights": "float16", "digest": half.digest(), "digest_of_float32": model.digest()}
        half.config = without_paths(half.config)
        write_bundle(new, half_precision(half))
        examples = Path(scratch) / catalog.EXAMPLE_IMAGES / name
        write_examples(examples, held_out, MODELS[name])
        check_size(name, new, examples)
        for folder in (new, examples):
            replace(out / folder.relative_to(scratch), folder)


def replace(target: Path, folder: Path) -> None:
    """Copies a folder in the place of an older version."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(folder, target)


def held_out_images(model: DiffAE) -> TransformedSource:
    """Opens the images that a model's config holds out. Raises UserError if there are none."""
    data = model.config.data
    keys = ("labels", "id_column", "held_out", "held_out_share", "include", "exclude")
    *_, held_out = open_splits(data.path, model.image_shape, **{key: data[key] for key in keys})
    if not len(held_out):
        raise UserError(f"The config of {model.config.name} holds out no images, on which half precision is measured.")
    return TransformedSource(held_out, model.transform)


def half_precision(model: DiffAE) -> Bundle:
    """Returns a model as a bundle of float16 weights. Raises UserError if one is too large."""
    weights = flatten({"autoencoder": model.params} | ({} if model.prior is None else {"prior": model.prior}))
    with np.errstate(over="ignore"):
        halves = {name: np.asarray(array).astype(np.float16) for name, array in weights.items()}
    if infinite := [name for name, half in halves.items() if not np.isfinite(half).all()]:
        raise UserError(f"Half precision cannot hold {list_some(infinite)}: the largest number is 65,504.")
    return Bundle(model.config, halves, model.statistics, model.probes, model.origin, model.card, model.recommended)


def without_paths(config: ConfigDict) -> ConfigDict:
    """Returns a config that names files without the folders of this machine."""
    config = config.copy_and_resolve_references()
    for key in ("path", "labels", "held_out"):
        config.data[key] = Path(config.data[key]).name if config.data[key] else ""
    for key in ("baseline", "others", "foreign", "inception", "alexnet", "lpips"):
        config.evaluation[key] = default().evaluation[key]
    return config


def compare(model: DiffAE, half: DiffAE, held_out: Source) -> list[Comparison]:
    """Measures reconstructions, z and probes with both precisions."""
    images = Subset(held_out, choose(len(held_out), NUM_IMAGES, seed=0))
    x_0, num_steps = to_float(read(images, range(len(images)))), model.config.evaluation.num_code_steps
    errors = [float(mse(each.reconstruct(x_0, num_steps), x_0).mean()) for each in (model, half)]
    title = f"MSE of reconstructions in {num_steps} steps, {len(x_0):,} images"
    rows = [Comparison(title, *errors, MAX_MSE * errors[0])]
    if model.statistics is None:
        return rows
    z, z_half = (each.statistics.normalize(each.encode(x_0)) for each in (model, half))
    distance = float(np.sqrt(np.square(z - z_half).mean()))
    rows.append(Comparison("root mean square difference of z, in standard deviations", 0.0, distance, MAX_Z))
    for name, probe in model.probes.items():
        if name in images.labels:
            full, rounded = (score(probe, codes, images.labels[name]) for codes in (z, z_half))
            title = f"{full.metric} of the probe {name}"
            rows.append(Comparison(title, full.value, rounded.value, full.value - MAX_SCORE, is_score=True))
    return rows


def check(rows: list[Comparison]) -> None:
    """Raises UserError if half precision is worse than a limit allows."""
    for row in rows:
        if row.is_too_bad:
            name, limit, full, half = row.texts()
            raise UserError(
                f"Half precision changes the results too much: {name} is {half} instead of {full}, and the limit is "
                f"{limit}. Ship a different model."
            )


def as_table(rows: list[Comparison]) -> CardTable:
    """Returns the comparison as a table of the model card."""
    header = ("figure", "limit", "full precision", "half precision")
    return CardTable("Weights stored with half precision", (header, *(row.texts() for row in rows)))


def write_examples(folder: Path, held_out: TransformedSource, shipped: Shipped) -> None:
    """Writes varied held-out images, their labels, and their source and license."""
    chosen = Subset(held_out, choose_varied(held_out, NUM_EXAMPLES))
    folder.mkdir(parents=True)
    labels = {name: values.tolist() for name, values in chosen.labels.items()}
    rows = []
    for i, picture in enumerate(to_pil(to_float(read(chosen, range(len(chosen)))))):
        picture.save(folder / f"{i:02d}.png", optimize=True)
        rows.append({"file": f"{i:02d}.png"} | {name: values[i] for name, values in labels.items()})
    write_json(folder / catalog.LABELS, rows)
    write_json(folder / catalog.ABOUT, {"source": shipped.source, "license": shipped.license})


def check_size(name: str, *folders: Path) -> None:
    """Raises UserError if the files are larger than a shipped model may be."""
    size, limit = total_bytes(*folders), MODELS[name].max_bytes
    if size > limit:
        raise UserError(f"{name} takes {size:,} bytes, more than the limit of {limit:,}. Ship a smaller model.")


def total_bytes(*folders: Path) -> int:
    """Returns the size of all files in the folders."""
    return sum((folder / file).stat().st_size for folder in folders for file in names_below(folder))


if __name__ == "__main__":
    main()
