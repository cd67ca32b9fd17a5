"""Joining the processes of a cluster, before the first question about devices, and keeping them together."""

import contextlib
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from diffae_jax.runtime.errors import UserError


def on_cluster() -> bool:
    """Whether this process was started as one of several by SLURM, Open MPI or GKE."""
    environ = os.environ
    slurm = int(environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1
    mpi = int(environ.get("OMPI_COMM_WORLD_SIZE", 1)) > 1
    gke = "KUBERNETES_SERVICE_HOST" in environ and "JOB_COMPLETION_INDEX" in environ
    return slurm or mpi or gke


def on_tpu() -> bool:
    """Whether this machine has TPU chips; it may be one of a pod, or alone."""
    chips = [*Path("/dev").glob("accel*"), *Path("/dev").glob("vfio/[0-9]*")]
    return importlib.util.find_spec("libtpu") is not None and bool(chips)


def join_cluster(coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None):
    """Initializes jax.distributed where flags or a cluster say so; alone otherwise.

    Raises UserError where only some of the three flags are given or the coordinator cannot be reached.
    """
    given = [value is not None for value in (coordinator, num_processes, process_id)]
    if any(given) and not all(given):
        raise UserError("--coordinator, --num_processes and --process_id go together: give all three or none.")
    must_join = any(given) or on_cluster()
    if not must_join and not on_tpu():
        return
    try:
        jax.distributed.initialize(coordinator, num_processes, process_id)
    except (RuntimeError, ValueError, OSError) as error:
        if not must_join:
            return  # a TPU machine that is not part of a pod
        raise UserError(
            f"The other processes could not be joined ({error}): start all of them, or name the first with "
            f"--coordinator=HOST:PORT, --num_processes and --process_id."
        ) from error


def is_main_process() -> bool:
    """Whether this process is the one that writes files and prints."""
    return jax.process_index() == 0


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Lets all processes leave a block at the same time, and raises UserError on all where it was raised on one.

    Otherwise the others would wait for that one for ever, in the next thing that they do together.
    """
    problem = None
    try:
        yield
    except UserError as error:
        problem = error
    if jax.process_count() > 1:
        refused = multihost_utils.process_allgather(np.asarray(problem is not None))
        if problem is None and refused.any():
            problem = UserError("Another process could not go on; its message says why.")
    if problem is not None:
        raise problem
