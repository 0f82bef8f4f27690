"""Versions of a shared state, such as label embeddings: which one a layer reads, and whose gradients make the next one.

Sequentially, training step t reads at every layer what step t−1 wrote. In a pipeline the last layer finishes a step
long after the first one has begun the next, so layers read older versions. Which one is a function of the model and its
settings, never of stages or timing.

One update a step (modes last, shared-mean, shared-sum): layer l of L reads, at step t, D_{max(0, t + l − (L−1) − lag)}.

          tick      0     1     2     3     4
  layer 0  step     0     1     2     3     4        L = 3, lag 0: in one tick all layers read the same version.
          reads    D_0   D_0   D_0   D_1   D_2
  layer 1  step           0     1     2     3        Layer 2 has contributed to step k at the end of tick k + 2, and
          reads          D_0   D_0   D_1   D_2       then D_{k+1} exists. A lag of 1 gives it one tick to arrive, so
  layer 2  step                 0     1     2        that nobody waits for it.
          reads                D_0   D_1   D_2

An update of every layer in turn (mode in-turn): sequentially, layer l of step t reads what layer l − 1 has just
written, and makes update t·L + l. In a pipeline a version is named by a tick: version k has, in that order, as many
updates as are made before tick k, and layer l reads version t + l − lag. At lag 0 the last layer reads what sequential
training has it read, layer l (L−1)(L−1−l) updates less. An epoch has L − 1 more ticks than steps, and the next epoch's
follow them.

With ``exact`` layers read what sequential training has them read, one batch at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Mode = Literal["static", "last", "in-turn", "shared-mean", "shared-sum", "per-layer"]

LONGEST_LAG = 1024
"""Steps that an update may lag; so many versions may be kept."""

Update = tuple[int, int]
"""Layer (0-based) and training step."""


def contributors(mode: Mode, num_layers: int) -> tuple[int, ...]:
    """The layers whose gradients change a shared state."""
    match mode:
        case "last":
            return (num_layers - 1,)
        case "in-turn" | "shared-mean" | "shared-sum":
            return tuple(range(num_layers))
        case "static" | "per-layer":
            return ()


@dataclass(frozen=True, kw_only=True)
class Versions:
    """The versions of one run's shared state; 0 is the one that was drawn.

    Attributes:
        lag: δ, in ticks of the pipeline.
        exact: plain sequential reading instead.
    """

    mode: Mode
    lag: int
    exact: bool
    num_layers: int
    steps_per_epoch: int

    @property
    def contributors(self) -> tuple[int, ...]:
        """The layers whose gradients change it."""
        return contributors(self.mode, self.num_layers)

    @property
    def most_ahead(self) -> int:
        """Versions that a stage has still to read, at most."""
        return self.num_layers + self.lag + 1

    @property
    def _ticks(self) -> int:
        """Ticks of an epoch."""
        return self.steps_per_epoch + self.num_layers - 1

    def read(self, layer: int, step: int, *, training: bool = True) -> int:
        """The version that a layer reads at a training step, or in the evaluation that follows the steps before it."""
        match self.mode, self.exact:
            case "static", _:
                return 0
            case "in-turn", True:
                return step * self.num_layers + (layer if training else 0)
            case "in-turn", False:
                return max(0, self._tick(layer, step, training=training) - self.lag)
            case _, True:
                return step
            case _:
                return max(0, step + layer - (self.num_layers - 1) - self.lag)

    def _tick(self, layer: int, step: int, *, training: bool = True) -> int:
        """When a layer works on a step. An evaluation goes on in the epoch that is over."""
        epoch, within = divmod(step, self.steps_per_epoch)
        if not training and within == 0 and epoch > 0:
            epoch, within = epoch - 1, self.steps_per_epoch
        return epoch * self._ticks + within + layer

    def changed_by(self, layer: int, step: int) -> int:
        """The version that a contributor's gradient of a step changes: it helps to make the next one."""
        if self.mode != "in-turn":
            return step
        if self.exact:
            return step * self.num_layers + layer
        epoch, within = divmod(step, self.steps_per_epoch)
        last = self.num_layers - 1
        tick = within + last if layer == last else within + last - 1 if within else layer
        return epoch * self._ticks + tick

    def updates(self, version: int) -> tuple[Update, ...]:
        """Whose gradients make the version after this one, in the order in which they count."""
        if self.mode != "in-turn":
            return tuple((layer, version) for layer in self.contributors)
        numbers = range(self._updates_in(version), self._updates_in(version + 1))
        return tuple((number % self.num_layers, number // self.num_layers) for number in numbers)

    def _updates_in(self, version: int) -> int:
        """How many updates in turn a version has."""
        if self.exact:
            return version
        (epoch, tick), last = divmod(version, self._ticks), self.num_layers - 1
        # Before tick k the last layer has made an update in each of k − L + 1 steps, the others in the next one too.
        done = tick if tick <= last else (tick - last) * self.num_layers + last
        of_an_epoch = self.steps_per_epoch * self.num_layers
        return epoch * of_an_epoch + min(done, of_an_epoch)

    def end(self, epoch: int) -> int:
        """The version that all training steps up to an epoch's end have made."""
        match self.mode, self.exact:
            case "static" | "per-layer", _:
                return 0
            case "in-turn", False:
                return (epoch + 1) * self._ticks
            case "in-turn", True:
                return (epoch + 1) * self.steps_per_epoch * self.num_layers
            case _:
                return (epoch + 1) * self.steps_per_epoch

    def complete(self, step: int) -> int:
        """The newest version that has no update of this training step or a later one."""
        if not self.contributors:
            return 0
        if self.mode != "in-turn":
            return step
        updates = step * self.num_layers
        if self.exact:
            return updates
        epoch, within = divmod(step, self.steps_per_epoch)
        if within == 0:
            return epoch * self._ticks
        # Within an epoch a version ends with an update of the last layer but one; the last layer's comes after it.
        return epoch * self._ticks + within + max(0, self.num_layers - 2)

    def behind(self, layer: int, step: int) -> int:
        """By how many updates a layer reads less at a training step than plain sequential training has it read."""
        if not self.contributors:
            return 0
        read = self.read(layer, step)
        if self.mode != "in-turn":
            return step - read
        return step * self.num_layers + layer - self._updates_in(read)
