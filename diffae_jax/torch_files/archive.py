"""Reads files written by `torch.save` without PyTorch and without executing anything.

PyTorch 1.6 and later write a zip archive; `legacy.py` reads the earlier format. In the archive,
`data.pkl` describes the objects as pickle instructions, which `instructions.py` interprets.
`data/<key>` holds the bytes of one storage, and tensors are views of storages. All sizes and
offsets in the file are checked before any tensor is read.
"""

import io
import os
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

from diffae_jax.runtime.errors import UserError, shown
from diffae_jax.runtime.files import expand_home, os_errors_as_user_errors
from diffae_jax.torch_files.instructions import MAX_PICKLE_BYTES, Machine
from diffae_jax.torch_files.legacy import is_legacy, read_legacy
from diffae_jax.torch_files.stored import GET_AGAIN, Entry, Refusal, identity_of

# A tensor needs one entry. At these limits, refusing the worst file takes about a second.
MAX_ENTRIES = 20_000
MAX_DIRECTORY_BYTES = 2 * 2**20

LOCAL_HEADER = struct.Struct("<4s5H3L2H")


def read_checkpoint(path: str | Path) -> Any:
    """Returns the object in a file written by `torch.save`. Nothing in the file is executed.

    Args:
        path: A checkpoint (`.ckpt`, `.pkl`, `.pt`, `.pth`) of any PyTorch version: a zip archive,
            or the format before PyTorch 1.6.

    Returns:
        Plain Python data, such as a dict. Each tensor is a `StoredTensor`, whose bytes are read by
        its method `numpy()`. Classes of Lightning become `Inert` stand-ins without behavior.

    Raises:
        UserError: The file is damaged, is not written by `torch.save`, or contains more than plain
            data, tensors and classes of Lightning.
    """
    path = expand_home(path)
    try:
        with os_errors_as_user_errors(path):
            if not path.is_file():  # opening a pipe would block
                raise Refusal(
                    "is a folder or device, not a file." if path.exists() else "does not exist. Check the path."
                )
            with path.open("rb", buffering=0) as file:
                head, identity = file.read(64), identity_of(file)
                if is_legacy(head):
                    return read_legacy(path, identity, file)
                _check_kind(head)
                entries = _entries(file)
                if "byteorder" in entries and _read_entry(file, entries["byteorder"]) != b"little":
                    raise Refusal("was written on a big-endian machine. Save it again on a little-endian one.")
                return Machine(path, identity, entries).run(_read_entry(file, entries["data.pkl"]))
    except Refusal as refusal:
        raise UserError(f"{path} {refusal}") from refusal


class _DirectoryReads(io.FileIO):
    """Limits what zipfile reads, because zipfile trusts the declared directory size."""

    def read(self, size: int = -1, /) -> bytes:
        if size > MAX_DIRECTORY_BYTES:
            raise Refusal(
                f"has a directory of {size:,} bytes, more than the limit of {MAX_DIRECTORY_BYTES:,}. {GET_AGAIN}"
            )
        return super().read(size)


def _entries(file: io.FileIO) -> dict[str, Entry]:
    """Returns the position of each entry's bytes, by its path below the root folder."""
    try:
        with zipfile.ZipFile(_DirectoryReads(file.fileno(), closefd=False)) as archive:
            infos = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError, struct.error) as error:
        length = file.seek(0, os.SEEK_END)
        raise Refusal(f"is truncated or damaged (size: {length:,} bytes). {GET_AGAIN}") from error
    names = [info.filename for info in infos]
    if len(names) > MAX_ENTRIES:
        raise Refusal(f"has {len(names):,} entries, more than the limit of {MAX_ENTRIES:,}. {GET_AGAIN}")
    if len(set(names)) < len(names):
        raise Refusal(f"has {len(names):,} entries with only {len(set(names)):,} different names. {GET_AGAIN}")
    roots = sorted({name.partition("/")[0] for name in names})
    if len(roots) != 1:
        raise Refusal(f"has {len(roots)} root folders, but a checkpoint has one. {GET_AGAIN}")
    spans = _spans(file, infos)
    if "constants.pkl" in spans or any(name.startswith("code/") for name in spans):
        raise Refusal("is a TorchScript program, not a checkpoint. Save its state_dict() with torch.save.")
    if "data.pkl" not in spans:
        raise Refusal("is a zip archive without data.pkl, so it is not a PyTorch checkpoint. Check the path.")
    return spans


def _check_kind(head: bytes) -> None:
    if not head:
        raise Refusal(f"is empty. {GET_AGAIN}")
    if head.lstrip().startswith(b"<"):
        raise Refusal("is a web page, not a checkpoint. The download failed: repeat it.")
    if not head.startswith(b"PK\3\4"):
        raise Refusal("is not a file written by torch.save. Check the path.")


def _spans(file: io.FileIO, infos: list[zipfile.ZipInfo]) -> dict[str, Entry]:
    """Returns the position of each entry.

    Raises Refusal if an entry is compressed, overlaps another or ends after the file.
    """
    spans, end, length = {}, 0, file.seek(0, os.SEEK_END)
    for info in sorted(infos, key=lambda info: info.header_offset):
        name = shown(info.filename)
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1 or info.compress_size != info.file_size:
            raise Refusal(f"has a compressed or encrypted entry, {name}. Save it again with torch.save.")
        if info.header_offset < end:
            raise Refusal(f"is damaged: the entry {name} begins inside another entry, before byte {end:,}. {GET_AGAIN}")
        if info.header_offset + LOCAL_HEADER.size > length:
            raise Refusal(f"is truncated: {name} begins at byte {info.header_offset:,} of {length:,}. {GET_AGAIN}")
        encoded = info.orig_filename.encode("utf-8" if info.flag_bits & 0x800 else "cp437")
        file.seek(info.header_offset)
        header = file.read(LOCAL_HEADER.size + len(encoded))
        signature, _, flags, method, *_, name_length, extra_length = LOCAL_HEADER.unpack_from(header)
        if (signature, flags & 1, method) != (b"PK\3\4", 0, 0) or header[LOCAL_HEADER.size :] != encoded:
            raise Refusal(f"is damaged: there is no entry {name} at byte {info.header_offset:,}. {GET_AGAIN}")
        start = info.header_offset + LOCAL_HEADER.size + name_length + extra_length
        end = start + info.file_size
        if end > length:
            raise Refusal(f"is truncated: {name} ends at byte {end:,} of {length:,}. {GET_AGAIN}")
        spans[info.filename.partition("/")[2]] = Entry(start, info.file_size, info.CRC)
    return spans


def _read_entry(file: io.FileIO, entry: Entry) -> bytes:
    start, size, checksum = entry
    if size > MAX_PICKLE_BYTES:
        raise Refusal(
            f"describes its tensors in {size:,} bytes, more than the limit of {MAX_PICKLE_BYTES:,}. {GET_AGAIN}"
        )
    file.seek(start)
    content = file.read(size)
    if zlib.crc32(content) != checksum:
        raise Refusal(f"is damaged at byte {start:,}, in the description of its tensors. {GET_AGAIN}")
    return content
