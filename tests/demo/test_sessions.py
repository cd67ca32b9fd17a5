"""What a session keeps is bounded, and what a browser sends is checked."""

import concurrent.futures
import io
import re
import zlib

import numpy as np
import pytest
from PIL import Image

from diffae_jax.data.transforms import Transform
from diffae_jax.demo import checks
from diffae_jax.demo.downloads import Downloads
from diffae_jax.demo.images import ChosenImage, images_at, most_images, no_images
from diffae_jax.demo.scatter import UNKNOWN, scatter
from diffae_jax.demo.sessions import MOST_SESSIONS, MOST_UPLOADS, Results, Session, Sessions, Shared
from diffae_jax.demo.snippets import Origin, snippet
from diffae_jax.demo.tiles import escaped
from diffae_jax.runtime.errors import UserError
from tests.demo.models import model_with_probes


@pytest.fixture(scope="module")
def model(one_device):
    return model_with_probes(one_device)


@pytest.fixture
def shared(model, tmp_path):
    return Shared(model, "tiny", no_images(model), tmp_path)


def test_results_are_computed_once_and_the_oldest_are_dropped():
    results, calls = Results(2000), []

    def compute(key):
        calls.append(key)
        return np.zeros(250)  # 2,000 bytes

    assert results.get("a", lambda: compute("a")) is results.get("a", lambda: compute("a"))
    results.get("b", lambda: compute("b"))
    results.get("a", lambda: compute("a"))
    assert calls == ["a", "b", "a"]


def test_sessions_are_bounded_and_their_files_are_removed(shared):
    sessions = Sessions(shared)
    for i in range(MOST_SESSIONS + 1):
        with sessions.use(str(i)) as session:
            assert session.downloads.npz("a", x=np.zeros(1)).exists()
    with sessions.use(str(i)) as again:
        assert again is session
    assert len(sessions) == len(list(shared.folder.iterdir())) == MOST_SESSIONS
    with pytest.raises(UserError, match=f"This page was closed, or {MOST_SESSIONS} newer ones are open"):
        enter(sessions, "0")
    sessions.close(str(i))
    sessions.close("no such session")
    assert len(sessions) == len(list(shared.folder.iterdir())) == MOST_SESSIONS - 1


def enter(sessions, name):
    with sessions.use(name):
        pass


@pytest.fixture
def in_thread():
    """A function that calls another one in a thread, and returns its future."""
    with concurrent.futures.ThreadPoolExecutor() as pool:
        yield pool.submit


def test_a_session_answers_one_event_at_a_time(model, shared, in_thread):
    """Otherwise, a decoding would have some batches of other steps, and would be kept."""
    sessions = Sessions(shared)
    image = ChosenImage(np.full(model.image_shape, 7, np.uint8), "a.png", Origin('"a.png"'))

    def set_steps():
        with sessions.use("a") as session:
            session.num_steps = 2

    with sessions.use("a") as session:
        setting = in_thread(set_steps)
        with pytest.raises(concurrent.futures.TimeoutError):
            setting.result(timeout=0.2)
        np.testing.assert_allclose(session.reconstruction(image), model.reconstruct(image.image, 20)[0], atol=1e-4)
    setting.result(timeout=10)
    assert session.num_steps == 2
    with sessions.use("b"):
        in_thread(enter, sessions, "a").result(timeout=10)  # other sessions go on


def test_a_browser_may_leave_while_an_event_runs(shared, in_thread):
    """The event finishes, then the files are removed. Later events bring no session back."""
    sessions = Sessions(shared)
    with sessions.use("a") as session:
        closing, waiting = in_thread(sessions.close, "a"), in_thread(enter, sessions, "a")
        with pytest.raises(concurrent.futures.TimeoutError):
            closing.result(timeout=0.2)
        assert session.downloads.npz("a", x=np.zeros(1)).exists()
    closing.result(timeout=10)
    with pytest.raises(UserError, match="This page was closed"):
        waiting.result(timeout=10)
    with pytest.raises(UserError, match="This page was closed"):
        enter(sessions, "a")
    assert len(sessions) == len(list(shared.folder.iterdir())) == 0


def test_uploads_are_bounded(shared, model):
    session = Session(shared)
    with pytest.raises(UserError, match="no image yet"):
        session.need_image()
    for i in range(MOST_UPLOADS + 3):
        image = np.full(model.image_shape, i, np.uint8)
        session.upload(image, f"{i}.png")
    assert len(session.uploads) == MOST_UPLOADS
    assert session.chosen is session.uploads[0]


def test_uploads_of_one_name_are_told_apart(shared, model):
    """Otherwise, the code would open the same file for both."""
    session = Session(shared)
    for i, name in enumerate(["a.png", "a.png", "a-2.png", "b.nii.gz", "b.nii.gz"]):
        session.upload(np.full(model.image_shape, i, np.uint8), name)
    assert [image.name for image in session.uploads] == ["b-2.nii.gz", "b.nii.gz", "a-2-2.png", "a-2.png", "a.png"]
    assert len({image.origin.expression for image in session.uploads}) == 5
    code = snippet("tiny", [session.chosen.origin], f"image = {session.chosen.origin.expression}")
    assert "# copy the uploaded files into the current folder, under the names below\n" in code


def test_downloads_are_bounded(tmp_path):
    downloads = Downloads(tmp_path)
    other = downloads.npz("b", x=np.zeros(1))
    paths = [downloads.npz("a", x=np.zeros(1)) for _ in range(40)]
    assert [path.exists() for path in paths] == [False] * 38 + [True] * 2
    assert other.exists()  # its button is still on another tab
    downloads.remove()
    assert list(tmp_path.iterdir()) == []


def test_an_edit_is_computed_once(model, shared):
    """z and x_T of an image are kept, so an edit needs only a decoding."""
    session = Session(shared)
    image = ChosenImage(np.full(model.image_shape, 7, np.uint8), "a.png", Origin('"a.png"'))
    z, x_T = session.codes(image)
    assert session.codes(image)[1] is x_T
    np.testing.assert_array_equal(z, model.encode(image.image[None]))
    np.testing.assert_allclose(session.reconstruction(image), model.decode(z, x_T, 20)[0], atol=1e-5)
    session.num_steps = 2
    assert session.codes(image)[1] is not x_T


def png(folder, size=(8, 8), mode="L", name="a.png"):
    Image.new(mode, size).save(folder / name)
    return folder / name


def bomb(path, side):
    """Writes a small PNG that claims to have side x side pixels."""
    file = io.BytesIO()
    Image.new("L", (1, 1)).save(file, "PNG")
    content = bytearray(file.getvalue())
    content[16:24] = side.to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    path.write_bytes(content)
    return path


def test_an_upload_is_converted_and_described(model, tmp_path):
    image, note = checks.read_upload(png(tmp_path), model)
    assert (image.shape, image.dtype, note) == ((8, 8, 1), np.uint8, "")
    image, note = checks.read_upload(png(tmp_path, (30, 20), "RGB"), model)
    assert image.shape == (8, 8, 1)
    assert "(a.png) from 30x20 in 3 channels to 8x8 in 1 channel" in note
    assert str(tmp_path) not in note


@pytest.mark.parametrize("stem", ["a" * 200, "b\u200b" * 60], ids=["long", "not printable"])
def test_messages_do_not_show_folders_of_the_server(model, tmp_path, stem):
    folder = tmp_path / ("f" * 64)  # as long as Gradio's
    folder.mkdir()
    _, note = checks.read_upload(png(folder, (30, 20), name=f"{stem}.png"), model)
    assert note.startswith("1 of 1 image was converted, the first (" + stem[:1])
    assert not any(part in note for part in tmp_path.parts[1:])
    with pytest.raises(UserError, match=f"^{stem[0]}.*smaller than the 8x8") as error:
        checks.read_upload(png(folder, (4, 4), name=f"{stem}.png"), model)
    assert not any(part in str(error.value) for part in tmp_path.parts[1:])


def test_bad_uploads_are_refused_with_their_name(model, tmp_path):
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "notes.txt").write_text("no image")
    large = tmp_path / "large.png"
    with large.open("wb") as file:
        file.truncate(checks.MOST_BYTES + 1)
    for path, message in (
        (tmp_path / "text.png", "^text.png cannot be read as an image"),
        (tmp_path / "notes.txt", "^notes.txt is not an image that this model takes. Use .png"),
        (large, "^large.png has 32 MB. At most 32 MB"),
        (bomb(tmp_path / "bomb.png", 30_000), "^bomb.png has 900 million pixels. At most 64 million"),
        (png(tmp_path, (4, 4), name="small.png"), "^small.png is 4x4 pixels, smaller than the 8x8"),
    ):
        with pytest.raises(UserError, match=message) as error:
            checks.read_upload(path, model)
        assert str(tmp_path) not in str(error.value)


@pytest.mark.parametrize("value", [-1, 2**31, 0.5, None, "1", float("nan"), 10**400])
def test_bad_seeds_are_refused(value):
    with pytest.raises(UserError, match="seed must be a whole number"):
        checks.seed(value)
    assert checks.seed(7.0) == checks.seed(7) == 7


@pytest.mark.parametrize("value", [-1.6, 2, float("nan"), float("inf"), None, "1"])
def test_bad_strengths_are_refused(value):
    with pytest.raises(UserError, match=r"strength must be from -1\.5 to 1\.5"):
        checks.strength(value)
    assert checks.strength(-1.5) == -1.5


@pytest.mark.parametrize("value", [-1, 3, 1.0, None, True, "1"])
def test_bad_clicks_are_refused(value):
    with pytest.raises(UserError, match=r"There is no slice .* of 3 slices\. Reload"):
        checks.index_below(value, 3, "slice")
    assert checks.index_below(2, 3) == 2


NAMES = {
    None: "Choose a probe",
    (): "Choose a probe",
    ("a", "b", "c"): "There are 3 probes. Choose at most 2",
    ("a", "d"): "There is no probe d",
    ("a", None): "There is no probe None",
    ("a", "a"): "Choose each probe once",
}


@pytest.mark.parametrize(("value", "message"), NAMES.items())
def test_bad_choices_are_refused(value, message):
    with pytest.raises(UserError, match=message):
        checks.names_of(value and list(value), ["a", "b", "c"], "probe", 2)
    assert checks.names_of(["b", "a"], ["a", "b", "c"], "probe", 2) == ["b", "a"]


def test_uploads_are_removed_once_they_are_read(model, tmp_path):
    with checks.uploaded([str(png(tmp_path)), str(tmp_path / "b.png")]) as (path, missing):
        checks.read_upload(path, model)
        with pytest.raises(UserError, match=r"^b\.png is gone"):
            checks.read_upload(missing, model)
    assert list(tmp_path.iterdir()) == []


def test_a_set_is_bounded_by_its_bytes():
    assert most_images(Transform((64, 64, 3))) == 500
    assert most_images(Transform((128, 128, 128, 1), intensity=(0.0, 1.0))) == 2**28 // (128**3 * 4)


def test_names_of_files_are_no_code_of_the_page():
    assert escaped('<b>${x}{{y}}`"') == "&lt;b&gt;&#36;&#123;x}&#123;&#123;y}}&#96;&quot;"


def test_a_snippet_imports_what_it_uses():
    origin = Origin("source[1]", 'source = open_for(model, "a")', ("from diffae_jax.x import open_for",))
    code = snippet('a "model"', [origin, origin], 'np.save(Path("a"), source[1])', ", film")
    assert code == (
        "from pathlib import Path\nimport numpy as np\n\n"
        "from diffae_jax import DiffAE, film\nfrom diffae_jax.x import open_for\n\n"
        'model = DiffAE.load("a \\"model\\"")\nsource = open_for(model, "a")\nnp.save(Path("a"), source[1])\n'
    )


def test_a_set_knows_where_its_images_come_from(model):
    """The expressions in code give the images that the page shows."""
    from diffae_jax.data.sources import choose, read
    from diffae_jax.inference.encode_dataset import open_for

    images = images_at(model, "digits")
    source = open_for(model, "digits")
    names = {"source": source, "choose": choose, "read": read}
    np.testing.assert_array_equal(eval(images.origin.expression, names), images.images)
    np.testing.assert_array_equal(eval(images.origin_of([3, 7]).expression, names), images.images[[3, 7]])
    np.testing.assert_allclose(images.z, model.encode(images.images), atol=1e-5)


def test_a_map_colors_labels_and_leaves_unknown_ones_gray():
    points = np.random.default_rng(0).normal(size=(30, 2))
    names = [f"{i}.png" for i in range(30)]

    def colors(labels):
        return re.findall(r'r="5" fill="(#\w+)"', scatter(points, names, labels, points[3]))

    assert len(set(colors(None))) == 1
    assert colors(np.array(["a", "b", ""] * 10, object))[2::3] == [UNKNOWN] * 10
    assert len(set(colors(np.arange(30) % 7))) == 7
    scale = colors(np.where(np.arange(30) == 4, np.nan, np.linspace(1.5, 9, 30)))
    assert len(set(scale)) == 30
    assert scale[4] == UNKNOWN
