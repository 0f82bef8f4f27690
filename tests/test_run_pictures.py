"""The pictures that every run leaves: for each executor, also of a stopped run, and drawn from what it measured."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from rich.console import Console
from safetensors.torch import load_file

from launch.cli import main
from launch.command_line.parse import RunArguments
from launch.commands.train import train
from launch.output import pictures
from launch.output.run_folder import RunFolder
from launch.output.run_pictures import RunPictures
from launch.output.timeline import Recorder, Step, beginning, passings, steady, steps
from pipeline.config.run_spec import RunSpec
from pipeline.config.settings import Settings
from pipeline.kind import Kind
from pipeline.runtime.history import RunResult
from pipeline.runtime.serial import train_serial
from pipeline.runtime.threads import train_threads
from pipeline.telemetry.clock import TimeCategory
from pipeline.telemetry.reports import LayerReport, PassReport, StepTimes
from tests.conftest import make_run
from tests.support import Watching, changed, tiny_spec

_CURVES, _PIPELINE = {"curves.png", "curves.pdf"}, {"pipeline.png", "pipeline.pdf", "pipeline.svg"}
Executor = Literal["serial", "threads", "ray"]


def pictures_in(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir() if file.suffix in (".png", ".pdf", ".svg", ".part")}


def with_executor(settings: Settings, executor: Executor, stages: int | None = 2) -> Settings:
    stages = None if executor == "serial" else stages
    return replace(settings, pipeline=replace(settings.pipeline, executor=executor, stages=stages or "auto"))


@pytest.mark.pictures
@pytest.mark.parametrize(
    "executor",
    ["serial", "threads", pytest.param("ray", marks=pytest.mark.exhaustive)],  # test_failures.py sees them over Ray
)
def test_every_run_leaves_its_pictures(
    small_settings: Settings, executor: Executor, cluster: None, tmp_path: Path, capsys: Any
) -> None:
    settings = replace(with_executor(small_settings, executor), run_dir=str(tmp_path / "run"))
    assert train(RunArguments(run=settings), Console(quiet=True), began=time.time()) == 0
    assert pictures_in(tmp_path / "run") == _CURVES | (_PIPELINE if executor != "serial" else set())
    assert "drawn" not in capsys.readouterr().err


def run_and_draw(
    settings: Settings, folder: Path, interrupted: Callable[[PassReport], bool] = lambda report: False
) -> tuple[RunSpec, RunResult, list[PassReport], list[str]]:
    """A run into a folder, stopped after the first report for which ``interrupted`` holds."""
    spec, dataset = make_run(settings)
    said: list[PassReport] = []
    warnings: list[str] = []
    run_folder = RunFolder(spec, folder, warn=warnings.append)

    def observe(report: PassReport) -> None:
        run_folder.observe(report)
        said.append(report)

    run = train_serial if settings.pipeline.executor == "serial" else train_threads
    result = run(spec, dataset, Watching(observe, lambda: any(interrupted(report) for report in said)))
    run_folder.draw(run_folder.finish(result, {}))
    return spec, result, said, warnings


@pytest.mark.pictures
@pytest.mark.parametrize("executor", ["serial", "threads"])
def test_a_run_that_was_stopped_is_drawn_as_far_as_it_came(
    small_settings: Settings, executor: Executor, tmp_path: Path
) -> None:
    settings = with_executor(
        replace(small_settings, train=replace(small_settings.train, epochs=200)), executor, stages=2
    )
    _, result, _, warnings = run_and_draw(settings, tmp_path / "run", lambda report: report.kind is Kind.VALIDATE)
    assert result.status == "interrupted"
    assert pictures_in(tmp_path / "run") == _CURVES | (_PIPELINE if executor != "serial" else set())
    assert not warnings


def test_a_run_stopped_in_its_first_epoch_has_nothing_to_draw(small_settings: Settings, tmp_path: Path) -> None:
    spec, dataset = make_run(small_settings)
    folder = RunFolder(spec, tmp_path / "run", warn=pytest.fail)
    steps_seen: list[int] = []

    def stop() -> bool:
        steps_seen.append(1)
        return len(steps_seen) > 8

    folder.finish(train_serial(spec, dataset, Watching(folder.observe, stop)), {})
    assert not pictures_in(tmp_path / "run")


# ---------------------------------------------------------------------------------------------------------------------
# What is drawn is what the run said


@pytest.mark.parametrize("mode", ["after", "online"])
@pytest.mark.parametrize("executor", ["serial", "threads"])
def test_curves_are_the_run_s_history(
    small_settings: Settings, executor: Executor, mode: Literal["after", "online"], tmp_path: Path
) -> None:
    settings = replace(small_settings, readout=replace(small_settings.readout, mode=mode))
    spec, result, said, _ = run_and_draw(with_executor(settings, executor), tmp_path / "run")
    drawn = RunPictures(spec)
    for report in said:
        drawn.observe(report)
    panels = {panel.title: panel for panel in drawn.panels()}
    last = "validation accuracy" if mode == "online" else "readouts: cross-entropy"
    assert list(panels) == ["training loss", "validation loss", last]

    def told(kind: Kind, epochs: range, figure: str) -> dict[int, list[float]]:
        passes = [result.history.layers(kind, epoch) for epoch in epochs]
        return {
            index + 1: [getattr(layers[index], figure) for layers in passes if layers is not None] for index in range(4)
        }

    assert panels["training loss"].layers == told(Kind.TRAIN, range(2), "loss")
    assert panels["validation loss"].layers == told(Kind.VALIDATE, range(2), "loss")
    if mode == "online":
        assert panels[last].layers == told(Kind.VALIDATE, range(2), "accuracy")
        assert panels[last].percent
    else:
        assert panels[last].layers == told(Kind.READOUT, range(2, 3), "loss")
        assert (panels[last].epochs, panels[last].best) == ([1], None)
    assert panels["training loss"].epochs == [1, 2]
    assert result.best_epoch is not None
    assert panels["training loss"].best == panels["validation loss"].best == result.best_epoch + 1
    assert [panel.chose for panel in panels.values()] == [False, True, False]


def an_epoch(spec: RunSpec, epoch: int, losses: list[float], accuracies: list[float]) -> list[PassReport]:
    def report(kind: Kind) -> PassReport:
        layers = [
            LayerReport(layer=index, losses=np.zeros(0, np.float32), loss=loss, accuracy=accuracy)
            for index, (loss, accuracy) in enumerate(zip(losses, accuracies, strict=True))
        ]
        return PassReport(stage=0, kind=kind, epoch=epoch, layers=layers)

    return [report(Kind.TRAIN), report(Kind.VALIDATE)]


@pytest.mark.parametrize(
    ("keep", "best", "chose", "why"),
    [
        ("loss", 2, "validation loss", "lowest validation loss of layer 3"),
        ("accuracy", 1, "validation accuracy", "highest validation accuracy of layer 3"),
        ("last", 3, None, "the last one"),
    ],
)
def test_the_kept_epoch_is_marked_with_what_chose_it(keep: str, best: int, chose: str | None, why: str) -> None:
    drawn = RunPictures(spec := changed(tiny_spec(), "train", keep=keep))
    for epoch, (loss, accuracy) in enumerate([(3.0, 0.9), (1.0, 0.7), (2.0, 0.8)]):
        for report in an_epoch(spec, epoch, [9.0, 9.0, loss], [0.1, 0.1, accuracy]):
            drawn.observe(report)
    panels = drawn.panels()
    assert {panel.best for panel in panels} == {best}
    assert [panel.title for panel in panels if panel.chose] == ([chose] if chose else [])
    title = drawn.curves().get_suptitle()
    assert f"kept: epoch {best}, {why} (--keep {keep})" in title
    assert "ViT[8 2 3] on none" in title


@pytest.mark.parametrize("executor", ["threads", pytest.param("ray", marks=pytest.mark.exhaustive)])
def test_the_schedule_is_the_measured_one(
    small_settings: Settings, executor: Executor, cluster: None, tmp_path: Path
) -> None:
    """Steps in order and without overlap; their work is the stages' busy and copying time."""
    settings = replace(small_settings, train=replace(small_settings.train, epochs=1))
    spec, dataset = make_run(with_executor(settings, executor, stages=2))
    drawn, said = RunPictures(spec), list[PassReport]()

    def observe(report: PassReport) -> None:
        drawn.observe(report)
        said.append(report)

    if executor == "ray":
        from workers.group import train_ray

        train_ray(spec, Watching(observe))
    else:
        train_threads(spec, dataset, Watching(observe))
    for report in said:
        if report.kind is not Kind.TRAIN:
            continue
        assert report.steps is not None and report.account is not None
        laid = steps(report.steps, report.started_at)
        assert [step.batch for step in laid] == list(range(40))
        assert all(step.since <= step.begin <= step.end for step in laid)
        assert all(before.end == pytest.approx(after.since) for before, after in pairwise(laid))
        np.testing.assert_allclose([step.end for step in laid], report.steps.ended)
        work = sum(step.end - step.begin for step in laid)
        # The account goes on to the report, a moment behind the last step.
        assert work == pytest.approx(
            report.account.seconds[TimeCategory.BUSY] + report.account.seconds[TimeCategory.COPY], rel=0.1
        )
        for step in laid:
            assert sum(step.waits.values()) == pytest.approx(step.begin - step.since, abs=1e-6)
    first, middle = drawn.windows()
    assert (first.epoch, first.filling, middle.epoch, middle.filling) == (0, True, 0, False)
    upper, lower = first.stages
    assert [step.batch for step in lower] == [0, 1, 2, 3]
    assert len(passings(upper, lower)) == 4
    for one, other in zip(upper, lower, strict=False):
        assert one.begin < other.begin < other.end, "a batch comes to the second stage after the first"
    assert lower[0].waits["wait_in"] > 0, "the second stage waits while the pipeline fills"
    assert all(middle.begin < step.end and step.since < middle.end for stage in middle.stages for step in stage)


# ---------------------------------------------------------------------------------------------------------------------
# Laying out steps


def some_times(ended: list[float], **spent: list[float]) -> StepTimes:
    columns = [spent.get(kind.value, [0.0] * len(ended)) for kind in TimeCategory]
    return StepTimes(np.array(ended), np.array(columns).T)


def test_steps_by_hand() -> None:
    times = some_times(
        [12.0, 15.0, 20.0],
        busy=[1.5, 3.0, 6.0],
        copy=[0.5, 1.0, 1.5],
        wait_in=[0.0, 0.75, 0.75],
        wait_out=[0.0, 0.0, 1.0],
    )
    nothing = {"wait_in": 0.0, "sync": 0.0, "wait_out": 0.0, "other": 0.0}
    assert steps(times, 10.0) == [
        Step(0, 10.0, 10.0, 12.0, nothing),
        Step(1, 12.0, 13.0, 15.0, {**nothing, "wait_in": 0.75, "other": 0.25}),
        Step(2, 15.0, 16.5, 20.0, {**nothing, "wait_out": 1.0, "other": 0.5}),
    ]
    assert steps(times) == steps(times, 10.0)[1:], "what came before a later pass is not known"


def test_a_wait_has_its_place() -> None:
    step = Step(0, 10.0, 13.0, 14.0, {"wait_in": 1.0, "sync": 0.0, "wait_out": 1.5, "other": 0.5})
    assert [step.waited(kind) for kind in step.waits] == [[(10.0, 11.0)], [], [(11.0, 12.5)], [(12.5, 13.0)]]


def test_no_more_is_drawn_than_there_was_time() -> None:
    """A GPU's kernels are accounted for when they have ended, in a later step."""
    first, second = steps(some_times([11.0, 12.0], busy=[0.2, 2.2], wait_in=[1.6, 1.6]), 10.0)
    assert (first.begin, first.waits["wait_in"]) == (pytest.approx(10.8), pytest.approx(0.8))
    assert (second.since, second.begin, second.end) == (11.0, 11.0, 12.0)


def regular(begin: float, count: int, took: float) -> list[Step]:
    none = {"wait_in": 0.0, "sync": 0.0, "wait_out": 0.0, "other": 0.0}
    ends = [begin + took * (number + 1) for number in range(count)]
    return [Step(number, end - took, end - took, end, none) for number, end in enumerate(ends)]


def test_the_beginning_ends_with_the_last_stage_s_fourth_batch() -> None:
    window = beginning(0, [regular(100.0, 20, 1.0), regular(101.0, 20, 2.0)])
    assert window is not None
    assert (window.begin, window.end) == (100.0, 109.0)
    assert [step.batch for step in window.stages[0]] == list(range(9))
    assert [step.batch for step in window.stages[1]] == list(range(4))
    assert window.stages[1][0].waited("wait_in") == [(100.0, 101.0)], "until its first batch came"


def test_the_middle_is_where_all_stages_train() -> None:
    window = steady(3, [regular(100.0, 20, 2.0), regular(110.0, 20, 2.0)])
    assert window is not None
    assert (window.begin, window.end) == (120.0, 130.0)  # of 110 to 140, five steps
    assert [step.batch for step in window.stages[0]] == list(range(10, 15))
    assert steady(3, [regular(100.0, 3, 1.0), regular(200.0, 3, 1.0)]) is None
    assert beginning(0, [regular(100.0, 3, 1.0), []]) is None


@pytest.mark.parametrize(
    ("num_epochs", "middle"), [(1, 0), (2, 1), (3, 1), (5, 2), (8, 4), (60, 32), (100, 64), (600, 256)]
)
def test_an_epoch_near_the_middle_is_kept_whatever_the_length(num_epochs: int, middle: int) -> None:
    recorder = Recorder()
    for epoch in range(num_epochs):
        for stage in range(2):
            begun = 100.0 + 10 * epoch + stage
            times = some_times(
                [begun + number + 1.0 for number in range(8)], busy=[number + 1.0 for number in range(8)]
            )
            recorder.observe(
                PassReport(stage=stage, kind=Kind.TRAIN, epoch=epoch, layers=[], steps=times, started_at=100.0 + stage)
            )
    found = [(window.epoch, window.filling) for window in recorder.windows(2, num_epochs)]
    assert found == [(0, True), (middle, False)]


def test_an_epoch_that_a_stage_did_not_finish_is_not_drawn() -> None:
    recorder = Recorder()
    times = some_times([101.0, 102.0, 103.0], busy=[1.0, 2.0, 3.0])
    recorder.observe(PassReport(stage=0, kind=Kind.TRAIN, epoch=0, layers=[], steps=times, started_at=100.0))
    assert not recorder.windows(2, 1)


# ---------------------------------------------------------------------------------------------------------------------
# A run is worth more than its picture

_SHORT = ["cff-vit", "--executor", "serial", "--dim", "16", "--heads", "2", "--epochs", "1", "--readout-epochs", "1"]


def test_a_picture_that_cannot_be_written_costs_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pictures, "write", full)
    assert main([*_SHORT, "--run-dir", str(tmp_path / "run")]) == 0
    captured = capsys.readouterr()
    said = [line for line in captured.err.splitlines() if "could not be drawn" in line]
    assert len(said) == 1 and "curves.png" in said[0] and "No space left" in said[0]
    assert "test accuracy" in captured.out
    assert load_file(tmp_path / "run" / "model.safetensors")
    assert not pictures_in(tmp_path / "run")


def test_a_machine_without_matplotlib_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    for name in [name for name in sys.modules if name.startswith("launch.output.pictures")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr("launch.output.pictures")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main([*_SHORT, "--run-dir", str(tmp_path / "run")]) == 0
    assert "matplotlib" in capsys.readouterr().err
    assert (tmp_path / "run" / "summary.json").exists()


def test_a_run_begins_without_matplotlib() -> None:
    """It takes a second to import, and nothing is drawn before the end."""
    asked = "import sys, launch.cli, launch.commands.train; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", asked], cwd=Path(__file__).parent.parent, check=False).returncode == 0
