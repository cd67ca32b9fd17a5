"""Compares the networks of FID and LPIPS with pytorch-fid and lpips, with the same weights.

    pip install torch torchvision pytorch-fid lpips
    python -m benchmarks.feature_networks

The weights are random, except for the LPIPS weights from the lpips package. They are read from
files of torch.save. Prints the largest differences, relative to the largest value. They come from
the order of float32 sums.
"""

import tempfile
import time
from pathlib import Path
from unittest import mock

import jax
import lpips as published_lpips
import numpy as np
import torch
import torchvision
from pytorch_fid import inception as published_inception
from pytorch_fid.fid_score import calculate_frechet_distance

from diffae_jax.evaluation.metrics import Moments, frechet_distance
from diffae_jax.evaluation.networks import feature_spaces, weights
from diffae_jax.evaluation.networks.inception import read_inception
from diffae_jax.evaluation.networks.lpips import read_lpips
from diffae_jax.runtime.sharding import make_mesh

FORMATS = {"zip": True, "legacy": False}


def difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Returns the largest difference, relative to the largest value."""
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def randomized(state: dict, rng: np.random.Generator) -> dict:
    """Returns random weights that keep activations near one, with random batch statistics."""
    return {name: _random(name, tensor, rng) for name, tensor in state.items()}


def _random(name: str, tensor: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    if not tensor.is_floating_point():
        return torch.full_like(tensor, 1000)
    if name.endswith(("running_var", "bn.weight")):
        return torch.tensor(rng.uniform(0.5, 1.5, tensor.shape), dtype=torch.float32)
    scale = np.sqrt(2 / tensor[0].numel()) if tensor.ndim > 1 else 0.1
    return torch.tensor(rng.normal(0, scale, tensor.shape), dtype=torch.float32)


def as_torch(images: np.ndarray) -> torch.Tensor:
    """Returns images in [-1, 1] as a tensor with channels first."""
    return torch.tensor(images).permute(0, 3, 1, 2)


def compare_inception(folder: Path, mesh: jax.sharding.Mesh, rng: np.random.Generator) -> None:
    """Compares the features with those of pytorch-fid's network."""
    network = torchvision.models.inception_v3(num_classes=1008, aux_logits=False, weights=None, init_weights=False)
    state = randomized(network.state_dict(), rng)
    with mock.patch.object(published_inception, "load_state_dict_from_url", return_value=state):
        theirs = published_inception.InceptionV3().eval()
    for size in (32, 299, 400):
        pictures = rng.uniform(-1, 1, (4, size, size, 3)).astype(np.float32)
        with torch.no_grad():
            expected = theirs((as_torch(pictures) + 1) / 2)[0][:, :, 0, 0].numpy()
        for name, as_zip in FORMATS.items():
            path = folder / f"inception-{name}.pth"
            torch.save(state, path, _use_new_zipfile_serialization=as_zip)
            start = time.perf_counter()
            params = read_inception(path)
            seconds = time.perf_counter() - start
            ours = feature_spaces.inception_features(params, mesh)(pictures)
            print(f"Inception, {size}x{size}, {name} read in {seconds:.1f} s: {difference(ours, expected):.1e}")


def compare_frechet(rng: np.random.Generator) -> None:
    """Compares the Frechet distance from batched moments with that of pytorch-fid."""
    features, others = rng.normal(size=(3000, 64)), rng.normal(0.1, 1.2, size=(2000, 64))
    sums = [(values.mean(0), np.cov(values, rowvar=False)) for values in (features, others)]
    fid = calculate_frechet_distance(*sums[0], *sums[1])
    moments = [Moments(64), Moments(64)]
    for values, target in zip((features, others), moments, strict=True):
        for batch in np.array_split(values, 7):
            target.add(batch)
    print(f"Frechet distance {fid:.6f}: {abs(frechet_distance(*moments) / fid - 1):.1e}")


def compare_lpips(folder: Path, mesh: jax.sharding.Mesh, rng: np.random.Generator) -> None:
    """Compares LPIPS with a random AlexNet and the published LPIPS weights."""
    linear = Path(published_lpips.__file__).parent / "weights" / "v0.1" / "alex.pth"
    linear = weights.find(weights.LPIPS_LINEAR, linear)
    alexnet = torchvision.models.alexnet(weights=None)
    state = randomized(alexnet.state_dict(), rng)
    alexnet.load_state_dict(state)
    with mock.patch.object(torchvision.models, "alexnet", return_value=alexnet):
        theirs = published_lpips.LPIPS(net="alex", verbose=False)
    for size in (31, 64, 256):
        pictures, others = rng.uniform(-1, 1, (2, 4, size, size, 3)).astype(np.float32)
        with torch.no_grad():
            expected = theirs(as_torch(pictures), as_torch(others)).flatten().numpy()
        for name, as_zip in FORMATS.items():
            path = folder / f"alexnet-{name}.pth"
            torch.save(state, path, _use_new_zipfile_serialization=as_zip)
            ours = feature_spaces.lpips_distances(read_lpips(path, linear), mesh)(pictures, others)
            print(f"LPIPS, {size}x{size}, {name}: {difference(ours, expected):.1e} of {expected.max():.3f}")


def main() -> None:
    """Prints all comparisons."""
    mesh, rng = make_mesh(), np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        compare_lpips(Path(folder), mesh, rng)
        compare_inception(Path(folder), mesh, rng)
    compare_frechet(rng)


if __name__ == "__main__":
    main()
