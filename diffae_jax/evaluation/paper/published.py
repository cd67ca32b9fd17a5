"""The paper's figures, for comparison with measured ones."""

RECONSTRUCTION = {  # Table 2, T = 10, 20, 50, 100; more digits from Table 1
    "ffhq128": {
        ("SSIM", "inferred x_T"): (0.827, 0.927, 0.978, 0.991),
        ("SSIM", "random x_T"): (0.707, 0.695, 0.683, 0.677),
        ("SSIM", "DDIM baseline, inferred x_T"): (0.600, 0.760, 0.878, 0.917),
        ("LPIPS", "inferred x_T"): (0.078, 0.050, 0.023, 0.011),
        ("LPIPS", "random x_T"): (0.085, 0.078, 0.074, 0.073),
        ("LPIPS", "DDIM baseline, inferred x_T"): (0.227, 0.148, 0.087, 0.063),
        ("MSE", "inferred x_T"): (0.001, 0.001, None, 6.07e-5),
        ("MSE", "random x_T"): (0.006, 0.007, 0.007, 0.007),
        ("MSE", "DDIM baseline, inferred x_T"): (0.019, 0.008, 0.003, 0.002),
    },
    # trained on 48 million images, each with a different size of z
    "ffhq128_48m": {
        ("SSIM", "random x_T"): (0.662, 0.650, 0.637, 0.631),
        ("SSIM", "z of 256, random x_T"): (0.637, 0.624, 0.612, 0.606),
        ("SSIM", "z of 128, random x_T"): (0.613, 0.600, 0.588, 0.582),
        ("SSIM", "z of 64, random x_T"): (0.551, 0.538, 0.527, 0.521),
        ("LPIPS", "random x_T"): (0.102, 0.096, 0.093, 0.092),
        ("LPIPS", "z of 256, random x_T"): (0.116, 0.109, 0.106, 0.105),
        ("LPIPS", "z of 128, random x_T"): (0.133, 0.127, 0.125, 0.124),
        ("LPIPS", "z of 64, random x_T"): (0.168, 0.165, 0.163, 0.162),
        ("MSE", "random x_T"): (0.009, 0.009, 0.009, 0.010),
        ("MSE", "z of 256, random x_T"): (0.010, 0.011, 0.011, 0.011),
        ("MSE", "z of 128, random x_T"): (0.012, 0.012, 0.013, 0.013),
        ("MSE", "z of 64, random x_T"): (0.018, 0.019, 0.020, 0.020),
    },
}
SAMPLING = {  # FID, Table 4, T = 10, 20, 50, 100
    "ffhq128": {
        "DDIM baseline": (29.56, 21.45, 15.08, 12.03),
        "samples": (20.80, 16.70, 12.57, 10.59),
        "+ autoencoding": (14.43, 10.70, 6.69, 4.56),
    },
    "horse128": {
        "DDIM baseline": (22.17, 12.92, 7.92, 5.97),
        "samples": (11.97, 9.37, 7.44, 6.71),
        "+ autoencoding": (9.27, 6.23, 3.87, 2.92),
    },
    "bedroom128": {
        "DDIM baseline": (13.70, 9.23, 7.14, 5.94),
        "samples": (10.69, 8.19, 6.50, 5.70),
        "+ autoencoding": (6.36, 4.88, 3.61, 2.88),
    },
    "celeba64": {
        "DDIM baseline": (16.38, 12.70, 8.52, 5.83),
        "samples": (12.92, 10.18, 7.05, 5.30),
        "+ autoencoding": (12.78, 9.06, 5.15, 3.11),
    },
}
CONDITIONAL = {  # FID, Table 3: binary, positive and unlabeled, naive
    "celeba64": {
        "Male": (11.52, 9.54, 23.83),
        "not Male": (7.29, 9.21, 13.64),
        "Blond_Hair": (16.10, 7.01, 25.62),
        "not Blond_Hair": (8.48, 7.91, 0.96),
    },
}
THROUGHPUT = {  # training images per second on a V100, Table 7: DDIM, autoencoder
    "ffhq64": (160.0, 128.0),
    "ffhq128": (51.0, 41.65),
    "ffhq256": (None, 10.08),
    "horse128": (51.0, 41.65),
    "bedroom128": (51.0, 41.65),
}
STEPS = (10, 20, 50, 100)
SAMPLING_IMAGES, CONDITIONAL_IMAGES = 50_000, 5_000  # per FID; fewer images give a larger FID


def experiment(name: str) -> str:
    """Returns the paper's experiment of a model name: ffhq128 for ffhq128_autoenc_130M."""
    known = {*RECONSTRUCTION, *SAMPLING, *THROUGHPUT}
    return max((each for each in known if name == each or name.startswith(f"{each}_")), key=len, default="")


def _at(row: tuple[float | None, ...] | None, num_steps: int) -> float | None:
    return row[STEPS.index(num_steps)] if row and num_steps in STEPS else None


def reconstruction(name: str, metric: str, row: str, num_steps: int) -> float | None:
    """Returns the figure of Table 2 for an experiment, or None if there is none."""
    return _at(RECONSTRUCTION.get(experiment(name), {}).get((metric, row)), num_steps)


def sampling(name: str, row: str, num_steps: int) -> float | None:
    """Returns the FID of Table 4 for an experiment, or None if there is none."""
    return _at(SAMPLING.get(experiment(name), {}).get(row), num_steps)


def conditional(name: str, target: str, row: str) -> float | None:
    """Returns the FID of Table 3 for a class, or None if there is none."""
    values = CONDITIONAL.get(experiment(name), {}).get(target)
    return values[("binary", "positive and unlabeled", "all images").index(row)] if values else None


def classes(name: str) -> set[str]:
    """Returns the names of the classes of Table 3 for an experiment."""
    return set(CONDITIONAL.get(experiment(name), ()))


def throughput(name: str, has_z: bool) -> float | None:
    """Returns the training speed of Table 7, or None if there is none."""
    return THROUGHPUT.get(experiment(name), (None, None))[has_z]
