"""The coordinator and what may go wrong with it: named errors, clean ends, and waiting that is accounted for."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.config.run_spec import RunSpec
from pipeline.config.settings import Settings
from pipeline.errors import NonFiniteLossError, RunError, SharedStateError
from pipeline.layers.shared_state import VersionedState
from pipeline.methods import BatchPosition, DclSettings
from pipeline.methods.embeddings import EmbeddingSettings
from pipeline.runtime.checkpointing import NO_CHECKPOINTS
from pipeline.runtime.history import RunResult
from pipeline.runtime.serial import train_serial
from pipeline.runtime.stage import AwaitedState
from pipeline.runtime.state_line import state_edges
from pipeline.runtime.threads import train_threads
from pipeline.telemetry.clock import Clock, TimeCategory
from pipeline.transport import Transport
from pipeline.transport.edges import EdgeGroups
from pipeline.versions import Mode
from tests.conftest import make_run
from tests.support import CPU, changed, tiny_spec
from tests.support_cli import launch
from tests.test_embedding_equality import settings_with
from workers.coordinator import CoordinatorWorker
from workers.remote_state import Part, RemoteState
from workers.rendezvous import Exchange, RunGroups

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


class StagePart:
    """A stage's part in the shared state, in a process of its own."""

    def __init__(self, spec: RunSpec, number: int) -> None:
        self._spec, self._number = spec, number
        self._exchange: Exchange | None = None
        self._state: RemoteState | None = None

    def open_exchange(self, secret: bytes) -> None:
        self._exchange = Exchange(secret)

    def exchange(self, secret: bytes, said: Any, heard: int) -> Any:
        assert self._exchange is not None
        return self._exchange.exchange(secret, said, heard)

    def connect(self, groups: RunGroups, first: Any, coordinator: Any, attempt: int) -> None:
        layers = self._spec.stages[self._number]
        part = Part(spec=self._spec, coordinator=coordinator, layers=layers, device=CPU, attempt=attempt)
        self._state = RemoteState(part)
        _, ends = groups.join(self._number, CPU, Clock(), first)
        self._state.join(ends)

    def kinds(self) -> set[str]:
        """Of its ends of the line."""
        ends = self.state._ends
        return {type(end).__name__ for end in (*ends.inboxes, *ends.outboxes)}

    @property
    def state(self) -> RemoteState:
        assert self._state is not None, "connect() comes first"
        return self._state

    def read(self, layer: int, step: int, training: bool = True) -> torch.Tensor:
        return self.state.read(layer, BatchPosition(step=step, training=training))

    def push(self, layer: int, step: int, values: torch.Tensor) -> None:
        self.state.push(layer, step, values)

    def freeze(self, epoch: int) -> None:
        self.state.freeze(epoch)

    def close(self) -> None:
        self.state.close()


class Parts:
    """The parts of three layers' shared state: two stages and the coordinator, an actor each."""

    def __init__(self, *, transport: Transport = "auto", mode: Mode = "last", timeout: float = 60) -> None:
        import ray

        embedding = EmbeddingSettings(embedding_mode=mode, embedding_width=8)
        spec = tiny_spec(method=DclSettings(embedding=embedding), stages=2)
        self.spec = changed(spec, "pipeline", stall_timeout=timeout, transport=transport)
        self.coordinator: Any = ray.remote(CoordinatorWorker).options(num_cpus=0, max_concurrency=6).remote(self.spec)
        kind: Any = ray.remote(StagePart).options(num_cpus=0, max_concurrency=4)
        self.stages: list[Any] = [kind.remote(self.spec, number) for number in range(2)]
        self.of_layer = [stage for stage, layers in zip(self.stages, self.spec.stages, strict=True) for _ in layers]
        self.attempt = -1

    def begin(self) -> None:
        """Begins an attempt, and joins everybody."""
        import ray

        self.attempt += 1
        ray.get(self.coordinator.begin.remote(NO_CHECKPOINTS, self.attempt))
        batches = EdgeGroups((), 3, self.spec.settings.pipeline.stall_timeout, 1)
        edges = state_edges(self.spec, ray.get(self.coordinator.shape.remote(self.attempt)), owner=2)
        groups, first = RunGroups(batches, replace(batches, edges=edges)), self.stages[0]
        ray.get(first.open_exchange.remote(batches.secret))
        joining = [stage.connect.remote(groups, first, self.coordinator, self.attempt) for stage in self.stages]
        ray.get([*joining, self.coordinator.connect.remote(self.attempt, groups, first)], timeout=60)

    def read(self, layer: int, step: int) -> torch.Tensor:
        import ray

        values: torch.Tensor = ray.get(self.of_layer[layer].read.remote(layer, step))
        return values

    def push(self, layer: int, step: int, values: torch.Tensor) -> None:
        import ray

        ray.get(self.of_layer[layer].push.remote(layer, step, values))

    @property
    def gradient(self) -> torch.Tensor:
        return torch.ones(len(self.spec.classes), 8)


@pytest.fixture
def parts(cluster: None, request: pytest.FixtureRequest) -> Iterator[Parts]:
    """Their options: the parameter."""
    import ray

    there = Parts(**getattr(request, "param", {}))
    there.begin()
    yield there
    for worker in (*there.stages, there.coordinator):
        ray.kill(worker)


@pytest.mark.parametrize(
    ("parts", "kinds"),
    [
        ({"mode": "shared-mean"}, {"SharedSender", "SharedReceiver"}),
        ({"mode": "shared-mean", "transport": "gloo"}, {"DistSender", "DistReceiver"}),
    ],
    indirect=["parts"],
)
def test_stages_near_the_coordinator_and_away_from_it_read_what_one_process_does(parts: Parts, kinds: set[str]) -> None:
    import ray

    assert all(ray.get(stage.kinds.remote()) == kinds for stage in parts.stages)
    alone, read = VersionedState(parts.spec), []
    for step in range(8):
        for layer in range(3):
            where = BatchPosition(step=step, training=True)
            read.append(torch.equal(parts.read(layer, step), alone.read(layer, where)))
            values = torch.full(alone.shape, 0.1 * layer + step)
            parts.push(layer, step, values)
            alone.push(layer, step, values)
    ray.get(parts.stages[0].freeze.remote(1))
    alone.freeze(1)
    frozen = ray.get(parts.stages[0].read.remote(0, 8, training=False))
    assert torch.equal(frozen, alone.read(0, BatchPosition(step=8, training=False)))
    assert len(read) == 24 and all(read)
    assert not torch.equal(alone.wait_for(8), alone.wait_for(7)), "or equal versions show nothing"


@pytest.mark.parametrize(
    "parts",
    [{"mode": "shared-mean", "timeout": 600, "transport": way} for way in ("auto", "gloo")],
    indirect=True,
)
def test_a_stage_that_waits_for_a_version_ends_with_the_attempt(parts: Parts) -> None:
    """Symptom: when another stage died or failed, one that waited for what that would have said was healthy, came out
    at the stall timeout alone, five minutes later, and was started anew."""
    import ray

    waiting = parts.stages[0].read.remote(0, 5)
    assert not ray.wait([waiting], timeout=0.5)[0], "it waits by then"
    parts.coordinator.end.remote(parts.attempt)
    with pytest.raises(ray.exceptions.RayTaskError, match="PeerLostError"):
        ray.get(waiting, timeout=60)


@pytest.mark.parametrize("parts", [{"mode": "shared-mean", "timeout": 3, "transport": "gloo"}], indirect=True)
def test_a_version_that_does_not_come_is_an_error_that_says_whose_gradient_it_lacks(parts: Parts) -> None:
    import ray

    for layer in parts.spec.stages[1]:  # which says it at once for all its layers
        parts.push(layer, 0, parts.gradient)
    while "layer 3" in ray.get(parts.coordinator.lacking.remote(0)):  # what was said is heard a moment later
        time.sleep(0.05)
    with pytest.raises(
        ray.exceptions.RayTaskError,
        match="version 1 did not come within 3 s; step 1 lacks the gradient of layer 1",
    ):
        parts.read(2, 2)


@pytest.mark.parametrize(
    "parts", [{"transport": "gloo"}, pytest.param({}, marks=pytest.mark.exhaustive)], indirect=True
)
def test_a_line_ends_with_its_attempt_which_ends_by_what_a_stage_says_wrongly(parts: Parts) -> None:
    """All stages are let go, nothing of an attempt reaches the next, and a death shows at once."""
    import ray

    failed, last = ray.exceptions.RayTaskError, parts.stages[1]
    watch, waiting = parts.coordinator.watch.remote(0), parts.stages[0].read.remote(0, 9)
    for _ in range(2):
        parts.push(2, 0, parts.gradient)
    begun = time.monotonic()
    with pytest.raises(failed, match="layer 3, step 1: its gradient came twice"):
        ray.get(watch, timeout=50)
    with pytest.raises(failed, match="PeerLostError"):
        ray.get(waiting, timeout=50)
    ray.get([stage.close.remote() for stage in parts.stages])
    parts.begin()
    watch = parts.coordinator.watch.remote(1)
    parts.push(2, 0, 2 * parts.gradient)
    ray.get([stage.close.remote() for stage in parts.stages])
    parts.begin()
    with pytest.raises(failed, match="the run begins anew"):
        ray.get(watch, timeout=50)
    with pytest.raises(failed, match="the run has begun anew"):
        ray.get(parts.coordinator.freeze.remote(1, 0), timeout=50)
    parts.push(2, 0, 3 * parts.gradient)
    alone = VersionedState(parts.spec)
    alone.push(2, 0, 3 * parts.gradient)
    assert torch.equal(parts.read(2, 2), alone.wait_for(1)), "nothing of the attempts before is in it"
    ray.kill(last)
    waiting = parts.stages[0].read.remote(0, 9)  # the others go on, until their own neighbours tell them
    assert not ray.wait([waiting], timeout=0.5)[0]
    ray.kill(parts.coordinator)
    with pytest.raises(failed, match="is gone"):
        ray.get(waiting, timeout=50)
    assert time.monotonic() - begun < 60  # not the stall timeout
