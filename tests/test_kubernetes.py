"""docker/rayjob.yaml is a RayJob as KubeRay has it, its parts fit together, and its command goes on where it ended."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from copy import deepcopy
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from referencing import Registry, Resource

from launch.cli import COMMANDS
from launch.presets import PRESETS
from tests.support_documents import ROOT

_TEXT = (ROOT / "docker/rayjob.yaml").read_text("utf-8")
_RAYJOB, _KUBERNETES = (
    json.loads((ROOT / f"tests/fixtures/{name}.schema.json").read_text("utf-8")) for name in ("rayjob", "kubernetes")
)
_REGISTRY: Registry = Registry().with_resource("kubernetes.schema.json", Resource.from_contents(_KUBERNETES))


def documents(text: str) -> dict[str, dict[str, Any]]:
    """What a file asks Kubernetes for, by kind."""
    return {one["kind"]: one for one in yaml.safe_load_all(text)}


def validate(document: dict[str, Any]) -> None:
    """Raises ValidationError where an API server would refuse it."""
    own = {"$ref": f"kubernetes.schema.json#/$defs/io.k8s.api.core.v1.{document['kind']}"}
    schema = _RAYJOB if document["kind"] == "RayJob" else own
    jsonschema.Draft202012Validator(schema, registry=_REGISTRY).validate(document)


def with_gpus() -> str:
    """The file with the lines for GPUs, which are commented out."""
    lines = re.sub(r"# (nvidia\.com/gpu: \"1\"|tolerations:|  - \{key: nvidia)", r"\1", _TEXT)
    assert lines.count('nvidia.com/gpu: "1"') == 1
    return lines


_HEAD_POD = ("spec", "rayClusterSpec", "headGroupSpec", "template", "spec")
PODS = {
    group: spec["template"]["spec"]
    for cluster in [documents(_TEXT)["RayJob"]["spec"]["rayClusterSpec"]]
    for group, spec in (("head", cluster["headGroupSpec"]), ("worker", cluster["workerGroupSpecs"][0]))
}


@pytest.mark.parametrize("text", [_TEXT, with_gpus()], ids=["cpu", "gpu"])
def test_it_fits_the_schemas_of_kuberay_and_kubernetes(text: str) -> None:
    for document in documents(text).values():
        validate(document)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("metadata", "name"), "x" * 48),
        (("spec", "backOffLimit"), 3),
        (("spec", "rayClusterSpec", "authOptions", "mode"), "tokens"),
        (("spec", "rayClusterSpec", "workerGroupSpecs", 0, "replicas"), "2"),
        (("spec", "rayClusterSpec", "headGroupSpec", "rayStartParams", "num-cpus"), 0),
        ((*_HEAD_POD, "gracePeriod"), 1),
        ((*_HEAD_POD, "terminationGracePeriodSeconds"), "2 m"),
        ((*_HEAD_POD, "securityContext", "runAsUser"), "localpipe"),
        ((*_HEAD_POD, "containers", 0, "lifecycle", "preStop", "exec", "command"), "launch checkpoint"),
        ((*_HEAD_POD, "containers", 0, "resources", "limits", "cpu"), ["2"]),
        ((*_HEAD_POD, "volumes", 0, "persistentVolumeClaim", "name"), "localpipe"),
    ],
    ids=lambda value: str(value[-1]) if isinstance(value, tuple) else "",
)
def test_the_schema_refuses_what_an_api_server_would(path: tuple[Any, ...], value: Any) -> None:
    job = deepcopy(documents(_TEXT)["RayJob"])
    place: Any = job
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        validate(job)


def test_ray_is_the_version_of_the_image_and_takes_its_flags() -> None:
    from ray.scripts.scripts import start

    cluster = documents(_TEXT)["RayJob"]["spec"]["rayClusterSpec"]
    assert f"ray=={cluster['rayVersion']}" in (ROOT / "constraints.txt").read_text().splitlines()
    flags = [f"--{name}={value}" for name, value in cluster["headGroupSpec"]["rayStartParams"].items()]
    start.make_context("ray start", ["--head", *flags])


@pytest.mark.parametrize("group", PODS)
def test_a_pods_parts_fit_together(group: str) -> None:
    """Mounts are of volumes, volumes are of what the file makes, and the user is the image's."""
    pod, made = PODS[group], documents(_TEXT)
    (container,) = pod["containers"]
    volumes = {one["name"]: one for one in pod["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes.keys()
    assert volumes["storage"]["persistentVolumeClaim"]["claimName"] == made["PersistentVolumeClaim"]["metadata"]["name"]
    assert volumes["script"]["configMap"]["name"] == made["ConfigMap"]["metadata"]["name"]
    dockerfile = (ROOT / "docker/Dockerfile").read_text()
    assert f"--uid {pod['securityContext']['runAsUser']} localpipe" in dockerfile
    places = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert set(re.findall(r'"(/[^"]+)"', re.findall(r"^VOLUME (.*)$", dockerfile, re.MULTILINE)[0])) <= places


def test_the_head_saves_a_checkpoint_of_the_run_before_it_is_taken_away() -> None:
    (container,) = PODS["head"]["containers"]
    program, command, run, _, wait = container["lifecycle"]["preStop"]["exec"]["command"]
    assert (program, command in COMMANDS) == ("launch", True)
    assert {"name": "RUN", "value": run} in container["env"]
    assert int(wait) < PODS["head"]["terminationGracePeriodSeconds"]


@pytest.mark.exhaustive
@pytest.mark.slow
def test_the_jobs_command_begins_the_run_and_goes_on_with_it_after_the_head_was_lost(tmp_path: Path) -> None:
    """As KubeRay tries it again: with a folder that has no checkpoint, and with a run that was killed."""
    job, scripts = documents(_TEXT)["RayJob"], documents(_TEXT)["ConfigMap"]["data"]
    for name, text in scripts.items():
        (tmp_path / name).write_text(text)
    program, script, preset, *flags = job["spec"]["entrypoint"].split()
    assert preset in PRESETS
    command = [program, str(tmp_path / Path(script).name), preset, *flags]
    command += ["--executor", "threads", "--device", "cpu", "--dim", "16", "--heads", "2", "--depth", "2"]
    command += ["--epochs", "8", "--readout-epochs", "1", "--checkpoint-every", "5"]
    run = tmp_path / "run"
    environment = os.environ | {"RUN": str(run), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    run.mkdir()
    (run / "config.json").touch()  # ended before its first checkpoint

    first = subprocess.Popen(command, env=environment, cwd=ROOT, stdout=subprocess.DEVNULL)
    end = time.monotonic() + 120
    while not list(run.glob("checkpoints/*/manifest.json")):
        assert first.poll() is None and time.monotonic() < end
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert len(list(tmp_path.glob("run.[0-9]*"))) == 1  # kept aside
    again = subprocess.run(command, env=environment, cwd=ROOT, check=False, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert "going on from epoch" in again.stdout
    assert json.loads((run / "summary.json").read_text())["status"] == "finished"
