"""The networks of FID and LPIPS against NumPy in float64, weight files, and feature spaces."""

import dataclasses
import hashlib
import itertools
import re
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from numpy.lib.stride_tricks import sliding_window_view

from diffae_jax.data.transforms import to_float, to_uint8
from diffae_jax.evaluation import metrics
from diffae_jax.evaluation.networks import feature_spaces, inception, lpips, weights
from diffae_jax.evaluation.networks.weights import WeightFile
from diffae_jax.models import abstract_model
from diffae_jax.models.functional import flatten
from diffae_jax.runtime.errors import UserError
from tests.messages import assert_is_one_sentence
from tests.torch_writer import write_checkpoint, write_legacy

PUBLISHED = Path(__file__).parent / "published"  # names and shapes of the tensors of each file


def published_shapes(name):
    lines = (line.partition(" ") for line in (PUBLISHED / f"{name}.txt").read_text().splitlines())
    return {key: tuple(int(size) for size in shape.split(",") if size) for key, _, shape in lines}


def random_state(shapes, rng):
    """Weights that keep activations near one, with random batch statistics."""
    state = {}
    for name, shape in shapes.items():
        if name.endswith("num_batches_tracked"):
            state[name] = np.array(7)
        elif name.endswith(("running_var", "bn.weight", "model.1.weight")):
            state[name] = rng.uniform(0.5, 1.5, shape).astype(np.float32)
        else:
            scale = np.sqrt(2 / np.prod(shape[1:])) if len(shape) > 1 else 0.1
            state[name] = rng.standard_normal(shape, np.float32) * np.float32(scale)
    return state


def pictures(*shape, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


# The layers in numpy, over arrays [N, H, W, C] and float64


def padded(h, rows, columns, value=0.0):
    return np.pad(h, [(0, 0), (rows, rows), (columns, columns), (0, 0)], constant_values=value)


def windows(h, height, width, stride):
    return sliding_window_view(h, (height, width), (1, 2))[:, ::stride, ::stride]  # [N, H, W, C, height, width]


def convolution(h, kernel, stride=1, padding=(0, 0)):
    """Convolves with a kernel in the layout of the files, [out, in, height, width]."""
    seen = windows(padded(h, *padding), *kernel.shape[2:], stride)
    n, height, width = seen.shape[:3]
    product = seen.reshape(n * height * width, -1) @ kernel.astype(np.float64).reshape(len(kernel), -1).T
    return product.reshape(n, height, width, -1)


def max_pool(h, stride=2, padding=0):
    return windows(padded(h, padding, padding, -np.inf), 3, 3, stride).max((-2, -1))


def mean_pool(h):
    return np.nanmean(windows(padded(h, 1, 1, np.nan), 3, 3, 1), (-2, -1))


def bilinear(images, size):
    """Interpolates between pixel centers without antialiasing, with constant borders."""
    for axis in (1, 2):
        length = images.shape[axis]
        at = np.maximum((np.arange(size) + 0.5) * length / size - 0.5, 0)
        low = np.minimum(np.floor(at).astype(int), length - 1)
        high, share = np.minimum(low + 1, length - 1), (at - low).reshape(-1, *[1] * (3 - axis))
        images = images.take(low, axis) * (1 - share) + images.take(high, axis) * share
    return images


def inception_written_out(state, h):
    def unit(h, name, stride=1, padding=(0, 0)):
        h = convolution(h, state[f"{name}.conv.weight"], stride, padding)
        gamma, beta, mean, variance = (
            state[f"{name}.bn.{part}"].astype(np.float64) for part in ("weight", "bias", "running_mean", "running_var")
        )
        return np.maximum((h - mean) / np.sqrt(variance + 0.001) * gamma + beta, 0)

    def chain(h, block, *names):
        """Applies units that keep the size. Their window is read from the kernel's shape."""
        for name in names:
            height, width = state[f"{block}.{name}.conv.weight"].shape[2:]
            h = unit(h, f"{block}.{name}", padding=(height // 2, width // 2))
        return h

    def joined(*branches):
        return np.concatenate(branches, -1)

    def mixed_5(h, block):
        return joined(
            chain(h, block, "branch1x1"),
            chain(h, block, "branch5x5_1", "branch5x5_2"),
            chain(h, block, "branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"),
            chain(mean_pool(h), block, "branch_pool"),
        )

    def mixed_6(h, block):
        return joined(
            chain(h, block, "branch1x1"),
            chain(h, block, "branch7x7_1", "branch7x7_2", "branch7x7_3"),
            chain(h, block, *(f"branch7x7dbl_{i}" for i in range(1, 6))),
            chain(mean_pool(h), block, "branch_pool"),
        )

    def mixed_7(h, block, pooled):
        single, double = chain(h, block, "branch3x3_1"), chain(h, block, "branch3x3dbl_1", "branch3x3dbl_2")
        return joined(
            chain(h, block, "branch1x1"),
            chain(single, block, "branch3x3_2a"),
            chain(single, block, "branch3x3_2b"),
            chain(double, block, "branch3x3dbl_3a"),
            chain(double, block, "branch3x3dbl_3b"),
            chain(pooled, block, "branch_pool"),
        )

    h = unit(h, "Conv2d_1a_3x3", stride=2)
    h = unit(unit(h, "Conv2d_2a_3x3"), "Conv2d_2b_3x3", padding=(1, 1))
    h = unit(unit(max_pool(h), "Conv2d_3b_1x1"), "Conv2d_4a_3x3")
    h = max_pool(h)
    for block in ("Mixed_5b", "Mixed_5c", "Mixed_5d"):
        h = mixed_5(h, block)
    double = chain(h, "Mixed_6a", "branch3x3dbl_1", "branch3x3dbl_2")
    h = joined(unit(h, "Mixed_6a.branch3x3", stride=2), unit(double, "Mixed_6a.branch3x3dbl_3", stride=2), max_pool(h))
    for block in ("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"):
        h = mixed_6(h, block)
    short = chain(h, "Mixed_7a", "branch3x3_1")
    long = chain(h, "Mixed_7a", "branch7x7x3_1", "branch7x7x3_2", "branch7x7x3_3")
    h = joined(
        unit(short, "Mixed_7a.branch3x3_2", stride=2), unit(long, "Mixed_7a.branch7x7x3_4", stride=2), max_pool(h)
    )
    h = mixed_7(h, "Mixed_7b", mean_pool(h))
    h = mixed_7(h, "Mixed_7c", max_pool(h, stride=1, padding=1))
    return h.mean((1, 2))


def lpips_written_out(alexnet, linear, *pair):
    shift, scale = np.array([-0.030, -0.088, -0.188]), np.array([0.458, 0.448, 0.450])
    pair, distance = [(images.astype(np.float64) - shift) / scale for images in pair], 0
    geometry = {0: (4, 2), 3: (1, 2), 6: (1, 1), 8: (1, 1), 10: (1, 1)}
    for i, (place, (stride, padding)) in enumerate(geometry.items()):
        if place in (3, 6):
            pair = [max_pool(h) for h in pair]
        kernel, bias = alexnet[f"features.{place}.weight"], alexnet[f"features.{place}.bias"]
        pair = [np.maximum(convolution(h, kernel, stride, (padding, padding)) + bias, 0) for h in pair]
        units = [h / (np.linalg.norm(h, axis=-1, keepdims=True) + 1e-10) for h in pair]
        weighted = np.square(units[0] - units[1]) @ linear[f"lin{i}.model.1.weight"].reshape(-1).astype(np.float64)
        distance = distance + weighted.mean((1, 2))
    return distance


# The networks


@pytest.fixture(scope="module")
def inception_state():
    return random_state(published_shapes("inception"), np.random.default_rng(0))


@pytest.fixture(scope="module")
def inception_file(inception_state, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    write_legacy(path, inception_state)
    return path


@pytest.fixture(scope="module")
def lpips_states():
    rng = np.random.default_rng(1)
    alexnet = {name: shape for name, shape in published_shapes("alexnet").items() if name.startswith("features")}
    return random_state(alexnet, rng), random_state(published_shapes("lpips"), rng)


@pytest.fixture
def lpips_params(lpips_states, tmp_path, monkeypatch):
    monkeypatch.setattr(lpips, "ALEXNET_CLASSIFIER", {})  # nearly all of the file, and not used
    for name, state, write in zip(("a", "l"), lpips_states, (write_checkpoint, write_legacy), strict=True):
        write(tmp_path / name, state)
    return lpips.read_lpips(tmp_path / "a", tmp_path / "l")


def network(build, params):
    graphdef, shapes = abstract_model(build)
    assert {name: leaf.shape for name, leaf in flatten(params).items()} == {
        name: leaf.shape for name, leaf in flatten(shapes).items()
    }
    return jax.jit(lambda *images: nnx.merge(graphdef, params)(*images))


def test_inception_is_that_of_the_same_layers_in_float64(inception_state, inception_file):
    params = inception.read_inception(inception_file)
    images = pictures(2, 139, 107, 3)  # the last maps are 3x2: windows meet every border
    found = network(lambda rngs: inception.InceptionV3(rngs=rngs), params)(images)
    expected = inception_written_out(inception_state, images.astype(np.float64))
    assert (found.shape, found.dtype) == ((2, 2048), np.float32)
    assert expected.std() > 0.1
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * expected.std())


@pytest.mark.parametrize("shape", [(5, 7), (299, 299), (320, 411), (1, 1)])
def test_resizing_is_bilinear_between_centers_without_antialiasing(shape):
    images = pictures(2, *shape, 3)
    found = jax.jit(inception.resize)(images)
    np.testing.assert_allclose(found, bilinear(images.astype(np.float64), 299), atol=2e-6)


def test_lpips_is_that_of_the_same_layers_in_float64(lpips_states, lpips_params):
    distance = network(lambda rngs: lpips.LPIPS(rngs=rngs), lpips_params)
    for size in ((31, 31), (70, 53)):
        images, others = pictures(2, 3, *size, 3)
        expected = lpips_written_out(*lpips_states, images, others)
        assert expected.min() > 0.01
        np.testing.assert_allclose(distance(images, others), expected, rtol=1e-4)
        np.testing.assert_allclose(distance(images, images), 0, atol=1e-12)


def test_lpips_is_on_all_devices_and_takes_gray_and_uint8(lpips_params, one_device, eight_devices):
    images, others = pictures(2, 11, 40, 40, 1)
    one, eight = (feature_spaces.lpips_distances(lpips_params, mesh) for mesh in (one_device, eight_devices))
    found = eight(images, others)
    assert (found.shape, found.dtype) == ((11,), np.float32)
    np.testing.assert_allclose(found, one(*(np.repeat(x, 3, -1) for x in (images, others))), rtol=1e-5)
    as_bytes = [to_uint8(x) for x in (images, others)]
    np.testing.assert_allclose(eight(*as_bytes), eight(*(to_float(x) for x in as_bytes)), rtol=1e-5)
    with pytest.raises(UserError, match=r"\(11, 40, 40, 1\) and \(10, 40, 40, 1\)"):
        eight(images, others[:10])
    with pytest.raises(UserError, match=r"at least 31x31 pixels, but these are 28x40"):
        eight(images[:, :28], others[:, :28])


def test_features_of_inception_are_of_images_of_any_size_and_called_fid(
    inception_state, inception_file, one_device, monkeypatch
):
    monkeypatch.setattr(inception, "SIZE", 80)
    with pytest.raises(
        UserError, match=f"is not {weights.INCEPTION.name}. Expected SHA-256 6726825d0af5.* bytes, found .* bytes"
    ):
        feature_spaces.load_inception(one_device, inception_file)
    content = inception_file.read_bytes()
    file = WeightFile("inception.pth", "https://x/y", hashlib.sha256(content).hexdigest(), len(content))
    monkeypatch.setattr(weights, "INCEPTION", file)
    space, sentence = feature_spaces.load_inception(one_device, inception_file)
    assert (space.name, space.dim, space.frechet_name, space.kernel_name) == ("Inception", 2048, "FID", "KID")
    assert sentence == ""
    images = to_uint8(pictures(3, 9, 13, 1))
    gray = bilinear(to_float(images).astype(np.float64), 80).repeat(3, -1)
    expected = inception_written_out(inception_state, gray)
    found = space.features(images)
    assert (found.shape, found.dtype) == ((3, 2048), np.float32)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * expected.std())


@pytest.mark.parametrize("shape", [(32, 1), (32, 32, 2), (32, 32, 4), (32, 32, 32, 1)])
def test_images_of_unsuitable_shape_are_rejected(shape):
    for check in (feature_spaces.check_inception_images, feature_spaces.check_lpips_images):
        with pytest.raises(UserError, match="2D images with 1 or 3 channels, but these have shape"):
            check(shape)


def test_images_of_suitable_shape_are_accepted():
    feature_spaces.check_inception_images((8, 8, 1))
    feature_spaces.check_lpips_images((31, 40, 3))
    with pytest.raises(UserError, match="these are 31x30"):
        feature_spaces.check_lpips_images((31, 30, 3))


# The files


@pytest.mark.parametrize(
    ("name", "used", "unused"),
    [
        ("inception", inception.file_shapes, inception.unused_shapes),
        ("alexnet", lpips.alexnet_shapes, lpips.alexnet_unused),
        ("lpips", lpips.linear_shapes, dict),
    ],
)
def test_the_names_and_shapes_are_those_of_the_published_files(name, used, unused):
    assert used() | unused() == published_shapes(name)
    assert not used().keys() & unused().keys()


SHAPES = {"a.weight": (2, 3), "b": (4,)}
STATE = {"a.weight": np.ones((2, 3), np.float32), "b": np.ones(4), "count": np.array(3)}


def test_a_state_dict_is_read_in_both_formats(tmp_path):
    for write in (write_checkpoint, write_legacy):
        write(tmp_path / "f", STATE)
        arrays = weights.read_arrays(tmp_path / "f", SHAPES, {"count": ()}, "X")
        assert arrays.keys() == SHAPES.keys()
        np.testing.assert_array_equal(arrays["a.weight"], STATE["a.weight"])


@pytest.mark.parametrize(
    ("state", "pattern"),
    [
        ([1], "as a dictionary of names"),
        (STATE | {3: np.ones(2)}, "as a dictionary of names"),
        ({"b": STATE["b"], "count": STATE["count"]}, "it lacks a.weight"),
        ({"a.weight": STATE["a.weight"], "b": STATE["b"]}, "it lacks count"),
        (STATE | {"c": np.ones(2)}, "it also holds c"),
        (STATE | {"b": np.ones(5)}, r"its b is \(5,\), not \(4,\)"),
        (STATE | {"b": 5}, r"its b is 5, not \(4,\)"),
        (STATE | {"count": np.ones(1)}, r"its count is \(1,\), not \(\)"),
        (STATE | {"b": np.arange(4)}, "not finite numbers: b"),
        (STATE | {"b": np.array([1, 2, np.inf, 3])}, "not finite numbers: b"),
    ],
)
def test_a_different_state_dict_is_rejected(tmp_path, state, pattern):
    write_checkpoint(tmp_path / "f", state)
    with pytest.raises(UserError, match=pattern):
        weights.read_arrays(tmp_path / "f", SHAPES, {"count": ()}, "X")


CONTENT = b"weights" * 1000
FILE = WeightFile("w.pth", "https://example.org/w.pth", hashlib.sha256(CONTENT).hexdigest(), len(CONTENT))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "diffae_jax"


class Server(ThreadingHTTPServer):
    """A server that answers every request with these bytes and a Content-Length of `length`."""

    def __init__(self, chunks, length=None, status=(200, "OK"), stall=None):
        super().__init__(("127.0.0.1", 0), Answer)
        self.chunks, self.length, self.status, self.stall = chunks, length, status, stall
        self.asked, self.sent = [], 0
        self.file = dataclasses.replace(FILE, url=f"http://127.0.0.1:{self.server_port}/w.pth")


class Answer(BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        server.asked.append(self.path)
        self.send_response(*server.status)
        if server.length is not None:
            self.send_header("Content-Length", str(server.length))
        self.end_headers()
        try:
            for chunk in server.chunks:
                self.wfile.write(chunk)
                server.sent += len(chunk)
        except OSError:  # the client closed the connection
            return
        if server.stall is not None:
            server.stall.wait(10)

    def log_message(self, *_):
        pass


@pytest.fixture
def serve(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    servers = []

    def start(*args, **kwargs):
        server = Server(*args, **kwargs)
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        return server

    yield start
    for server in servers:
        if server.stall is not None:
            server.stall.set()
        server.shutdown()
        server.server_close()


def is_rejected(file, pattern):
    with pytest.raises(UserError, match=pattern) as refusal:
        weights.find(file, download=True)
    assert_is_one_sentence(refusal.value)


def test_nothing_is_downloaded_unasked(cache, serve):
    server = serve([CONTENT])
    assert weights.find(server.file) is None
    sentence = (
        "w.pth (7,000 bytes) is not available. Download it with diffae evaluate --download, or in a training run with "
        "--config.evaluation.download=True."
    )
    assert weights.how_to_get(server.file) == sentence
    assert not server.asked
    assert not cache.exists()


def test_what_is_asked_for_is_downloaded_once_and_found_again(cache, serve):
    server = serve([CONTENT[:100], CONTENT[100:]], len(CONTENT))
    for download in (True, True, False):
        assert weights.find(server.file, download=download) == cache / "w.pth"
    assert server.asked == ["/w.pth"]
    assert [path.name for path in cache.iterdir()] == ["w.pth"]
    assert (cache / "w.pth").read_bytes() == CONTENT


def test_a_failed_download_names_the_whole_address(tmp_path, monkeypatch, serve):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    url = serve([], status=(404, "x" * 500)).file.url
    url += "x" * (len(weights.INCEPTION.url) - len(url))
    is_rejected(dataclasses.replace(weights.INCEPTION, url=url), re.escape(url))


@pytest.mark.parametrize(
    ("answer", "pattern"),
    [
        (dict(chunks=[CONTENT[:-1] + b"x"]), r"w.pth is not w.pth \(7,000 bytes, SHA-256 \w{12}\.\.\.\)\. Try again"),
        (dict(chunks=[CONTENT[:-1]]), r"w.pth is not w.pth \(7,000 bytes, "),
        (dict(chunks=[CONTENT, b"x"]), r"w.pth is not w.pth \(7,000 bytes, "),
        (
            dict(chunks=[CONTENT[:100]], length=len(CONTENT)),
            r"failed \(.*100 bytes read.*\)\. Download http://127.*/w.pth yourself\.",
        ),
        (dict(chunks=[], status=(404, "Not Found")), r"failed \(404 .*Not Found.*Download http://127.* to .*cache/"),
    ],
    ids=["different", "short", "long", "broken", "missing"],
)
def test_a_wrong_download_leaves_nothing(cache, serve, answer, pattern):
    is_rejected(serve(**answer).file, pattern)
    assert list(cache.iterdir()) == []


def test_a_stalled_or_missing_server_is_reported(cache, serve, monkeypatch):
    monkeypatch.setattr(weights, "TIMEOUT", 0.2)
    server = serve([CONTENT[:100]], len(CONTENT), stall=threading.Event())
    is_rejected(server.file, r"failed \(timed out\)\. Download http://127.*/w.pth yourself\.")
    closed = Server([])
    closed.server_close()
    is_rejected(closed.file, r"failed \(.*Connection refused\).*Download http://127")
    assert list(cache.iterdir()) == []


def test_a_download_is_bounded(cache, serve, monkeypatch):
    monkeypatch.setattr(weights, "CHUNK", 1000)
    server = serve(itertools.repeat(CONTENT))  # without end
    is_rejected(server.file, r"w.pth is not w.pth \(7,000 bytes, ")
    assert server.sent < 50 * 2**20  # buffers of the operating system


def test_a_cache_that_cannot_be_written_is_reported(serve, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    is_rejected(serve([CONTENT]).file, "/proc/nowhere/diffae_jax cannot be (written|read)")


def test_a_given_path_counts_and_is_checked(cache, tmp_path):
    path = tmp_path / "mine.pth"
    with pytest.raises(UserError, match="missing"):
        weights.find(FILE, path)
    path.write_bytes(CONTENT)
    assert weights.find(FILE, str(path)) == path
    path.write_bytes(CONTENT[:-1] + b"x")
    with pytest.raises(
        UserError, match=r"mine.pth is not w.pth. Expected SHA-256 .* found SHA-256 .* download it again\."
    ):
        weights.find(FILE, path)
    path.write_bytes(CONTENT + b"x")
    with pytest.raises(UserError, match="bytes, found 7,001 bytes"):
        weights.find(FILE, path)


def test_a_damaged_file_in_the_cache_is_rejected(cache):
    cache.mkdir(parents=True)
    (cache / "w.pth").write_bytes(CONTENT[:100])
    with pytest.raises(UserError, match="and 7,000 bytes, found 100 bytes"):
        weights.find(FILE)


def test_the_cache_is_in_the_home_folder_unless_an_absolute_path_is_set(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for value in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert weights.cache_folder() == tmp_path / ".cache" / "diffae_jax"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert weights.cache_folder() == tmp_path / ".cache" / "diffae_jax"


def test_missing_weights_give_a_sentence_on_how_to_get_them(cache, one_device):
    space, sentence = feature_spaces.load_inception(one_device)
    assert space is None
    assert weights.INCEPTION.name in sentence
    distance, sentence = feature_spaces.load_lpips(one_device)
    assert distance is None
    assert weights.ALEXNET.name in sentence
    assert weights.LPIPS_LINEAR.name in sentence
    assert " are not available. Download them with diffae evaluate --download" in sentence
    assert str(Path.home()) not in sentence
    assert str(cache) not in sentence
    assert "\n" not in sentence
    assert sentence.count(". ") == 1


def test_lpips_is_loaded_from_the_files_of_given_paths(lpips_states, lpips_params, tmp_path, one_device, monkeypatch):
    for name, file in (("ALEXNET", "a"), ("LPIPS_LINEAR", "l")):
        content = (tmp_path / file).read_bytes()
        pinned = WeightFile(file, "https://x/y", hashlib.sha256(content).hexdigest(), len(content))
        monkeypatch.setattr(weights, name, pinned)
    distances, sentence = feature_spaces.load_lpips(one_device, tmp_path / "a", tmp_path / "l")
    images, others = pictures(2, 1, 33, 33, 3)
    np.testing.assert_allclose(distances(images, others), lpips_written_out(*lpips_states, images, others), rtol=1e-4)
    assert sentence == ""


def test_the_pinned_hashes_are_whole_and_begin_as_the_names_say():
    for file in (weights.INCEPTION, weights.ALEXNET, weights.LPIPS_LINEAR):
        assert len(file.sha256) == 64
        assert set(file.sha256) <= set("0123456789abcdef")
        assert file.url.startswith("https://")
    for file in (weights.INCEPTION, weights.ALEXNET):
        assert file.name.removesuffix(".pth").rpartition("-")[2] == file.sha256[:8]


# Spaces without a file


def random_features_written_out(kernels, h):
    """Convolutions of any rank as explicit sums over offsets."""
    means = []
    for number, kernel in enumerate(kernels):
        spatial, stride = h.shape[1:-1], 2 if number else 1
        sizes = [-(-size // stride) for size in spatial]
        total = [max((new - 1) * stride + 3 - old, 0) for new, old in zip(sizes, spatial, strict=True)]
        h = np.pad(h, [(0, 0), *((t // 2, t - t // 2) for t in total), (0, 0)])
        out = 0
        for offset in np.ndindex(*kernel.shape[:-2]):
            at = tuple(slice(o, o + stride * (size - 1) + 1, stride) for o, size in zip(offset, sizes, strict=True))
            out = out + h[(slice(None), *at)] @ kernel[offset]
        h = np.maximum(out, 0)
        means.append(h.mean(tuple(range(1, h.ndim - 1))))
    return np.concatenate(means, -1)


@pytest.mark.parametrize("shape", [(37, 2), (9, 12, 3), (5, 6, 7, 1), (1, 2, 1)])
def test_random_convolutions_see_images_of_any_rank(shape, one_device):
    images, network = pictures(5, *shape), feature_spaces.RandomNetwork(shape, 0)
    kernels = [np.asarray(kernel[...], np.float64) for kernel in network.kernels]
    space = feature_spaces.random_space(shape, one_device)
    found, expected = space.features(images), random_features_written_out(kernels, images.astype(np.float64))
    assert (found.shape, found.dtype) == ((5, space.dim), np.float32)
    assert expected.std() > 0.1
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_random_convolutions_only_depend_on_their_seed(one_device, eight_devices):
    images = to_uint8(pictures(11, 9, 2))
    space, again = (feature_spaces.random_space((9, 2), mesh) for mesh in (one_device, eight_devices))
    found = space.features(images)
    np.testing.assert_allclose(found, again.features(to_float(images)), rtol=1e-5, atol=1e-6)
    kernels = [feature_spaces.RandomNetwork((9, 2), seed).kernels[0][...] for seed in (0, 1)]
    assert kernels[0][0, 0, 0] == pytest.approx(1.7640523 / np.sqrt(3)), "not the numbers of every machine"
    assert not np.isclose(kernels[0], kernels[1]).any()


def test_random_convolutions_reject_other_shapes(one_device):
    space = feature_spaces.random_space((8, 8, 1), one_device)
    with pytest.raises(UserError, match=r"images of \(8, 8, 1\), not of \(8, 8, 3\)"):
        space.features(pictures(2, 8, 8, 3))
    with pytest.raises(UserError, match="1 to 3 spatial axes"):
        feature_spaces.random_space((8,), one_device)


def test_no_other_space_is_called_fid(one_device):
    images = pictures(9, 6, 6, 1)
    spaces = [feature_spaces.principal_space(images, 4), feature_spaces.random_space((6, 6, 1), one_device)]
    for space in spaces:
        assert space.features(images).shape == (9, space.dim)
        names = f"{space.name} {space.frechet_name} {space.kernel_name}".lower()
        assert "fid" not in names
        assert "kid" not in names
    np.testing.assert_allclose(spaces[0].features(images), metrics.principal_components(images, 4)(images))
    assert spaces[0].dim == 4
    as_bytes = to_uint8(images)
    for fitted in (as_bytes, to_float(as_bytes)):
        found = feature_spaces.principal_space(fitted, 4).features(as_bytes)
        np.testing.assert_allclose(found, metrics.principal_components(to_float(as_bytes), 4)(to_float(as_bytes)))
    assert partial(feature_spaces.principal_space, images)(100).dim == 9, "there are no more images"
