"""Runs the Python blocks and shell lines of pages, in order, in folders with the files they name.

A page runs as a reader would paste it, except for the constants below and `own_data`.
"""

import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from tests.environment import ROOT

# hours of work, files that no test has, and downloads: the left text becomes the right one
REPLACED = {
    '"configs/images.py"': '"tiny.py"',
    'from_file("digits")': 'from_file("tiny.py")',
    "(64, 64, 1)": "(8, 8, 1)",
    "steps=40, step_size=0.1": "steps=2, num_steps=2",
    "jax.random.key(0), 302": "jax.random.key(0), 5",
    "images=cells)": 'images=cells, stages=["autoencoder"])',
    " --download": "",
    "gs://BUCKET/faces.zip": "FOLDER",
    "gs://BUCKET/runs/faces": "runs/mine",  # before its part without a bucket
    "runs/faces/bundle": "runs/mine/bundle",
    "--probe folder ": "--probe smile ",
}
TRAINED = "README", "--config.name=mine"  # the page and a word of the training command that trains; others are checked
TRAINING = (  # added to every training command: two steps of the tiny network
    *("--config.image_shape=(8, 8, 1)", "--config.model.base_channels=32", "--config.model.channel_mults=(1,)"),
    *("--config.model.encoder_channel_mults=(1,)", "--config.model.attention_resolutions=()"),
    *("--config.model.embed_dim=32", "--config.model.z_dim=8", "--config.model.num_res_blocks=1"),
    "--config.train.batch_size=16",
    *("--config.train.learning_rate=0.001", "--config.train.ema_decay=0.9"),  # as in tests/tiny.py: compiled once
    *("--config.train.num_images=32", "--config.report.num_grid_images=4", "--config.report.num_grid_steps=2"),
    "--config.train.warmup_images=0",  # fewer than the images
    "--stages=autoencoder",
)
QUICK = {  # added to a command
    "evaluate": "--num-images 16 --num-samples 16 --steps 2 --code-steps 2",
    "budget": "--num-images 4 --inversions ddim --grids even --steps 1 --target-mse 9",
    "interpolate": "--steps 2",
    "edit": "--steps 2",
    "sample": "--steps 2 --latent-steps 2",
}
MANY_STEPS = re.compile(r"(num_(?:latent_)?steps=)(?:10|20|50|100)\b")  # become 2: all pages share few compiled loops
STEPS = 2  # where a call or a command names none
SECONDS = 0.1  # of measurements of speed
INSTALLATIONS = ("pip", "make", ".venv/bin/python", ".venv/bin/ruff")  # these lines are not run
NO_COMMANDS = ("runs/NAME/",)  # the first words of indented blocks that are not commands

Block = tuple[str, str]  # "python" or "shell", and the text


def blocks(page: str) -> Iterator[Block]:
    """Yields the blocks of a page: fenced Python, and shell lines, fenced or indented."""
    pattern = r"^```(\w*)\n(.*?)^```$|((?:^    [^\n]*\n(?:\n(?=    ))?)+)"
    for language, fenced, indented in re.findall(pattern, page + "\n", re.MULTILINE | re.DOTALL):
        if language == "python":
            yield "python", fenced
        elif indented or language in ("sh", "bash", "shell"):
            yield "shell", re.sub(r"^    ", "", indented, flags=re.MULTILINE) or fenced


def commands(block: str) -> list[list[str]]:
    """Returns the words of each command, without comments and with continued lines joined."""
    if block.startswith(NO_COMMANDS):
        return []
    lines = re.sub(r"\\\n", " ", block).splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def replaced(text: str) -> str:
    for old, new in REPLACED.items():
        text = text.replace(old, new)
    return MANY_STEPS.sub(r"\g<1>2", text)


def prepare(folder: Path, trained: Path) -> None:
    """Fills a folder with the files that pages name.

    `runs/digits` is a small run with the same files as that of `make quickstart`. The other runs
    and bundles also have a probe `smile`. Files for a single page are in the subfolder `of PAGE`.
    """
    from diffae_jax import DiffAE
    from diffae_jax.data.formats.digits import digits

    images, kinds = digits()[1].images[:40, ..., 0], digits()[1].labels["digit"][:40]
    for name in ("photos", "FOLDER", "test-images", "training-images", "of evaluate/faces/test"):
        for i, image in enumerate(images):
            path = folder / name / ("low" if kinds[i] < 5 else "high") / f"{i:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
    for page in ("README", "own_images"):
        (folder / f"of {page}" / "photos").mkdir(parents=True)
        Image.fromarray(images[0]).save(folder / f"of {page}" / "photos" / "me.jpg")
    (folder / "of data" / "photos" / "high").mkdir(parents=True)
    Image.fromarray(images[0]).save(folder / "of data" / "photos" / "high" / "00_mask.png")
    rows = [f"{i:02d}.png,{int(kind < 5)}" for i, kind in enumerate(kinds)]
    (folder / "labels.csv").write_text("\n".join(["file,smile", *rows]))
    shutil.copytree(trained, folder / "runs" / "digits")
    model = DiffAE.load(trained)
    model.fit_probe("smile", model.encode(images[..., None]), (kinds < 5).astype(int))
    for name in ("mine", "NAME"):
        shutil.copytree(trained, folder / "runs" / name)
        model.save(folder / "runs" / name / "bundle")
    model.save(folder / "of evaluate" / "ffhq128")
    for name, source in (("latent", "autoenc_latent"), ("cls", "classifier")):
        checkpoint = folder / "checkpoints" / f"ffhq128_autoenc_{name}" / "last.ckpt"
        checkpoint.parent.mkdir(parents=True)
        shutil.copyfile(ROOT / "tests" / "parity" / "mini16" / f"{source}.ckpt", checkpoint)
    for config in (folder / "tiny.py", folder / "of extend" / "mine.py"):
        config.parent.mkdir(exist_ok=True)
        shutil.copyfile(ROOT / "tests" / "tiny.py", config)


def own_data(page: str) -> dict[str, np.ndarray]:
    """Returns arrays that stand for the reader's own data: names that the page does not define."""
    from diffae_jax.data.formats.digits import digits

    images = digits()[1].images[:40]
    return {
        "data": {"cells": images},
        "official_weights": {"images": np.zeros((2, 16, 16, 3), np.float32)},
    }.get(page, {})


def run() -> None:
    """Runs the pages that the arguments name, each in the subfolder of its name.

    They share a process and what it compiles. A first argument "train" lets all training commands
    train.
    """
    from diffae_jax import DiffAE
    from diffae_jax.data.inspect import report
    from diffae_jax.inference import recommended

    report.SECONDS, recommended.DEFAULT_STEPS = SECONDS, STEPS
    for method in (DiffAE.variations, DiffAE.sample, DiffAE.sample_class):
        method.__defaults__ = tuple(STEPS if value == 100 else value for value in method.__defaults__)
    all_train, start = sys.argv[1] == "train", Path.cwd()
    for page in map(Path, sys.argv[1 + all_train :]):
        print(f"=== {page.name}", flush=True)
        os.chdir(start / page.stem)
        names = {"__name__": "__main__", **own_data(page.stem)}
        for kind, text in blocks(page.read_text()):
            print(f"--- {kind}\n{text}", flush=True)
            if kind == "python":
                exec(compile(replaced(text), f"{page.name}, a block", "exec"), names)
            else:
                for words in commands(replaced(text)):
                    run_command(words, trains=all_train or (page.stem == TRAINED[0] and TRAINED[1] in words))


def run_command(words: list[str], *, trains: bool) -> None:
    """Runs a shell line. Raises AssertionError if it fails or is not a known command."""
    from diffae_jax import cli

    if words[0].startswith("--config."):  # options of a training command
        words = ["python", "-m", "diffae_jax.main", "--config=configs/images.py", *words]
    if words[:3] == ["python", "-m", "diffae_jax.main"]:
        words = ["diffae", "train", *words[3:]]
    if words[:2] == ["diffae", "plan"] or "--dry_run" in words:  # compiling takes minutes: see test_compiled.py
        check_plan(words[2:])
    elif words[:2] == ["diffae", "train"]:
        named = any("data.path" in word or "digits" in word for word in words)
        path = () if named else ("--config.data.path=FOLDER",)
        folder = Path(f"trained/{len(list(Path().glob('trained/*')))}")
        # a branch needs a run, and networks and images of other models do not fit the tiny one
        left_out = ("--branch=", "--init=", "--config.image_shape=")
        given = [word for word in words[2:] if not word.startswith(left_out)]
        arguments = [*given, *path, *TRAINING, f"--workdir={folder}"]
        cli.run(["train", *arguments]) if trains else check_training(arguments, folder)
    elif words[:2] == ["python", "-c"]:
        exec(words[2], {})
    elif words[0] == "diffae":
        assert exit_code([*words[1:], *QUICK.get(words[1], "").split()]) == 0, shlex.join(words)
    else:
        assert words[0] in INSTALLATIONS, f"a line that is not run: {shlex.join(words)}"


def check_plan(arguments: list[str]) -> None:
    """Does what a plan does before it compiles."""
    from diffae_jax.cli import plan
    from diffae_jax.cli.arguments import Parser
    from diffae_jax.cli.train import parse

    if "--dry_run" in arguments:
        values = parse(arguments)
        assert plan.checked(values.config, values.target, ()) is not None
        return
    parser = Parser("diffae plan")
    plan.add_arguments(parser)
    keys = [argument for argument in arguments if argument.startswith("--config.")]
    asked = parser.parse_args([argument for argument in arguments if argument not in keys])
    config = parse([f"--config={asked.config}", *keys]).config
    assert plan.checked(config, asked.target, asked.programs or ()) is not None


def check_training(arguments: list[str], folder: Path) -> None:
    """Does what a training command does before its first step: reads its config and its images."""
    from diffae_jax.cli.train import parse
    from diffae_jax.config import check_run
    from diffae_jax.data.run_images import open_data

    config = parse(arguments).config
    check_run(config)
    folder.mkdir(parents=True)
    open_data(config, folder, begun=False)


def exit_code(arguments: list[str]) -> int:
    """Runs `diffae` in this process and returns its exit code."""
    from diffae_jax import cli

    try:
        cli.run(arguments)
    except SystemExit as end:  # --help ends so, too
        return end.code
    return 0
