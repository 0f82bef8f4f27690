"""Which states a run goes through, in each executor and on each way to its end."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.config.settings import CheckpointSettings, Settings
from pipeline.errors import StageFailedError
from pipeline.kind import Kind
from pipeline.runtime.checkpointing import Checkpointing
from pipeline.runtime.observer import Observer
from pipeline.runtime.recovery import recovering
from pipeline.runtime.serial import train_serial
from pipeline.runtime.states import FOLLOWS, Course, RunState
from pipeline.runtime.threads import train_threads
from pipeline.telemetry.reports import PassReport
from tests.conftest import make_run

STARTING, RUNNING, DRAINING, RESTARTING, FINISHING = RunState


class Seeing(Observer):
    """Stops a run, or fails it, at the end of its first training pass."""

    def __init__(self, *, stop: bool = False, fail: bool = False) -> None:
        self._stop, self._fail, self._over = stop, fail, False
        self.seen: list[RunState] = []
        self.course = Course()

    def entered(self, state: RunState) -> None:
        self.course.enter(state)
        self.seen.append(state)

    def pass_finished(self, report: PassReport) -> None:
        if report.kind is Kind.TRAIN and not self._over:
            self._over = True
            if self._fail:
                raise StageFailedError("stage 1 died")

    def interrupted(self) -> bool:
        return self._stop and self._over


@pytest.mark.parametrize("executor", ["serial", "threads"])
@pytest.mark.parametrize(
    ("how", "states"),
    [
        ({}, [RUNNING, FINISHING]),
        ({"stop": True}, [RUNNING, DRAINING, FINISHING]),
        ({"fail": True}, [RUNNING, FINISHING, RESTARTING, RUNNING, FINISHING]),
    ],
)
def test_the_states_of_a_run(
    small_settings: Settings, tmp_path: Path, executor: str, how: dict[str, bool], states: list[RunState]
) -> None:
    settings = replace(
        small_settings,
        pipeline=replace(small_settings.pipeline, executor=executor),  # type: ignore[arg-type]
        checkpoint=CheckpointSettings(checkpoint_every="9"),
    )
    spec, dataset = make_run(settings, stages=1 if executor == "serial" else 2)
    train = train_serial if executor == "serial" else train_threads
    observer = Seeing(**how)
    recovering(
        spec, lambda watched, begin: train(spec, dataset, watched, begin), observer, Checkpointing(folder=tmp_path)
    )
    if executor == "threads" and "fail" in how:  # the controller itself failed, in the midst
        states = [*(state for state in states if state is not FINISHING), FINISHING]
    assert observer.seen == states
    assert observer.course.restarts == states.count(RESTARTING)
    assert set(observer.course.seconds()) == {state.value for state in (STARTING, *states)}


def test_time_counts_for_the_state_that_it_was_spent_in() -> None:
    now = 0.0
    course = Course(lambda: now)
    for seconds, state in ((3.0, RUNNING), (5.0, RESTARTING), (1.0, RESTARTING), (1.0, RUNNING), (7.0, FINISHING)):
        now += seconds
        course.enter(state)
    now += 0.5
    assert course.now is FINISHING
    assert course.restarts == 1
    assert course.seconds() == {"starting": 3.0, "running": 12.0, "restarting": 2.0, "finishing": 0.5}


@pytest.mark.parametrize("before", RunState)
@pytest.mark.parametrize("after", RunState)
def test_what_may_follow_what(before: RunState, after: RunState) -> None:
    course = Course()
    for state in [*{RESTARTING: [RUNNING]}.get(before, []), before]:
        course.enter(state)
    if after is before or after in FOLLOWS[before]:
        course.enter(after)
        assert course.now is after
    else:
        with pytest.raises(AssertionError, match=f"{before} cannot be {after} next"):
            course.enter(after)
