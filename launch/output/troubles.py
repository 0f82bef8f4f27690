"""What is wrong around a run while it goes on: each trouble is said once, with what to do, and kept for the summary."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence

import torch

from pipeline.kind import Kind
from pipeline.planning.troubles import MachineLoad, busy_machine, load_between, slowed_gpu, straggler, swapping
from pipeline.telemetry.clock import TimeCategory
from pipeline.telemetry.machine import MachineProbe, MachineReading
from pipeline.telemetry.reports import Status

_STRETCH = 10.0  # seconds of a machine that are judged together
_SAMPLE = 5.0  # seconds of a stage's training that make one sample of its pace
_PROFILE = 3  # samples from which on a stage's usual pace is known
_AGAIN = 2  # samples in a row that are slow before a stage is called a straggler


class Troubles:
    """Looks at a run's machines and at its stages' paces.

    Args:
        say: told of each trouble once, in a sentence that names settings in backquotes.
        shared: whether the run's own stages outnumber the cores, and so wait for them in any case.

    Attributes:
        said: every sentence.
    """

    def __init__(self, say: Callable[[str], None], *, shared: bool) -> None:
        self._say, self._shared = say, shared
        self.said: list[str] = []
        self._told: set[Hashable] = set()
        self._probe = MachineProbe(torch.device("cpu"))  # of this process, which is the run's too
        self._since: dict[str, list[MachineReading]] = {}  # of each machine, when its stretch began
        self._paces = _Paces()

    def divide(self, *, shared: bool) -> None:
        """The run goes on in other stages."""
        self._shared, self._paces = shared, _Paces()

    def look(self, statuses: Sequence[Status]) -> None:
        """Takes where the stages are now."""
        if any(status.kind is None for status in statuses):  # the run has not begun
            return
        self._look_at_machines(statuses)
        for status in statuses:
            if status.machine is not None:
                self._tell(("slowed", status.stage), slowed_gpu(status.stage, status.machine.slowed))
        worst = self._paces.add(statuses)
        self._tell("straggler", worst)

    def _look_at_machines(self, statuses: Sequence[Status]) -> None:
        stages, feeders = [one.machine for one in statuses], [one.machine for one in statuses[0].feeders]
        readings = [*stages, *feeders, self._probe.read()]
        now: dict[str, dict[int, MachineReading]] = defaultdict(dict)
        for one in readings:
            if one is not None:
                now[one.boot][one.process] = one
        for boot, processes in now.items():
            since = self._since.setdefault(boot, list(processes.values()))
            if max(one.at for one in processes.values()) - min(one.at for one in since) < _STRETCH:
                continue
            self._since[boot] = list(processes.values())
            load = load_between(since, self._since[boot])
            if load is not None:
                self._judge(boot, load)

    def _judge(self, boot: str, load: MachineLoad) -> None:
        self._tell(("swaps", boot), swapping(load))
        if not self._shared:
            self._tell(("busy", boot), busy_machine(load))

    def _tell(self, trouble: Hashable, sentence: str | None) -> None:
        if sentence is None or trouble in self._told:
            return
        self._told.add(trouble)
        self.said.append(sentence)
        self._say(sentence)


class _Paces:
    """How long each stage computes for an image, now and usually, from stretches of pure training."""

    def __init__(self) -> None:
        self._last: Sequence[Status] = ()
        self._images, self._busy, self._wall = 0, defaultdict[int, float](float), 0.0
        self._samples: list[dict[int, float]] = []
        self._slow = 0

    def add(self, statuses: Sequence[Status]) -> str | None:
        """Takes where the stages are. Says which one has become a straggler."""
        before, self._last = self._last, list(statuses)
        pairs = list(zip(before, statuses, strict=False))
        if not pairs or any(not _train_on(*pair) for pair in pairs):
            return None
        first, now = pairs[0]
        self._wall += now.account.wall - first.account.wall
        self._images += now.images - first.images
        for was, status in pairs:
            self._busy[status.stage] += (status.account - was.account).seconds[TimeCategory.BUSY]
        if self._wall < _SAMPLE or not self._images:
            return None
        sample = {stage: seconds / self._images for stage, seconds in self._busy.items()}
        self._images, self._busy, self._wall = 0, defaultdict(float), 0.0
        return self._judge(sample)

    def _judge(self, sample: dict[int, float]) -> str | None:
        found = None
        if len(self._samples) >= _PROFILE:
            usual = {stage: statistics.median(one[stage] for one in self._samples) for stage in sample}
            found = straggler(usual, sample)
        self._slow = self._slow + 1 if found is not None else 0
        if found is None:
            self._samples.append(sample)
        return found if self._slow >= _AGAIN else None


def _train_on(was: Status, now: Status) -> bool:
    """Whether a stage trained between two looks: of short epochs there may be a validation between."""
    return was.kind is now.kind is Kind.TRAIN and was.account.wall <= now.account.wall
