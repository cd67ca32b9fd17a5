"""The manifests for GKE: valid against real schemas, in agreement with JAX and our exit codes.

Kubernetes' own schemas come from kubernetes-validate. Those of JobSet come from the API of the
Kubeflow Trainer, which creates JobSets.
"""

import copy
import math
import re
import socket
import subprocess
import sys

import kubernetes_validate
import pytest
import yaml
from jax._src.clusters.cloud_tpu_cluster import GkeTpuCluster
from kubeflow_trainer_api.models import JobsetV1alpha2JobSet

from diffae_jax.cli.train import parse
from diffae_jax.runtime.cluster import on_cluster
from tests.environment import ROOT, environment

FILES = ("gke_gpu.yaml", "gke_tpu.yaml")
OLDEST, NEWEST = "1.31", "1.37"  # Kubernetes
STRATEGIES = ("Recreate", "BlockingRecreate", "InPlaceRestart")
ACTIONS = ("FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts")
every_file = pytest.mark.parametrize("name", FILES)


def manifest(name):
    """Returns the service account and the JobSet of a file, with its placeholders replaced."""
    text = (ROOT / "launch" / name).read_text()
    for placeholder, value in (("IMAGE", "diffae:1"), ("BUCKET", "faces")):
        text = re.sub(rf"\b{placeholder}\b", value, text)
    return list(yaml.safe_load_all(text))


def job_of(jobset):
    (job,) = jobset["spec"]["replicatedJobs"]
    return job["template"]["spec"]


def container_of(jobset):
    (container,) = job_of(jobset)["template"]["spec"]["containers"]
    return container


def check(documents):
    """Raises an error if a document has an unknown field or a value of a wrong type."""
    account, jobset = documents
    for version in (OLDEST, NEWEST):
        kubernetes_validate.validate(account, version, strict=True)
        for job in jobset["spec"]["replicatedJobs"]:
            template = {"apiVersion": "batch/v1", "kind": "Job", **job["template"]}
            kubernetes_validate.validate(template, version, strict=True)
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    wrapper = copy.deepcopy(jobset)
    for job in wrapper["spec"]["replicatedJobs"]:
        job["template"]["spec"] = {"template": {}}  # checked above
    assert JobsetV1alpha2JobSet.from_dict(wrapper).to_dict() == wrapper  # it drops unknown fields
    assert jobset["spec"]["failurePolicy"]["restartStrategy"] in STRATEGIES
    for rule in jobset["spec"]["failurePolicy"]["rules"]:
        assert rule["action"] in ACTIONS
        assert re.fullmatch(r"[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?", rule["name"])


@every_file
def test_manifest_is_valid(name):
    check(manifest(name))


def renamed(old, new):
    def change(mapping):
        mapping[new] = mapping.pop(old)

    return change


@pytest.mark.parametrize(
    ("where", "change"),
    [
        (lambda jobset: jobset["spec"], renamed("failurePolicy", "failurePolcy")),
        (lambda jobset: jobset["spec"]["failurePolicy"], renamed("maxRestarts", "maxRestart")),
        (lambda jobset: jobset["spec"]["failurePolicy"], lambda policy: policy.update(maxRestarts="many")),
        (lambda jobset: jobset["spec"]["failurePolicy"], lambda policy: policy.update(restartStrategy="Blocking")),
        (lambda jobset: jobset["spec"]["failurePolicy"]["rules"][0], lambda rule: rule.update(action="Fail")),
        (lambda jobset: jobset["spec"]["replicatedJobs"][0], renamed("replicas", "replica")),
        (job_of, renamed("backoffLimit", "backofLimit")),
        (lambda jobset: job_of(jobset)["podFailurePolicy"]["rules"][0], renamed("onExitCodes", "onExitCode")),
        (lambda jobset: job_of(jobset)["template"]["spec"], renamed("terminationGracePeriodSeconds", "gracePeriod")),
        (container_of, renamed("volumeMounts", "volumeMount")),
        (container_of, lambda container: container.update(ports=[{"containerPort": "12345"}])),
    ],
)
def test_mistake_is_found(where, change):
    documents = manifest("gke_gpu.yaml")
    change(where(documents[1]))
    with pytest.raises((kubernetes_validate.ValidationError, AssertionError, ValueError)):
        check(documents)


def outcome(jobset, code, *, disrupted=False):
    """Returns what JobSet does if a pod ends with a code. The messages are those of Kubernetes."""
    job = job_of(jobset)
    reason, message = "BackoffLimitExceeded", "Job has reached the specified backoff limit"
    for index, rule in enumerate(job["podFailurePolicy"]["rules"]):
        assert rule["action"] == "FailJob"
        if "onExitCodes" in rule:
            assert rule["onExitCodes"]["containerName"] == container_of(jobset)["name"]
            matches = rule["onExitCodes"]["operator"] == "In" and code in rule["onExitCodes"]["values"]
            event = f"Container train for pod default/diffae failed with exit code {code}"
        else:
            matches = disrupted and rule["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
            event = "Pod default/diffae has condition DisruptionTarget"
        if matches:
            reason, message = "PodFailurePolicy", f"{event} matching FailJob rule at index {index}"
            break
    else:
        assert job["backoffLimit"] == 0
    for rule in jobset["spec"]["failurePolicy"]["rules"]:
        patterns = rule.get("onJobFailureMessagePatterns", [""])
        if reason in rule["onJobFailureReasons"] and any(re.search(pattern, message) for pattern in patterns):
            return rule["action"]
    return "RestartJobSet"


@every_file
def test_only_what_a_person_must_fix_is_not_restarted(name):
    _, jobset = manifest(name)
    outcomes = {code: outcome(jobset, code) for code in (1, 2, 3, 137, 143)}
    counted, uncounted = "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"
    assert outcomes == {1: counted, 2: "FailJobSet", 3: counted, 137: counted, 143: uncounted}
    for code in (137, 143):
        assert outcome(jobset, code, disrupted=True) == uncounted
    pod = job_of(jobset)["template"]["spec"]
    assert pod["restartPolicy"] == "Never"  # Kubernetes allows a podFailurePolicy only with it
    assert pod["terminationGracePeriodSeconds"] >= 120
    assert jobset["spec"]["failurePolicy"]["maxRestarts"] > 0


@every_file
def test_arguments_are_flags_and_volumes_are_mounted(name):
    _, jobset = manifest(name)
    container = container_of(jobset)
    values = parse([argument.replace("$(JOB_COMPLETION_INDEX)", "1") for argument in container["args"]])
    assert values.config.name == "ffhq128"
    assert values.workdir == "gs://faces/runs/ffhq128"
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounts.keys() == {volume["name"] for volume in job_of(jobset)["template"]["spec"]["volumes"]}
    assert mounts["shm"] == "/dev/shm"
    assert values.config.data.path.startswith(mounts["bucket"])


@every_file
def test_pod_knows_that_it_is_one_of_several(name, monkeypatch):
    _, jobset = manifest(name)
    assert job_of(jobset)["completionMode"] == "Indexed"
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "0")
    assert on_cluster()


def test_pods_with_gpus_find_process_0():
    _, jobset = manifest("gke_gpu.yaml")
    (job,) = jobset["spec"]["replicatedJobs"]
    values = parse([argument.replace("$(JOB_COMPLETION_INDEX)", "1") for argument in container_of(jobset)["args"]])
    host, _, port = values.coordinator.partition(":")
    name = jobset["metadata"]["name"]
    assert host == f"{name}-{job['name']}-0-0.{name}"  # the service that JobSet creates has its name
    assert "network" not in jobset["spec"]  # which may rename the service
    assert int(port) in [port["containerPort"] for port in container_of(jobset)["ports"]]
    spec = job_of(jobset)
    assert spec["completions"] == spec["parallelism"] == values.num_processes
    assert job["replicas"] == 1
    assert values.process_id == 1


def test_pods_with_gpus_start_without_a_warning_of_jax():
    _, jobset = manifest("gke_gpu.yaml")
    settings = {entry["name"]: entry["value"] for entry in container_of(jobset)["env"]}
    settings["KUBERNETES_SERVICE_HOST"] = "10.0.0.1"
    with socket.create_server(("localhost", 0)) as server:
        port = server.getsockname()[1]
    program = f"import jax; jax.distributed.initialize('localhost:{port}', 1, 0)"

    def errors(**changed):
        env = environment(**settings | changed)
        done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stderr

    assert "Kubernetes" not in errors()
    assert "Kubernetes environment detected" in errors(PYTHONWARNINGS="")


def test_pods_with_tpus_are_numbered_over_all_slices(monkeypatch):
    _, jobset = manifest("gke_tpu.yaml")
    spec, pod = job_of(jobset), job_of(jobset)["template"]["spec"]
    chips = container_of(jobset)["resources"]["limits"]["google.com/tpu"]
    topology = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"]
    nodes = spec["completions"]
    assert spec["parallelism"] == nodes
    assert math.prod(map(int, topology.split("x"))) == chips * nodes
    assert jobset["metadata"]["annotations"] == {
        "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"
    }

    # what GKE sets in the pods of a JobSet; JAX looks for TPUs before it looks for Kubernetes
    slices, numbers = 2, []
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", ",".join(f"diffae-slice-0-{i}.diffae" for i in range(nodes)))
    monkeypatch.setenv("MEGASCALE_NUM_SLICES", str(slices))
    for number in range(slices):
        for worker in range(nodes):
            monkeypatch.setenv("TPU_WORKER_ID", str(worker))
            monkeypatch.setenv("MEGASCALE_SLICE_ID", str(number))
            numbers.append(GkeTpuCluster.get_process_id())
    assert numbers == list(range(GkeTpuCluster.get_process_count()))
