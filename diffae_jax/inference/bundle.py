"""The bundle: a trained model as one folder, without code, to share. Each file has a SHA-256 hash.

manifest.json         format version, origin, recommended settings, facts of the card; size and
                      hash of each file below
config.json
weights.safetensors   EMA weights, "autoencoder.*" and, if there is a prior, "prior.*", as float32
                      or, at half the size, as float16
latents.npz           mean and std of z, if they are known
probes/*.json

README.md and pictures/*.png are the model card. They may be edited, so the manifest does not list
them.
"""

import dataclasses
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
from diffae_jax.inference import recommended
from diffae_jax.inference.card import Card, check_edits, is_card_file, read_card, write_card
from diffae_jax.inference.recommended import Recommended
from diffae_jax.inference.weights import count_parameters
from diffae_jax.probes import ClassProbe, Probe
from diffae_jax.probes import from_json as probe_from_json
from diffae_jax.runtime.buckets import BucketPath
from diffae_jax.runtime.checksums import describe_files, find_damage
from diffae_jax.runtime.errors import UserError, shown
from diffae_jax.runtime.files import (
    MAX_JSON_BYTES,
    AnyPath,
    atomic_write,
    expand_home,
    local_copy,
    names_below,
    os_errors_as_user_errors,
    publish,
    read_json,
    reason_of,
)

FORMAT = 1
RECOMMENDED = "recommended"  # a key of the manifest, which earlier versions ignore
LONGEST_PROBE_FILE = 250  # characters of a file name; each character of a probe's name may become twelve
MAX_HEADER_BYTES = 4 * 2**20  # of the file of weights
MANIFEST, CONFIG, WEIGHTS, LATENTS, PROBES = (
    "manifest.json",
    "config.json",
    "weights.safetensors",
    "latents.npz",
    "probes",
)


@dataclasses.dataclass(frozen=True)
class Bundle:
    """A bundle in memory.

    Attributes:
        config: the config that the model was trained with.
        weights: "autoencoder.*" and, if there is a prior, "prior.*", as float32. A bundle of
            float16 weights takes half the space on disk, and `read_bundle` returns float32.
        statistics: mean and standard deviation of z, or None.
        probes: the fitted probes by name.
        origin: plain values that describe where the model comes from.
        card: what the model card says in addition.
        recommended: the settings to invert and decode with, or None.
    """

    config: ConfigDict
    weights: dict[str, np.ndarray]
    statistics: LatentStatistics | None
    probes: dict[str, Probe | ClassProbe]
    origin: dict[str, Any]
    card: Card = dataclasses.field(default_factory=Card)
    recommended: Recommended | None = None


def check_free(path: AnyPath) -> None:
    """Raises UserError unless `path` is unused, an empty folder or another bundle."""
    with os_errors_as_user_errors(path, "written"):
        if not path.exists() or (path.is_dir() and not any(path.iterdir())):
            return
        # other software also writes manifests
        files = read_manifest(path)["files"] if (path / MANIFEST).is_file() else {}
        if isinstance(path, BucketPath) and not files and all(map(_may_lie_in, names_below(path))):
            return  # a killed process has not finished it
        if not ({CONFIG, WEIGHTS} <= files.keys() and all(map(may_hold, files))):
            raise UserError(f"{path} exists and is not a bundle. Choose a path that does not exist yet.")
        existing = set(names_below(path))
    others = {name for name in existing - {MANIFEST, *files} if not is_card_file(name)}
    if others:
        raise UserError(
            f"{path} holds {shown(min(others))}, which is not part of a bundle. Choose a path that does not exist yet."
        )


def may_hold(name: str) -> bool:
    """Whether the manifest of a bundle may list a file with this name."""
    return name in (CONFIG, WEIGHTS, LATENTS) or re.fullmatch(rf"{PROBES}/[^/]+\.json", name) is not None


def _may_lie_in(name: str) -> bool:
    return may_hold(name) or is_card_file(name)


def write_bundle(path: AnyPath, bundle: Bundle, location: str = "") -> None:
    """Writes a bundle atomically and replaces an existing one.

    If the existing card was edited, its text and its pictures are kept.

    Args:
        path: the folder to write.
        bundle: the bundle.
        location: the path or address in the examples of the card; by default the folder's name.

    Raises:
        UserError: if the path holds anything else, if it cannot be written, or if an edited card
            cannot be kept.
    """
    check_free(path)
    contents = probe_files(bundle.probes.values())
    try:
        path = path.resolve()  # because the path "." has no name
    except (OSError, RuntimeError) as error:
        raise UserError(f"{path} cannot be written: it is a symbolic link to itself. Use another path.") from error
    if bundle.card.text is None and (path / MANIFEST).is_file():
        manifest = read_manifest(path)
        check_edits(path, manifest)
        card = bundle.card.with_edits_of(read_card(path, manifest), pictures=bundle.config.export.pictures)
        bundle = dataclasses.replace(bundle, card=card)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # on the bundle's disk, so renaming works; the scratch folder is always removed
        place = path.parent if isinstance(path, Path) else None
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=place) as scratch:
            new = Path(scratch) / "new"
            (new / PROBES).mkdir(parents=True)
            _write_files(new, bundle, contents, location or path.name)
            _replace(path, new)
    except (OSError, SafetensorError) as error:
        raise UserError(f"The bundle {path} cannot be written ({reason_of(error)}).") from error


def _replace(path: AnyPath, new: Path) -> None:
    """Puts a new bundle in the place of an existing one, if any."""
    old = new.with_name("old")
    if isinstance(path, Path) and path.exists():
        path.rename(old)
    try:
        publish(new, path)
    except OSError:
        if old.exists():
            old.rename(path)
        raise


def _write_files(folder: Path, bundle: Bundle, contents: dict[str, str], location: str) -> None:
    (folder / CONFIG).write_text(json.dumps(json.loads(bundle.config.to_json()), indent=2) + "\n")
    save_file(bundle.weights, folder / WEIGHTS)
    (folder / WEIGHTS).chmod((folder / CONFIG).stat().st_mode)  # safetensors makes it unreadable for other users
    if bundle.statistics is not None:
        np.savez(folder / LATENTS, mean=bundle.statistics.mean, std=bundle.statistics.std)
    for name, content in contents.items():
        (folder / PROBES / name).write_text(content)
    manifest = {"format": FORMAT, "origin": bundle.origin, "files": describe_files(folder, names_below(folder))}
    if bundle.recommended is not None:
        manifest[RECOMMENDED] = bundle.recommended.as_json()
    sizes = count_parameters(bundle.weights)
    manifest["card"] = write_card(folder, bundle.card, location, bundle.config, bundle.probes, bundle.origin, sizes)
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
    for name in names_below(folder):
        with (folder / name).open("rb") as handle:
            os.fsync(handle.fileno())


def probe_files(probes: Iterable[Probe | ClassProbe]) -> dict[str, str]:
    """Returns the content of each probe's file, by file name, in the folder of probes.

    Raises UserError if a probe's name or content is too long for a file.
    """
    contents = {}
    for probe in probes:
        check_probe_name(probe.name)
        content = json.dumps(probe.as_json())
        if len(content) > MAX_JSON_BYTES:
            raise UserError(
                f"Probe {shown(probe.name)} takes {len(content):,} bytes, more than the limit of {MAX_JSON_BYTES:,}. "
                f"Fit the probe to fewer classes."
            )
        contents[_file_of(probe.name)] = content
    return contents


def check_probe_name(name: str) -> None:
    """Raises UserError if a probe's name is not text, is empty or is too long for a file name."""
    if not isinstance(name, str) or not name:
        raise UserError(f"The name of a probe must be text and not empty, not {shown(name)}.")
    if len(_file_of(name)) > LONGEST_PROBE_FILE:
        raise UserError(f"The name of probe {shown(name)} is too long for a file name. Use a shorter name.")


def _file_of(name: str) -> str:
    """Returns the file name of the probe with this name."""
    return f"{quote(name, safe='', errors='surrogatepass')}.json"


def read_probe(file: AnyPath) -> Probe | ClassProbe:
    """Reads a probe from its file.

    Raises UserError if it is not a probe, or if the file name does not fit the probe.
    """
    probe = probe_from_json(read_json(file))
    if file.name != _file_of(probe.name):
        raise UserError(f"{file} must be named {shown(_file_of(probe.name))}, after its probe. Rename or remove it.")
    return probe


def damage_of_probes(folder: AnyPath) -> str | None:
    """Compares the probes of a run with the hashes in its record; older versions recorded none.

    Returns what is wrong, without a full stop, or None.
    """
    if not (folder / INPUTS).exists():
        return None
    try:
        entries = read_inputs(folder).get("files", {})
        if not (isinstance(entries, dict) and all(isinstance(entry, dict) for entry in entries.values())):
            raise UserError("no hashes")
    except UserError:
        return f"{folder / INPUTS} is damaged"
    with local_copy(folder) as local:
        damage = find_damage(local, entries)
        return damage and damage.replace(str(local), str(folder))


def read_run_probes(folder: AnyPath, autoencoder: str) -> dict[str, Probe | ClassProbe]:
    """Returns the probes of a run, or none if they were fitted to the z of another autoencoder.

    `autoencoder` is the digest of the weights. Raises UserError if a file is damaged.
    """
    if not (folder / INPUTS).exists() or read_inputs(folder).get("autoencoder") != autoencoder:
        return {}
    if damage := damage_of_probes(folder):
        raise UserError(f"{damage}. Run the stage probes to fit all probes again (--stages=probes).")
    probes = [read_probe(file) for file in sorted(folder.glob("*.json")) if file.name != INPUTS]
    return {probe.name: probe for probe in probes}


def read_bundle(path: AnyPath) -> Bundle:
    """Reads a bundle and checks every byte against the manifest.

    Only links to regular files are followed.

    Args:
        path: the folder of the bundle.

    Returns:
        The bundle in memory.

    Raises:
        UserError: if a file is missing, damaged or not part of a bundle, or if this
            version cannot read its newer format.
    """
    with local_copy(expand_home(path)) as local:
        return _read_bundle(local)


def _read_bundle(path: Path) -> Bundle:
    manifest = read_manifest(path)
    if manifest["format"] > FORMAT:
        raise UserError(
            f"{path} is a bundle of format {shown(manifest['format'])}, but this version reads up to {FORMAT}. Update "
            f"with pip install --upgrade diffae_jax."
        )
    names = _checked_files(path, manifest["files"])
    config = from_json(path / CONFIG)
    statistics = LatentStatistics.load(path / LATENTS) if LATENTS in names else None
    read = [read_probe(path / name) for name in names if name.startswith(f"{PROBES}/")]
    probes = {probe.name: probe for probe in read}
    origin = manifest.get("origin")
    return Bundle(
        config,
        _read_weights(path / WEIGHTS),
        statistics,
        probes,
        origin if isinstance(origin, dict) else {},
        read_card(path, manifest),
        recommended.from_json(manifest.get(RECOMMENDED), str(path / MANIFEST)),
    )


def write_recommended(path: AnyPath, settings: Recommended) -> None:
    """Stores recommended settings in a bundle, atomically.

    Only the manifest is written, so the hashes of all files stay right. Raises UserError if `path`
    is no bundle or cannot be written.
    """
    manifest = read_manifest(path) | {RECOMMENDED: settings.as_json()}
    with os_errors_as_user_errors(path / MANIFEST, "written"), atomic_write(path / MANIFEST) as scratch:
        scratch.write_text(json.dumps(manifest, indent=2) + "\n")


def _read_weights(file: AnyPath) -> dict[str, np.ndarray]:
    """Reads weights by their dotted names. They may be stored as float16.

    Returns float32. Raises UserError for other types, and unless all are finite.
    """
    with os_errors_as_user_errors(file), file.open("rb") as handle:
        size = int.from_bytes(handle.read(8), "little")
    if size > MAX_HEADER_BYTES:  # safetensors allows 100 MB, which take 25 s and 2 GB
        raise UserError(
            f"{file} cannot be read: its header has {size:,} bytes, so it is damaged. Get the bundle again."
        )
    try:
        with safe_open(file, "np") as opened:
            names = opened.keys()
            others = [name for name in names if opened.get_slice(name).get_dtype() not in ("F32", "F16")]
            weights = {} if others else {name: opened.get_tensor(name).astype(np.float32, copy=False) for name in names}
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"{file} cannot be read: {shown(str(error))}. Get the bundle again.") from error
    if others:
        raise UserError(
            f"{file} cannot be read: its {shown(others[0])} is neither float32 nor float16. Get the bundle again."
        )
    for name, array in weights.items():
        if not np.isfinite(array).all():
            raise UserError(
                f"{file} cannot be used: its {shown(name)} holds values that are not finite. Get the bundle again."
            )
    return weights


def read_manifest(path: AnyPath) -> dict[str, Any]:
    """Returns a manifest of any format version. Raises UserError if it is not that of a bundle."""
    manifest = read_json(path / MANIFEST)
    if (
        not isinstance(manifest, dict)
        or type(manifest.get("format")) is not int
        or manifest["format"] < 1
        or not isinstance(manifest.get("files"), dict)
    ):
        raise UserError(f"{path / MANIFEST} is not the manifest of a bundle. Check the path, or get the bundle again.")
    return manifest


def _checked_files(path: AnyPath, entries: dict[str, Any]) -> list[str]:
    """Compares each file of a bundle with its entry, sizes first, and returns the names."""
    if not {CONFIG, WEIGHTS} <= entries.keys():
        raise UserError(
            f"{path / MANIFEST} does not list {CONFIG} and {WEIGHTS}, so it is damaged. Get the bundle again."
        )
    for name, entry in entries.items():
        if not (may_hold(name) and isinstance(entry, dict)):
            raise UserError(
                f"{path / MANIFEST} lists {shown(name)}, which is not part of a bundle. Get the bundle again."
            )
    if damage := find_damage(path, entries):
        raise UserError(f"{damage}. Get the bundle again.")
    return list(entries)
