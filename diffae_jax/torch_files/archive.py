"""Reads the files of torch.save without PyTorch, and without running anything that a file asks for.

Such a file is a zip, or what PyTorch wrote before 1.6 (see `legacy.py`). In a zip `data.pkl` tells in pickle
instructions how to build the objects (see `instructions.py`), and `data/<key>` holds the bytes of one storage, into
which tensors look. Every number of a file is checked before the first byte of a tensor is read.
"""

import io
import os
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

from diffae_jax.runtime.errors import UserError, shown
from diffae_jax.runtime.files import os_errors_as_user_errors
from diffae_jax.torch_files.instructions import MAX_PICKLE_BYTES, Machine
from diffae_jax.torch_files.legacy import is_legacy, read_legacy
from diffae_jax.torch_files.stored import Entry, Refusal, identity_of

# A tensor takes an entry. At these limits the worst of files takes a second to refuse.
MAX_ENTRIES = 20_000
MAX_DIRECTORY_BYTES = 2 * 2**20

LOCAL_HEADER = struct.Struct("<4s5H3L2H")


def read_checkpoint(path: str | Path) -> Any:
    """Returns the objects of a file that torch.save wrote; its tensors are `StoredTensor`, read only when asked for.

    Raises UserError for what is not such a file, is damaged, or asks for more than plain data and tensors.
    """
    path = Path(path)
    try:
        with os_errors_as_user_errors(path):
            if not path.is_file():  # to open a pipe would wait for its writer
                raise Refusal(
                    "is a folder or device, not a file." if path.exists() else "does not exist: check the path."
                )
            with path.open("rb", buffering=0) as file:
                head, identity = file.read(64), identity_of(file)
                if is_legacy(head):
                    return read_legacy(path, identity, file)
                _check_kind(head)
                entries = _entries(file)
                if "byteorder" in entries and _read_entry(file, entries["byteorder"]) != b"little":
                    raise Refusal("was written on a big-endian machine: save it again on a little-endian one.")
                return Machine(path, identity, entries).run(_read_entry(file, entries["data.pkl"]))
    except Refusal as refusal:
        raise UserError(f"{path} {refusal}") from refusal


class _DirectoryReads(io.FileIO):
    """What zipfile reads from: it believes the size of the directory, which may be told as that of the whole file."""

    def read(self, size: int = -1, /) -> bytes:
        if size > MAX_DIRECTORY_BYTES:
            raise Refusal(f"has a directory of {size:,} bytes, more than the {MAX_DIRECTORY_BYTES:,} that are read.")
        return super().read(size)


def _entries(file: io.FileIO) -> dict[str, Entry]:
    """Returns where the bytes of each entry lie, by its name below the root folder."""
    try:
        with zipfile.ZipFile(_DirectoryReads(file.fileno(), closefd=False)) as archive:
            infos = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError, struct.error) as error:
        length = file.seek(0, os.SEEK_END)
        raise Refusal(f"is cut short or damaged at {length:,} bytes: download or copy it again.") from error
    names = [info.filename for info in infos]
    if len(names) > MAX_ENTRIES:
        raise Refusal(f"holds {len(names):,} entries, more than the {MAX_ENTRIES:,} that are read.")
    if len(set(names)) < len(names):
        raise Refusal(f"holds {len(names):,} entries under {len(set(names)):,} names.")
    roots = sorted({name.partition("/")[0] for name in names})
    if len(roots) != 1:
        raise Refusal(f"holds {len(roots)} folders where a checkpoint has one.")
    spans = _spans(file, infos)
    if "constants.pkl" in spans or any(name.startswith("code/") for name in spans):
        raise Refusal("is a TorchScript program, not a checkpoint: save its state_dict() with torch.save.")
    if "data.pkl" not in spans:
        raise Refusal("is a zip without data.pkl, so not a checkpoint of PyTorch.")
    return spans


def _check_kind(head: bytes) -> None:
    if not head:
        raise Refusal("is empty: download or copy it again.")
    if head.lstrip().startswith(b"<"):
        raise Refusal("is a web page, not a checkpoint: the download failed, so fetch it again.")
    if not head.startswith(b"PK\3\4"):
        raise Refusal("is not a zip, as the files of torch.save are.")


def _spans(file: io.FileIO, infos: list[zipfile.ZipInfo]) -> dict[str, Entry]:
    """Returns the spans of the entries, having seen that they lie in the file, plain and side by side."""
    spans, end, length = {}, 0, file.seek(0, os.SEEK_END)
    for info in sorted(infos, key=lambda info: info.header_offset):
        name = shown(info.filename)
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1 or info.compress_size != info.file_size:
            raise Refusal(f"holds {name} compressed or encrypted, as torch.save does not: save it again.")
        if info.header_offset < end:
            raise Refusal(f"is damaged: {name} begins within another entry, before byte {end:,}.")
        if info.header_offset + LOCAL_HEADER.size > length:
            raise Refusal(f"is cut short: {name} would begin at byte {info.header_offset:,} of {length:,}.")
        encoded = info.orig_filename.encode("utf-8" if info.flag_bits & 0x800 else "cp437")
        file.seek(info.header_offset)
        header = file.read(LOCAL_HEADER.size + len(encoded))
        signature, _, flags, method, *_, name_length, extra_length = LOCAL_HEADER.unpack_from(header)
        if (signature, flags & 1, method) != (b"PK\3\4", 0, 0) or header[LOCAL_HEADER.size :] != encoded:
            raise Refusal(f"is damaged: no entry {name} begins at byte {info.header_offset:,}.")
        start = info.header_offset + LOCAL_HEADER.size + name_length + extra_length
        end = start + info.file_size
        if end > length:
            raise Refusal(f"is cut short: {name} would end at byte {end:,} of {length:,}.")
        spans[info.filename.partition("/")[2]] = Entry(start, info.file_size, info.CRC)
    return spans


def _read_entry(file: io.FileIO, entry: Entry) -> bytes:
    start, size, checksum = entry
    if size > MAX_PICKLE_BYTES:
        raise Refusal(f"describes its tensors in {size:,} bytes, more than the {MAX_PICKLE_BYTES:,} that are read.")
    file.seek(start)
    content = file.read(size)
    if zlib.crc32(content) != checksum:
        raise Refusal(f"is damaged at byte {start:,}, where its tensors are described: download or copy it again.")
    return content
