"""Images from the digits and from folders, and their order."""

import gc
import io
import itertools
import threading
from concurrent.futures import ThreadPoolExecutor

import jax
import lmdb
import numpy as np
import pytest
from PIL import Image

from diffae_jax.data.batches import on_devices, rows_of_batch, training_batches
from diffae_jax.data.detect import open_images
from diffae_jax.data.formats import lmdb as lmdb_format
from diffae_jax.data.formats.digits import digits
from diffae_jax.data.inspect.scan import check_all
from diffae_jax.data.sources import Arrays, TransformedSource
from diffae_jax.data.splits import open_splits
from diffae_jax.data.transforms import Transform, random_flip, to_float, to_uint8
from diffae_jax.runtime.errors import UserError
from diffae_jax.runtime.sharding import split_batch
from tests.data_files import save_bomb

NUMBERS = Arrays(np.arange(20, dtype=np.uint8).reshape(20, 1, 1), [str(i) for i in range(20)])


def batches_of(count, batch_size=8, source=NUMBERS, **settings):
    settings = dict(seed=3) | settings
    stream = training_batches(source, batch_size=batch_size, **settings)
    return [batch["image"].ravel().tolist() for batch in itertools.islice(stream, count)]


def test_every_image_comes_once_an_epoch_and_epochs_differ():
    order = list(itertools.chain.from_iterable(batches_of(10)))
    epochs = [order[start : start + 20] for start in range(0, 80, 20)]
    assert all(sorted(epoch) == list(range(20)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


@pytest.mark.parametrize("num_processes", [1, 4])
def test_each_process_may_get_one_image_at_a_time(num_processes):
    parts = [
        batches_of(50, batch_size=num_processes, num_processes=num_processes, process_index=i)
        for i in range(num_processes)
    ]
    order = [number for batch in zip(*parts, strict=True) for part in batch for number in part]
    assert order == list(itertools.chain.from_iterable(batches_of(50 * num_processes // 8 + 1)))[: len(order)]


def test_order_depends_on_the_seed_alone():
    assert batches_of(5) == batches_of(5)
    assert batches_of(5) != batches_of(5, seed=4)


@pytest.mark.parametrize("flip", [False, True])
def test_rows_of_a_batch_are_those_of_the_stream(flip):
    stream = batches_of(6, flip=flip)
    for step, batch in enumerate(stream, start=1):
        assert rows_of_batch(len(NUMBERS), batch_size=8, seed=3, step=step).tolist() == batch


@pytest.mark.parametrize("first_step", range(1, 6))
def test_stream_from_any_step_is_the_rest_of_the_stream(first_step):
    assert batches_of(6)[first_step:] == batches_of(6 - first_step, first_step=first_step)


def test_parts_of_two_processes_are_the_batches_of_one():
    parts = [batches_of(6, num_processes=2, process_index=i) for i in range(2)]
    assert [a + b for a, b in zip(*parts, strict=True)] == batches_of(6)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_worker_processes_change_nothing(num_workers):
    pairs = Arrays(np.arange(40, dtype=np.uint8).reshape(20, 1, 2, 1), [""] * 20)
    settings = dict(source=pairs, flip=True, first_step=2)
    assert batches_of(4, num_workers=num_workers, **settings) == batches_of(4, **settings)


def encoded(number, size=(12, 10)):
    file = io.BytesIO()
    Image.fromarray(np.full((*size, 3), number, np.uint8)).save(file, format="PNG")
    return file.getvalue()


def test_threads_of_a_new_worker_process_open_lmdb_once(tmp_path):
    with lmdb.open(str(tmp_path)) as environment, environment.begin(write=True) as transaction:
        for i in range(20):
            transaction.put(f"12-{i:05d}".encode(), encoded(i))
        transaction.put(b"length", b"20")
    source = TransformedSource(open_images(tmp_path, (4, 4, 3)).source, Transform((4, 4, 3)))
    lmdb_format._environment.cache_clear()  # as in a process that has just begun
    gc.collect()
    together = threading.Barrier(8)

    def first(index):
        together.wait()
        return source[index][0, 0, 0]

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(first, range(8))) == list(range(8))


def test_batches_are_contiguous_bytes_and_no_image_is_read_twice_an_epoch():
    class Counted(Arrays):
        def __getitem__(self, index):
            reads.append(index)
            return super().__getitem__(index)

    reads = []
    photos = np.random.default_rng(0).integers(0, 256, (20, 12, 10, 3), np.uint8)
    source = TransformedSource(Counted(photos, [str(i) for i in range(20)]), Transform((4, 4, 3)))
    for batch in itertools.islice(training_batches(source, batch_size=4, seed=0, flip=True), 10):
        assert batch["image"].dtype == np.uint8  # a quarter of what floats would take on the way to the devices
        assert batch["image"].flags.c_contiguous
    assert len(reads) <= 4 * (10 + 8)  # eight batches are read ahead


def test_flips_mirror_half_of_the_images_anew_each_epoch_and_resume_exactly():
    pairs = Arrays(np.stack([np.zeros(400), np.ones(400)], -1).astype(np.uint8)[:, None, :, None], [""] * 400)
    images = [np.array(batch).reshape(-1, 2)[:, 0] for batch in batches_of(10, 80, pairs, flip=True)]
    flipped = np.concatenate(images)
    assert 0.4 < flipped.mean() < 0.6
    assert (flipped[:400] != flipped[400:]).any()
    resumed = [np.array(batch).reshape(-1, 2)[:, 0] for batch in batches_of(3, 80, pairs, flip=True, first_step=7)]
    np.testing.assert_array_equal(np.concatenate(resumed), np.concatenate(images[7:]))


def test_random_flip_mirrors_left_and_right():
    image = np.arange(12, dtype=np.uint8).reshape(2, 3, 2)
    seen = {random_flip(image, np.random.default_rng(seed)).tobytes() for seed in range(20)}
    assert seen == {image.tobytes(), image[:, ::-1].tobytes()}


def test_batches_arrive_split_over_the_devices_in_order(eight_devices):
    stream = training_batches(NUMBERS, batch_size=8, seed=3)
    arrived = list(itertools.islice(on_devices(stream, split_batch(eight_devices)), 3))
    assert [batch["image"].ravel().tolist() for batch in arrived] == batches_of(3)
    assert arrived[0]["image"].dtype == np.uint8
    assert {shard.data.shape for shard in arrived[0]["image"].addressable_shards} == {(1, 1, 1)}


def test_digits_are_the_scans_of_scikit_learn_with_a_fixed_split():
    training, held_out = digits()
    assert (len(training), len(held_out)) == (1437, 360)
    assert training[0].shape == (8, 8, 1)
    assert not set(training.ids) & set(held_out.ids)
    from sklearn.datasets import load_digits

    scans = load_digits()
    np.testing.assert_allclose(held_out.images[..., 0] / 255 * 16, scans.images[1437:], atol=0.04)
    np.testing.assert_array_equal(held_out.labels["digit"], scans.target[1437:])


def test_scaling_to_float_and_back_is_exact():
    every_value = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    scaled = to_float(jax.numpy.asarray(every_value))
    assert float(scaled.min()) == -1
    assert float(scaled.max()) == 1
    np.testing.assert_array_equal(to_uint8(np.asarray(scaled)), every_value)
    np.testing.assert_array_equal(to_uint8(np.array([-3.0, 3.0])), [0, 255])


# --- folders -------------------------------------------------------------------------------------


@pytest.fixture
def photos(tmp_path):
    """Twelve images of several sizes, modes and formats, one of them in a subfolder."""
    rng = np.random.default_rng(0)
    (tmp_path / "more").mkdir()
    for i, name in enumerate([f"{i}.png" for i in range(8)] + ["a.jpg", "b.JPEG", "c.webp", "more/d.bmp"]):
        height, width = 16 + 3 * i, 40 - 2 * i
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(tmp_path / name)
    Image.fromarray(rng.integers(0, 256, (20, 20), dtype=np.uint8)).save(tmp_path / "0.png")
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / ".hidden.png").write_bytes(b"")
    return tmp_path


def prepared(path, image_shape=(16, 16, 3), **settings):
    return TransformedSource(open_images(path, image_shape).source, Transform(image_shape, **settings))


def split(path, share, image_shape=(16, 16, 3)):
    return open_splits(str(path), image_shape, held_out_share=share)[1:]


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_folder_yields_every_image_resized_and_cropped(photos, channels):
    images = prepared(photos, (16, 16, channels))
    assert len(images) == 12
    assert {image.shape for image in images} == {(16, 16, channels)}
    assert "more/d.bmp" in images.ids
    check_all(images)


def test_orientation_tag_is_applied(tmp_path):
    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[:, :8] = 255
    exif = Image.Exif()
    exif[0x0112] = 3  # the camera was upside down
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    (image,) = prepared(tmp_path)
    assert (image[:, 8:] == 255).all()


def test_sixteen_bits_are_scaled_and_transparency_is_white(tmp_path):
    ramp = np.linspace(0, 65535, 256).round().astype(np.uint16).reshape(16, 16)
    Image.fromarray(ramp).save(tmp_path / "xray.png")
    (image,) = prepared(tmp_path, (16, 16, 1))
    np.testing.assert_array_equal(image.ravel(), np.arange(256))
    clear = np.zeros((16, 16, 4), np.uint8)
    clear[:8, :, 3] = 255
    Image.fromarray(clear).save(tmp_path / "xray.png")
    (image,) = prepared(tmp_path)
    assert (image[:8] == 0).all()
    assert (image[8:] == 255).all()
    Image.fromarray(np.ones((16, 16), np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(UserError, match=r"1 image has values of float32.* Convert them to 8 or 16 bits"):
        check_all(prepared(tmp_path, (16, 16, 1)))
    with pytest.raises(UserError, match=r"float.tif has values of float32, whose range is unknown"):
        prepared(tmp_path, (16, 16, 1))[0]
    assert (prepared(tmp_path, (16, 16, 1), intensity=(0.0, 2.0))[0] == 0).all()


def test_held_out_images_stay_on_their_side_when_others_come(photos):
    _, before = split(photos, 0.5)
    assert 0 < len(before) < 12
    for i in range(20, 40):
        Image.new("RGB", (16, 16)).save(photos / f"{i}.png")
    training, after = split(photos, 0.5)
    assert set(before.ids) <= set(after.ids)
    assert len(training) + len(after) == 32
    assert not set(training.ids) & set(after.ids)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: (path / "7.png").write_bytes(b"junk"), "7.png cannot be read"),
        (lambda path: (path / "7.png").write_bytes((path / "7.png").read_bytes()[:-400]), "7.png cannot be read"),
        (lambda path: (path / "a.jpg").write_bytes((path / "a.jpg").read_bytes()[:-400]), "a.jpg cannot be read"),
        (lambda path: (path / "7.png").write_bytes(b""), "7.png cannot be read"),
        (
            lambda path: Image.new("RGB", (15, 99)).save(path / "7.png"),
            r"7.png is 15x99 pixels, smaller than .* 16x16 .* a larger image\.$",
        ),
    ],
    ids=["junk", "truncated png", "truncated jpeg", "empty", "too small"],
)
def test_bad_image_is_named_before_training(photos, damage, message):
    damage(photos)
    with pytest.raises(UserError, match=message):
        check_all(prepared(photos))


def test_image_bomb_is_refused(tmp_path):
    save_bomb(tmp_path / "bomb.png")
    with pytest.raises(UserError, match=r"bomb.png has 2,147,483,648 values per image. At most 1,073,741,824 can be"):
        check_all(prepared(tmp_path))


def test_several_bad_images_are_counted(photos):
    for name in ("2.png", "5.png", "more/d.bmp"):
        (photos / name).write_bytes(b"junk")
    with pytest.raises(UserError, match=r"3 of 12 images cannot be used. The first: .*2.png cannot be read"):
        check_all(prepared(photos))


@pytest.mark.parametrize(
    ("path", "image_shape", "message"),
    [
        ("", (16, 16, 3), "--config.data.path"),
        ("/nowhere/to/be/found", (16, 16, 3), r"is missing. Check the path\.$"),
        ("digits", (16, 16, 3), r"image_shape=\(8, 8, 1\)"),
        ("FOLDER", (16, 16, 5), "1, 3 or 4 channels"),
        ("FOLDER", (16, 16, 16, 1), "1, 3 or 4 channels"),
    ],
    ids=str,
)
def test_data_that_cannot_be_opened_is_refused(photos, path, image_shape, message):
    with pytest.raises(UserError, match=message):
        open_splits(path.replace("FOLDER", str(photos)), image_shape)


def test_empty_folder_and_too_few_images_are_refused(tmp_path):
    with pytest.raises(UserError, match="holds no image files"):
        prepared(tmp_path)
    with pytest.raises(UserError, match="20 training images are fewer than one batch of 21"):
        training_batches(NUMBERS, batch_size=21, seed=0)
