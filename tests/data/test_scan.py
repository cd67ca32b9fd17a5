"""The scan before training: image statistics, unusable images, and the value range."""

import json

import numpy as np
import pytest
from PIL import Image

from diffae_jax.config import default
from diffae_jax.data.detect import open_images
from diffae_jax.data.formats.lmdb import open_lmdb
from diffae_jax.data.inspect import scan as scans
from diffae_jax.data.inspect.scan import check_all, describe, intensity_of, read_record, refuse_bad, scan
from diffae_jax.data.run_images import data_summary, left_out, open_data
from diffae_jax.data.sequences import SequenceSource
from diffae_jax.data.sources import Arrays, TransformedSource
from diffae_jax.data.transforms import Transform
from diffae_jax.runtime.errors import UserError
from diffae_jax.stages.run_folder import is_begun
from tests.data_files import make_folder, make_keys, noise, png, prepare_tfds
from tests.messages import assert_is_one_sentence


def is_refused(call, message):
    with pytest.raises(UserError, match=message) as refusal:
        call()
    assert_is_one_sentence(refusal.value)


def looked_at(images, image_shape, crop="center", **settings):
    return scan(TransformedSource(SequenceSource(images, image_shape), Transform(image_shape, crop)), **settings)


def images_of(source):
    return np.stack([source[i] for i in range(len(source))])


# --- statistics ---------------------------------------------------------------------------------


def test_images_are_counted_by_what_they_are():
    images = [noise(10, 12, 3), noise(10, 12, 1), noise(12, 10, 3), noise(9, 9, 4), noise(8, 8, 1, dtype=np.uint16)]
    images[0][2, 3, 1], images[4][:] = 0, 60_000
    found = looked_at(images, (8, 8, 3))
    assert found.count == 5
    assert found.sizes == {(10, 12): 2, (12, 10): 1, (9, 9): 1, (8, 8): 1}
    assert found.channels == {3: 2, 1: 2, 4: 1}
    assert found.types == {"uint8": 4, "uint16": 1}
    assert (found.low, found.high) == (0, 60_000)
    assert (found.bad, found.values, found.digests) == ({}, [], {})


def test_digests_tell_what_is_the_same():
    image = noise(8, 8, 1)
    images = [image, image.copy(), image.astype(np.uint16), image.reshape(4, 16, 1), image[::-1]]
    digests = list(looked_at(images, (4, 4, 1), digests=True).digests.values())
    assert digests[0] == digests[1]
    assert len(set(digests)) == 4


def test_images_that_cannot_be_used_are_found_each_with_its_reason(tmp_path):
    folder = make_folder(tmp_path, noise(6, 8, 8, 3))
    (folder / "01.png").write_bytes(b"junk")
    Image.new("RGB", (8, 7)).save(folder / "03.png")
    images = TransformedSource(open_images(folder, (8, 8, 3)).source, Transform((8, 8, 3)))
    found = scan(images)
    assert found.count == 4
    assert list(found.bad) == ["01.png", "03.png"]
    assert "01.png cannot be read as an image" in found.bad["01.png"]
    assert "03.png is 8x7 pixels, smaller than the 8x8" in found.bad["03.png"]
    is_refused(
        lambda: check_all(images),
        r"2 of 6 images cannot be used\. The first: .*01.png cannot .*\. Repair or remove it\.",
    )
    is_refused(lambda: refuse_bad(found, 6, " Do so."), r"2 of 6 images cannot be used\. The first: .*\. Do so\.$")
    check_all(Arrays(noise(3, 1, 1, 1), list("abc")))  # in memory, as they are to be


def test_unusable_types_and_channels_are_refused():
    images = noise(4, 8, 8, 1, dtype=np.float32)
    images[2, 3, 3] = np.nan
    is_refused(
        lambda: check_all(TransformedSource(SequenceSource(images, (8, 8, 1)), Transform((8, 8, 1)))),
        "^Image 2 of the .* not finite",
    )
    images[2] = 0
    message = "4 images have values of float32, .* Convert them to 8 or 16 bits"
    is_refused(lambda: check_all(TransformedSource(SequenceSource(images, (8, 8, 1)), Transform((8, 8, 1)))), message)
    check_all(TransformedSource(SequenceSource(images, (8, 8, 1)), Transform((8, 8, 1), intensity=(0.0, 1.0))))
    mixed = [noise(8, 8, 2), noise(8, 8, 5), noise(8, 8, 5)]
    assert list(looked_at(mixed, (8, 8, 5)).bad.values()) == [
        "Image 0 of the sequence has 2 channels, not 5. Set the last value of --config.image_shape to the number of "
        "channels of your images, or remove this image."
    ]


# --- how values are scaled -----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.float32, np.float64, bool])
@pytest.mark.parametrize("text", ["0.5%..99.5%", "10%..60%", "0%..100%"])
def test_percentiles_are_those_of_all_values(dtype, text):
    rng = np.random.default_rng(0)
    images = (rng.gamma(2, 20, (50, 16, 16, 3)) * [0.5, 1, 2]).clip(0, 255).astype(dtype)
    low, high = (float(part) for part in text.replace("%", "").split(".."))
    expected = np.percentile(images.astype(float), (low, high))
    if expected[0] == expected[1]:
        expected[1] += 1
    found = intensity_of(text, looked_at(images, (8, 8, 3), values=True))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_sample_is_of_all_channels_and_columns(dtype, monkeypatch):
    monkeypatch.setattr(scans, "SAMPLED_VALUES", 4096 * 8)
    values = np.arange(64 * 64 * 4).reshape(64, 64, 4) % 64 * 4  # a regular step would only hit some columns
    images = np.stack([values.astype(dtype)] * 8)
    found = looked_at(images, (8, 8, 4), values=True)
    assert sum(map(len, found.values)) == 4096 * 8
    np.testing.assert_allclose(intensity_of("10%..75%", found), np.percentile(values, (10, 75)), atol=8)


def test_percentiles_of_mixed_bits_are_of_both():
    images = [np.full((8, 8, 1), 10, np.uint8)] * 3 + [np.full((8, 8, 1), 1000, np.uint16)] * 7
    found = looked_at(images, (8, 8, 1), values=True)
    assert intensity_of("20%..80%", found) == (10, 1000)


@pytest.mark.parametrize(
    ("images", "text", "expected"),
    [
        (noise(4, 8, 8, 1), "", None),
        (noise(4, 8, 8, 1), "10..200", (10, 200)),
        (noise(4, 8, 8, 1) > 127, "", None),
        ([noise(8, 8, 1), noise(8, 8, 1, dtype=np.uint16)], "", None),  # both become 8 bits
        (np.linspace(0, 4000, 256, dtype=np.uint16).reshape(4, 8, 8, 1), "", (0, 4000)),
        (np.linspace(0, 200, 256, dtype=np.uint16).reshape(4, 8, 8, 1), "", (0, 255)),
        (np.linspace(-1000, 2000, 256).reshape(4, 8, 8, 1), "", (-1000, 2000)),
        (np.linspace(-0.9, 0.95, 256).reshape(4, 8, 8, 1), "", (-1, 1)),
        (np.linspace(0.1, 0.95, 256).reshape(4, 8, 8, 1), "", (0, 1)),
        (np.full((4, 8, 8, 1), 3.0), "", (3, 4)),
        (np.full((4, 8, 8, 1), 3.0), "10%..90%", (3, 4)),
        (np.linspace(-1000, 2000, 256).reshape(4, 8, 8, 1), "-500..500", (-500, 500)),
        (noise(4, 8, 8, 1).astype(np.int32), "", (0, 255)),
    ],
)
def test_intensity_is_given_or_inferred(images, text, expected):
    assert intensity_of(text, looked_at(images, (8, 8, 1), values="%" in text)) == expected


def test_types_without_a_common_range_are_refused():
    images = [noise(8, 8, 1), noise(8, 8, 1, dtype=np.float32), noise(8, 8, 1)]
    found = looked_at(images, (8, 8, 1))
    message = r"The images have several types \(2 of uint8, 1 of float32\), .* with --config.data.intensity=LOW..HIGH"
    is_refused(lambda: intensity_of("", found), message)
    assert intensity_of("0..9", found) == (0, 9)


@pytest.mark.parametrize(
    ("images", "image_shape", "intensity", "expected"),
    [
        (
            noise(3, 8, 8, 1),
            (8, 8, 1),
            None,
            ["Sizes: all 8x8.", "Channels: 1.", "Values: uint8, from 0 to 255."],
        ),
        (
            [noise(8, 9, 1), noise(20, 30, 3), noise(8, 9, 3)],
            (8, 8, 3),
            None,
            [
                "Sizes: 2 different, from 9x8 to 30x20. Most common: 9x8 (2 images). All are scaled to 8x8.",
                "Channels: 3 (2 images), 1 (1 image). All are converted to 3.",
                "Values: uint8, from 0 to 255.",
            ],
        ),
        (
            [noise(8, 8, 1), noise(8, 8, 1, dtype=np.uint16)],
            (8, 8, 1),
            None,
            ["Sizes: all 8x8.", "Channels: 1.", "Values: uint8 (1), uint16 (1), from 0 to 65535, converted to 8 bits."],
        ),
        (
            np.full((2, 9, 8, 7, 2), 0.5),
            (8, 8, 7, 2),
            (0.0, 1.5),
            [
                "Sizes: all 9x8x7. All are scaled to 8x8x7.",
                "Channels: 2.",
                "Values: float64, from 0.5 to 0.5. 0 becomes -1 and 1.5 becomes 1.",
            ],
        ),
    ],
    ids=["as they are", "of all sizes", "16 bits", "volumes"],
)
def test_descriptions(images, image_shape, intensity, expected):
    images = [image.copy() for image in images]
    for image in images:
        if image.dtype.kind == "u":
            image.flat[0], image.flat[-1] = 0, np.iinfo(image.dtype).max
    found = looked_at(images, image_shape)
    assert describe(found, Transform(image_shape, intensity=intensity)) == expected


def test_description_of_a_crop():
    found = looked_at(np.zeros((2, 218, 178, 3), np.uint8), (64, 64, 3), "celeba")
    assert (
        describe(found, Transform((64, 64, 3), "celeba"))[0]
        == "Sizes: all 178x218. All are scaled to 64x64 after the celeba crop."
    )


# --- a run ---------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path):
    (tmp_path / "run").mkdir()

    def opened(path="", image_shape=(8, 8, 3), images=None, **data):
        config = default()
        config.image_shape = image_shape
        config.data.update(dict(path=str(path), held_out_share=0.0) | data)
        return open_data(config, tmp_path / "run", images, begun=is_begun(tmp_path / "run"))

    return opened


def damaged(tmp_path, kind):
    """Returns the path of 12 images, of which 2 and 7 are damaged, and the undamaged arrays."""
    images = noise(12, 8, 8, 3)
    content = [png(image) if i not in (2, 7) else b"junk" for i, image in enumerate(images)]
    if kind == "folder":
        folder = make_folder(tmp_path, images)
        for i, file in enumerate(sorted(folder.iterdir())):
            file.write_bytes(content[i])
        return folder, images
    return make_keys(tmp_path / "a.lmdb", {f"8-{i:05d}": c for i, c in enumerate(content)} | {"length": b"12"}), images


@pytest.mark.parametrize("kind", ["folder", "LMDB"])
def test_bad_images_are_refused_or_counted_left_out_and_listed(tmp_path, run, kind):
    path, images = damaged(tmp_path, kind)
    names = ["02.png", "07.png"] if kind == "folder" else ["2", "7"]
    message = (
        r"2 of 12 images cannot be used\. The first: .*\. To leave out such images, set --config.data.skip_bad=True\.$"
    )
    is_refused(lambda: run(path), message)
    assert not (tmp_path / "run" / "data.json").exists()
    training, held_out = run(path, skip_bad=True)
    assert (len(training), len(held_out)) == (10, 0)
    np.testing.assert_array_equal(images_of(training), np.delete(images, [2, 7], 0))
    record = json.loads((tmp_path / "run" / "data.json").read_text())
    assert record["left_out"]["held_out"] == {}
    assert list(record["left_out"]["training"]) == names
    assert all("cannot be read as an image" in why for why in record["left_out"]["training"].values())
    assert f"Left out: 2 images that cannot be used ({', '.join(names)})." in data_summary(tmp_path / "run")
    assert left_out(tmp_path / "run").startswith("Left out: 2 images that cannot be used (")
    assert "10 to train on, 0 held out." in data_summary(tmp_path / "run")[0]
    is_refused(lambda: run(path), message)  # another setting is another look


def test_summary_of_a_run_of_an_earlier_version_is_read(tmp_path):
    (tmp_path / "data.json").write_text(json.dumps({"said": ["Images: 3."]}))
    assert data_summary(tmp_path) == ["Images: 3."]


def test_bad_images_are_left_out_of_both_splits(tmp_path, run):
    path, images = damaged(tmp_path, "folder")
    training, held_out = run(path, skip_bad=True, held_out="[:5]")
    np.testing.assert_array_equal(images_of(training), images[[5, 6, 8, 9, 10, 11]])
    np.testing.assert_array_equal(images_of(held_out), images[[0, 1, 3, 4]])
    assert training.ids == ["05.png", "06.png", "08.png", "09.png", "10.png", "11.png"]


def test_data_without_usable_images_is_refused(tmp_path, run):
    for i in range(3):
        (tmp_path / f"{i}.png").write_text("junk")
    is_refused(lambda: run(tmp_path), "^3 of 3 images cannot be used. The first: ")
    is_refused(
        lambda: run(tmp_path, skip_bad=True), r"^None of the 3 training images can be used: .*0.png cannot be read"
    )


def test_record_of_very_many_bad_images_can_be_read(tmp_path):
    record = {"left_out": {"training": {str(i): "x" * 300 for i in range(20_000)}}}
    (tmp_path / "data.json").write_text(json.dumps(record))
    assert len((tmp_path / "data.json").read_bytes()) > 4 * 2**20
    assert read_record(tmp_path) == record


@pytest.mark.parametrize("content", ["", "{", "[]", "3", "[" * 10_000])
def test_damaged_record_is_refused(tmp_path, content):
    (tmp_path / "data.json").write_text(content)
    is_refused(lambda: read_record(tmp_path), "data.json (is damaged. Remove it|cannot be read)")


def test_nothing_bad_leaves_nothing_out(tmp_path, run):
    images = noise(5, 8, 8, 3)
    training, _ = run(images=images, skip_bad=True)
    np.testing.assert_array_equal(images_of(training), images)
    assert left_out(tmp_path / "run") == ""
    assert not any("Left out" in line for line in data_summary(tmp_path / "run"))


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_percentiles_of_a_run_are_of_its_training_images(tmp_path, run, dtype):
    images = noise(12, 8, 8, 3).astype(dtype)
    images[:4] = 255
    np.save(tmp_path / "a.npy", images)
    training, held_out = run(tmp_path / "a.npy", intensity="10%..80%", held_out="[:4]")
    low, high = np.percentile(images[4:], (10, 80))
    np.testing.assert_allclose(training.transform.intensity, (low, high), rtol=1e-6)
    assert held_out.transform == training.transform
    expected = np.clip(2 * (images.astype(float) - low) / (high - low) - 1, -1, 1)
    np.testing.assert_allclose(images_of(training), expected[4:], atol=1e-5)
    np.testing.assert_allclose(images_of(held_out), expected[:4], atol=1e-5)
    again, _ = run(tmp_path / "a.npy", intensity="10%..80%", held_out="[:4]")
    assert again.transform == training.transform


def test_numbers_of_an_array_that_are_not_finite_are_left_out(tmp_path, run):
    images = np.random.default_rng(0).random((6, 8, 8, 1))
    images[2, 3, 3] = np.nan
    images[4] = np.inf
    np.savez(tmp_path / "a.npz", images=images)
    path, shape = tmp_path / "a.npz", (8, 8, 1)
    is_refused(
        lambda: run(path, shape),
        r"2 of 6 images cannot be used\. The first: Image 2 of .* has 1 value that is not f",
    )
    training, _ = run(path, shape, skip_bad=True)
    assert training.transform.intensity == (0, 1)
    np.testing.assert_allclose(images_of(training), 2 * np.delete(images, [2, 4], 0) - 1, atol=1e-6)


def test_images_of_other_channels_and_too_small_ones_are_left_out(run):
    images = [noise(8, 8, 3), noise(8, 8, 2), noise(7, 9, 3), noise(9, 9, 1), noise(20, 10, 4)]
    is_refused(
        lambda: run(images=images), r"2 of 5 images cannot be used\. The first: Image 1 of .* has 2 channels, not 3"
    )
    training, _ = run(images=images, skip_bad=True)
    assert training.ids == ["0", "3", "4"]
    assert images_of(training).shape == (3, 8, 8, 3)


def test_held_out_images_of_a_different_type_are_refused(tmp_path, run):
    np.save(tmp_path / "a.npy", noise(4, 8, 8, 3))
    np.save(tmp_path / "b.npy", noise(4, 8, 8, 3, dtype=np.float32))
    message = r"several types \(4 of uint8, 4 of float32\), .* --config.data.intensity=LOW..HIGH"
    is_refused(lambda: run(tmp_path / "a.npy", held_out=str(tmp_path / "b.npy")), message)


def test_8_and_16_bits_on_the_two_sides_become_8_on_both(tmp_path, run):
    np.save(tmp_path / "a.npy", noise(4, 8, 8, 3, dtype=np.uint16))
    np.save(tmp_path / "b.npy", noise(4, 8, 8, 3))
    training, held_out = run(tmp_path / "a.npy", held_out=str(tmp_path / "b.npy"))
    np.testing.assert_array_equal(images_of(held_out), np.load(tmp_path / "b.npy"))
    np.testing.assert_array_equal(images_of(training), np.round(np.load(tmp_path / "a.npy") / 257))


def test_bad_images_are_left_out_of_their_own_split_alone(tmp_path, run):
    for split in ("a", "b"):
        make_folder(tmp_path, noise(4, 8, 8, 3)).rename(tmp_path / split)
    (tmp_path / "a" / "01.png").write_bytes(b"junk")
    training, held_out = run(tmp_path / "a", held_out=str(tmp_path / "b"), skip_bad=True)
    assert training.ids == ["00.png", "02.png", "03.png"]
    assert list(held_out.ids) == ["00.png", "01.png", "02.png", "03.png"]


def test_process_with_different_images_than_the_main_process_is_refused(tmp_path, run, monkeypatch):
    np.save(tmp_path / "a.npy", noise(4, 8, 8, 3))
    np.save(tmp_path / "b.npy", noise(5, 8, 8, 3))
    run(tmp_path / "a.npy")
    monkeypatch.setattr("diffae_jax.data.run_images.is_main_process", lambda: False)
    is_refused(
        lambda: run(tmp_path / "b.npy"), r"began with 4 training images\. Now there are 5, or the images have changed"
    )


@pytest.mark.parametrize("intensity", [3, "x", ["0..1"]])
def test_invalid_range_in_a_record_is_refused(tmp_path, run, intensity):
    np.save(tmp_path / "a.npy", noise(4, 8, 8, 3))
    run(tmp_path / "a.npy")
    record = json.loads((tmp_path / "run" / "data.json").read_text()) | {"intensity": intensity}
    (tmp_path / "run" / "data.json").write_text(json.dumps(record))
    is_refused(lambda: run(tmp_path / "a.npy"), r"data.json is damaged: its intensity is .*\. Remove it, and")


def test_tfds_data_set_is_scanned(tmp_path, run):
    images = noise(4, 8, 8, 3)
    path = prepare_tfds(tmp_path, {"train": images}, name="Small")
    training, _ = run(path)
    np.testing.assert_array_equal(images_of(training), images)
    training, _ = run(path, image_shape=(8, 8, 1))
    assert images_of(training).shape == (4, 8, 8, 1)


def test_fingerprint_of_damaged_images_is_that_of_a_copy(tmp_path):
    marks = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        marks.append(open_lmdb(damaged(tmp_path / name, "LMDB")[0], (8, 8, 3)).source.fingerprint())
    assert marks[0] == marks[1]
