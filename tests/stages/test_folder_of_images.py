"""Runs on a folder of images."""

import re
import shutil

import numpy as np
import pytest
from PIL import Image

from diffae_jax.evaluation import results
from diffae_jax.inference.diffae import DiffAE
from tests.runs import FEW_STEPS, TRAINING, finish, start


def test_other_images_are_refused(image_folder, tmp_path):
    arguments = TRAINING, FEW_STEPS
    finish(start(tmp_path / "run", *arguments, f"--config.data.path={image_folder}"))
    others = tmp_path / "others"
    shutil.copytree(image_folder, others)
    (others / "3.png").unlink()
    output = finish(start(tmp_path / "run", *arguments, f"--config.data.path={others}"), code=2)
    assert "began with 32 training images. Now there are 31" in output


def test_images_that_cannot_be_used_are_refused_or_left_out_and_listed_at_the_end(image_folder, tmp_path):
    images = tmp_path / "images"
    shutil.copytree(image_folder, images)
    (images / "3.png").write_bytes(b"junk")
    arguments = f"--config.data.path={images}", TRAINING, FEW_STEPS
    output = finish(start(tmp_path / "run", *arguments), code=2)
    assert re.search(
        r"3\.png cannot be read as an image .*To leave out such images, set --config\.data\.skip_bad=True\.", output
    )
    output = finish(start(tmp_path / "run", *arguments, "--config.data.skip_bad=True"))
    assert "31 to train on" in output
    last = output.splitlines()[-1]
    assert last.startswith("Left out: 1 image that cannot be used (3.png). ")
    assert str(images / "3.png") in (tmp_path / "run" / "data.json").read_text()


def test_the_grid_shows_held_out_images_of_all_folders(tmp_path):
    levels = dict(zip("abcd", (40, 100, 160, 220), strict=True))
    for name, level in levels.items():
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(20):
            Image.new("L", (8, 8), level).save(tmp_path / "images" / name / f"{i}.png")
    data = f"--config.data.path={tmp_path / 'images'}", "--config.data.held_out_share=0.5"
    finish(start(tmp_path / "run", *data, TRAINING, FEW_STEPS))
    (grid,) = (tmp_path / "run" / "autoencoder" / "grids").iterdir()
    pixels = np.asarray(Image.open(grid).convert("L"), int)
    inputs = pixels[: len(pixels) // 5]  # within the first of four rows
    assert all((abs(inputs - level) <= 1).sum() > 100 for level in levels.values())


def test_folder_of_images_trains(image_folder, tmp_path):
    labels = tmp_path / "labels.csv"
    rows = [f"{i}.png,{i % 2},{i / 7},one" for i in range(32)]
    labels.write_text("\n".join(["file,odd,brightness,same", *rows, "33.png,0,0,one"]))
    arguments = (f"--config.data.path={image_folder}",)
    output = finish(start(tmp_path, *arguments, f"--config.data.labels={labels}"))
    assert "1 of 33 rows in the table of labels match no image (33.png)." in output
    assert re.search(r"  odd: binary, positive is '1', AUROC 0\.\d\d on 32 images", output)
    assert re.search(r"  brightness: continuous, R\^2 -?\d+\.\d\d on 32 images", output)
    assert "  no probe: The labels of same must have at least two different values, but all 32 are one." in output
    assert set(DiffAE.load(tmp_path / "bundle").probes) == {"odd", "brightness"}
    assert (
        "Images: a folder of image files, 32 to train on, 0 held out.\nSizes: all 12x12. All are scaled to 8x8."
        in output
    )
    assert "No images are held out" in output
    assert "Distances are measured to 16 of the images." in output
    assert "the last row compares 16 other real images" in output
    assert "labels was skipped: no images are held out from training." in output
    distances = results.read(tmp_path / "evaluation").section("sampling")
    assert distances.find("Frechet distance in random convolutions", "other real images").value > 0
    assert len(list((tmp_path / "autoencoder" / "grids").glob("*.png"))) == 1
    shutil.rmtree(tmp_path / "evaluation")
    moved = tmp_path / "moved"
    shutil.copytree(image_folder, moved)
    finish(start(tmp_path, f"--config.data.path={moved}", "--stages=evaluation"))
    assert (tmp_path / "evaluation" / "results.json").exists()


@pytest.mark.long  # the stages before the evaluation are those of the test above
def test_a_single_held_out_image_is_too_few_to_compare_samples_with(image_folder, tmp_path):
    arguments = f"--config.data.path={image_folder}", "--config.data.held_out_share=0.03"
    output = finish(start(tmp_path, *arguments))
    assert "31 to train on, 1 held out" in output
    assert "too few real images to compare samples with: two sets of at least 2 are needed" in output
    assert "probes: the images have no labels (--config.data.labels=FILE.csv)" in output
    assert (tmp_path / "bundle" / "manifest.json").exists()
