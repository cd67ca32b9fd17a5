"""The folder of a run: its config, its lock, and where each stage writes."""

import errno
import json
from pathlib import Path
from types import TracebackType
from typing import Any

from filelock import FileLock, Timeout
from ml_collections import ConfigDict

from diffae_jax.config import differing_keys, from_json
from diffae_jax.data.latents import INPUTS, read_inputs
from diffae_jax.runtime.cluster import is_main_process, together
from diffae_jax.runtime.console import say
from diffae_jax.runtime.errors import UserError
from diffae_jax.runtime.files import os_errors_as_user_errors, write_json
from diffae_jax.training.checkpoint import latest_step

NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)  # what file systems without locks answer


def is_begun(folder: Path) -> bool:
    """Whether a run has a checkpoint, from which on its images and most of its config stay as they are."""
    return latest_step(folder / "autoencoder" / "checkpoints") is not None


class RunFolder:
    """A run's folder, held by one run at a time.

    Opening it writes config.json, or, where there is one, refuses a config that would give other results. Raises
    UserError for that, for a folder in use and for one that cannot be written.
    """

    def __init__(self, path: str | Path, config: ConfigDict):
        self.path = Path(path)
        # the system's lock, which dies with its process; a marker file would outlive a killed one
        self._lock = FileLock(self.path / ".lock", blocking=False, thread_local=False, fallback_to_soft=False)
        self._config = config
        self._before: tuple[str, list[int | None]] | None = None  # config.json and the steps that there were

    def __enter__(self) -> "RunFolder":
        with together():
            if is_main_process():
                with os_errors_as_user_errors(self.path, "written"):
                    self._open()
        return self

    def _open(self) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        self._take_lock()
        try:
            self._write_config()
        except BaseException:
            self._lock.release()  # a notebook keeps the error, and with it this object
            raise

    def _take_lock(self) -> None:
        """Locks the folder. Raises UserError where another run holds it."""
        try:
            self._lock.acquire()
        except Timeout as error:
            raise UserError(f"{self.path} is in use by another run: wait for it, or give another --workdir.") from error
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            say(f"WARNING: the file system of {self.path} has no locks: see to it that no other run uses the folder.")

    def _write_config(self) -> None:
        """Writes config.json. Raises UserError where the run was begun with a config of other results."""
        path = self.path / "config.json"
        if path.exists() and is_begun(self.path):
            self._check_unchanged(from_json(path).to_dict())  # before a checkpoint, a config can still be mended
            self._before = path.read_text(), self._steps()
        write_json(path, json.loads(self._config.to_json()))

    def _check_unchanged(self, old: dict[str, Any]) -> None:
        """Raises UserError where the config differs from that of the run; the prior's keys count once it is trained."""
        prior = self.path / "prior"
        prior_is_begun = latest_step(prior / "checkpoints") is not None
        keys = differing_keys(old, self._config.to_dict(), () if prior_is_begun else ("prior",))
        if keys:
            remedy = "give another --workdir, or the old values to go on with that run"
            if all(key.startswith("prior.") for key in keys):
                remedy += f"; removing {prior} makes room for another prior of the same autoencoder"
            raise UserError(f"{self.path} holds a run of another config ({'; '.join(keys)}): {remedy}.")

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if isinstance(error, UserError) and self._before is not None and self._before[1] == self._steps():
                # a stage refused what was asked for, and nothing was made with the new config
                write_json(self.path / "config.json", json.loads(self._before[0]))
        finally:
            self._lock.release()

    def _steps(self) -> list[int | None]:
        return [latest_step(self.path / stage / "checkpoints") for stage in ("autoencoder", "prior")]


def check_inputs(folder: Path, inputs: dict[str, Any]) -> None:
    """Records what a stage's folder is made from. Raises UserError where it was begun from something else."""
    with together():
        if is_main_process():
            _check_inputs(folder, inputs)


def _check_inputs(folder: Path, inputs: dict[str, Any]) -> None:
    record = folder / INPUTS
    if not record.exists():
        if folder.is_dir() and any(folder.iterdir()):
            raise UserError(f"{folder} has no {INPUTS}, so nothing tells what it was made from: remove that folder.")
        write_json(record, inputs)
        return
    began_with = read_inputs(folder)
    changed = [name for name in inputs if inputs[name] != began_with.get(name)]
    if changed:
        then_and_now = [f"{name}: {began_with.get(name)!s:.16} then, {inputs[name]!s:.16} now" for name in changed]
        raise UserError(
            f"{folder} was made from something else than there is now ({'; '.join(then_and_now)}): "
            f"remove that folder to make it anew, or give another --workdir."
        )
