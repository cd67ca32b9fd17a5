"""Probes against closed forms, float64 references and scikit-learn; and the errors they raise."""

import json

import jax.numpy as jnp
import numpy as np
import pandas
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from diffae_jax import DiffAE, probes
from diffae_jax.models.build import builder
from diffae_jax.probes import ClassProbe, Probe, Score
from diffae_jax.runtime.errors import UserError
from tests.messages import assert_is_one_sentence
from tests.random_models import initial

D = 6


def normal(n, seed=0, d=D):
    return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


def noisy_attribute(z, direction, seed=1):
    """True where a coordinate along the direction, with noise of deviation 0.5, is positive."""
    return z @ direction + 0.5 * np.random.default_rng(seed).normal(size=len(z)) > 0


DIRECTION = np.array([3, 0, -4, 0, 0, 0]) / 5


def stored(probe):
    """What comes back of a probe that was written as JSON."""
    return probes.from_json(json.loads(json.dumps(probe.as_json())))


# --- what probes compute -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["binary", "continuous"])
def test_predict_is_the_linear_function_or_its_probability(kind):
    probe, z = Probe("a", normal(1)[0], 0.7, kind), normal(9, 1)
    value = z.astype(np.float64) @ probe.weights.astype(np.float64) + 0.7
    expected = 1 / (1 + np.exp(-value)) if kind == "binary" else value
    np.testing.assert_allclose(probe.predict(z), expected, rtol=1e-5)


@pytest.mark.parametrize(("kind", "to"), [("binary", 0.9), ("binary", 1e-3), ("continuous", -12.5)])
def test_the_strength_that_reaches_a_value_moves_each_z_there(kind, to):
    probe, z = Probe("a", normal(1)[0], 0.7, kind), normal(9, 1)
    strengths = probe.strength_to_reach(z, to)
    reached = np.concatenate([z[i : i + 1] + probe.shift(strengths[i]) for i in range(9)])
    np.testing.assert_allclose(probe.predict(reached), to, rtol=1e-4)
    moved = reached - z
    cosines = moved @ probe.weights / np.linalg.norm(moved, axis=1) / np.linalg.norm(probe.weights)
    np.testing.assert_allclose(np.abs(cosines), 1, rtol=1e-5)  # the shortest way


def test_shift_is_as_long_as_strength_says_and_nothing_for_none():
    probe = Probe("a", normal(1)[0], 0.7)
    np.testing.assert_allclose(np.linalg.norm(probe.shift(-0.3)), 0.3 * np.sqrt(D), rtol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(probe.shift(0.3)), 0.3 * np.sqrt(probe.z_dim), rtol=1e-6)
    assert (probe.shift(0.0) == 0).all()
    assert probe.shift(0.3).dtype == np.float32


@pytest.mark.parametrize(
    ("kind", "to"),
    [("binary", 0.0), ("binary", 1.0), ("binary", np.nan), ("continuous", np.inf), ("continuous", 10**400)],
)
def test_what_cannot_be_reached_is_refused(kind, to):
    with pytest.raises(UserError, match=r"a predicts a probability|along a must be finite") as refusal:
        Probe("a", normal(1)[0], 0.0, kind).strength_to_reach(normal(0), to)
    assert_is_one_sentence(refusal.value)


def test_class_probe_names_the_class_of_the_greatest_logit():
    parts = {value: Probe(f"hue={value}", normal(1, seed)[0], 0.1 * seed) for seed, value in enumerate("rgb")}
    probe, z = ClassProbe("hue", parts), normal(50)
    logits = np.stack([z @ part.weights + part.bias for part in parts.values()], axis=1)
    assert probe.predict(z).tolist() == ["rgb"[i] for i in logits.argmax(1)]
    assert set(probe.predict(z)) == set("rgb")


def test_directions_and_names():
    parts = {value: Probe(f"hue={value}", normal(1)[0], 0.0) for value in "rgb"}
    all_of_them = {"hue": ClassProbe("hue", parts), "smile": Probe("smile", normal(1)[0], 0.0)}
    assert set(probes.directions(all_of_them)) == {"hue=r", "hue=g", "hue=b", "smile"}
    assert probes.find(all_of_them, "hue") is all_of_them["hue"]
    assert probes.find(all_of_them, "hue=g") is parts["g"]
    with pytest.raises(UserError, match=r"There is no probe frown\. Choose one of hue=b, hue=g, ") as refusal:
        probes.find(all_of_them, "frown")
    assert_is_one_sentence(refusal.value)
    with pytest.raises(UserError, match=r"has no probes: fit one with `diffae probe` or DiffAE\.fit_probe"):
        probes.find({}, "frown")


# --- fitting -------------------------------------------------------------------------------------


def test_binary_probe_finds_a_known_direction_and_scores_as_that_direction_does():
    z, unseen = normal(2000), normal(1000, 5)
    truth = noisy_attribute(unseen, DIRECTION, 6)
    probe = probes.fit("smile", z, np.where(noisy_attribute(z, DIRECTION), "yes", "no"), held_out=(unseen, truth))
    assert probe.positive == "yes"
    assert probe.weights @ DIRECTION / np.linalg.norm(probe.weights) > 0.99
    probe = probes.fit("smile", z, noisy_attribute(z, DIRECTION), held_out=(unseen, truth))
    assert probe.score.metric == "AUROC"
    assert probe.score.num_images == 1000
    np.testing.assert_allclose(probe.score.value, roc_auc_score(truth, unseen @ DIRECTION), atol=0.005)
    crossed = probes.fit("smile", z, noisy_attribute(z, DIRECTION)).score
    assert crossed.num_images == 2000
    np.testing.assert_allclose(crossed.value, probe.score.value, atol=0.02)


def test_score_is_measured_on_images_that_were_not_fitted_to():
    z = normal(60, d=50)  # enough dimensions to know every label by heart
    labels = np.random.default_rng(3).permutation(np.arange(60) % 2 == 0)
    probe = probes.fit("chance", z, labels)
    assert roc_auc_score(labels, probe.logits(z)) > 0.85
    assert probe.score.value < 0.7


def test_continuous_probe_recovers_a_linear_function():
    z, unseen = normal(500), normal(100, 5)
    probe = probes.fit("age", z, 40 + 15 * z @ DIRECTION, held_out=(unseen, 40 + 15 * unseen @ DIRECTION))
    assert probe.kind == "continuous"
    np.testing.assert_allclose(probe.weights, 15 * DIRECTION, atol=0.01)
    np.testing.assert_allclose(probe.bias, 40, atol=0.01)
    assert probe.score.metric == "R^2"
    assert probe.score.value > 0.9999
    assert probes.fit("age", z, np.random.default_rng(0).normal(size=500)).score.value < 0.1


def test_probe_of_classes_has_one_against_the_rest_for_each():
    z = normal(900)
    labels = z[:, :3].argmax(1) + 7
    probe = probes.fit("digit", z, labels, held_out=(z[:300], labels[:300]))
    assert list(probe.classes) == ["7", "8", "9"]
    assert probe.score == Score("accuracy", float(np.mean(probe.predict(z[:300]) == labels[:300].astype(str))), 300)
    assert probe.score.value > 0.9
    alone = probes.fit("digit", z, labels == 8)
    np.testing.assert_allclose(probe.classes["8"].weights, alone.weights, rtol=1e-5)
    assert probe.classes["8"].positive == "8"
    assert probes.fit("digit", z, labels).score.value > 0.9


def test_positives_among_unlabeled_weigh_as_if_they_were_repeated():
    z = normal(400)
    positive = noisy_attribute(z, DIRECTION) & (np.arange(400) % 5 == 0)
    others, few = z[~positive], z[positive][:40]
    others = others[: 6 * len(few)]
    z, labels = np.concatenate([few, others]), np.array([1.0] * len(few) + [np.nan] * len(others))
    probe = probes.fit("hat", z, labels, positive_unlabeled=True)
    literally = LogisticRegression(C=0.01, max_iter=2000).fit(
        np.concatenate([few] * 6 + [others]).astype(np.float64), [True] * 6 * len(few) + [False] * len(others)
    )
    np.testing.assert_allclose(probe.predict(z), literally.predict_proba(z)[:, 1], atol=1e-4)
    assert probe.score.num_images == len(z)


def test_missing_labels_are_left_out():
    z = normal(300)
    labels = noisy_attribute(z, DIRECTION).astype(np.float64)
    labels[::3] = np.nan
    probe, alone = probes.fit("a", z, labels), probes.fit("a", z[labels == labels], labels[labels == labels] == 1)
    np.testing.assert_array_equal(probe.weights, alone.weights)
    assert probe.score.num_images == 200
    assert probe.positive == "1"
    assert (
        probes.is_known([None, "", float("nan"), np.float32("nan"), 0, "a", False]).tolist() == [False] * 4 + [True] * 3
    )


@pytest.mark.parametrize("kind", ["one column", "table", "nullable", "text", "tensors"])
def test_labels_may_be_columns_of_any_library(kind):
    z = normal(60)
    labels = noisy_attribute(z, DIRECTION).astype(int)
    expected, is_used = probes.fit("a", z, labels), np.ones(60, bool)
    if kind in ("nullable", "text"):
        is_used[::3] = False
        expected = probes.fit("a", z[is_used], labels[is_used])
    given = {
        "one column": labels[:, None],
        "table": pandas.DataFrame({"a": labels}),
        "nullable": pandas.Series(labels, dtype="Int64").where(is_used),
        "text": pandas.Series(labels).astype("string").where(is_used),
        "tensors": [jnp.asarray(label) for label in labels],
    }[kind]
    probes.check_labels("a", given)
    np.testing.assert_array_equal(probes.fit("a", z, given).weights, expected.weights)
    known = z[is_used], labels[is_used]
    assert probes.fit("a", z, given, held_out=(z, given)).score == probes.fit("a", *known, held_out=known).score
    if kind != "table":
        np.testing.assert_array_equal(probes.is_known(given), is_used)


@pytest.mark.parametrize(
    ("labels", "kind"),
    [
        ([True, False] * 3, "binary"),
        ([0.5, 2.5] * 3, "binary"),
        (["b", "a"] * 3, "binary"),
        ([1, 2, 3] * 3, "classes"),
        ([1.0, 2.0, 3.0] * 3, "classes"),
        (list(range(50)), "classes"),
        (list(range(51)), "continuous"),
        ([0.5, 1.0, 2.0], "continuous"),
        (["a", "b", "c"], "classes"),
        ([str(i) for i in range(51)], "text"),
    ],
)
def test_kind_of_labels(labels, kind):
    assert probes.kind_of(labels) == kind


def test_classes_of_whole_numbers_are_called_the_same_where_some_are_missing():
    z = normal(90)
    labels = z[:, :3].argmax(1)
    with_gaps = np.where(np.arange(90) == 5, np.nan, labels)
    assert list(probes.fit("a", z, with_gaps).classes) == ["0", "1", "2"]
    assert probes.fit("a", z, labels, held_out=(z, with_gaps)).score.num_images == 89
    assert probes.fit("a", z, labels, held_out=(z, with_gaps)).score.value > 0.7


def test_where_the_held_out_images_tell_nothing_the_score_is_cross_validated():
    z, labels = normal(100), noisy_attribute(normal(100), DIRECTION)
    for held_out in ((z[:0], []), (z[:5], [True] * 5), (z[:2], [None, None])):
        assert probes.fit("a", z, labels, held_out=held_out).score.num_images == 100


Z, HALF = normal(60), [True, False] * 30


@pytest.mark.parametrize(
    ("z", "labels", "settings", "message"),
    [
        (Z, HALF[:-1], {}, "smile has 59 labels for the z of 60 images"),
        (Z[0], HALF[:6], {}, r"must be numbers of shape \[N, D\], not float32 of shape \(6,\)"),
        (Z.astype(str), HALF, {}, "must be numbers of shape"),
        (
            np.where(np.arange(D) == 1, np.nan, Z),
            HALF,
            {},
            "60 of the 60 z for smile are not finite; the first is at index 0",
        ),
        (Z, [True] * 60, {}, "must have at least two different values, but all 60 are True"),
        (Z, [None] * 60, {}, "must have at least two different values, but there are none"),
        (Z, [True] + [False] * 59, {}, r"Classes of smile have one image each \(True\)"),
        (Z, [0, 0, 0] + list(range(1, 11)) * 5 + list(range(11, 18)), {}, r"each \(11, 12, 13 and 4 more\)"),
        (Z, [str(i) for i in range(60)], {}, "60 different values, but a probe has at most 50 classes"),
        (Z, list(range(60)), {"kind": "classes"}, "60 different values"),
        (Z, list(range(60)), {"kind": "binary"}, "60 different values, but a binary probe needs two"),
        (Z, ["a", "b"] * 30, {"kind": "continuous"}, "needs at least four numbers.* 60 texts"),
        (Z[:3], [0.1, 0.2, 0.3], {}, "needs at least four numbers.* 3 numbers"),
        (Z, HALF, {"kind": "ternary"}, "binary, classes, continuous or None, not ternary"),
        (
            Z,
            HALF,
            {"kind": "classes", "positive_unlabeled": True},
            'positive_unlabeled needs kind="binary", not classes',
        ),
        (Z, ["yes", "1"] * 30, {"positive_unlabeled": True}, "must be 1 or True, but those of smile are text: 1, yes"),
        (Z, [2, None] * 30, {"positive_unlabeled": True}, "must be 1 or True, but those of smile are numbers: 2"),
        (Z, [0, None] * 30, {"positive_unlabeled": True}, "all 60 are False"),
        (Z, [np.inf] + [0.5] * 59, {}, "text or finite numbers, but smile has inf"),
        (Z, [[1]] * 60, {}, "text or finite numbers, but smile has a list"),
        (Z, np.ones((60, 2)), {}, r"The labels of smile have the shape \(60, 2\): give one value for each image"),
        (Z, HALF, {"held_out": (Z, HALF[:3])}, "smile, held out, has 3 labels for the z of 60 images"),
        (Z, Z[:, 0], {"held_out": (Z, ["a"] * 60)}, "held-out labels are text, but the other labels are numbers"),
    ],
)
def test_what_cannot_be_fitted_is_reported_in_one_line(z, labels, settings, message):
    with pytest.raises(UserError, match=message) as refusal:
        probes.fit("smile", z, labels, **settings)
    assert_is_one_sentence(refusal.value)
    if z is Z and "held_out" not in settings and len(labels) == len(Z):
        with pytest.raises(UserError) as without_z:
            probes.check_labels("smile", labels, **settings)
        assert str(without_z.value) == str(refusal.value)


def test_labels_that_can_be_fitted_pass_the_check():
    for labels, settings in ((HALF, {}), ([1, None] * 30, {"positive_unlabeled": True}), (list(Z[:, 0]), {})):
        probes.check_labels("smile", labels, **settings)


# --- principal components ------------------------------------------------------------------------


def test_components_are_those_of_the_covariance():
    z = normal(300) @ np.diag([5, 4, 3, 2, 1, 0.5]).astype(np.float32) @ np.linalg.qr(normal(D))[0] + 2
    found = probes.components(z, 3)
    variances, axes = np.linalg.eigh(np.cov(z.astype(np.float64), rowvar=False))
    centered = z - z.astype(np.float64).mean(0)
    for i, probe in enumerate(found):
        axis = axes[:, -1 - i] * np.sign(axes[:, -1 - i] @ probe.weights)
        np.testing.assert_allclose(probe.weights, axis, atol=1e-5)
        np.testing.assert_allclose(probe.predict(z), centered @ axis, atol=1e-3)
        np.testing.assert_allclose(probe.score.value, variances[-1 - i] / variances.sum(), rtol=1e-5)
    assert [probe.name for probe in found] == ["component 1", "component 2", "component 3"]


@pytest.mark.parametrize(("num_images", "count"), [(10, 0), (10, 7), (4, 4)])
def test_components_that_z_has_not_are_refused(num_images, count):
    with pytest.raises(UserError, match="1 to") as refusal:
        probes.components(normal(num_images), count)
    assert_is_one_sentence(refusal.value)


# --- storing and telling -------------------------------------------------------------------------


def test_json_keeps_everything():
    z = normal(90)
    for labels in (z[:, 0] > 0, z[:, :3].argmax(1), z[:, 0]):
        probe = probes.fit("a", z, labels)
        again = stored(probe)
        assert again.as_json() == probe.as_json()
        assert type(again) is type(probe)
        np.testing.assert_array_equal(again.predict(z), probe.predict(z))


def test_probes_stored_without_kind_are_binary():
    probe = probes.from_json({"name": "a", "weights": [1, 2], "bias": 3})
    assert (probe.kind, probe.positive, probe.score, probe.bias) == ("binary", "", None, 3.0)


def test_probes_are_described_in_a_line():
    weights = np.ones(2, np.float32)
    smile = Probe("smile", weights, 0.0, positive="yes", score=Score("AUROC", 0.934, 1360))
    assert probes.describe(smile) == "smile: binary, positive is 'yes', AUROC 0.93 on 1,360 images"
    digit = ClassProbe("digit", {value: Probe(f"digit={value}", weights, 0.0) for value in "01"})
    assert probes.describe(digit) == "digit: 2 classes (digit=0, digit=1)"
    assert probes.describe(Probe("a\nb", weights, 0.0, "continuous")) == r"a\nb: continuous"


# --- as methods of a model -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(one_device):
    from diffae_jax.data.latents import LatentStatistics
    from tests.tiny import get_config

    config = get_config()
    statistics = LatentStatistics(*np.random.default_rng(0).uniform(1, 2, (2, 8)).astype(np.float32))
    params = initial(builder(config, "float32"))
    return DiffAE(config, params, statistics=statistics, mesh=one_device)


def test_model_fits_to_normalized_z_keeps_the_probe_and_logs_it(model, caplog):
    caplog.set_level("INFO", "diffae_jax")
    z = 3 + 2 * normal(200, d=8)
    age = 30 + z[:, 0]
    probe = model.fit_probe("age", z, age, held_out=(z[:50], age[:50]))
    assert model.probes["age"] is probe
    assert "age: continuous, R^2 1.00 on 50 images" in caplog.text
    np.testing.assert_allclose(probe.weights[0], model.statistics.std[0], rtol=1e-3)
    for given in ("age", probe):
        np.testing.assert_allclose(model.predict(z, given), age, atol=0.02)
    (first,) = model.principal_components(z, 1)
    np.testing.assert_array_equal(first.weights, probes.components(model.statistics.normalize(z), 1)[0].weights)


def test_model_says_what_probes_need(model, one_device):
    bare = DiffAE(model.config, model.params, mesh=one_device)
    with pytest.raises(UserError, match=r"tiny has no mean and standard deviation of z.*--stages=latents") as refusal:
        bare.fit_probe("a", normal(4, d=8), [0, 0, 1, 1])
    assert_is_one_sentence(refusal.value)
    with pytest.raises(UserError, match=r"shape \(N, 8\), not \(4, 6\)"):
        model.principal_components(normal(4), 1)
    with pytest.raises(UserError, match="There is no probe frown"):
        model.predict(normal(4, d=8), "frown")
    wide = ClassProbe("a", {value: Probe(f"a={value}", np.ones(9, np.float32), 0.0) for value in "01"})
    with pytest.raises(UserError, match="The z of this model has 8 dimensions, but probe a has 9"):
        DiffAE(model.config, model.params, probes={"a": wide}, mesh=one_device)
