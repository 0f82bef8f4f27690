"""Attempts at a run: what is under way from one that is over takes nothing from the next, and changes nothing in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.settings import Settings
from pipeline.errors import PeerLostError
from pipeline.kind import Kind
from pipeline.layers.state import Snapshot
from pipeline.runtime.checkpointing import Checkpointing
from pipeline.runtime.passes import Pass
from pipeline.telemetry.reports import PassReport
from pipeline.telemetry.trace import TraceWish
from tests.conftest import make_run
from workers.names import StageName

KEY, FILE = "a place in the run", "layer-1.safetensors"


@pytest.fixture
def begun_anew(cluster: None, small_settings: Settings, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Starts a worker of a run whose second attempt, 1, has begun. Its parts of checkpoints are fetched from it."""
    import ray

    pipe = replace(small_settings.pipeline, executor="ray", feeders=0)
    spec, _ = make_run(replace(small_settings, pipeline=pipe), stages=2)
    started = []

    def start(kind: type, which: object, *more: object) -> Any:
        worker: Any = ray.remote(kind).options(num_cpus=0, max_concurrency=4).remote(spec, which)
        started.append(worker)
        for attempt in range(2):
            ray.get(worker.begin.remote(Checkpointing(folder=tmp_path, away=True), *more, attempt))
        return worker

    yield start
    for worker in started:
        ray.kill(worker)


def assert_refused(*late: Any) -> None:
    import ray

    for call in late:
        with pytest.raises(PeerLostError, match="the run has begun anew"):
            ray.get(call)


def test_what_a_stage_has_to_say_in_one_attempt_is_not_taken_by_a_question_of_the_one_before(
    begun_anew: Callable[..., Any],
) -> None:
    """Symptom: reports of the next attempt went to a poll that nobody waited for any more, and a part of a checkpoint
    to whoever had asked for the same place's part before: that checkpoint never became whole."""
    import ray

    from workers.stage import StageWorker

    stage = begun_anew(StageWorker, StageName(0), None)

    def train_and_save(worker: Any) -> None:
        worker._begun.reports.append(PassReport(stage=0, kind=Kind.TRAIN, epoch=0, layers=[]))
        worker._saver.save(KEY, {FILE: Snapshot({}, {"epoch": 0})})

    ray.get(stage.__ray_call__.remote(train_and_save))
    assert_refused(stage.poll.remote(0), stage.saved.remote(0), stage.part.remote(0, KEY, FILE))
    polled = ray.get(stage.poll.remote(1))
    assert [report.kind for report in polled.reports] == [Kind.TRAIN]
    assert [(file.key, file.name) for file in polled.saved] == [(KEY, FILE)]
    assert ray.get(stage.part.remote(1, KEY, FILE)).values == {"epoch": 0}


def test_a_stage_does_nothing_that_the_attempt_before_has_asked_for(begun_anew: Callable[..., Any]) -> None:
    """It reads no pass twice, is not stopped, saves and traces nothing, and forgets no weights."""
    import ray

    from workers.stage import StageWorker

    stage = begun_anew(StageWorker, StageName(0), None)
    ray.get(stage.__ray_call__.remote(lambda worker: worker._begun.stage._keep_candidate(0)))
    assert_refused(
        stage.feed.remote(0, [Pass(Kind.VALIDATE, 7)]),
        stage.interrupt.remote(0),
        stage.checkpoint.remote(0),
        stage.trace.remote(0, TraceWish(1)),
        stage.keep_only.remote(0, 5, 5),
        stage.connect.remote(0, None, None),
        stage.run.remote(0),
    )
    ray.get(stage.feed.remote(1, [Pass(Kind.TRAIN, 0)]))
    first = ray.get(stage.__ray_call__.remote(lambda worker: worker._begun.reader.receive()))
    assert (first.kind, first.epoch, first.step) == (Kind.TRAIN, 0, 0)
    assert ray.get(stage.candidate.remote(1, 0))


def test_a_feeder_does_nothing_that_the_attempt_before_has_asked_for(begun_anew: Callable[..., Any]) -> None:
    import ray

    from workers.feeder import FeederWorker

    feeder = begun_anew(FeederWorker, 0)
    assert_refused(
        feeder.feed.remote(0, [Pass(Kind.TRAIN, 0)], once=False),
        feeder.interrupt.remote(0),
        feeder.checkpoint.remote(0),
        feeder.trace.remote(0, TraceWish(1)),
        feeder.connect.remote(0, None, None),
    )

    def asked(worker: Any) -> tuple[bool, bool, list[Any]]:
        own = worker._begun
        return own.interrupted.is_set(), own.pacer.due(), list(own.tokens.take())

    assert ray.get(feeder.__ray_call__.remote(asked)) == (False, False, [])
