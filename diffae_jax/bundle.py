"""The bundle: a trained model as one folder without code, every file under a SHA-256. What people share.

manifest.json         format version, what the model was made from, the size and hash of each other file
config.json
weights.safetensors   averaged weights, "autoencoder.*" and, where there is one, "prior.*"
latents.npz           mean and std of z, where they are known
probes/*.json
"""

import dataclasses
import hashlib
import json
import os
import re
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from ml_collections import ConfigDict
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from diffae_jax.config import from_dict
from diffae_jax.data.latents import LatentStatistics
from diffae_jax.errors import UserError
from diffae_jax.models.functional import Params, flatten, unflatten
from diffae_jax.probes import Probe

FORMAT = 1
MANIFEST, CONFIG, WEIGHTS, LATENTS, PROBES = (
    "manifest.json",
    "config.json",
    "weights.safetensors",
    "latents.npz",
    "probes",
)


@dataclasses.dataclass(frozen=True)
class Bundle:
    """What a bundle holds, in memory."""

    config: ConfigDict
    weights: dict[str, Params]  # "autoencoder" and perhaps "prior", numpy arrays
    statistics: LatentStatistics | None
    probes: dict[str, Probe]
    origin: dict[str, Any]  # what it was made from: plain values, for people


def check_free(path: Path) -> None:
    """Raises UserError unless a bundle may be written to `path`: it is free, an empty folder or another bundle."""
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    if not (path / MANIFEST).is_file():
        raise UserError(f"{path} is there and is no bundle: give a path that is free.")
    files = _read_manifest(path)["files"]  # other programs have manifests, too
    if not ({CONFIG, WEIGHTS} <= files.keys() and all(map(_belongs, files))):
        raise UserError(f"{path} is there and is no bundle: give a path that is free.")
    others = {file.relative_to(path).as_posix() for file in path.rglob("*") if not file.is_dir()} - {MANIFEST, *files}
    if others:
        raise UserError(f"{path} holds {min(others)}, which is no part of a bundle: give a path that is free.")


def _belongs(name: str) -> bool:
    """Whether a file of this name, below the folder, is one that a bundle may hold beside its manifest."""
    return name in (CONFIG, WEIGHTS, LATENTS) or re.fullmatch(rf"{PROBES}/[^/]+\.json", name) is not None


def write_bundle(path: Path, bundle: Bundle) -> None:
    """Writes a bundle that is there whole or not at all, in place of one that was there.

    Raises UserError for a path that holds anything else or cannot be written.
    """
    path = path.resolve()  # "." has no name of its own
    check_free(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # a folder of a new name, beside the bundle so that renaming is enough, and gone whatever happens
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as scratch:
            new, old = Path(scratch) / "new", Path(scratch) / "old"
            (new / PROBES).mkdir(parents=True)
            _write_files(new, bundle)
            if path.exists():
                path.rename(old)
            try:
                new.rename(path)
            except OSError:
                if old.exists():
                    old.rename(path)
                raise
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"The bundle {path} cannot be written ({getattr(error, 'strerror', None) or error})."
        ) from error


def _write_files(folder: Path, bundle: Bundle) -> None:
    (folder / CONFIG).write_text(json.dumps(json.loads(bundle.config.to_json()), indent=2) + "\n")
    save_file(flatten(bundle.weights), folder / WEIGHTS)
    (folder / WEIGHTS).chmod((folder / CONFIG).stat().st_mode)  # safetensors lets nobody else read it
    if bundle.statistics is not None:
        np.savez(folder / LATENTS, mean=bundle.statistics.mean, std=bundle.statistics.std)
    for probe in bundle.probes.values():
        (folder / PROBES / f"{quote(probe.name, safe='')}.json").write_text(json.dumps(probe.as_json()))
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    entries = {
        file.relative_to(folder).as_posix(): {"bytes": file.stat().st_size, "sha256": _hash(file)} for file in files
    }
    manifest = {"format": FORMAT, "origin": bundle.origin, "files": entries}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
    for file in (*files, folder / MANIFEST):
        with file.open("rb") as handle:
            os.fsync(handle.fileno())


def read_bundle(path: Path) -> Bundle:
    """Reads a bundle, every byte of it checked against the manifest.

    Raises UserError for a file that is missing, changed or not what a bundle holds, and for a newer format.
    """
    manifest = _read_manifest(path)
    if manifest["format"] > FORMAT:
        raise UserError(
            f"{path} is a bundle of format {manifest['format']} and this version reads up to {FORMAT}: "
            f"pip install --upgrade diffae_jax."
        )
    names = _checked_files(path, manifest["files"])
    config = from_dict(_parsed(path / CONFIG, lambda file: json.loads(file.read_text())), path / CONFIG)
    statistics = None
    if LATENTS in names:
        statistics = _parsed(path / LATENTS, _read_statistics)
    probes = {}
    for name in names:
        if name.startswith(f"{PROBES}/"):
            probe = Probe.from_json(_parsed(path / name, lambda file: json.loads(file.read_text())))
            probes[probe.name] = probe
    weights = _parsed(path / WEIGHTS, lambda file: unflatten(load_file(file)))
    origin = manifest.get("origin")
    return Bundle(config, weights, statistics, probes, origin if isinstance(origin, dict) else {})


def _read_statistics(file: Path) -> LatentStatistics:
    with np.load(file, allow_pickle=False) as arrays:
        return LatentStatistics(*(arrays[name].astype(np.float32) for name in ("mean", "std")))


def _read_manifest(path: Path) -> dict[str, Any]:
    """Returns a manifest, of whichever format. Raises UserError for the manifest of something else."""
    manifest = _parsed(path / MANIFEST, lambda file: json.loads(file.read_text()))
    if (
        not isinstance(manifest, dict)
        or type(manifest.get("format")) is not int
        or manifest["format"] < 1
        or not isinstance(manifest.get("files"), dict)
    ):
        raise UserError(f"{path / MANIFEST} is not the manifest of a bundle.")
    return manifest


def _checked_files(path: Path, entries: dict[str, Any]) -> list[str]:
    """Returns the names of a bundle's files after comparing each with its entry, sizes first: they cost nothing."""
    if not {CONFIG, WEIGHTS} <= entries.keys():
        raise UserError(f"{path / MANIFEST} does not list {CONFIG} and {WEIGHTS}: it is damaged.")
    for name, entry in entries.items():
        if not (_belongs(name) and isinstance(entry, dict)):
            raise UserError(f"{path / MANIFEST} lists {name!r}, which no bundle holds.")
    for name, entry in entries.items():
        file = path / name
        if not file.is_file():
            raise UserError(f"{file} is missing: get the bundle again.")
        if file.stat().st_size != entry.get("bytes"):
            raise UserError(
                f"{file} has {file.stat().st_size} bytes instead of {entry.get('bytes')}: get the bundle again."
            )
    for name, entry in entries.items():
        if _hash(path / name) != entry.get("sha256"):
            raise UserError(f"{path / name} is not what the manifest says (SHA-256 differs): get the bundle again.")
    return list(entries)


def _hash(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _parsed(file: Path, parse: Callable[[Path], Any]) -> Any:
    """Reads a file. Raises UserError where it is not what it should be."""
    try:
        return parse(file)
    except (OSError, ValueError, KeyError, RecursionError, SafetensorError, zipfile.BadZipFile) as error:
        raise UserError(f"{file} cannot be read as part of a bundle ({error}).") from error
