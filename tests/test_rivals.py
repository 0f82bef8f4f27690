"""The other side of the benchmark: every way of backpropagation learns what one device learns, or says why not."""

from __future__ import annotations

import copy
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from launch.bench.backprop import replicas
from launch.bench.backprop.alone import Alone
from launch.bench.backprop.batches import in_memory
from launch.bench.backprop.entry import BackpropRunner, backprop_runners
from launch.bench.backprop.final_messages import kind_of
from launch.bench.backprop.job import Way
from launch.bench.backprop.layers import LayerByLayer
from launch.bench.backprop.part import Part
from launch.bench.backprop.planning import backprop_spec, plan
from launch.bench.protocol import CannotRunError
from launch.bench.stages import stages_of_net
from pipeline.config.run_spec import RunSpec
from pipeline.config.settings import Settings
from pipeline.data.loader import Dataset
from pipeline.layers.state import State
from pipeline.methods import InfoproSettings
from pipeline.nets import ConvSettings, ResnetSettings, VitSettings
from pipeline.runtime.serial import train_serial
from pipeline.telemetry.reports import PassReport
from tests.conftest import make_run
from tests.support import Watching, changed, tiny_spec
from tests.support_replicas import DataParallelOnCpu

_BATCH = 320
_STEPS = 4  # an epoch of digits; also what is kept in memory
_DIM, _TOKENS, _DEPTH = 16, 16, 3


@pytest.fixture(scope="module")
def run(small_settings: Settings) -> tuple[RunSpec, Dataset]:
    settings = replace(
        small_settings,
        net=VitSettings(dim=_DIM, heads=2, depth=_DEPTH),
        train=replace(small_settings.train, epochs=1, batch_size=_BATCH),
        pipeline=replace(small_settings.pipeline, executor="ray"),
    )
    spec, dataset = make_run(settings, stages=2)
    assert spec.steps_per_epoch == _STEPS
    return spec, dataset


@pytest.fixture(scope="module")
def learned(run: tuple[RunSpec, Dataset]) -> tuple[State, float]:
    """Weights of the serial loop after an epoch of ``--baseline bp``, and the last step's loss."""
    spec, dataset = run
    reports: list[PassReport] = []
    result = train_serial(backprop_spec(spec), dataset, Watching(reports.append))
    weights = {name: value for name, value in result.last.items() if ".optimizer." not in name}
    return weights, float(reports[0].layers[0].losses[-1])


@contextmanager
def started(runner: BackpropRunner) -> Iterator[BackpropRunner]:
    try:
        runner.start()
        yield runner
    finally:
        runner.close()
        assert not [child for child in multiprocessing.active_children() if child.name.startswith(runner.name)]


def rival_of(
    run: tuple[RunSpec, Dataset], way: Way, microbatches: int = 1, *, source: str = "memory", warm: int = 1
) -> BackpropRunner:
    spec, dataset = run
    kept = dataset if source == "memory" else None
    return BackpropRunner(spec, way, 2, microbatches=microbatches, dataset=kept, warm=warm)


def processes(runner: BackpropRunner) -> dict[str, int]:
    """Process ids by name."""
    return {
        child.name: child.pid or 0 for child in multiprocessing.active_children() if child.name.startswith(runner.name)
    }


def ticks(pid: int) -> int:
    """CPU time of a process in 1/100 s."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def spent_while_idle(runner: BackpropRunner) -> dict[str, int]:
    """CPU time that each process takes within 0.3 s, in 1/100 s."""
    before = {name: ticks(pid) for name, pid in processes(runner).items()}
    time.sleep(0.3)
    return {name: ticks(pid) - before[name] for name, pid in processes(runner).items()}


def without_key_biases(state: State) -> State:
    """A softmax does not see them. Their gradient is rounding alone, of which AdamW makes whole updates."""
    return {
        name: torch.cat([value[:_DIM], value[2 * _DIM :]]) if name.endswith("qkv.bias") else value
        for name, value in state.items()
    }


@pytest.mark.slow
@pytest.mark.parametrize("source", ["memory", "feeder"])
def test_one_device_learns_the_bits_of_the_serial_loop(
    run: tuple[RunSpec, Dataset], learned: tuple[State, float], source: str
) -> None:
    with started(rival_of(run, "backprop", source=source)) as runner:  # two steps at the start
        done = runner.round(1)  # and one that is not measured
        weights = runner.weights()
    expected, loss = learned
    assert weights.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(weights[name], value), name
    assert (done.images, done.bytes_per_step, done.loss) == (_BATCH, 0, pytest.approx(loss, rel=1e-6))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("way", "microbatches", "source"),
    [("ddp", 1, "memory"), ("gpipe", 8, "memory"), ("1f1b", 8, "feeder")],
)
def test_several_devices_learn_what_one_learns(
    run: tuple[RunSpec, Dataset], learned: tuple[State, float], way: Way, microbatches: int, source: str
) -> None:
    with started(rival_of(run, way, microbatches, source=source)) as runner:
        done = runner.round(1)
        weights = runner.weights()
        spans = [spent_while_idle(runner) for _ in range(3)]  # a thread that still ends spoils one, not all
        assert len(spans[0]) == (2 if source == "memory" else 3)
        assert min(sum(spent.values()) for spent in spans) <= 1, f"between rounds it is to use no CPU: {spans}"

    expected, loss = learned
    assert weights.keys() == expected.keys()
    exact = without_key_biases(expected)
    for name, value in without_key_biases(weights).items():
        assert torch.allclose(value, exact[name], rtol=1e-5, atol=1e-6), name

    assert done.loss == pytest.approx(loss, rel=1e-5)
    assert done.images == _BATCH
    names = ("rank 1", "rank 2") if way == "ddp" else ("stage 1 (layer 1)", "stage 2 (layers 2-3)")
    assert tuple(device.name for device in done.devices) == names
    if way == "ddp":
        num_parameters = sum(value.numel() for value in expected.values())
        assert done.bytes_per_step == 2 * 4 * num_parameters  # two ranks: each sends all gradients once
    else:
        assert done.bytes_per_step == 2 * 4 * _BATCH * _TOKENS * _DIM  # activations on, their gradients back
    for device in done.devices:
        assert set(device.seconds) == {"busy", "communication", "wait_in", "other"}
        assert min(device.seconds["busy"], device.seconds["communication"]) > 0
        assert min(device.seconds.values()) >= 0
        assert sum(device.seconds.values()) <= done.seconds * 1.001
        assert device.peak_bytes > 50 << 20  # Python and PyTorch alone


def test_dataparallel_learns_what_one_device_learns(
    run: tuple[RunSpec, Dataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Symptom: the row ended in a StopIteration. It cannot run without GPUs, so their place is taken by this CPU."""
    spec, dataset = run
    alone = replace(plan(spec, "backprop", 1), way="dataparallel")
    several = replace(alone, num_devices=2)
    plain = replicas.Replicated(alone, 0)
    monkeypatch.setattr(replicas, "DataParallel", DataParallelOnCpu)
    shared = replicas.Replicated(several, 0)
    (first,), (second,) = in_memory(alone, dataset), in_memory(several, dataset)
    for _ in range(2):
        torch.testing.assert_close(shared.step(second.take()), plain.step(first.take()))
    exact = without_key_biases(plain.weights())
    for name, value in without_key_biases(shared.weights()).items():
        torch.testing.assert_close(value, exact[name], rtol=1e-5, atol=1e-6, msg=name)
    scores = _BATCH * len(spec.classes)
    num_parameters = sum(parameter.numel() for parameter in shared.part.parameters())
    assert shared.bytes_per_step == 4 * (2 * num_parameters + (_BATCH * 64 + 2 * scores) // 2)


@pytest.mark.slow
def test_a_killed_rank_ends_the_round_by_name(run: tuple[RunSpec, Dataset]) -> None:
    with started(rival_of(run, "ddp", source="feeder")) as runner:
        pids = processes(runner)
        threading.Timer(0.5, os.kill, (pids["ddp rank 2"], signal.SIGKILL)).start()
        begun = time.monotonic()
        with pytest.raises(
            CannotRunError, match=r"rank 2 was killed.* The batch was 320 images on 2 devices; .*--batch"
        ):
            runner.round(1_000_000)
        assert time.monotonic() - begun < 55  # 2 s where nothing else runs; the ranks' own patience is a minute
        assert not processes(runner)


@pytest.mark.slow
def test_a_loader_that_fails_is_named_with_what_it_said(run: tuple[RunSpec, Dataset], tmp_path: Path) -> None:
    spec, _ = run
    runner = BackpropRunner(replace(spec, data_folder=str(tmp_path / "gone")), "backprop", 2, dataset=None)
    with pytest.raises(Exception, match=r"backprop, 1 device: the loader UserError: .*gone") as failure:
        runner.start()
    assert type(failure.value).__name__ == "StageFailedError"
    assert not processes(runner)
    runner.close()


def test_memory_that_cannot_be_had_is_told_from_other_failures() -> None:
    with pytest.raises(RuntimeError) as refused:
        torch.empty(1 << 55, dtype=torch.uint8)
    wrapped = RuntimeError("stage 1 failed to run forward")
    wrapped.__cause__ = refused.value
    assert kind_of(refused.value) == kind_of(wrapped) == kind_of(MemoryError()) == "memory"
    assert kind_of(CannotRunError("no")) == "cannot"
    assert kind_of(RuntimeError("memory")) == "failed"


@pytest.mark.parametrize(
    ("way", "num_devices", "microbatches", "batch_size", "reason"),
    [
        ("ddp", 1, 1, 6, "needs 2 devices or more, and there is 1 device"),
        ("gpipe", 1, 2, 6, "needs 2 devices or more"),
        ("1f1b", 1, 2, 6, "needs 2 devices or more"),
        ("dataparallel", 2, 1, 6, "works on GPUs only"),
        ("ddp", 2, 1, 7, "--batch-size 7 does not divide into 2. --batch-size 6 would"),
        ("gpipe", 2, 4, 6, "does not divide into 4 microbatches. --batch-size 4 would"),
        ("1f1b", 2, 8, 6, "does not divide into 8 microbatches. --batch-size 8 would"),
        ("1f1b", 3, 2, 6, "2 for 3 stages"),
    ],
)
def test_what_cannot_run_says_why(way: Way, num_devices: int, microbatches: int, batch_size: int, reason: str) -> None:
    spec = tiny_spec(batch_size=batch_size)
    runner = BackpropRunner(spec, way, num_devices, microbatches=microbatches, dataset=None)
    with pytest.raises(CannotRunError) as refusal:
        runner.start()
    assert reason in str(refusal.value)
    runner.close()


def test_more_devices_than_layers_make_as_many_stages_as_layers() -> None:
    spec = tiny_spec(net=VitSettings(dim=8, heads=2, depth=2, patch=2))
    assert plan(spec, "gpipe", 4, 2).stages == (range(1), range(1, 2))


def test_the_stages_of_the_run_are_those_of_its_rivals() -> None:
    spec = replace(tiny_spec(stages=2), stages=(range(2), range(2, 3)))
    sized = changed(spec, "pipeline", partition=(2, 1), stages=2)
    assert plan(spec, "1f1b", 2, 2).stages == plan(sized, "1f1b", 2, 2).stages == spec.stages


def test_stages_of_modules_are_cut_at_the_same_layers() -> None:
    """Symptom: where modules have several layers, rivals of an uneven partition were cut evenly."""
    net, method = ResnetSettings(depth=14, width=4), InfoproSettings(modules=3)
    spec = replace(tiny_spec(net=net, method=method), stages=(range(1), range(1, 3)))
    assert plan(spec, "1f1b", 2, 2).stages == (range(2), range(2, 6))
    assert stages_of_net(spec) == (range(2), range(2, 6))


def test_layers_that_are_timed_learn_as_in_a_pipeline(run: tuple[RunSpec, Dataset]) -> None:
    spec, dataset = run
    job = replace(plan(spec, "gpipe", 2, 8), way="layers", num_ranks=1, stages=(range(_DEPTH),))
    timed, alone = LayerByLayer(job, 0), Alone(plan(spec, "backprop", 1), 0)
    (first,), (second,) = in_memory(job, dataset), in_memory(job, dataset)
    for _ in range(2):
        torch.testing.assert_close(timed.step(first.take()), alone.step(second.take()), rtol=1e-5, atol=1e-6)
    exact = without_key_biases(alone.weights())
    for name, value in without_key_biases(timed.weights()).items():
        torch.testing.assert_close(value, exact[name], rtol=1e-5, atol=1e-6, msg=name)
    seconds = timed.take_seconds()
    assert len(seconds) == _DEPTH
    assert min(seconds) > 0


@pytest.mark.slow
@pytest.mark.exhaustive
def test_a_balanced_pipeline_is_cut_where_its_own_layers_take_as_long(small_settings: Settings) -> None:
    """Of four layers the last takes nearly all the time: an even cut would have it share a stage with the third."""
    settings = replace(
        small_settings,
        net=ConvSettings(channels=(4, 4, 64, 1024), first_padding=1),
        train=replace(small_settings.train, batch_size=32),
        pipeline=replace(small_settings.pipeline, executor="ray"),
    )
    spec, dataset = make_run(settings, stages=2)
    names = {}
    for way in ("gpipe", "1f1b"):
        runner = BackpropRunner(spec, way, 2, microbatches=8, dataset=dataset, warm=1, balanced=True)
        with started(runner):
            names[way] = [device.name for device in runner.round(1).devices]
    assert names["gpipe"] == names["1f1b"] == ["stage 1 (layers 1-3)", "stage 2 (layer 4)"]


def test_a_copy_of_the_net_computes_with_its_own_weights() -> None:
    part = Part(plan(tiny_spec(), "backprop", 1), 0, None)
    # What DataParallel makes of it on every GPU.
    copied = part._replicate_for_data_parallel()  # type: ignore[no-untyped-call]
    copied.layers = copy.deepcopy(part.layers)
    with torch.no_grad():
        for parameter in copied.layers.parameters():
            parameter.mul_(2)
        images = torch.ones(2, 1, 8, 8)
        assert not torch.allclose(copied(images), part(images))


def test_every_row_has_its_name_and_tells_what_it_is() -> None:
    spec = changed(tiny_spec(batch_size=32), "pipeline", compile="on")
    rows = {runner.name: runner.title for runner in backprop_runners(spec, 2, dataset=None)}
    assert list(rows) == ["backprop", "dataparallel", "ddp", "gpipe-8", "gpipe-32", "1f1b-8", "1f1b-32"]
    assert rows["backprop"] == "backprop, 1 device"
    assert rows["dataparallel"] == "DataParallel backprop, 2 devices, not compiled"
    assert rows["1f1b-8"] == "1F1B backprop, 8 microbatches, 2 devices"
    graphs = replace(spec, device="cuda")
    rows = {runner.name: runner.title for runner in backprop_runners(graphs, 2, dataset=None)}
    assert rows["gpipe-32"] == "GPipe backprop, 32 microbatches, 2 devices, compiled without CUDA graphs"
    assert rows["ddp"] == "DDP backprop, 2 devices"
