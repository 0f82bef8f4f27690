"""What a run does after a failure, as a table; and what an observer hears of parts that are done again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.config.settings import CheckpointSettings, Settings
from pipeline.errors import NonFiniteLossError, PeerLostError, RunError, StageFailedError, UserError
from pipeline.kind import Kind
from pipeline.layers.state import State
from pipeline.runtime.checkpointing import Checkpointing
from pipeline.runtime.history import RunResult
from pipeline.runtime.observer import Observer
from pipeline.runtime.once import Once
from pipeline.runtime.passes import Cut
from pipeline.runtime.recovery import Decision, Failure, decide, recovering
from pipeline.runtime.threads import train_threads
from pipeline.telemetry.reports import LayerReport, PassReport, Status
from tests.conftest import make_run
from tests.test_equality import assert_same, serial

A, B = Cut((), 0, 10), Cut((), 2, 0)


def lost(cut: Cut = A, error: str = "stage 1 died", *, mends: bool = True) -> Failure:
    return Failure(error, cut, mends)


@pytest.mark.parametrize(
    ("failures", "most", "decision"),
    [
        ([lost()], 3, Decision("restart", 0.0)),
        ([lost(), lost(B)], 3, Decision("restart", 0.0)),  # it came further in between
        ([lost(), lost(B), lost(B, "stage 2 died")], 3, Decision("restart", 1.0)),
        ([lost(), lost(B), lost(), lost(B)], 3, Decision("stop", why="3 restarts were not enough")),
        ([lost(), lost()], 3, Decision("stop", why="the same happened twice in the same place")),
        ([lost(), lost(error="stage 2 died")], 3, Decision("restart", 1.0)),
        ([lost(mends=False)], 3, Decision("stop", why="it would happen again")),
        ([lost()], 0, Decision("stop")),
        ([lost(error=f"stage {n} died") for n in range(9)], 100, Decision("restart", 30.0)),
    ],
)
def test_what_is_done_after_failures(failures: list[Failure], most: int, decision: Decision) -> None:
    assert decide(failures, most) == decision


@pytest.mark.parametrize(
    ("error", "mends"),
    [
        (StageFailedError("died"), True),
        (PeerLostError("gone"), True),
        (NonFiniteLossError(0, float("nan")), True),  # a bit of the memory may have been lost
        (RunError("no epoch was worth keeping"), False),
    ],
)
def test_only_what_may_go_well_another_time_is_tried_again(error: RunError, mends: bool) -> None:
    assert Failure.of(error, A).mends == mends


class Dying(Observer):
    """Ends the run as a lost worker would, at these reports of training passes."""

    def __init__(self, *at: int) -> None:
        self._at, self.sentences = list(at), list[str]()
        self.heard: list[tuple[Kind, int, int]] = []
        self.best: list[int] = []
        self.wants_best = True

    def pass_finished(self, report: PassReport) -> None:
        self.heard += [(report.kind, report.epoch, layer.layer) for layer in report.layers]
        if report.kind is Kind.TRAIN and self._at and report.epoch == self._at[0]:
            self._at.pop(0)
            raise StageFailedError(f"stage 2 died in epoch {report.epoch + 1}")

    def improved(self, epoch: int, weights: State) -> None:
        self.best.append(epoch)

    def notified(self, sentence: str) -> None:
        self.sentences.append(sentence)


@pytest.fixture
def often(small_settings: Settings) -> Settings:
    return replace(
        small_settings,
        checkpoint=CheckpointSettings(checkpoint_every="5"),
        pipeline=replace(small_settings.pipeline, executor="threads"),
    )


def test_a_run_that_fails_twice_goes_on_to_the_same_bits_and_nothing_is_told_twice(
    often: Settings, small_settings: Settings, tmp_path: Path
) -> None:
    spec, dataset = make_run(often, stages=2)
    observer = Dying(0, 1)
    result = recovering(
        spec,
        lambda watched, begin: train_threads(spec, dataset, watched, begin),
        observer,
        Checkpointing(folder=tmp_path),
    )
    assert_same(result, serial(replace(small_settings, checkpoint=CheckpointSettings())))
    assert len(observer.heard) == len(set(observer.heard))
    assert set(observer.heard) >= {(Kind.TRAIN, epoch, layer) for epoch in (0, 1) for layer in range(4)}
    first, second = [sentence for sentence in observer.sentences if "Going on from" in sentence]
    assert first.startswith("stage 2 died in epoch 1. Going on from epoch 1, ") and "(restart 1 of 3)" in first
    assert "again (restart 2 of 3)" in second
    assert observer.best


def test_a_run_without_restarts_ends_with_its_failure(often: Settings, tmp_path: Path) -> None:
    settings = replace(often, checkpoint=replace(often.checkpoint, max_restarts=0))
    spec, dataset = make_run(settings, stages=2)
    with pytest.raises(StageFailedError, match="stage 2 died in epoch 1"):
        recovering(
            spec,
            lambda watched, begin: train_threads(spec, dataset, watched, begin),
            Dying(0),
            Checkpointing(folder=tmp_path),
        )


def test_what_cannot_start_is_not_tried_again(often: Settings, tmp_path: Path) -> None:
    spec, _ = make_run(often, stages=2)
    tries = []

    def train(observer: Observer, checkpointing: Checkpointing) -> RunResult:
        tries.append(checkpointing)
        raise StageFailedError("feeder 1 could not start: no such file")

    with pytest.raises(StageFailedError, match="could not start"):
        recovering(spec, train, Observer(), Checkpointing(folder=tmp_path))
    assert len(tries) == 1


def test_of_a_report_that_comes_again_only_what_is_new_is_handed_on() -> None:
    heard: list[list[int]] = []

    class Hearing(Observer):
        def pass_finished(self, report: PassReport) -> None:
            heard.append([layer.layer for layer in report.layers])

    def report(*layers: int) -> PassReport:
        said = [LayerReport(layer=layer, losses=np.zeros(0, np.float32), loss=0.0) for layer in layers]
        return PassReport(stage=0, kind=Kind.TRAIN, epoch=0, layers=said)

    once = Once(Hearing())
    once.pass_finished(report(0, 1))
    once.pass_finished(report(0))
    once.pass_finished(report(1, 2))
    assert heard == [[0, 1], [2]]


def test_everything_that_an_observer_may_hear_is_handed_on() -> None:
    """Symptom: over Ray, where a run may begin anew, a wish for a trace was never heard."""
    hears = {name for name, method in vars(Observer).items() if callable(method)}
    assert hears <= vars(Once).keys()


def test_an_impossible_interval_is_refused_before_anything_starts(small_settings: Settings) -> None:
    for settings, said in (
        (CheckpointSettings(checkpoint_every="soon"), "`checkpoint_every` soon"),
        (CheckpointSettings(keep_checkpoints=0), "`keep_checkpoints` 0"),
        (CheckpointSettings(max_restarts=-1), "`max_restarts` -1"),
        (CheckpointSettings(stop_timeout=-1.0), "`stop_timeout` -1"),
    ):
        with pytest.raises(UserError, match=said):
            make_run(replace(small_settings, checkpoint=settings))


def test_statuses_say_how_far_a_run_has_come(small_settings: Settings) -> None:
    from pipeline.telemetry.clock import Clock

    spec, _ = make_run(small_settings)
    account = Clock().read()
    once = Once(Observer())
    assert once.trained_steps(spec) == 0
    once.progressed([Status(stage=0, account=account, kind=Kind.TRAIN, epoch=1, step=4)])
    assert once.trained_steps(spec) == spec.steps_per_epoch + 5
    once.progressed([Status(stage=0, account=account, kind=Kind.VALIDATE, epoch=0)])
    assert once.trained_steps(spec) == spec.steps_per_epoch
