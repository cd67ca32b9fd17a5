"""The page in a real browser: what each tab shows, what is downloaded, and what goes wrong."""

import io
import os
import re
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffae_jax import DiffAE
from diffae_jax.demo.images import images_at, shipped_images
from diffae_jax.demo.serving import served
from diffae_jax.demo.sessions import DECODE_BATCH, Session, Shared
from diffae_jax.demo.tabs import edit
from tests.browser import launched
from tests.demo.models import model_with_probes, volumes
from tests.demo.test_sessions import bomb
from tests.demo.visitor import DESKTOP, FIRST_PICTURE, PHONE, Visitor
from tests.runs import free_address


@pytest.fixture(scope="module")
def model(one_device):
    return model_with_probes(one_device)


@pytest.fixture(scope="module")
def bundle(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("demo") / "bundle"
    model.save(path)
    return path


@pytest.fixture(scope="module")
def address(model, bundle):
    port = int(free_address().rpartition(":")[2])
    with served(model, str(bundle), images_at(model, "digits"), port) as address:
        yield address


@pytest.fixture(scope="module")
def browser():
    with launched() as started:
        yield started


@pytest.fixture
def visitor(browser, address):
    visitors = []

    def visit(size=DESKTOP):
        visitors.append(Visitor(browser, address, size))
        return visitors[-1]

    yield visit
    for each in visitors:
        each.context.close()
        assert each.complaints == []
        assert [url for url in each.asked if not url.startswith((address, "data:", "blob:"))] == []


@pytest.fixture
def person(visitor):
    return visitor()


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_every_tab_shows_pictures_and_fits_the_screen(visitor, size):
    person = visitor(size)
    for tab, place in FIRST_PICTURE.items():
        person.open(tab)
        assert person.pictures(place.partition(" ")[0])
        assert person.page.evaluate("document.documentElement.scrollWidth") <= size["width"], tab


def run(code, folder, monkeypatch):
    """Runs code in a folder, as a person does who copied it."""
    monkeypatch.chdir(folder)
    exec(compile(code, "the code of the page", "exec"), {})


def assert_same_picture(path, other):
    """Whether two pictures are the same but for rounding: the code runs on other devices."""
    with Image.open(path) as a, Image.open(other) as b:
        assert (a.format, a.size, getattr(a, "n_frames", 1)) == (b.format, b.size, getattr(b, "n_frames", 1))
        for i in range(getattr(a, "n_frames", 1)):
            a.seek(i)
            b.seek(i)
            np.testing.assert_allclose(np.asarray(a.convert("RGB"), int), np.asarray(b.convert("RGB"), int), atol=3)


@pytest.fixture
def check_code(tmp_path, monkeypatch):
    """A function that checks that the code of the open tab makes what the tab downloads."""

    def check(person, *kinds):
        paths = [person.download(kind, tmp_path) for kind in kinds]
        ran = tmp_path / "ran"
        ran.mkdir()
        run(person.code(), ran, monkeypatch)
        for path in paths:
            assert_same_picture(path, ran / path.name)

    return check


def test_reconstruct(person, check_code, tmp_path, model):
    pictures = person.pictures("#reconstruction")
    assert len(set(pictures)) == 6
    captions = person.page.locator("#reconstruction span").all_inner_texts()
    assert re.fullmatch(r"z and x_T, MSE [\d.e-]+", captions[1])
    other = person.change("#reconstruction", lambda: person.click("#images", 3))
    assert not set(other) & set(pictures)
    with np.load(person.download("npz", tmp_path)) as arrays:
        image, z = arrays["image"], arrays["z"]
        np.testing.assert_allclose(z, model.encode(image), atol=1e-5)
        np.testing.assert_allclose(arrays["reconstruction"], model.reconstruct(image, 20)[0], atol=1e-4)
    check_code(person, "png")


def test_other_steps_give_another_reconstruction(person):
    def choose():
        person.page.locator("#steps input").click()
        person.page.get_by_role("option", name="10", exact=True).click()

    before = person.pictures("#reconstruction")
    after = person.change("#reconstruction", choose)
    assert before[0] == after[0]
    assert before[1] != after[1]
    assert "num_steps=10" in person.code()


def test_interpolate(person, check_code):
    person.open("Interpolate")
    first, middle, last = person.pictures("#between")
    moved = person.change("#between", lambda: person.slide("#position", 2))
    assert (moved[0], moved[2]) == (first, last)
    assert moved[1] != middle
    other = person.change("#between", lambda: person.click("#second", 5))
    assert other[0] == first
    assert other[2] != last
    *_, film = person.change("#between", lambda: person.page.locator("#film").click())
    assert film.startswith("data:image/gif")
    check_code(person, "png", "gif")


def test_edit_with_two_probes(person, check_code):
    person.open("Edit")
    before, same = person.pictures("#edited")
    assert before == same
    _, one = person.change("#edited", lambda: person.slide("#strength-0", 0.7))
    left, both = person.change("#edited", lambda: person.slide("#strength-1", -1.1))
    assert left == before
    assert len({before, one, both}) == 3
    rows = person.page.locator("#edited tr").all_inner_texts()
    assert [row.split("\t")[0] for row in rows] == ["probe", "digit=1", "digit=2"]
    assert rows[1].split("\t")[1] != rows[1].split("\t")[2]
    *_, film = person.change("#edited", lambda: person.page.locator("#edit-film").click())
    assert film.startswith("data:image/gif")
    check_code(person, "png", "gif")


def test_sample(person, check_code):
    person.open("Sample")
    pictures = person.pictures("#samples")
    assert len(set(pictures)) == len(pictures) == 2 * DECODE_BATCH
    person.page.locator("#seed input").fill("7")
    draw = person.page.locator("#draw")
    assert not set(person.change("#samples", draw.click)) & set(pictures)
    person.page.locator("#class input").click()
    person.page.get_by_role("option", name="bold", exact=True).click()
    person.change("#samples", draw.click)
    check_code(person, "png")


def test_explore(person, check_code):
    person.open("Explore")
    assert person.page.locator("#map circle[data-index]").count() == 500
    chosen = person.pictures("#images")[0]
    row = person.change("#directions", lambda: person.page.locator("#map circle").nth(77).click(force=True))
    assert person.pictures("#images")[0] != chosen
    person.change("#directions", lambda: person.click("#nearest", 2))
    person.change("#directions", lambda: person.page.locator("#component").get_by_text("3", exact=True).click())
    assert len(set(row)) == 7
    check_code(person, "png")


def test_label_images_and_edit_with_the_new_probe(person, check_code):
    person.open("Your folder")
    person.page.locator("#label input, #label textarea").fill("round")
    person.page.locator("#fit").click()
    assert "Label at least 2 images of each kind" in person.message()
    for i in range(5):
        person.click("#to-label", i)
        person.page.locator(f"#to-label .yes[data-index='{i}']").wait_for()
    person.page.locator("#mark").get_by_text("without it").click()
    for i in range(5, 10):
        person.click("#to-label", i)
        person.page.locator(f"#to-label .no[data-index='{i}']").wait_for()
    assert "5 with it, 5 without it" in person.page.locator("#to-label").inner_text()
    person.page.locator("#fit").click()
    person.page.locator("#fitted img").nth(4).wait_for()
    assert "round: binary, positive is '1', AUROC" in person.page.locator("#fitted").inner_text()
    check_code(person, "png")
    person.open("Edit")
    person.page.locator("#probes input").click()
    person.page.get_by_role("option", name="round").click()
    person.change("#edited", lambda: person.slide("#strength-2", 1))
    assert 'model.fit_probe("round"' in person.code()


def picture(size=(8, 8), color="white", mode="L"):
    file = io.BytesIO()
    Image.new(mode, size, color).save(file, "PNG")
    return file.getvalue()


def test_an_uploaded_image_is_converted_and_used(person, tmp_path, monkeypatch):
    path = tmp_path / "me & you.png"
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (20, 30, 3), np.uint8)).save(path)
    person.change("#reconstruction", lambda: person.upload("#upload", path))
    note = person.page.locator("#images .hint").inner_text()
    assert "from 30x20 in 3 channels to 8x8 in 1 channel" in note
    downloaded = person.download("png", tmp_path)
    code = person.code()
    path.rename(tmp_path / re.search(r'open_for\(model, "(.+?)"\)', code)[1])  # Gradio may change the name
    downloaded = downloaded.rename(tmp_path / "downloaded.png")
    run(code, tmp_path, monkeypatch)
    assert_same_picture(downloaded, tmp_path / "reconstruction.png")


def test_bad_uploads_get_a_message_and_the_page_lives(person, tmp_path):
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "small.png").write_bytes(picture((3, 3)))
    before = person.pictures("#reconstruction")
    for path, message in (
        (tmp_path / "text.png", "text.png cannot be read as an image"),
        (bomb(tmp_path / "bomb.png", 30_000), "bomb.png has 900 million pixels"),
        (tmp_path / "small.png", "small.png is 3x3 pixels"),
    ):
        person.upload("#upload", path)
        assert message in person.message()
    assert person.pictures("#reconstruction") == before
    person.change("#reconstruction", lambda: person.click("#images", 2))


@pytest.mark.parametrize("is_folder", [True, pytest.param(False, marks=pytest.mark.long)], ids=["folder", "files"])
def test_uploaded_images_are_encoded_and_explored(person, tmp_path, is_folder):
    rng = np.random.default_rng(0)
    for i in range(40):
        path = tmp_path / "photos" / ("a" if i % 2 else "b") / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (10, 12), np.uint8)).save(path)
    (tmp_path / "photos" / "damaged.png").write_text("no image")
    paths = [tmp_path / "photos"] if is_folder else sorted((tmp_path / "photos").rglob("*.png"))
    person.open("Your folder")
    person.change("#to-label", lambda: person.upload("#folder" if is_folder else "#files", *paths))
    person.page.get_by_text("40 images encoded. 1 file was skipped. The first: damaged.png").wait_for()
    person.open("Explore")
    assert person.page.locator("#map circle[data-index]").count() == 40


@pytest.mark.long
def test_a_slice_of_a_volume_is_chosen_with_a_slider(one_device, browser):
    port = int(free_address().rpartition(":")[2])
    model, images = volumes(one_device)
    with served(model, "volumes", images, port) as address:
        person = Visitor(browser, address)
        before = person.pictures("#reconstruction")
        after = person.change("#reconstruction", lambda: person.slide("#slice", 0))
        assert not set(before) & set(after)
        person.context.close()


@pytest.mark.long
def test_an_edit_of_a_digit_answers_within_two_seconds(one_device, tmp_path):
    """With the model that ships, after its functions are compiled. A slider only decodes."""
    model = DiffAE.load("digits", one_device)
    session = Session(Shared(model, "digits", shipped_images(model, "digits"), tmp_path))
    edit.show(session, ["digit=2"], 0.1)
    seconds = []
    for strength in (0.2, 0.4, 0.6, 0.8, 1.0):
        began = time.monotonic()
        edit.show(session, ["digit=2"], strength)
        seconds.append(time.monotonic() - began)
    assert np.median(seconds) < 2, seconds


def test_a_seed_out_of_range_gets_a_message(person):
    person.open("Sample")
    person.page.locator("#seed input").fill("-1")
    person.page.locator("#draw").click()
    assert "The seed must be a whole number between 0 and 2147483647, not -1." in person.message()
    person.page.locator("#seed input").fill("1")
    person.change("#samples", person.page.locator("#draw").click)


def test_two_people_at_once_have_their_own_images(visitor):
    one, other = visitor(), visitor()
    before = one.pictures("#reconstruction")
    one.open("Interpolate")
    one.page.locator("#film").click()  # works while the other one clicks
    other.change("#reconstruction", lambda: other.click("#images", 4))
    one.page.locator("#between img").nth(3).wait_for()
    one.open("Reconstruct")
    assert one.pictures("#reconstruction") == before


def session_folders():
    """Returns the folders of the sessions that the server remembers."""
    return set(Path(os.environ["GRADIO_TEMP_DIR"]).glob("session-*"))


def test_a_browser_may_leave_at_any_time(visitor, capfd):
    """The server forgets it, and has no error."""
    before = session_folders()
    leaving = visitor()
    (folder,) = session_folders() - before
    leaving.open("Interpolate")
    leaving.page.locator("#film").click()
    leaving.page.close()
    staying = visitor()
    deadline = time.monotonic() + 60
    while folder.exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    staying.change("#reconstruction", lambda: staying.click("#images", 6))
    assert len(session_folders() - before) == 1
    assert "Traceback" not in "".join(capfd.readouterr())
