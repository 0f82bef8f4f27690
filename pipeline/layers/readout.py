"""A layer's readout: a linear classifier on its features, which learns along with the layer or after it."""

from __future__ import annotations

import threading

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline import rng
from pipeline.config.settings import Settings
from pipeline.layers.guard import Guard
from pipeline.layers.rates import Rates
from pipeline.layers.state import State, copied, copies
from pipeline.methods import BatchPosition
from pipeline.methods.adamw import AdamW
from pipeline.nets import Dropout


class Readout(nn.Module):
    """Linear classifier on a layer's features: LayerNorm → Linear (CFF, stage 2), or Linear alone (CFL's f^L)."""

    def __init__(self, features: int, num_classes: int, *, norm: bool = True) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(features) if norm else nn.Identity()
        self.linear = nn.Linear(features, num_classes)

    def forward(self, features: Tensor) -> Tensor:
        scores: Tensor = self.linear(self.norm(features))
        return scores


class ReadoutTraining:
    """How the readout of layer ``index`` learns: one step of AdamW on the cross-entropy of a batch.

    Args:
        readout: on its device.
        updating: held while its weights change.

    Attributes:
        optimizer, rates, guard: of its weights.
        trained: whether it has learned from any batch.
        best: the lowest cross-entropy that was judged, and its weights then; None where none was.
        generators: of random numbers that a step draws.
    """

    def __init__(
        self, readout: Readout, settings: Settings, index: int, device: torch.device, updating: threading.Lock
    ) -> None:
        asked = settings.readout
        self._readout, self._updating = readout, updating
        self._index, self._seed, self._device = index, settings.train.seed, device
        self.optimizer = AdamW(
            readout.parameters(),
            lr=settings.train.lr if asked.readout_lr == "lr" else asked.readout_lr,
            weight_decay=asked.readout_weight_decay,
            fused=True,
        )
        self.rates, self.guard = Rates(self.optimizer), Guard(self.optimizer, index, readout=True)
        self._generator = torch.Generator(device)
        self._dropout = Dropout(asked.readout_dropout)
        self._dropout.generator = self._generator
        self.generators = [self._generator] if asked.readout_dropout else []
        self.trained = False
        self.best: tuple[float, State] | None = None

    def decide_on_device(self) -> None:
        """As the layer leaves it to the device what an update depends on."""
        self.rates = Rates(self.optimizer, self._device)
        self.guard = Guard(self.optimizer, self._index, readout=True, device=self._device)

    def begin(self, where: BatchPosition, lr_factor: float) -> None:
        """Sets what a step at ``where`` has of its own: its learning rate and its random numbers."""
        self.rates.set(lr_factor)
        for generator in self.generators:
            generator.manual_seed(rng.torch_seed(self._seed, "readout", self._index, where.epoch, where.position))

    def update(self, seen: Tensor, labels: Tensor) -> Tensor:
        """One step, after ``begin``. Returns the cross-entropy ().

        Args:
            seen: what the readout sees (V·N, C), view-major.
            labels: (N,) int64.
        """
        seen = self._dropout(seen.detach())
        loss = F.cross_entropy(self._readout(seen), labels.repeat(len(seen) // len(labels)))
        self.guard.see(loss)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        with self._updating:
            self.optimizer.step()
            self.trained = True
        return loss.detach()

    def judge(self, loss: float | None) -> None:
        """Keeps the readout as it is if this cross-entropy on validation images is its lowest. None: it has none."""
        if loss is not None and (self.best is None or loss < self.best[0]):
            with self._updating:
                self.best = loss, copies(self._readout, "")

    def take_best(self) -> None:
        """Goes back to the best of the readouts that were judged, if any were."""
        if self.best is not None:
            with self._updating:
                self._readout.load_state_dict(self.best[1])

    def weights(self, prefix: str) -> State:
        """Copies of its (best) parameters, whose names begin so; none before it has learned. Under ``updating``."""
        if not self.trained:
            return {}
        if self.best is None:
            return copies(self._readout, prefix)
        return {f"{prefix}{name}": copied(value) for name, value in self.best[1].items()}
