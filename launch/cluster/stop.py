"""Ends Ray on a cluster's machines: on all of them, where `ray down` ends it on the head alone."""

from __future__ import annotations

import shlex
from concurrent.futures import ThreadPoolExecutor

from rich.console import Console

from launch.cluster.cluster_file import ClusterFile
from launch.cluster.head import Head
from launch.output.console import say
from pipeline.errors import RunError

_STOP = 60.0  # seconds; Ray waits 16 for its processes before it kills them
_KEY = "~/ray_bootstrap_key.pem"
"""Where `ray up` puts a copy of the private key on the head, for the workers."""
_LEFT = f"{_KEY} ~/ray_bootstrap_config.yaml"
_SSH = f"ssh -o BatchMode=yes -o ConnectTimeout=10 -o StrictHostKeyChecking=accept-new -o LogLevel=ERROR -i {_KEY}"


def stop_ray(cluster: ClusterFile, console: Console) -> None:
    """Ends it on the head, then, from there, on the workers; then removes from the head what opens them.

    Raises:
        RunError: a machine is not reached, or Ray does not end there. The others have been done, and the key is still
            there for another try.
    """
    head = Head(cluster)
    # First: its autoscaler would bring workers up again.
    head.run(cluster.stop_head, seconds=_STOP)
    say(console, f"{cluster.head}: Ray is stopped")

    def stop_worker(address: str) -> str | None:
        try:
            head.run(f"{_SSH} {cluster.user}@{address} {shlex.quote(cluster.stop_worker)}", seconds=_STOP)
        except RunError as error:
            return f"{address}: {error}"
        say(console, f"{address}: Ray is stopped")
        return None

    with ThreadPoolExecutor(max_workers=max(1, len(cluster.workers))) as pool:
        failed = [problem for problem in pool.map(stop_worker, cluster.workers) if problem is not None]
    if failed:
        raise RunError(f"Ray may still run on {len(failed)} of the workers: {'; '.join(failed)}")
    head.run(f"rm -f {_LEFT}", seconds=_STOP)
