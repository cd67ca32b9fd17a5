"""TIFF files with several pages: pictures, or the slices of volumes."""

import numpy as np
import pytest
import tifffile
from PIL import Image

from diffae_jax.data.detect import open_images
from diffae_jax.data.sources import Subset
from diffae_jax.data.splits import open_splits
from diffae_jax.runtime.errors import UserError
from tests.data.test_formats import all_of, call_is_refused, damaged, is_refused, opened
from tests.data_files import make_tiff_stack, noise, png
from tests.messages import assert_is_one_sentence

PICTURE, VOLUME = (8, 10, 1), (4, 8, 10, 1)


@pytest.mark.parametrize("compression", [None, "zlib", "lzw", "zstd"])
@pytest.mark.parametrize("dtype", ["u1", "<u2", ">u2", "<f4", "i2"])
def test_pages_are_pictures_or_the_depth_of_a_volume(tmp_path, dtype, compression):
    pages = noise(4, 8, 10, dtype=dtype)
    path = make_tiff_stack(tmp_path, pages, "a.tif", compression=compression)
    pictures = opened(path, PICTURE)
    assert list(pictures.ids) == ["a.tif#0", "a.tif#1", "a.tif#2", "a.tif#3"]
    assert pictures[0].dtype == pages.dtype.newbyteorder("=")
    np.testing.assert_array_equal(all_of(pictures), pages[..., None])
    volumes = opened(tmp_path, VOLUME)
    assert list(volumes.ids) == ["a.tif"]
    np.testing.assert_array_equal(volumes[0], pages[..., None])


@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_colors_are_channels(tmp_path, planar):
    pages = noise(4, 8, 10, 3)
    stored = pages if planar == "contig" else np.moveaxis(pages, -1, 1)
    path = make_tiff_stack(tmp_path, stored, photometric="rgb", planarconfig=planar)
    np.testing.assert_array_equal(all_of(opened(path, (8, 10, 3))), pages)
    np.testing.assert_array_equal(opened(path, (4, 8, 10, 3))[0], pages)


@pytest.mark.parametrize("settings", [{"ome": True}, {"imagej": True}], ids=["OME", "ImageJ"])
def test_named_axes_are_respected(tmp_path, settings):
    values = noise(2, 4, 3, 8, 10, dtype=np.uint16)
    path = make_tiff_stack(tmp_path, values, photometric="minisblack", metadata={"axes": "TZCYX"}, **settings)
    volumes = opened(path, (4, 8, 10, 3))
    assert list(volumes.ids) == ["images.tif#0", "images.tif#1"]
    np.testing.assert_array_equal(all_of(volumes), np.moveaxis(values, 2, -1))
    pictures = opened(path, (8, 10, 3))
    assert len(pictures) == 8
    np.testing.assert_array_equal(all_of(pictures), np.moveaxis(values, 2, -1).reshape(8, 8, 10, 3))


def test_order_of_axes_does_not_matter(tmp_path):
    values = noise(3, 2, 4, 8, 10)
    path = make_tiff_stack(tmp_path, values, ome=True, photometric="minisblack", metadata={"axes": "CTZYX"})
    np.testing.assert_array_equal(all_of(opened(path, (4, 8, 10, 3))), np.moveaxis(values, 0, -1))


def test_time_is_no_depth(tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "a.tif").write_bytes(png(noise(8, 10), "tiff"))
    is_refused(tmp_path / "one", r"a.tif has the axes YX of lengths \(8, 10\), but .* needs 3 spatial", VOLUME)
    path = make_tiff_stack(tmp_path, noise(4, 8, 10), ome=True, metadata={"axes": "TYX"})
    assert len(opened(path, PICTURE)) == 4
    is_refused(path, r"has the axes TYX of lengths \(4, 8, 10\), but --config.image_shape needs 3 spatial", VOLUME)


def test_pages_may_have_different_sizes_and_thumbnails_are_left_out(tmp_path):
    pages = [noise(8, 10), noise(9, 11), noise(8, 10, seed=1)]
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        for page in pages:
            file.write(page, metadata=None)
        file.write(pages[0][:3, :4], subfiletype=1, metadata=None)
    found = all_of(opened(tmp_path, PICTURE))
    for image, page in zip(found, [pages[0], pages[2], pages[1]], strict=True):
        np.testing.assert_array_equal(image[..., 0], page)


def test_white_that_is_0_is_inverted(tmp_path):
    pages = noise(2, 8, 10)
    path = make_tiff_stack(tmp_path, pages, photometric="miniswhite")
    np.testing.assert_array_equal(all_of(opened(path, PICTURE)), 255 - pages[..., None])


def test_single_pages_stay_with_pillow(tmp_path, monkeypatch):
    for i in range(3):
        (tmp_path / f"{i}.tif").write_bytes(png(noise(8, 10), "tiff"))
    visited = []
    read = tifffile.TiffFile.__init__
    monkeypatch.setattr(tifffile.TiffFile, "__init__", lambda self, *a, **k: visited.append(a) or read(self, *a, **k))
    found = open_images(tmp_path, PICTURE)
    assert found.kind == "a folder of image files"
    assert len(visited) == 1  # a folder may have 100,000 of them
    np.testing.assert_array_equal(all_of(found.source), [noise(8, 10)[..., None]] * 3)


def test_stacks_and_single_pages_in_one_folder_are_refused(tmp_path):
    make_tiff_stack(tmp_path, noise(4, 8, 10), "b.tif")
    (tmp_path / "c.tif").write_bytes(png(noise(8, 10), "tiff"))
    is_refused(tmp_path, "c.tif has one page, but b.tif has several. Keep single pages and stacks in sep", PICTURE)
    (tmp_path / "a.tif").write_bytes(png(noise(8, 10), "tiff"))
    is_refused(tmp_path, "b.tif has 4 pages, so it is not one image. Keep single pages and stacks in", PICTURE)


def test_other_files_of_the_folder_are_noted(tmp_path):
    make_tiff_stack(tmp_path, noise(4, 8, 10), "b.tif")
    (tmp_path / "preview.png").write_bytes(png(noise(8, 10)))
    assert open_images(tmp_path, VOLUME).notes == [
        "1 file is not read, because the file type differs from that of the images (preview.png)."
    ]


def test_held_out_files_are_apart(tmp_path):
    for name in ("train", "val"):
        (tmp_path / name).mkdir()
        make_tiff_stack(tmp_path / name, noise(4, 8, 10))
    _, training, held_out = open_splits(str(tmp_path), PICTURE, held_out="val")
    assert isinstance(held_out, Subset)
    assert list(held_out.ids) == [f"val/images.tif#{i}" for i in range(4)]
    assert list(training.ids) == [f"train/images.tif#{i}" for i in range(4)]
    call_is_refused(
        lambda: open_splits(str(tmp_path), PICTURE, held_out=str(tmp_path / "val")), "has images in common with the"
    )


def test_without_tifffile_the_extra_is_named(tmp_path, monkeypatch):
    make_tiff_stack(tmp_path, noise(4, 8, 10), "a.tif")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    is_refused(tmp_path, r'a.tif has 4 pages, which need tifffile: pip install "diffae_jax\[tiff\]"', PICTURE)
    is_refused(tmp_path / "a.tif", r'a.tif needs tifffile: pip install "diffae_jax\[tiff\]"', VOLUME)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("settings", [{}, {"compression": "zlib"}, {"ome": True}], ids=["plain", "zlib", "OME"])
@pytest.mark.parametrize("image_shape", [PICTURE, VOLUME], ids=["picture", "volume"])
def test_damage_gives_the_images_or_a_sentence(tmp_path, image_shape, settings):
    pages = noise(4, 8, 10)
    name = "a.ome.tif" if settings.get("ome") else "a.tif"
    path = make_tiff_stack(tmp_path, pages, name, **settings)
    content, rng, outcomes = path.read_bytes(), np.random.default_rng(0), set()
    for i in range(100):
        path = tmp_path / f"{i}-{name}"
        path.write_bytes(damaged(content, rng))
        try:
            outcomes |= {found.ndim for found in all_of(opened(path, image_shape))}
        except UserError as error:
            assert_is_one_sentence(error)
            outcomes.add("told")
        path.unlink()
    assert outcomes == {len(image_shape), "told"}
    for share in (0.2, 0.5, 0.7, 0.95):
        (tmp_path / name).write_bytes(content[: int(share * len(content))])
        is_refused(tmp_path / name, name, image_shape)


def test_stack_without_its_last_page_is_refused(tmp_path):
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as file:
        for page in noise(4, 8, 10):
            file.write(page, metadata=None)
    with tifffile.TiffFile(path) as file:
        start = file.pages[3].offset
    path.write_bytes(path.read_bytes()[:start])
    is_refused(path, "a.tif is cut off or damaged after 3 pages. Repair or remove it", VOLUME)


def test_page_without_its_last_values_is_refused(tmp_path):
    pages = [Image.fromarray(page) for page in noise(4, 8, 10)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])  # the values follow the tags
    content = (tmp_path / "a.tif").read_bytes()
    (tmp_path / "a.tif").write_bytes(content[:-20])
    is_refused(tmp_path, "a.tif is cut off in page 3. Repair or remove it", VOLUME)
    np.testing.assert_array_equal(opened(tmp_path, PICTURE)[2][..., 0], pages[2])
