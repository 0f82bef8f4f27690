"""Whether a GPU's stage is bound by its host's launches is told from what both take for a step, on a simulated GPU."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch

from launch.output.logs.figures import Charts, Figures
from launch.output.logs.lines import lines_of
from launch.output.logs.meters import Meter
from launch.output.summary import limit_of
from pipeline.kind import Kind
from pipeline.nets import VitSettings
from pipeline.planning.limits import StageLoad, verdict
from pipeline.telemetry.clock import Clock, Launching, TimeBreakdown, TimeCategory
from pipeline.telemetry.reports import PassReport, Status
from pipeline.telemetry.steps import BusyMeter
from tests.support import tiny_spec
from tests.support_gpu_time import GpuTime

GPU = torch.device("cuda", 0)
MS = 1e-3


@dataclass(frozen=True)
class Work:
    """A step: so many kernels in each of its stretches, what each takes host and GPU; waiting between two steps."""

    kernels: tuple[int, ...]
    host: float
    kernel: float
    wait: float = 0.0


def trained(
    work: Work, steps: int, gpu: GpuTime, amid: Callable[[Clock], None] = lambda _: None
) -> tuple[TimeBreakdown, float]:
    """The account of a stage's steps, and how long they took until the GPU was at rest."""
    with pytest.MonkeyPatch.context() as patch:
        gpu.install(patch)
        clock = Clock()
        meter, begin = BusyMeter(clock, GPU), gpu.now
        for _ in range(steps):
            with meter.step(alike=True):
                for number, kernels in enumerate(work.kernels):
                    if number:
                        with meter.pause():
                            gpu.pass_by(20e-6)
                    for _ in range(kernels):
                        gpu.launch(host=work.host, kernel=work.kernel)
                    amid(clock)
            with clock.measure(TimeCategory.WAIT_IN):
                gpu.pass_by(work.wait)
        meter.finish()
        gpu.synchronize()
        return clock.read(), gpu.now - begin


def test_launches_that_take_longer_than_the_kernels_are_told_with_what_both_take() -> None:
    """Events around a step don't tell: the GPU ends it just after the host has launched its last kernel."""
    account, _ = trained(Work(kernels=(60, 120), host=10e-6, kernel=5e-6), 1000, GpuTime())
    assert account.seconds[TimeCategory.BUSY] == pytest.approx(1.8, rel=0.02)
    assert account.launching.steps == 5
    assert account.launching.issue_ms == pytest.approx(1.8)
    assert account.launching.kernel_ms == pytest.approx(0.9)


def test_a_gpu_that_computes_for_longer_than_it_is_launched_for_is_told_so() -> None:
    for wait in (0.0, 5 * MS):  # the host runs ahead of the GPU; or the GPU is at rest before every step
        account, _ = trained(Work(kernels=(60, 120), host=5e-6, kernel=20e-6, wait=wait), 1000, GpuTime(room=10**6))
        assert account.launching.steps == 5
        assert account.launching.issue_ms == pytest.approx(0.9)
        assert account.launching.kernel_ms == pytest.approx(3.6)


def test_a_host_that_waits_for_room_among_its_launches_is_not_what_limits() -> None:
    """Then it takes as long for a step as the GPU does."""
    account, _ = trained(Work(kernels=(180,), host=5e-6, kernel=20e-6), 1000, GpuTime(room=500))
    assert account.launching.issue_ms == pytest.approx(3.6, rel=0.1)
    assert account.launching.kernel_ms == pytest.approx(3.6)
    assert "launches" not in str(verdict([load(0.99, account.launching)]))


def test_waiting_amid_a_step_is_no_launching() -> None:
    def wait(clock: Clock) -> None:
        with clock.measure(TimeCategory.SYNC):
            gpu.pass_by(0.2 * MS)

    gpu = GpuTime()
    account, _ = trained(Work(kernels=(60, 120), host=10e-6, kernel=5e-6), 1000, gpu, wait)
    assert account.launching.issue_ms == pytest.approx(1.8)


def test_probing_costs_a_stage_nothing_that_launches_or_the_gpu_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    for work in (
        Work(kernels=(60, 120), host=10e-6, kernel=5e-6),
        Work(kernels=(60, 120), host=5e-6, kernel=20e-6),
        Work(kernels=(60, 120), host=5e-6, kernel=20e-6, wait=5 * MS),
    ):
        _, probed = trained(work, 1000, GpuTime())
        with monkeypatch.context() as patch:
            patch.setattr("pipeline.telemetry.steps._TRIES", 0)
            account, plain = trained(work, 1000, GpuTime())
        assert not account.launching.steps
        assert probed / plain < 1.001


def test_a_stage_that_waits_for_its_gpu_amid_a_step_is_not_held_up_for_long() -> None:
    """Held back, the GPU would make it wait: after three such probes there are no more."""
    gpu = GpuTime()
    account, _ = trained(Work(kernels=(180,), host=10e-6, kernel=5e-6), 2000, gpu, lambda _: gpu.synchronize())
    assert not account.launching.steps
    assert gpu.held < 3 * 2 * 1.5 * 1.9 * MS


def test_a_cpu_has_no_such_figures() -> None:
    clock = Clock()
    meter = BusyMeter(clock, torch.device("cpu"))
    for _ in range(500):
        with meter.step(alike=True), meter.pause():
            pass
    account = clock.read()
    assert (account.launching.issue_ms, account.launching.kernel_ms) == (None, None)
    spec = tiny_spec()
    report = PassReport(stage=0, kind=Kind.TRAIN, epoch=0, layers=[], account=account)
    assert not [line for line in lines_of(spec, report) if "issue_ms" in line]
    assert "issue ms" not in Charts.of(spec).stages


# ---------------------------------------------------------------------------------------------------------------------
# Where they are shown


def load(utilisation: float, launching: Launching) -> StageLoad:
    return StageLoad(layers=range(2), utilisation=utilisation, wait_in=0.0, sync=0.0, launching=launching)


def test_the_line_of_what_limits_names_the_stage_both_times_and_what_to_try() -> None:
    slow, quick = Launching(steps=4, issue=7.2 * MS, kernels=3.6 * MS), Launching(steps=4, issue=1 * MS, kernels=8 * MS)
    found = verdict([load(0.4, quick), load(0.97, slow)])
    assert found.grave and found.stage == 1
    assert str(found) == (
        "stage 2 is bound by launches: the host takes 1.80 ms to issue what the GPU computes in 0.90 ms; "
        "try `graphs` on"
    )
    assert str(verdict([load(0.97, slow)], graphs=True)).endswith(
        "; `compile` on makes fewer kernels of it, a larger `batch_size` gives each more to do"
    )
    assert str(verdict([load(0.98, quick), load(0.97, slow)])) == "stage 1 limits (busy 98%)"


def test_a_run_s_figures_have_both_times_of_a_stage_on_a_gpu() -> None:
    spec = tiny_spec(net=VitSettings(dim=8, heads=2, depth=2, patch=2), stages=1)
    seconds = dict.fromkeys(TimeCategory, 0.0) | {TimeCategory.BUSY: 9.0}
    account = TimeBreakdown(10.0, seconds, Launching(steps=2, issue=3.6 * MS, kernels=1.8 * MS))
    (line,) = lines_of(spec, PassReport(stage=0, kind=Kind.TRAIN, epoch=0, layers=[], account=account))
    assert json.loads(line)["issue_ms"] == pytest.approx(1.8) and json.loads(line)["kernel_ms"] == pytest.approx(0.9)
    meter, status = Meter(), Status(stage=0, kind=Kind.TRAIN, account=account, step=1)
    meter.add(Status(stage=0, kind=Kind.TRAIN, account=TimeBreakdown(0.1, dict.fromkeys(TimeCategory, 0.0))))
    meter.add(status)
    figures = {figure.tag: figure.value for figure in Figures(spec).of_statuses([status], [meter])}
    assert (figures["issue ms/stage 1"], figures["kernel ms/stage 1"]) == (pytest.approx(1.8), pytest.approx(0.9))
    assert "bound by launches" in str(limit_of(spec, [account], None, joined=False))
