"""What the tabs answer to values that no control sends, and to names that are alike."""

import gradio as gr
import numpy as np
import pytest
from PIL import Image

from diffae_jax.demo.images import MOST_IMAGES, ImageSet, no_images
from diffae_jax.demo.page import build, head
from diffae_jax.demo.scatter import scatter
from diffae_jax.demo.sessions import Session, Shared
from diffae_jax.demo.snippets import Origin
from diffae_jax.demo.tabs import edit, explore, folder, sample
from diffae_jax.probes import Probe
from diffae_jax.runtime.errors import UserError
from tests.demo.models import model_with_probes


@pytest.fixture(scope="module")
def model(one_device):
    return model_with_probes(one_device)


@pytest.fixture
def session(model, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 1), np.uint8)
    names = [f"{i}.png" for i in range(5)]
    labels = {"none": np.arange(5), "bold (predicted)": np.arange(5) % 2, "bold": np.array(["a", "b", "a", "b", "a"])}
    images = ImageSet(images, names, [Origin(name) for name in names], labels, model.encode(images), Origin("all"))
    session = Session(Shared(model, "tiny", images, tmp_path))
    session.num_steps = 2
    return session


FIVE = ["digit=1", "digit=2", "bold", "slant", "new"]


@pytest.mark.parametrize(
    ("answer", "values", "message"),
    [
        (edit.show, (FIVE, 0, 0, 0, 0), "There are 5 probes. Choose at most 4"),
        (edit.show, (None, 0, 0, 0, 0), "Choose a probe"),
        (edit.show, (["bold"], None), "The strength must be from"),
        (edit.show_film, (["bold", None], 0, 0), "There is no probe None"),
        (explore.show, ("", None), "There is no direction None of 6 directions"),
        (explore.show, ("", 6), "There is no direction 6 of 6 directions"),
        (sample.show, (1.5, 8, ""), "The seed must be a whole number, not 1.5"),
        (sample.show, (None, 8, ""), "The seed must be a whole number, not None"),
        (sample.show, (0, None, ""), "The number of images must be one of 8, 16, 32, not None"),
        (sample.show, (0, 8, None), "There is no class None"),
        (sample.show, (0, 8, ["bold"]), "There is no class a list"),
        (folder.click, (5, folder.YES), "There is no image 5 of 5 images"),
        (folder.fit_probe, (None,), "Write the name of the new label"),
        (folder.upload, (gr.Progress(), None), "No file was uploaded"),
    ],
)
def test_bad_values_get_a_message(session, answer, values, message):
    with pytest.raises(UserError, match=message):
        answer(session, *values)


def test_a_large_upload_is_refused_unread_and_removed(session, tmp_path):
    paths = [tmp_path / f"{i}.png" for i in range(MOST_IMAGES + 1)]
    for path in paths:
        path.touch()
    with pytest.raises(UserError, match=r"There are 501 files\. At most 500 can be uploaded"):
        folder.upload(session, gr.Progress(), list(map(str, paths)))
    assert not any(path.exists() for path in paths)


def test_uploaded_files_of_one_name_are_told_apart(session, tmp_path):
    paths = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        paths.append(tmp_path / name / "9.png")
        Image.new("L", (8, 8)).save(paths[-1])
    session.upload(np.zeros((8, 8, 1), np.uint8), "9.png")
    folder.upload(session, gr.Progress(), list(map(str, paths)))
    assert session.images.names == ["9-2.png", "9-3.png"]
    assert session.images.origin.expression == '["9-2.png", "9-3.png"]'
    assert not any(path.exists() for path in paths)


def test_labels_and_classes_may_have_any_name(session):
    """Also the names of entries that the page adds to its menus."""
    colors = explore.choices_of_color(session.images, session.model.probes)
    assert len({value for _, value in colors}) == len(colors) == 3 + 3 + 1
    by_value = {value: explore.labels_of(session, value) for _, value in colors}
    assert by_value[colors[0][1]] is session.images.labels["none"]
    assert by_value[colors[1][1]] is session.images.labels["bold (predicted)"]
    assert by_value[colors[2][1]] is session.images.labels["bold"]
    assert colors[4][0] == "bold (predicted)"
    np.testing.assert_array_equal(
        by_value[colors[4][1]], session.model.predict(session.images.z, session.model.probes["bold"])
    )
    assert by_value[colors[6][1]] is None


def test_a_class_may_be_named_all(session, model):
    weights = np.ones(8, np.float32)
    session.fitted["all"] = folder_probe(Probe("all", weights, 0.0, "binary"))
    assert "all" in sample.binary(session.directions())
    assert "sample_class" in sample.code_for(session, 0, 8, "all")
    assert "sample_class" not in sample.code_for(session, 0, 8, sample.ALL[1])


def folder_probe(probe):
    from diffae_jax.demo.sessions import FittedProbe

    return FittedProbe(probe, "", Origin("all"))


def test_the_name_of_a_model_is_no_markup(one_device):
    model = model_with_probes(one_device)
    model.config.name = '![x](http://evil.example/x.png)<img src="x">'
    assert "<img" not in head(model)
    assert head(model).startswith("<h1>![x](http://evil.example/x.png)&lt;img")


def test_the_page_writes_nothing_before_it_is_opened(model, tmp_path):
    build(Shared(model, "tiny", no_images(model), tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_map_says_which_labels_have_no_color():
    points = np.random.default_rng(0).normal(size=(14, 2))
    labels = np.array([*"abcdefghijkl", None, ""], object)
    drawn = scatter(points, list(map(str, range(14))), labels, None)
    _, legend = drawn.split('<div class="legend">')
    assert legend.count("<span>") == 11
    assert "2 other values" in legend
    assert "None" not in legend
