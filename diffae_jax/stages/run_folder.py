"""The folder of a run: its config, its lock, and where each stage writes."""

import fcntl
import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from diffae_jax.config import differing_keys, from_json
from diffae_jax.errors import UserError
from diffae_jax.training.logging import is_main_process, say


class RunFolder:
    """A run's folder, held by one run at a time.

    Opening it writes config.json, or, where there is one, refuses a config that would give other results. Raises
    UserError for that, for a folder in use and for one that cannot be written.
    """

    def __init__(self, path: str | Path, config: ConfigDict):
        self.path = Path(path)
        self._lock = None
        self._config = config

    def __enter__(self) -> "RunFolder":
        problem = None
        if is_main_process():
            try:
                self._open()
            except UserError as error:
                problem = str(error)
            except OSError as error:
                problem = f"{self.path} cannot be written ({error.strerror}): give another --workdir."
        if jax.process_count() > 1:
            refused = multihost_utils.broadcast_one_to_all(np.asarray(problem is not None))
            if refused and problem is None:
                problem = "The first process refused the run; its message says why."
        if problem is not None:
            raise UserError(problem)
        return self

    def _open(self) -> None:
        """Locks the folder and writes its config. Raises UserError or OSError for what is in the way of that."""
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = (self.path / ".lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"{self.path} is in use by another run: wait for it, or give another --workdir.") from error
        except OSError:
            say(f"WARNING: the file system of {self.path} has no locks: see to it that no other run uses the folder.")
        path = self.path / "config.json"
        if path.exists() and latest_step(self.path) is not None:  # before there are any, a config can still be mended
            keys = differing_keys(from_json(path).to_dict(), self._config.to_dict())
            if keys:
                raise UserError(
                    f"{self.path} holds a run of another config ({'; '.join(keys)}): "
                    f"give another --workdir, or the old values to go on with that run."
                )
        write_json(path, json.loads(self._config.to_json()))

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._lock is not None:
            self._lock.close()


def latest_step(path: Path) -> int | None:
    """Returns the step of the newest checkpoint of a run folder; None before the first."""
    names = [folder.name for folder in (path / "autoencoder" / "checkpoints").glob("[0-9]*")]
    return max((int(name) for name in names if name.isdigit()), default=None)


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file that is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(".tmp")
    with scratch.open("w") as file:
        file.write(json.dumps(value, indent=2) + "\n")
        file.flush()
        os.fsync(file.fileno())
    scratch.replace(path)
