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
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from ml_collections import ConfigDict
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from diffae_jax.config import from_json
from diffae_jax.data.latents import INPUTS, LatentStatistics, read_inputs
from diffae_jax.probes import ClassProbe, Probe
from diffae_jax.probes import from_json as probe_from_json
from diffae_jax.runtime.errors import UserError, shown
from diffae_jax.runtime.files import MAX_JSON_BYTES, os_errors_as_user_errors, read_json

FORMAT = 1
LONGEST_PROBE_FILE = 250  # characters, which file systems allow; other than letters take up to twelve each
MAX_HEADER_BYTES = 4 * 2**20  # of the weights
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
    weights: dict[str, np.ndarray]  # "autoencoder.*" and, where there is one, "prior.*"
    statistics: LatentStatistics | None
    probes: dict[str, Probe | ClassProbe]
    origin: dict[str, Any]  # what it was made from: plain values, for people


def check_free(path: Path) -> None:
    """Raises UserError unless a bundle may be written to `path`: it is free, an empty folder or another bundle."""
    with os_errors_as_user_errors(path, "written"):
        if not path.exists() or (path.is_dir() and not any(path.iterdir())):
            return
        if not (path / MANIFEST).is_file():
            raise UserError(f"{path} is there and is no bundle: give a path that is free.")
        files = read_manifest(path)["files"]  # other programs have manifests, too
        if not ({CONFIG, WEIGHTS} <= files.keys() and all(map(_belongs, files))):
            raise UserError(f"{path} is there and is no bundle: give a path that is free.")
        found = {file.relative_to(path).as_posix() for file in path.rglob("*") if not file.is_dir()}
    others = found - {MANIFEST, *files}
    if others:
        raise UserError(f"{path} holds {shown(min(others))}, which is no part of a bundle: give a path that is free.")


def _belongs(name: str) -> bool:
    """Whether a file of this name, below the folder, is one that a bundle may hold beside its manifest."""
    return name in (CONFIG, WEIGHTS, LATENTS) or re.fullmatch(rf"{PROBES}/[^/]+\.json", name) is not None


def write_bundle(path: Path, bundle: Bundle) -> None:
    """Writes a bundle that is there whole or not at all, in place of one that was there.

    Raises UserError for a path that holds anything else or cannot be written.
    """
    check_free(path)
    contents = probe_files(bundle.probes.values())
    try:
        path = path.resolve()  # "." has no name of its own
    except (OSError, RuntimeError) as error:
        raise UserError(f"{path} cannot be written: it is a link that leads to itself.") from error
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # a folder of a new name, beside the bundle so that renaming is enough, and gone whatever happens
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as scratch:
            new, old = Path(scratch) / "new", Path(scratch) / "old"
            (new / PROBES).mkdir(parents=True)
            _write_files(new, bundle, contents)
            if path.exists():
                path.rename(old)
            try:
                new.rename(path)
            except OSError:
                if old.exists():
                    old.rename(path)
                raise
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or shown(str(error))
        raise UserError(f"The bundle {path} cannot be written ({reason}).") from error


def _write_files(folder: Path, bundle: Bundle, contents: dict[str, str]) -> None:
    (folder / CONFIG).write_text(json.dumps(json.loads(bundle.config.to_json()), indent=2) + "\n")
    save_file(bundle.weights, folder / WEIGHTS)
    (folder / WEIGHTS).chmod((folder / CONFIG).stat().st_mode)  # safetensors lets nobody else read it
    if bundle.statistics is not None:
        np.savez(folder / LATENTS, mean=bundle.statistics.mean, std=bundle.statistics.std)
    for name, content in contents.items():
        (folder / PROBES / name).write_text(content)
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    entries = {
        file.relative_to(folder).as_posix(): {"bytes": file.stat().st_size, "sha256": _hash(file)} for file in files
    }
    manifest = {"format": FORMAT, "origin": bundle.origin, "files": entries}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
    for file in (*files, folder / MANIFEST):
        with file.open("rb") as handle:
            os.fsync(handle.fileno())


def probe_files(probes: Iterable[Probe | ClassProbe]) -> dict[str, str]:
    """Returns the content of the file of each probe, by its name in the folder of probes of a bundle or a run.

    Raises UserError for a name and for a content that is too long for a file.
    """
    contents = {}
    for probe in probes:
        check_probe_name(probe.name)
        content = json.dumps(probe.as_json())
        if len(content) > MAX_JSON_BYTES:
            raise UserError(
                f"Probe {shown(probe.name)} takes {len(content):,} bytes, more than the {MAX_JSON_BYTES:,} of a file: "
                f"fit it to fewer classes."
            )
        contents[_file_of(probe.name)] = content
    return contents


def check_probe_name(name: str) -> None:
    """Raises UserError for what cannot be the name of a probe's file."""
    if not isinstance(name, str) or not name:
        raise UserError(f"The name of a probe is text, not {shown(name)}.")
    if len(_file_of(name)) > LONGEST_PROBE_FILE:
        raise UserError(f"The name of probe {shown(name)} is too long for a file: give it a shorter one.")


def _file_of(name: str) -> str:
    """The name of the file of a probe of that name."""
    return f"{quote(name, safe='', errors='surrogatepass')}.json"


def read_probe(file: Path) -> Probe | ClassProbe:
    """Reads one of `probe_files`. Raises UserError for what is no probe, and for that of another file."""
    probe = probe_from_json(read_json(file))
    if file.name != _file_of(probe.name):
        raise UserError(f"{file} holds the probe {shown(probe.name)}, which belongs in another file.")
    return probe


def read_run_probes(folder: Path, autoencoder: str) -> dict[str, Probe | ClassProbe]:
    """Returns the probes that a run has, none where they were fitted to z of another autoencoder: they are made anew.

    `autoencoder` is the digest of the weights. Raises UserError for what is damaged.
    """
    if not (folder / INPUTS).exists() or read_inputs(folder).get("autoencoder") != autoencoder:
        return {}
    probes = [read_probe(file) for file in sorted(folder.glob("*.json")) if file.name != INPUTS]
    return {probe.name: probe for probe in probes}


def read_bundle(path: Path) -> Bundle:
    """Reads a bundle, every byte of it checked against the manifest. Links are followed, to regular files alone.

    Raises UserError for a file that is missing, changed or not what a bundle holds, and for a newer format.
    """
    manifest = read_manifest(path)
    if manifest["format"] > FORMAT:
        raise UserError(
            f"{path} is a bundle of format {shown(manifest['format'])} and this version reads up to {FORMAT}: "
            f"pip install --upgrade diffae_jax."
        )
    names = _checked_files(path, manifest["files"])
    config = from_json(path / CONFIG)
    statistics = LatentStatistics.load(path / LATENTS) if LATENTS in names else None
    read = [read_probe(path / name) for name in names if name.startswith(f"{PROBES}/")]
    probes = {probe.name: probe for probe in read}
    origin = manifest.get("origin")
    return Bundle(config, _read_weights(path / WEIGHTS), statistics, probes, origin if isinstance(origin, dict) else {})


def _read_weights(file: Path) -> dict[str, np.ndarray]:
    """Reads weights by their flat names, of no other type than float32, all of them finite."""
    with os_errors_as_user_errors(file), file.open("rb") as handle:
        size = int.from_bytes(handle.read(8), "little")
    if size > MAX_HEADER_BYTES:  # safetensors reads 100 MB, for which names without end take 25 s and 2 GB
        raise UserError(f"{file} cannot be read: it lists its weights in {size:,} bytes, so it is damaged.")
    try:
        with safe_open(file, "np") as opened:
            names = opened.keys()
            others = [name for name in names if opened.get_slice(name).get_dtype() != "F32"]
            weights = {} if others else {name: opened.get_tensor(name) for name in names}
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"{file} cannot be read: {shown(str(error))}.") from error
    if others:
        raise UserError(f"{file} cannot be read: its {shown(others[0])} is not a weight of type F32.")
    for name, array in weights.items():
        if not np.isfinite(array).all():
            raise UserError(f"{file} cannot be used: its {shown(name)} holds numbers that are not finite.")
    return weights


def read_manifest(path: Path) -> dict[str, Any]:
    """Returns a manifest, of whichever format. Raises UserError for the manifest of something else."""
    manifest = read_json(path / MANIFEST)
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
            raise UserError(f"{path / MANIFEST} lists {shown(name)}, which no bundle holds.")
    for name, entry in entries.items():
        file = path / name
        with os_errors_as_user_errors(file):
            if not file.is_file():
                raise UserError(f"{file} is missing: get the bundle again.")
            size = file.stat().st_size
        if size != entry.get("bytes"):
            wanted = shown(entry.get("bytes"))
            raise UserError(f"{file} has {size} bytes instead of {wanted}: get the bundle again.")
    for name, entry in entries.items():
        with os_errors_as_user_errors(path / name):
            digest = _hash(path / name)
        if digest != entry.get("sha256"):
            raise UserError(f"{path / name} is not what the manifest says (SHA-256 differs): get the bundle again.")
    return list(entries)


def _hash(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
