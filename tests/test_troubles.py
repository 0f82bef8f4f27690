"""A run says once what slows it down from outside, with what to do: live, and in its summary."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from launch.output.logs.meters import InputMeter
from launch.output.troubles import Troubles
from pipeline.kind import Kind
from pipeline.planning.troubles import busy_machine, load_between, slowed_gpu, straggler, swapping
from pipeline.telemetry.clock import TimeBreakdown, TimeCategory
from pipeline.telemetry.gpu_clocks import GpuClocks, reasons
from pipeline.telemetry.machine import MachineProbe, MachineReading
from pipeline.telemetry.reports import FeederStatus, Status
from tests.support_cli import launch

_AT_REST = MachineReading(
    boot="a", name="node1", process=7, at=100.0, cores=8, busy=50.0, stolen=1.0, own=10.0, delayed=2.0, swapped_in=0,
    slowed=(),
)  # fmt: skip


def after(seconds: float, **more: Any) -> MachineReading:
    """The machine so much later; counters have grown by ``more``."""
    return replace(
        _AT_REST, at=_AT_REST.at + seconds, **{name: getattr(_AT_REST, name) + by for name, by in more.items()}
    )


def load(seconds: float = 10.0, **more: Any) -> Any:
    return load_between([_AT_REST], [after(seconds, **more)])


def test_a_machine_is_busy_where_others_take_the_cores_that_the_run_wants() -> None:
    said = busy_machine(load(busy=40.0, own=9.0, delayed=3.0))
    assert said is not None and "node1 is a busy machine: other programs use 3.1 of its 8 cores" in said
    assert "waits for a core 25% of the time" in said and "`stages`" in said
    assert busy_machine(load(busy=40.0, own=9.0, delayed=0.5)) is None, "there were enough cores for all"
    assert busy_machine(load(busy=9.5, own=9.0, delayed=9.0)) is None, "nobody else was there"
    stolen = busy_machine(load(busy=9.0, own=9.0, stolen=16.0))
    assert stolen is not None and "its host gives 20% of its cores' time to other virtual machines" in stolen


def test_the_run_s_processes_on_a_machine_count_together() -> None:
    feeder = replace(_AT_REST, process=8)
    grown = replace(after(10.0, busy=20.0, own=2.0), process=8)
    both = load_between([_AT_REST, feeder], [after(10.0, busy=20.0, own=9.0), grown])
    assert both is not None and both.others == pytest.approx(0.9)
    assert load_between([_AT_REST], [replace(after(10.0), process=9)]) is None, "it has been started anew"


def test_a_process_that_reads_over_a_shorter_stretch_is_no_other_program() -> None:
    """Symptom: on an idle machine "other programs use 0.9 of its 2 cores"; they were the run's own stages."""
    stage = replace(_AT_REST, process=8, at=105.0)
    later = replace(stage, at=110.0, own=stage.own + 5.0)
    found = load_between([_AT_REST, stage], [after(10.0, busy=20.0, own=10.0), later])
    assert found is not None and found.others == pytest.approx(0.0)
    assert load_between([_AT_REST, stage], [after(10.0, busy=20.0, own=10.0), stage]) is None, "it has not read anew"


def test_swapping_is_told_from_what_comes_back() -> None:
    assert swapping(load(swapped_in=5 << 20)) is None
    said = swapping(load(swapped_in=400 << 20))
    assert said is not None and "node1 swaps: 40 MiB a second" in said and "`batch_size`" in said


@pytest.mark.parametrize(
    ("bits", "why"),
    [
        (0x00, ()),
        (0x01, ()),  # idle
        (0x04, ()),  # at its power limit, as every busy GPU
        (0x08, ("its hardware protects itself",)),
        (0x48, ("it is too hot",)),
        (0x60, ("it is too hot",)),
        (0x88, ("its power supply asks for less",)),
    ],
)
def test_a_gpu_is_slowed_down_by_heat_and_power_and_not_by_being_busy(bits: int, why: tuple[str, ...]) -> None:
    assert reasons(bits) == why
    said = slowed_gpu(1, why)
    assert said is None if not why else said is not None and f"stage 2's GPU is slowed down: {why[0]}." in said


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_driver_tells_whether_a_gpu_is_slowed_down() -> None:
    device = torch.device("cuda", 0)
    clocks = GpuClocks(device)
    assert clocks._gpu is not None, "NVML knows the GPU by torch's name"
    reading = MachineProbe(device).read()
    assert reading is not None and set(reading.slowed) <= {said for bit in range(16) for said in reasons(1 << bit)}


def test_a_straggler_is_slower_than_itself_and_alone() -> None:
    usual = {0: 1.0, 1: 2.0, 2: 1.0}
    said = straggler(usual, {0: 1.0, 1: 3.6, 2: 1.1})
    assert said is not None and "stage 2 is a straggler: it computes 1.8 times as long" in said
    assert straggler(usual, {0: 1.0, 1: 2.8, 2: 1.0}) is None
    assert straggler(usual, {0: 1.8, 1: 3.6, 2: 1.8}) is None, "all are slow: no straggler"
    assert straggler({}, {0: 1.0}) is None


def breakdown(wall: float, busy: float) -> TimeBreakdown:
    return TimeBreakdown(wall=wall, seconds={**dict.fromkeys(TimeCategory, 0.0), TimeCategory.BUSY: busy})


def statuses(seconds: int, *busy: float, machine: MachineReading | None = None) -> list[Status]:
    """Stages after so many seconds of training at 100 images a second, with so much computing time each."""
    return [
        Status(stage=stage, account=breakdown(seconds, one), kind=Kind.TRAIN, images=100 * seconds, machine=machine)
        for stage, one in enumerate(busy)
    ]


def test_a_stage_that_falls_behind_its_own_pace_is_told_once() -> None:
    said: list[str] = []
    troubles = Troubles(said.append, shared=False)
    busy = [0.0, 0.0]
    for second in range(1, 80):
        slow = second > 40
        busy = [busy[0] + 0.3, busy[1] + (0.8 if slow else 0.4)]
        troubles.look(statuses(second, *busy))
        assert slow or not said
    assert len(said) == 1 and "stage 2 is a straggler: it computes 2.0 times as long" in said[0]
    assert troubles.said == said


def test_each_trouble_of_a_machine_is_told_once_and_of_shared_cores_none() -> None:
    for shared, wanted in ((False, ["swaps", "busy machine"]), (True, ["swaps"])):
        said: list[str] = []
        troubles = Troubles(said.append, shared=shared)
        for second in range(0, 60, 5):
            grown = {"busy": 6.0 * second, "own": 0.9 * second, "delayed": 0.5 * second, "swapped_in": second << 24}
            troubles.look(statuses(second, 0.0, machine=after(second, **grown)))
        assert [next(word for word in ("swaps", "busy machine") if word in one) for one in said] == wanted


def test_the_share_that_feeders_need_is_the_busiest_one_s() -> None:
    meter = InputMeter()
    for second in range(1, 11):
        meter.add(
            [
                FeederStatus(account=breakdown(second, 0.1 * second)),
                FeederStatus(account=breakdown(second, 0.2 * second)),
            ]
        )
    assert meter.share == pytest.approx(0.2) and meter.overall == pytest.approx(0.2)
    meter.add([])
    meter.add([FeederStatus(account=breakdown(1.0, 0.9))])  # begun anew, after a failure
    assert meter.share is None and meter.overall == pytest.approx(0.2)


def test_a_reading_counts_what_the_process_does() -> None:
    first = MachineProbe(torch.device("cpu")).read()
    if first is None:
        pytest.skip("needs Linux")
    while (now := MachineProbe(torch.device("cpu")).read()) is not None and now.own - first.own < 0.2:
        sum(range(10**5))
    assert now is not None and now.busy - first.busy >= 0.1 and now.cores == os.cpu_count() and not now.slowed


@contextmanager
def other_programs(count: int) -> Iterator[None]:
    """Programs that want a core each."""
    burning = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for one in burning:
            one.kill()
            one.wait()


@pytest.fixture
def two_cores() -> Iterator[None]:
    """This process, and what it starts, on two cores of the machine."""
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("needs Linux")
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(allowed)[:2])
    yield
    os.sched_setaffinity(0, allowed)


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_run_beside_other_programs_says_so_and_its_summary_keeps_it(two_cores: None, tmp_path: Path) -> None:
    run = tmp_path / "run"
    flags = ("--epochs", "100000", "--stages", "2", "-q")
    begun = launch(tmp_path, "cff-vit", *flags, "--run-dir", str(run))
    while not (run / "metrics.jsonl").exists() or "validate" not in (run / "metrics.jsonl").read_text():
        assert begun.process.poll() is None, begun.text()
    with other_programs(4):
        begun.wait_for("is a busy machine: other programs use ")
    begun.stop(signal.SIGINT)
    assert begun.finish(120) == 130, begun.text()
    (line,) = [line for line in begun.text().splitlines() if "is a busy machine" in line]
    assert line.startswith("warning: ") and "--stages" in line
    summary = json.loads((run / "summary.json").read_text())
    assert any("is a busy machine: other programs use" in one for one in summary["warnings"])
    assert summary["speed"]["input_headroom"] > 1, "the feeder told what it does"
    assert "input could feed" in summary["speed"]["limit"]
