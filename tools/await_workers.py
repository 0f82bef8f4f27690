"""The last thing of `ray up`, on the head: waits until every worker has joined, or says why one has not.

Ray sets the workers up from the head, after `ray up` is done there, and writes what goes wrong into a log of the head.
Exit status 1: one of them has not joined.
"""

from __future__ import annotations

import logging
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
import yaml

_CONFIG = Path("~/ray_bootstrap_config.yaml").expanduser()
"""Where `ray up` puts the cluster.yaml on the head."""
_LOG = Path("/tmp/ray/session_latest/logs/monitor.out")  # noqa: S108 (Ray's own place)
_PATIENCE = 1800.0  # seconds; workers download torch
_LOOK = 2.0
_FAILED = "update-failed"
_SHOWN = 20  # lines
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def main() -> int:
    """Waits, and prints who has joined. Returns the exit status."""
    wanted, seen = wanted_workers(yaml.safe_load(_CONFIG.read_text("utf-8"))), set[str]()
    ray.init("auto", logging_level=logging.ERROR, log_to_driver=False)
    end = time.monotonic() + _PATIENCE
    while True:
        for node in ray.nodes():
            address = node["NodeManagerAddress"]
            if node["Alive"] and "node:__internal_head__" not in node["Resources"] and address not in seen:
                seen.add(address)
                print(f"worker {address} has joined ({len(seen)} of {wanted})", flush=True)
        if len(seen) >= wanted:
            return 0
        failure = failure_in(_LOG.read_text("utf-8", errors="replace") if _LOG.is_file() else "")
        if failure or time.monotonic() > end:
            print(f"{wanted - len(seen)} of {wanted} workers have not joined. From the head's {_LOG}:", flush=True)
            print("\n".join(f"  {line}" for line in failure))
            return 1
        time.sleep(_LOOK)


def wanted_workers(config: dict[str, Any]) -> int:
    """How many workers a cluster.yaml asks for from the beginning."""
    if config["provider"]["type"] == "local":
        return len(config["provider"].get("worker_ips") or [])
    head = config["head_node_type"]
    kinds = config["available_node_types"].items()
    return sum(int(kind.get("min_workers", 0)) for name, kind in kinds if name != head)


def failure_in(log: str) -> Sequence[str]:
    """The last lines up to the first worker's failure, without the commands in full; none where there is none."""
    lines = [_COLOURS.sub("", line).rstrip() for line in log.splitlines()]
    at = next((number for number, line in enumerate(lines) if _FAILED in line), None)
    if at is None:
        return []
    told = [line for line in lines[: at + 1] if line and "VINFO" not in line]
    return told[-_SHOWN:]


if __name__ == "__main__":
    sys.exit(main())
