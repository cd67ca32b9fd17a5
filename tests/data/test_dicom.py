"""DICOM: pictures and volumes, in the units of their modality or through their window."""

import io
import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.pixels import get_decoder

from diffae_jax.data.detect import open_images
from diffae_jax.data.sources import TransformedSource
from diffae_jax.data.splits import open_splits
from diffae_jax.data.transforms import Transform
from diffae_jax.inference.inputs import as_images
from diffae_jax.runtime.errors import UserError
from tests.data.test_formats import all_of, call_is_refused, damaged, is_refused, opened
from tests.data_files import make_dicom, noise, png, save_dicom, save_series
from tests.messages import assert_is_one_sentence

PICTURE, VOLUME = (8, 10, 1), (4, 8, 10, 1)


def one(path, image_shape=PICTURE):
    (image,) = all_of(opened(path, image_shape))
    return image


# --- values --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16])
def test_values_without_rescaling_keep_their_type(tmp_path, dtype):
    pixels = noise(8, 10, dtype=dtype)
    found = one(save_dicom(tmp_path / "a.dcm", pixels))
    assert found.dtype == dtype
    np.testing.assert_array_equal(found[..., 0], pixels)


def test_values_are_in_hounsfield_units(tmp_path):
    pixels = noise(8, 10, dtype=np.int16) // 16
    path = save_dicom(tmp_path / "a.dcm", pixels, RescaleSlope="2", RescaleIntercept="-1024.5", BitsStored=12)
    found = one(path)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found[..., 0], 2.0 * pixels - 1024.5)


def lut(entries, first, bits):
    item = Dataset()
    item.add_new(0x00283002, "US", [len(entries), first, bits])
    item.ModalityLUTType = "US"
    item.add_new(0x00283006, "US", [int(entry) for entry in entries])
    return [item]


def test_values_go_through_the_table_of_the_modality(tmp_path):
    pixels = noise(8, 10) % 16
    table = noise(16, dtype=np.uint16)
    found = one(save_dicom(tmp_path / "a.dcm", pixels, ModalityLUTSequence=lut(table, 0, 16)))
    np.testing.assert_array_equal(found[..., 0], table[pixels])


@pytest.mark.parametrize("rescale", [{}, {"RescaleSlope": 2, "RescaleIntercept": -100}], ids=["stored", "rescaled"])
@pytest.mark.parametrize(("dtype", "low", "high"), [(np.uint16, 0, 4095), (np.int16, -2048, 2047)])
def test_bright_is_bright_where_the_file_stores_the_opposite(tmp_path, dtype, low, high, rescale):
    pixels = noise(8, 10, dtype=dtype) // 16
    path = save_dicom(tmp_path / "a.dcm", pixels, BitsStored=12, PhotometricInterpretation="MONOCHROME1", **rescale)
    expected = low + high - pixels.astype(int)
    if rescale:
        expected = 2 * expected - 100
    np.testing.assert_array_equal(one(path)[..., 0], expected)


@pytest.mark.parametrize("inverted", [False, True])
def test_window_gives_values_from_0_to_255(tmp_path, inverted):
    pixels = np.arange(80, dtype=np.int16).reshape(8, 10) * 5 + 824
    kind = "MONOCHROME1" if inverted else "MONOCHROME2"
    settings = dict(RescaleSlope=1, RescaleIntercept=-1024, WindowCenter=[40, 0], WindowWidth=[200, 9])
    path = save_dicom(tmp_path / "a.dcm", pixels, PhotometricInterpretation=kind, **settings)
    found = one(f"{path}#window")
    units = pixels - 1024.0
    expected = np.clip((units - 39.5) / 199 + 0.5, 0, 1) * 255  # section C.11.2.1.2 of part 3 of the standard
    assert found.dtype == np.uint8
    np.testing.assert_allclose(found[..., 0], 255 - expected if inverted else expected, atol=0.51)
    assert len(np.unique(found)) > 30


def test_window_may_be_a_table(tmp_path):
    pixels = noise(8, 10) % 16
    table = np.sort(noise(16, dtype=np.uint16) // 4)  # of 14 bits
    path = save_dicom(tmp_path / "a.dcm", pixels, VOILUTSequence=lut(table, 0, 14))
    np.testing.assert_array_equal(one(f"{path}#window")[..., 0], np.round(table[pixels] * (255 / (2**14 - 1))))


def test_file_without_window_is_refused(tmp_path):
    save_dicom(tmp_path / "a.dcm", noise(8, 10))
    is_refused(f"{tmp_path}#window", "a.dcm has no window. Remove #window, and set data.intensity", PICTURE)
    is_refused(f"{tmp_path}#images", "has no part images. The only part of DICOM is window", PICTURE)


def test_colors_become_rgb(tmp_path):
    image = noise(8, 10, 3)
    np.testing.assert_array_equal(one(save_dicom(tmp_path / "rgb.dcm", image), (8, 10, 3)), image)
    full = np.asarray(Image.fromarray(image).convert("YCbCr"))
    path = save_dicom(tmp_path / "ybr.dcm", full, PhotometricInterpretation="YBR_FULL")
    np.testing.assert_allclose(one(path, (8, 10, 3)), image, atol=3)


@pytest.mark.parametrize("bits", [8, 16])
def test_palette_becomes_rgb(tmp_path, bits):
    index, colors = noise(8, 10) % 4, noise(4, 3)
    entries = {
        f"{name}PaletteColorLookupTable": (colors[:, i].astype(f"<u{bits // 8}") * (257 if bits == 16 else 1)).tobytes()
        for i, name in enumerate(("Red", "Green", "Blue"))
    }
    settings = {f"{name}Data": values for name, values in entries.items()}
    settings |= {f"{name}Descriptor": [4, 0, bits] for name in entries}
    path = save_dicom(tmp_path / "a.dcm", index, PhotometricInterpretation="PALETTE COLOR", **settings)
    np.testing.assert_array_equal(one(path, (8, 10, 3)), colors[index])


@pytest.mark.parametrize("name", ["RLE", "bigendian", "expb", "implicit", "jp2klossless", "padded"])
@pytest.mark.filterwarnings("ignore")
def test_scan_is_the_same_in_each_encoding(name):
    folder = Path(pydicom.__file__).parent / "data" / "test_files"
    scan = one(folder / "MR_small.dcm", (64, 64, 1))
    assert (scan.dtype, scan.shape, int(scan.min()), int(scan.max())) == (np.int16, (64, 64, 1), 127, 2145)
    np.testing.assert_array_equal(one(folder / f"MR_small_{name}.dcm", (64, 64, 1)), scan)


@pytest.mark.filterwarnings("ignore")
def test_deflated_file_is_read(tmp_path):
    pixels = noise(8, 10, dtype=np.uint16)
    path = save_dicom(tmp_path / "a.dcm", pixels)
    header = pydicom.dcmread(path)
    header.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    header.save_as(path)
    np.testing.assert_array_equal(one(path)[..., 0], pixels)


# --- frames --------------------------------------------------------------------------------------


def test_frames_are_pictures_or_the_depth_of_a_volume(tmp_path):
    frames = noise(4, 8, 10, dtype=np.uint16)
    save_dicom(tmp_path / "a.dcm", frames, NumberOfFrames=4)
    save_dicom(tmp_path / "b.dcm", frames[0])
    pictures = opened(tmp_path, PICTURE)
    assert list(pictures.ids) == ["a.dcm#0", "a.dcm#1", "a.dcm#2", "a.dcm#3", "b.dcm"]
    np.testing.assert_array_equal(all_of(pictures), [*frames[..., None], frames[0, ..., None]])
    (tmp_path / "b.dcm").unlink()
    np.testing.assert_array_equal(one(tmp_path, VOLUME), frames[..., None])
    call_is_refused(
        lambda: as_images([tmp_path / "a.dcm"], Transform(PICTURE)), "a.dcm has 4 frames, so it cannot be read as one"
    )


def test_frames_have_settings_of_their_own(tmp_path):
    frames, groups = noise(3, 8, 10, dtype=np.uint16), []
    for i in range(3):
        group, rescale, window = Dataset(), Dataset(), Dataset()
        rescale.RescaleSlope, rescale.RescaleIntercept = i + 1, -10 * i
        window.WindowCenter, window.WindowWidth = 1000 * (i + 1), 500
        group.PixelValueTransformationSequence, group.FrameVOILUTSequence = [rescale], [window]
        groups.append(group)
    path = save_dicom(tmp_path / "a.dcm", frames, NumberOfFrames=3, PerFrameFunctionalGroupsSequence=groups)
    expected = np.stack([(i + 1.0) * frames[i] - 10 * i for i in range(3)])[..., None]
    np.testing.assert_array_equal(all_of(opened(path, PICTURE)), expected)
    np.testing.assert_array_equal(one(path, (3, 8, 10, 1)), expected)
    seen = one(f"{path}#window", (3, 8, 10, 1))
    np.testing.assert_array_equal(seen[2] == 255, expected[2] > 3249)


# --- series --------------------------------------------------------------------------------------


def test_slices_are_sorted_by_their_position(tmp_path):
    volume = noise(4, 8, 10, dtype=np.int16)
    save_series(tmp_path / "a", volume)
    np.testing.assert_array_equal(one(tmp_path, VOLUME), volume[..., None])
    save_series(tmp_path / "b" / "tilted", volume, ImageOrientationPatient=[0, 1, 0, 0, 0, -1], series="2")
    for i, path in enumerate(sorted((tmp_path / "b" / "tilted").iterdir(), reverse=True)):
        header = pydicom.dcmread(path)
        header.ImagePositionPatient, header.InstanceNumber = [50 + 3 * i, 0, 0], 1 - i  # normal: -x
        header.save_as(path)
    found = opened(tmp_path, VOLUME)
    assert list(found.ids) == ["a", "b/tilted"]
    np.testing.assert_array_equal(found[1], volume[::-1, ..., None])


def test_slices_without_positions_are_sorted_by_their_number(tmp_path):
    volume = noise(12, 8, 10, dtype=np.int16)
    for i, pixels in enumerate(volume):
        save_dicom(tmp_path / f"{i * 5 % 12:02d}.dcm", pixels, SeriesInstanceUID="1.2", InstanceNumber=i)
    np.testing.assert_array_equal(one(tmp_path, (12, 8, 10, 1)), volume[..., None])


def test_each_series_of_a_folder_is_a_volume(tmp_path):
    volumes = noise(2, 4, 8, 10, dtype=np.int16)
    for i, volume in enumerate(volumes):
        save_series(tmp_path / str(i), volume, series=f"1.2.{i}")
        for path in (tmp_path / str(i)).iterdir():
            shutil.copy(path, tmp_path / f"{i}-{path.name}")
        shutil.rmtree(tmp_path / str(i))
    found = opened(tmp_path, VOLUME)
    assert list(found.ids) == ["1.2.0", "1.2.1"]
    np.testing.assert_array_equal(all_of(found), volumes[..., None])


def test_scout_next_to_a_volume_is_left_out(tmp_path):
    volume = noise(4, 8, 10, dtype=np.int16)
    save_series(tmp_path / "a", volume)
    save_dicom(tmp_path / "a" / "scout.dcm", volume[0], SeriesInstanceUID="1.2.9")
    found = open_images(tmp_path, VOLUME)
    assert list(found.source.ids) == ["a/1.2.3"]
    assert found.notes == ["1 series with a single slice is not read (a/1.2.9)."]
    np.testing.assert_array_equal(found.source[0], volume[..., None])
    assert len(opened(tmp_path, (1, 8, 10, 1))) == 2
    (found,) = [open_images(tmp_path / "a" / "scout.dcm", VOLUME)]
    assert (len(found.source), found.notes) == (1, [])


def test_volumes_with_problems_are_named(tmp_path):
    volume = noise(4, 8, 10, dtype=np.int16)
    folder = save_series(tmp_path / "a", volume)
    shutil.copy(folder / "01.dcm", folder / "1-copy.dcm")
    is_refused(tmp_path, r"a has two slices at the same place \(01.dcm, 1-copy.dcm\)\. Move one of them", VOLUME)
    (folder / "1-copy.dcm").unlink()
    save_dicom(folder / "x.dcm", volume[0], SeriesInstanceUID="1.2.3")
    is_refused(tmp_path, "a has slices with neither a position nor an InstanceNumber, so their order is unk", VOLUME)
    place = dict(SeriesInstanceUID="1.2.3", ImagePositionPatient=[0, 0, 0])
    save_dicom(folder / "x.dcm", volume[0], ImageOrientationPatient=[0, 1, 0, 0, 0, 1], **place)
    is_refused(tmp_path, "a has slices that are not parallel", VOLUME)
    save_dicom(folder / "x.dcm", volume[0, :4], ImageOrientationPatient=[1, 0, 0, 0, 1, 0], **place)
    is_refused(tmp_path, "a has slices of different sizes", VOLUME)


def test_missing_slice_is_noted(tmp_path):
    for name in ("a", "b"):
        save_series(tmp_path / name, noise(6, 8, 10))
    assert open_images(tmp_path, VOLUME).notes == []
    assert open_images(tmp_path, PICTURE).notes == [
        "The pictures are slices of 2 series. With three spatial axes in --config.image_shape, each series is one "
        "volume."
    ]
    (tmp_path / "b" / "03.dcm").unlink()
    assert open_images(tmp_path, VOLUME).notes == [
        "Slices seem to be missing, or are unevenly spaced, in 1 volume (b)."
    ]


# --- files ---------------------------------------------------------------------------------------


def test_files_are_recognized_by_suffix_or_content(tmp_path):
    pixels = noise(3, 8, 10)
    names = ["1.2.840.113619", "IM_0001", "z/c.DCM"]
    (tmp_path / "z").mkdir()
    for name, image in zip(names, pixels, strict=True):
        save_dicom(tmp_path / name, image)
    (tmp_path / "README").write_text("no DICOM")
    (tmp_path / "b.png").write_bytes(png(pixels[0]))
    (tmp_path / "DICOMDIR").write_bytes((tmp_path / "IM_0001").read_bytes())
    found = open_images(tmp_path, PICTURE)
    assert list(found.source.ids) == names
    np.testing.assert_array_equal(all_of(found.source), pixels[..., None])
    assert found.notes == [
        "3 files are not read, because the file type differs from that of the images (DICOMDIR, README, b.png)."
    ]
    np.testing.assert_array_equal(one(tmp_path / "IM_0001"), pixels[1, ..., None])
    images, _ = as_images([tmp_path / "z" / "c.DCM"], Transform(PICTURE))
    np.testing.assert_array_equal(images, pixels[2:, ..., None])
    for i in range(5):
        (tmp_path / f"{i}.png").write_bytes(png(pixels[0]))
    assert open_images(tmp_path, PICTURE).kind == "a folder of image files"


def test_old_file_without_preamble_is_read(tmp_path):
    pixels = noise(8, 10, dtype=np.uint16)
    path = save_dicom(tmp_path / "a.dcm", pixels)
    header = pydicom.dcmread(path)
    del header.file_meta
    header.preamble = None
    header.save_as(path, implicit_vr=True, little_endian=True, enforce_file_format=False)
    assert path.read_bytes()[128:132] != b"DICM"
    np.testing.assert_array_equal(one(tmp_path)[..., 0], pixels)


def test_files_without_an_image_are_noted(tmp_path):
    save_dicom(tmp_path / "a.dcm", noise(8, 10))
    report = pydicom.dcmread(tmp_path / "a.dcm")
    for name in ("Rows", "Columns", "PixelData"):
        delattr(report, name)
    report.save_as(tmp_path / "report.dcm")
    found = open_images(tmp_path, PICTURE)
    assert list(found.source.ids) == ["a.dcm"]
    assert found.notes == ["1 DICOM file holds no image (report.dcm)."]
    (tmp_path / "a.dcm").unlink()
    is_refused(tmp_path, "report.dcm holds no DICOM image, only other data of DICOM. Give the image files", PICTURE)


def test_tags_are_labels(tmp_path):
    tags = dict(
        PatientSex=["F", "M", None],
        PatientAge=["045Y", "006M", None],
        ViewPosition=["AP", "PA", "AP"],
        Modality=["CR"] * 3,  # of all images, so not a label
        PatientName=["A^B", "C^D", "E^F"],
    )
    source = opened(make_dicom(tmp_path, noise(3, 8, 10), **tags), PICTURE)
    assert source.labels.keys() == {"PatientSex", "PatientAge", "ViewPosition"}
    assert source.labels["PatientSex"].tolist() == ["F", "M", ""]
    np.testing.assert_array_equal(source.labels["PatientAge"], [45, 0.5, np.nan])


def test_held_out_images_are_apart(tmp_path):
    for i in range(4):
        save_series(tmp_path / ("val" if i < 2 else "train") / str(i), noise(4, 8, 10))
    _, training, held_out = open_splits(str(tmp_path), VOLUME, held_out="val")
    assert (list(training.ids), list(held_out.ids)) == (["train/2", "train/3"], ["val/0", "val/1"])
    call_is_refused(
        lambda: open_splits(str(tmp_path), VOLUME, held_out=str(tmp_path / "val")), "has images in common with the"
    )
    _, training, held_out = open_splits(str(tmp_path / "train"), VOLUME, held_out=str(tmp_path / "val"))
    assert (len(training), len(held_out)) == (2, 2)


# --- compression and damage ----------------------------------------------------------------------


def test_compressed_files_are_read(tmp_path):
    image = noise(16, 16, 3)
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG2000", irreversible=False, no_jp2=True)
    path = save_dicom(tmp_path / "j2k.dcm", image, pydicom.uid.JPEG2000Lossless, [file.getvalue()])
    np.testing.assert_array_equal(one(path, (16, 16, 3)), image)
    flat = np.full((16, 16), 77, np.uint8)
    path = save_dicom(tmp_path / "jpeg.dcm", flat, pydicom.uid.JPEGBaseline8Bit, [png(flat, "JPEG")])
    np.testing.assert_allclose(one(path, (16, 16, 1))[..., 0], flat, atol=1)
    path = save_dicom(tmp_path / "rle.dcm", noise(16, 16, dtype=np.uint16))
    header = pydicom.dcmread(path)
    header.compress(pydicom.uid.RLELossless)
    header.save_as(path)
    np.testing.assert_array_equal(one(path, (16, 16, 1))[..., 0], noise(16, 16, dtype=np.uint16))


@pytest.mark.parametrize(
    ("syntax", "message"),
    [
        (pydicom.uid.JPEGLosslessSV1, "compressed as JPEG Lossless.*: pip install pylibjpeg pylibjpeg-libjpeg"),
        (pydicom.uid.JPEGExtended12Bit, "compressed as JPEG Extended.*: pip install pylibjpeg pylibjpeg-libjpeg"),
        (pydicom.uid.HTJ2KLossless, "compressed as High-Thr.*: pip install pylibjpeg pylibjpeg-openjpeg"),
        (pydicom.uid.MPEG2MPML, "compressed as MPEG2 .*, which pydicom cannot read. Convert it"),
    ],
    ids=lambda value: getattr(value, "keyword", ""),
)
def test_compression_that_needs_another_library_is_refused(tmp_path, syntax, message):
    if "pip" in message and set(get_decoder(syntax).available_plugins) - {"pillow"}:
        pytest.skip("the library is installed")
    pixels = noise(8, 10, dtype=np.uint16)
    save_dicom(tmp_path / "a.dcm", pixels, syntax, [bytes(100)], BitsStored=12)
    is_refused(tmp_path, f"a.dcm is {message}", PICTURE)


def test_beyond_all_measure_is_refused(tmp_path):
    save_dicom(tmp_path / "a.dcm", noise(8, 10), NumberOfFrames=2_000_000, Rows=65535, Columns=65535)
    is_refused(tmp_path / "a.dcm", "a.dcm has 8,589,672,450,000,000 values per image", VOLUME)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("image_shape", [PICTURE, VOLUME], ids=["picture", "volume"])
def test_damage_gives_an_image_or_a_sentence(tmp_path, image_shape):
    folder = save_series(tmp_path / "a", noise(4, 8, 10, dtype=np.int16), RescaleSlope=2, RescaleIntercept=1)
    content, rng, outcomes = (folder / "02.dcm").read_bytes(), np.random.default_rng(0), set()
    for _ in range(150):
        (folder / "02.dcm").write_bytes(damaged(content, rng))
        try:
            source = opened(tmp_path, image_shape)
            outcomes |= {found.ndim for found in all_of(source)}
            _ = source.labels, source.fingerprint()
        except UserError as error:
            assert_is_one_sentence(error)
            outcomes.add("told")
    assert outcomes == {len(image_shape), "told"}
    for length in (0, 100, 200, len(content) - 20):
        (folder / "02.dcm").write_bytes(content[:length])
        is_refused(tmp_path, "02.dcm.* cannot be read", image_shape)
    (folder / "02.dcm").unlink()
    assert len(opened(tmp_path, image_shape)) == (3 if image_shape == PICTURE else 1)


def test_damaged_slice_is_an_item_that_can_be_skipped(tmp_path):
    for name in ("a", "b"):
        save_series(tmp_path / name, noise(4, 8, 10))
    (tmp_path / "b" / "02.dcm").write_bytes(b"junk" * 100)
    source = TransformedSource(opened(tmp_path, (3, 8, 10, 1)), Transform((3, 8, 10, 1)))
    assert list(source.ids) == ["a", "b", "b/02.dcm"]
    call_is_refused(lambda: source[2], "b/02.dcm cannot be read as DICOM. Repair or remove it")
    assert source[1].shape == (3, 8, 10, 1)


def test_without_pydicom_the_extra_is_named(tmp_path, monkeypatch):
    save_dicom(tmp_path / "a.dcm", noise(8, 10))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for path in (tmp_path, tmp_path / "a.dcm"):
        is_refused(path, r'needs pydicom: pip install "diffae_jax\[dicom\]"', PICTURE)
    call_is_refused(lambda: as_images([tmp_path / "a.dcm"], Transform(PICTURE)), "a.dcm needs pydicom: pip install")
