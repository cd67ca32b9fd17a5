"""UserError is a ValueError; code that catches ValueError must not replace its message."""

import io
import zipfile

import numpy as np
import pytest

from diffae_jax import cli
from diffae_jax.config import from_file
from diffae_jax.data.formats.files import volume_errors_as_user_errors
from diffae_jax.data.sources import image_errors_as_user_errors
from diffae_jax.inference.inputs import as_codes
from diffae_jax.inference.weights import abstract_weights
from diffae_jax.runtime.errors import UserError, counted
from diffae_jax.runtime.files import CHECK_FILE, read_rows
from diffae_jax.runtime.own_code import import_own
from tests.messages import assert_is_one_sentence

SENTENCE = "The dog ate 3 of 7 files: copy them again."
RAISING = f"from diffae_jax.runtime.errors import UserError\ndef get_config():\n    raise UserError({SENTENCE!r})\n"


def test_programs_may_catch_it_as_a_value_error():
    with pytest.raises(ValueError, match=r"^The dog ate 3 of 7 files: copy them again\.$"):
        raise UserError(SENTENCE)
    with pytest.raises(ValueError, match=r"must have the shape \(N, 8\), not \(3,\)"):
        as_codes("z", np.zeros(3), (8,))


def config_that_refuses(folder):
    (folder / "own.py").write_text(RAISING)
    from_file(str(folder / "own.py"))


def rows_under_other_names(folder):
    np.savez(folder / "rows.npz", mean=np.zeros(2), deviation=np.ones(2))
    read_rows(folder / "rows.npz", ("mean", "std"))


def row_of_text(folder):
    content = io.BytesIO()
    np.save(content, np.array(["a", "b"]))
    with zipfile.ZipFile(folder / "rows.npz", "w") as archive:
        archive.writestr("mean.npy", content.getvalue())
    read_rows(folder / "rows.npz", ("mean",))


def image_that_is_refused(folder):
    with image_errors_as_user_errors("a.png"):
        raise UserError(SENTENCE)


def volume_that_is_refused(folder):
    with volume_errors_as_user_errors("a.nii"):
        raise UserError(SENTENCE)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (config_that_refuses, SENTENCE),
        (
            rows_under_other_names,
            f"{{}}/rows.npz cannot be read: it does not hold mean and std as np.savez writes them. {CHECK_FILE}",
        ),
        (
            row_of_text,
            f"{{}}/rows.npz cannot be read: its mean.npy is not a row of floating point numbers. {CHECK_FILE}",
        ),
        (image_that_is_refused, SENTENCE),
        (volume_that_is_refused, SENTENCE),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_sentence_is_not_replaced_by_that_of_a_damaged_file(tmp_path, call, sentence):
    with pytest.raises(UserError) as refusal:
        call(tmp_path)
    assert str(refusal.value) == sentence.format(tmp_path)


def test_sentence_of_your_own_code_is_passed_on(tmp_path, monkeypatch, tiny_config, one_device):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "refusing.py").write_text(f"{RAISING}get_config()\n")
    with pytest.raises(UserError, match=SENTENCE) as refusal:
        import_own("refusing")
    assert_is_one_sentence(refusal.value)
    encoder = RAISING.replace("def get_config():", "class Encoder(nnx.Module):\n  def __init__(self, **_):")
    (tmp_path / "refusing_encoder.py").write_text(f"from flax import nnx\n{encoder}")
    import_own("refusing_encoder")
    tiny_config.model.encoder.kind = "refusing_encoder:Encoder"
    with pytest.raises(UserError) as refusal:
        abstract_weights(tiny_config, one_device)
    assert str(refusal.value) == SENTENCE


def test_command_prints_the_sentence_of_a_check_and_not_that_of_a_bad_value(capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.run(["sample", "nowhere", "--steps", "2000"])
    assert exit_.value.code == 2
    assert "1 to 1000 steps, not 2000" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (counted(0, "image"), "0 images"),
        (counted(1, "image"), "1 image"),
        (counted(2000, "image"), "2,000 images"),
        (counted(2, "process", "processes"), "2 processes"),
        (counted(1, "image", of=1), "1 of 1 image"),
        (counted(1, "image", of=3, verb="is/are"), "1 of 3 images is"),
        (counted(2, "image", of=3, verb="is/are"), "2 of 3 images are"),
        (counted(1, "file", verb="has/have"), "1 file has"),
    ],
)
def test_numbers_agree_with_their_nouns_and_verbs(text, expected):
    assert text == expected
