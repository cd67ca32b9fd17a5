"""Patterns that select images by name, and the note on names that look like masks."""

import json

import numpy as np
import pytest
from PIL import Image

from diffae_jax import cli
from diffae_jax.data.run_images import data_summary, open_data
from diffae_jax.data.selection import notes_on_names, select_images
from diffae_jax.data.splits import open_splits
from diffae_jax.runtime.errors import UserError
from tests.messages import assert_is_one_sentence
from tests.runs import TRAINING, finish, start

IDS = ["benign/a (1).png", "benign/a (1)_mask.png", "normal/b.png", "normal/b_mask.png", "normal/b_mask_1.png"]


@pytest.mark.parametrize(
    ("include", "exclude", "selected"),
    [
        ("", "", [0, 1, 2, 3, 4]),
        ("", "*_mask*", [0, 2]),
        ("", "*_mask.png, *_mask_?.png", [0, 2]),
        ("benign/*", "", [0, 1]),
        ("benign/*,b.png", "", [0, 1, 2]),
        ("normal/*", "*_mask*.png", [2]),
        ("[ab]?(1).png,b.png", "", [0, 2]),
    ],
)
def test_patterns_select_by_path_or_file_name(include, exclude, selected):
    assert np.flatnonzero(select_images(IDS, include, exclude)).tolist() == selected


@pytest.mark.parametrize(
    ("include", "exclude", "message"),
    [
        ("", "*_masks.png", r"The pattern \*_masks\.png of data\.exclude matches none of the 5 images"),
        ("*.jpg", "", r"The pattern \*\.jpg of data\.include matches none of the 5 images"),
        ("", "*", r"data\.exclude=\* leave none of the 5 images"),
    ],
)
def test_patterns_without_images_are_refused(include, exclude, message):
    with pytest.raises(UserError, match=message) as refusal:
        select_images(IDS, include, exclude)
    assert_is_one_sentence(refusal.value)


@pytest.mark.parametrize(
    ("ids", "suffix"),
    [
        ([f"{i}{part}.png" for i in range(4) for part in ("", "_mask")], "_mask"),
        ([f"c{i}/x{part}.png" for i in range(4) for part in ("", "-seg.final")], "-seg.final"),
        ([f"{i}{part}.png" for i in range(4) for part in ("", "_1")], None),
        ([f"scan_{i}.png" for i in range(8)], None),
        ([f"{i}.png" for i in range(8)] + ["0_mask.png"], None),
        (["a.png", "b/a_mask.png"], None),
    ],
)
def test_pairs_of_names_are_reported(ids, suffix):
    found = notes_on_names(ids)
    assert len(found) == (suffix is not None)
    if suffix:
        assert_is_one_sentence(found[0].replace(". If", ", if"))
        assert f"4 of 8 images are named like another image plus the suffix {suffix}. " in found[0]
        pattern = found[0].partition('exclude="')[2].partition('"')[0]
        assert [suffix in ids[i] for i in range(8)] == [not kept for kept in select_images(ids, "", pattern)]


@pytest.fixture
def folder(tmp_path):
    """Images of two values, with a mask of a third value next to each; two are in `val`."""
    for i in range(18):
        path = tmp_path / "images" / ("val" if i > 15 else "train") / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 100 + i % 2).save(path)
        Image.new("L", (8, 8), 255).save(path.with_name(f"{i:02d}_mask.png"))
    return tmp_path / "images"


@pytest.mark.parametrize("held_out", ["val", "PATH/val", "OTHER"])
def test_masks_are_in_neither_split(folder, tmp_path, held_out):
    """Whatever names the held-out images: a subfolder, its path, or another path."""
    path = folder
    if held_out == "OTHER":
        (folder / "val").rename(tmp_path / "other")
        held_out = str(tmp_path / "other")
    opened, *splits = open_splits(
        str(path), (8, 8, 1), held_out=held_out.replace("PATH", str(folder)), exclude="*_mask.png"
    )
    assert [len(source) for source in splits] == [16, 2]
    assert all(source[i].max() < 255 for source in splits for i in range(len(source)))
    assert any("images are selected by data.include and data.exclude." in note for note in opened.notes)


def test_slices_count_selected_images(folder):
    _, training, held_out = open_splits(str(folder), (8, 8, 1), held_out="[:2]", exclude="*_mask.png")
    assert held_out.ids == ["train/00.png", "train/01.png"]
    assert len(training) == 16


@pytest.mark.long  # the other tests select the same images without training
def test_run_trains_on_the_selected_images(folder, tmp_path):
    arguments = (f"--config.data.path={folder}", "--config.data.held_out=val", TRAINING)
    output = finish(start(tmp_path / "run", *arguments, "--config.data.exclude=*_mask.png"))
    assert "16 to train on, 2 held out." in output
    assert "18 of 36 images are selected by data.include and data.exclude." in output
    assert json.loads((tmp_path / "run" / "data.json").read_text())["training"] == 16


def test_masks_are_reported_before_training_and_by_the_command(folder, tmp_path, tiny_config, capsys):
    note = "18 of 36 images are named like another image plus the suffix _mask."
    tiny_config.data.update(path=str(folder), held_out="val")
    open_data(tiny_config, tmp_path, begun=False)
    assert any(note in line for line in data_summary(tmp_path))
    cli.run(["data", str(folder), "--held-out", "val"])
    assert note in capsys.readouterr().out
