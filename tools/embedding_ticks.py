"""How long stages wait for label embeddings where a tick of the pipeline is as short as on a GPU.

    python tools/embedding_ticks.py 1 2 5

Two stages of a layer each read versions of a coordinator and send it gradients, and between sleep for a tick of so many
milliseconds, as a stage's host waits for its GPU. All three are Ray actors, as in a run. Stages share memory with the
coordinator in one turn and call it in the next, as from another machine; medians over the turns.
"""

from __future__ import annotations

import statistics
import sys
import time
from dataclasses import dataclass
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
from workers.cluster import ray_cluster
from workers.coordinator import CoordinatorWorker
from workers.remote_base import Part
from workers.remote_state import remote_state

_STAGES = 2
_TURNS, _STEPS, _WARM = 5, 300, 30


@dataclass(frozen=True)
class Turn:
    """What a stage spent on a step: seconds in all, of waiting for and sending of label embeddings, and of its CPU."""

    wall: float
    sync: float
    cpu: float


class Away(CoordinatorWorker):
    """A coordinator that shares memory with nobody, as on another machine."""

    def offer_line(self, attempt: int, stage: str) -> None:
        """Offers none."""


class Ticker:
    """A stage whose layer takes a tick and computes nothing."""

    def __init__(self, spec: RunSpec, number: int) -> None:
        torch.set_num_threads(1)
        self._spec, self._number = spec, number

    def take_turn(self, coordinator: Any, attempt: int, tick: float) -> Turn:
        """So many steps, of which the first are not measured. ``tick``: in seconds."""
        layers = self._spec.stages[self._number]
        state = remote_state(
            Part(
                spec=self._spec,
                coordinator=coordinator,
                name=f"stage {self._number + 1}",
                layers=layers,
                device=torch.device("cpu"),
                attempt=attempt,
            )
        )
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

    def __init__(self, spec: RunSpec, kind: type[CoordinatorWorker]) -> None:
        beside = 4 + 2 * _STAGES  # calls that are answered at once
        self._coordinator: Any = ray.remote(kind).options(num_cpus=0, max_concurrency=beside).remote(spec)
        self._stages: list[Any] = [
            ray.remote(Ticker).options(num_cpus=0).remote(spec, number) for number in range(_STAGES)
        ]
        self._attempts = 0

    def take_turn(self, tick: float) -> list[Turn]:
        """A turn of every stage, at the same time, from the first version on."""
        self._attempts += 1
        ray.get(self._coordinator.begin.remote(NO_CHECKPOINTS, self._attempts))
        asked = [stage.take_turn.remote(self._coordinator, self._attempts, tick) for stage in self._stages]
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
        crews = {"shared memory": Crew(spec, CoordinatorWorker), "calls": Crew(spec, Away)}
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
