"""`--queue-depth auto` on hosts that are far from each other: what it measures, chooses and says.

The hosts are namespaces of this machine behind a switch that delays every frame, each in a Ray started by hand. How
fast such a pipeline is, `python -m tests.bench_far` measures.
"""

from __future__ import annotations

import json
import re

import pytest

from tests.support_cli import ROOT
from tests.support_hosts import Hosts, missing

pytestmark = [
    pytest.mark.exhaustive,  # minutes
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(missing() is not None, reason=missing() or ""),
]

_DELAY = 60  # milliseconds one way
_WITH = ["env", "RAY_AUTH_MODE=disabled", "RAY_USAGE_STATS_ENABLED=0", "LOCALPIPE_DATA=/root/data", "COLUMNS=160"]
_RUN = [
    *("cff-vit", "--dim", "16", "--heads", "2", "--depth", "2", "--epochs", "1", "--readout-epochs", "1"),
    *("--stages", "2", "--queue-depth", "auto", "--run-dir", "run"),
]


def test_auto_measures_the_way_and_chooses_says_and_takes_a_depth_that_hides_it() -> None:
    with Hosts(2) as hosts:
        for host in (1, 2):
            hosts.lend(host, ROOT)
            where = ["--head", "--port=6379"] if host == 1 else [f"--address={hosts.address(1)}:6379"]
            own = [f"--node-ip-address={hosts.address(host)}", "--num-cpus=1", "--object-store-memory=134217728"]
            started = hosts.run(host, *_WITH, "ray", "start", *where, *own)
            assert started.returncode == 0, started.stdout
        hosts.far(_DELAY)
        done = hosts.run(1, *_WITH, "python", "-m", "launch", *_RUN, seconds=600)
        assert done.returncode == 0, done.stdout
        said = re.search(r"messages between hosts are (\d+) ms under way: --queue-depth (\d+)", done.stdout)
        assert said, done.stdout
        delay, depth = map(int, said.groups())
        assert delay >= _DELAY and depth > 2
        summary = json.loads((hosts.home(1) / "run" / "summary.json").read_text())
        assert summary["queue_depth"] == depth
        assert sorted(len(host["stages"]) for host in summary["hosts"]) == [1, 1]
        slowest = max(stage["busy"] for stage in summary["speed"]["stages"])
        print(done.stdout, summary["speed"], slowest)
