"""Nothing hangs, and what was learned is kept: interrupts, killed workers, losses that are no number, full disks."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from launch.cli import main
from pipeline import export
from pipeline.config.settings import Settings
from pipeline.data.loader import Batch
from pipeline.errors import ChannelError, NonFiniteLossError, ResourcesError, RunError, StageFailedError
from pipeline.kind import Kind
from pipeline.layers.tallies import EvaluationTally
from pipeline.runtime.feeder import IMAGES
from pipeline.runtime.serial import train_serial
from pipeline.runtime.stage import Stage
from pipeline.runtime.threads import train_threads
from pipeline.telemetry.clock import Clock
from pipeline.telemetry.reports import LayerReport, PassReport
from pipeline.transport.channel import LocalChannel
from pipeline.transport.message import IDS, LABELS, Message
from tests.conftest import make_run
from tests.support import Watching
from tests.support_cli import launch
from tests.test_equality import assert_same, serial, through_ray

pytestmark = pytest.mark.timeout(600)  # a busy machine takes minutes to start a run

_LONG = ["cff-vit", "--dim", "32", "--batch-size", "64", "--epochs", "500", "--stages", "2", "--device", "cpu"]
_LABELLED = ["cfl-fc", "--data", "digits", "--width", "48", "--groups", "3", "--depth", "4", "--batch-size", "64"]
_LABELLED += ["--epochs", "500", "--milestones", "400", "--stages", "2", "--device", "cpu"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "whom", "arguments"),
    [
        (signal.SIGTERM, "its group", _LABELLED),
        # To the process alone: test_resume_command.py stops a run so that goes on.
        pytest.param(signal.SIGTERM, "the process", _LABELLED, marks=pytest.mark.exhaustive),
        pytest.param(signal.SIGINT, "its group", _LONG, marks=pytest.mark.exhaustive),
    ],
)
def test_a_stop_by_hand_or_by_a_scheduler_comes_soon_and_keeps_what_was_learned(
    number: signal.Signals, whom: str, arguments: list[str], tmp_path: Path
) -> None:
    """Weights, and label embeddings of the same moment where there are some. A terminal and `timeout` signal a
    process's group.

    Symptoms: SIGTERM ended a run with 134 and lost everything, as Ray had replaced its handler. Ray's processes were
    ended too, and the launching one hung for a minute and died without a word.
    """
    launched = launch(tmp_path, *arguments, "--run-dir", str(tmp_path / "run"))
    launched.wait_for("epoch 2/500")
    begun = time.monotonic()
    if whom == "its group":
        os.killpg(launched.process.pid, number)
    else:
        launched.process.send_signal(number)
    assert launched.finish(120) == 130, launched.text()
    assert time.monotonic() - begun < 90  # it does not hang; 3 s where nothing else runs
    assert f"go on with: launch resume {tmp_path / 'run'}" in launched.text().splitlines()[-1]
    launched.assert_nothing_left()
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["status"] == "interrupted"
    assert summary["best_epoch"] >= 1
    weights = load_file(tmp_path / "run" / "model.safetensors")
    assert {name.split(".")[1] for name in weights if name.startswith("layers.")} == {"0", "1", "2", "3"}
    assert all(torch.isfinite(value).all() for value in weights.values())
    last = load_file(tmp_path / "run" / "last.safetensors")
    assert any(name.startswith("layers.") and "exp_avg" in name for name in last)
    if arguments is _LABELLED:
        assert weights["embeddings.values"].shape == (10, 16)
        assert "embeddings.optimizer.exp_avg" in last
    assert (tmp_path / "run" / "curves.png").exists() and (tmp_path / "run" / "pipeline.png").exists()


@pytest.mark.slow
@pytest.mark.exhaustive
def test_a_signal_that_reaches_every_process_stops_it_as_well(tmp_path: Path) -> None:
    """As Slurm signals those of a job. The run's workers end with it, and the last checkpoint is there."""
    run = tmp_path / "run"
    launched = launch(tmp_path, *_LONG, "--checkpoint-every", "10", "--run-dir", str(run))
    launched.wait_for("epoch 2/500")
    begun = time.monotonic()
    for pid in [launched.process.pid, *launched.descendants()]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    assert launched.finish(120) == 1, launched.text()
    assert time.monotonic() - begun < 90  # it does not hang; 13 s where nothing else runs
    assert f"o on with: launch resume {run}" in launched.text().splitlines()[-1]
    launched.assert_nothing_left()


@pytest.mark.slow
@pytest.mark.exhaustive  # test_signals.py has five of them in a row
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_stop_while_starting_leaves_nothing(number: signal.Signals, tmp_path: Path) -> None:
    launched = launch(tmp_path, *_LONG, "--run-dir", str(tmp_path / "run"))
    launched.wait_for("2 stages on cpu")
    launched.stop(number)
    assert launched.finish(120) == 130
    launched.assert_nothing_left()
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.exhaustive
def test_a_stop_while_ray_starts_leaves_nothing(tmp_path: Path) -> None:
    launched = launch(tmp_path, *_LONG, "--run-dir", str(tmp_path / "run"))
    launched.wait_for("starting Ray")
    launched.stop(signal.SIGTERM)
    assert launched.finish(120) == 130
    launched.assert_nothing_left()
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_ctrl_c_in_the_serial_loop_keeps_what_was_learned(tmp_path: Path) -> None:
    arguments = ["cff-vit", "--executor", "serial", "--epochs", "500", "--run-dir", str(tmp_path / "run")]
    launched = launch(tmp_path, *arguments)
    launched.wait_for("epoch 1/500")
    begun = time.monotonic()
    launched.stop(signal.SIGINT)
    assert launched.finish(120) == 130
    assert time.monotonic() - begun < 90  # it does not hang; 3 s where nothing else runs
    assert load_file(tmp_path / "run" / "model.safetensors")


@pytest.mark.parametrize("executor", ["serial", "threads"])
def test_an_interrupt_while_the_readouts_learn_keeps_them(small_settings: Settings, executor: str) -> None:
    settings = replace(
        small_settings,
        train=replace(small_settings.train, epochs=1),
        readout=replace(small_settings.readout, readout_epochs=200),
    )
    if executor == "threads":
        settings = replace(settings, pipeline=replace(settings.pipeline, executor="threads"))
    asked = threading.Event()

    def observe(report: PassReport) -> None:
        if report.kind is Kind.READOUT:
            asked.set()

    train = train_serial if executor == "serial" else train_threads
    result = train(*make_run(settings), Watching(observe, asked.is_set))
    assert result.status == "interrupted"
    assert any(".readout." in name for name in result.weights)


@pytest.mark.parametrize("executor", ["serial", "threads"])
def test_validation_losses_that_are_no_numbers_end_the_run_by_name(
    small_settings: Settings, executor: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(small_settings, train=replace(small_settings.train, epochs=1))
    if executor == "threads":
        settings = replace(settings, pipeline=replace(settings.pipeline, executor="threads"))
    report = EvaluationTally.report

    def spoilt(tally: EvaluationTally, *, with_predictions: bool = False) -> LayerReport:
        said = report(tally, with_predictions=with_predictions)
        said.loss = float("nan")
        return said

    monkeypatch.setattr(EvaluationTally, "report", spoilt)
    train = train_serial if executor == "serial" else train_threads
    with pytest.raises(RunError, match="validation loss was a number in no epoch") as failure:
        train(*make_run(settings))
    assert failure.value.result is not None
    assert failure.value.result.weights


def test_the_cause_of_a_failure_is_told_however_late_its_thread_goes_on(
    small_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Symptom: on a busy machine "the neighbour is gone" was told of a run whose first stage had failed: its channels
    were broken off before its error was noted."""
    break_off = LocalChannel.break_off

    def late(channel: LocalChannel) -> None:
        break_off(channel)
        time.sleep(1.0)  # others have the core

    monkeypatch.setattr(LocalChannel, "break_off", late)
    pipe = replace(small_settings.pipeline, executor="threads")
    settings = replace(small_settings, train=replace(small_settings.train, lr=1e18), pipeline=pipe)
    with pytest.raises(NonFiniteLossError):
        train_threads(*make_run(settings, stages=4))


def test_a_step_that_is_missing_is_noticed(small_settings: Settings) -> None:
    spec, dataset = make_run(small_settings)
    stage = Stage(spec, 0, torch.device("cpu"), report=lambda report: None, clock=Clock())
    batches = list(itertools.islice(dataset.batches("train", epoch=0, batch_size=32), 3))

    def message(batch: Batch) -> Message:
        tensors = {IMAGES: batch.images, LABELS: batch.labels, IDS: batch.ids}
        return Message(Kind.TRAIN, 0, batch.step, batch.position, batch.last, tensors)

    stage.handle(message(batches[0]), lambda sent: None)
    with pytest.raises(ChannelError, match=r"step 3 of train epoch 1 arrived where step 2 was due"):
        stage.handle(message(batches[2]), lambda sent: None)
    for token in (Kind.CHECKPOINT, Kind.STOP):  # they take no step's place, and the stage is where it was
        assert stage.handle(Message(token), lambda sent: None) is (token is Kind.CHECKPOINT)
        status = stage.status()
        assert (status.kind, status.epoch, status.step) == (Kind.TRAIN, 0, 0), "symptom: 3,771 steps again"
    assert stage.handle(message(batches[1]), lambda sent: None)


def test_a_worker_that_cannot_start_says_why(small_settings: Settings, cluster: None, tmp_path: Path) -> None:
    from workers.group import train_ray

    spec, _ = make_run(replace(small_settings, pipeline=replace(small_settings.pipeline, executor="ray")), stages=1)
    begun = time.monotonic()
    with pytest.raises(StageFailedError, match=r"feeder 1 could not start: .*nowhere"):
        train_ray(replace(spec, data_folder=str(tmp_path / "nowhere")))
    assert time.monotonic() - begun < 200  # it does not hang


def test_a_feeder_refuses_other_data_than_was_checked(small_settings: Settings, cluster: None) -> None:
    from workers.group import train_ray

    spec, _ = make_run(replace(small_settings, pipeline=replace(small_settings.pipeline, executor="ray")), stages=1)
    with pytest.raises(StageFailedError, match="other data"):
        train_ray(replace(spec, content_hash="0" * 64))


@pytest.mark.exhaustive
def test_a_stage_that_answers_late_loses_no_report(
    small_settings: Settings, cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from workers import group

    monkeypatch.setattr(group, "_ANSWER", 0.0)  # hardly any look is answered in time
    assert_same(through_ray(small_settings, 2), serial(small_settings))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("victim", "number", "arguments", "name", "loses"),
    [
        pytest.param("StageWorker", signal.SIGKILL, _LONG, r"stage \d \(layers? ", True, marks=pytest.mark.exhaustive),
        ("StageWorker", signal.SIGTERM, _LONG, r"stage \d \(layers? ", True),
        pytest.param("FeederWorker", signal.SIGTERM, _LONG, "feeder 1", False, marks=pytest.mark.exhaustive),
        pytest.param(
            "CoordinatorWorker",
            signal.SIGTERM,
            _LABELLED,
            r"coordinator \(label embeddings\)",
            True,
            marks=pytest.mark.exhaustive,
        ),
    ],
)
def test_a_killed_worker_ends_the_run_naming_it(
    tmp_path: Path, victim: str, number: signal.Signals, arguments: list[str], name: str, loses: bool
) -> None:
    """And what the living workers hold is kept, beside the weights of the best epoch, which were saved before.

    Symptoms: after SIGTERM to a stage's process the run went on for 300 s without a word, as Ray's handler had taken
    it out of the cluster, and it trained on. One dead stage lost what all others held.
    """
    launched = launch(tmp_path, *arguments, "--max-restarts", "0", "--run-dir", str(tmp_path / "run"))
    launched.wait_for("epoch 1/500")
    while not (tmp_path / "run" / "model.safetensors").exists():  # the best weights so far, a moment later
        assert launched.process.poll() is None, launched.text()
        time.sleep(0.05)
    workers = [pid for pid, command in launched.descendants().items() if f"ray::{victim}" in command]
    assert workers, launched.descendants()
    # Ray's own default, niceness 15, would have the stages yield to every other process.
    assert os.getpriority(os.PRIO_PROCESS, workers[-1]) == os.getpriority(os.PRIO_PROCESS, 0)
    begun = time.monotonic()
    os.kill(workers[-1], number)
    assert launched.finish(120) == 1
    assert time.monotonic() - begun < 90  # it does not hang; 3 s where nothing else runs
    said = next(line for line in launched.text().splitlines() if line.startswith("error: "))
    assert re.match(f"error: {name}.*died", said)
    launched.assert_nothing_left()
    assert (tmp_path / "run" / "curves.png").exists() and (tmp_path / "run" / "pipeline.png").exists()
    kept = launched.text().splitlines()[-1]
    assert re.fullmatch(r"Kept: the weights of epoch \d+, in .*/model\.safetensors", kept)
    best = load_file(tmp_path / "run" / "model.safetensors")
    assert {name.split(".")[1] for name in best if name.startswith("layers.")} == {"0", "1", "2", "3"}
    if not loses:
        return
    held = {name.split(".")[1] for name in load_file(tmp_path / "run" / "salvaged.safetensors") if "layers." in name}
    assert held in ([{"0", "1"}, {"2", "3"}] if victim == "StageWorker" else [{"0", "1", "2", "3"}])


@pytest.mark.parametrize("executor", ["serial", "threads", "ray"])
def test_a_loss_that_is_no_number_stops_with_the_good_weights(
    tmp_path: Path, executor: str, cluster: None, capsys: Any
) -> None:
    arguments = ["cff-vit", "--dim", "16", "--heads", "2", "--batch-size", "64", "--lr", "1e18", "--device", "cpu"]
    arguments += ["--executor", executor, *(["--stages", "2"] if executor != "serial" else [])]
    assert main([*arguments, "--run-dir", str(tmp_path / "run")]) == 1
    said = capsys.readouterr().err
    assert "stage " in said
    assert "layer " in said
    assert "epoch 1, step " in said
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["status"] == "failed"
    weights = load_file(tmp_path / "run" / "model.safetensors")
    assert all(torch.isfinite(value).all() for value in weights.values())


def test_the_first_bad_step_is_the_same_for_every_executor(small_settings: Settings) -> None:
    settings = replace(small_settings, train=replace(small_settings.train, lr=1e18))
    with pytest.raises(NonFiniteLossError) as serial:
        train_serial(*make_run(settings))
    with pytest.raises(NonFiniteLossError) as threads:
        train_threads(*make_run(replace(settings, pipeline=replace(settings.pipeline, executor="threads")), stages=1))
    assert str(serial.value) == str(threads.value)


def test_a_disk_that_fills_up_loses_no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    run = tmp_path / "run"

    def full(file: Path, *rest: Any) -> None:
        if file.is_relative_to(run):
            raise OSError(28, "No space left on device")
        export.save(file, *rest)

    monkeypatch.setattr("launch.output.run_folder.save", full)
    monkeypatch.setattr("tempfile.mkdtemp", lambda prefix: str(tmp_path / "elsewhere"))
    (tmp_path / "elsewhere").mkdir()
    arguments = ["cff-vit", "--executor", "serial", "--dim", "16", "--heads", "2"]
    arguments += ["--epochs", "1", "--readout-epochs", "1"]
    assert main([*arguments, "--run-dir", str(run)]) == 0
    captured = capsys.readouterr()
    assert "No space left" in captured.err
    assert str(tmp_path / "elsewhere") in captured.out
    assert load_file(tmp_path / "elsewhere" / "model.safetensors")
    assert (tmp_path / "elsewhere" / "curves.png").exists()


def test_stages_that_find_no_room_say_what_is_there(small_settings: Settings, cluster: None) -> None:
    from workers.group import train_ray

    pipe = replace(small_settings.pipeline, executor="ray", resource_timeout=1.0, threads=6)
    spec, _ = make_run(replace(small_settings, pipeline=pipe), stages=2)
    with pytest.raises(ResourcesError, match=r"2 stages need 6 CPU each; after 1 s the cluster has 8 CPU"):
        train_ray(spec)
