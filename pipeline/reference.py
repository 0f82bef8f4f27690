"""The serial loop: the same training, one layer after another. The oracle that the pipeline is tested against.

Every other executor gives the same bits as this file (law 2). They share the single layer (``pipeline.layer``), the
augmentation and the order of the images; all that a pipeline adds is left out.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch

from pipeline.data.augment import Augment
from pipeline.data.loader import Batch, Dataset, Split
from pipeline.errors import NonFiniteLossError, RunError
from pipeline.evaluate import evaluate
from pipeline.history import History, RunResult
from pipeline.layer import LocalLayer, State, is_finite
from pipeline.messages import Kind
from pipeline.metrics import Clock, PassReport, Spent, Status, TrainTally
from pipeline.rules import Streams
from pipeline.spec import RunSpec


class _InterruptedError(Exception):
    """The person asked to stop."""


def train(
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
        interrupted: looked at before every batch; what was learned until then is kept.

    Raises:
        NonFiniteLossError: a loss became NaN or infinite; ``result`` holds what was learned before.
    """
    settings = spec.settings
    device = spec.stage_device(0)
    torch.set_num_threads(settings.pipeline.threads)

    layers = [LocalLayer(spec, index, device) for index in range(spec.num_layers)]
    rule = layers[0].rule
    augment = Augment(spec.augment, seed=settings.train.seed, device=device)
    online = settings.head.mode == "online"

    clock, history = Clock(), History(spec.num_layers)
    status = Status(stage=0, account=clock.read(), losses=[math.nan] * spec.num_layers, device=str(device))
    result = RunResult(status="finished", best_epoch=None, weights={}, last={}, history=history, devices=[str(device)])

    def batches(split: Split, kind: Kind, epoch: int) -> Iterator[Batch]:
        source = dataset.batches(split, epoch=epoch, batch_size=settings.train.batch_size)
        while True:
            with clock.measure(Spent.WAIT_IN):
                batch = next(source, None)
            if batch is None:
                return
            if interrupted():
                raise _InterruptedError
            status.kind, status.epoch, status.step = kind.name, epoch, batch.step
            with clock.measure(Spent.BUSY):
                yield batch
            status.account = clock.read()
            follow([replace(status, losses=list(status.losses))])

    def report(said: PassReport) -> None:
        said.account = clock.lap()
        history.add(said)
        observe(said)

    def training_views(batch: Batch, epoch: int, num_views: int) -> Streams:
        views = augment.views(batch.images, epoch=epoch, position=batch.position, num_views=num_views)
        return rule.enter(views)

    def train_layers(epoch: int) -> None:
        tallies = [TrainTally(layer.index) for layer in layers]
        for batch in batches("train", Kind.TRAIN, epoch):
            streams, labels = training_views(batch, epoch, rule.num_views), batch.labels.to(device)
            for layer, tally in zip(layers, tallies, strict=True):
                streams, loss = layer.train(streams, labels, with_readout=online)
                tally.add(loss)
            status.images += len(labels)
            if batch.last or device.type == "cpu":  # reading a loss is free on a CPU and stalls a GPU
                status.losses = [tally.finite_latest() for tally in tallies]
        report(PassReport(stage=0, kind="TRAIN", epoch=epoch, layers=[tally.report() for tally in tallies]))

    def train_readouts(epoch: int) -> None:
        tallies = [TrainTally(layer.index) for layer in layers]
        for batch in batches("train", Kind.READOUT, epoch):
            streams, labels = training_views(batch, epoch, 1), batch.labels.to(device)
            for layer, tally in zip(layers, tallies, strict=True):
                streams, loss = layer.train_readout(streams, labels)
                tally.add(loss)
        report(PassReport(stage=0, kind="READOUT", epoch=epoch, layers=[tally.report() for tally in tallies]))

    def evaluate_layers(split: Split, kind: Kind, epoch: int) -> PassReport:
        said = evaluate(spec, layers, augment, batches(split, kind, epoch), kind=kind, epoch=epoch)
        report(said)
        return said

    def all_weights() -> State:
        return {name: value for layer in layers for name, value in layer.weights().items()}

    def all_state() -> State:
        return {name: value for layer in layers for name, value in layer.state().items()}

    best_loss = math.inf
    begun = time.perf_counter()
    try:
        for epoch in range(settings.train.epochs):
            train_layers(epoch)
            candidate = all_weights()
            loss = evaluate_layers("validate", Kind.VALIDATE, epoch).layers[-1].loss
            if loss < best_loss:
                best_loss, result.best_epoch, result.weights = loss, epoch, candidate
        result.last = all_state()
        result.seconds["layers"] = time.perf_counter() - begun
        for layer in layers:
            layer.load_weights(result.weights)

        begun = time.perf_counter()
        if not online:
            for epoch in range(settings.head.head_epochs):
                train_readouts(settings.train.epochs + epoch)
        evaluate_layers("test", Kind.TEST, 0)
        result.seconds["readouts_and_test"] = time.perf_counter() - begun
        result.weights = all_weights()
    except (_InterruptedError, RunError) as stop:
        # What was learned until here: the best validated weights, or where there are none yet, the present ones.
        result.status = "interrupted" if isinstance(stop, _InterruptedError) else "failed"
        result.last = result.last or all_state()
        weights = result.weights or all_weights()
        result.weights = weights if is_finite(weights) else {}
        if isinstance(stop, NonFiniteLossError):
            stop = NonFiniteLossError(stop.layer, stop.loss, stage=0, epoch=status.epoch, step=status.step)
        if isinstance(stop, RunError):
            stop.result = result
            raise stop from None
    return result
