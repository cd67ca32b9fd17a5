"""Libraries that read images: a command prints none of their warnings, which name no file."""

import numpy as np
import pydicom
import pytest
import tifffile
from PIL import Image

from tests.processes import Forked
from tests.runs import finish

CUT_EXIF = b"Exif\0\0II*\0\x08\0\0\0\x05\0\xff\0\1"
PIXELS = np.random.default_rng(0).integers(0, 256, (16, 16), np.uint8)


def with_cut_exif(folder):
    Image.fromarray(PIXELS).save(folder / "a.jpg", exif=CUT_EXIF)


def with_missing_pages(folder):
    pages = np.stack([PIXELS] * 5)
    tifffile.imwrite(folder / "a.ome.tif", pages, photometric="minisblack", metadata={"axes": "ZYX"})
    content = (folder / "a.ome.tif").read_bytes()
    (folder / "a.ome.tif").write_bytes(content.replace(b'SizeZ="5"', b'SizeZ="6"'))


def with_padding(folder):
    image = pydicom.Dataset()
    image.file_meta = pydicom.dataset.FileMetaDataset()
    image.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID = pydicom.uid.CTImageStorage
    image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID = pydicom.uid.generate_uid()
    image.Rows = image.Columns = 16
    image.BitsAllocated = image.BitsStored = 8
    image.HighBit, image.PixelRepresentation, image.SamplesPerPixel = 7, 0, 1
    image.PhotometricInterpretation = "MONOCHROME2"
    image.PixelData = PIXELS.tobytes() + bytes(4)
    image.save_as(folder / "a.dcm", enforce_file_format=True)


@pytest.mark.parametrize(("write", "code"), [(with_cut_exif, 0), (with_missing_pages, 1), (with_padding, 0)])
def test_command_prints_no_warning_of_a_library(tmp_path, write, code):
    write(tmp_path)
    output = finish(Forked("diffae_jax.cli:run", ["data", str(tmp_path), "--image-shape", "16", "16", "1"]), code)
    assert "Images: " in output
    for text in ("Warning", "site-packages", "Missing data are zeroed"):
        assert text not in output
