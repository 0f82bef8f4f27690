"""How long stages wait for label embeddings where a tick of the pipeline is as short as on a GPU.

    python tools/embedding_ticks.py 1 2 5

Two stages of a layer each read versions of a coordinator and send it gradients, and between sleep for a tick of so many
milliseconds, as a stage's host waits for its GPU. All three are Ray actors, as in a run. Stages share memory with the
coordinator in one turn and reach it over gloo in the next, as from another machine; medians over the turns.
"""

from __future__ import annotations

import statistics
import sys
import time
from dataclasses import dataclass, replace
from typing import Any

import ray
import torch

from pipeline.config.build import build_run, open_data
from pipeline.config.devices import Devices
from pipeline.config.run_spec import RunSpec
from pipeline.config.settings import DataSettings, PipelineSettings, Settings, TrainSettings
from pipeline.methods import BatchPosition, CflSettings
from pipeline.methods.embeddings import EmbeddingSettings
from pipeline.nets import MlpSettings
from pipeline.runtime.checkpointing import NO_CHECKPOINTS
from pipeline.runtime.state_line import state_edges
from pipeline.telemetry.clock import Clock
from pipeline.transport.edges import EdgeGroups
from workers.cluster import ray_cluster
from workers.coordinator import CoordinatorWorker
from workers.remote_state import Part, RemoteState
from workers.rendezvous import Exchange, RunGroups, Said

_STAGES = 2
_TURNS, _STEPS, _WARM = 5, 300, 30


@dataclass(frozen=True)
class Turn:
    """What a stage spent on a step: seconds in all, of waiting for and sending of label embeddings, and of its CPU."""

    wall: float
    sync: float
    cpu: float


class Ticker:
    """A stage whose layer takes a tick and computes nothing."""

    def __init__(self, spec: RunSpec, number: int) -> None:
        torch.set_num_threads(1)
        self._spec, self._number = spec, number

    def open_exchange(self, secret: bytes) -> None:
        """As ``workers.stage.StageWorker.open_exchange``."""
        self._exchange = Exchange(secret)

    def exchange(self, secret: bytes, said: Said, heard: int) -> Said:
        """As ``Exchange.exchange``."""
        return self._exchange.exchange(secret, said, heard)

    def take_turn(self, coordinator: Any, groups: RunGroups, first: Any, tick: float) -> Turn:
        """So many steps, of which the first are not measured. ``tick``: in seconds."""
        layers, device = self._spec.stages[self._number], torch.device("cpu")
        state = RemoteState(Part(spec=self._spec, coordinator=coordinator, layers=layers, device=device))
        _, ends = groups.join(self._number, device, Clock(), first)
        state.join(ends)
        sync = 0.0
        for step in range(_WARM + _STEPS):
            if step == _WARM:
                begun, used, sync = time.perf_counter(), time.process_time(), 0.0
            time.sleep(tick)
            waits = time.perf_counter()
            for layer in layers:
                values = state.read(layer, BatchPosition(step=step, training=True))
                state.push(layer, step, torch.ones_like(values))
            sync += time.perf_counter() - waits
        wall, used = time.perf_counter() - begun, time.process_time() - used
        state.close()
        return Turn(wall / _STEPS, sync / _STEPS, used / _STEPS)


class Crew:
    """A coordinator and its stages."""

    def __init__(self, spec: RunSpec) -> None:
        self._spec = spec
        self._coordinator: Any = ray.remote(CoordinatorWorker).options(num_cpus=0, max_concurrency=4).remote(spec)
        self._stages: list[Any] = [
            ray.remote(Ticker).options(num_cpus=0, max_concurrency=4).remote(spec, number) for number in range(_STAGES)
        ]

    def take_turn(self, tick: float) -> list[Turn]:
        """A turn of every stage, at the same time, from the first version on."""
        ray.get(self._coordinator.begin.remote(NO_CHECKPOINTS))
        none = EdgeGroups((), _STAGES + 1, self._spec.settings.pipeline.stall_timeout, 1)
        edges = state_edges(self._spec, ray.get(self._coordinator.shape.remote()), owner=_STAGES)
        groups, first = RunGroups(none, replace(none, edges=edges)), self._stages[0]
        ray.get(first.open_exchange.remote(none.secret))
        asked = [stage.take_turn.remote(self._coordinator, groups, first, tick) for stage in self._stages]
        ray.get(self._coordinator.connect.remote(groups, first))
        return list(ray.get(asked))


def main(ticks: list[float]) -> None:
    """Measures at these ticks, in milliseconds."""
    settings = Settings(
        data=DataSettings(data="digits"),
        net=MlpSettings(width=512, depth=_STAGES),
        method=CflSettings(embedding=EmbeddingSettings(embedding_mode="shared-mean")),
        train=TrainSettings(epochs=20, batch_size=32),
        pipeline=PipelineSettings(executor="ray", device="cpu", stages=_STAGES, ray_address="local", feeders=1),
    )
    spec = build_run(settings, Devices("cpu", _STAGES), dataset=open_data(settings))
    with ray_cluster(spec.settings):
        over_gloo = replace(spec.settings, pipeline=replace(spec.settings.pipeline, transport="gloo"))
        crews = {"shared memory": Crew(spec), "gloo": Crew(replace(spec, settings=over_gloo))}
        for tick in ticks:
            turns: dict[str, list[Turn]] = {way: [] for way in crews}
            for _ in range(_TURNS):
                for way, crew in crews.items():
                    turns[way] += crew.take_turn(tick / 1000)
            for way, taken in turns.items():
                wall, sync, cpu = (
                    1000 * statistics.median(getattr(turn, what) for turn in taken) for what in ("wall", "sync", "cpu")
                )
                print(
                    f"tick {tick:g} ms, {way:13}: {1000 / wall:4.0f} steps/s, sync {sync:.2f} ms a step "
                    f"({100 * sync / wall:.1f} %), {cpu:.2f} ms of a stage's CPU",
                    flush=True,
                )


if __name__ == "__main__":
    main([float(tick) for tick in sys.argv[1:]] or [1.0, 2.0, 5.0])
