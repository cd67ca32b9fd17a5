"""Checkpoints of a run, written in the background; the only file that knows Orbax."""

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

KEPT = 2  # checkpoints


@functools.cache
def _orbax() -> Any:
    """Imports Orbax where it is first used: it takes half a second, and its imports log."""
    with preserve_root_logger():
        from orbax.checkpoint import v1
    return v1


class Checkpoints:
    """The checkpoints in a folder, by step. A step is there whole or not at all, whenever the process dies."""

    def __init__(self, folder: Path, read_only: bool = False):
        if not read_only and is_main_process():  # a reader must not clear away what a running save is writing
            # Orbax would do this in a thread that nothing waits for, which fails where the program ends before it
            for unfinished in folder.glob("*.orbax-checkpoint-tmp*"):
                shutil.rmtree(unfinished)
        ocp = _orbax()
        self._checkpointer = ocp.training.Checkpointer(
            folder.absolute(),
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),  # the caller decides
            preservation_policy=ocp.training.preservation_policies.LatestN(KEPT),
        )

    @property
    def latest(self) -> int | None:
        """The newest committed step; None where there is none."""
        latest = self._checkpointer.latest
        return None if latest is None else latest.step

    def save(self, step: int, state: TrainState, window: dict[str, Any]) -> None:
        """Saves the state and the sums of an unfinished report; returns once the arrays are copied off the devices."""
        if self.latest != step:
            self._checkpointer.save_checkpointables_async(step, {"state": state, "window": window})

    def restore(self, step: int, abstract_state: Any) -> tuple[Any, dict[str, Any]]:
        """Returns (state, window) of a step, the arrays laid out as the shardings in `abstract_state` say."""
        loaded = self._checkpointer.load_checkpointables(step, {"state": abstract_state, "window": None})
        return loaded["state"], loaded["window"]

    def restore_ema(self, step: int, abstract_params: Params) -> Params:
        """Returns the averaged weights of a step, and reads nothing else."""
        only_what_is_named = _orbax().Context()
        only_what_is_named.pytree.loading.partial_load = True
        with only_what_is_named:
            return self._checkpointer.load_checkpointables(step, {"state": {"ema": abstract_params}})["state"]["ema"]

    def ema_shapes(self, step: int) -> dict[str, tuple[int, ...]]:
        """Returns the shapes of the averaged weights of a step by their flat names. Raises KeyError where none are."""
        state = self._checkpointer.checkpointables_metadata(step).metadata["state"] or {}  # None where it is damaged
        return {name: tuple(array.shape) for name, array in flatten(state["ema"]).items()}

    def wait(self) -> None:
        """Returns once all saves are committed. Raises what a save in the background raised."""
        self._checkpointer.wait()

    def close(self) -> None:
        """Waits and frees the threads."""
        self._checkpointer.close()


def latest_step(folder: Path) -> int | None:
    """Returns the newest step in a folder of checkpoints without opening it; None before the first."""
    names = [path.name for path in folder.glob("[0-9]*")]
    return max((int(name) for name in names if name.isdigit()), default=None)


def load_ema(folder: Path, abstract_params: Params) -> Params:
    """Returns the averaged weights of the newest checkpoint, and reads nothing else; a run may go on meanwhile.

    Raises UserError where there is no checkpoint, and where it is damaged or of another model.
    """
    step = latest_step(folder)
    if step is None:
        raise UserError(
            f"{folder} holds no checkpoint yet: run the stage that makes it (--stages={folder.parent.name}) or "
            f"let it go on until its first save."
        )
    wanted = {name: leaf.shape for name, leaf in flatten(abstract_params).items()}
    try:
        with preserve_root_logger(), contextlib.closing(Checkpoints(folder, read_only=True)) as checkpoints:
            step = checkpoints.latest or step
            found = checkpoints.ema_shapes(step)
            differing = sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))
            if differing:
                raise UserError(
                    f"{folder} holds another model than the config.json of the run describes, first in "
                    f"{shown(differing[0])}: bring back the config.json that it was trained with."
                )
            return checkpoints.restore_ema(step, abstract_params)
    except UserError:
        raise
    # what Orbax raises depends on the byte that is wrong
    except (AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        raise UserError(
            f"{folder / str(step)} is damaged: remove it, and the checkpoint before it is taken."
        ) from error
