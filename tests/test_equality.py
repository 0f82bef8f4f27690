"""A run's numbers belong to its settings and seed. Every executor gives the serial reference's bits."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Literal

import pytest
import torch

from pipeline import local, reference
from pipeline.history import RunResult
from pipeline.messages import Kind
from pipeline.metrics import LayerReport
from pipeline.nets import MlpSettings
from pipeline.rules import CffSettings
from pipeline.settings import AugmentSettings, DataSettings, HeadSettings, Settings
from tests.conftest import make_run


@cache
def serial(settings: Settings) -> RunResult:
    return reference.train(*make_run(settings))


def assert_same(got: RunResult, want: RunResult) -> None:
    """Every parameter, optimizer state, loss, score and prediction, bit for bit."""
    assert want.status == got.status == "finished"
    assert got.best_epoch == want.best_epoch
    for have, expected in ((got.weights, want.weights), (got.last, want.last)):
        assert have.keys() == expected.keys()
        different = [name for name, value in expected.items() if not torch.equal(have[name], value)]
        assert not different
    assert any(".optimizer." in name and "exp_avg_sq" in name for name in want.last)
    for kind in (Kind.TRAIN, Kind.VALIDATE, Kind.READOUT, Kind.TEST):
        assert got.history.epochs(kind) == want.history.epochs(kind)
        for epoch in want.history.epochs(kind):
            for mine, theirs in zip(
                got.history.layers(kind, epoch) or [], want.history.layers(kind, epoch) or [], strict=True
            ):
                assert mine.losses.tobytes() == theirs.losses.tobytes()
                assert said(mine) == said(theirs)
    mine_predicted, predicted = got.history.predictions(), want.history.predictions()
    assert mine_predicted is not None
    assert predicted is not None
    assert (mine_predicted == predicted).all()


def said(report: LayerReport) -> str:
    """Every figure of a report; as text, where a figure that is no number equals itself."""
    figures = (report.loss, report.accuracy, report.top_k, report.direct_accuracy, report.readout_loss, report.fisher)
    return repr((*figures, report.version_skew))


def through_ray(settings: Settings, stages: int) -> RunResult:
    from workers import crew

    pipe = replace(settings.pipeline, executor="ray")
    spec, _ = make_run(replace(settings, pipeline=pipe), stages=stages)
    return crew.train(spec)


def through_threads(settings: Settings, stages: int) -> RunResult:
    pipe = replace(settings.pipeline, executor="threads")
    return local.train(*make_run(replace(settings, pipeline=pipe), stages=stages))


def with_views(settings: Settings, views: Literal[1, 2]) -> Settings:
    return replace(settings, method=CffSettings(views=views))


def test_the_reference_takes_at_least_thirty_steps_with_validation_between(small_settings: Settings) -> None:
    history = serial(small_settings).history
    assert min(len(losses) for losses in history.step_losses().values()) >= 30
    assert history.epochs(Kind.VALIDATE) == [0, 1]


@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize("depth", [1, 4])
@pytest.mark.parametrize("stages", [1, 2, 3, 4])
def test_ray_gives_the_serial_bits(
    small_settings: Settings, cluster: None, stages: int, depth: int, views: Literal[1, 2]
) -> None:
    settings = with_views(small_settings, views)
    want = serial(settings)
    assert_same(through_ray(replace(settings, pipeline=replace(settings.pipeline, queue_depth=depth)), stages), want)


@pytest.mark.parametrize("stages", [1, 2, 4])
def test_threads_give_the_serial_bits(small_settings: Settings, stages: int) -> None:
    assert_same(through_threads(small_settings, stages), serial(small_settings))


VARIANTS = {
    "online readouts": lambda s: replace(s, head=HeadSettings(mode="online")),
    "no feeder": lambda s: replace(s, pipeline=replace(s.pipeline, feeders=0)),
    "three feeders": lambda s: replace(s, pipeline=replace(s.pipeline, feeders=3)),
    "bf16": lambda s: replace(s, pipeline=replace(s.pipeline, precision="bf16")),
    "bf16 on the wire": lambda s: replace(s, pipeline=replace(s.pipeline, wire="bf16")),
    "compiled": lambda s: replace(s, pipeline=replace(s.pipeline, compile="on")),
    "RandAugment, flip and crop": lambda s: replace(
        s, augment=AugmentSettings(crop_padding=2, flip="on", randaugment_ops=2)
    ),
    "images that fit no memory": lambda s: replace(
        s, data=DataSettings(data="digits", memory_budget=0, shuffle_window=300)
    ),
    # So slow that every epoch has the same accuracy, of which the first is the best, whatever the machine's arithmetic.
    "a best epoch before the last": lambda s: replace(
        s,
        train=replace(s.train, epochs=4, lr=1e-7, keep="accuracy"),
        head=HeadSettings(mode="online", head_lr="lr"),
    ),
    "two CPU threads": lambda s: replace(s, pipeline=replace(s.pipeline, threads=2)),
    "batches in parts": lambda s: replace(s, net=replace(s.net, patch=1), train=replace(s.train, batch_size=128)),
    "class token": lambda s: replace(s, net=replace(s.net, pooling="token")),
    "MLP": lambda s: replace(s, net=MlpSettings(width=24, depth=3)),
    "less data, wrong labels": lambda s: replace(
        s, data=DataSettings(data="digits", train_fraction=0.6, label_noise=0.2)
    ),
}


@pytest.mark.parametrize("variant", [name for name in VARIANTS if name != "compiled"])  # compiling is slow: below alone
def test_every_setting_gives_the_serial_bits(small_settings: Settings, variant: str) -> None:
    settings = VARIANTS[variant](small_settings)
    assert_same(through_threads(settings, 3), serial(settings))


@pytest.mark.parametrize(
    "variant",
    [
        "online readouts",
        "no feeder",
        "three feeders",
        "two CPU threads",
        "bf16 on the wire",
        "compiled",
        "a best epoch before the last",
    ],
)
def test_ray_gives_the_serial_bits_with(small_settings: Settings, cluster: None, variant: str) -> None:
    settings = VARIANTS[variant](small_settings)
    assert_same(through_ray(settings, 2), serial(settings))


def test_the_kept_weights_can_be_of_an_earlier_epoch(small_settings: Settings) -> None:
    """Otherwise the variant above would show nothing of keeping and restoring candidates."""
    settings = VARIANTS["a best epoch before the last"](small_settings)
    result = serial(settings)
    assert result.best_epoch is not None
    assert result.best_epoch < settings.train.epochs - 1
    name = "layers.3.net.qkv.weight"
    assert not torch.equal(result.weights[name], result.last[name])


def test_another_seed_gives_other_bits(small_settings: Settings) -> None:
    other = reference.train(*make_run(replace(small_settings, train=replace(small_settings.train, seed=1))))
    want = serial(small_settings)
    assert not any(
        torch.equal(other.last[name], value) for name, value in want.last.items() if name.endswith("qkv.weight")
    )


def test_where_images_are_kept_does_not_change_the_numbers(small_settings: Settings) -> None:
    kept = replace(small_settings, data=DataSettings(data="digits", shuffle_window=300))
    streamed = VARIANTS["images that fit no memory"](small_settings)
    assert_same(serial(streamed), serial(kept))
