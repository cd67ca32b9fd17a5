"""Folders of many small files: how often each is read, and results that equal slower methods."""

import builtins
import collections
import hashlib
import io
import os
from pathlib import Path, PurePath

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from diffae_jax.config import default
from diffae_jax.data.detect import open_images
from diffae_jax.data.formats.files import Files, real_paths
from diffae_jax.data.inspect.animated import notes_on_frames
from diffae_jax.data.inspect.duplicates import find_duplicates
from diffae_jax.data.labels.matching import common_folder
from diffae_jax.data.run_images import facts, open_data
from diffae_jax.data.selection import _stem
from diffae_jax.data.sources import IN_PART, each, hash_of, hash_of_all
from diffae_jax.data.splits import open_splits
from tests.data_files import make_folder, noise

NUM_IMAGES = 40
ODD_NAMES = ["x.png", "a/x.png", "a/b.c/x.y.png", "a//x.png", "./a/x.png", "/a/x.png", "//x.png", "a/../x.png", "a/"]
ODD_NAMES += ["a/.", ".x", "a/.x", "a/.x.png", "x.", "a/x.", "a/..png", "x", "a.b/x", "..", "a/..", ".", "a/./x.png"]


@pytest.fixture
def folder(tmp_path):
    for name in ("a", "b"):
        (tmp_path / "images").mkdir(exist_ok=True)
        make_folder(tmp_path / "images" / name, noise(NUM_IMAGES // 2, 8, 8, 3, seed=ord(name)))
    return tmp_path / "images"


def config_of(folder):
    config = default()
    config.data.path, config.data.held_out_share, config.data.labels = str(folder), 0.3, "folders"
    config.image_shape = (8, 8, 3)
    return config


@pytest.fixture
def calls(monkeypatch):
    """Counts the calls of stat and open for each PNG file."""
    made = []  # threads append to it

    def counted(name, call):
        def counting(path, *arguments, **settings):
            if str(path).endswith(".png"):
                made.append((name, str(path)))
            return call(path, *arguments, **settings)

        return counting

    monkeypatch.setattr(os, "stat", counted("stat", os.stat))
    for module in (builtins, io):
        monkeypatch.setattr(module, "open", counted("open", module.open))

    def most(name):
        counts = collections.Counter(path for called, path in made if called == name)
        assert len(counts) in (0, NUM_IMAGES)
        made[:] = [call for call in made if call[0] != name]
        return max(counts.values(), default=0)

    return most


def test_a_run_asks_for_the_size_of_each_file_once_and_opens_it_only_to_scan(folder, tmp_path, calls):
    config, run = config_of(folder), tmp_path / "run"
    run.mkdir()
    open_data(config, run, begun=False)
    assert calls("stat") <= 3  # for the fingerprint, before the scan, and before frames are counted
    assert calls("open") <= 2
    open_data(config, run, begun=True)
    assert calls("stat") == 1
    assert calls("open") == 0


def test_runs_of_earlier_versions_have_the_same_fingerprint(folder):
    def sha(*texts):
        return hashlib.sha256("".join(f"{text}\0" for text in texts).encode()).hexdigest()

    source = open_images(folder, (8, 8, 3)).source
    names = [str(path.relative_to(folder)) for path in sorted(folder.rglob("*.png"))]
    files = sha(*(text for name in names for text in (name, (folder / name).stat().st_size)))
    assert source.fingerprint() == files
    _, *splits = open_splits(str(folder), (8, 8, 3), labels="folders", held_out_share=0.3)
    assert sum(map(len, splits)) == NUM_IMAGES
    expected = sha(*(sha(files, *split.ids) for split in splits))
    assert facts(*splits)["files"] == expected == hash_of(*(split.fingerprint() for split in splits))


@pytest.mark.parametrize("count", [0, 1, IN_PART - 1, IN_PART, IN_PART + 1, 2 * IN_PART])
def test_many_texts_have_the_hash_of_all_texts(count):
    texts = [f"ü{i}" for i in range(count)]
    assert hash_of_all(iter(texts)) == hashlib.sha256("".join(f"{text}\0" for text in texts).encode()).hexdigest()


@pytest.mark.parametrize("root", [".", "/", "a", "../a", "/a/b"])
def test_names_are_paths(root):
    source = Files(Path(root), ["x.png", "b/y.png"], (8, 8, 3))
    assert [source.name(i) for i in range(2)] == [str(Path(root) / name) for name in source.ids]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_folders_and_stems_of_names_equal_those_of_paths(name):
    path = PurePath(name)
    assert common_folder([name]) == "".join(f"{part}/" for part in path.parts[:-1])
    assert _stem(name) == (str(path.with_suffix("")) if path.name else "")


@pytest.mark.parametrize("in_group", [1, 7, 1000])
def test_groups_of_calls_keep_the_order(in_group):
    assert list(each(lambda i: 2 * i, range(600), in_group=in_group)) == list(range(0, 1200, 2))


def test_links_lead_to_the_same_paths_as_resolving_each(folder):
    outside = make_folder(folder.parent / "outside", noise(2, 8, 8, 3))
    (folder / "a" / "link.png").symlink_to(outside / "00.png")
    (folder / "c").symlink_to(outside)
    source = open_images(folder, (8, 8, 3)).source
    assert {"a/link.png", "c/00.png"} <= set(source.ids)
    assert list(real_paths(source)) == [str((folder / name).resolve()) for name in source.ids]


@pytest.mark.parametrize("length", [0, 5000], ids=["short", "long"])
def test_animated_png_are_found_whatever_precedes_their_frames(tmp_path, length):
    frames = [Image.fromarray(noise(8, 8, 3, seed=seed)) for seed in range(2)]
    text = PngImagePlugin.PngInfo()
    text.add_text("comment", "IDAT" * (length // 4))
    frames[0].save(tmp_path / "moving.png", save_all=True, append_images=frames[1:], pnginfo=text)
    frames[0].save(tmp_path / "still.png", pnginfo=text)
    (note,) = notes_on_frames(open_images(tmp_path, (8, 8, 3)).source)
    assert note.startswith("1 file is animated (moving.png)")


def test_duplicates_are_grouped_in_the_order_of_their_first_images():
    training, held_out = {"a": b"1", "b": b"2", "c": b"3", "d": b"3"}, {"e": b"2", "f": b"4"}
    assert find_duplicates(training, held_out) == [[("b", False), ("e", True)], [("c", False), ("d", False)]]


def test_a_copy_for_worker_processes_has_no_cache(folder):
    source = open_images(folder, (8, 8, 3)).source
    image = source[0]
    assert source.__getstate__().keys() == {"root", "ids", "image_shape", "array", "labels"}
    assert np.array_equal(image, np.asarray(Image.open(source.path(0))))
