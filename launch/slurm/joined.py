"""`python -m launch.slurm.joined ADDRESS NODES SECONDS`, in a job: waits until every node has joined Ray's head."""

from __future__ import annotations

import logging
import sys
import time

import ray

from launch.output.console import counted, make_console, say
from pipeline.errors import RunError

_LOOK = 0.5  # seconds between two looks


def wait_for(address: str, nodes: int, seconds: float) -> dict[str, float]:
    """What Ray has on all nodes together, once they are there.

    Raises:
        RunError: they are not within so many seconds.
    """
    ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
    deadline = time.monotonic() + seconds
    while (there := sum(node["Alive"] for node in ray.nodes())) < nodes:
        if time.monotonic() > deadline:
            raise RunError(
                f"{there} of {counted(nodes, 'node')} joined Ray at {address} within {seconds:g} s. What the others "
                "said stands above; can they reach that address, on every port? --join-timeout waits longer."
            )
        time.sleep(_LOOK)
    resources: dict[str, float] = ray.cluster_resources()
    return resources


def main() -> int:
    """Runs it. Returns the exit status: 0, or 1 where a node is missing."""
    address, nodes, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    try:
        there = wait_for(address, nodes, seconds)
    except RunError as error:
        say(make_console(sys.stderr), f"error: {error}")
        return 1
    each = [counted(int(there[kind]), kind) for kind in ("GPU", "CPU") if kind in there]
    say(make_console(), f"Ray at {address}: {counted(nodes, 'node')}, {', '.join(each)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
