"""Joins the processes of a cluster before JAX looks for devices, and synchronizes them."""

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
    """Returns whether SLURM, Open MPI or GKE started this process as one of several."""
    environ = os.environ
    slurm = int(environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1
    mpi = int(environ.get("OMPI_COMM_WORLD_SIZE", 1)) > 1
    gke = "KUBERNETES_SERVICE_HOST" in environ and "JOB_COMPLETION_INDEX" in environ
    return slurm or mpi or gke


def on_tpu() -> bool:
    """Returns whether this machine has TPU chips. It may be part of a pod or a single host."""
    chips = [*Path("/dev").glob("accel*"), *Path("/dev").glob("vfio/[0-9]*")]
    return importlib.util.find_spec("libtpu") is not None and bool(chips)


def join_cluster(coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None):
    """Initializes jax.distributed if the flags or a cluster require it.

    Raises UserError if only some of the three flags are given, or the coordinator cannot be
    reached.
    """
    given = [value is not None for value in (coordinator, num_processes, process_id)]
    if any(given) and not all(given):
        raise UserError("Set all of --coordinator, --num_processes and --process_id, or none.")
    must_join = any(given) or on_cluster()
    if not must_join and not on_tpu():
        return
    try:
        jax.distributed.initialize(coordinator, num_processes, process_id)
    except (RuntimeError, ValueError, OSError) as error:
        if not must_join:
            return  # a TPU machine that is not part of a pod
        raise UserError(
            f"This process could not connect to the others ({error}): start all of them, or set "
            f"--coordinator=HOST:PORT of the first process, --num_processes and --process_id."
        ) from error


def is_main_process() -> bool:
    """Returns whether this is process 0, the one that writes files and prints."""
    return jax.process_index() == 0


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Synchronizes all processes at the end of a block. If one raises UserError, all raise it.

    Without this, the other processes would wait forever for the failed one.
    """
    problem = None
    try:
        yield
    except UserError as error:
        problem = error
    if jax.process_count() > 1:
        failed = multihost_utils.process_allgather(np.asarray(problem is not None))
        if problem is None and failed.any():
            problem = UserError("Another process could not continue. See its error message.")
    if problem is not None:
        raise problem
