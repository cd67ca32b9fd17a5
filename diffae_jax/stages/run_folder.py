"""The run folder: its config, its lock, and a record of each stage's inputs."""

import errno
import json
from pathlib import Path
from types import TracebackType
from typing import Any

from filelock import FileLock, Timeout
from ml_collections import ConfigDict

from diffae_jax.config import differing_keys, from_json
from diffae_jax.config.differences import shapes_networks
from diffae_jax.data.latents import INPUTS, read_inputs
from diffae_jax.runtime.bucket_lock import BucketLock, BucketLockedError
from diffae_jax.runtime.buckets import BucketPath
from diffae_jax.runtime.cluster import is_main_process, together
from diffae_jax.runtime.console import say
from diffae_jax.runtime.errors import UnavailableError, UserError, shown
from diffae_jax.runtime.files import AnyPath, expand_home, os_errors_as_user_errors, write_json
from diffae_jax.runtime.interrupts import RESUME
from diffae_jax.training.checkpoint import latest_step

LOCK = ".lock"
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)  # raised on file systems without locks


def is_begun(folder: AnyPath) -> bool:
    """Returns whether a run has a checkpoint. From then on, its images and config are fixed."""
    return latest_step(folder / "autoencoder" / "checkpoints") is not None


def workdir_of(workdir: str | AnyPath | None, config: ConfigDict, branch: str | None = None) -> AnyPath:
    """Returns the run folder; by default `runs/NAME`, with the `name` of the config.

    The folder of a branch is next to it. Raises UserError if `branch` cannot be its name.
    """
    folder = expand_home(workdir or Path("runs") / config.name)
    if branch is None:
        return folder
    if branch in ("", "..") or Path(branch).name != branch:
        raise UserError(f"--branch={shown(branch)} must be the name of a new run, such as --branch={folder.name}2.")
    return folder.parent / branch


def name_of(folder: AnyPath, config: ConfigDict) -> str:
    """Returns the name of a run that has begun, or the one in the config.

    A run that is resumed by its folder keeps its name.
    """
    path = folder / "config.json"
    return from_json(path).name if path.exists() and is_begun(folder) else config.name


def saved_steps(folder: AnyPath) -> str:
    """Returns a sentence about the checkpoints of a run and how to resume it."""
    steps = {stage: latest_step(folder / stage / "checkpoints") for stage in ("autoencoder", "prior")}
    saved = [f"Step {step:,} of the {stage}" for stage, step in steps.items() if step is not None]
    if not saved:
        return "No step is saved yet: run the same command again."
    return f"{' and '.join(saved)} {'is' if len(saved) == 1 else 'are'} saved. {RESUME}"


def _lock_of(path: AnyPath) -> FileLock | BucketLock:
    if isinstance(path, BucketPath):
        return BucketLock(path)
    # the operating system frees its lock when a process dies; a marker file would remain
    return FileLock(path, blocking=False, thread_local=False, fallback_to_soft=False)


class RunFolder:
    """The folder of a run, locked so that only one run uses it at a time.

    Entering the context writes config.json. It raises UserError if the folder holds a run with
    a different config, is in use, or cannot be written.
    """

    def __init__(self, path: str | AnyPath, config: ConfigDict):
        self.path = expand_home(path)
        self._lock = _lock_of(self.path / LOCK)
        self._config = config
        self._before: tuple[str, list[int | None]] | None = None  # config.json and latest steps before this run

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
            self._lock.release()  # now: a notebook keeps the exception, and thus this lock, alive
            raise

    def _take_lock(self) -> None:
        """Locks the folder. Raises UnavailableError if another run holds the lock."""
        try:
            self._lock.acquire()
        except (Timeout, BucketLockedError) as error:
            holder = f" ({error})" if isinstance(error, BucketLockedError) else ""
            raise UnavailableError(
                f"{self.path} is in use by another run{holder}: wait for it, or set a different --workdir."
            ) from error
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            say(f"WARNING: the file system of {self.path} has no locks: make sure that no other run uses the folder.")

    def _write_config(self) -> None:
        """Writes config.json. Raises UserError if the run has a different config."""
        path = self.path / "config.json"
        if path.exists() and is_begun(self.path):
            self._check_unchanged(from_json(path).to_dict())  # without a checkpoint, any change is allowed
            self._before = path.read_text(), self._steps()
        write_json(path, json.loads(self._config.to_json()))

    def _check_unchanged(self, old: dict[str, Any]) -> None:
        """Raises UserError if the config differs from that of the run.

        Keys of the prior may change until the prior has a checkpoint.
        """
        prior = self.path / "prior"
        prior_has_checkpoint = latest_step(prior / "checkpoints") is not None
        keys = differing_keys(old, self._config.to_dict(), () if prior_has_checkpoint else ("prior",))
        if keys:
            names = [key.partition(":")[0] for key in keys]
            fix = "To resume, use the old values. Otherwise set a different --workdir"
            if all(name.startswith("prior.") for name in names):
                fix += f", or remove {prior} to train a new prior for the same autoencoder"
            elif any(map(shapes_networks, names)):
                fix += f", with --init={self.path} to start from the weights that fit"
            else:
                fix += ", or continue with the new ones in a new run: add --branch=NAME"
            raise UserError(f"{self.path} holds a run with a different config ({'; '.join(keys)}). {fix}.")

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if isinstance(error, UserError) and self._before is not None and self._before[1] == self._steps():
                # a stage refused the new config before it wrote a checkpoint
                with os_errors_as_user_errors(self.path, "written"):
                    write_json(self.path / "config.json", json.loads(self._before[0]))
        finally:
            self._lock.release()

    def _steps(self) -> list[int | None]:
        return [latest_step(self.path / stage / "checkpoints") for stage in ("autoencoder", "prior")]


def check_inputs(folder: AnyPath, inputs: dict[str, Any]) -> None:
    """Records the inputs of a stage. Raises UserError if its folder has different inputs."""
    with together():
        if is_main_process():
            _check_inputs(folder, inputs)


def _check_inputs(folder: AnyPath, inputs: dict[str, Any]) -> None:
    record = folder / INPUTS
    if not record.exists():
        if folder.is_dir() and any(folder.iterdir()):
            raise UserError(f"{folder} has no {INPUTS}, so its inputs are unknown: remove that folder.")
        write_json(record, inputs)
        return
    recorded = read_inputs(folder)
    changed = [name for name in inputs if inputs[name] != recorded.get(name)]
    if changed:
        differences = [f"{name}: {recorded.get(name)!s:.16} then, {inputs[name]!s:.16} now" for name in changed]
        raise UserError(
            f"{folder} was made from different inputs ({'; '.join(differences)}): "
            f"remove that folder to create it again, or set a different --workdir."
        )
