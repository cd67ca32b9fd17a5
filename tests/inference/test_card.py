"""The model card: what it says, that an edit is kept, and that it never makes a model unusable."""

import dataclasses
import json
import os
import re
import shutil

import numpy as np
import pytest
import yaml
from PIL import Image
from safetensors.numpy import save

from diffae_jax import DiffAE, cli
from diffae_jax.evaluation import results
from diffae_jax.evaluation.model_card import card_of_run
from diffae_jax.evaluation.results import Figure, Picture, Results, Section
from diffae_jax.inference.card import TAGS, Card, CardPicture, CardTable, with_license
from diffae_jax.inference.card_page import write_page
from diffae_jax.models.functional import flatten
from diffae_jax.runtime.errors import UserError
from tests.messages import assert_is_one_sentence
from tests.pages import blocks, commands
from tests.random_models import random_model

TABLE = CardTable("Reconstruction", (("SSIM", "T = 10"), ("inferred x_T", "0.99 [0.98, 1.00]")))


def picture_file(path, color=7):
    Image.new("L", (2, 2), color).save(path)
    return path.read_bytes()


@pytest.fixture(scope="module")
def card(tmp_path_factory):
    content = picture_file(tmp_path_factory.mktemp("picture") / "a.png")
    return Card(
        data=("Images: a folder, 90 to train on, 10 held out.",),
        measured_on="Measured on 10 held-out images.",
        tables=(TABLE,),
        pictures=(CardPicture("pictures/samples.png", "Samples in 20 steps.", content),),
    )


@pytest.fixture(scope="module")
def model(one_device, card):
    return random_model(one_device, card=card)


@pytest.fixture
def bundle(model, tmp_path):
    model.save(tmp_path / "bundle")
    return tmp_path / "bundle"


def text_of(bundle):
    return (bundle / "README.md").read_text()


def with_manifest(bundle, **changes):
    path = bundle / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_card_states_model_data_results_license_and_origin(bundle):
    text = text_of(bundle)
    metadata = yaml.safe_load(text.split("---\n")[1])
    assert metadata == {
        "library_name": "diffae_jax",
        "license": "unknown",
        "pipeline_tag": "unconditional-image-generation",
        "tags": list(TAGS),
    }
    for part in (
        "# tiny",
        "images of 8x8 with 1 channel",
        "Images: a folder, 90 to train on, 10 held out.",
        "| inferred x_T | 0.99 [0.98, 1.00] |",
        "Measured on 10 held-out images.",
        "95 % confidence intervals",
        "![Samples in 20 steps.](pictures/samples.png)",
        "the owner has not stated a license",
        "- hair/color é: ",
        "- made: here",
        "## Intended use and limits",
    ):
        assert part in text, part


def test_card_of_a_model_without_facts_says_so(one_device, tmp_path):
    model = random_model(one_device, prior=None, probes={}, origin={})
    model.config.export.license = "cc-by-4.0"
    model.save(tmp_path / "bundle")
    text = text_of(tmp_path / "bundle")
    assert 'license: "cc-by-4.0"' in text
    for part in (
        "does not come with a record",
        "Not measured.",
        "cannot sample new images",
        "\n## License\n\ncc-by-4.0",
    ):
        assert part in text, part
    for part in ("diffae sample", "model.sample", "## Probes", "!["):
        assert part not in text, part


def test_examples_in_the_card_run(bundle, monkeypatch):
    monkeypatch.chdir(bundle.parent)
    images = np.zeros((2, 8, 8, 1), np.uint8)
    found = list(blocks(text_of(bundle)))
    assert [language for language, _ in found] == ["shell", "python"]
    lines = commands(found[0][1])
    assert [line[1] for line in lines[1:]] == ["info", "encode", "reconstruct", "sample"]
    for _, *arguments in lines[1:]:
        cli.parser().parse_args(arguments)
    few = found[1][1].replace("images, z)", "images, z, 2)").replace("z, x_T)", "z, x_T, 2)")
    few = few.replace("seed=0", "seed=0, num_steps=2, num_latent_steps=2")
    names = {"images": images}
    exec(few, names)
    assert names["z"].shape == (2, 8)
    assert names["again"].shape == (2, 8, 8, 1)
    assert names["new"].shape == (16, 8, 8, 1)


def test_folder_name_is_quoted_in_the_examples(model, tmp_path):
    model.save(tmp_path / 'my "model" `x`')
    assert "diffae info 'my \"model\" `x`'" in text_of(tmp_path / 'my "model" `x`')
    assert r'DiffAE.load("my \"model\" `x`")' in text_of(tmp_path / 'my "model" `x`')


def test_weights_are_those_of_safetensors_whatever_the_card(model, bundle):
    weights = {name: np.asarray(array) for name, array in flatten({"autoencoder": model.params}).items()}
    weights |= {f"prior.{name}": np.asarray(array) for name, array in flatten(model.prior).items()}
    assert (bundle / "weights.safetensors").read_bytes() == save(weights)
    assert not {"README.md", "pictures/samples.png"} & set(json.loads((bundle / "manifest.json").read_text())["files"])


def test_edited_card_is_kept_and_a_removed_one_is_written_again(model, bundle, card, tmp_path):
    (bundle / "README.md").write_text("# Mine")
    loaded = DiffAE.load(bundle)
    assert loaded.card == dataclasses.replace(card, text="# Mine")
    loaded.save(tmp_path / "other")
    assert text_of(tmp_path / "other") == "# Mine"
    assert DiffAE.load(tmp_path / "other").card.text == "# Mine"
    model.save(bundle)  # a model that was not loaded from it, as the training run does
    assert text_of(bundle) == "# Mine"
    (bundle / "README.md").unlink()
    DiffAE.load(bundle).save(bundle)
    assert "# tiny" in text_of(bundle)
    assert DiffAE.load(bundle).card == card


def test_all_pictures_of_an_edited_card_are_kept(model, bundle, card, tmp_path):
    (bundle / "README.md").write_text("# Mine\n\n![How](pictures/diagram.png)")
    own, changed = (
        picture_file(bundle / "pictures" / "diagram.png", 8),
        picture_file(bundle / "pictures" / "samples.png", 9),
    )
    model.save(bundle)
    loaded = DiffAE.load(bundle)
    assert [(picture.file, picture.content) for picture in loaded.card.pictures] == [
        ("pictures/samples.png", changed),
        ("pictures/diagram.png", own),
    ]
    loaded.save(tmp_path / "other")
    assert (tmp_path / "other" / "pictures" / "diagram.png").read_bytes() == own
    (bundle / "README.md").unlink()
    loaded = DiffAE.load(bundle)
    assert [picture.caption for picture in loaded.card.pictures] == ["Samples in 20 steps."]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("README.md", b"a" * (2**20 + 1), "more than the 1,048,576 bytes"),
        ("README.md", "# M\u00fcller".encode("latin-1"), "README.md is not text in UTF-8. Save it as UTF-8"),
        ("pictures/film.png", b"GIF89a", "film.png cannot be kept: it is not a PNG file of up to"),
    ],
    ids=["too long", "latin-1", "no png"],
)
def test_edits_that_cannot_be_kept_are_never_overwritten(model, bundle, name, content, message):
    (bundle / "README.md").write_text("# Mine")
    (bundle / name).write_bytes(content)
    before = {path: path.read_bytes() for path in bundle.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=message) as refused:
        model.save(bundle)
    assert_is_one_sentence(refused.value)
    assert {path: path.read_bytes() for path in bundle.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("# Mine\n", '---\nlicense: "mit"\n---\n\n# Mine\n'),
        ("---\r\ntags: [a]\r\n---\r\n\r\nlicense: b", '---\nlicense: "mit"\ntags: [a]\n---\n\nlicense: b'),
        ("---\ntags: [a]\nlicense: unknown\n---\n# Mine", '---\ntags: [a]\nlicense: "mit"\n---\n# Mine'),
    ],
    ids=["no front matter", "no license", "another license"],
)
def test_license_is_put_into_an_edited_card(text, expected):
    assert with_license(text, "mit") == expected


def test_card_follows_the_probes_of_a_loaded_model(bundle):
    loaded = DiffAE.load(bundle)
    loaded.fit_probe("smile", np.random.default_rng(0).normal(size=(20, 8)).astype(np.float32), [0, 1] * 10)
    loaded.save(bundle)
    assert "- smile: " in text_of(bundle)
    assert TABLE.rows[1][1] in text_of(bundle)


def test_bundle_without_a_card_loads(model, bundle):
    (bundle / "README.md").unlink()
    shutil.rmtree(bundle / "pictures")
    manifest = json.loads((bundle / "manifest.json").read_text())
    del manifest["card"]
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    loaded = DiffAE.load(bundle)
    assert loaded.card == Card()
    assert loaded.digest() == model.digest()


@pytest.mark.parametrize(
    "damage",
    [
        lambda bundle: (bundle / "README.md").write_bytes(b"\xff\xfe"),
        lambda bundle: (bundle / "README.md").write_bytes(b"a" * (2**20 + 1)),
        lambda bundle: [(bundle / "README.md").unlink(), (bundle / "README.md").mkdir()],
        lambda bundle: [(bundle / "README.md").unlink(), os.mkfifo(bundle / "README.md")],
        lambda bundle: (bundle / "pictures" / "samples.png").write_text("no picture"),
        lambda bundle: (bundle / "pictures" / "samples.png").unlink(),
        lambda bundle: with_manifest(bundle, card=3),
        lambda bundle: with_manifest(bundle, card={"data": 3, "tables": {}, "pictures": [], "measured_on": None}),
        lambda bundle: with_manifest(
            bundle, card={"data": [3], "tables": [[], {"rows": []}, {"title": 1, "rows": [[]]}]}
        ),
        lambda bundle: with_manifest(bundle, card={"tables": [{"title": "", "rows": [["a"], ["b", "c"]]}]}),
        lambda bundle: with_manifest(
            bundle, card={"pictures": {"../../secret.png": "", "pictures/a.svg": "", "/a": 1}}
        ),
    ],
    ids=[
        "no text",
        "too long",
        "folder",
        "pipe",
        "no png",
        "no picture",
        "number",
        "types",
        "entries",
        "rows",
        "names",
    ],
)
def test_damaged_card_never_makes_a_model_unusable(model, bundle, tmp_path, damage):
    damage(bundle)
    loaded = DiffAE.load(bundle)
    assert loaded.digest() == model.digest()
    loaded.save(tmp_path / "again")
    assert "# tiny" in text_of(tmp_path / "again")


def test_what_is_no_picture_is_left_out(bundle, tmp_path):
    (bundle / "pictures" / "samples.png").write_text("<svg>")
    loaded = DiffAE.load(bundle)
    assert loaded.card.pictures == ()
    loaded.save(tmp_path / "again")
    assert "pictures/" not in text_of(tmp_path / "again")


HOSTILE = Card(
    data=("<script>alert(1)</script> [a](javascript:alert(1)) ![b](http://host/p.png) | # `code`\n\n# heading",),
    tables=(CardTable("<b>", (("a|b", "c"), ("<img src=http://host/q.png>", "x"))),),
)


def links_of(page):
    return re.findall(r'(?:src|href)="([^"]*)"', page)


def test_page_of_a_hostile_card_runs_and_loads_nothing(one_device, tmp_path):
    model = random_model(one_device, card=HOSTILE)
    write_page(tmp_path / "card.html", model.card_text("bundle"), ())
    page = (tmp_path / "card.html").read_text()
    assert links_of(page) == ["https://arxiv.org/abs/2111.15640"]
    assert not re.search(r"<(script|img|b|iframe)\b", page)
    assert "<td>a|b</td>" in page.replace("th>", "td>")
    edited = "# <script>x</script>\n\n<img src=x>\n\n![a](http://host/p.png)\n\n[b](javascript:alert(1))"
    write_page(tmp_path / "edited.html", edited, ())
    page = (tmp_path / "edited.html").read_text()
    assert links_of(page) == [""]
    assert not re.search(r"<(script|iframe)\b", page)


def test_info_prints_the_card_and_writes_it_as_html(bundle, tmp_path, capsys):
    out = tmp_path / "card.html"
    cli.run(["info", str(bundle), "--html", str(out)])
    printed = capsys.readouterr().out
    for line in ("license: unknown", "data: Images: a folder, 90 to train on", "SSIM, inferred x_T, T = 10: 0.99 ["):
        assert line in printed, printed
    page = out.read_text()
    assert "<h1>tiny</h1>" in page
    assert "diffae info bundle" in page
    assert str(bundle) not in page
    assert "<title>tiny</title>" in page
    assert "library_name" not in page
    assert 'src="data:image/png;base64,' in page
    with pytest.raises(SystemExit):
        cli.run(["info", str(bundle), "--html", str(out)])
    assert "already exists" in capsys.readouterr().err


def test_page_without_its_library_is_refused(bundle, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "markdown_it", None)
    with pytest.raises(UserError, match=r'pip install "diffae_jax\[hub\]"') as caught:
        write_page(tmp_path / "card.html", "# a", ())
    assert_is_one_sentence(caught.value)
    assert not (tmp_path / "card.html").exists()


# --- the facts of a run --------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path):
    """A run folder with the record of its data and an evaluation of the model "abc"."""
    record = {
        "summary": [
            "Images: a folder, 90 to train on, 10 held out.",
            "Values: uint8, from 0 to 255.",
            "Skipped: /home/me/patients/miller.png.",
        ]
    }
    (tmp_path / "data.json").write_text(json.dumps(record))
    (tmp_path / "evaluation").mkdir()
    for name in ("reconstructions", "samples"):
        picture_file(tmp_path / "evaluation" / f"{name}.png")
    figures = (
        Figure("MSE", "inferred x_T", "T = 10", 0.001427, 120, 0.001294, 0.0016),
        Figure("MSE", "random x_T", "T = 20", 0.0309, 120),
    )
    sections = (
        Section("reconstruction", "Reconstruction", figures, (Picture("reconstructions.png", "Again."),), ("a note",)),
        Section("throughput", "Speed", (Figure("images/s", "encode", "", 12.0, 1),)),
        Section("sampling", "Samples", (), (Picture("samples.png", "New."),)),
    )
    measured, about = {"model": {"digest": "abc"}}, {"images": "120 of 360 held-out images", "time": "now"}
    results.write(tmp_path / "evaluation", Results(measured, about, {}, sections, ()))
    return tmp_path


def test_facts_of_a_run_are_its_data_results_and_pictures(run, tiny_config):
    card = card_of_run(tiny_config, run, "abc")
    assert card.data == ("Images: a folder, 90 to train on, 10 held out.", "Values: uint8, from 0 to 255.")
    assert card.measured_on == "Measured on 120 of 360 held-out images."
    rows = (
        ("MSE", "T = 10", "T = 20"),
        ("inferred x_T", "0.00143 [0.00129, 0.00160]", ""),
        ("random x_T", "", "0.0309"),
    )
    assert card.tables == (CardTable("Reconstruction", rows),)
    names = [(picture.file, picture.caption) for picture in card.pictures]
    assert names == [("pictures/reconstructions.png", "Again."), ("pictures/samples.png", "New.")]
    tiny_config.export.pictures = False
    assert card_of_run(tiny_config, run, "abc") == dataclasses.replace(card, pictures=())


def test_results_of_another_model_are_left_out(run, tiny_config):
    card = card_of_run(tiny_config, run, "abd")
    assert card == Card(data=card.data)
    assert card.data
    shutil.rmtree(run / "evaluation")
    (run / "data.json").unlink()
    assert card_of_run(tiny_config, run, "abc") == Card()
