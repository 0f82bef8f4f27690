"""How long stages wait for label embeddings where a tick of the pipeline is as short as on a GPU.

    python tools/embedding_ticks.py 1 2 5

Trains nets of nearly empty layers over Ray, each of which sleeps for a tick of so many milliseconds, as a stage's host
does while its GPU computes, so that few cores suffice. By what a step takes longer than the tick it sends, receives and
updates; `sync` is the time spent on label embeddings, as every run accounts for it.
To compare two states of the sources, run it in both in turn.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from pipeline.config.build import build_run, open_data
from pipeline.config.devices import Devices
from pipeline.config.settings import DataSettings, PipelineSettings, ReadoutSettings, Settings, TrainSettings
from pipeline.kind import Kind
from pipeline.methods import CflSettings
from pipeline.methods.embeddings import EmbeddingSettings
from pipeline.nets import NETS, Layer, MlpSettings, Shape
from pipeline.nets.mlp import LinearLayer
from pipeline.telemetry.clock import TimeCategory
from workers.cluster import ray_cluster
from workers.group import train_ray

_STAGES = 2
_EPOCHS = 5  # the first one is left out: it has the pipeline's start in it


@NETS.register
@dataclass(frozen=True, kw_only=True)
class TickSettings(MlpSettings):
    """A net of small linear layers that takes a given time."""

    kind: ClassVar[str] = "ticks"
    tick: float = 0.0
    """Seconds that a layer sleeps in every forward pass."""

    def build(self, index: int, shape: Shape) -> Layer:
        layer = super().build(index, shape)
        assert isinstance(layer, LinearLayer), "what an MLP consists of"
        layer.register_forward_pre_hook(_Sleep(self.tick))
        return layer


@dataclass(frozen=True)
class _Sleep:
    seconds: float

    def __call__(self, layer: LinearLayer, inputs: tuple[Tensor, ...]) -> None:
        time.sleep(self.seconds)


def settings_of(tick: float) -> Settings:
    """A run of a layer a stage, all of which change the label embeddings in every step. ``tick``: in seconds."""
    return Settings(
        data=DataSettings(data="digits"),
        net=TickSettings(width=16, depth=_STAGES, tick=tick),
        method=CflSettings(embedding=EmbeddingSettings(embedding_mode="shared-mean")),
        train=TrainSettings(epochs=_EPOCHS, batch_size=8),
        readout=ReadoutSettings(readout_epochs=1),
        pipeline=PipelineSettings(executor="ray", device="cpu", stages=_STAGES, ray_address="local", feeders=1),
    )


def main(ticks: list[float]) -> None:
    """Measures at these ticks, in milliseconds."""
    base = settings_of(0.0)
    dataset = open_data(base)
    print(f"{_STAGES} stages; a step takes a tick and what the pipeline adds")
    with ray_cluster(base):
        for tick in ticks:
            spec = build_run(settings_of(tick / 1000), Devices("cpu", _STAGES), dataset=dataset)
            accounts = train_ray(spec).history.accounts(Kind.TRAIN, epochs=range(1, _EPOCHS))
            steps = (_EPOCHS - 1) * spec.steps_per_epoch
            wall = max(account.wall for account in accounts.values())
            shares = ", ".join(
                f"stage {stage + 1} {100 * account.seconds[TimeCategory.SYNC] / account.wall:4.1f} %"
                for stage, account in sorted(accounts.items())
            )
            # A gradient of every stage and a version to every stage, in each step.
            calls = 2 * _STAGES * steps / wall
            print(
                f"tick {tick:g} ms: step {1000 * wall / steps:.2f} ms, {calls:,.0f} messages/s, sync {shares}",
                flush=True,
            )


if __name__ == "__main__":
    main([float(tick) for tick in sys.argv[1:]] or [1.0, 2.0, 5.0])
