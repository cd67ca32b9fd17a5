"""Checkpoints of a run, written in the background. Only this file uses Orbax."""

import contextlib
import functools
import shutil
from pathlib import Path
from typing import Any

from diffae_jax.models.functional import flatten
from diffae_jax.runtime.cluster import is_main_process
from diffae_jax.runtime.errors import UserError, shown
from diffae_jax.runtime.logs import preserve_root_logger
from diffae_jax.training.state import Params, TrainState

NUM_KEPT = 2  # checkpoints


@functools.cache
def _orbax() -> Any:
    """Imports Orbax at first use, because the import takes half a second and logs messages."""
    with preserve_root_logger():
        from orbax.checkpoint import v1
    return v1


class Checkpoints:
    """The checkpoints in a folder, by step. Each is written atomically."""

    def __init__(self, folder: Path, read_only: bool = False):
        if not read_only and is_main_process():  # a reader must not remove a save in progress
            # Remove unfinished saves here. Orbax's own thread fails if the program ends first.
            for unfinished in folder.glob("*.orbax-checkpoint-tmp*"):
                shutil.rmtree(unfinished)
        ocp = _orbax()
        self._checkpointer = ocp.training.Checkpointer(
            folder.absolute(),
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(
                1
            ),  # the caller decides when to save
            preservation_policy=ocp.training.preservation_policies.LatestN(NUM_KEPT),
        )

    @property
    def latest(self) -> int | None:
        """The newest complete step, or None."""
        latest = self._checkpointer.latest
        return None if latest is None else latest.step

    def save(self, step: int, state: TrainState, window: dict[str, Any]) -> None:
        """Saves the state and the sums of an unfinished report in the background.

        Returns when the arrays have been copied from the devices.
        """
        if self.latest != step:
            self._checkpointer.save_checkpointables_async(step, {"state": state, "window": window})

    def restore(self, step: int, abstract_state: Any) -> tuple[Any, dict[str, Any]]:
        """Returns (state, window) of a step, with the shardings of `abstract_state`."""
        loaded = self._checkpointer.load_checkpointables(step, {"state": abstract_state, "window": None})
        return loaded["state"], loaded["window"]

    def restore_ema(self, step: int, abstract_params: Params) -> Params:
        """Returns the EMA weights of a step. Nothing else is read."""
        partial_context = _orbax().Context()
        partial_context.pytree.loading.partial_load = True
        with partial_context:
            return self._checkpointer.load_checkpointables(step, {"state": {"ema": abstract_params}})["state"]["ema"]

    def ema_shapes(self, step: int) -> dict[str, tuple[int, ...]]:
        """Returns the shape of each EMA weight of a step, by dotted name.

        Raises KeyError if the checkpoint has no EMA weights.
        """
        state = self._checkpointer.checkpointables_metadata(step).metadata["state"] or {}  # None if it is damaged
        return {name: tuple(array.shape) for name, array in flatten(state["ema"]).items()}

    def wait(self) -> None:
        """Waits until all saves are complete. Raises the exception of a save that failed."""
        self._checkpointer.wait()

    def close(self) -> None:
        """Waits for all saves and ends the threads."""
        self._checkpointer.close()


def latest_step(folder: Path) -> int | None:
    """Reads the newest step from the file names in a checkpoint folder, or returns None."""
    names = [path.name for path in folder.glob("[0-9]*")]
    return max((int(name) for name in names if name.isdigit()), default=None)


def load_ema(folder: Path, abstract_params: Params) -> Params:
    """Returns the EMA weights of the newest checkpoint. The run may continue at the same time.

    Raises UserError if there is no checkpoint, or if it is damaged or holds a different model.
    """
    step = latest_step(folder)
    if step is None:
        raise UserError(
            f"{folder} holds no checkpoint yet: run the stage that writes it (--stages={folder.parent.name}), or "
            f"wait for its first save."
        )
    expected = {name: leaf.shape for name, leaf in flatten(abstract_params).items()}
    try:
        with preserve_root_logger(), contextlib.closing(Checkpoints(folder, read_only=True)) as checkpoints:
            step = checkpoints.latest or step
            saved = checkpoints.ema_shapes(step)
            differing = sorted(name for name in saved.keys() | expected.keys() if saved.get(name) != expected.get(name))
            if differing:
                raise UserError(
                    f"{folder} holds a model that does not match the run's config.json, for example in "
                    f"{shown(differing[0])}. Restore the config.json that it was trained with."
                )
            return checkpoints.restore_ema(step, abstract_params)
    except UserError:
        raise
    # the exception of Orbax depends on which byte is damaged
    except (AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        raise UserError(f"{folder / str(step)} is damaged: remove it to use the checkpoint before it.") from error
