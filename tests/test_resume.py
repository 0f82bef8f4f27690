"""A run that goes on from a checkpoint ends with the bits of one that nothing disturbed: from wherever it was cut, in
whatever executor and number of stages either part ran."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from pipeline.checkpoints.folder import CheckpointFolder
from pipeline.config.settings import CheckpointSettings, PipelineSettings, ReadoutSettings, Settings
from pipeline.methods import CffSettings
from pipeline.nets import MlpSettings
from pipeline.plugins import load_plugin
from pipeline.runtime.checkpointing import Checkpointing, Resume
from pipeline.runtime.history import RunResult
from pipeline.runtime.keeper import history_of
from pipeline.runtime.passes import Cut, gone
from pipeline.runtime.serial import train_serial
from pipeline.runtime.threads import ThreadWorkers, train_threads
from pipeline.telemetry.reports import PassReport, Status
from tests.conftest import make_run
from tests.support_documents import ROOT
from tests.test_embedding_equality import settings_with
from tests.test_equality import assert_same
from tests.test_plugins import forget

Train = Callable[[Settings, Checkpointing], RunResult]


def serially(settings: Settings, checkpointing: Checkpointing) -> RunResult:
    return train_serial(*make_run(settings), checkpointing=checkpointing)


def through_threads(stages: int) -> Train:
    def train(settings: Settings, checkpointing: Checkpointing) -> RunResult:
        pipe = replace(settings.pipeline, executor="threads")
        return train_threads(*make_run(replace(settings, pipeline=pipe), stages=stages), checkpointing=checkpointing)

    return train


def through_ray(stages: int) -> Train:
    def train(settings: Settings, checkpointing: Checkpointing) -> RunResult:
        from workers.group import train_ray

        spec, _ = make_run(replace(settings, pipeline=replace(settings.pipeline, executor="ray")), stages=stages)
        return train_ray(spec, checkpointing=checkpointing)

    return train


@cache
def undisturbed(settings: Settings) -> RunResult:
    """The reference, which saves nothing."""
    return train_serial(*make_run(settings))


def saving(settings: Settings, every: int) -> Settings:
    """A run that saves every so many steps, and keeps all."""
    return replace(settings, checkpoint=CheckpointSettings(checkpoint_every=str(every), keep_checkpoints=1000))


def resumes(folder: Path) -> list[Resume]:
    """Every checkpoint of a run, the oldest first."""
    found = CheckpointFolder(folder)
    cuts = {key: found.manifest(key).facts["cut"] for key in found.whole()}
    return [Resume(folder, key, Cut(tuple(cut["restored"]), cut["passes"], cut["steps"])) for key, cut in cuts.items()]


def assert_all_go_on(settings: Settings, first: Train, others: list[Train], folder: Path, *, every: int) -> list[Cut]:
    """Runs once, saving; goes on from every checkpoint, by one way after the other. Returns where it was cut."""
    settings, want = saving(settings, every), undisturbed(settings)
    assert_same(first(settings, Checkpointing(folder=folder)), want)
    found = resumes(folder)
    for resume, other in zip(found, itertools.cycle(others), strict=False):
        assert_same(other(settings, Checkpointing(resume=resume)), want)
    return [resume.cut for resume in found]


@pytest.fixture(scope="module")
def cff(small_settings: Settings) -> Settings:
    """Two epochs of 16 steps, then two of the readouts, the better of which is kept."""
    return replace(
        small_settings,
        data=replace(small_settings.data, train_fraction=0.4, label_noise=0.2),
        net=MlpSettings(width=24, depth=3),
        method=CffSettings(views=1),
        readout=ReadoutSettings(readout_epochs=2, readout_keep="best"),
    )


WAYS = {"serial": serially, **{f"threads, {stages}": through_threads(stages) for stages in (1, 2, 3)}}


_EVERY_DAY = {"serial", "threads, 2", "in-turn, lag 1", "shared-sum, exact"}
"""First parts of runs in `make test`; `make test-all` has the others."""


def every_day(name: str, *values: object) -> object:
    return pytest.param(name, *values, marks=() if name in _EVERY_DAY else pytest.mark.exhaustive)


@pytest.mark.parametrize("first", [every_day(name) for name in WAYS])
def test_a_run_goes_on_from_every_checkpoint(cff: Settings, first: str, tmp_path: Path) -> None:
    cuts = assert_all_go_on(cff, WAYS[first], [*WAYS.values()], tmp_path, every=7)
    assert Cut((), 0, 7) in cuts  # within an epoch
    assert any(cut.passes == 4 and not cut.restored for cut in cuts)  # at the end of the layers' training
    assert any(cut.restored and cut.steps for cut in cuts)  # within the readouts' training


EMBEDDINGS = {
    "last, lag 0": settings_with(lag=0),
    "last, lag 3": settings_with(lag=3),
    "in-turn, lag 1": settings_with(mode="in-turn"),
    "in-turn, exact": settings_with(mode="in-turn", exact=True),
    "shared-mean, lag 1": settings_with(mode="shared-mean"),
    "shared-sum, exact": settings_with(mode="shared-sum", exact=True),
    "static": settings_with(mode="static"),
}


@pytest.mark.parametrize(
    ("name", "stages"),
    [every_day(name, stages) for name, stages in zip(EMBEDDINGS, itertools.cycle((2, 4, 3)), strict=False)],
)
def test_label_embeddings_go_on_with_their_versions(name: str, stages: int, tmp_path: Path) -> None:
    others = [serially, through_threads(3), through_threads(4), through_threads(1)]
    cuts = assert_all_go_on(EMBEDDINGS[name], through_threads(stages), others, tmp_path, every=5)
    assert len(cuts) >= 6


def test_serially_saved_label_embeddings_go_on_in_stages(tmp_path: Path) -> None:
    settings = EMBEDDINGS["in-turn, lag 1"]
    assert_all_go_on(settings, serially, [through_threads(2), through_threads(4)], tmp_path, every=6)


def test_layers_that_learn_one_after_another_go_on(tmp_path: Path) -> None:
    """Each phase's end is a cut, too; the readouts see several layers."""
    settings = load_plugin(str(ROOT / "examples" / "plugin_greedy.py")).PRESETS["greedy-fc"].settings
    settings = replace(
        settings,
        data=replace(settings.data, train_fraction=0.2),
        train=replace(settings.train, epochs=2),
        pipeline=PipelineSettings(executor="serial", device="cpu", stall_timeout=60),
    )
    cuts = assert_all_go_on(settings, through_threads(2), [through_threads(3), serially], tmp_path, every=5)
    assert {len(cut.restored) for cut in cuts} >= {0, 1, 2}
    forget("plugin_greedy")


def test_a_checkpoint_has_every_report_before_it_whenever_it_is_looked_at(
    cff: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Symptom: a run that went on had lost the losses of an epoch, reported while the controller looked elsewhere."""
    poll = ThreadWorkers.poll

    def slowly(workers: ThreadWorkers) -> list[tuple[Status, list[PassReport]]]:
        polled = poll(workers)
        time.sleep(0.2)
        return polled

    monkeypatch.setattr(ThreadWorkers, "poll", slowly)
    spec, source = make_run(saving(replace(cff, pipeline=replace(cff.pipeline, executor="threads")), 4), stages=2)
    train_threads(spec, source, checkpointing=Checkpointing(folder=tmp_path))
    found = resumes(tmp_path)
    assert len(found) > 5
    for resume in found:
        history = history_of(spec, Checkpointing(resume=resume))
        assert all(history.layers(kind, epoch) for kind, epoch, _ in gone(spec, resume.cut)), resume.cut


def test_feeders_go_on_in_the_middle_of_their_turn(cff: Settings, tmp_path: Path) -> None:
    """Three feeders take turns; a run may go on with another number of them."""
    three = replace(cff, pipeline=replace(cff.pipeline, feeders=3))
    none = replace(cff, pipeline=replace(cff.pipeline, feeders=0))
    want = undisturbed(cff)
    assert_same(through_threads(2)(saving(three, 7), Checkpointing(folder=tmp_path)), want)
    for settings, resume in zip(itertools.cycle((three, none, cff)), resumes(tmp_path), strict=False):
        assert_same(through_threads(3)(settings, Checkpointing(resume=resume)), want)


@pytest.mark.parametrize("stages", [pytest.param(1, marks=pytest.mark.exhaustive), 3])
def test_ray_goes_on_where_threads_stopped_and_threads_where_ray_did(
    cff: Settings, cluster: None, stages: int, tmp_path: Path
) -> None:
    want = undisturbed(cff)
    assert_same(through_ray(stages)(saving(cff, 11), Checkpointing(folder=tmp_path)), want)
    found = resumes(tmp_path)
    assert_same(through_threads(2)(cff, Checkpointing(resume=found[0])), want)
    assert_same(through_ray(2)(cff, Checkpointing(resume=found[len(found) // 2])), want)
