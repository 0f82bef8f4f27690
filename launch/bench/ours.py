"""The product's own rows: serial and pipelined local learning, by the same actors as a person's run."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

import numpy as np
from rich.console import Console

from launch.balance import resolve_measured
from launch.bench.protocol import DeviceUse, Round, Runner
from launch.bench.stages import stage_name, stages_of_net
from launch.presets import PRESETS
from pipeline.config import build, checks
from pipeline.config.build import build_run
from pipeline.config.devices import Devices
from pipeline.config.run_spec import RunSpec
from pipeline.config.settings import Settings
from pipeline.errors import StageFailedError
from pipeline.kind import Kind
from pipeline.methods import CffSettings
from pipeline.runtime.controller import until_next_look
from pipeline.runtime.edges import edge_bytes
from pipeline.runtime.passes import Pass
from pipeline.telemetry.clock import TimeCategory
from pipeline.telemetry.reports import PassReport, StepTimes
from workers.group import RayWorkers

Source = Literal["memory", "feeder"]

_TIMEOUT = 3600.0  # seconds that a stage may wait for its next turn


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of ours.

    Attributes:
        title: for people.
        pipelined: over all devices; else on one.
        learn: the run's settings with the row's method, learning rate and readouts.
    """

    title: str
    pipelined: bool
    learn: Callable[[Settings], Settings]


def _cff(views: Literal[1, 2]) -> Callable[[Settings], Settings]:
    """Contrastive Forward-Forward that predicts at any time, as backprop does: with a linear readout beside it."""

    def learn(settings: Settings) -> Settings:
        method = settings.method if isinstance(settings.method, CffSettings) else CffSettings()
        readout = replace(settings.readout, mode="online", readout_layers="last")
        return replace(settings, method=replace(method, views=views), readout=readout)

    return learn


def _as_preset(name: str) -> Callable[[Settings], Settings]:
    """The method, learning rate and readouts of a preset, on the run's net and batch."""
    preset = PRESETS[name].settings

    def learn(settings: Settings) -> Settings:
        train = replace(settings.train, lr=preset.train.lr)
        return replace(settings, method=preset.method, readout=preset.readout, train=train)

    return learn


def _as_it_is(settings: Settings) -> Settings:
    return settings


ROWS: dict[str, Row] = {
    "cff-serial-1": Row(title="CFF one-forward, one device", pipelined=False, learn=_cff(1)),
    "cff-serial-2": Row(title="CFF two-forward, one device", pipelined=False, learn=_cff(2)),
    "cff-1": Row(title="CFF one-forward, pipelined", pipelined=True, learn=_cff(1)),
    "cff-2": Row(title="CFF two-forward, pipelined", pipelined=True, learn=_cff(2)),
    "cfl": Row(title="CFL, pipelined", pipelined=True, learn=_as_preset("cfl-vit")),
    "dcl": Row(title="DCL, pipelined", pipelined=True, learn=_as_preset("dcl-vit")),
}
"""Our rows by name, on whatever net."""

BY_PRESET = ("serial", "pipelined")
"""Our rows by name where the net, the method and all the rest are a preset's."""


def rows_of(preset: str | None) -> dict[str, Row]:
    """Our rows by name: those of a preset where one is named, of which the last is the pipelined one."""
    if preset is None:
        return ROWS
    rows = (
        Row(title=f"{preset}, one device", pipelined=False, learn=_as_it_is),
        Row(title=f"{preset}, pipelined", pipelined=True, learn=_as_it_is),
    )
    return dict(zip(BY_PRESET, rows, strict=True))


def reference(rows: Mapping[str, Row]) -> Row:
    """The pipelined row whose net, data and stages the rows of backpropagation take."""
    return rows.get("cff-1") or rows["pipelined"]


@cache  # several rows rest on one, and a balanced partition takes its time
def spec_of(row: Row, settings: Settings, devices: Devices, console: Console) -> RunSpec:
    """The run of a row on whole epochs, with a feeder.

    Args:
        console: told how a balanced partition turned out.

    Raises:
        UserError: the settings do not fit the data or each other.
        RunError: a balanced partition is asked for, and the layers cannot be timed here.
    """
    settings = row.learn(settings)
    pipe = settings.pipeline
    stages: int | Literal["auto"] = pipe.stages if row.pipelined else 1
    if row.pipelined and pipe.partition == "balanced":  # which would leave devices idle that gain little
        stages = build.num_stages(settings, devices.count)
    pipe = replace(pipe, executor="ray", stages=stages, feeders=max(1, pipe.feeders))
    if not row.pipelined:
        pipe = replace(pipe, partition="even")
    settings = replace(settings, pipeline=pipe)
    checks.check(settings)
    dataset = build.open_data(settings)
    settings = resolve_measured(build.resolve(settings, dataset), dataset, devices, console)
    return build_run(settings, devices, dataset=dataset)


def turns_of(spec: RunSpec, source: Source, *, warm: int, steps: int) -> RunSpec:
    """The same run in epochs of one turn's length, and idle for long in between.

    From memory: the first stage takes its batches out of the cached images itself. Feeder: the run's feeders read,
    shuffle and send them.
    """
    settings = spec.settings
    dataset = build.open_data(settings)
    wanted = min(warm + steps + drain(spec), spec.steps_per_epoch)
    # Half a batch more, so that rounding takes none away.
    images = min((wanted + 0.5) * settings.train.batch_size, dataset.count("train"))
    fraction = settings.data.train_fraction * images / dataset.count("train")
    feeders = 0 if source == "memory" else min(settings.pipeline.feeders, wanted)
    settings = replace(
        settings,
        data=replace(settings.data, train_fraction=fraction),
        pipeline=replace(settings.pipeline, feeders=feeders, stall_timeout=_TIMEOUT),
    )
    return replace(spec, settings=settings, steps_per_epoch=wanted)


def drain(spec: RunSpec) -> int:
    """Steps by which the first stage may be ahead of the last: in a turn's last ones not all stages are at work."""
    return (spec.num_stages - 1) * (spec.settings.pipeline.depth + 2)


@dataclass(frozen=True, kw_only=True)
class StageUse(DeviceUse):
    """A stage's part in a round.

    Attributes:
        step_seconds: busy seconds of one step, in the mean.
    """

    step_seconds: float


class PipelineRunner(Runner):
    """A pipeline of Ray actors that trains in turns. Ray must be initialised.

    Args:
        spec: from ``turns_of``.
        warm: steps of a turn that are not measured.
    """

    family: Literal["backprop", "local"] = "local"

    def __init__(self, name: str, title: str, spec: RunSpec, *, warm: int) -> None:
        self.name, self.title, self.spec = name, title, spec
        self._warm = warm
        self._crew: RayWorkers | None = None
        self._epoch = 0

    def start(self) -> None:
        self._open()
        self._park()

    def round(self, steps: int) -> Round:
        group = self._crew or self._open()  # every round begins warm, whether or not its workers are new
        batch = self.spec.settings.train.batch_size
        group.peak_bytes(reset=True)
        reports = self._train(math.ceil((self._warm + steps + drain(self.spec)) / self.spec.steps_per_epoch))
        times = [joined(reports[stage]) for stage in range(self.spec.num_stages)]
        begin, end = pace(times, self._warm, steps)
        devices = tuple(
            stage_use(self._stage_name(stage), time, begin, end, peak, self._warm, steps)
            for stage, (time, peak) in enumerate(zip(times, group.peak_bytes(), strict=True))
        )
        loss = float(reports[-1][-1].layers[-1].losses[-1])
        self._park()
        return Round(
            images=steps * batch,
            seconds=end - begin,
            devices=devices,
            bytes_per_step=sum(edge_bytes(self.spec)[1:]),
            loss=loss,
        )

    def close(self) -> None:
        if self._crew is not None:
            self._crew.close()
        self._crew = None

    def _open(self) -> RayWorkers:
        """Starts the workers and has them train one pass that nobody measures.

        It reads the images into memory, compiles, and finds the allocator's blocks: rivals have done so, too.
        """
        self._crew, self._epoch = RayWorkers(self.spec), 0
        group = self._crew.__enter__()
        self._train(1)
        return group

    @property
    def _ends_between_turns(self) -> bool:
        """Whether workers live for one turn only, as they do on GPUs.

        Ray gives a GPU to one group of workers at a time. Were each to take a share of it, so that all could live, Ray
        would pack two stages of one group onto one GPU while another had none.
        """
        return self.spec.device == "cuda"

    def _park(self) -> None:
        """Between turns: gives memory back, and with it the GPUs."""
        if self._ends_between_turns:
            self.close()
        elif self._crew is not None:
            self._crew.give_back()

    def _train(self, num_passes: int) -> list[list[PassReport]]:
        """So many passes through the pipeline; each stage's reports on them."""
        group = self._crew
        assert group is not None, "start() comes first"
        group.feed([Pass(Kind.TRAIN, self._epoch + number) for number in range(num_passes)])
        self._epoch += num_passes
        begun = time.perf_counter()
        reports: list[list[PassReport]] = [[] for _ in range(self.spec.num_stages)]
        while any(len(said) < num_passes for said in reports):
            if group.wait(until_next_look(time.perf_counter() - begun)):
                raise StageFailedError(f"{self.name}: the stages ended amid a round")
            for status, said in group.poll():
                reports[status.stage] += said
        return reports

    def _stage_name(self, stage: int) -> str:
        return stage_name(stage, stages_of_net(self.spec)[stage])


def joined(reports: list[PassReport]) -> StepTimes:
    """The steps of successive passes of one stage."""
    times = [report.steps for report in reports if report.steps is not None]
    return StepTimes(np.concatenate([t.ended for t in times]), np.concatenate([t.spent for t in times]))


def pace(times: Sequence[StepTimes], warm: int, steps: int) -> tuple[float, float]:
    """Between which moments the stage that took longest for the measured steps took them, in seconds since 1970.

    Queues fill and empty, so for a moment another stage can be faster than the pipeline is.
    """
    begun = [float(time.ended[warm - 1]) for time in times]
    ended = [float(time.ended[warm + steps - 1]) for time in times]
    slowest = max(range(len(times)), key=lambda stage: ended[stage] - begun[stage])
    return begun[slowest], ended[slowest]


def stage_use(name: str, times: StepTimes, begin: float, end: float, peak: int, warm: int, steps: int) -> StageUse:
    """What a stage did between two moments, interpolated between the ends of its steps.

    In that time it may do a step more or less than others: its time of one step is that of its own measured steps.
    """
    window = np.array([begin, end])
    spent = np.stack([np.interp(window, times.ended, column) for column in times.spent.T], axis=1)  # (2, kinds)
    took = spent[1] - spent[0]
    own = times.spent[warm + steps - 1] - times.spent[warm - 1]
    seconds = {kind.value: float(took[number]) for number, kind in enumerate(TimeCategory)}
    seconds["other"] = max(0.0, end - begin - sum(seconds.values()))
    return StageUse(
        name=name,
        seconds=seconds,
        peak_bytes=peak,
        step_seconds=float(own[list(TimeCategory).index(TimeCategory.BUSY)]) / steps,
    )
