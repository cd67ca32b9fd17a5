"""Experiment trackers, which also get the metrics of a run: Weights & Biases and MLflow.

A run has one run of the tracker. Its id and the newest step that it has of each stage are in
`tracker.json`, so a resumed run continues it.
Server, credentials and offline mode are settings of the tracker itself, such as WANDB_MODE and
MLFLOW_TRACKING_URI.
"""

import importlib
import os
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from diffae_jax.runtime.cluster import is_main_process
from diffae_jax.runtime.errors import UserError
from diffae_jax.runtime.files import AnyPath, read_json, reason_of, write_json
from diffae_jax.runtime.logs import quiet_libraries

RECORD = "tracker.json"
PROJECT = "diffae_jax"  # unless WANDB_PROJECT or MLFLOW_EXPERIMENT_NAME is set
MLFLOW_PARAMS = 100  # in one call
Status = Literal["FINISHED", "FAILED", "KILLED"]  # of a stage, in the terms of MLflow


@runtime_checkable
class Tracker(Protocol):
    """A run of an experiment tracker. Its methods may raise any error."""

    run_id: str

    def write(self, stage: str, unit: str, samples: int, values: Mapping[str, float]) -> None:
        """Adds values at a number of samples seen; `unit` is "images" or "latents"."""

    def close(self, status: Status) -> None:
        """Sends what is waiting and ends the connection. The run can be continued."""


class Wandb:
    """A run of Weights & Biases. Its files are in `wandb/` of the run folder, if that is local."""

    def __init__(self, folder: AnyPath, run_id: str, name: str, settings: Mapping[str, Any]):
        wandb = importlib.import_module("wandb")
        self._known: set[str] = set()  # stages whose axis is defined
        self.run_id = run_id or uuid.uuid4().hex[:8]
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=self.run_id,
            resume="allow",
            name=name,
            config=dict(settings),
            dir=str(folder) if isinstance(folder, Path) else None,
            settings=wandb.Settings(silent=True, console="off"),
        )

    def write(self, stage: str, unit: str, samples: int, values: Mapping[str, float]) -> None:
        """Adds values at a number of samples seen."""
        axis = f"{stage}/{unit}"
        if stage not in self._known:
            self._run.define_metric(f"{stage}/*", step_metric=axis)
            self._known.add(stage)
        self._run.log({axis: samples} | {f"{stage}/{name}": value for name, value in values.items()})

    def close(self, status: Status) -> None:
        """Sends what is waiting. Weights & Biases knows only success and failure."""
        self._run.finish(exit_code=0 if status == "FINISHED" else 1)


class MLflow:
    """A run of MLflow. The settings are its parameters, as they were at the start."""

    def __init__(self, _: AnyPath, run_id: str, name: str, settings: Mapping[str, Any]):
        mlflow = importlib.import_module("mlflow")
        self._entities = importlib.import_module("mlflow.entities")
        self._client = mlflow.MlflowClient()
        if run_id:
            self._client.update_run(run_id, status="RUNNING")
        else:
            experiment = mlflow.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT))
            run_id = self._client.create_run(experiment.experiment_id, run_name=name).info.run_id
            params = [self._entities.Param(key, str(value)) for key, value in settings.items()]
            for start in range(0, len(params), MLFLOW_PARAMS):
                self._client.log_batch(run_id, params=params[start : start + MLFLOW_PARAMS])
        self.run_id = run_id

    def write(self, stage: str, unit: str, samples: int, values: Mapping[str, float]) -> None:
        """Adds values at a number of samples seen."""
        now = int(time.time() * 1000)
        metrics = [self._entities.Metric(f"{stage}/{name}", value, now, samples) for name, value in values.items()]
        self._client.log_batch(self.run_id, metrics=metrics)

    def close(self, status: Status) -> None:
        """Sets the status of the run."""
        self._client.set_terminated(self.run_id, status)


TRACKERS: dict[str, Callable[[AnyPath, str, str, Mapping[str, Any]], Tracker]] = {
    "wandb": Wandb,
    "mlflow": MLflow,
}  # by report.tracker


class TrackedStage:
    """A training stage in the run of a tracker, which gets each row once.

    A resumed stage writes the rows after its checkpoint again. Rows up to the newest step that the
    tracker already has are left out. tracker.json records that step.

    Args:
        tracker: The run of the tracker.
        stage: The training stage.
        unit: "images" or "latents".
        sent: The newest step that the tracker has.
        record: Called with each new step, to record it.
    """

    def __init__(self, tracker: Tracker, stage: str, unit: str, sent: int, record: Callable[[int], None]):
        self.tracker = tracker
        self._stage, self._unit, self._sent, self._record = stage, unit, sent, record

    def write(self, step: int, samples: int, values: Mapping[str, float]) -> None:
        """Sends a row, unless the tracker has it. A step may have several rows."""
        if step > self._sent:
            self.tracker.write(self._stage, self._unit, samples, values)
            self._record(step)

    def close(self, status: Status) -> None:
        """Ends the connection to the tracker, which gets the status of the stage."""
        self.tracker.close(status)


def open_tracker(
    name: str, folder: AnyPath, run_name: str, settings: Mapping[str, Any], stage: str, unit: str, first_step: int
) -> TrackedStage | None:
    """Opens the run of a tracker, or returns None for "none" or if another process does so.

    Step 0 of the autoencoder begins a new run of the tracker. Otherwise, the tracker continues its
    run.

    Args:
        name: A name in `TRACKERS`, or "none".
        folder: The run folder.
        run_name: The name that the tracker shows.
        settings: The config, flat.
        stage: The training stage: "autoencoder" or "prior".
        unit: "images" or "latents".
        first_step: The step after which the stage begins or resumes.

    Raises:
        UserError: The tracker cannot be used, for example because of a missing login.
    """
    if name == "none" or not is_main_process():
        return None
    record = folder / RECORD
    is_new = stage == "autoencoder" and not first_step
    runs = read_json(record) if record.exists() and not is_new else {}
    run = runs.setdefault(name, {"id": "", "steps": {}})
    try:
        with quiet_libraries():
            tracker = TRACKERS[name](folder, run["id"], run_name, settings)
    except Exception as error:  # each tracker has errors of its own
        raise UserError(
            f"report.tracker={name} cannot be used ({reason_of(error)}). Log in or check its server, or set it to none."
        ) from error
    run["id"] = tracker.run_id

    def record_step(step: int) -> None:
        run["steps"][stage] = step
        write_json(record, runs)

    sent = run["steps"].get(stage, 0) if first_step else 0
    record_step(sent)
    return TrackedStage(tracker, stage, unit, sent, record_step)
