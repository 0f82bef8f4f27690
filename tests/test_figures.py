"""The figures of a run: one axis for all, moments that are right, nothing twice; and its lines in metrics.jsonl."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from launch.output.logs.figures import Charts, Figure, Figures, steps_at
from launch.output.logs.lines import lines_of
from launch.output.logs.meters import Meter
from pipeline.config.run_spec import RunSpec
from pipeline.config.settings import Settings
from pipeline.kind import Kind
from pipeline.nets import VitSettings
from pipeline.runtime.observer import Observer
from pipeline.runtime.passes import Cut
from pipeline.runtime.serial import train_serial
from pipeline.telemetry.clock import TimeBreakdown, TimeCategory
from pipeline.telemetry.reports import LayerReport, PassReport, Status, StepTimes
from tests.conftest import make_run
from tests.support import tiny_spec

_STEPS = 4  # of an epoch of the spec


@pytest.fixture
def spec() -> RunSpec:
    """Two stages with a layer each, two epochs, a readouts' epoch."""
    return tiny_spec(net=VitSettings(dim=8, heads=2, depth=2, patch=2), stages=2)


def spent(wall: float, **seconds: float) -> TimeBreakdown:
    return TimeBreakdown(wall, {kind: seconds.get(kind.value, 0.0) for kind in TimeCategory})


def report(kind: Kind, epoch: int, stage: int, **more: Any) -> PassReport:
    trains = kind is Kind.TRAIN
    losses = np.arange(_STEPS, dtype=np.float32) + 10 * epoch if trains else np.zeros(0, np.float32)
    layer = LayerReport(layer=stage, losses=losses, loss=1.5, vitals={"weight_norm": 2.0} if trains else {})
    ended = 1000.0 + 100 * epoch + np.array([0.0, 1.0, 2.0, 4.0])
    steps = StepTimes(ended, np.zeros((_STEPS, len(TimeCategory)))) if trains else None
    return PassReport(stage=stage, kind=kind, epoch=epoch, layers=[layer], steps=steps, **more)


def by_tag(figures: list[Figure]) -> dict[str, list[tuple[int, float]]]:
    found: dict[str, list[tuple[int, float]]] = {}
    for figure in figures:
        found.setdefault(figure.tag, []).append((figure.step, figure.value))
    return found


def test_all_passes_lie_on_the_axis_of_training_steps(spec: RunSpec) -> None:
    figures = Figures(spec)
    said = [
        by_tag(figures.of_report(report(kind, epoch, 0)))
        for kind, epoch in ((Kind.TRAIN, 0), (Kind.VALIDATE, 0), (Kind.TRAIN, 1), (Kind.READOUT, 2), (Kind.TEST, 0))
    ]
    assert said[0]["step loss/layer 1"] == [(1, 0.0), (2, 1.0), (3, 2.0), (4, 3.0)]
    assert said[0]["train loss/layer 1"] == [(4, 1.5)] == said[1]["validate loss/layer 1"]
    assert said[0]["train weight_norm/layer 1"] == [(4, 2.0)]
    assert [step for step, _ in said[2]["step loss/layer 1"]] == [5, 6, 7, 8]
    assert said[3]["readout loss/layer 1"] == [(12, 1.5)] == said[4]["test loss/layer 1"]
    assert figures.step == 12


def test_steps_have_the_moments_at_which_they_ended_and_their_lengths(spec: RunSpec) -> None:
    found = Figures(spec).of_report(report(Kind.TRAIN, 1, 1))
    assert [figure.at for figure in found if figure.what == "step loss"] == [1100.0, 1101.0, 1102.0, 1104.0]
    tags = by_tag(found)
    assert tags["step ms median/stage 2"] == [(8, 1000.0)]
    assert tags["step ms 99th percentile/stage 2"] == [(8, pytest.approx(1980.0))]  # of 1, 1 and 2 s


def test_an_epoch_says_how_fast_the_whole_run_was_once_every_stage_has_told(spec: RunSpec) -> None:
    figures = Figures(spec)
    for stage, busy in ((0, 2.0), (1, 3.0)):
        figures.of_report(report(Kind.TRAIN, 0, stage, account=spent(3.5, busy=busy)))
    first = figures.of_report(report(Kind.VALIDATE, 0, 1, account=spent(0.5, busy=0.5)))
    assert not [figure for figure in first if figure.whose == "run"]
    tags = by_tag(figures.of_report(report(Kind.VALIDATE, 0, 0, account=spent(0.5, busy=0.5))))
    assert tags["epoch seconds/run"] == [(4, 4.0)]
    assert tags["images per second/run"] == [(4, 4 * 6 / 4.0)]  # batches of 6
    assert tags["measured speed-up/run"] == [(4, pytest.approx((2.5 + 3.5) / 4.0))]
    assert tags["ideal speed-up/run"] == [(4, pytest.approx((2.5 + 3.5) / 3.5))]


def test_what_is_done_again_after_a_failure_is_shown_once(spec: RunSpec) -> None:
    figures, meters = Figures(spec), [Meter(), Meter()]

    def look(step: int, wall: float) -> dict[str, list[tuple[int, float]]]:
        statuses = [
            Status(stage=stage, account=spent(wall, busy=wall / 2, wait_in=wall / 4), kind=Kind.TRAIN, step=step)
            for stage in (0, 1)
        ]
        for status, meter in zip(statuses, meters, strict=True):
            meter.add(status)
        return by_tag(figures.of_statuses(statuses, meters))

    assert not look(0, 1.0), "there is nothing to tell before the second look"
    second = look(1, 2.0)
    assert second["utilisation/stage 1"] == [(2, 0.5)]
    assert second["wait_in/stage 2"] == [(2, 0.25)] == second["other/stage 2"]
    assert not look(0, 3.0) and not look(1, 4.0)
    assert look(2, 5.0)["utilisation/stage 2"] == [(3, 0.5)]


def test_what_was_told_before_a_checkpoint_is_not_told_again_behind_it(spec: RunSpec) -> None:
    """Symptom: a run that was cut behind an epoch's last batch had its stages' figures of that step twice."""
    figures, meter = Figures(spec), Meter()
    figures.go_on(4)
    for wall, kind, step in ((1.0, Kind.VALIDATE, 0), (2.0, Kind.VALIDATE, 1), (3.0, Kind.TRAIN, 0)):
        status = Status(
            stage=0, account=spent(wall, busy=wall / 2), kind=kind, epoch=int(kind is Kind.TRAIN), step=step
        )
        meter.add(status)
        found = figures.of_statuses([status], [meter])
        assert bool(found) is (kind is Kind.TRAIN)


@pytest.mark.parametrize(
    ("cut", "steps"),
    [(Cut(), 0), (Cut(steps=3), 3), (Cut(passes=1), 4), (Cut(passes=2, steps=1), 5), (Cut((1,), 0, 2), 10)],
)
def test_a_cut_has_its_place_on_the_axis(spec: RunSpec, cut: Cut, steps: int) -> None:
    assert steps_at(spec, cut) == steps


def test_charts_are_those_that_do_not_stay_empty(spec: RunSpec) -> None:
    plain = Charts.of(spec)
    assert "sync" not in plain.stages and "train version_skew" not in plain.layers
    assert "validate margin_occupancy" in plain.layers and "validate accuracy" not in plain.layers
    assert "validate accuracy" in Charts.of(tiny_spec(readout="online")).layers


def test_lines_say_when_how_far_and_where_the_time_went_without_nulls(spec: RunSpec) -> None:
    said = report(Kind.TRAIN, 1, 1, account=spent(4.0, busy=3.0, wait_in=0.5))
    layer, stage = (json.loads(line) for line in lines_of(spec, said))
    where = {"kind": "train", "epoch": 2, "step": 8, "stage": 2}
    assert layer.pop("time") == stage.pop("time") > 1.7e9
    assert layer == where | {"layer": 2, "loss": 1.5, "weight_norm": 2.0}
    shares = {"busy": 3.0, "wait_in": 0.5, "wait_out": 0.0, "copy": 0.0, "sync": 0.0, "other": 0.5}
    assert stage == where | {"wall": 4.0, **shares, "utilisation": 0.75}


def test_the_serial_loop_tells_its_memory_too(small_settings: Settings) -> None:
    """Symptom: a flat line at 0 among the charts of a run with ``executor`` serial."""
    seen: list[int] = []

    class Looking(Observer):
        def progressed(self, statuses: list[Status]) -> None:
            seen.extend(status.memory for status in statuses)

    train_serial(*make_run(replace(small_settings, train=replace(small_settings.train, epochs=1))), Looking())
    assert seen and min(seen) > 1 << 20
