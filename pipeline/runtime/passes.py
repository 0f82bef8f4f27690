"""The order of a run's passes over its data, and the places between them where a run can be cut and go on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from pipeline.config.run_spec import RunSpec
from pipeline.kind import Kind


class Pass(NamedTuple):
    """A pass over a split: what stages do with its batches, and the epoch that keys its randomness.

    Attributes:
        first: its first batch that is to come; those before are done already.
    """

    kind: Kind
    epoch: int
    first: int = 0


@dataclass(frozen=True, order=True)
class Cut:
    """A place between two batches of a run, the same for all its layers. Later ones are larger.

    A run has a segment of passes for each phase of its layers' training, and then a last one with the readouts'
    training and the test. Evaluations change nothing, so a cut within one stands for the place before it.

    Attributes:
        restored: for each phase that is over, the epoch whose weights its layers have taken.
        passes: passes of the segment that are over.
        steps: batches of the next pass that are done.
    """

    restored: tuple[int, ...] = ()
    passes: int = 0
    steps: int = 0

    def __post_init__(self) -> None:
        if min((self.passes, self.steps, *self.restored)) < 0:
            raise ValueError(f"no place in a run: {self}")

    @property
    def key(self) -> str:
        """Its name in a folder of checkpoints, where names sort as places do."""
        return f"{len(self.restored):02d}-{self.passes:06d}-{self.steps:08d}"

    @classmethod
    def of_key(cls, key: str, restored: Sequence[int]) -> Cut:
        """The place that a key names, in a run whose phases so far ended with these best epochs.

        Raises:
            ValueError: it is no key, or the run has not come so far.
        """
        segment, passes, steps = (int(part) for part in key.split("-"))
        if segment > len(restored):
            raise ValueError(f"{key}: {len(restored)} phases are over")
        return cls(tuple(restored[:segment]), passes, steps)

    def after_batch(self, kind: Kind, *, last: bool) -> Cut:
        """The place after one more batch."""
        if last:
            return Cut(self.restored, self.passes + 1)
        return self if kind.is_evaluation else Cut(self.restored, self.passes, self.steps + 1)

    def after_restore(self, epoch: int) -> Cut:
        """The place after a phase whose best weights have been taken."""
        return Cut((*self.restored, epoch))


START = Cut()
"""Before a run's first batch."""


def segment(spec: RunSpec, number: int) -> list[Pass]:
    """The passes of a run's segment, from 0."""
    if number < len(spec.phases):
        return layer_passes(spec.phases[number].epochs)
    readout = spec.settings.readout
    epochs = readout.readout_epochs if readout.mode == "after" else 0
    return readout_passes(spec.epochs, epochs, judged=readout.judged)


def coming(spec: RunSpec, cut: Cut) -> list[Pass]:
    """What is left at a cut of the segment that it is in."""
    left = segment(spec, len(cut.restored))[cut.passes :]
    if cut.steps and left:
        left[0] = left[0]._replace(first=cut.steps)
    return left


def gone(spec: RunSpec, cut: Cut) -> list[Pass]:
    """The passes that are over at a cut."""
    before = [one for number in range(len(cut.restored)) for one in segment(spec, number)]
    return [*before, *segment(spec, len(cut.restored))[: cut.passes]]


def ends_phase(spec: RunSpec, cut: Cut) -> bool:
    """Whether the layers of a phase have learned to the end there, and its best weights are not taken yet."""
    return len(cut.restored) < len(spec.phases) and cut.passes == len(segment(spec, len(cut.restored)))


def trained_steps(spec: RunSpec, cut: Cut) -> int:
    """Training steps of the layers before a cut, over all epochs."""
    steps = spec.steps_per_epoch * sum(one.kind is Kind.TRAIN for one in gone(spec, cut))
    return steps + (cut.steps if len(cut.restored) < len(spec.phases) else 0)


def fits(spec: RunSpec, cut: Cut) -> bool:
    """Whether a run has this place."""
    if len(cut.restored) > len(spec.phases):
        return False
    if any(best not in phase.epochs for best, phase in zip(cut.restored, spec.phases, strict=False)):
        return False
    passes = segment(spec, len(cut.restored))
    if cut.passes > len(passes) or (cut.steps and cut.passes == len(passes)):
        return False
    return cut.steps < (1 if cut.steps == 0 or passes[cut.passes].kind.is_evaluation else spec.steps_per_epoch)


def described(spec: RunSpec, cut: Cut) -> str:
    """Where a cut is, for people: "epoch 4, step 33"."""
    left = coming(spec, cut)
    if not left:
        return "the end of the layers' training"
    kind, epoch, first = left[0]
    if kind in (Kind.TEST, Kind.STOP):
        return "the test" if kind is Kind.TEST else "the end"
    if kind in (Kind.READOUT, Kind.JUDGE):
        what, number = "the readouts' epoch", epoch - spec.epochs + 1
    else:
        what, number = "epoch", epoch + 1
    return f"{what} {number}, " + ("its validation" if kind.is_evaluation else f"step {first + 1}")


def layer_passes(epochs: Iterable[int]) -> list[Pass]:
    """Passes that train the layers of a phase, each followed by a validation."""
    return [Pass(kind, epoch) for epoch in epochs for kind in (Kind.TRAIN, Kind.VALIDATE)]


def readout_passes(epochs: int, readout_epochs: int, *, judged: bool = False) -> list[Pass]:
    """Passes that train the readouts, the test, and the stop. Readout epochs go on counting: they draw new views.

    Args:
        judged: whether each of them is followed by a validation, so that the best can be kept.
    """
    kinds = (Kind.READOUT, Kind.JUDGE) if judged else (Kind.READOUT,)
    readouts = [Pass(kind, epochs + epoch) for epoch in range(readout_epochs) for kind in kinds]
    return [*readouts, Pass(Kind.TEST, 0), Pass(Kind.STOP, 0)]


def next_segment(spec: RunSpec, best_epoch: int, number: int) -> list[Pass]:
    """What follows once a phase's best epoch is known: its weights are taken, and segment ``number`` begins."""
    return [Pass(Kind.RESTORE, best_epoch), *segment(spec, number)]
