"""Makes the pictures and figures of the docs with the model of the digits.

    python -m benchmarks.digits runs/digits/bundle --out docs

Prints how many edited images (for each strength) and conditional samples are recognized by an SVM
that is trained on real digits.
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
from sklearn.svm import SVC

from diffae_jax import DiffAE
from diffae_jax.data.formats.digits import digits
from diffae_jax.data.pictures import save_rows
from diffae_jax.data.transforms import to_float
from diffae_jax.runtime.compilation import enable_compilation_cache

matplotlib.use("Agg")
import matplotlib.pyplot as plt

STRENGTHS = (-0.3, 0.0, 0.3, 0.6, 0.9, 1.2, 1.5)
STEPS = 20
NUM_EDITED = 100  # held-out images, each edited to every digit
NUM_CONDITIONAL = 50  # samples of each digit
CLASSES = [f"digit={digit}" for digit in range(10)]


def encode(model: DiffAE, images: np.ndarray, labels: np.ndarray, out: Path) -> None:
    """Draws z of held-out digits in its first two principal components."""
    z = model.encode(images)
    coordinates = [model.predict(z, component) for component in model.principal_components(z, 2)]
    figure, axes = plt.subplots(figsize=(6, 5), layout="compressed")
    points = axes.scatter(*coordinates, c=labels, cmap="tab10", s=12)
    axes.legend(*points.legend_elements(), title="digit", loc="center left", bbox_to_anchor=(1, 0.5))
    axes.set(xlabel="first principal component of z", ylabel="second")
    figure.savefig(out / "encode.png", dpi=100)
    plt.close(figure)


def reconstruct(model: DiffAE, images: np.ndarray, out: Path) -> None:
    """Draws digits, their reconstructions and variations, and the steps of decoding."""
    shown = images[:12]
    variations, mean, std = model.variations(shown, num_variations=16, num_steps=STEPS)
    rows = {
        "input": shown,
        "own x_T, 100 steps": model.reconstruct(shown, 100),
        **{f"random x_T ({i})": variations[:, i] for i in (0, 1, 2)},
        "mean of 16": mean,
        "deviation of 16 (white: 0.5)": np.clip(4 * std - 1, -1, 1),
    }
    save_rows(out / "reconstruct.png", rows)
    z = model.encode(images[:4])
    progress = model.progress(z, model.invert(images[:4], z, STEPS), STEPS)
    shown_steps = [0, 2, 4, 6, 8, 10, 12, 14, 16, 17, 18, 19]
    save_rows(out / "progress.png", {f"image {i}": progress[i, shown_steps] for i in range(4)})


def interpolate(model: DiffAE, images: np.ndarray, labels: np.ndarray, out: Path) -> None:
    """Draws interpolations between digits."""
    first = {digit: images[labels == digit][0] for digit in range(10)}
    pairs = [(1, 7), (3, 8), (0, 6), (4, 9), (2, 5)]
    rows = {f"{a} to {b}": model.interpolate(first[a], first[b], 10, 100) for a, b in pairs}
    save_rows(out / "interpolate.png", rows)
    for (a, b), frames in zip(pairs, rows.values(), strict=True):
        ends = model.reconstruct(np.stack([first[a], first[b]]), 100)
        print(f"{a} to {b}: the ends differ from the reconstructions by {np.abs(frames[[0, -1]] - ends).max():.1e}")


def edit(model: DiffAE, images: np.ndarray, labels: np.ndarray, svm: SVC, out: Path) -> None:
    """Draws edits, and the share of them that is recognized as the target digit."""
    first = np.stack([images[labels == digit][0] for digit in (0, 1, 3, 4, 5, 6, 7, 8, 9)])
    rows = {"input": first}
    rows |= {f"to 2, strength {s:g}": model.edit(first, "digit=2", s, STEPS) for s in STRENGTHS}
    save_rows(out / "edit.png", rows)
    same = np.array_equal(model.edit(first, "digit=2", 0.0, STEPS), model.reconstruct(first, STEPS))
    print(f"strength 0 gives exactly the reconstruction: {same}")

    chosen = np.random.default_rng(0).choice(len(images), NUM_EDITED, replace=False)
    edited, z = images[chosen], model.encode(images[chosen])
    x_T = model.invert(edited, z, STEPS)
    curve = []
    for strength in STRENGTHS:
        moved = np.concatenate([model.move(z, name, strength) for name in CLASSES])
        decoded = model.decode(moved, np.tile(x_T, (10, 1, 1, 1)), STEPS)
        predicted = svm.predict(decoded.reshape(len(decoded), -1)).reshape(10, -1)
        others = labels[chosen][None] != np.arange(10)[:, None]  # images that are not the target digit already
        hit = predicted == np.arange(10)[:, None]
        curve.append((hit[others].mean(), hit.mean(), [hit[d][others[d]].mean() for d in range(10)]))
        print(f"strength {strength:+.1f}: {curve[-1][0]:.1%} of other digits recognized as the target, {hit.mean():.1%}"
              f" of all; by target {' '.join(f'{share:.0%}' for share in curve[-1][2])}")  # fmt: skip
    figure, axes = plt.subplots(figsize=(6, 4), layout="compressed")
    axes.plot(STRENGTHS, np.array([each for *_, each in curve]), color="0.8", label=["each target"] + [None] * 9)
    axes.plot(STRENGTHS, [share for share, *_ in curve], "o-", label="mean over the ten targets")
    axes.axhline(0.6, color="k", lw=0.5)
    axes.set(xlabel="strength of the edit", ylabel="recognized as the target", ylim=(0, 1))
    axes.legend()
    figure.savefig(out / "edit_curve.png", dpi=100)
    plt.close(figure)


def sample(model: DiffAE, svm: SVC, out: Path) -> None:
    """Draws conditional samples of each digit, and prints how many are recognized."""
    rows, shares = {}, []
    for digit, name in enumerate(CLASSES):
        images = model.sample_class(NUM_CONDITIONAL, name, seed=1, num_steps=STEPS)
        shares.append((svm.predict(images.reshape(len(images), -1)) == digit).mean())
        rows[name] = images[:12]
        print(f"{name}: {shares[-1]:.0%} of {NUM_CONDITIONAL} conditional samples recognized")
    print(f"conditional samples recognized, over all digits: {np.mean(shares):.1%}")
    save_rows(out / "sample_class.png", rows)


def differentiate(model: DiffAE, images: np.ndarray, labels: np.ndarray, out: Path) -> None:
    """Optimizes z through the decoder until the x_T of one digit decodes to a different digit."""
    start, target = (np.stack([images[labels == d][0] for d in row]) for row in ((0, 1, 3, 4), (6, 7, 8, 9)))
    z = jnp.asarray(model.encode(start))
    x_T = jnp.asarray(model.invert(start, z, STEPS))

    @jax.jit
    def gradient(z):
        return jax.grad(lambda z: jnp.square(model.decode(z, x_T, STEPS) - target).mean())(z)

    optimizer = optax.adam(0.03)
    state, rows = optimizer.init(z), {"start": start}
    for step in range(41):
        if step % 10 == 0:
            rows[f"after {step} steps"] = model.decode(z, x_T, STEPS)
        updates, state = optimizer.update(gradient(z), state)
        z = optax.apply_updates(z, updates)
    save_rows(out / "gradient.png", rows | {"target": target})


def main() -> None:
    """Makes all pictures, or those that --only names."""
    parser = argparse.ArgumentParser()
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="*", help="encode, reconstruct, interpolate, edit, sample, differentiate")
    arguments = parser.parse_args()
    enable_compilation_cache()
    arguments.out.mkdir(parents=True, exist_ok=True)
    model, (training, held_out) = DiffAE.load(arguments.bundle), digits()
    images, labels = to_float(held_out.images), held_out.labels["digit"]
    svm = SVC().fit(to_float(training.images).reshape(len(training), -1), training.labels["digit"])
    pictures = {
        "encode": lambda out: encode(model, images, labels, out),
        "reconstruct": lambda out: reconstruct(model, images, out),
        "interpolate": lambda out: interpolate(model, images, labels, out),
        "edit": lambda out: edit(model, images, labels, svm, out),
        "sample": lambda out: sample(model, svm, out),
        "differentiate": lambda out: differentiate(model, images, labels, out),
    }
    for name, make in pictures.items():
        if not arguments.only or name in arguments.only:
            make(arguments.out)


if __name__ == "__main__":
    main()
