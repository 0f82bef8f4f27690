"""The schedule of a run as it was measured: when each stage worked on which batch, and what it waited for between.

The clocks say when a step ended, and for how long it computed and waited; they do not say when within the step. So a
step is laid out like this: first its waiting, by kind, then its work (computing and copying) in one piece, to its end.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from pipeline.kind import Kind
from pipeline.telemetry.clock import TimeCategory
from pipeline.telemetry.reports import PassReport, StepTimes

_WORK = (TimeCategory.BUSY, TimeCategory.COPY)
_WAITS = (TimeCategory.WAIT_IN, TimeCategory.SYNC, TimeCategory.WAIT_OUT)
_FILL = 4  # the window of the first batches ends when the last stage has finished so many
_STEADY = 5  # steps of the slowest stage in a window of the steady state


@dataclass(frozen=True)
class Step:
    """A stage's step on a batch. Moments are in seconds since 1970.

    Attributes:
        batch: its number in the epoch, from 0.
        since: when the stage's step before ended.
        begin, end: between them the stage worked on this batch; between ``since`` and ``begin`` it waited.
        waits: seconds by kind of what lies between ``since`` and ``begin``, in the order in which it is drawn.
    """

    batch: int
    since: float
    begin: float
    end: float
    waits: Mapping[str, float]

    def waited(self, kind: str) -> list[tuple[float, float]]:
        """Between which moments it waited in this way: one stretch at most."""
        begin = self.since
        for name, seconds in self.waits.items():
            if name == kind and seconds > 0:
                return [(begin, begin + seconds)]
            begin += seconds
        return []


@dataclass(frozen=True)
class Window:
    """A stretch of a run.

    Attributes:
        epoch: number of the epoch, from 0.
        filling: it begins with the run.
        begin, end: seconds since 1970.
        stages: for each stage its steps that lie in the stretch, in whole or in part.
    """

    epoch: int
    filling: bool
    begin: float
    end: float
    stages: Sequence[Sequence[Step]]


def steps(times: StepTimes, started_at: float | None = None) -> list[Step]:
    """A training pass of one stage, step by step.

    Args:
        started_at: when the clock was started, if the pass is the clock's first. Of another pass the first step is left
            out: what came before it is not known.
    """
    ended, spent = times.ended, times.spent
    first = 0
    if started_at is None:
        first = 1
    else:
        ended, spent = np.concatenate([[started_at], ended]), np.concatenate([np.zeros((1, len(TimeCategory))), spent])
    column = {kind: number for number, kind in enumerate(TimeCategory)}
    laid: list[Step] = []
    for batch, (since, end, took) in enumerate(
        zip(ended[:-1], ended[1:], np.diff(spent, axis=0).clip(min=0), strict=True), start=first
    ):
        span = max(0.0, float(end - since))
        work = min(span, float(sum(took[column[kind]] for kind in _WORK)))
        idle = span - work
        waited = {kind.value: float(took[column[kind]]) for kind in _WAITS}
        # A GPU's clock moves time between kinds after the step has ended: no more is drawn than there was.
        scale = min(1.0, idle / total) if (total := sum(waited.values())) > 0 else 0.0
        waits = {kind: seconds * scale for kind, seconds in waited.items()}
        waits["other"] = max(0.0, idle - sum(waits.values()))
        laid.append(Step(batch, float(end) - span, float(end) - work, float(end), waits))
    return laid


def beginning(epoch: int, stages: Sequence[Sequence[Step]]) -> Window | None:
    """From the first batch until the last stage has finished a few: the pipeline fills. None without steps."""
    if not all(stages):
        return None
    begin, last = min(steps[0].begin for steps in stages), stages[-1]
    awaited = [[_from(begin, steps[0]), *steps[1:]] for steps in stages]
    inside = _inside(awaited, begin, end := last[min(_FILL, len(last)) - 1].end)
    return Window(epoch, True, begin, end, inside)


def _from(begin: float, first: Step) -> Step:
    """A stage's first step. Its clock starts when its first message comes; until then it waits for input."""
    waits = {**first.waits, TimeCategory.WAIT_IN.value: first.waits[TimeCategory.WAIT_IN.value] + first.since - begin}
    return replace(first, since=begin, waits=waits) if begin < first.since else first


def steady(epoch: int, stages: Sequence[Sequence[Step]]) -> Window | None:
    """A few steps from the middle of the time in which every stage trained on this epoch. None where there is none."""
    if not all(stages):
        return None
    begin, end = max(steps[0].since for steps in stages), min(steps[-1].end for steps in stages)
    pace = max((steps[-1].end - steps[0].since) / len(steps) for steps in stages)
    if end - begin < pace:
        return None
    reach = min(_STEADY * pace, end - begin) / 2
    middle = (begin + end) / 2
    return Window(epoch, False, middle - reach, middle + reach, _inside(stages, middle - reach, middle + reach))


def passings(upper: Sequence[Step], lower: Sequence[Step]) -> list[tuple[float, float]]:
    """When batches left a stage and when the next stage began on them, for those that both have steps of.

    The moment of sending, amid a step, is not measured: a batch counts as leaving when the next stage begins
    on it, or at the end of its step if that is earlier.
    """
    taken = {step.batch: step.begin for step in lower}
    both = [(step, taken[step.batch]) for step in upper if step.batch in taken]
    return [(min(max(arrival, step.begin), step.end), arrival) for step, arrival in both]


def _inside(stages: Sequence[Sequence[Step]], begin: float, end: float) -> list[list[Step]]:
    return [[step for step in steps if step.end > begin and step.since < end] for steps in stages]


@dataclass
class Recorder:
    """Keeps the steps of some epochs of a run: the first one, and those 1, 2, 4, 8 … after it.

    So a run of any length, wherever it stops, has one near its middle, and a long one does not fill the memory.
    """

    _first: int | None = None
    _passes: dict[int, dict[int, PassReport]] = field(default_factory=dict)

    def observe(self, report: PassReport) -> None:
        """Takes a stage's report on a pass."""
        if report.kind is not Kind.TRAIN or report.steps is None or not len(report.steps.ended):
            return
        self._first = report.epoch if self._first is None else min(self._first, report.epoch)
        number = report.epoch - self._first
        if number & (number - 1) == 0:
            self._passes.setdefault(report.epoch, {})[report.stage] = report

    def windows(self, num_stages: int, num_epochs: int) -> list[Window]:
        """The beginning of the run, and its middle if ``num_epochs`` were trained; what of them was recorded."""
        whole = {epoch: passes for epoch, passes in self._passes.items() if len(passes) == num_stages}
        if not whole:
            return []
        first = min(whole)
        middle = min(whole, key=lambda epoch: (abs(epoch - first - (num_epochs - 1) / 2), -epoch))
        found: Iterable[Window | None] = (
            beginning(first, _stages(whole[first], from_start=True)) if first == self._first else None,
            steady(middle, _stages(whole[middle], from_start=middle == self._first)),
        )
        return [window for window in found if window is not None]


def _stages(passes: Mapping[int, PassReport], *, from_start: bool) -> list[list[Step]]:
    """Each stage's steps of one epoch."""
    laid = []
    for _, report in sorted(passes.items()):
        assert report.steps is not None, "the recorder keeps no other reports"
        laid.append(steps(report.steps, report.started_at if from_start else None))
    return laid
