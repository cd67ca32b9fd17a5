"""What each command of the shell does: checks what can be told at once, asks `DiffAE`, writes and says the result."""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped
from ml_collections import ConfigDict

from diffae_jax import DiffAE, bundle, outputs, probes
from diffae_jax.config import PROGRAMS, check, default
from diffae_jax.convert import import_official
from diffae_jax.data.formats.files import file_paths
from diffae_jax.data.labels import read_labels
from diffae_jax.data.opening import DIGITS, open_splits, with_labels
from diffae_jax.data.sources import Prepared, read
from diffae_jax.data.survey import check_all
from diffae_jax.data.transforms import to_float
from diffae_jax.embedding import FORMATS, check_format, embed, latents, open_for
from diffae_jax.errors import UserError, name_some, shown
from diffae_jax.evaluation.evaluate import PARTS
from diffae_jax.evaluation.evaluate import evaluate as measure
from diffae_jax.evaluation.figures import save_gif, save_grid
from diffae_jax.evaluation.metrics import mse, psnr
from diffae_jax.evaluation.parts import INPUTS
from diffae_jax.evaluation.results import REPORT, RESULTS
from diffae_jax.files import read_json, told
from diffae_jax.look import look
from diffae_jax.models.functional import flatten
from diffae_jax.training.logging import quantity, say
from diffae_jax.training.program import keep_compiled_programs

IMAGE_FILES = (".png", ".npy")  # that hold one image or several
FILES_OF_WEIGHTS = ("inception", "alexnet", "lpips")  # arguments and settings of that name


def load(path: Path) -> DiffAE:
    """Loads a model whose programs are compiled once for all commands to come."""
    keep_compiled_programs()
    return DiffAE.load(path)


def images_of(images: Prepared) -> Any:
    """Returns images as `DiffAE` takes them: files by their paths, for it says what it converted."""
    return file_paths(images) or read(images, range(len(images)))


def data(arguments: argparse.Namespace) -> None:
    """Says what training would see of a data set."""
    look(arguments)


def info(arguments: argparse.Namespace) -> None:
    """Says what a model is."""
    model = load(arguments.model)
    with told(arguments.model):
        size = sum(path.stat().st_size for path in arguments.model.rglob("*") if path.is_file())
    print(f"{describe(model)}\n  on the disk: {quantity(float(size), 'B')}")


def encode(arguments: argparse.Namespace) -> None:
    """Writes z of images as one file."""
    outputs.check_free(arguments.out, FORMATS, overwrite=arguments.overwrite)
    check_format(arguments.out)
    model = load(arguments.model)
    embed(model, open_for(model, arguments.images), arguments.out)
    print(f"z: {shown(str(arguments.out))}")


def reconstruct(arguments: argparse.Namespace) -> None:
    """Writes each image as it comes back from its codes, and says how close it is."""
    outputs.check_free(arguments.out, (), folder=True, overwrite=arguments.overwrite)
    model = load(arguments.model)
    source = open_for(model, arguments.images)
    names = outputs.names_of(source.ids, model.image_shape)
    outputs.check_apart((arguments.out / name for name in names), source)
    decoded = model.reconstruct(images_of(source), arguments.steps, not arguments.random_x_T, arguments.seed)
    outputs.write_images(arguments.out, names, decoded, model.transform)
    kind = "random" if arguments.random_x_T else "inferred"
    errors, ratios = np.transpose([closeness(image, source[i]) for i, image in enumerate(decoded)])
    print(
        f"{len(decoded):,} images, {arguments.steps} steps, {kind} x_T: MSE {np.mean(errors):.2e}, "
        f"PSNR {np.mean(ratios):.2f} dB (images in [0, 1])\nImages: {shown(str(arguments.out))}"
    )


def closeness(decoded: Float[np.ndarray, "*shape"], image: Shaped[np.ndarray, "*shape"]) -> tuple[float, float]:
    """Returns MSE and PSNR of an image, on the scale [0, 1]."""
    pair = decoded[None], to_float(image[None])
    return float(mse(*pair)[0]), float(psnr(*pair)[0])


def interpolate(arguments: argparse.Namespace) -> None:
    """Writes the way from one image to another as a GIF, a strip or a folder of frames."""
    is_file = outputs.check_free(arguments.out, (".gif", ".png"), folder=True, overwrite=arguments.overwrite)
    model = load(arguments.model)
    sources = [open_for(model, path) for path in (arguments.first, arguments.second)]
    names = outputs.names_of([f"frame-{i:03d}" for i in range(arguments.frames)], model.image_shape)
    for source in sources:
        outputs.check_apart([arguments.out] if is_file else [arguments.out / name for name in names], source)
    frames = model.interpolate(*map(images_of, sources), arguments.frames, arguments.steps)
    if not is_file:
        outputs.write_images(arguments.out, names, frames, model.transform)
    else:
        with told(arguments.out, "written"):
            if arguments.out.suffix.lower() == ".gif":
                save_gif(arguments.out, np.concatenate([frames, frames[-2:0:-1]]))  # there and back
            else:
                save_grid(arguments.out, np.concatenate(frames, axis=-2)[None])  # side by side
    print(f"{len(frames)} frames: {shown(str(arguments.out))}")


def edit(arguments: argparse.Namespace) -> None:
    """Writes images with more or less of a probe's attribute."""
    is_file = outputs.check_free(arguments.out, IMAGE_FILES, folder=True, overwrite=arguments.overwrite)
    model = load(arguments.model)
    model.check_edit(arguments.probe, arguments.strength, arguments.to)
    source = open_for(model, arguments.images)
    if is_file:
        outputs.check_number(arguments.out, len(source))
    names = outputs.names_of(source.ids, model.image_shape)
    outputs.check_apart([arguments.out] if is_file else (arguments.out / name for name in names), source)
    edited = model.edit(images_of(source), arguments.probe, arguments.strength, arguments.steps, to=arguments.to)
    write(model, arguments.out, is_file, names, edited)


def sample(arguments: argparse.Namespace) -> None:
    """Writes new images, of a probe's attribute where one is named."""
    if arguments.negative and arguments.probe is None:
        raise UserError("--negative needs --probe: the attribute that the images are not to have.")
    is_file = outputs.check_free(arguments.out, IMAGE_FILES, folder=True, overwrite=arguments.overwrite)
    if is_file:
        outputs.check_number(arguments.out, arguments.num)
    model = load(arguments.model)
    steps = (arguments.steps, arguments.latent_steps)
    if arguments.probe is None:
        images = model.sample(arguments.num, arguments.seed, *steps)
    else:
        images = model.sample_class(arguments.num, arguments.probe, not arguments.negative, arguments.seed, *steps)
    names = outputs.names_of([f"sample-{i:05d}" for i in range(len(images))], model.image_shape)
    write(model, arguments.out, is_file, names, images)


def write(model: DiffAE, out: Path, is_file: bool, names: list[str], images: Float[np.ndarray, "n *shape"]) -> None:
    """Writes images as one file, or each under its name below a folder; says where."""
    if is_file:
        outputs.write_image_file(out, images, model.transform)
    else:
        outputs.write_images(out, names, images, model.transform)
    print(f"{len(images):,} images: {shown(str(out))}")


def probe(arguments: argparse.Namespace) -> None:
    """Writes a model with probes of labels or, without labels, what the probes that there are read off images."""
    if arguments.labels is not None:
        return fit_probes(arguments)
    if arguments.column or arguments.positive_unlabelled:
        raise UserError("--column and --positive-unlabelled need --labels: the table that probes are fitted to.")
    outputs.check_free(arguments.out, (".csv",), overwrite=arguments.overwrite)
    model = load(arguments.model)
    if not model.probes:
        raise UserError(f"{arguments.model} has no probes to read with: fit some with --labels FILE.csv.")
    source = open_for(model, arguments.images)
    z = latents(model, source)
    readings = [model.predict(z, name) for name in model.probes]
    column = "id"
    while column in model.probes:
        column += "_"
    outputs.write_table(arguments.out, [(column, *model.probes), *zip(source.ids, *readings, strict=True)])
    print(f"{len(z):,} images, {len(readings)} probes: {shown(str(arguments.out))}")


def fit_probes(arguments: argparse.Namespace) -> None:
    """Fits a probe to each column of labels and writes the model with all of them."""
    if arguments.out.resolve() != arguments.model.resolve():
        outputs.check_free(arguments.out, (), folder=True, overwrite=arguments.overwrite)
    bundle.check_free(arguments.out)
    labels = read_labels(arguments.labels)
    unknown = [name for name in arguments.column or () if name not in labels.columns]
    if unknown:
        there_are = name_some(labels.columns)
        raise UserError(f"{arguments.labels} has no column {name_some(unknown)}; there are {there_are}.")
    model = load(arguments.model)
    model.check_normalised()
    source = open_for(model, arguments.images)
    columns, unmatched = labels.of(source.ids), labels.unmatched(source.ids)
    if unmatched:
        rows = f"{len(unmatched):,} rows of {arguments.labels} are"
        say(f"Note: {rows} of none of the images ({name_some(unmatched)}).", file=sys.stderr)
    chosen = {name: columns[name] for name in arguments.column or columns}
    for name, values in chosen.items():
        probes.check_labels(name, values, positive_unlabelled=arguments.positive_unlabelled)
    z = latents(model, source)
    for name, values in chosen.items():
        model.fit_probe(name, z, values, positive_unlabelled=arguments.positive_unlabelled)
    model.save(arguments.out)
    print(f"Bundle: {shown(str(arguments.out))}")


def evaluate(arguments: argparse.Namespace) -> None:
    """Measures a model, and writes a report."""
    if not is_evaluation(arguments.out):
        outputs.check_free(arguments.out, (), folder=True, overwrite=arguments.overwrite)
    model = load(arguments.model)
    settings = evaluation_settings(model, arguments)
    if str(arguments.data) == DIGITS and arguments.training is None:
        training, images = (Prepared(source, model.transform) for source in open_splits(DIGITS, model.image_shape)[1:])
    else:
        images = open_for(model, arguments.data)
        training = None if arguments.training is None else open_for(model, arguments.training)
    foreign = arguments.foreign and open_for(model, arguments.foreign)
    if arguments.labels is not None:
        images, training = (
            source and Prepared(with_labels(source.source, str(arguments.labels)), source.transform)
            for source in (images, training)
        )
    for source in (images, foreign):
        if source:
            check_all(source, show_progress=sys.stderr.isatty())
    found = measure(
        model,
        images,
        training,
        settings,
        arguments.out,
        seed=arguments.seed,
        baseline=arguments.baseline and load(arguments.baseline),
        others=tuple(load(path) for path in arguments.others or ()),
        foreign=foreign,
        replace=arguments.overwrite,
    )
    print(f"{'The report' if found else 'There already'}: {shown(str(arguments.out / REPORT))}")


def is_evaluation(folder: Path) -> bool:
    """Whether a folder holds what `evaluate` writes, whole or begun."""
    with told(folder):
        if (folder / PARTS / INPUTS).exists():
            return True
        found = read_json(folder / RESULTS) if (folder / RESULTS).exists() else None
    return isinstance(found, dict) and "measured" in found


def evaluation_settings(model: DiffAE, arguments: argparse.Namespace) -> ConfigDict:
    """Returns what the model's config says of evaluation, changed by the arguments that were given."""
    config = model.config.copy_and_resolve_references()
    settings = config.evaluation
    own = default().evaluation
    for name in ("keep_images", "download", *FILES_OF_WEIGHTS):  # of who made the model
        settings[name] = own[name]
    given = {
        "num_images": arguments.num_images,
        "num_samples": arguments.num_samples,
        "num_steps": arguments.steps,
        "num_sample_steps": arguments.steps,
        "num_code_steps": arguments.code_steps or (arguments.steps and max(arguments.steps)),
        "programs": PROGRAMS if arguments.programs == ["all"] else arguments.programs,
        "keep_images": arguments.keep_images or None,
        "download": arguments.download or None,
        **{
            name: getattr(arguments, name) and str(getattr(arguments, name))
            for name in ("inception", "alexnet", "lpips")
        },
    }
    for name, value in given.items():
        if value is not None:
            settings[name] = tuple(value) if isinstance(value, list) else value
    check(config)
    return settings


def import_(arguments: argparse.Namespace) -> None:
    """Writes an official checkpoint as a bundle, and says what it found."""
    bundle.check_free(arguments.out)
    model = import_official(arguments.file, arguments.latents, arguments.classifier, image_size=arguments.image_size)
    model.save(arguments.out)
    print(f"{describe(model)}\nBundle: {shown(str(arguments.out))}")


def describe(model: DiffAE) -> str:
    """Returns what a model is, as lines for people."""
    sizes = {"encoder": 0, "UNet": 0, "latent DDIM": 0}
    for name, leaf in flatten({"autoencoder": model.params, "prior": model.prior or {}}).items():
        part = "latent DDIM" if name.startswith("prior") else "encoder" if ".encoder." in name else "UNet"
        sizes[part] += leaf.size
    z_dim = model.config.model.z_dim
    lines = [
        f"{shown(model.config.name)}: a {'DDIM baseline' if z_dim is None else 'diffusion autoencoder'} for images of "
        f"{'x'.join(map(str, model.image_shape))}",
        f"  z: {'none' if z_dim is None else f'{z_dim} dimensions'}",
        *(f"  parameters of the {part}: {size:,}" for part, size in sizes.items() if size),
    ]
    if z_dim is not None:
        lines.append(f"  latent DDIM: {'yes' if model.prior else 'no, so no new images can be sampled'}")
        lines.append(f"  statistics of z: {'yes' if model.statistics else 'no, so z cannot be normalised'}")
    lines += [f"  probe {probes.describe(probe)}" for probe in model.probes.values()]
    for key, value in model.origin.items():
        if isinstance(value, dict):
            lines += [f"  {shown(key)}: {shown(name)} ({shown(inner)})" for name, inner in value.items()]
        else:
            number = type(value) is int and value.bit_length() <= 64
            lines.append(f"  {shown(key).replace('_', ' ')}: {f'{value:,}' if number else shown(value)}")
    return "\n".join(lines)
