"""Whether a pipeline over several hosts is as fast as `launch plan` predicts: `python -m tests.bench_far`.

The hosts are namespaces of this machine behind a switch that can delay every frame; it needs root. Their stages sleep
in place of computing, so no host needs a core of its own; channels, sockets and messages are real. Run it on an idle
machine: what wakes up late counts as a longer way.

  python -m tests.bench_far reno bbr          with each of these as TCP's congestion control, not the machine's own
  python -m tests.bench_far --milliseconds 0  hosts beside each other, in place of 50 ms one way
"""

from __future__ import annotations

import itertools
import json
import statistics
import sys
from dataclasses import dataclass, field

import tyro

from pipeline.config.partition import partition
from pipeline.planning.parts import Edge, LayerWork, Pipeline
from pipeline.planning.predict import Site
from pipeline.planning.simulate import simulate
from tests.support_cli import ROOT
from tests.support_hosts import Hosts, missing
from tests.test_plan import cost, planner
from workers.channels import CONTROL

_NAPS = [(0.02, 0.02), (0.02, 0.025), (0.02, 0.035)]  # the last stage is the slowest: none catches up at the end
_DEPTHS, _KIB = (1, 2, 3, 4, 8), (64, 512)
_STEPS, _WARM, _ROUNDS = 80, 20, 3


@dataclass
class Row:
    """Steps a second of a pipeline, as predicted and as seen round by round."""

    control: str
    depth: int
    kib: int
    predicted: float
    seen: list[float] = field(default_factory=list)

    def __str__(self) -> str:
        seen = statistics.median(self.seen)
        return (
            f"{self.control:7}  {self.depth:11}  {self.kib:7}  {seen:6.2f}  {self.predicted:9.2f}  "
            f"{self.predicted / seen - 1:+10.1%}  {seen * max(map(sum, _NAPS)):9.1%}"
        )


def _site(control: str, delay: float) -> Site:
    return Site(devices=len(_NAPS), delay=delay, paced=control == "bbr")


def chosen(control: str, delay: float) -> int:
    """The depth that `--queue-depth auto` takes."""
    costs = tuple(cost(0.0, forward=before, backward=after) for before, after in _NAPS)
    plan = planner([0.0] * len(_NAPS), alone=costs, busy=costs)
    return plan.choose_depth(partition(len(_NAPS), len(_NAPS)), _site(control, delay))


def predicted(control: str, delay: float, depth: int) -> float:
    """Steps a second that the planner expects, `delay` seconds from each other."""
    stages = tuple((LayerWork(before=before, after=after),) for before, after in _NAPS)
    way = Edge(delay=delay, spread=_site(control, delay).spread)
    return simulate(Pipeline(stages=stages, edges=(way, way), queue_depth=depth)).steps_per_second


def seen(hosts: Hosts, control: str, depth: int, kib: int) -> float:
    """Steps a second of the last stage."""
    for host in (1, 2, 3):
        changed = hosts.run(host, "sh", "-c", f"echo {control} > {CONTROL}")
        assert changed.returncode == 0, changed.stdout
    asked = {"naps": _NAPS, "depth": depth, "kib": kib, "steps": _STEPS}
    asked["addresses"] = [hosts.address(host) for host in (1, 2, 3)]
    stages = [
        hosts.start(rank + 1, "python", "-m", "tests.support_naps", json.dumps(asked | {"rank": rank}), cwd="localpipe")
        for rank in range(3)
    ]
    said = [stage.communicate(timeout=120)[0] for stage in stages]
    (line,) = [line for line in said[-1].splitlines() if line.startswith("ended ")] or [str(said)]
    ended = json.loads(line.removeprefix("ended "))[_WARM:]
    return (len(ended) - 1) / (ended[-1] - ended[0])


def main(controls: tuple[str, ...] = (), /, milliseconds: float = 50) -> None:
    if (lacks := missing()) is not None:
        sys.exit(lacks)
    controls = controls or (CONTROL.read_text().strip(),)
    delay = milliseconds / 1e3
    ways = itertools.product(controls, _DEPTHS, _KIB)
    rows = [Row(control, depth, kib, predicted(control, delay, depth)) for control, depth, kib in ways]
    with Hosts(3) as hosts:
        for host in (1, 2, 3):
            hosts.lend(host, ROOT)
        if delay:
            hosts.far(milliseconds)
        for row in rows * _ROUNDS:
            row.seen.append(seen(hosts, row.control, row.depth, row.kib))
    print(f"3 stages, {milliseconds:g} ms one way, steps a second: medians of {_ROUNDS} interleaved rounds")
    print("TCP      queue depth      KiB    seen  predicted  difference  of ideal")
    for row in rows:
        print(row)
    for control in controls:
        print(f"--queue-depth auto takes {chosen(control, delay)} over {control}")


if __name__ == "__main__":
    tyro.cli(main)
