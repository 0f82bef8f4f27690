"""The serial loop: the same training, one layer after another. The oracle that the pipeline is tested against.

Every other executor gives the same bits as this file. They share the single layer (``pipeline.layers.layer``), the
augmentation and the order of the images; all that a pipeline adds is left out.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

from torch import Tensor

from pipeline.config.run_spec import RunSpec
from pipeline.data.augment import Augment
from pipeline.data.loader import Batch, Dataset, Split
from pipeline.errors import NonFiniteLossError, RunError, StageFailedError
from pipeline.kind import Kind
from pipeline.layers.evaluate import evaluate
from pipeline.layers.label_dictionary import LabelEmbeddings
from pipeline.layers.layer import LocalLayer, State, is_finite
from pipeline.layers.tallies import TrainTally
from pipeline.methods import Activations, BatchPosition, StepContext
from pipeline.runtime.history import History, RunResult
from pipeline.runtime.process import settle
from pipeline.telemetry.clock import Clock, TimeCategory
from pipeline.telemetry.reports import PassReport, Status
from pipeline.telemetry.steps import BusyMeter


class _InterruptedError(Exception):
    """The person asked to stop."""


def train_serial(
    spec: RunSpec,
    dataset: Dataset,
    *,
    observe: Callable[[PassReport], None] = lambda report: None,
    follow: Callable[[list[Status]], None] = lambda statuses: None,
    interrupted: Callable[[], bool] = lambda: False,
) -> RunResult:
    """Trains every layer on every batch, keeps the best weights, trains the readouts, tests.

    Args:
        observe: gets a report after every pass over a split.
        follow: gets the state of the loop, as that of a single stage, after every training batch.
        interrupted: looked at before every batch and between two layers; what was learned until then is kept.

    Raises:
        NonFiniteLossError: a loss became NaN or infinite; ``result`` holds what was learned before.
    """
    settings = spec.settings
    device = spec.stage_device(0)
    settle(spec, device)

    embeddings = LabelEmbeddings(spec) if spec.has_shared_embeddings else None
    layers = [LocalLayer(spec, index, device, embeddings) for index in range(spec.num_layers)]
    rule = layers[0].rule
    augment = Augment(spec.augment, seed=settings.train.seed, device=device)

    clock, history = Clock(), History.of(spec)
    busy = BusyMeter(clock, device)
    status = Status(stage=0, account=clock.read(), losses=[math.nan] * spec.num_layers, device=str(device))
    result = RunResult(status="finished", best_epoch=None, weights={}, last={}, history=history, devices=[str(device)])

    def hear() -> None:
        if interrupted():
            raise _InterruptedError

    def batches(split: Split, kind: Kind, epoch: int) -> Iterator[Batch]:
        source = dataset.batches(split, epoch=epoch, batch_size=settings.train.batch_size)
        while True:
            with clock.measure(TimeCategory.WAIT_IN):
                batch = next(source, None)
            if batch is None:
                return
            hear()
            status.kind, status.epoch, status.step = kind, epoch, batch.step
            with busy.step():
                yield batch
            status.account = clock.read()
            follow([replace(status, losses=list(status.losses))])

    def in_turn() -> Iterator[LocalLayer]:
        """The layers, first to last; an interrupt is heard between two of them."""
        for layer in layers:
            hear()
            yield layer

    def report(said: PassReport) -> None:
        busy.finish()
        said.account, said.started_at = clock.lap(), clock.started_at
        history.add(said)
        observe(said)

    def training_views(batch: Batch, where: BatchPosition, labels: Tensor, num_views: int) -> Activations:
        views = augment.views(batch.images, epoch=where.epoch, position=batch.position, num_views=num_views)
        return rule.make_inputs(views, StepContext(labels=labels, where=where))

    def train_layers(epoch: int) -> None:
        tallies = [TrainTally(layer.index) for layer in layers]
        for batch in batches("train", Kind.TRAIN, epoch):
            where, labels = spec.batch_position(Kind.TRAIN, epoch, batch.step, batch.position), batch.labels.to(device)
            activations = training_views(batch, where, labels, rule.num_views)
            for layer, tally in zip(in_turn(), tallies, strict=True):
                activations, loss = layer.train(activations, labels, where)
                tally.add(loss, layer.version_skew(where))
            status.images += len(labels)
            if batch.last or device.type == "cpu":  # reading a loss is free on a CPU and waits for a GPU
                status.losses = [tally.finite_latest() for tally in tallies]
        report(PassReport(stage=0, kind=Kind.TRAIN, epoch=epoch, layers=[tally.report() for tally in tallies]))

    def train_readouts(epoch: int) -> None:
        tallies = [TrainTally(layer.index, readout=True) for layer in layers]
        for batch in batches("train", Kind.READOUT, epoch):
            where, labels = (
                spec.batch_position(Kind.READOUT, epoch, batch.step, batch.position),
                batch.labels.to(device),
            )
            activations = training_views(batch, where, labels, 1)
            for layer, tally in zip(in_turn(), tallies, strict=True):
                activations, loss = layer.train_readout(activations, labels, where)
                tally.add(loss)
        for tally in tallies:
            tally.finite_latest()
        report(PassReport(stage=0, kind=Kind.READOUT, epoch=epoch, layers=[tally.report() for tally in tallies]))

    def evaluate_layers(split: Split, kind: Kind, epoch: int) -> PassReport:
        said = evaluate(spec, layers, augment, batches(split, kind, epoch), kind=kind, epoch=epoch)
        report(said)
        return said

    def judge_readouts(epoch: int) -> None:
        for layer, said in zip(layers, evaluate_layers("validate", Kind.JUDGE, epoch).layers, strict=True):
            layer.judge_readout(said.readout_loss)

    owners: list[LocalLayer | LabelEmbeddings] = [*layers, *([embeddings] if embeddings is not None else [])]

    def all_weights() -> State:
        return {name: value for owner in owners for name, value in owner.weights().items()}

    def all_state() -> State:
        return {name: value for owner in owners for name, value in owner.state().items()}

    begun = time.perf_counter()
    restored = False
    try:
        for epoch in range(settings.train.epochs):
            train_layers(epoch)
            candidate = all_weights()
            evaluate_layers("validate", Kind.VALIDATE, epoch)
            if history.best_epoch == epoch:
                result.best_epoch, result.weights = epoch, candidate
        result.last = all_state()
        result.seconds["layers"] = time.perf_counter() - begun
        history.require_best_epoch()
        for layer in layers:
            layer.load_weights(result.weights)
        if embeddings is not None:
            embeddings.freeze(history.require_best_epoch())
        restored = True

        begun = time.perf_counter()
        if settings.head.mode == "after":
            for epoch in range(settings.head.head_epochs):
                train_readouts(settings.train.epochs + epoch)
                if settings.head.judged:
                    judge_readouts(settings.train.epochs + epoch)
        for layer in layers:
            layer.take_best_readout()
        evaluate_layers("test", Kind.TEST, 0)
        result.seconds["readouts_and_test"] = time.perf_counter() - begun
        result.weights = all_weights()
    except Exception as stop:
        # What was learned until here: the best validated weights, with what readouts they have by now, or where there
        # are none yet the present ones.
        result.status = "interrupted" if isinstance(stop, _InterruptedError) else "failed"
        result.last = result.last or all_state()
        weights = all_weights() if restored or not result.weights else result.weights
        result.weights = weights if is_finite(weights) else {}
        if not isinstance(stop, _InterruptedError):
            raise _as_run_error(stop, status, result) from stop
    return result


def _as_run_error(error: Exception, status: Status, result: RunResult) -> RunError:
    """The error that ends the run, with what was learned before it."""
    if isinstance(error, NonFiniteLossError):
        failure: RunError = error.at(stage=0, epoch=status.epoch, step=status.step)
    elif isinstance(error, RunError):
        failure = error
    else:
        failure = StageFailedError(f"stage 1 failed: {type(error).__name__}: {error}")
    failure.result = result
    return failure
