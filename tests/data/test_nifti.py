"""NIfTI: pictures, series, and volumes that are written back at their place in the world."""

import struct
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pytest
from nibabel.affines import apply_affine, from_matvec
from PIL import Image

from diffae_jax.cli import outputs
from diffae_jax.cli.inputs import images_of
from diffae_jax.data.detect import open_images
from diffae_jax.data.formats.files import file_paths
from diffae_jax.data.inspect.infer_shape import infer_image_shape
from diffae_jax.data.sources import TransformedSource
from diffae_jax.data.transforms import Transform
from tests.data.test_formats import all_of, is_refused, opened
from tests.data_files import make_hdf5, noise, save_nifti

LPS = np.diag([-1.0, -1, 1, 1])


# --- pictures ------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(9, 10), (9, 10, 1)], ids=str)
@pytest.mark.parametrize("affine", [np.eye(4), LPS], ids=["RAS", "LPS"])
def test_pictures_are_turned_like_volumes(tmp_path, affine, shape):
    values = noise(*shape, dtype=np.int16)
    source = opened(save_nifti(tmp_path / "a.nii", values, affine), (9, 10, 1))
    expected = values.reshape(9, 10, 1)
    np.testing.assert_array_equal(source[0], expected[::-1, ::-1] if affine is LPS else expected)
    assert infer_image_shape(tmp_path) == (8, 8, 1)


def test_slice_of_another_plane_is_a_picture(tmp_path):
    values = noise(9, 10, 1)
    sagittal = from_matvec([[0, 0, 1], [1, 0, 0], [0, -1, 0]])  # the array's axes point to the front and down
    source = opened(save_nifti(tmp_path / "a.nii", values, sagittal), (9, 10, 1))
    np.testing.assert_array_equal(source[0], values[:, ::-1])
    np.testing.assert_array_equal(opened(tmp_path, (1, 9, 10, 1))[0], values[None, :, ::-1, 0, None])


def test_channels_of_a_picture(tmp_path):
    values = noise(9, 10, 1, 3)
    np.testing.assert_array_equal(opened(save_nifti(tmp_path / "a.nii", values), (9, 10, 3))[0], values[:, :, 0])
    assert infer_image_shape(tmp_path) == (8, 8, 3)


# --- volumes and series --------------------------------------------------------------------------


def test_fourth_axis_holds_channels_or_is_refused(tmp_path):
    values = noise(9, 10, 11, 4)
    source = opened(save_nifti(tmp_path / "a.nii", values, LPS), (9, 10, 11, 4))
    np.testing.assert_array_equal(source[0], values[::-1, ::-1])
    assert infer_image_shape(tmp_path) == (8, 8, 8, 4)
    is_refused(
        tmp_path,
        r"a.nii has 4 volumes \(points in time or channels\), not 1\. Save each volume as a file, or set the channels "
        r"of --config.image_shape to 4",
        (9, 10, 11, 1),
    )
    save_nifti(tmp_path / "a.nii", noise(9, 10, 11, 200))
    is_refused(tmp_path, r"a.nii has 200 volumes .*, not 1\. Save each volume as a file\.$", (9, 10, 11, 1))
    with pytest.raises(ValueError, match="has 200 volumes"):
        infer_image_shape(tmp_path)


def test_axes_of_length_1_behind_the_volume(tmp_path):
    values = noise(9, 10, 11, 1, 3)
    source = opened(save_nifti(tmp_path / "a.nii", values), (9, 10, 11, 3))
    np.testing.assert_array_equal(source[0], values[:, :, :, 0])
    source = opened(save_nifti(tmp_path / "b.nii", values[..., 0]), (9, 10, 11, 1))
    np.testing.assert_array_equal(source[0], values[..., 0])


# --- written back --------------------------------------------------------------------------------

# of the array axes: to the left, down and to the front, with voxels of 2 x 3 x 1.5 mm
TURNED = from_matvec([[-2, 0, 0], [0, 0, 1.5], [0, -3, 0]], [90, -126, 72])


@pytest.mark.parametrize("affine", [np.eye(4), LPS, TURNED], ids=["RAS", "LPS", "turned"])
@pytest.mark.parametrize("size", [(8, 8, 8), (4, 8, 6), (24, 24, 24)], ids=str)
def test_volume_is_written_at_its_place_in_the_world(tmp_path, affine, size):
    """A blob has the same center of mass, in mm, in the input and in the output."""
    shape = (24, 32, 40) if size != (24, 24, 24) else (24, 24, 24)
    center = np.array([length * share for length, share in zip(shape, (0.45, 0.52, 0.48), strict=True)])
    distance = ((np.indices(shape).reshape(3, -1).T - center) ** 2).sum(1)
    blob = np.exp(-distance / 32).reshape(shape).astype(np.float32)
    path = save_nifti(tmp_path / "a.nii", blob, affine)
    transform = Transform((*size, 1), intensity=(0.0, 1.0))
    source = TransformedSource(opened(path, (*size, 1)), transform)
    names = outputs.names_of(source.ids, transform.image_shape, file_paths(source))
    assert names == ["a.nii.gz"]
    outputs.write_images(tmp_path / "out", names, source[0][None], transform, file_paths(source))
    written = nibabel.load(tmp_path / "out" / "a.nii.gz")
    assert written.shape == size
    assert nibabel.aff2axcodes(written.affine) == ("R", "A", "S")

    def center_of_mass(image):
        values = np.maximum(image.get_fdata(), 0)
        places = np.indices(values.shape).reshape(3, -1).T
        return apply_affine(image.affine, (places * values.reshape(-1, 1)).sum(0) / values.sum())

    spacing = nibabel.affines.voxel_sizes(written.affine).max()
    np.testing.assert_allclose(center_of_mass(written), center_of_mass(nibabel.load(path)), atol=0.05 * spacing)
    assert (tmp_path / "out" / "a.png").exists()
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["a.nii.gz", "a.png"]


def test_corners_of_the_scaled_volume_are_those_of_the_input(tmp_path):
    volume = noise(10, 20, 20)
    path = save_nifti(tmp_path / "a.nii.gz", volume, TURNED)
    transform = Transform((5, 5, 10, 1))  # in canonical order the input is 10 x 20 x 20, so one axis is cropped
    source = TransformedSource(opened(path, transform.image_shape), transform)
    outputs.write_images(tmp_path / "out", ["a.nii.gz"], source[0][None] / 255.0, transform, [path])
    written = nibabel.load(tmp_path / "out" / "a.nii.gz")
    canonical = nibabel.as_closest_canonical(nibabel.load(path)).affine
    for low, corner in (((0, 5, 0), (-0.5, -0.5, -0.5)), ((10, 15, 20), (4.5, 4.5, 9.5))):
        np.testing.assert_allclose(apply_affine(written.affine, corner), apply_affine(canonical, np.array(low) - 0.5))


def test_header_of_the_input_is_kept(tmp_path):
    image = nibabel.Nifti1Image(noise(8, 8, 8), TURNED)
    image.header.set_xyzt_units("mm")
    image.set_sform(TURNED, "mni")
    image.to_filename(tmp_path / "a.nii")
    transform = Transform((4, 4, 4, 1), intensity=(-1000.0, 1000.0))
    outputs.write_images(tmp_path / "out", ["a.nii.gz"], np.full((1, 4, 4, 4, 1), 0.5), transform, [tmp_path / "a.nii"])
    written = nibabel.load(tmp_path / "out" / "a.nii.gz")
    assert written.header.get_xyzt_units()[0] == "mm"
    assert int(written.header["sform_code"]) == 4
    assert written.get_data_dtype() == np.float32
    np.testing.assert_allclose(written.get_fdata(), 500)


def test_channels_are_written_in_the_fourth_axis(tmp_path):
    path = save_nifti(tmp_path / "a.nii", noise(8, 8, 8, 2))
    values = np.random.default_rng(0).uniform(-1, 1, (1, 4, 4, 4, 2))
    transform = Transform((4, 4, 4, 2), intensity=(-1.0, 1.0))
    outputs.write_images(tmp_path / "out", ["a.nii.gz"], values, transform, [path])
    np.testing.assert_allclose(nibabel.load(tmp_path / "out" / "a.nii.gz").get_fdata(), values[0], atol=1e-6)


@pytest.mark.parametrize(
    ("ids", "files", "image_shape", "names"),
    [
        (["a.nii", "b.nii.gz", "c.npy"], True, (8, 8, 8, 1), ["a.nii.gz", "b.nii.gz", "c.npy"]),
        (["a.nii", "a.nii.gz"], True, (8, 8, 8, 1), ["a.nii.nii.gz", "a.nii.gz.nii.gz"]),
        (["a.nii"], True, (8, 8, 1), ["a.png"]),
        (["a.nii"], False, (8, 8, 8, 1), ["a.npy"]),  # a name in an npz
        (["p/1.2.840", "p/1.2.841"], False, (8, 8, 8, 1), ["p/1.2.840.npy", "p/1.2.841.npy"]),  # series of DICOM
    ],
)
def test_names_of_outputs(ids, files, image_shape, names):
    assert outputs.names_of(ids, image_shape, list(map(Path, ids)) if files else []) == names


# --- HDF5 files, and BMP -------------------------------------------------------------------------


def test_folder_of_hdf5_files(tmp_path):
    volumes = noise(3, 9, 10, 11)
    for i, volume in enumerate(volumes):
        with h5py.File(tmp_path / f"{i}.h5", "w") as file:
            file["scan"], file["spacing"] = volume, np.ones(3)
    found = open_images(tmp_path, (9, 10, 11, 1))
    assert (found.kind, found.source.ids) == ("a folder of volumes", ["0.h5", "1.h5", "2.h5"])
    np.testing.assert_array_equal([found.source[i] for i in range(3)], volumes[..., None])
    assert infer_image_shape(tmp_path) == (8, 8, 8, 1)
    with h5py.File(tmp_path / "1.h5", "a") as file:
        file["mask"] = volumes[1] > 9
    is_refused(
        tmp_path, r"1.h5 has 2 arrays that may be the image \(mask, scan\)\. Choose one, for example .*#", (4, 4, 4, 1)
    )
    found = opened(f"{tmp_path}#scan", (9, 10, 11, 1))
    np.testing.assert_array_equal([found[i] for i in range(3)], volumes[..., None])
    np.testing.assert_array_equal(opened(f"{tmp_path / '1.h5'}#scan", (9, 10, 11, 1))[0], volumes[1, ..., None])
    np.testing.assert_array_equal(opened(tmp_path / "0.h5", (9, 10, 11, 1))[0], volumes[0, ..., None])
    np.testing.assert_array_equal(all_of(opened(f"{tmp_path / '0.h5'}#scan", (10, 11, 1))), volumes[0, ..., None])
    transformed = TransformedSource(found, Transform((8, 8, 8, 1)))
    np.testing.assert_array_equal(images_of(transformed), [transformed[i] for i in range(3)])  # not of paths alone
    assert opened(tmp_path, (9, 10, 11, 1)).fingerprint() != found.fingerprint()
    assert infer_image_shape(f"{tmp_path}#scan") == (8, 8, 8, 1)
    is_refused(f"{tmp_path}#mask", "0.h5 has no array mask. It has scan, spacing", (9, 10, 11, 1))
    with h5py.File(tmp_path / "2.h5", "w") as file:
        file.create_dataset("scan", (9, 10, 11), "u1")
    is_refused(f"{tmp_path}#scan", r"2.h5#scan has shape \(9, 10, 11\), but no values were written", (9, 10, 11, 1))
    (tmp_path / "2.h5").unlink()
    (tmp_path / "3.h5").write_bytes((tmp_path / "1.h5").read_bytes()[:-500])
    is_refused(f"{tmp_path}#scan", "3.h5 cannot be read as an array", (9, 10, 11, 1))


def test_hdf5_next_to_pictures_or_volumes_is_left_out(tmp_path):
    make_hdf5(tmp_path, noise(8, 8, 8))
    save_nifti(tmp_path / "a.nii", noise(8, 8, 8))
    assert open_images(tmp_path, (8, 8, 8, 1)).source.ids == ["a.nii"]


def test_bmp_with_5_or_6_bits_per_color_is_read(tmp_path):
    # no library writes such a file: 16 bits per pixel, and three masks

    colors = noise(8, 8, 3)
    red, green, blue = (colors[..., i].astype(np.uint16) >> bits for i, bits in enumerate((3, 2, 3)))
    pixels = (red << 11 | green << 5 | blue).astype("<u2")[::-1].tobytes()  # from the last row on
    header = struct.pack("<IiiHHIIiiII", 40, 8, 8, 1, 16, 3, len(pixels), 0, 0, 0, 0)
    masks = struct.pack("<III", 0xF800, 0x07E0, 0x001F)
    start = 14 + len(header) + len(masks)
    file_header = b"BM" + struct.pack("<IHHI", start + len(pixels), 0, 0, start)
    (tmp_path / "a.bmp").write_bytes(file_header + header + masks + pixels)
    found = opened(tmp_path, (8, 8, 3))[0]
    assert found.dtype == np.uint8
    np.testing.assert_allclose(found.astype(int), colors, atol=8)
    np.testing.assert_array_equal(found, np.asarray(Image.open(tmp_path / "a.bmp").convert("RGB")))
