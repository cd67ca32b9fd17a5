"""Uses a trained model from the shell: diffae encode MODEL photos --out z.npz"""

import argparse
import atexit
import gc
import os
import signal
import sys
from pathlib import Path

from diffae_jax.arguments import Parser, checked, number, whole, within
from diffae_jax.errors import UserError

IMAGES = (
    "a folder of image files or volumes, one of these, an npy, npz, HDF5, LMDB or TFDS data set, or the word digits: "
    "the 1,797 digits of scikit-learn"
)


def parser() -> argparse.ArgumentParser:
    """Returns the parser of all commands."""
    top = Parser("diffae", description="Uses a trained diffusion autoencoder. diffae COMMAND --help tells more.")
    commands = top.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for add in COMMANDS:
        add(commands)
    return top


def command(commands: argparse._SubParsersAction, name: str, function: str, text: str, *examples: str) -> Parser:
    """Adds a command, with what it does and examples of it."""
    lines = "\n".join(f"  diffae {name} {example}" for example in examples)
    added = commands.add_parser(
        name,
        help=text,
        description=f"{text[0].upper()}{text[1:]}.",
        epilog=f"examples:\n{lines}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    added.set_defaults(function=function)
    return added


def add_model(added: Parser) -> None:
    """Adds the first argument of every command that uses a model."""
    added.add_argument("model", metavar="MODEL", type=Path, help="a bundle, or the folder of a run")


def add_images(added: Parser) -> None:
    """Adds the images that a command works on."""
    added.add_argument("images", metavar="IMAGES", type=Path, help=IMAGES)


def add_out(added: Parser, metavar: str, text: str) -> None:
    """Adds where a command writes."""
    added.add_argument("--out", metavar=metavar, type=Path, required=True, help=text)
    added.add_argument("--overwrite", action="store_true", help="write even where something is; never over an image")


def add_steps(added: Parser) -> None:
    """Adds the number of steps, 1 to 1,000."""
    steps = checked("check_num_steps")
    added.add_argument("--steps", metavar="N", type=steps, default=100, help="steps of DDIM, by default 100")


def add_seed(added: Parser) -> None:
    """Adds the seed of what is random."""
    added.add_argument("--seed", metavar="N", type=checked("check_seed"), default=0, help="by default 0")


def add_info(commands: argparse._SubParsersAction) -> None:
    """Adds the command info."""
    added = command(commands, "info", "info", "say what a model is and what it can do", "ffhq128")
    add_model(added)


def add_encode(commands: argparse._SubParsersAction) -> None:
    """Adds the command encode."""
    text = "write z of images as one file; a command that was stopped goes on where it was"
    added = command(commands, "encode", "encode", text, "ffhq128 photos --out z.npz", "digits digits --out z.parquet")
    add_model(added)
    add_images(added)
    add_out(
        added, "FILE", "an .npz with ids and z, or a .parquet with id, z_000, z_001, ...; for the digits with labels"
    )


def add_reconstruct(commands: argparse._SubParsersAction) -> None:
    """Adds the command reconstruct."""
    text = "encode and decode images, and say how close they come back"
    added = command(
        commands,
        "reconstruct",
        "reconstruct",
        text,
        "ffhq128 photos --out again",
        "ffhq128 cat.jpg --random-x-T --seed 3 --out what-z-keeps",
    )
    add_model(added)
    add_images(added)
    add_out(added, "FOLDER", "gets a PNG for each image, under its own name; of volumes and signals an npy, too")
    add_steps(added)
    added.add_argument("--random-x-T", action="store_true", help="a random x_T in place of the image's own")
    add_seed(added)


def add_interpolate(commands: argparse._SubParsersAction) -> None:
    """Adds the command interpolate."""
    text = "show the way from one image to another"
    added = command(commands, "interpolate", "interpolate", text, "ffhq128 a.jpg b.jpg --frames 24 --out morph.gif")
    add_model(added)
    added.add_argument("first", metavar="A", type=Path, help="an image file")
    added.add_argument("second", metavar="B", type=Path, help="another")
    add_out(added, "PATH", "a .gif there and back, a .png with the frames side by side, or a folder of frames")
    added.add_argument("--frames", metavar="N", type=within(2, 1000), default=8, help="by default 8")
    add_steps(added)


def add_edit(commands: argparse._SubParsersAction) -> None:
    """Adds the command edit."""
    text = "give images more or less of an attribute that a probe reads"
    added = command(
        commands,
        "edit",
        "edit",
        text,
        "ffhq128 photos --probe Smiling --strength 0.3 --out smiling",
        "ffhq128 her.jpg --probe Young --to 0.9 --out younger.png",
    )
    add_model(added)
    add_images(added)
    added.add_argument("--probe", metavar="NAME", required=True, help="one of those that diffae info lists")
    how = added.add_mutually_exclusive_group(required=True)
    how.add_argument("--strength", metavar="S", type=number, help="how far, in sqrt(D) deviations of z; or")
    how.add_argument("--to", metavar="P", type=number, help="the probability, or value, that the probe is to read")
    add_out(added, "PATH", "a folder, a .png with all images, or an .npy with all their values")
    add_steps(added)


def add_sample(commands: argparse._SubParsersAction) -> None:
    """Adds the command sample."""
    added = command(
        commands,
        "sample",
        "sample",
        "draw new images, if asked of an attribute",
        "ffhq128 --num 64 --out new.png",
        "ffhq128 --probe Smiling --negative --out serious",
    )
    add_model(added)
    added.add_argument("--num", metavar="N", type=within(1, 100_000), default=16, help="images, by default 16")
    added.add_argument("--probe", metavar="NAME", help="images that have the attribute of this probe")
    added.add_argument("--negative", action="store_true", help="with --probe: images that do not")
    add_out(added, "PATH", "a .png with all images in rows, an .npy with all their values, or a folder")
    add_steps(added)
    steps = checked("check_num_steps")
    added.add_argument("--latent-steps", metavar="N", type=steps, default=100, help="those of z, by default 100")
    add_seed(added)


def add_probe(commands: argparse._SubParsersAction) -> None:
    """Adds the command probe."""
    text = "fit probes to labels and write a model that has them; without --labels, write what its probes read"
    added = command(
        commands,
        "probe",
        "probe",
        text,
        "ffhq128 photos --labels labels.csv --column smiling age --out ffhq128-probes",
        "ffhq128-probes photos --out readings.csv",
    )
    add_model(added)
    add_images(added)
    added.add_argument("--labels", metavar="FILE", type=Path, help="a CSV: the id of each image, and a column a label")
    added.add_argument("--column", metavar="C", nargs="+", help="some of its columns, by default all")
    unlabelled = "images without the label may still have the attribute"
    added.add_argument("--positive-unlabelled", action="store_true", help=unlabelled)
    add_out(added, "PATH", "with --labels a bundle, which may be MODEL; else a .csv")


def add_evaluate(commands: argparse._SubParsersAction) -> None:
    """Adds the command evaluate."""
    added = command(
        commands,
        "evaluate",
        "evaluate",
        "measure a model as the paper does, and write a report; a command that was stopped goes on where it was",
        "ffhq128 --data faces/test --training faces/train --out report",
        "digits --data digits --baseline runs/digits_ddim --others runs/digits_z4 --out report",
        "ffhq128 --data faces/test --programs reconstruction --steps 10 20 50 100 --download --out report",
    )
    add_model(added)
    added.add_argument("--data", metavar="IMAGES", type=Path, required=True, help=f"what is measured: {IMAGES}")
    text = "what the model was trained on, for samples, labels and neighbours; of the digits it is known"
    added.add_argument("--training", metavar="IMAGES", type=Path, help=text)
    added.add_argument("--labels", metavar="FILE", type=Path, help="a CSV: the id of each image, and a column a label")
    add_out(added, "FOLDER", "gets report.html, results.json and the pictures")
    added.add_argument("--baseline", metavar="MODEL", type=Path, help="a DDIM without z, to compare with")
    text = "models with a z of other sizes, to compare with"
    added.add_argument("--others", metavar="MODEL", type=Path, nargs="+", help=text)
    added.add_argument("--foreign", metavar="IMAGES", type=Path, help="images of another kind, to see x_T of them")
    text = "what to measure, by default what the model's config says; all: everything"
    added.add_argument("--programs", metavar="NAME", nargs="+", help=text)
    steps = checked("check_num_steps")
    text = "steps of DDIM, those of the reconstruction and of the samples"
    added.add_argument("--steps", metavar="N", type=steps, nargs="+", help=text)
    text = "steps of all that is not measured at several; by default the most of --steps"
    added.add_argument("--code-steps", metavar="N", type=steps, help=text)
    most = within(2, 10_000_000)
    added.add_argument("--num-images", metavar="N", type=most, help="at most so many images are measured")
    added.add_argument("--num-samples", metavar="N", type=most, help="so many new images are drawn")
    add_seed(added)
    added.add_argument("--keep-images", action="store_true", help="keep what is generated, as PNG files")
    text = "fetch the public weights that LPIPS and FID need, once, to a folder of the user's"
    added.add_argument("--download", action="store_true", help=text)
    for name, what in (("inception", "FID"), ("alexnet", "LPIPS"), ("lpips", "LPIPS, too")):
        added.add_argument(f"--{name}", metavar="FILE", type=Path, help=f"weights for {what}, where they are at hand")


def add_import(commands: argparse._SubParsersAction) -> None:
    """Adds the command import."""
    added = command(
        commands,
        "import",
        "import_",
        "turn an official PyTorch checkpoint into a bundle",
        "checkpoints/ffhq128_autoenc_latent/last.ckpt --out ffhq128",
        "checkpoints/ffhq128_autoenc_130M/last.ckpt --latents checkpoints/ffhq128_autoenc_130M/latent.pkl \\\n"
        "      --classifier checkpoints/ffhq128_autoenc_cls/last.ckpt --out ffhq128",
    )
    added.add_argument("file", metavar="FILE", type=Path, help="the checkpoint, last.ckpt")
    added.add_argument("--latents", metavar="FILE", type=Path, help="its latent.pkl, where z is to be normalised")
    added.add_argument("--classifier", metavar="FILE", type=Path, help="its classifier: 40 attributes as probes")
    added.add_argument("--image-size", metavar="PIXELS", type=whole, help="for a checkpoint that does not tell it")
    added.add_argument("--out", metavar="BUNDLE", type=Path, required=True, help="the folder to write")


def add_data(commands: argparse._SubParsersAction) -> None:
    """Adds the command data."""
    added = command(
        commands,
        "data",
        "data",
        "look at a data set, and say what training would see of it; exit code 1 where images cannot be used",
        "photos --out sheet.png",
        "photos --image-shape 128 128 3 --labels labels.csv --held-out-share 0.1",
        "scans.h5#volumes --intensity=-1000..1000 --workers 8",
    )
    text = "a folder, an array file (npy, npz, HDF5), LMDB, a data set of TFDS, one image, or the word digits; a part "
    added.add_argument("path", metavar="PATH", help=f"{text}is named behind a #")
    text = "height, width and channels, say; without it and --config, a shape is proposed"
    sizes = within(1, 65_536)
    added.add_argument("--image-shape", metavar="N", type=sizes, nargs="+", help=text)
    text = (
        "a config, FILE.py or FILE.py:VARIANT, or the config.json of a run; what follows is given in place of its own"
    )
    added.add_argument("--config", metavar="FILE", help=text)
    added.add_argument("--crop", metavar="NAME", help="center or celeba")
    text = "the values that become -1 and 1, or percentiles, LOW%%..HIGH%%; a negative LOW needs --intensity=LOW..HIGH"
    added.add_argument("--intensity", metavar="LOW..HIGH", help=text)
    text = "a table, the id or file name of each image first; or folders: the subfolder of each image"
    added.add_argument("--labels", metavar="TABLE", help=text)
    text = "what is kept from training: a split, a subfolder, [:1000], a table, or the path of other images"
    added.add_argument("--held-out", metavar="PART", help=text)
    text = "a share of the images to keep from training, by default 0.02, or that of the config"
    added.add_argument("--held-out-share", metavar="SHARE", type=number, help=text)
    text = "processes that read images, of which the speed is measured, by default 0: threads"
    added.add_argument("--workers", metavar="N", type=within(0, 1024), help=text)
    text = "a .png that gets up to 64 of the images as training would see them"
    added.add_argument("--out", metavar="FILE", type=Path, help=text)
    added.add_argument("--overwrite", action="store_true", help="write even where something is; never over an image")


COMMANDS = (
    add_data,
    add_info,
    add_encode,
    add_reconstruct,
    add_interpolate,
    add_edit,
    add_sample,
    add_probe,
    add_evaluate,
    add_import,
)


def run(argv: list[str] | None = None) -> None:
    """Runs a command and tells a user's mistakes in one sentence: exit code 2."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # XLA's notes of its inner life
    atexit.register(gc.freeze)  # see main.run
    try:
        arguments = parser().parse_args(argv)
        from diffae_jax import commands  # and with it jax: help and mistakes do not wait for it

        getattr(commands, arguments.function)(arguments)
    except KeyboardInterrupt:
        print("\nInterrupted: the result was not written.", file=sys.stderr, flush=True)
        os._exit(128 + signal.SIGINT)  # an exit in order would wait for the devices to finish what they are at
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    run()
