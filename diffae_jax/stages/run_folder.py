"""The folder of a run: its config, its lock, and where each stage writes."""

import fcntl
import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any

from ml_collections import ConfigDict

from diffae_jax.config import differing_keys
from diffae_jax.errors import UserError
from diffae_jax.training.logging import is_main_process


class RunFolder:
    """A run's folder, held by one run at a time.

    Opening it writes config.json, or, where there is one, refuses a config that would give other results. Raises
    UserError for that, for a folder in use and for one that cannot be written.
    """

    def __init__(self, path: str | Path, config: ConfigDict):
        self.path = Path(path)
        self._lock = None
        self._config = json.loads(config.to_json())

    def __enter__(self) -> "RunFolder":
        if is_main_process():
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                self._lock = (self.path / ".lock").open("w")
            except OSError as error:
                raise UserError(f"{self.path} cannot be written ({error.strerror}): give another --workdir.") from error
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UserError(
                    f"{self.path} is in use by another run: wait for it, or give another --workdir."
                ) from error
        self._check_config()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._lock is not None:
            self._lock.close()

    def _check_config(self) -> None:
        path = self.path / "config.json"
        if path.exists():
            keys = differing_keys(json.loads(path.read_text()), self._config)
            if keys:
                raise UserError(
                    f"{self.path} holds a run of another config ({'; '.join(keys)}): "
                    f"give another --workdir, or the old values to go on with that run."
                )
        if is_main_process():
            write_json(path, self._config)


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file that is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(".tmp")
    with scratch.open("w") as file:
        file.write(json.dumps(value, indent=2) + "\n")
        file.flush()
        os.fsync(file.fileno())
    scratch.replace(path)
