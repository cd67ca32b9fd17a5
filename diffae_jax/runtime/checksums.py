"""Size and SHA-256 hash of files, to detect damage."""

import hashlib
import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from diffae_jax.runtime.errors import shown
from diffae_jax.runtime.files import os_errors_as_user_errors

THREADS = 8  # hashing and reading release Python's lock

Entries = dict[str, dict[str, Any]]  # name of a file below a folder -> its "bytes" and "sha256"


def describe_files(folder: Path, names: Iterable[str]) -> Entries:
    """Returns the size and SHA-256 hash of each file. The files are read in parallel."""
    names = sorted(names)
    with ThreadPoolExecutor(min(THREADS, len(names)) or 1) as threads:
        hashes = threads.map(_hash, [folder / name for name in names])
    return {
        name: {"bytes": (folder / name).stat().st_size, "sha256": digest}
        for name, digest in zip(names, hashes, strict=True)
    }


def find_damage(folder: Path, entries: Entries) -> str | None:
    """Compares files with their entries, sizes first.

    Returns what is wrong with the first file that differs, without a full stop, or None. Raises
    UserError if a file cannot be read.
    """
    for name, entry in entries.items():
        file = folder / name
        with os_errors_as_user_errors(file):
            if not file.is_file():
                return f"{file} is missing"
            size = file.stat().st_size
        if size != entry.get("bytes"):
            return f"{file} has {size} bytes instead of {shown(entry.get('bytes'))}"
    with ThreadPoolExecutor(min(THREADS, len(entries)) or 1) as threads:
        hashes = threads.map(_hash, [folder / name for name in entries])
        for (name, entry), digest in zip(entries.items(), hashes, strict=True):
            if digest != entry.get("sha256"):
                return f"{folder / name} does not match the manifest (SHA-256 differs)"
    return None


def hash_json(content: Any) -> str:
    """Returns the SHA-256 hash of a value that JSON can hold, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _hash(file: Path) -> str:
    with os_errors_as_user_errors(file), file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
