"""What the cluster files and the compose files have Ray do on their machines, and what `launch` reads in them."""

import importlib.util
import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from launch.cli import main
from launch.cluster import commands
from launch.cluster.cluster_file import read_cluster
from pipeline.config.settings import CheckpointSettings
from tools.await_workers import failure_in, wanted_workers

ROOT = Path(__file__).parent.parent
CLUSTER = yaml.safe_load((ROOT / "cluster.yaml").read_text("utf-8"))
AWS = yaml.safe_load((ROOT / "cluster-aws.yaml").read_text("utf-8"))


@pytest.mark.parametrize("file", [CLUSTER, AWS], ids=["own", "aws"])
def test_ray_s_schema_takes_it(file: dict[str, Any]) -> None:
    ray = importlib.util.find_spec("ray")
    assert ray is not None and ray.origin is not None
    schema = json.loads((Path(ray.origin).parent / "autoscaler" / "ray-schema.json").read_text("utf-8"))
    jsonschema.validate(file, schema)


def test_machines_of_aws_do_as_machines_of_ones_own() -> None:
    alone = {"provider", "auth", "max_workers", "head_node_type", "available_node_types", "head_setup_commands"}
    assert {**CLUSTER, **AWS}.keys() - CLUSTER.keys() <= alone
    ubuntu = [command for command in AWS["setup_commands"] if command.startswith("sudo apt-get ")]
    expected = {**CLUSTER, "setup_commands": [*ubuntu, *CLUSTER["setup_commands"]]}
    assert {key: said for key, said in AWS.items() if key not in alone} == {
        key: said for key, said in expected.items() if key not in alone
    }


def test_no_worker_is_left_out() -> None:
    """Version 2 of the autoscaler started all but one of a local provider's workers."""
    (start,) = [command for command in CLUSTER["head_start_ray_commands"] if "ray start" in command]
    assert re.search(r"\bRAY_enable_autoscaler_v2=0 \S+/ray start --head\b", start)


def test_a_job_that_is_stopped_has_time_to_save() -> None:
    """Symptom: `ray job stop` lost everything: by default Ray kills a job after three seconds."""
    (start,) = [command for command in CLUSTER["head_start_ray_commands"] if "ray start" in command]
    (seconds,) = re.findall(r"\bRAY_JOB_STOP_WAIT_TIME_S=(\d+) ", start)
    assert float(seconds) > CheckpointSettings().stop_timeout


def test_launch_reads_what_it_needs_of_it() -> None:
    cluster = read_cluster(ROOT / "cluster.yaml")
    assert (cluster.head, cluster.workers) == ("192.168.1.10", ("192.168.1.11", "192.168.1.12"))
    assert (cluster.user, cluster.key) == ("ubuntu", Path("~/.ssh/localpipe").expanduser())
    assert cluster.stop_head == cluster.stop_worker == "~/localpipe/.venv/bin/ray stop"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("provider: [", "is no such file"),
        ("cluster_name: x", "lacks 'provider'"),
        ("provider: {type: local, worker_ips: []}\nauth: {ssh_user: x}", "lacks 'head_ip'"),
        ("provider: {type: local, head_ip: h, worker_ips: []}\nauth: {}", "lacks 'ssh_user'"),
        (
            "provider: {type: local, head_ip: h}\nauth: {ssh_user: x}\ndocker: {container_name: y, image: z}",
            "has a docker section",
        ),
        (None, "cannot be read (No such file or directory)"),
    ],
)
def test_a_file_that_is_no_cluster_is_a_sentence(text: str | None, said: str, tmp_path: Path, capsys: Any) -> None:
    file = tmp_path / "c.yaml"
    if text is not None:
        file.write_text(text)
    for command in (["cff-vit", "--cluster", str(file)], ["attach", str(file)], ["down", str(file)]):
        assert main(command) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"error: {file}: {said}")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--sweep", "lrr=1e-3"], "unknown setting 'lrr'. Did you mean 'lr'?"),
        (["--sweep", "batch-size=64,1"], "--batch-size 1"),
        (["--sweep", "lr=1e-3,0.001"], "are the same run"),
        (["--seeds", "2", "--at-once", "0"], "--at-once 0: must be a whole number from 1"),
        (["--seeds", "2", "--run-dir", str(ROOT / "tests")], "exists and holds something"),
    ],
)
def test_a_sweep_s_mistake_is_told_before_the_cluster_is_asked(flags: list[str], said: str, capsys: Any) -> None:
    assert main(["cff-vit", *flags, "--cluster", str(ROOT / "cluster.yaml")]) == 2  # whose head is nowhere
    assert said in " ".join(capsys.readouterr().err.split())


def test_a_sweep_is_typed_on_the_head_as_it_was_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """What would be the job's command is run here, as far as a dry run goes."""
    started: list[tuple[Path, list[str]]] = []

    def start(path: Path, job: str, arguments: list[str], *_: Any, detach: bool, quiet: bool) -> int:
        started.append((path, arguments))
        assert job.startswith("s-") and detach and not quiet
        return 0

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(commands, "_start", start)
    monkeypatch.setenv("LOCALPIPE_MAX_STEPS", "3")
    small = ["cff-vit", "--executor", "serial", "--dim", "16", "--heads", "2"]
    grids = [["lr=1e-3,1e-2", "depth=2"], ["max-steps=2,4"]]
    for grid in grids:
        typed = [*small, "--sweep", *grid, "--seeds", "2", "--run-dir", "here/s", "--detach"]
        assert main([*typed, "--cluster", str(ROOT / "cluster.yaml")]) == 0
    monkeypatch.delenv("LOCALPIPE_MAX_STEPS")
    for (path, there), steps in zip(started, (["3"], []), strict=True):
        assert path == Path("here/s")
        assert [value for flag, value in pairwise(there) if flag == "--max-steps"] == steps
        assert main([*there, "--dry-run"]) == 0
        assert "4 runs in runs/s." in capsys.readouterr().out


def test_all_workers_of_the_file_are_waited_for() -> None:
    assert "tools/await_workers.py" in CLUSTER["head_start_ray_commands"][-1]
    assert (wanted_workers(CLUSTER), wanted_workers(AWS)) == (2, 1)
    assert AWS["max_workers"] >= 1
    kinds = {"head": {"min_workers": 0}, "a": {"min_workers": 3}, "b": {}}
    assert wanted_workers({"provider": {"type": "aws"}, "head_node_type": "head", "available_node_types": kinds}) == 3


def test_what_a_worker_failed_of_is_found_in_rays_log() -> None:
    before, error = [f"line {number}" for number in range(40)], "\x1b[31mmake: no rule\x1b[0m"
    log = "\n".join(
        [*before, error, "VVINFO -- Full command is `ssh …`", "New status: update-failed", "!!!", "failed with 2"]
    )
    assert failure_in(log)[-3:] == ["line 39", "make: no rule", "New status: update-failed"]
    assert len(failure_in(log)) == 20
    assert failure_in("\n".join(before)) == []


def test_workers_join_the_port_of_the_head() -> None:
    (head,) = [command for command in CLUSTER["head_start_ray_commands"] if "ray start" in command]
    (worker,) = [command for command in CLUSTER["worker_start_ray_commands"] if "ray start" in command]
    port = re.search(r"--port=(\d+)", head)
    assert port and f"--address=$RAY_HEAD_IP:{port[1]} " in worker


@pytest.mark.parametrize("name", ["compose.yaml", "compose.gpu.yaml"])
def test_ray_takes_the_flags_with_which_containers_start_it(name: str) -> None:
    """Symptom: `ray start --readout`, after a word had been renamed everywhere."""
    from ray.scripts.scripts import start

    services = yaml.safe_load((ROOT / "docker" / name).read_text("utf-8"))["services"]
    commands = {service: said["command"] for service, said in services.items() if "command" in said}
    assert commands.keys() >= {"head"}
    for service, command in commands.items():
        if service in ("head", "worker"):
            flags = [re.sub(r"\$\{\w+:-(\w+)\}", r"\1", flag) for flag in command]
            start.make_context("ray start", [*flags])
            assert ("--head" in flags) is (service == "head")
