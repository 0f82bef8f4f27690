"""The coordinator and what may go wrong with it: named errors, clean ends, and waiting that is accounted for."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.config.run_spec import RunSpec
from pipeline.config.settings import Settings
from pipeline.errors import NonFiniteLossError, PeerLostError, RunError, SharedStateError
from pipeline.layers.shared_state import VersionedState
from pipeline.methods import BatchPosition, DclSettings
from pipeline.methods.embeddings import EmbeddingSettings
from pipeline.runtime.checkpointing import NO_CHECKPOINTS
from pipeline.runtime.history import RunResult
from pipeline.runtime.serial import train_serial
from pipeline.runtime.stage import AwaitedState
from pipeline.runtime.threads import train_threads
from pipeline.telemetry.clock import Clock, TimeCategory
from pipeline.versions import Mode
from tests.conftest import make_run
from tests.support import CPU, changed, tiny_spec
from tests.support_cli import launch
from tests.test_embedding_equality import settings_with

_LONG = ["cfl-fc", "--data", "digits", "--width", "48", "--groups", "3", "--depth", "3", "--batch-size", "64"]
_LONG += ["--epochs", "500", "--milestones", "400", "--stages", "2", "--device", "cpu"]


def train(settings: Settings, executor: str, stages: int) -> RunResult:
    pipe = replace(settings.pipeline, executor=executor, stall_timeout=250)  # type: ignore[arg-type]
    settings = replace(settings, pipeline=pipe)
    spec, dataset = make_run(settings, stages=stages)
    if executor == "serial":
        return train_serial(spec, dataset)
    if executor == "threads":
        return train_threads(spec, dataset)
    from workers.group import train_ray

    return train_ray(spec)


@pytest.mark.slow
@pytest.mark.exhaustive  # test_failures.py has it end by SIGTERM, test_lasting.py goes on after it was killed
def test_a_killed_coordinator_ends_the_run_naming_it(tmp_path: Path) -> None:
    launched = launch(tmp_path, *_LONG, "--max-restarts", "0", "--run-dir", str(tmp_path / "run"))
    launched.wait_for("epoch 1/500")
    (worker,) = [pid for pid, command in launched.descendants().items() if "CoordinatorWorker" in command]
    begun = time.monotonic()
    os.kill(worker, signal.SIGKILL)
    assert launched.finish(200) == 1
    assert time.monotonic() - begun < 200  # not the stall timeout
    said = next(line for line in launched.text().splitlines() if line.startswith("error: "))
    assert said.startswith("error: coordinator (label embeddings) died")
    launched.assert_nothing_left()


@pytest.mark.parametrize(("executor", "stages"), [("serial", 1), ("threads", 3), ("ray", 2)])
def test_a_dictionary_that_is_no_number_ends_the_run_naming_the_version(
    executor: str, stages: int, cluster: None
) -> None:
    # So long a lag that the dictionary spoils before any layer reads what it has become.
    embedding = EmbeddingSettings(embedding_mode="last", embedding_lag=9, embedding_lr=3e38)
    settings = replace(settings_with(), method=DclSettings(embedding=embedding))
    begun = time.monotonic()
    with pytest.raises(SharedStateError, match=r"^label embeddings: version 1 is not a number"):
        train(settings, executor, stages)
    assert time.monotonic() - begun < 200  # not the stall timeout


def test_a_stage_that_waits_for_embeddings_ends_when_another_fails() -> None:
    settings = settings_with(mode="shared-sum", lag=0, method=DclSettings())
    settings = replace(settings, train=replace(settings.train, lr=1e18))
    begun = time.monotonic()
    with pytest.raises((NonFiniteLossError, SharedStateError)) as failure:
        train(settings, "threads", 4)
    assert isinstance(failure.value, RunError)
    assert time.monotonic() - begun < 200  # not the stall timeout


def test_waiting_for_a_version_counts_as_sync_and_reading_one_that_is_there_does_not() -> None:
    embedding = EmbeddingSettings(embedding_mode="last", embedding_lag=0, embedding_width=8)
    spec = changed(tiny_spec(method=DclSettings(embedding=embedding)), "pipeline", stall_timeout=60)
    dictionary, clock = VersionedState(spec), Clock()
    source = AwaitedState(dictionary, clock)
    last = spec.num_layers - 1

    def sync() -> float:
        return clock.read().seconds[TimeCategory.SYNC]

    taken = []
    for _ in range(20):
        before = sync()
        source.read(last, BatchPosition(step=0, training=True))
        taken.append(sync() - before)
    assert min(taken) < 0.05  # another program may have had the core during some of them
    waited = sync()

    def push() -> None:
        while sync() - waited < 0.25:  # or the reader is not waiting yet
            time.sleep(0.01)
        dictionary.push(last, 0, torch.ones(dictionary.shape))

    pushing = threading.Thread(target=push, daemon=True)
    pushing.start()
    source.read(last, BatchPosition(step=1, training=True))
    pushing.join(60)


@contextmanager
def coordinator(*, away: bool = False, mode: Mode = "last", timeout: float = 60) -> Iterator[tuple[Any, RunSpec]]:
    """An actor of its own, of a run of three layers; away: as if on another machine."""
    import ray

    from workers.coordinator import CoordinatorWorker

    class Away(CoordinatorWorker):
        def offer_line(self, attempt: int, stage: str) -> None:
            return None

    embedding = EmbeddingSettings(embedding_mode=mode, embedding_width=8)
    spec = tiny_spec(method=DclSettings(embedding=embedding))
    spec = changed(spec, "pipeline", stall_timeout=timeout)
    kind = Away if away else CoordinatorWorker
    worker: Any = ray.remote(kind).options(num_cpus=0, max_concurrency=6).remote(spec)
    try:
        yield worker, spec
    finally:
        ray.kill(worker)


def test_gradients_that_one_stage_repeats_are_refused_by_the_coordinator(cluster: None) -> None:
    import ray

    with coordinator() as (worker, spec):
        ray.get(worker.begin.remote(NO_CHECKPOINTS, 3))
        watch = worker.watch.remote(3)
        gradient = torch.ones(len(spec.classes), 8).numpy()
        ray.get(worker.push.remote(3, [(2, 0, gradient)]))
        assert sorted(ray.get(worker.wait_from.remote(3, 1))) == [1]
        with pytest.raises(ray.exceptions.RayTaskError, match=r"layer 3, step 1: its gradient came twice"):
            ray.get(worker.push.remote(3, [(2, 0, gradient)]))
        with pytest.raises(ray.exceptions.RayTaskError, match="came twice"):
            ray.get(watch, timeout=60)


def test_what_is_under_way_from_an_attempt_that_is_over_does_not_reach_the_next(cluster: None) -> None:
    import ray

    with coordinator() as (worker, spec):
        ray.get(worker.begin.remote(NO_CHECKPOINTS, 0))
        watch, waiting = worker.watch.remote(0), worker.wait_from.remote(0, 1)
        ray.get(worker.begin.remote(NO_CHECKPOINTS, 1))
        for over in (watch, waiting):
            with pytest.raises(ray.exceptions.RayTaskError, match="PeerLostError"):
                ray.get(over, timeout=30)
        gradient = torch.ones(len(spec.classes), 8).numpy()
        for late in (worker.push.remote(0, [(2, 0, gradient)]), worker.freeze.remote(0, 0)):
            with pytest.raises(ray.exceptions.RayTaskError, match="the run has begun anew"):
                ray.get(late)
        ray.get(worker.push.remote(1, [(2, 0, gradient)]))  # the first of its step
        assert sorted(ray.get(worker.wait_from.remote(1, 1))) == [1]


def stage_of(worker: Any, spec: RunSpec, number: int, layers: range, attempt: int = 0) -> Any:
    from workers.remote_base import Part
    from workers.remote_state import remote_state

    part = Part(spec=spec, coordinator=worker, name=f"stage {number}", layers=layers, device=CPU, attempt=attempt)
    return remote_state(part)


def at(step: int) -> BatchPosition:
    return BatchPosition(step=step, training=True)


@pytest.mark.parametrize("away", [False, True])
def test_stages_near_the_coordinator_and_away_from_it_read_what_one_process_does(away: bool, cluster: None) -> None:
    import ray

    from workers.called_state import CalledState
    from workers.near_state import NearState

    with coordinator(away=away, mode="shared-mean") as (worker, spec):
        ray.get(worker.begin.remote(NO_CHECKPOINTS))
        first, second = stage_of(worker, spec, 1, range(2)), stage_of(worker, spec, 2, range(2, 3))
        assert {type(first), type(second)} == {CalledState if away else NearState}
        alone, read = VersionedState(spec), []
        for step in range(8):
            for layer, stage in ((0, first), (1, first), (2, second)):
                read.append(torch.equal(stage.read(layer, at(step)), alone.read(layer, at(step))))
                values = torch.full(alone.shape, 0.1 * layer + step)
                stage.push(layer, step, values)
                alone.push(layer, step, values)
        first.freeze(1)
        alone.freeze(1)
        test = BatchPosition(step=8, training=False)
        assert torch.equal(first.read(0, test), alone.read(0, test))
        assert len(read) == 24 and all(read)
        assert not torch.equal(alone.wait_for(8), alone.wait_for(7)), "or equal versions show nothing"
        for stage in (first, second):
            stage.close()


@pytest.mark.parametrize("away", [False, True])
def test_a_stage_that_waits_for_a_version_ends_with_the_attempt(away: bool, cluster: None) -> None:
    """Symptom: when another stage died or failed, one that waited for what that would have said was healthy, came out
    at the stall timeout alone, five minutes later, and was started anew."""
    import ray

    with coordinator(away=away, mode="shared-mean", timeout=600) as (worker, spec):
        ray.get(worker.begin.remote(NO_CHECKPOINTS, 4))
        stage = stage_of(worker, spec, 1, range(2), attempt=4)
        threading.Timer(0.3, worker.end.remote, [4]).start()  # it waits by then
        with pytest.raises(PeerLostError):
            stage.read(0, at(5))
        stage.close()


def test_a_version_that_does_not_come_is_an_error_that_says_whose_gradient_it_lacks(cluster: None) -> None:
    import ray

    with coordinator(mode="shared-mean", timeout=1) as (worker, spec):
        ray.get(worker.begin.remote(NO_CHECKPOINTS))
        stage, other = stage_of(worker, spec, 2, range(1, 3)), stage_of(worker, spec, 1, range(1))
        for layer in (1, 2):
            stage.push(layer, 0, torch.ones(len(spec.classes), 8))
        while "layer 1, " in ray.get(worker.lacking.remote(0)):  # what was said is heard a moment later
            time.sleep(0.05)
        with pytest.raises(
            PeerLostError, match=r"version 1 did not come within 1 s; step 1 lacks the gradient of layer 1"
        ):
            stage.read(2, at(2))
        other.close()


def test_a_line_ends_with_its_attempt_which_ends_by_what_a_stage_says_wrongly(cluster: None) -> None:
    """All stages are let go, nothing of an attempt reaches the next, and the coordinator's death shows at once."""
    import ray

    with coordinator() as (worker, spec):
        gradient = torch.ones(len(spec.classes), 8)
        ray.get(worker.begin.remote(NO_CHECKPOINTS, 0))
        watch = worker.watch.remote(0)
        last, waiting = stage_of(worker, spec, 2, range(1, 3)), stage_of(worker, spec, 1, range(1))
        for _ in range(2):
            last.push(2, 0, gradient)
        with pytest.raises(ray.exceptions.RayTaskError, match="layer 3, step 1: its gradient came twice"):
            ray.get(watch, timeout=60)
        with pytest.raises(PeerLostError):
            waiting.read(0, at(9))
        ray.get(worker.begin.remote(NO_CHECKPOINTS, 1))
        before = stage_of(worker, spec, 1, range(3), attempt=1)
        ray.get(worker.begin.remote(NO_CHECKPOINTS, 2))
        with pytest.raises(PeerLostError):
            before.read(2, at(9))
        after = stage_of(worker, spec, 1, range(3), attempt=2)
        after.push(2, 0, 3 * gradient)
        alone = VersionedState(spec)
        alone.push(2, 0, 3 * gradient)
        assert torch.equal(after.read(2, at(2)), alone.wait_for(1)), "nothing of the attempts before is in it"
        ray.kill(worker)
        with pytest.raises(PeerLostError, match="is gone"):
            after.read(2, at(9))
