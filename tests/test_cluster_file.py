"""What cluster.yaml has Ray do on the machines that it names."""

import re
from pathlib import Path

import yaml

CLUSTER = yaml.safe_load((Path(__file__).parent.parent / "cluster.yaml").read_text("utf-8"))


def test_no_worker_is_left_out() -> None:
    """Version 2 of the autoscaler started all but one of a local provider's workers."""
    (start,) = [command for command in CLUSTER["head_start_ray_commands"] if "ray start" in command]
    assert re.search(r"\bRAY_enable_autoscaler_v2=0 \S+/ray start --head\b", start)


def test_workers_join_the_port_of_the_head() -> None:
    (head,) = [command for command in CLUSTER["head_start_ray_commands"] if "ray start" in command]
    (worker,) = [command for command in CLUSTER["worker_start_ray_commands"] if "ray start" in command]
    port = re.search(r"--port=(\d+)", head)
    assert port and f"--address=$RAY_HEAD_IP:{port[1]} " in worker
