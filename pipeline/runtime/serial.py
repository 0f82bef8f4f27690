"""The serial loop: the same training, one layer after another. The oracle that the pipeline is tested against.

Every other executor gives the same bits as this file. They share the single layer (``pipeline.layers.layer``), the
augmentation and the order of the images; all that a pipeline adds is left out. What is noted of it stands apart
(``pipeline.runtime.watch``).
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from pipeline.config.run_spec import Phase, RunSpec
from pipeline.data.augment import Augment
from pipeline.data.loader import Batch, Dataset, Split
from pipeline.kind import Kind
from pipeline.layers.evaluate import evaluate
from pipeline.layers.layer import LocalLayer, State
from pipeline.layers.shared_state import VersionedState
from pipeline.layers.tallies import TrainTally
from pipeline.methods import Activations, BatchPosition, StepContext
from pipeline.runtime.history import RunResult
from pipeline.runtime.observer import Observer
from pipeline.runtime.process import configure_process
from pipeline.runtime.watch import Watch
from pipeline.telemetry.reports import PassReport


def train_serial(
    spec: RunSpec,
    dataset: Dataset,
    observer: Observer = Observer(),  # noqa: B008 (it has no state)
) -> RunResult:
    """Trains every layer on every batch, keeps the best weights, trains the readouts, tests.

    Args:
        observer: watches the loop as a single stage. Whether to stop it is asked between two layers as well.

    Raises:
        NonFiniteLossError: a loss became NaN or infinite; ``result`` holds what was learned before.
    """
    configure_process(spec, spec.stage_device(0))
    watch = Watch(spec, observer)
    run = SerialRun(spec, dataset, watch)
    return watch.over(run.train, weights=run.weights, state=run.state)


class SerialRun:
    """A run's layers, and the passes over its data that train them."""

    def __init__(self, spec: RunSpec, dataset: Dataset, watch: Watch) -> None:
        self.spec, self.dataset, self.watch = spec, dataset, watch
        self.device = spec.stage_device(0)
        self.shared = VersionedState(spec) if spec.shared_versions is not None else None
        self.layers = [LocalLayer(spec, index, self.device, self.shared) for index in range(spec.num_layers)]
        self.rule = self.layers[0].rule
        self.augment = Augment(spec.augment, seed=spec.settings.train.seed, device=self.device)
        self.owners: list[LocalLayer | VersionedState] = [
            *self.layers,
            *([self.shared] if self.shared else []),
        ]

    def train(self) -> None:
        epochs, readout = self.spec.epochs, self.spec.settings.readout
        for phase in self.spec.phases:
            best = self.train_phase(phase)
        if self.shared is not None:
            self.shared.freeze(best)
        self.watch.layers_trained()
        for epoch in range(epochs, epochs + (readout.readout_epochs if readout.mode == "after" else 0)):
            self.train_readouts(epoch)
            if readout.judged:
                for layer, said in zip(self.layers, self.evaluate("validate", Kind.JUDGE, epoch).layers, strict=True):
                    layer.judge_readout(said.readout_loss)
        for layer in self.layers:
            layer.take_best_readout()
        self.evaluate("test", Kind.TEST, 0)

    def train_phase(self, phase: Phase) -> int:
        """Trains the layers of a phase and gives them the weights of its best epoch, which it returns."""
        for epoch in phase.epochs:
            self.train_layers(epoch)
            candidate = self.weights()
            self.evaluate("validate", Kind.VALIDATE, epoch)
            self.watch.keep_best(epoch, candidate)
        best, weights = self.watch.phase_over(phase, self.state())
        for layer in self.layers:
            layer.load_weights(weights)
        return best

    def train_layers(self, epoch: int) -> None:
        tallies = [TrainTally(layer.index) for layer in self.layers]
        for batch, where, labels in self.batches(Kind.TRAIN, epoch):
            activations = self.inputs(batch, where, labels, self.rule.num_views)
            for layer, tally in zip(self.watch.between(self.layers), tallies, strict=True):
                activations, loss = layer.take_part(activations, labels, where)
                tally.add(loss, layer.version_skew(where))
            self.watch.trained(tallies, len(labels), last=batch.last)
        self.watch.report(PassReport(stage=0, kind=Kind.TRAIN, epoch=epoch, layers=[one.report() for one in tallies]))

    def train_readouts(self, epoch: int) -> None:
        tallies = [TrainTally(layer.index, readout=True) for layer in self.layers]
        for batch, where, labels in self.batches(Kind.READOUT, epoch):
            activations = self.inputs(batch, where, labels, 1)
            for layer, tally in zip(self.watch.between(self.layers), tallies, strict=True):
                activations, loss = layer.train_readout(activations, labels, where)
                tally.add(loss)
        for tally in tallies:
            tally.finite_latest()
        self.watch.report(PassReport(stage=0, kind=Kind.READOUT, epoch=epoch, layers=[one.report() for one in tallies]))

    def evaluate(self, split: Split, kind: Kind, epoch: int) -> PassReport:
        batches = self.watch.batches(self.dataset, split, kind, epoch)
        return self.watch.report(evaluate(self.spec, self.layers, self.augment, batches, kind=kind, epoch=epoch))

    def batches(self, kind: Kind, epoch: int) -> Iterator[tuple[Batch, BatchPosition, Tensor]]:
        for batch in self.watch.batches(self.dataset, "train", kind, epoch):
            where = self.spec.batch_position(kind, epoch, batch.step, batch.position)
            yield batch, where, batch.labels.to(self.device)

    def inputs(self, batch: Batch, where: BatchPosition, labels: Tensor, num_views: int) -> Activations:
        views = self.augment.views(batch.images, epoch=where.epoch, position=batch.position, num_views=num_views)
        return self.rule.make_inputs(views, StepContext(labels=labels, where=where))

    def weights(self) -> State:
        return {name: value for owner in self.owners for name, value in owner.weights().items()}

    def state(self) -> State:
        return {name: value for owner in self.owners for name, value in owner.state().items()}
