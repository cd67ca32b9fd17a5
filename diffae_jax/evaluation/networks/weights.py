"""The published weights of feature networks: where they are, whether they are those, and what they hold.

Nothing is downloaded unless it is asked for. A file is taken only where its SHA-256 is the one pinned here, so that a
distance in its features is the distance that others report.
"""

import dataclasses
import hashlib
import io
import os
import sys
from pathlib import Path

import numpy as np

from diffae_jax.runtime.errors import UserError, list_some, shown
from diffae_jax.runtime.files import check_file, expand_home, os_errors_as_user_errors
from diffae_jax.torch_files.archive import read_checkpoint
from diffae_jax.torch_files.stored import StoredTensor

CHUNK = 2**20
TIMEOUT = 60  # seconds without a byte
LONGEST_REASON = 60  # characters: the sentence has to hold an address, too


@dataclasses.dataclass(frozen=True)
class WeightFile:
    """A published file: its name, where it is, the SHA-256 of its bytes and how many there are."""

    name: str
    url: str
    sha256: str
    size: int


# The first eight digits of the first two hashes stand in the file names that their publishers gave.
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


def cache_folder() -> Path:
    """Returns where downloaded files are kept: diffae_jax in $XDG_CACHE_HOME or, without one, in ~/.cache."""
    folder = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (folder if folder.is_absolute() else Path.home() / ".cache") / "diffae_jax"


def find(file: WeightFile, path: str | Path | None = None, *, download: bool = False) -> Path | None:
    """Returns where a file is: at `path` or, without one, among those kept, where it is put if `download` asks for it.

    None where it is not at hand; `how_to_get` then tells what to do. Raises UserError where `path` is missing, the
    bytes are not those published, or the download fails.
    """
    kept = cache_folder() / file.name
    if path is None:
        with os_errors_as_user_errors(kept):
            exists = kept.exists()
        if not exists and not download:
            return None
        if not exists:
            _download(file, kept)
            return kept
    path = kept if path is None else expand_home(path)
    check_file(path)
    with os_errors_as_user_errors(path), path.open("rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        digest = hashlib.file_digest(stream, "sha256").hexdigest() if size == file.size else ""
    if digest != file.sha256:
        what = f"SHA-256 {digest[:12]}..." if digest else f"{size:,} bytes"
        wanted = f"SHA-256 {file.sha256[:12]}... and {file.size:,} bytes"
        raise UserError(f"{path} is not {file.name}: it has {what}, not {wanted}; remove it and fetch it again.")
    return path


def how_to_get(*files: WeightFile) -> str:
    """Returns one sentence on where to get files and where to put them."""
    names = " and ".join(f"{file.name} ({file.size:,} bytes)" for file in files)
    methods = " and ".join(f"{file.url} to {cache_folder() / file.name}" for file in files)
    return f"{names} {'are' if len(files) > 1 else 'is'} not at hand: download {methods}."


def _download(file: WeightFile, path: Path) -> None:
    """Writes a file that is there whole, with the right SHA-256, or not at all."""
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
            raise UserError(f"The download failed ({_reason(error)}), so {how_to_get(file)}") from error
        except ValueError as error:  # too many bytes, or another hash
            raise UserError(
                f"What {file.url} sent is not {file.name} of {file.size:,} bytes and SHA-256 {file.sha256[:12]}...: "
                f"try again later, or put that file at {path}."
            ) from error


class _BoundedFile(io.FileIO):
    """A file to write so many bytes to. Raises ValueError for more."""

    def __init__(self, path: str, limit: int):
        super().__init__(path, "w")
        self._limit = limit

    def write(self, content: bytes) -> int:
        """Writes bytes as they arrive."""
        if self.tell() + len(content) > self._limit:
            raise ValueError(f"more than {self._limit:,} bytes")
        return super().write(content)


def _reason(error: BaseException) -> str:
    """Returns what began a chain of errors: requests wraps what the system says in pages of its own."""
    while error.__context__ is not None:
        error = error.__context__
    return shown(str(error))[:LONGEST_REASON]


def read_arrays(
    path: Path, used: dict[str, tuple[int, ...]], unused: dict[str, tuple[int, ...]], what: str
) -> dict[str, np.ndarray]:
    """Returns the floating point arrays of a state dict of torch.save, by name, without those that are not used.

    Raises UserError for a file that holds other names or shapes than those two lists together, or numbers that are not
    finite; `what` names the network.
    """
    tensors, shapes = read_checkpoint(path), used | unused
    if not isinstance(tensors, dict) or any(type(name) is not str for name in tensors):
        raise UserError(f"{path} does not hold the weights of {what} by their names.")
    for problem, names in (("lacks", shapes.keys() - tensors.keys()), ("also holds", tensors.keys() - shapes.keys())):
        if names:
            raise UserError(f"{path} does not hold the weights of {what}: it {problem} {list_some(names)}.")
    for name, shape in shapes.items():
        tensor = tensors[name]
        if not isinstance(tensor, StoredTensor) or tensor.shape != shape:
            has = tensor.shape if isinstance(tensor, StoredTensor) else shown(tensor)
            raise UserError(f"{path} does not hold the weights of {what}: its {name} is {has}, not {shape}.")
    arrays = {name: tensors[name].numpy() for name in used}
    wrong = [name for name, a in arrays.items() if a.dtype.kind != "f" or not np.isfinite(a).all()]
    if wrong:
        raise UserError(f"{path} holds weights of {what} that are no finite numbers: {list_some(wrong)}.")
    return arrays
