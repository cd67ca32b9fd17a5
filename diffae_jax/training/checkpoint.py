"""Checkpoints of a run, written in the background. Only this file uses Orbax.

A step is first written to a folder STEP.tmp, with a manifest, and then published: renamed on a
disk, uploaded to a bucket with the manifest last. So a step is complete or does not exist, even if
the process is killed.

Orbax writes to and reads from disks only: it knows no S3. So a step of a bucket has a copy in the
cache on this machine. Orbax merges the files of all processes, for which they need a common disk.
Without one, process 0 writes the whole state.
"""

import contextlib
import functools
import itertools
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax

from diffae_jax.models.functional import flatten
from diffae_jax.runtime import interrupts
from diffae_jax.runtime.buckets import BucketPath
from diffae_jax.runtime.cluster import check_equal_on_all, is_main_process, together
from diffae_jax.runtime.console import warn
from diffae_jax.runtime.errors import UserError, shown
from diffae_jax.runtime.files import (
    DAMAGED,
    UNFINISHED,
    AnyPath,
    local_copy,
    names_below,
    os_errors_as_user_errors,
    publish,
    reason_of,
    remove_folder,
    set_aside,
    working_folder,
)
from diffae_jax.runtime.logs import quiet_libraries
from diffae_jax.runtime.sharding import on_host
from diffae_jax.training import manifest
from diffae_jax.training.manifest import Digests
from diffae_jax.training.packing import SMALL, Packing, are_packed
from diffae_jax.training.state import Params, TrainState

NUM_KEPT = 2  # checkpoints
LONGEST_WAIT = 600  # seconds for the other processes, whose storage may be slow


@functools.cache
def _orbax() -> Any:
    """Imports Orbax at first use, because the import takes half a second and logs messages."""
    with quiet_libraries():
        from orbax.checkpoint import v1
    return v1


def _saving() -> Any:
    """Returns the context of a save.

    Folders are created first. Threads that wait for them would outlive an error by minutes.
    """
    context = _orbax().Context()
    context.asynchronous.create_directories_asynchronously = False
    return context


class Checkpoints:
    """The checkpoints in a folder, by step. Each is written atomically, in the background.

    Attributes:
        latest: The newest complete step, or None.
    """

    def __init__(self, folder: AnyPath):
        self._folder, self._on_disk = folder.absolute(), isinstance(folder, Path)
        if is_main_process():
            with os_errors_as_user_errors(folder, "written"):
                self._folder.mkdir(parents=True, exist_ok=True)
                remove_unfinished(self._folder)
        self.latest = latest_step(self._folder)
        check_equal_on_all({f"the newest step in {folder}": self.latest}, "Check that all machines share the folder")
        # Orbax would create a folder that was moved again; here process 0 has created it
        self._identity = _identity(self._folder)
        self._thread = ThreadPoolExecutor(1)
        self._save: Future[None] | None = None

    def save(self, step: int, state: TrainState, window: dict[str, Any]) -> None:
        """Saves the state and the sums of an unfinished report in the background.

        Returns when the arrays have been copied from the devices. Raises UserError if this save
        cannot start, or if the one before failed.
        """
        self.wait()
        if self.latest == step:
            return
        if _identity(self._folder) != self._identity:
            raise UserError(
                f"{self._folder} does not exist any more, so training stopped. Do not move the folder of a run that "
                f"is in progress."
            )
        scratch, digests = working_folder(self._folder / str(step)), manifest.digest_arrays(state)
        if jax.process_count() > 1 and not self._on_disk:
            state = on_host(state)
        with self._failures_end_training(step), _saving():
            response = _orbax().save_checkpointables_async(
                scratch, {"state": state, "window": window}, custom_metadata=manifest.PROMISE
            )
        self._save = self._thread.submit(self._complete, step, scratch, response, digests)

    def _complete(self, step: int, scratch: AnyPath, response: Any, digests: Digests) -> None:
        """Waits for Orbax, writes the manifest, publishes the step and removes old steps."""
        final, process = self._folder / str(step), jax.process_index()
        num_processes = jax.process_count() if self._on_disk else 1  # that have written files
        with self._failures_end_training(step):
            response.result()
            if process and self._on_disk:
                manifest.write_part(scratch, process)
                _wait_until(final.exists, scratch)
            elif not process:
                _wait_until(lambda: manifest.parts_are_written(scratch, num_processes), scratch)
                manifest.write_manifest(scratch, num_processes, digests)
                publish(scratch, final)
        self.latest = step
        if not process:
            self._remove_old_steps()

    def _remove_old_steps(self) -> None:
        for old in steps_in(self._folder)[:-NUM_KEPT]:
            path = self._folder / str(old)
            try:
                remove_folder(path)
            except OSError as error:
                warn(f"WARNING: the old checkpoint {path} cannot be removed ({reason_of(error)}).")

    @contextlib.contextmanager
    def _failures_end_training(self, step: int) -> Iterator[None]:
        """Raises UserError for any error of a save, and removes what it has written so far.

        Other processes that wait for this one then fail, too.
        """
        try:
            yield
        except jax.errors.JaxRuntimeError:  # of the training step before, such as too little memory
            raise
        except Exception as error:  # Orbax and TensorStore raise errors of any type
            interrupts.stuck.set()  # threads of Orbax may now wait forever
            scratch = working_folder(self._folder / str(step))
            for unfinished in scratch.parent.glob(f"{scratch.name}*"):
                shutil.rmtree(unfinished, ignore_errors=True)
            kept = "nothing has been saved yet" if self.latest is None else f"step {self.latest:,} is saved"
            raise UserError(
                f"The checkpoint of step {step:,} cannot be written to {self._folder} ({reason_of(error)}), so "
                f"training stopped; {kept}. Make sure that the folder can be written and has space, then run the same "
                f"command again."
            ) from error

    def check(self) -> None:
        """Raises UserError if a save has failed. Other processes notice the end of this one."""
        if self._save is not None and self._save.done() and (error := self._save.exception()):
            raise error

    def wait(self) -> None:
        """Waits until all saves are complete. Raises UserError if one failed, on all processes."""
        save, self._save = self._save, None
        if save is not None:
            with together():
                save.result()

    def restore(
        self, step: int, abstract_state: Any, unpacked_state: Any = None, packing: Packing | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Returns (state, window) of a step: see the function `restore`."""
        return restore(self._folder / str(step), abstract_state, unpacked_state, packing)

    def close(self) -> None:
        """Waits for all saves and ends the thread."""
        self._thread.shutdown()


def restore(
    step: AnyPath, abstract_state: Any, unpacked_state: Any = None, packing: Packing | None = None
) -> tuple[Any, dict[str, Any]]:
    """Returns (state, window) of the folder of a step, with the shardings of `abstract_state`.

    If an older version saved the state as `unpacked_state`, it is packed. Nothing is written.
    Raises UserError if the step is damaged.
    """
    with local_copy(step.absolute()) as path:
        with damage_as_user_error(path):
            is_older = packing is not None and not are_packed(_ema_shapes(path))
            wanted = unpacked_state if is_older else abstract_state
            loaded = _orbax().load_checkpointables(path, {"state": wanted, "window": None})
        state = loaded["state"]
        manifest.check_arrays(path, state)
    if is_older:
        shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_state)
        state = jax.jit(packing.pack_state, out_shardings=shardings)(state)
    return state, loaded["window"]


def _wait_until(condition: Callable[[], bool], scratch: AnyPath) -> None:
    """Waits for other processes. Raises OSError if one has failed, which removes `scratch`."""
    deadline = time.monotonic() + LONGEST_WAIT
    while not condition():
        if not scratch.exists() and not condition():
            raise OSError("another process failed")
        if time.monotonic() > deadline:
            raise TimeoutError(f"another process did not write its part in {LONGEST_WAIT} s")
        time.sleep(0.01)


def remove_unfinished(folder: AnyPath) -> None:
    """Removes steps that a killed process has begun to write or to remove."""
    if isinstance(folder, Path):
        patterns = (f"*{UNFINISHED}*", "*.orbax-checkpoint-tmp*")  # the second by older versions
        unfinished = itertools.chain(*map(folder.glob, patterns))
    else:
        shutil.rmtree(working_folder(folder / "0").parent, ignore_errors=True)
        unfinished = (path for path in folder.iterdir() if path.name.isdecimal() and not is_complete(path))
    for path in unfinished:
        remove_folder(path) if isinstance(path, BucketPath) else shutil.rmtree(path)


def is_complete(step: AnyPath) -> bool:
    """Returns whether a step is complete. On a disk, only such a step has a number as its name."""
    return isinstance(step, Path) or (step / manifest.MANIFEST).exists() or not manifest.has_manifest(step)


def _identity(folder: AnyPath) -> tuple[int, int] | None:
    """Returns numbers that identify a folder on a disk, wherever it is moved, or None if missing.

    A folder in a bucket cannot be moved. It has no identity.
    """
    if not isinstance(folder, Path):
        return None
    try:
        status = folder.stat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def steps_in(folder: AnyPath) -> list[int]:
    """Returns the complete steps in a checkpoint folder, in order."""
    return sorted(int(path.name) for path in folder.glob("[0-9]*") if path.name.isdecimal() and is_complete(path))


def latest_step(folder: AnyPath) -> int | None:
    """Returns the newest step in a checkpoint folder, or None."""
    return max(steps_in(folder), default=None)


def find_undamaged(folder: AnyPath) -> tuple[int | None, dict[int, str]]:
    """Returns the newest undamaged step of a checkpoint folder, and what is wrong with newer ones.

    Raises UserError if no step is undamaged, or if a file cannot be read.
    """
    damages: dict[int, str] = {}
    for step in reversed(steps_in(folder)):
        path = folder / str(step)
        if not manifest.has_manifest(path):
            _warn_of_no_manifest(path)
            return step, damages
        with os_errors_as_user_errors(path), local_copy(path) as local:
            status = tuple(_status(local / name) for name in names_below(local))
            damage = _damage_of(local, status)
            damage = damage and damage.replace(str(local), str(path))
        if isinstance(path, BucketPath):
            _remove_old_copies(local.parent, folder)
        if damage is None:
            return step, damages
        damages[step] = damage
    if damages:
        raise UserError(
            f"No checkpoint in {folder} is undamaged: {damages[max(damages)]}. Restore the folder from a copy, or "
            f"remove it to start this stage again."
        )
    return None, damages


def _remove_old_copies(copies: Path, folder: BucketPath) -> None:
    """Removes the copies of steps that are no longer in a bucket."""
    steps = set(map(str, steps_in(folder)))
    for copy in copies.iterdir():
        if copy.name not in steps:
            shutil.rmtree(copy, ignore_errors=True)


@functools.cache  # once
def _warn_of_no_manifest(path: AnyPath) -> None:
    warn(f"{path} was written by an older version, without a manifest, so its files cannot be checked.")


def _status(file: AnyPath) -> tuple[str, int, int]:
    status = file.stat()
    return str(file), status.st_size, status.st_mtime_ns


@functools.lru_cache(maxsize=16)  # the stages of a run load the same step again and again
def _damage_of(path: AnyPath, files: tuple[tuple[str, int, int], ...]) -> str | None:
    return manifest.damage_of(path)


def set_aside_damaged(folder: AnyPath) -> None:
    """Renames damaged steps of a checkpoint folder that are newer than its newest undamaged one.

    Raises UserError if no step is undamaged, or if one cannot be renamed.
    """
    step, damages = find_undamaged(folder)
    for damaged, damage in damages.items():
        with os_errors_as_user_errors(folder, "written"):
            target = set_aside(folder / str(damaged))
        warn(
            f"WARNING: the checkpoint of step {damaged:,} is damaged: {damage}. It was renamed to {target}, and step "
            f"{step:,} is used instead. Check the disk."
        )


def was_set_aside(folder: AnyPath, step: int) -> bool:
    """Returns whether a step of a checkpoint folder was damaged and is set aside."""
    return (folder / f"{step}{DAMAGED}").exists()


@contextlib.contextmanager
def damage_as_user_error(path: AnyPath) -> Iterator[None]:
    """Converts any error of reading a step into a UserError.

    Only a step without a manifest may be damaged: the files of others have been checked.
    """
    try:
        with quiet_libraries():
            yield
    except (UserError, MemoryError, jax.errors.JaxRuntimeError):
        raise
    except Exception as error:  # the exception of Orbax depends on which byte is damaged
        if manifest.has_manifest(path):
            raise UserError(
                f"{path} cannot be restored ({reason_of(error)}), although its files are intact. Check the disk, and "
                f"that the versions of orbax-checkpoint and jax are those that wrote it."
            ) from error
        raise UserError(f"{path} is damaged: remove it to use the checkpoint before it.") from error


def load_ema(folder: AnyPath, abstract_params: Params) -> tuple[Params, int, dict[int, str]]:
    """Returns the EMA weights of the newest undamaged checkpoint, its step, and what is damaged.

    The weights are host arrays. The last is what is wrong with each newer step. Nothing else is
    read, and nothing is written: the run may continue at the same time. Raises UserError if there
    is no undamaged checkpoint, or if it holds a different model.
    """
    step, damages = find_undamaged(folder)
    if step is None:
        raise UserError(
            f"{folder} holds no checkpoint yet: run the stage that writes it (--stages={folder.parent.name}), or "
            f"wait for its first save."
        )
    for damaged, damage in damages.items():
        warn(
            f"WARNING: the checkpoint of step {damaged:,} is damaged: {damage}. Step {step:,} is used instead. Check "
            f"the disk."
        )
    with local_copy(folder.absolute() / str(step)) as path:
        return _load_ema(path, folder, abstract_params), step, damages


def _load_ema(path: Path, folder: AnyPath, abstract_params: Params) -> Params:
    packing = Packing(abstract_params)
    with damage_as_user_error(path):
        saved = _ema_shapes(path)
    is_older = not are_packed(saved)
    abstract = abstract_params if is_older else packing.pack_abstract()
    expected = _shapes(abstract)
    differing = sorted(name for name in saved.keys() | expected.keys() if saved.get(name) != expected.get(name))
    if differing:
        example, *_ = differing[0].split(f".{SMALL}")  # the name of a vector tells a user nothing
        raise UserError(
            f"{folder} holds a model that does not match the run's config.json, for example in {shown(example)}. "
            f"Restore the config.json that it was trained with."
        )
    ocp = _orbax()
    partial_context = ocp.Context()
    partial_context.pytree.loading.partial_load = True
    with damage_as_user_error(path), partial_context:
        state = ocp.load_checkpointables(path, {"state": {"ema": abstract}})["state"]
    manifest.check_arrays(path, state)
    ema = on_host(state["ema"])
    return ema if is_older else packing.unpack(ema)


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    return {name: tuple(leaf.shape) for name, leaf in flatten(tree).items()}


def _ema_shapes(path: AnyPath) -> dict[str, tuple[int, ...]]:
    """Returns the shape of each EMA weight of a step, by dotted name."""
    metadata = _orbax().checkpointables_metadata(path).metadata["state"]
    return _shapes(metadata["ema"])
