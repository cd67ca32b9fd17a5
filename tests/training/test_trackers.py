"""Weights & Biases and MLflow without a server: what they hold after a run that was resumed."""

import contextlib
import json
import signal
import struct
import time

import pytest

from diffae_jax.config import default
from diffae_jax.runtime.errors import UserError
from diffae_jax.runtime.interrupts import Interrupted, Stopped
from diffae_jax.training.metrics import METRICS, open_writer, read_metrics
from diffae_jax.training.trackers import RECORD, open_tracker
from tests.messages import assert_is_one_sentence

STAGES = (("autoencoder", "images"), ("prior", "latents"))


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """No server, and no files outside of the test's folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")


def write_run(folder, tracker):
    """Two stages; the first is killed after step 3 and resumes after step 2."""
    config = default()
    config.name, config.report.tracker = "faces", tracker
    for stage, unit in STAGES:
        for first_step, last_step in ((0, 3), (2, 4)):
            writer = open_writer(config, folder, stage, unit, first_step)
            for step in range(first_step + 1, last_step + 1):
                writer.write(step, 16 * step, loss=1 / step)
            writer.close()
    steps = [(row["stage"], row["step"]) for row in read_metrics(folder)]
    assert steps == [(stage, step) for stage, _ in STAGES for step in (1, 2, 3, 4)]


EXPECTED = [(16, 1.0), (32, 1 / 2), (48, 1 / 3), (64, 1 / 4)]


def test_mlflow_has_each_step_once_in_one_run(tmp_path, offline):
    import mlflow

    write_run(tmp_path, "mlflow")
    (run,) = mlflow.search_runs(experiment_names=["diffae_jax"], output_format="list")
    assert json.loads((tmp_path / RECORD).read_text()) == {
        "mlflow": {"id": run.info.run_id, "steps": {"autoencoder": 4, "prior": 4}}
    }
    assert (run.info.run_name, run.info.status) == ("faces", "FINISHED")
    assert run.data.params["train.batch_size"] == "128"
    for stage, _ in STAGES:
        history = mlflow.MlflowClient().get_metric_history(run.info.run_id, f"{stage}/loss")
        assert [(metric.step, metric.value) for metric in history] == EXPECTED


def records_of_log(content, *, block=32_768, header=7):
    """The records of a log in the format of LevelDB, after a header of the file.

    A record is one chunk (type 1), or a first, middle ones and a last (2, 3, 4). A chunk is a
    checksum, a length, a type and data, and lies within a block.
    """
    record, position = b"", header
    while position + header <= len(content):
        if block - position % block < header:  # too few bytes for a chunk
            position += block - position % block
            continue
        _, length, kind = struct.unpack_from("<IHB", content, position)
        record += content[position + header : position + header + length]
        position += header + length
        if kind in (1, 4):
            yield record
            record = b""


def wandb_records(folder):
    """The records of offline runs in order: settings, definitions of axes, rows."""
    from wandb.proto.wandb_internal_pb2 import Record

    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime_ns):
        for content in records_of_log(path.read_bytes()):
            yield path.stem, Record.FromString(content)


def test_wandb_has_each_step_once_in_one_run(tmp_path, offline):
    write_run(tmp_path, "wandb")
    records, deadline = [], time.monotonic() + 30
    while sum(record.WhichOneof("record_type") == "history" for _, record in records) < len(STAGES) * len(EXPECTED):
        assert time.monotonic() < deadline, "a process of wandb writes the last rows after the run has ended"
        time.sleep(0.1)
        records = list(wandb_records(tmp_path))
    assert {name for name, _ in records} == {f"run-{json.loads((tmp_path / RECORD).read_text())['wandb']['id']}"}
    runs = [record.run for _, record in records if record.WhichOneof("record_type") == "run"]
    assert {(run.project, run.display_name) for run in runs} == {("diffae_jax", "faces")}
    rows = [record.history.item for _, record in records if record.WhichOneof("record_type") == "history"]
    rows = [{item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in row} for row in rows]
    for stage, unit in STAGES:
        assert [(row[f"{stage}/{unit}"], row[f"{stage}/loss"]) for row in rows if f"{stage}/loss" in row] == EXPECTED
    metrics = [record.metric for _, record in records if record.WhichOneof("record_type") == "metric"]
    axes = {(metric.glob_name, metric.step_metric) for metric in metrics}
    assert {("autoencoder/*", "autoencoder/images"), ("prior/*", "prior/latents")} <= axes


def test_mlflow_knows_how_a_stage_ended(tmp_path, offline):
    import mlflow

    config, statuses = default(), []
    config.report.tracker = "mlflow"
    ends = (UserError("The loss is not finite."), Stopped(2, signal.SIGTERM), Interrupted(), None)
    for first_step, error in enumerate(ends):
        with (
            contextlib.suppress(UserError, Stopped, Interrupted),
            open_writer(config, tmp_path, "autoencoder", "images", first_step),
        ):
            if error is not None:
                raise error
        (run,) = mlflow.search_runs(experiment_names=["diffae_jax"], output_format="list")
        statuses.append(run.info.status)
    assert statuses == ["FAILED", "KILLED", "KILLED", "FINISHED"]


@pytest.mark.parametrize(("error", "code"), [(None, 0), (UserError("The loss is not finite."), 1)])
def test_wandb_knows_whether_a_stage_failed(tmp_path, offline, error, code):
    config = default()
    config.report.tracker = "wandb"
    with contextlib.suppress(UserError), open_writer(config, tmp_path, *STAGES[0], 0):
        if error is not None:
            raise error
    deadline, ends = time.monotonic() + 30, []
    while not ends and time.monotonic() < deadline:  # its own process writes the file
        ends = [record.exit for _, record in wandb_records(tmp_path) if record.WhichOneof("record_type") == "exit"]
    assert [end.exit_code for end in ends] == [code]


def test_training_from_the_start_is_a_new_run_of_the_tracker(tmp_path, offline):
    ids = []
    for stage, unit in (*STAGES, STAGES[0]):
        tracker = open_tracker("mlflow", tmp_path, stage, {}, stage, unit, 0).tracker
        ids.append(tracker.run_id)
        tracker.close("FINISHED")
    assert ids[0] == ids[1] != ids[2]
    assert open_tracker("none", tmp_path, "none", {}, *STAGES[0], 0) is None


def test_tracker_that_cannot_be_used_is_refused_at_the_start(tmp_path, offline, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "file" / "below").as_uri())
    with pytest.raises(
        UserError, match=r"report\.tracker=mlflow cannot be used \(Not a directory\)\. Log in"
    ) as refusal:
        open_tracker("mlflow", tmp_path, "faces", {}, *STAGES[0], 0)
    assert_is_one_sentence(refusal.value)
    assert not (tmp_path / RECORD).exists()


def test_tracker_that_fails_later_is_given_up_and_all_rows_are_kept(tmp_path, offline, caplog):
    import mlflow

    config = default()
    config.report.tracker = "mlflow"
    writer = open_writer(config, tmp_path, *STAGES[0], 0)
    writer.write(1, 16, loss=1.0)
    run_id = json.loads((tmp_path / RECORD).read_text())["mlflow"]["id"]
    mlflow.MlflowClient().delete_run(run_id)  # as a colleague could do
    for step in (2, 3):
        writer.write(step, 16 * step, loss=1.0)
    writer.close()
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2, 3]
    (warning,) = [record.getMessage() for record in caplog.records if "tracker" in record.getMessage()]
    assert warning.startswith("WARNING: the tracker failed (")
    assert warning.endswith(f"so it gets no more metrics of this stage. {METRICS} has all of them.")

    mlflow.MlflowClient().restore_run(run_id)
    with open_writer(config, tmp_path, *STAGES[0], 1) as writer:
        for step in (2, 3):
            writer.write(step, 16 * step, loss=1.0)
    history = mlflow.MlflowClient().get_metric_history(run_id, "autoencoder/loss")
    assert [metric.step for metric in history] == [16, 32, 48], "the resumed stage sends the rows that it lacks"


def test_tracker_that_is_switched_on_later_gets_all_rows_from_then_on(tmp_path, offline):
    import mlflow

    config, ends = default(), ((0, 3), (2, 4))
    for tracker, (first_step, last_step) in zip(("none", "mlflow"), ends, strict=True):
        config.report.tracker = tracker
        with open_writer(config, tmp_path, *STAGES[0], first_step) as writer:
            for step in range(first_step + 1, last_step + 1):
                writer.write(step, 16 * step, loss=1.0)
                writer.write(step, 16 * step, rank=2.0)
    (run,) = mlflow.search_runs(experiment_names=["diffae_jax"], output_format="list")
    for name in ("loss", "rank"):
        history = mlflow.MlflowClient().get_metric_history(run.info.run_id, f"autoencoder/{name}")
        assert [metric.step for metric in history] == [48, 64]
