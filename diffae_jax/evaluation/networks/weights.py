"""Finds, downloads, checks and reads the published weights of the networks of FID and LPIPS.

Nothing is downloaded by default. A file must have the SHA-256 that is pinned here, so distances in
its features are comparable with published ones.
"""

import dataclasses
import hashlib
import io
import os
import sys
from pathlib import Path

import numpy as np

from diffae_jax.runtime.errors import UserError, list_some, shown
from diffae_jax.runtime.files import cache_folder, check_file, local_path, os_errors_as_user_errors
from diffae_jax.torch_files.archive import read_checkpoint
from diffae_jax.torch_files.stored import StoredTensor

CHUNK = 2**20
TIMEOUT = 60  # seconds without data
MAX_REASON = 60  # characters, because the message also contains a URL


@dataclasses.dataclass(frozen=True)
class WeightFile:
    """A published file: its name, URL, SHA-256 and size in bytes."""

    name: str
    url: str
    sha256: str
    size: int


# The first two file names end in the first eight digits of their SHA-256.
INCEPTION = WeightFile(
    "pt_inception-2015-12-05-6726825d.pth",
    "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth",
    "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
    95_628_359,
)
ALEXNET = WeightFile(
    "alexnet-owt-7be5be79.pth",
    "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
    "7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02",
    244_408_911,
)
LPIPS_LINEAR = WeightFile(
    "lpips-v0.1-alex.pth",
    "https://raw.githubusercontent.com/richzhang/PerceptualSimilarity/master/lpips/weights/v0.1/alex.pth",
    "df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0",
    6_009,
)


def find(file: WeightFile, path: str | Path | None = None, *, download: bool = False) -> Path | None:
    """Returns the path of a file: `path` or, if that is None, the file in the cache folder.

    If it is not cached, downloads it if `download` is True. Otherwise returns None: see
    `how_to_get`. Raises UserError if `path` is missing, the
    content is not the published one, or the download fails.
    """
    cached = cache_folder() / file.name
    if path is None:
        with os_errors_as_user_errors(cached):
            exists = cached.exists()
        if not exists and not download:
            return None
        if not exists:
            _download(file, cached)
            return cached
    path = cached if path is None else local_path(path)
    check_file(path)
    with os_errors_as_user_errors(path), path.open("rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        digest = hashlib.file_digest(stream, "sha256").hexdigest() if size == file.size else ""
    if digest != file.sha256:
        actual = f"SHA-256 {digest[:12]}..." if digest else f"{size:,} bytes"
        expected = f"SHA-256 {file.sha256[:12]}... and {file.size:,} bytes"
        raise UserError(
            f"{path} is not {file.name}. Expected {expected}, found {actual}. Remove it and download it again."
        )
    return path


def how_to_get(*files: WeightFile) -> str:
    """Returns a text on how to download files. It names no folder, because reports contain it."""
    names = " and ".join(f"{file.name} ({file.size:,} bytes)" for file in files)
    are, them = ("are", "them") if len(files) > 1 else ("is", "it")
    return (
        f"{names} {are} not available. Download {them} with diffae evaluate --download, or in a training run with "
        f"--config.evaluation.download=True."
    )


def _download(file: WeightFile, path: Path) -> None:
    """Downloads a file atomically and checks its SHA-256. Raises UserError if either fails."""
    import pooch
    from requests import RequestException

    progress = sys.stderr.isatty()
    fetch = pooch.HTTPDownloader(progress, CHUNK, timeout=TIMEOUT, headers={"User-Agent": "diffae_jax"})

    def fetch_at_most_its_size(url: str, target: str, _: None) -> None:
        with _BoundedFile(target, file.size) as bounded:
            fetch(url, bounded, None)

    with os_errors_as_user_errors(path.parent, "written"):
        try:
            pooch.retrieve(file.url, f"sha256:{file.sha256}", path.name, path.parent, downloader=fetch_at_most_its_size)
        except RequestException as error:
            raise UserError(
                f"The download failed ({_reason(error)}). Download {file.url} to {path} yourself."
            ) from error
        except ValueError as error:  # too many bytes, or a different hash
            raise UserError(
                f"The download from {file.url} is not {file.name} ({file.size:,} bytes, SHA-256 "
                f"{file.sha256[:12]}...). Try again later, or put that file at {path}."
            ) from error


class _BoundedFile(io.FileIO):
    """A file for writing at most `limit` bytes. Raises ValueError for more."""

    def __init__(self, path: str, limit: int):
        super().__init__(path, "w")
        self._limit = limit

    def write(self, content: bytes) -> int:
        """Writes bytes as they arrive."""
        if self.tell() + len(content) > self._limit:
            raise ValueError(f"more than {self._limit:,} bytes")
        return super().write(content)


def _reason(error: BaseException) -> str:
    """Returns the first error of a chain: requests wraps it in long messages."""
    while error.__context__ is not None:
        error = error.__context__
    return shown(str(error))[:MAX_REASON]


def read_arrays(
    path: Path, used: dict[str, tuple[int, ...]], unused: dict[str, tuple[int, ...]], network: str
) -> dict[str, np.ndarray]:
    """Returns the `used` arrays of a state dict that torch.save wrote, by name.

    `used` and `unused` are the shapes that the file must hold. `network` is the network's name in
    messages. Raises UserError if the file holds different names or shapes, or values that are not
    finite.
    """
    tensors, shapes = read_checkpoint(path), used | unused
    if not isinstance(tensors, dict) or any(type(name) is not str for name in tensors):
        raise UserError(f"{path} does not hold the weights of {network} as a dictionary of names.")
    for problem, names in (("lacks", shapes.keys() - tensors.keys()), ("also holds", tensors.keys() - shapes.keys())):
        if names:
            raise UserError(f"{path} does not hold the weights of {network}: it {problem} {list_some(names)}.")
    for name, shape in shapes.items():
        tensor = tensors[name]
        if not isinstance(tensor, StoredTensor) or tensor.shape != shape:
            actual = tensor.shape if isinstance(tensor, StoredTensor) else shown(tensor)
            raise UserError(f"{path} does not hold the weights of {network}: its {name} is {actual}, not {shape}.")
    arrays = {name: tensors[name].numpy() for name in used}
    wrong = [name for name, a in arrays.items() if a.dtype.kind != "f" or not np.isfinite(a).all()]
    if wrong:
        raise UserError(f"{path} holds weights of {network} that are not finite numbers: {list_some(wrong)}.")
    return arrays
