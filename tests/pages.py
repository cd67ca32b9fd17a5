"""Runs the Python blocks and the shell lines of a page, from top to bottom, in a folder that has what they name."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from tests.environment import ROOT

# what takes hours, needs files that nobody has, or asks the network: the words on the left become those on the right
REPLACED = {
    '"configs/images.py"': '"tiny.py"',
    "(64, 64, 1)": "(8, 8, 1)",
    " --download": "",
}
TRAINING = (  # of every training command: two steps of the tiny network
    *("--config.image_shape=(8, 8, 1)", "--config.model.base_channels=32", "--config.model.channel_mults=(1,)"),
    *("--config.model.encoder_channel_mults=(1,)", "--config.model.attention_resolutions=()"),
    *("--config.model.embed_dim=32", "--config.model.z_dim=8", "--config.train.batch_size=16"),
    *("--config.train.num_images=32", "--config.report.num_grid_images=2", "--config.report.num_grid_steps=2"),
    "--stages=autoencoder",
)
QUICK = {"evaluate": "--num-images 16 --num-samples 16 --steps 2 --code-steps 2"}  # further arguments of a command
INSTALLATIONS = ("pip", "make", ".venv/bin/python", ".venv/bin/ruff")  # recognized, not run
NO_COMMANDS = ("runs/NAME/",)  # how a block begins that shows something else

Block = tuple[str, str]  # "python" or "shell", and what it says


def blocks(page: str) -> Iterator[Block]:
    """Yields the blocks of a page: fenced python, and lines of a shell, fenced or indented by four spaces."""
    pattern = r"^```(\w*)\n(.*?)^```$|((?:^    [^\n]*\n(?:\n(?=    ))?)+)"
    for language, fenced, indented in re.findall(pattern, page + "\n", re.MULTILINE | re.DOTALL):
        if language == "python":
            yield "python", fenced
        elif indented or language in ("sh", "bash", "shell"):
            yield "shell", re.sub(r"^    ", "", indented, flags=re.MULTILINE) or fenced


def commands(block: str) -> list[list[str]]:
    """Returns the words of each command, without comments and with continued lines as one."""
    if block.startswith(NO_COMMANDS):
        return []
    lines = re.sub(r"\\\n", " ", block).splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def replaced(text: str) -> str:
    for word, other in REPLACED.items():
        text = text.replace(word, other)
    return text


def prepare(folder: Path, trained: Path) -> None:
    """Fills a folder with what the pages name: a trained run under several names, images, labels, checkpoints.

    What only one page finds there lies below `of PAGE`.
    """
    from diffae_jax import DiffAE
    from diffae_jax.data.formats.digits import digits

    images, kinds = digits()[1].images[:40, ..., 0], digits()[1].labels["digit"][:40]
    for name in ("photos", "FOLDER", "test-images", "training-images", "of evaluate/faces/test"):
        for i, image in enumerate(images):
            path = folder / name / ("low" if kinds[i] < 5 else "high") / f"{i:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
    (folder / "of README" / "photos").mkdir(parents=True)
    for i, name in enumerate(("of README/photos/me.jpg", "photo.png", "photo.jpg", "a.png", "b.png")):
        Image.fromarray(images[i]).save(folder / name)
    rows = [f"{i:02d}.png,{int(kind < 5)}" for i, kind in enumerate(kinds)]
    (folder / "labels.csv").write_text("\n".join(["file,smile", *rows]))
    model = DiffAE.load(trained)
    model.fit_probe("smile", model.encode(images[..., None]), (kinds < 5).astype(int))
    for name in ("digits", "mine", "faces", "NAME"):
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


def given(page: str) -> dict:
    """Returns the names that the pages use without defining them."""
    from diffae_jax import DiffAE
    from diffae_jax.data.formats.digits import digits

    model, images = DiffAE.load("runs/digits/bundle"), digits()[1].images[:40]
    labels = (digits()[1].labels["digit"][:40] < 5).astype(int)
    z, x_T = model.encode(images[:4]), np.random.default_rng(0).normal(size=(4, 8, 8, 1)).astype(np.float32)
    names = dict(model=model, images=images, labels=labels, photo=images[:1], z=z, x_T=x_T, target=x_T, cells=images)
    if page == "official_weights":
        names["images"] = np.zeros((2, 16, 16, 3), np.float32)
    return names


def run() -> None:
    """Runs the page named by the first argument in the working folder; for a process of its own."""
    path = Path(sys.argv[1])
    names = {"__name__": "__main__"} | ({} if path.stem == "extend" else given(path.stem))
    for kind, text in blocks(path.read_text()):
        print(f"--- {kind}\n{text}", flush=True)
        if kind == "python":
            exec(compile(replaced(text), f"{path.name}, a block", "exec"), names)
        else:
            for words in commands(replaced(text)):
                run_command(words)


def run_command(words: list[str]) -> None:
    """Runs a line of a shell. Raises AssertionError where it ends with an error, or is no command that is known."""
    from diffae_jax import cli

    if words[0].startswith("--config."):  # options of a training command
        words = ["python", "-m", "diffae_jax.main", "--config=configs/images.py", *words]
    if words[:3] == ["python", "-m", "diffae_jax.main"] or words[:2] == ["diffae", "train"]:
        path = (
            () if any("data.path" in word or "digits.py" in word for word in words) else ("--config.data.path=FOLDER",)
        )
        workdir = f"--workdir=trained/{len(list(Path().glob('trained/*')))}"
        arguments = words[3:] if words[0] == "python" else words[2:]
        command = [sys.executable, "-m", "diffae_jax.main", *arguments, *path, *TRAINING, workdir]
        done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, text=True, capture_output=True)
        assert done.returncode == 0, done.stdout + done.stderr
    elif words[0] == "diffae":
        words = [*words[1:], *QUICK.get(words[1], "").split()]
        if "--out" in words and Path(words[words.index("--out") + 1]).exists():
            words.append("--overwrite")
        cli.run(words)
    else:
        assert words[0] in INSTALLATIONS, f"a line that is not run: {shlex.join(words)}"
