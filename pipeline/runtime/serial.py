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
from pipeline.layers.layer import LocalLayer
from pipeline.layers.shared_state import VersionedState
from pipeline.layers.state import State
from pipeline.layers.tallies import TrainTally
from pipeline.methods import Activations, BatchPosition
from pipeline.runtime.checkpointing import NO_CHECKPOINTS, Checkpointing, Resume, shared_state
from pipeline.runtime.history import RunResult
from pipeline.runtime.observer import Observer
from pipeline.runtime.parts import go_on, parts_of
from pipeline.runtime.passes import START, coming, trained_steps
from pipeline.runtime.process import configure_process
from pipeline.runtime.step_graphs import capture_steps
from pipeline.runtime.watch import Watch
from pipeline.telemetry.reports import PassReport


def train_serial(
    spec: RunSpec,
    dataset: Dataset,
    observer: Observer = Observer(),  # noqa: B008 (it has no state)
    checkpointing: Checkpointing = NO_CHECKPOINTS,
) -> RunResult:
    """Trains every layer on every batch, keeps the best weights, trains the readouts, tests.

    Args:
        observer: watches the loop as a single stage. Whether to stop it is asked between two layers as well, unless the
            run saves checkpoints: they are between batches.
        checkpointing: where checkpoints are saved, and which one the run goes on from.

    Raises:
        NonFiniteLossError: a loss became NaN or infinite; ``result`` holds what was learned before.
        DamagedError: the checkpoint cannot be gone on from.
    """
    configure_process(spec, spec.stage_device(0))
    watch = Watch(spec, observer, checkpointing)
    run = SerialRun(spec, dataset, watch, checkpointing.resume)
    return watch.over(run.train, weights=run.weights, state=run.state, save=run.save)


class SerialRun:
    """A run's layers, and the passes over its data that train them."""

    def __init__(self, spec: RunSpec, dataset: Dataset, watch: Watch, resume: Resume | None = None) -> None:
        self.spec, self.dataset, self.watch = spec, dataset, watch
        self.device = spec.stage_device(0)
        self.shared = shared_state(spec, watch.shared_saver, resume) if spec.shared_versions is not None else None
        self.layers = [LocalLayer(spec, index, self.device, self.shared) for index in range(spec.num_layers)]
        self.rule = self.layers[0].rule
        self.augment = Augment(spec.augment, seed=spec.settings.train.seed, device=self.device)
        self.owners: list[LocalLayer | VersionedState] = [
            *self.layers,
            *([self.shared] if self.shared else []),
        ]
        self.cut = START
        self.tallies: list[TrainTally] = []
        if resume is not None:
            self.go_on(resume)

    def train(self) -> None:
        for note in capture_steps(self.spec, self.layers, self.cut):
            self.watch.observer.notified(note)
        for number in range(len(self.cut.restored), len(self.spec.phases) + 1):
            for kind, epoch, first in coming(self.spec, self.cut):
                match kind:
                    case Kind.TRAIN:
                        self.train_layers(epoch, first)
                    case Kind.VALIDATE:
                        self.validate(epoch)
                    case Kind.READOUT:
                        self.train_readouts(epoch, first)
                    case Kind.JUDGE:
                        self.judge_readouts(epoch)
                    case Kind.TEST:
                        self.test()
            if number < len(self.spec.phases):
                self.save()
                self.end_phase(self.spec.phases[number])

    def end_phase(self, phase: Phase) -> None:
        """Gives the layers the weights of a phase's best epoch."""
        best, weights = self.watch.phase_over(phase, self.state())
        for layer in self.layers:
            layer.load_weights(weights)
        self.cut = self.cut.after_restore(best)
        if phase == self.spec.phases[-1]:
            self.watch.layers_trained()
            if self.shared is not None:
                self.shared.freeze(best)

    def train_layers(self, epoch: int, first: int = 0) -> None:
        self.tallies = self.tallies or [TrainTally(layer.index) for layer in self.layers]
        for batch, where, labels in self.batches(Kind.TRAIN, epoch, first):
            activations = self.inputs(batch, where, labels, self.rule.num_views)
            for layer, tally in zip(self.watch.between(self.layers), self.tallies, strict=True):
                activations, loss = layer.take_part(activations, labels, where)
                tally.add(loss, layer.version_skew(where))
                if batch.last:
                    layer.end_epoch(where)
            self.watch.trained(self.tallies, len(labels), last=batch.last)
        self.report_training(Kind.TRAIN, epoch)

    def validate(self, epoch: int) -> None:
        candidate = self.weights()
        self.evaluate("validate", Kind.VALIDATE, epoch)
        self.watch.keep_best(epoch, candidate)

    def train_readouts(self, epoch: int, first: int = 0) -> None:
        self.tallies = self.tallies or [TrainTally(layer.index, readout=True) for layer in self.layers]
        for batch, where, labels in self.batches(Kind.READOUT, epoch, first):
            activations = self.inputs(batch, where, labels, self.spec.readout_views)
            for layer, tally in zip(self.watch.between(self.layers), self.tallies, strict=True):
                activations, loss = layer.train_readout(activations, labels, where)
                tally.add(loss)
        for tally in self.tallies:
            tally.finite_latest()
        self.report_training(Kind.READOUT, epoch)

    def judge_readouts(self, epoch: int) -> None:
        for layer, said in zip(self.layers, self.evaluate("validate", Kind.JUDGE, epoch).layers, strict=True):
            layer.readout_training.judge(said.readout_loss)

    def test(self) -> None:
        for layer in self.layers:
            layer.readout_training.take_best()
        self.evaluate("test", Kind.TEST, 0)

    def report_training(self, kind: Kind, epoch: int) -> None:
        trains = kind is Kind.TRAIN
        pairs = zip(self.layers, self.tallies, strict=True)
        said = [tally.report(layer.vitals() if trains else None) for layer, tally in pairs]
        self.tallies = []
        self.watch.report(PassReport(stage=0, kind=kind, epoch=epoch, layers=said))

    def evaluate(self, split: Split, kind: Kind, epoch: int) -> PassReport:
        batches = self.watch.batches(self.dataset, split, kind, epoch)
        report = evaluate(self.spec, self.layers, self.augment, batches, kind=kind, epoch=epoch)
        self.cut = self.cut.after_batch(kind, last=True)
        return self.watch.report(report)

    def batches(self, kind: Kind, epoch: int, first: int) -> Iterator[tuple[Batch, BatchPosition, Tensor]]:
        for batch in self.watch.batches(self.dataset, "train", kind, epoch, first):
            if self.watch.save_is_due():
                self.save()
            where = self.spec.batch_position(kind, epoch, batch.step, batch.position)
            yield batch, where, batch.labels.to(self.device)
            self.cut = self.cut.after_batch(kind, last=batch.last)

    def inputs(self, batch: Batch, where: BatchPosition, labels: Tensor, num_views: int) -> Activations:
        views = self.augment.views(batch.images, epoch=where.epoch, position=batch.position, num_views=num_views)
        return self.layers[0].make_inputs(views, labels, where)

    def save(self) -> None:
        """Saves a checkpoint of what has been learned so far, between two batches."""
        if self.watch.saver is None:
            return
        self.watch.saver.save(self.cut.key, parts_of(self.layers, self.watch.kept(self.tallies)))
        if self.shared is not None:
            self.shared.checkpoint(self.cut.key, trained_steps(self.spec, self.cut))

    def go_on(self, resume: Resume) -> None:
        """Takes what a checkpoint has."""
        self.cut = resume.cut
        over = len(self.cut.restored) == len(self.spec.phases)
        kept = go_on(self.layers, resume, readout=over)
        self.tallies = kept.tallies
        self.watch.go_on(kept, self.shared, restored=over)
        if over and self.shared is not None:
            self.shared.freeze(self.cut.restored[-1])

    def weights(self) -> State:
        return {name: value for owner in self.owners for name, value in owner.weights().items()}

    def state(self) -> State:
        return {name: value for owner in self.owners for name, value in owner.state().items()}
