"""What such a run is to do: the net as backprop sees it, and which of its processes does what."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from launch.bench.stages import stage_name
from pipeline.config.run_spec import RunSpec

Way = Literal["backprop", "dataparallel", "ddp", "gpipe", "1f1b"]
"""How one net is trained."""
PIPELINES: tuple[Way, ...] = ("gpipe", "1f1b")


def how_compiled(spec: RunSpec) -> Literal["on", "graphs"] | None:
    """How PyTorch compiles the whole net, None: not. Where the run's own steps are CUDA graphs, its graphs are asked
    of the compiler."""
    if not spec.compiles:
        return None
    return "graphs" if spec.graphs else "on"


@dataclass(frozen=True, kw_only=True)
class Job:
    """A run's work, divided over its processes.

    Attributes:
        spec: the run by backpropagation: the whole net is its only layer.
        way: how several devices train one net; or "layers", which times its layers on each of them.
        num_devices: devices at work.
        num_ranks: processes; one to each device, but for DataParallel, whose only process drives all of them.
        stages: where the net is cut, the layers of each rank; else one entry with all layers.
        microbatches: parts that a pipeline cuts a batch into; 1 where there is none.
    """

    spec: RunSpec
    way: Way | Literal["layers"]
    num_devices: int
    num_ranks: int
    stages: tuple[range, ...]
    microbatches: int = 1

    @property
    def batch_size(self) -> int:
        return self.spec.settings.train.batch_size

    def device(self, rank: int) -> torch.device:
        return torch.device("cuda", rank) if self.spec.device == "cuda" else torch.device("cpu")

    def rows(self, rank: int) -> slice:
        """Images of a batch that a rank works on: its share with DDP, else all."""
        share = self.batch_size // self.num_ranks if self.way == "ddp" else self.batch_size
        first = rank * share if self.way == "ddp" else 0
        return slice(first, first + share)

    def sees_images(self, rank: int) -> bool:
        return self.way not in PIPELINES or rank == 0

    def sees_labels(self, rank: int) -> bool:
        return self.way not in PIPELINES or rank == self.num_ranks - 1

    def rank_name(self, rank: int) -> str:
        """What people call a rank."""
        if self.way not in PIPELINES:
            return f"rank {rank + 1}"
        return stage_name(rank, self.stages[rank])

    @property
    def tried(self) -> str:
        """What did not fit, for the message that says so."""
        cut = f" in {self.microbatches} microbatches" if self.microbatches > 1 else ""
        return f"The batch was {self.batch_size} images{cut} on {count_of(self.num_devices, 'device')}"


def count_of(number: int, what: str) -> str:
    """``2 devices``."""
    return f"{number} {what}{'' if number == 1 else 's'}"
