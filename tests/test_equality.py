"""A run's numbers belong to its settings and seed. Every executor gives the serial reference's bits."""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Literal

import pytest
import torch
import torch.nn.functional as F

from pipeline.config.settings import AugmentSettings, PipelineSettings, ReadoutSettings, Settings
from pipeline.data.augment import Augment
from pipeline.kind import Kind
from pipeline.layers.evaluate import evaluate
from pipeline.layers.layer import LocalLayer
from pipeline.methods import CffSettings
from pipeline.methods.contrastive import marginal_contrastive_loss
from pipeline.nets import MlpSettings
from pipeline.runtime.history import RunResult
from pipeline.runtime.serial import train_serial
from pipeline.runtime.threads import train_threads
from pipeline.telemetry.reports import LayerReport
from tests.conftest import make_run
from tests.support_data import run_of_256_tokens


@pytest.fixture(scope="module")
def small_settings(small_settings: Settings) -> Settings:
    """Of the images so many that there are two epochs of 16 steps."""
    return replace(small_settings, data=replace(small_settings.data, train_fraction=0.4))


def serial(settings: Settings) -> RunResult:
    """The reference, once for all settings that differ only in how a pipeline carries its messages."""
    pipe = PipelineSettings()
    return _serial(
        replace(settings, pipeline=replace(settings.pipeline, feeders=pipe.feeders, queue_depth=pipe.queue_depth))
    )


@cache
def _serial(settings: Settings) -> RunResult:
    return train_serial(*make_run(settings))


def assert_same(got: RunResult, want: RunResult) -> None:
    """Every parameter, optimizer state, loss, score and prediction, bit for bit."""
    assert want.status == got.status == "finished"
    assert got.best_epoch == want.best_epoch
    for have, expected in ((got.weights, want.weights), (got.last, want.last)):
        assert have.keys() == expected.keys()
        different = [name for name, value in expected.items() if not torch.equal(have[name], value)]
        assert not different
    optimizers = any(".optimizer." in name and name.endswith(("exp_avg_sq", "momentum_buffer")) for name in want.last)
    assert optimizers or any(name.endswith(".rule.weight") for name in want.last), "a closed form has none"
    for kind in (Kind.TRAIN, Kind.VALIDATE, Kind.READOUT, Kind.JUDGE, Kind.TEST):
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
    from workers.group import train_ray

    pipe = replace(settings.pipeline, executor="ray")
    spec, _ = make_run(replace(settings, pipeline=pipe), stages=stages)
    return train_ray(spec)


def through_threads(settings: Settings, stages: int) -> RunResult:
    pipe = replace(settings.pipeline, executor="threads")
    return train_threads(*make_run(replace(settings, pipeline=pipe), stages=stages))


def with_views(settings: Settings, views: Literal[1, 2]) -> Settings:
    return replace(settings, method=CffSettings(views=views))


def test_the_reference_takes_at_least_thirty_steps_with_validation_between(small_settings: Settings) -> None:
    history = serial(small_settings).history
    assert min(len(losses) for losses in history.step_losses().values()) >= 30
    assert history.epochs(Kind.VALIDATE) == [0, 1]


@pytest.mark.exhaustive  # `make test` has Ray's bits below, in test_shared.py and test_embedding_equality.py
@pytest.mark.parametrize(("stages", "depth", "views"), itertools.product((1, 2, 3, 4), (1, 4), (1, 2)))
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
    "online readouts": lambda s: replace(s, readout=ReadoutSettings(mode="online")),
    "no feeder": lambda s: replace(s, pipeline=replace(s.pipeline, feeders=0)),
    "three feeders": lambda s: replace(s, pipeline=replace(s.pipeline, feeders=3)),
    "bf16": lambda s: replace(s, pipeline=replace(s.pipeline, precision="bf16")),
    "bf16 transfer": lambda s: replace(s, pipeline=replace(s.pipeline, transfer_dtype="bf16")),
    "compiled": lambda s: replace(s, pipeline=replace(s.pipeline, compile="on")),
    "RandAugment, flip and crop": lambda s: replace(
        s, augment=AugmentSettings(crop_padding=2, flip="on", randaugment_ops=2)
    ),
    "images that fit no memory": lambda s: replace(s, data=replace(s.data, memory_budget=0, shuffle_window=300)),
    # So slow that every epoch has the same accuracy, of which the first is the best, whatever the machine's arithmetic.
    "a best epoch before the last": lambda s: replace(
        s,
        train=replace(s.train, epochs=4, lr=1e-7, keep="accuracy"),
        readout=ReadoutSettings(mode="online", readout_lr="lr"),
    ),
    # A rate at which the classifiers soon get worse, so that the last is not the best.
    "as the authors' program of CFF": lambda s: replace(
        s,
        augment=AugmentSettings(crop_padding=2, flip="on"),
        train=replace(s.train, last_batch="keep", validation_views="augmented"),
        readout=ReadoutSettings(readout_epochs=4, readout_keep="best", readout_lr=0.5),
    ),
    # Threads of several stages wait for each other's cores: few images.
    "two CPU threads": lambda s: replace(
        s, data=replace(s.data, train_fraction=0.2), pipeline=replace(s.pipeline, threads=2)
    ),
    "batches in parts": lambda s: replace(s, net=replace(s.net, patch=1), train=replace(s.train, batch_size=128)),
    "class token": lambda s: replace(s, net=replace(s.net, pooling="token")),
    "MLP": lambda s: replace(s, net=MlpSettings(width=24, depth=3)),
    "less data, wrong labels": lambda s: replace(s, data=replace(s.data, train_fraction=0.6, label_noise=0.2)),
}
TOGETHER = ("three feeders", "bf16 transfer", "as the authors' program of CFF")
"""Variants of which `make test` has Ray's bits in one run; `make test-all` has each alone."""


def together(settings: Settings) -> Settings:
    for name in TOGETHER:
        settings = VARIANTS[name](settings)
    return settings


@pytest.mark.slow
@pytest.mark.parametrize("variant", [name for name in VARIANTS if name != "compiled"])  # compiling is slow: below alone
def test_every_setting_gives_the_serial_bits(small_settings: Settings, variant: str) -> None:
    settings = VARIANTS[variant](small_settings)
    assert_same(through_threads(settings, 3), serial(settings))


def test_ray_gives_the_serial_bits_with_many_settings_at_once(small_settings: Settings, cluster: None) -> None:
    settings = together(small_settings)
    assert (settings.pipeline.feeders, settings.pipeline.transfer_dtype, settings.readout.readout_keep) == (
        3,
        "bf16",
        "best",
    )
    assert_same(through_ray(settings, 2), serial(settings))


def test_a_stage_that_reads_the_data_itself_gives_the_serial_bits(small_settings: Settings, cluster: None) -> None:
    settings = VARIANTS["no feeder"](small_settings)
    assert_same(through_ray(settings, 2), serial(settings))


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "variant", [*TOGETHER, "online readouts", "two CPU threads", "compiled", "a best epoch before the last"]
)
def test_ray_gives_the_serial_bits_with(small_settings: Settings, cluster: None, variant: str) -> None:
    settings = VARIANTS[variant](small_settings)
    assert_same(through_ray(settings, 2), serial(settings))


@pytest.mark.slow
def test_of_the_readouts_epochs_the_best_is_kept(small_settings: Settings) -> None:
    """By each layer's cross-entropy on validation images; its weights are those that are tested and exported."""
    settings = VARIANTS["as the authors' program of CFF"](small_settings)
    result = serial(settings)
    epochs = result.history.epochs(Kind.JUDGE)
    assert epochs == [2, 3, 4, 5]
    moved = False
    for index in range(settings.net.num_layers):
        losses = [(result.history.layers(Kind.JUDGE, epoch) or [])[index].readout_loss for epoch in epochs]
        best = min(range(4), key=lambda epoch: losses[epoch] or 0.0)
        shorter = serial(replace(settings, readout=replace(settings.readout, readout_epochs=best + 1)))
        readout = {name: value for name, value in result.weights.items() if name.startswith(f"layers.{index}.readout")}
        assert readout
        assert all(torch.equal(value, shorter.weights[name]) for name, value in readout.items())
        tested, expected = (run.history.layers(Kind.TEST, 0) or [] for run in (result, shorter))
        assert tested[index].readout_loss == expected[index].readout_loss
        moved = moved or best < 3
    assert moved, "somewhere the best is not the last"


def test_validation_sees_views_of_its_own(small_settings: Settings) -> None:
    """Both views together, as in training, drawn for validation alone; what is learned stays the same."""
    plain = replace(small_settings, augment=AugmentSettings(crop_padding=2, flip="on"))
    augmented = replace(plain, train=replace(plain.train, validation_views="augmented"))
    for name, value in serial(plain).last.items():
        assert torch.equal(serial(augmented).last[name], value)

    spec, dataset = make_run(augmented)
    device = torch.device("cpu")
    layer, augment = LocalLayer(spec, 0, device), Augment(spec.augment, seed=0, device=device)
    batches = list(dataset.batches("validate", epoch=1, batch_size=32))
    said = evaluate(spec, [layer], augment, batches, kind=Kind.VALIDATE, epoch=1).layers[0]
    losses = []
    for batch in batches:
        views = augment.views(batch.images, epoch=1, position=batch.position, num_views=2, purpose="augment/validation")
        of_training = augment.views(batch.images, epoch=1, position=batch.position, num_views=2)
        assert not torch.equal(views, of_training)
        z = F.normalize(layer.net.pool(layer.net.eval()(views)), dim=1)
        labels = batch.labels.repeat(2)
        loss = marginal_contrastive_loss(z, labels, temperature=0.15, margin=0.4)
        losses += [loss.item()] * len(labels)
    assert said.loss == pytest.approx(sum(losses) / len(losses), rel=1e-5)


def test_the_kept_weights_can_be_of_an_earlier_epoch(small_settings: Settings) -> None:
    """Otherwise the variant above would show nothing of keeping and restoring candidates."""
    settings = VARIANTS["a best epoch before the last"](small_settings)
    result = serial(settings)
    assert result.best_epoch is not None
    assert result.best_epoch < settings.train.epochs - 1
    name = "layers.3.net.qkv.weight"
    assert not torch.equal(result.weights[name], result.last[name])


def test_attention_over_256_tokens_gives_the_serial_bits(small_settings: Settings, tmp_path: Path) -> None:
    """There it is PyTorch's fused kernel, on a CPU too."""
    settings = run_of_256_tokens(tmp_path / "images", small_settings)
    spec, _ = make_run(settings)
    assert spec.shape == (3, 16, 16)
    assert_same(through_threads(settings, 3), serial(settings))


def test_another_seed_gives_other_bits(small_settings: Settings) -> None:
    other = train_serial(*make_run(replace(small_settings, train=replace(small_settings.train, seed=1))))
    want = serial(small_settings)
    assert not any(
        torch.equal(other.last[name], value) for name, value in want.last.items() if name.endswith("qkv.weight")
    )


def test_where_images_are_kept_does_not_change_the_numbers(small_settings: Settings) -> None:
    kept = replace(small_settings, data=replace(small_settings.data, shuffle_window=300))
    streamed = VARIANTS["images that fit no memory"](small_settings)
    assert_same(serial(streamed), serial(kept))
