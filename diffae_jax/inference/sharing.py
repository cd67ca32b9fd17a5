"""Models by name: those that ship with the package, and those on the Hugging Face Hub.

Only the files of a bundle are read from the Hub or written to it.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from diffae_jax.inference.bundle import CONFIG, MANIFEST, WEIGHTS, may_hold, read_manifest
from diffae_jax.inference.card import CARD, card_files, is_card_file, is_edited
from diffae_jax.pretrained import folder_of, is_shipped
from diffae_jax.runtime.console import warn
from diffae_jax.runtime.errors import UserError, list_some, shown
from diffae_jax.runtime.files import AnyPath, expand_home, parse_json
from diffae_jax.runtime.hub import HubAddress, Remote, download, is_hub_address, open_remote, parse_address

# files that the Hub or its users add to a repository
ALLOWED = (".gitattributes", ".gitignore", "LICENSE", "LICENSE.md", "LICENSE.txt")


@contextlib.contextmanager
def local_model(path: str | AnyPath) -> Iterator[AnyPath]:
    """Yields the folder of a model: of a shipped one, or of a copy of one on the Hub.

    Other paths are yielded as they are. The message of a UserError in the block has the name or
    the address instead of the folder.
    """
    if is_shipped(path):
        with _named(folder_of(str(path)), str(path), "Install diffae_jax again.") as folder:
            yield folder
    elif is_hub_address(path):
        address = parse_address(path)
        folder = download(address, MANIFEST, lambda folder: _names_in(folder, address))
        fix = f"Tell its owner, or delete {folder.parents[1]} if the copy there may be damaged."
        with _named(folder, str(address), fix):
            yield folder
    else:
        yield expand_home(path)


@contextlib.contextmanager
def _named(folder: Path, name: str, fix: str) -> Iterator[Path]:
    """Yields a folder. The message of a UserError in the block has a name and a fix of its own."""
    try:
        yield folder
    except UserError as error:
        text = str(error).replace("Get the bundle again.", fix).replace(f"{folder}/", f"{name}: ")
        raise type(error)(text.replace(str(folder), name)) from error


def _names_in(folder: Path, address: HubAddress) -> list[str]:
    """Returns the files to copy. Raises UserError if a manifest is not that of a bundle."""
    try:
        manifest = read_manifest(folder)
    except UserError as error:
        raise UserError(f"{address} is not a bundle: it has another {MANIFEST}. Check the name.") from error
    names = manifest["files"]
    if others := [name for name in names if not may_hold(name)]:
        raise UserError(f"{address} cannot be used: its {MANIFEST} lists {list_some(others)}, which no bundle has.")
    return [*names, *card_files(manifest)]


def parse_name(name: str, branch: str | None) -> HubAddress:
    """Returns the address to push to. Raises UserError if it is malformed.

    Args:
        name: USER/NAME, or an address that begins with hf://.
        branch: the branch to write to; None for the one in the address or main.
    """
    address = parse_address(name if is_hub_address(name) else f"hf://{name}")
    if branch is not None:
        address = parse_address(f"hf://{address.repository}@{branch}")
    return address


def push(folder: Path, address: HubAddress, *, private: bool | None = None, message: str = "") -> str:
    """Copies a bundle to a repository in one commit, and creates the repository if there is none.

    Files that the bundle no longer has are removed. A card that was edited on the Hub is kept,
    unless the one of the bundle was edited, too. With an edited card, all pictures on the Hub are
    kept.

    Args:
        folder: the bundle.
        address: the repository, with the branch to write to.
        private: whether a new repository is private; by default, the Hub decides.
        message: the commit message.

    Returns:
        The address of the commit.

    Raises:
        UserError: if the repository holds anything else than a bundle, or cannot be written.
    """
    remote = open_remote(address, private)
    manifest = read_manifest(folder)
    names = {MANIFEST, *manifest["files"], *(name for name in card_files(manifest) if (folder / name).exists())}
    others = [name for name in remote.names if not (_is_ours(name) or name in ALLOWED)]
    if others and not {MANIFEST, CONFIG, WEIGHTS} <= remote.names:  # other software also writes manifests
        raise UserError(
            f"{address} holds {shown(min(others))}, so it is not a repository of a bundle. Push to another name."
        )
    is_edited_here = is_edited((folder / CARD).read_bytes(), manifest)
    is_kept = not is_edited_here and _has_edited_card(remote)
    if is_kept:
        names = {name for name in names if not is_card_file(name)}
        warn(f"The model card of {address} was edited, so it is kept with its license and its pictures.")
    removed = {name for name in remote.names - names if _is_ours(name)}
    if is_kept or is_edited_here:
        removed = {name for name in removed if not is_card_file(name)}
    return remote.write(folder, names, removed, message or "Upload a diffusion autoencoder")


def _is_ours(name: str) -> bool:
    return name == MANIFEST or may_hold(name) or is_card_file(name)


def _has_edited_card(remote: Remote) -> bool:
    """Returns whether someone has written or edited the card on the Hub."""
    if CARD not in remote.names:
        return False
    manifest: Any = {}
    if MANIFEST in remote.names:
        with contextlib.suppress(UserError):  # of a damaged manifest, which is replaced
            manifest = parse_json(remote.read(MANIFEST), Path(MANIFEST))
    return is_edited(remote.read(CARD), manifest if isinstance(manifest, dict) else {})
