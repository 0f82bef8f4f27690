"""What cluster.yaml and the compose files have Ray do on the machines that they name."""

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
CLUSTER = yaml.safe_load((ROOT / "cluster.yaml").read_text("utf-8"))


def test_no_worker_is_left_out() -> None:
    """Version 2 of the autoscaler started all but one of a local provider's workers."""
    (start,) = [command for command in CLUSTER["head_start_ray_commands"] if "ray start" in command]
    assert re.search(r"\bRAY_enable_autoscaler_v2=0 \S+/ray start --head\b", start)


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
