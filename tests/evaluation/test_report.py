"""Results as results.json, as text and as a page in a real browser."""

import dataclasses
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffae_jax.data.pictures import save_grid
from diffae_jax.evaluation import results
from diffae_jax.evaluation.programs.variations import METRIC as SHARE
from diffae_jax.evaluation.report.page import write_report
from diffae_jax.evaluation.results import Claim, Figure, Picture, Results, Section, Verdict, rounded, tables
from diffae_jax.runtime.errors import UserError
from tests.browser import launched
from tests.environment import ROOT

DOCS = ROOT / "docs"
HOSTILE = "<script>alert(\"1\")</script> & 'quoted' <img src=http://example.org/x.png>"
STEPS = ("T = 10", "T = 20", "T = 50", "T = 100")
METHODS = ("inferred x_T", "random x_T", "DDIM baseline, inferred x_T")
METRICS = {"SSIM": 0.99134, "LPIPS": 0.0118, "MSE": 6.07e-5, "PSNR": 38.42}


def reconstruction() -> Section:
    figures = [
        Figure(
            metric, row, column, value * (1 - 0.07 * i - 0.01 * j), 10_000,
            value * (0.99 - 0.07 * i - 0.01 * j), value * (1.01 - 0.07 * i - 0.01 * j),
            None if metric == "PSNR" else round(value, 5),
        )
        for metric, value in METRICS.items() for i, row in enumerate(METHODS) for j, column in enumerate(STEPS)
    ]  # fmt: skip
    return Section(
        "reconstruction",
        "Reconstruction (Sec. 5.4, Tables 1 and 2)",
        tuple(figures),
        (Picture("reconstruct.png", "Images, and their reconstructions in 100 steps."),),
        ("Errors are measured on the scale [0, 1].", "The paper trained on FFHQ and measured 30,000 images."),
    )


def others() -> tuple[Section, ...]:
    fid = [
        Figure("FID", row, column, 20.8 / (1 + i) + 3 - j, 50_000, paper=10.59 + j, counted="samples")
        for j, row in enumerate(("DDIM baseline", "samples", "+ autoencoding")) for i, column in enumerate(STEPS)
    ]  # fmt: skip
    copies = [Figure("nearer than training images", "samples", "in SSIM", 0.0, 1000, 0.0, 0.0038, None, "samples")]
    labels = [
        Figure("AUROC", "z", "", 0.917, 9_000, 0.912, 0.921, 0.917),
        Figure("AUROC", "StyleGAN2 with W", "", 0.891, 7_200, 0.885, 0.899, 0.891),
        Figure("accuracy", "z", "", 0.9222, 360, 0.893, 0.945),
        Figure("accuracy", "pixels", "", 0.897, 360, 0.864, 0.922),
    ]
    skipped = "Skipped: it needs images of a different kind, and none were given (evaluation.foreign)."
    return (
        Section("sampling", "Unconditional samples (Sec. 5.7, Table 4)", tuple(fid),
                (Picture("samples.png", "Samples in 100 steps."),)),
        Section("labels", "Labels predicted from z (Appendix B, Table 7)", tuple(labels)),
        Section("variations", "Stochastic variations (Sec. 5.1, Appendix D)",
                (Figure("variance", "of x_T, against all", "", 0.0123, 512, 0.0119, 0.0127),),
                (Picture("variations.png", "Each image with nine different x_T."),)),
        Section("neighbors", "Nearest training images (Appendix C)", tuple(copies)),
        Section("out_of_distribution", "Other images (Appendix J)", notes=(skipped,)),
        Section("detection", "Detection of samples (Appendix K)",
                tuple(Figure("accuracy", step, "", 0.97 - 0.01 * i, 400) for i, step in enumerate(STEPS))),
        Section("throughput", "Speed", (Figure("images a second", "encode", "", 1_834.2, 4_096),
                                        Figure("images a second", "sample, T = 100", "", 13.7, 256))),
    )  # fmt: skip


def found() -> Results:
    """Results as of a large model."""
    comparison = "SSIM at T = 10: 0.827 [0.825, 0.829] (inferred x_T) versus 0.600 [0.597, 0.603] (DDIM baseline)"
    verdicts: list[Verdict] = ["holds"] * 8 + ["undecided"] * 3 + ["does not hold"] + ["not measured"] * 2
    claims = tuple(
        Claim(f"Claim {i}: reconstructions are closer than the DDIM baseline's, at every number of steps.",
              f"Sec. 5.{i % 8 + 1}, Table {i % 7 + 1}", verdict, "Needs a DDIM baseline." if verdict == "not measured"
              else "; ".join([comparison] * (1 + 4 * (i % 3))) + ".")
        for i, verdict in enumerate(verdicts)
    )  # fmt: skip
    about = {
        "model": "ffhq128, a diffusion autoencoder for images of 128x128x3",
        "SHA-256 of the model": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        "images": "10,000 of 10,000 held-out images",
        "devices": "8 x NVIDIA H100 80GB HBM3, bfloat16",
        "made by": "diffae_jax 0.1.0, commit 0123456789ab, JAX 0.10.2",
        "time": "2026-01-01 12:00 UTC",
    }
    config = {
        "name": "ffhq128",
        "image_shape": [128, 128, 3],
        "model": {"z_dim": 512, "dropout": 0.1, "extra": {}},
        "data": {"root": "/data/" + "ffhq/" * 40, "flip": True, "limit": None},
    }
    return Results({"model": "9f86"}, about, config, (reconstruction(), *others()), claims)


def put_pictures(folder: Path) -> None:
    save_grid(folder / "variations.png", np.random.default_rng(0).uniform(-1, 1, (9, 8, 8, 1)))
    with Image.open(DOCS / "samples.png") as picture:
        picture.resize((58, 44)).save(folder / "samples.png")  # small, so the page enlarges it
    shutil.copy(DOCS / "reconstruct.png", folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("evaluation")
    put_pictures(path)
    assert write_report(path, found()) == path / "report.html"
    return path


class Page(HTMLParser):
    """The text, the tags and the addresses of a page."""

    def __init__(self, path: Path):
        super().__init__()
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.tags: list[str] = []
        self.alternatives: list[str] = []
        self.labels: list[str] = []
        self.aria: set[str] = set()
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for key, value in attrs if key in ("src", "href", "srcset", "action", "data")]
        self.ids += [value for key, value in attrs if key == "id"]
        self.alternatives += [value for key, value in attrs if key == "alt"]
        self.labels += [value for key, value in attrs if key == "aria-labelledby"]
        self.aria |= {key for key, _ in attrs if key.startswith("aria-")}

    def handle_data(self, data):
        self.text += data + " "


def only(*sections: Section, **changed) -> Results:
    return dataclasses.replace(Results({}, {}, {}, sections, ()), **changed)


def test_page_is_self_contained(folder):
    page = Page(folder / "report.html")
    assert [address for address in page.addresses if not address.startswith(("data:", "#"))] == []
    assert {address[1:] for address in page.addresses if address.startswith("#")} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    assert not {"script", "iframe", "object", "form"} & set(page.tags)
    assert not re.search(r"url\(|@import|https?:", (folder / "report.html").read_text())


def test_each_section_is_labeled_by_its_heading(folder):
    page = Page(folder / "report.html")
    assert len(page.labels) == page.tags.count("section")
    assert set(page.labels) <= set(page.ids)
    assert page.aria == {"aria-label", "aria-labelledby"}


def test_page_shows_all_results(folder):
    text = Page(folder / "report.html").text
    evaluation = found()
    for section in evaluation.sections:
        assert section.title in text
        assert all(note in text for note in section.notes)
        assert all(picture.caption in text for picture in section.pictures)
        for figure in section.figures:
            assert f" {figure.text()} " in text, figure
            assert f"{figure.count:,} {figure.counted}" in text
            assert figure.paper is None or f" {rounded(figure.paper)} " in text
            assert figure.metric in text
            assert figure.row in text
            assert figure.column in text
    for claim in evaluation.claims:
        if claim.verdict == "not measured":
            assert f"{claim.text} {claim.source}. {claim.evidence}" in text
        else:
            assert f" {claim.verdict} {claim.text} {claim.source} " in text
    assert "8 hold 3 undecided 1 does not hold 2 not measured" in text
    assert "2 more claims were not measured" in text
    assert "model.z_dim 512" in text
    assert "data.limit null" in text
    assert all(f"{key} {value}" in text for key, value in evaluation.about.items())


def test_equal_counts_are_shown_once_and_different_ones_at_each_figure(folder):
    text = Page(folder / "report.html").text
    assert "accuracy 360 images" in text
    assert "9,000 images" in text
    assert text.count("10,000 images") == len(METRICS)


def test_hostile_strings_are_escaped(tmp_path):
    put_pictures(tmp_path)
    section = Section(
        HOSTILE, HOSTILE, (Figure(HOSTILE, HOSTILE, HOSTILE, 1.0, 2, 0.5, 1.5, 1.0, HOSTILE),),
        (Picture("samples.png", HOSTILE),), (HOSTILE,),
    )  # fmt: skip
    claim = Claim(HOSTILE, HOSTILE, "holds", HOSTILE)
    hostile = Results({}, {HOSTILE: HOSTILE}, {"name": HOSTILE, HOSTILE: HOSTILE}, (section,), (claim,))
    page = Page(write_report(tmp_path, hostile))
    assert "script" not in page.tags
    assert page.tags.count("img") == 1
    assert page.alternatives == [HOSTILE]
    assert page.text.count(HOSTILE) >= 14


def test_empty_results_give_a_page(tmp_path):
    assert "Evaluation of a model" in Page(write_report(tmp_path, only())).text


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("gone.png", None, "gone.png is missing"),
        ("broken.png", b"GIF89a", "broken.png is not a PNG file"),
        ("../outside.png", b"", "is not a file next to results.json"),
    ],
)
def test_a_missing_or_broken_picture_is_reported(tmp_path, file, content, message):
    if content is not None:
        (tmp_path / file).write_bytes(content)
    with pytest.raises(UserError, match=message):
        write_report(tmp_path, only(Section("a", "A", pictures=(Picture(file, "a picture"),))))
    assert not (tmp_path / "report.html").exists()


@pytest.fixture(scope="module")
def browser():
    with launched() as started:
        yield started


@pytest.mark.parametrize("width", [380, 1200])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_shows_the_page_without_the_network(browser, folder, width, scheme):
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    requests, complaints = [], []
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: complaints.append(message.text))
    address = (folder / "report.html").as_uri()
    page.goto(address)
    assert [request for request in requests if not request.startswith("data:")] == [address]
    assert complaints == [], "the page violates its security policy"
    widths = page.eval_on_selector_all("img", "all => all.map(image => [image.naturalWidth, image.clientWidth])")
    assert len(widths) == 3
    assert all(natural > 0 for natural, _ in widths)
    for selector in ("figure .scroll", ".verdict", ".claims li", ".tables .scroll"):
        for box in map(lambda element: element.bounding_box(), page.query_selector_all(selector)):
            assert 0 <= box["x"] <= width - box["width"], f"{selector} is cut off"
    assert page.eval_on_selector("img.enlarged", "image => getComputedStyle(image).imageRendering") == "pixelated"
    page.click("#config ~ details > summary")
    assert page.get_by_text("model.z_dim").is_visible()
    for open_too in page.query_selector_all("#claims ~ * summary"):
        open_too.click()
    assert page.get_by_text("Needs ").first.is_visible()
    assert page.evaluate("document.documentElement.scrollWidth") == width, "the page scrolls sideways"
    page.click("nav a[href='#section-2']")
    assert page.evaluate("document.querySelector('#section-2').getBoundingClientRect().top") < 900
    page.screenshot(path=folder / f"{scheme}-{width}.png", full_page=True)
    page.close()


def test_captions_of_wide_pictures_stay_readable_on_a_phone(browser, folder):
    """Such a picture scrolls. One with few pixels is enlarged, and fits."""
    page = browser.new_page(viewport={"width": 380, "height": 900})
    page.goto((folder / "report.html").as_uri())
    found = page.eval_on_selector_all(
        "figure", "all => all.map(f => [f.querySelector('img').clientWidth, f.querySelector('.scroll').clientWidth])"
    )
    natural = [Image.open(folder / name).width for name in ("reconstruct.png", "samples.png", "variations.png")]
    assert natural[0] > 1000
    assert found[0][0] > 700
    assert all(shown <= 380 for shown, _ in found[1:])
    assert all(box < 380 for _, box in found)
    page.close()


def test_not_measured_looks_different_from_every_verdict(browser, folder):
    page = browser.new_page()
    page.goto((folder / "report.html").as_uri())
    styles = {
        name: page.eval_on_selector(
            f".tally .{name}", "e => [getComputedStyle(e).color, getComputedStyle(e).backgroundColor]"
        )
        for name in ("holds", "undecided", "does-not-hold", "not-measured")
    }
    assert len(set(map(tuple, styles.values()))) == 4
    assert styles["not-measured"][1] == "rgba(0, 0, 0, 0)"
    assert page.query_selector_all(".claims .not-measured") == []
    assert not page.get_by_text("Needs a DDIM baseline").first.is_visible(), "they are folded"
    page.close()


def test_page_says_that_a_model_looks_undertrained(tmp_path, folder):
    figures = Figure(SHARE, "random x_T", "T = 20", 0.7, 32, 0.6, 0.8), Figure(SHARE, "random x_T", "T = 20", 0.2, 32)
    pages = [Page(write_report(tmp_path, only(Section("variations", "V", (figure,))))).text for figure in figures]
    assert "The model looks undertrained: z determines less than half of an image, because x_T causes 0.70" in pages[0]
    assert "undertrained" not in pages[1]


def test_a_missing_browser_is_an_error(monkeypatch):
    monkeypatch.setenv("DIFFAE_BROWSER", "/gone/chromium")
    with (
        pytest.raises(FileNotFoundError, match=r"no browser at /gone/chromium: run .* or install Chromium"),
        launched(),
    ):
        pass


def test_results_survive_writing_and_reading(tmp_path):
    results.write(tmp_path, found())
    assert results.read(tmp_path) == found()
    for damaged in ("[]", "{}", '{"sections": [{"name": "a"}]}', '{"sections": null}'):
        (tmp_path / "results.json").write_text(damaged)
        with pytest.raises(UserError, match="was not written by this version"):
            results.read(tmp_path)


def test_tables_keep_the_order_of_appearance():
    figures = [
        Figure("MSE", "b", "T = 20", 1.0, 5),
        Figure("SSIM", "a", "", 2.0, 5),
        Figure("MSE", "a", "T = 10", 3.0, 5),
        Figure("MSE", "a", "T = 20", 4.0, 5),
    ]
    mse, ssim = tables(iter(figures))
    assert (mse.metric, mse.columns) == ("MSE", ("T = 20", "T = 10"))
    assert mse.rows == (("b", (figures[0], None)), ("a", (figures[3], figures[2])))
    assert (ssim.metric, ssim.columns, ssim.rows) == ("SSIM", ("",), (("a", (figures[1],)),))
    assert tables([]) == []


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (-0.0, "0"),
        (float("nan"), "nan"),
        (float("-inf"), "-inf"),
        (6.07e-5, "6.07e-5"),
        (-5e-5, "-5.00e-5"),
        (9.994e-4, "9.99e-4"),
        (9.9996e-4, "0.00100"),
        (0.005, "0.00500"),
        (-0.01234, "-0.0123"),
        (0.125, "0.125"),
        (0.98999, "0.990"),
        (0.9912345, "0.99123"),
        (1.0, "1.00"),
        (9.996, "10.0"),
        (84.7, "84.7"),
        (99.96, "100"),
        (999.6, "1,000"),
        (1234.5, "1,234"),
        (999_999.6, "1.00e6"),
        (-1.5e9, "-1.50e9"),
    ],
)
def test_numbers_have_three_significant_digits(value, text):
    assert rounded(value) == text


@pytest.mark.parametrize(
    ("value", "low", "high", "text"),
    [
        (0.99039, 0.98812, 0.99194, "0.9904 [0.9881, 0.9919]"),
        (28.91, 28.7, 29.14, "28.91 [28.70, 29.14]"),
        (1234.5, 1000.2, 1500.7, "1,234 [1,000, 1,501]"),
        (2.34e-5, 2.2e-5, 2.5e-5, "2.34e-5 [2.20e-5, 2.50e-5]"),
        (0.5, 0.5, 0.5, "0.500 [0.500, 0.500]"),
        (0.5, None, None, "0.500"),
    ],
)
def test_the_interval_decides_the_number_of_digits(value, low, high, text):
    assert Figure("m", "r", "c", value, 5, low, high).text() == text


def test_a_section_as_text():
    figures = (
        Figure("MSE", "ours", "T = 10", 0.01, 5, 0.009, 0.011, 0.02),
        Figure("MSE", "ours", "T = 100", 6.07e-5, 5),
        Figure("MSE", "baseline", "T = 100", 0.5, 5),
        Figure("accuracy", "z", "", 0.92, 5),
    )
    assert results.as_text(Section("a", "Title (Table 1)", figures, notes=("A note.",))).splitlines() == [
        "Title (Table 1)",
        "  MSE       T = 10                   T = 100",
        "  ours      0.0100 [0.0090, 0.0110]  6.07e-5",
        "    paper   0.0200",
        "  baseline                           0.500",
        "  accuracy",
        "  z         0.920",
        "  A note.",
    ]
