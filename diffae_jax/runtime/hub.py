"""Repositories of models on the Hugging Face Hub: hf://USER/NAME or hf://USER/NAME@REVISION.

huggingface_hub transfers the files. It keeps the cache, finds the token of the user and obeys its
environment variables, such as HF_HOME, HF_ENDPOINT and HF_HUB_OFFLINE.
"""

import contextlib
import dataclasses
import errno
import glob
import importlib.util
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

from diffae_jax.runtime.errors import UserError, shown
from diffae_jax.runtime.files import reason_of

SCHEME = "hf:/"  # a Path turns hf:// into hf:/
ADDRESS = re.compile(r"hf:/{1,2}([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", re.ASCII)
NOT_MODELS = ("datasets/", "spaces/", "buckets/")
LOG_IN = "log in with `hf auth login`, with a token that may"  # read or write


@dataclasses.dataclass(frozen=True)
class HubAddress:
    """A repository of a model, at a revision.

    Attributes:
        repository: USER/NAME.
        revision: a branch, a tag or a commit; None for the branch main.
    """

    repository: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"hf://{self.repository}" + (f"@{self.revision}" if self.revision else "")


def is_hub_address(path: str | os.PathLike) -> bool:
    """Returns whether a path is meant as an address on the Hub."""
    return os.fspath(path).startswith(SCHEME)


def parse_address(text: str | os.PathLike) -> HubAddress:
    """Parses hf://USER/NAME or hf://USER/NAME@REVISION. Raises UserError for any other text."""
    match = ADDRESS.fullmatch(os.fspath(text))
    if match is None or match[1].startswith(NOT_MODELS):
        raise UserError(
            f"{shown(os.fspath(text))} is not the address of a model. Write hf://USER/NAME or hf://USER/NAME@REVISION."
        )
    return HubAddress(match[1], match[2])


def check_installed() -> None:
    """Raises UserError if huggingface_hub is not installed."""
    if importlib.util.find_spec("huggingface_hub") is None:
        raise UserError('hf:// needs huggingface_hub, which is not installed: pip install "diffae_jax[hub]".')


def download(address: HubAddress, marker: str, names_in: Callable[[Path], Collection[str]]) -> Path:
    """Copies a folder to the cache of huggingface_hub, without what is already there.

    Args:
        address: the repository.
        marker: the file that is copied first.
        names_in: returns the names of the other files to copy, given the folder with the marker.

    Returns:
        The folder in the cache. It may hold more files, from earlier calls.

    Raises:
        UserError: if there is no such repository, revision or marker, or if the network or the
            disk fails.
    """
    check_installed()
    from huggingface_hub import hf_hub_download, snapshot_download

    with _errors_as_user_errors(address, "read"), _quiet():
        first = Path(hf_hub_download(address.repository, marker, revision=address.revision))
    patterns = [glob.escape(name) for name in names_in(first.parent)]
    with _errors_as_user_errors(address, "read"), _quiet():  # the same commit, even if the branch has moved
        return Path(snapshot_download(address.repository, revision=first.parent.name, allow_patterns=patterns))


@dataclasses.dataclass(frozen=True)
class Remote:
    """The files of a repository at a commit."""

    address: HubAddress
    commit: str
    names: frozenset[str]

    def read(self, name: str) -> bytes:
        """Returns the content of a small file. Raises UserError if it cannot be read."""
        from huggingface_hub import hf_hub_download

        with _errors_as_user_errors(self.address, "read"), _quiet():
            return Path(hf_hub_download(self.address.repository, name, revision=self.commit)).read_bytes()

    def write(self, folder: Path, names: Collection[str], removed: Collection[str], message: str) -> str:
        """Copies files of a folder here and removes others, in one commit.

        Creates the branch if it does not exist. Returns the address of the commit.

        Raises UserError if nothing could be committed.
        """
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

        operations = [
            *(CommitOperationDelete(name) for name in sorted(removed)),
            *(CommitOperationAdd(name, folder / name) for name in sorted(names)),
        ]
        api, name, branch = HfApi(), self.address.repository, self.address.revision
        with _errors_as_user_errors(self.address, "write"), _quiet():
            if branch is not None:
                api.create_branch(name, branch=branch, revision=self.commit, exist_ok=True)
            done = api.create_commit(
                name,
                operations,
                commit_message=message,
                revision=branch,
                parent_commit=self.commit,
            )
        return done.commit_url


def open_remote(address: HubAddress, private: bool | None) -> Remote:
    """Opens a repository to write to it. Creates it if it does not exist.

    If its branch does not exist, these are the files of main.

    Raises UserError if that fails, or if an existing repository is public and `private` is set, or
    the reverse.
    """
    check_installed()
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RevisionNotFoundError

    api, name = HfApi(), address.repository
    with _errors_as_user_errors(address, "write"), _quiet():
        api.create_repo(name, private=private, exist_ok=True)
        is_private = api.model_info(name).private
        if private is not None and is_private is not None and is_private != private:
            kinds = ("private", "public") if is_private else ("public", "private")
            raise UserError(
                f"{address} exists and is {kinds[0]}, not {kinds[1]}. Change that in its settings on the Hub, or push "
                f"to another name."
            )
        try:
            info = api.model_info(name, revision=address.revision)
        except RevisionNotFoundError:
            info = api.model_info(name)
    return Remote(address, info.sha, frozenset(file.rfilename for file in info.siblings or ()))


@contextlib.contextmanager
def _errors_as_user_errors(address: HubAddress, verb: str) -> Iterator[None]:
    """Converts any error of huggingface_hub into a UserError. `verb` is read or write."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # the library and those it uses raise errors of many types
        raise UserError(_message(error, address, verb)) from error


def _message(error: Exception, address: HubAddress, verb: str) -> str:
    from huggingface_hub import constants, errors

    name, cause = f"hf://{address.repository}", error.__cause__ or error
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.HFValidationError):
        return f"{address} is not the address of a model ({_text(error)}). Write hf://USER/NAME."
    if isinstance(error, errors.GatedRepoError):
        return f"{name} asks for consent to its terms. Give it on the page of the model, then {LOG_IN} {verb} it."
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{name} has no revision {shown(address.revision)}. Use the name of a branch, a tag or a commit."
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"{name} does not exist, or you may not {verb} it. Check the name. If it is private, {LOG_IN} {verb} it."
    if isinstance(error, errors.LocalTokenNotFoundError) or status in (401, 403):
        return f"You may not {verb} {name}. Check the name, and {LOG_IN} {verb} it."
    if isinstance(error, errors.LocalEntryNotFoundError) or isinstance(cause, errors.OfflineModeIsEnabled):
        if constants.HF_HUB_OFFLINE:
            where = f"is not in the cache {constants.HF_HUB_CACHE}" if verb == "read" else "cannot be written"
            return f"{address} {where}, and HF_HUB_OFFLINE forbids the network. Unset HF_HUB_OFFLINE."
        return f"{address} is not in the cache, and {constants.ENDPOINT} does not answer. Check the network."
    if isinstance(error, errors.EntryNotFoundError):
        return f"{address} is not a bundle: it has no {shown(_file_of(error))}. Check the name."
    if status is not None:
        reason = shown(str(getattr(error, "server_message", None) or f"code {status}"))
        return f"{address} cannot be {_participle(verb)}: the Hub answers with {status} ({reason}). Try again later."
    if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
        return (
            f"{address} cannot be copied to {constants.HF_HUB_CACHE} ({reason_of(cause)}). Free space there, or set "
            f"HF_HOME to another folder."
        )
    if {"TransportError", "ConnectionError", "TimeoutError"} & {kind.__name__ for kind in type(error).__mro__}:
        return f"{constants.ENDPOINT} does not answer ({_text(error)}). Check the network."
    return f"{address} cannot be {_participle(verb)} ({_text(error)}). Check the name and the network."


def _text(error: Exception) -> str:
    return shown(str(error)).rstrip(".")


def _participle(verb: str) -> str:
    return {"read": "read", "write": "written"}[verb]


def _file_of(error: Exception) -> str:
    """Returns the name of the file that is missing, from the address in the answer of the Hub."""
    address = str(getattr(getattr(error, "response", None), "url", ""))
    return re.sub(r".*/resolve/[^/]*/", "", address) or "such file"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hides messages of the library, which errors repeat; outside a terminal, also its bars."""
    import huggingface_hub

    logger: Any = logging.getLogger("huggingface_hub")
    level, bars = logger.level, huggingface_hub.utils
    hide = not sys.stderr.isatty() and not bars.are_progress_bars_disabled()
    try:
        logger.setLevel(logging.CRITICAL)
        if hide:
            bars.disable_progress_bars()
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logger.setLevel(level)
        if hide:
            bars.enable_progress_bars()
