"""Joins the processes of a cluster before JAX looks for devices, and synchronizes them."""

import contextlib
import importlib.util
import inspect
import itertools
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from diffae_jax.runtime.errors import ClusterError, UnavailableError, UserError, shown
from diffae_jax.runtime.peers import HEARTBEAT_SECONDS, end_with_peers
from diffae_jax.runtime.rendezvous import meet

MOST_SECONDS_APART = 60  # of two clocks
Found = TypeVar("Found")


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


@contextlib.contextmanager
def joined_cluster(
    coordinator: str | None, num_processes: int | None, process_id: int | None, timeout: int, saved: Callable[[], str]
) -> Iterator[None]:
    """Joins the other processes for the time of the block, if the flags or a cluster require it.

    If another process ends in that time, this one ends with a sentence and exit code 3.

    Args:
        coordinator: HOST:PORT of process 0.
        num_processes: The number of processes.
        process_id: The number of this process.
        timeout: Seconds to wait for the other processes.
        saved: Returns a sentence that says what is saved, for that case.

    Raises:
        UserError: Only some of the flags are given, or they are invalid.
        ClusterError: Other processes did not come in time.
    """
    given = [value is not None for value in (coordinator, num_processes, process_id)]
    if any(given) and not all(given):
        raise UserError("Set all of --coordinator, --num_processes and --process_id, or none.")
    if timeout < 1:
        raise UserError(f"--cluster_timeout={timeout} is too short: set at least 1 s.")
    must_join = any(given) or on_cluster()
    if not must_join and not on_tpu():
        yield
        return
    if all(given):
        meet(coordinator, num_processes, process_id, timeout)  # schedulers start all processes, and report failures
    with end_with_peers(saved):
        limits = {"initialization_timeout": timeout, "heartbeat_timeout_seconds": HEARTBEAT_SECONDS}
        known = inspect.signature(jax.distributed.initialize).parameters
        limits = {name: limit for name, limit in limits.items() if name in known}
        try:
            jax.distributed.initialize(coordinator, num_processes, process_id, **limits)
        except (RuntimeError, ValueError, OSError) as error:
            if must_join:  # else this is a TPU machine that is not part of a pod
                raise ClusterError(
                    f"This process could not connect to the others ({shown(str(error))}): start all of them, or set "
                    f"--coordinator=HOST:PORT of the first process, --num_processes and --process_id."
                ) from error
        _connect_devices()
        try:
            yield
        except SystemExit:
            jax.distributed.shutdown()
            raise
        jax.distributed.shutdown()  # waits for the others; after an error, JAX does so when the process exits


def _connect_devices() -> None:
    """Runs a first computation on all devices, as long as all processes are at the same point.

    CPUs connect at the first computation, and then stay connected. A process that is 30 s later
    than another, because it compiles longer, would be too late.
    """
    if jax.process_count() > 1:
        multihost_utils.process_allgather(np.zeros(1))
        mesh = jax.sharding.Mesh(np.asarray(jax.devices()), ("all",))
        split, whole = jax.NamedSharding(mesh, jax.P("all")), jax.NamedSharding(mesh, jax.P())
        ones = jax.make_array_from_callback((mesh.size,), split, lambda _: np.ones(1, np.float32))
        jax.block_until_ready(jax.jit(jnp.sum, out_shardings=whole)(ones))


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
    except ClusterError:
        raise  # the others have ended
    except UserError as error:
        problem = error
    if jax.process_count() > 1:
        codes = multihost_utils.process_allgather(np.asarray(0 if problem is None else problem.exit_code))
        if problem is None and codes.any():
            kind = UserError if UserError.exit_code in codes else UnavailableError
            problem = kind("Another process could not continue. See its error message.")
    if problem is not None:
        raise problem


def found_by_main_process(find: Callable[[], Found]) -> Found:
    """Returns, on all processes, what process 0 finds. It must be of a type that JSON has.

    If `find` raises UserError, all processes raise it.
    """
    found = None
    with together():
        if is_main_process():
            found = find()
    return found if jax.process_count() == 1 else _gathered({"found": found})["found"][0]


def check_equal_on_all(values: dict[str, Any], fix: str) -> None:
    """Raises UserError on all processes if a value differs between them.

    Args:
        values: Values by name, of types that JSON has.
        fix: What to do.
    """
    if not jax.distributed.is_initialized():
        return
    for name, (first, *others) in _gathered(values).items():
        other = next((number for number, value in enumerate(others, start=1) if value != first), None)
        if other is not None:
            raise UserError(
                f"The processes differ in {name}: {shown(str(first))} in process 0, {shown(str(others[other - 1]))} in "
                f"process {other}. {fix}."
            )


def check_clocks() -> None:
    """Raises UserError on all processes if their clocks are more than a minute apart."""
    if not jax.distributed.is_initialized():
        return
    times = _gathered({"time": time.time()})["time"]
    first, last = min(times), max(times)
    if last - first > MOST_SECONDS_APART:
        raise UserError(
            f"The clock of process {times.index(last)} is {last - first:.0f} s ahead of that of process "
            f"{times.index(first)}. Set the clocks of the machines, for example with NTP."
        )


def _gathered(values: dict[str, Any]) -> dict[str, list[Any]]:
    """Returns the values of all processes, in their order, for each name that any process has."""
    text = np.frombuffer(json.dumps(values, default=str).encode(), np.uint8)
    longest = multihost_utils.process_allgather(np.asarray(len(text))).max()
    texts = multihost_utils.process_allgather(np.pad(text, (0, longest - len(text)), constant_values=ord(" ")))
    gathered = [json.loads(text.tobytes()) for text in texts]
    return {name: [values.get(name) for values in gathered] for name in dict.fromkeys(itertools.chain(*gathered))}
