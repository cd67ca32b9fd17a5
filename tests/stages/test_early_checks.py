"""What a later stage would refuse is refused before the first step."""

import numpy as np
import pytest

from diffae_jax.data.sources import Arrays, TransformedSource
from diffae_jax.data.transforms import Transform
from diffae_jax.inference.encode_dataset import label_columns
from diffae_jax.runtime.errors import UserError
from diffae_jax.stages.chain import STAGES, run_stages
from diffae_jax.stages.early_checks import check_folder, check_images, check_settings
from diffae_jax.stages.probes import notes_on_probes
from tests.data_files import make_folder, noise
from tests.messages import assert_is_one_sentence
from tests.random_models import random_model
from tests.tiny import get_config


@pytest.fixture
def config():
    config = get_config()
    config.data.held_out_share = 0.0
    return config


def is_refused(config, folder, message, images=None, stages=None):
    """Asserts that a run is refused in one sentence, and that nothing was trained."""
    images = noise(16, 8, 8, 1) if images is None else images
    with pytest.raises(UserError, match=message) as refusal:
        run_stages(config, folder, stages, images=images)
    assert_is_one_sentence(refusal.value)
    assert not list(folder.glob("*/checkpoints/*"))
    assert not (folder / "metrics.jsonl").exists()


@pytest.mark.parametrize(
    ("images", "found"),
    [
        (noise(1, 8, 8, 1), "a single image"),
        (np.repeat(noise(1, 8, 8, 1), 3, axis=0), "3 images with the same pixels"),
    ],
    ids=["one", "three copies"],
)
def test_images_without_statistics_are_refused(config, images, found, tmp_path):
    message = f"^The statistics of z need at least two different training images, not {found}. Add images, or train"
    is_refused(config, tmp_path / "run", message, images)


def test_models_to_compare_with_are_checked(config, tmp_path, one_device):
    model = random_model(one_device)
    model.save(tmp_path / "model")
    config.evaluation.baseline = str(tmp_path / "model")
    is_refused(config, tmp_path / "run", "has a z, so it cannot be the baseline. Use a DDIM without z")
    config.evaluation.update(baseline="", others=(str(tmp_path / "model"),))
    config.model.z_dim = model.config.model.z_dim
    is_refused(config, tmp_path / "run", "2 models have a z of 8 dimensions, .* Use models whose z differ in size")
    (tmp_path / "photos").mkdir()
    config.evaluation.others = (str(tmp_path / "photos"),)
    is_refused(config, tmp_path / "run", "photos is neither a bundle nor the folder of a trained run")


def test_images_of_another_kind_are_checked(config, tmp_path):
    config.evaluation.foreign = str(tmp_path / "photos")
    is_refused(config, tmp_path / "run", "photos is missing. Check the path")
    folder = make_folder(tmp_path, noise(3, 8, 8, 1))
    folder.rename(tmp_path / "photos")
    (tmp_path / "photos" / "01.png").write_bytes(b"junk")
    config.evaluation.programs = ("out_of_distribution",)
    is_refused(config, tmp_path / "run", "01.png cannot be read as an image")


def test_weights_and_the_place_of_the_bundle_are_checked(config, tmp_path):
    (tmp_path / "weights.pth").write_bytes(b"junk")
    config.evaluation.inception = str(tmp_path / "weights.pth")
    is_refused(
        config, tmp_path / "run", "weights.pth is not pt_inception.* Expected SHA-256 .*, found 4 bytes. Remove it"
    )
    config.evaluation.inception = ""
    (tmp_path / "run" / "bundle").mkdir(parents=True)
    (tmp_path / "run" / "bundle" / "notes.txt").write_text("mine")
    is_refused(config, tmp_path / "run", "bundle exists and is not a bundle. Choose a path that does not exist yet")


def test_stages_that_do_not_run_refuse_nothing(config, tmp_path):
    config.evaluation.update(baseline=str(tmp_path), foreign=str(tmp_path / "nowhere"))
    config.prior.batch_size = 7
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "notes.txt").write_text("mine")
    copies = Arrays(np.repeat(noise(1, 8, 8, 1), 3, axis=0), list("abc"))
    checks = [
        lambda stages: check_settings(config, stages, 8),
        lambda stages: check_folder(config, tmp_path, stages),
        lambda stages: check_images(config, stages, TransformedSource(copies, Transform((8, 8, 1)))),
    ]
    for check in checks:
        check(["autoencoder"])
        with pytest.raises(UserError):
            check(STAGES)


def test_labels_without_a_probe_are_named_before_training():
    labels = {
        "age": np.arange(8) % 4,
        "same": np.zeros(8),
        "caption": np.array([f"image {i}" for i in range(60)], object),
        "rare": np.array([*"aaaabbbc"], object),
        "inputs": np.arange(8) % 2,
        "x" * 300: np.arange(8) % 2,
    }
    reasons = [
        "caption has 60 different values, but a probe has at most 50 classes. Merge some of them.",
        "Classes of rare have one image each (c). Label at least two of each.",
        "A label cannot be called inputs, because its file name is reserved. Rename the label.",
        "The name of probe " + "x" * 120 + " is too long for a file name. Use a shorter name.",
    ]
    assert notes_on_probes(labels) == [f"No probe will be fitted: {reason}" for reason in reasons]


def test_labels_with_the_names_of_arrays_are_renamed():
    labels = {name: np.arange(2) for name in ("z", "ids", "file", "z_000", "z_", "age")}
    assert list(label_columns(Arrays(noise(2, 8, 8, 1), ["a", "b"], labels))) == [
        "z_", "ids_", "file_", "z_000_", "z__", "age"
    ]  # fmt: skip
