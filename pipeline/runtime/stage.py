"""A stage: contiguous layers, one message in, one message out.

Each layer learns at once from what it gets; the last layer's activations are sent on before its backward pass begins,
so the next stage works on this batch while this stage finishes it and takes the next one.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from pipeline.checkpoints.saver import PartSaver
from pipeline.config.run_spec import RunSpec
from pipeline.data.augment import Augment
from pipeline.data.kept import KeptImages
from pipeline.data.loader import on_disk
from pipeline.errors import ChannelError, NonFiniteLossError
from pipeline.kind import Kind
from pipeline.layers.layer import LocalLayer, nowhere
from pipeline.layers.shared_state import SharedStateAccess
from pipeline.layers.state import State
from pipeline.layers.tallies import EvaluationTally, TrainTally
from pipeline.methods import Activations, BatchPosition
from pipeline.runtime.checkpointing import Resume
from pipeline.runtime.feeder import IMAGE_IDS, IMAGES, SPLITS
from pipeline.runtime.keeping import kept_images
from pipeline.runtime.parts import Kept, go_on, parts_of
from pipeline.runtime.passes import START, coming, trained_steps
from pipeline.runtime.step_graphs import capture_steps
from pipeline.telemetry.clock import Clock, TimeCategory
from pipeline.telemetry.machine import MachineProbe
from pipeline.telemetry.memory import bytes_now
from pipeline.telemetry.reports import PassReport, Status, StepTimes
from pipeline.telemetry.steps import BusyMeter, StepLog
from pipeline.telemetry.trace import Profiler, StageTrace, TracePlan, Tracer, TraceWish
from pipeline.transport.channel import Receiver, Sender
from pipeline.transport.message import IDS, LABELS, Message

Send = Callable[[Message], None]

_LOOK_EVERY = 50  # steps between looks at a GPU's losses, each at those up to the look before


class Stage:
    """Stage ``index`` of a run, without its channels: ``handle`` takes a message and gives one to ``send``.

    Args:
        report: gets a report at the end of every pass, in the stage's own thread.
        clock: the stage's clock; the caller accounts for waiting with it.
        shared: the state that layers share, for methods that have one.
        saver: writes the stage's part of checkpoints; None: tokens for them pass through.
        resume: the checkpoint from which the run goes on.
        traced: gets every trace at its end, in the stage's own thread.
        profiler: for steps that are to be profiled; None where the stage has no process to itself.

    Raises:
        DamagedError: the checkpoint's part for this stage cannot be read, or is of another run.
    """

    def __init__(
        self,
        spec: RunSpec,
        index: int,
        device: torch.device,
        *,
        report: Callable[[PassReport], None],
        clock: Clock,
        shared: SharedStateAccess | None = None,
        saver: PartSaver | None = None,
        resume: Resume | None = None,
        traced: Callable[[StageTrace], None] = lambda _: None,
        profiler: Profiler | None = None,
    ) -> None:
        self.spec, self.index, self.device = spec, index, device
        self._shared = AwaitedState(shared, clock) if shared is not None else None
        self.layers = [LocalLayer(spec, layer, device, self._shared) for layer in spec.stages[index]]
        self._rule = self.layers[0].rule
        self._augment: Augment | None = None
        self._kept: KeptImages | None = None
        self._notes: tuple[str, ...] = ()
        if index == 0:
            self._augment = Augment(spec.augment, seed=spec.settings.train.seed, device=device)
            self._kept, self._notes = kept_images(spec, device)
        self._report, self._clock = report, clock
        self._log = StepLog(clock, device)
        self.tracer = Tracer(clock, index, told=traced, profiler=profiler)
        self._machine = MachineProbe(device)
        for layer in self.layers:
            layer.mark = partial(self.tracer.mark, layer.index)
        self._layer_seconds = {layer.index: 0.0 for layer in self.layers}  # of the running training pass
        self._candidates: dict[int, State] = {}
        self._candidates_lock = threading.Lock()
        self._trained: State | None = None  # weights and optimizers at the end of the layers' training
        self._training: list[TrainTally] = []
        self._evaluation: list[EvaluationTally] = []
        self._ids: list[Tensor] = []
        self._labels: list[Tensor] = []
        self._kind: Kind | None = None
        self._epoch, self._step, self._images = 0, 0, 0
        self._before: Message | None = None  # the batch before, without its tensors
        self._restored = False
        self._saver, self._cut = saver, START
        self._saved_last: str | None = None
        if resume is not None:
            self._go_on(resume)
        self.tracer.plan(spec.traced.after(trained_steps(spec, self._cut)))

    def capture(self) -> None:
        """Captures the layers' training steps as CUDA graphs, where the run has them: before channels are made.

        Raises as ``pipeline.runtime.step_graphs.capture_steps`` does.
        """
        self._notes += capture_steps(self.spec, self.layers, self._cut)

    def handle(self, message: Message, send: Send) -> bool:
        """Works on one message. Returns whether more may follow.

        Raises:
            NonFiniteLossError: naming stage, layer, epoch and step.
        """
        self._check_order(message)
        begin = time.perf_counter()
        if not message.kind.is_control:  # those are of no place of their own
            self._kind, self._epoch, self._step = message.kind, message.epoch, message.step
        match message.kind:
            case Kind.TRAIN:
                self._train(message, send)
            case Kind.READOUT:
                self._train_readouts(message, send)
            case Kind.VALIDATE | Kind.TEST | Kind.JUDGE:
                self._evaluate(message, send)
            case Kind.RESTORE:
                send(message)
                self._restore(message.epoch)
                self._cut = self._cut.after_restore(message.epoch)
            case Kind.CHECKPOINT:
                send(message)
                self._save()
            case Kind.TRACE:
                send(message)
                first = trained_steps(self.spec, self._cut)
                wish = TraceWish(message.step, message.position)
                self.tracer.start(TracePlan.of(wish, first, self.spec.num_steps))
            case Kind.STOP:
                send(message)
                self.tracer.stop()
                return False
        if not message.kind.is_control:
            self._cut = self._cut.after_batch(message.kind, last=message.last)
        if message.kind is not Kind.TRAIN:  # whose parts are told one by one
            name = message.kind.name.lower()
            self.tracer.aside(f"token: {name}" if message.kind.is_control else name, begin)
        return True

    def _restore(self, epoch: int) -> None:
        """Takes the weights of a phase's best epoch. After the last phase layers and shared state stay so."""
        last = self.spec.phase_of(epoch) == self.spec.phases[-1]
        if last:
            self._trained = self._state()
        candidate = self.candidate(epoch)
        for layer in self.layers:
            layer.load_weights(candidate)
        if last and self._shared is not None:
            self._shared.freeze(epoch)
        self._restored = last

    def _save(self) -> None:
        """Saves the stage as it is between two batches."""
        key = self._cut.key
        if self._saver is None or key == self._saved_last:  # since then nothing was learned
            return
        begin = time.perf_counter()
        self.look()  # nothing is worth saving that is no number
        self._saved_last = key
        with self._candidates_lock:
            kept = Kept(dict(self._candidates), self._trained, self._training, self._images)
        with self._clock.measure(TimeCategory.COPY):
            self._saver.save(key, parts_of(self.layers, kept))
        self.tracer.aside("checkpoint", begin)
        if self._shared is not None:
            self._shared.checkpoint(key, trained_steps(self.spec, self._cut))

    def _go_on(self, resume: Resume) -> None:
        """Takes what a checkpoint has of the stage's layers."""
        self._cut = cut = resume.cut
        self._saved_last = cut.key
        self._restored = len(cut.restored) == len(self.spec.phases)
        kept = go_on(self.layers, resume, readout=self._restored)
        self._candidates, self._trained = kept.candidates, kept.trained
        self._training, self._images = kept.tallies, kept.images
        if cut.steps:
            left = coming(self.spec, cut)[0]
            self._before = Message(left.kind, left.epoch, cut.steps - 1)
        if self._restored and self._shared is not None:
            self._shared.freeze(cut.restored[-1])

    def _check_order(self, message: Message) -> None:
        """Refuses a batch that does not follow the one before: within a pass steps count up, a pass begins at 0.

        Control tokens may come anywhere.
        """
        if message.kind.is_control:
            return
        before = self._before
        goes_on = before is not None and (before.kind, before.epoch, before.last) == (
            message.kind,
            message.epoch,
            False,
        )
        due = before.step + 1 if before is not None and goes_on else 0
        if message.step != due:
            raise ChannelError(
                f"stage {self.index + 1}: step {message.step + 1} of {message.kind.name.lower()} epoch "
                f"{message.epoch + 1} arrived where step {due + 1} was due"
            )
        self._before = replace(message, tensors={})

    def _train(self, message: Message, send: Send) -> None:
        self._training = self._training or [TrainTally(layer.index) for layer in self.layers]
        where = self._position_of(message)
        self.tracer.begin(where.step)
        busy = self._clock.spent(TimeCategory.BUSY)
        activations, labels = self._enter(message, where, self._rule.num_views)
        for layer, tally in zip(self.layers, self._training, strict=True):
            onward = self._onward(message, layer, send)
            try:
                activations, loss = layer.take_part(activations, labels, where, send=onward)
            except NonFiniteLossError as error:
                raise self._located(error) from None
            tally.add(loss, layer.version_skew(where))
            if message.last:
                layer.end_epoch(where)
            before, busy = busy, self._clock.spent(TimeCategory.BUSY)
            self._layer_seconds[layer.index] += busy - before
        self._images += len(labels)
        if message.last:
            self.look()
        elif message.step % _LOOK_EVERY == 0 and self.device.type != "cpu":
            self._look_behind()
        self._log.mark()
        self.tracer.end()
        if message.last:
            self._end_training(Kind.TRAIN, self._log.take())

    def _train_readouts(self, message: Message, send: Send) -> None:
        self._training = self._training or [TrainTally(layer.index, readout=True) for layer in self.layers]
        where = self._position_of(message)
        activations, labels = self._enter(message, where, self.spec.readout_views)
        for layer, tally in zip(self.layers, self._training, strict=True):
            onward = self._onward(message, layer, send)
            try:
                activations, loss = layer.train_readout(activations, labels, where, send=onward)
            except NonFiniteLossError as error:
                raise self._located(error) from None
            tally.add(loss)
        if message.last:
            self.look()
            self._end_training(Kind.READOUT)

    def _end_training(self, kind: Kind, steps: StepTimes | None = None) -> None:
        reports = [
            tally.report(layer.vitals() if kind is Kind.TRAIN else None)
            for layer, tally in zip(self.layers, self._training, strict=True)
        ]
        self._training = []
        # A GPU computes later than it is told to.
        seconds = dict(self._layer_seconds) if kind is Kind.TRAIN and self.device.type == "cpu" else None
        self._layer_seconds = dict.fromkeys(self._layer_seconds, 0.0)
        said = PassReport(stage=self.index, kind=kind, epoch=self._epoch, layers=reports, steps=steps)
        said.layer_seconds = seconds
        self._say(said)

    def _evaluate(self, message: Message, send: Send) -> None:
        if message.step == 0:
            self._evaluation = [
                EvaluationTally.of(self.spec, layer.index, layer.net.features, self.device) for layer in self.layers
            ]
            self._ids, self._labels = [], []
            if message.kind is Kind.VALIDATE:
                self._keep_candidate(message.epoch)
            if message.kind is Kind.TEST:
                for layer in self.layers:
                    layer.readout_training.take_best()
        where = self._position_of(message)
        activations, labels = self._enter(
            message, where, self.spec.evaluation_views(message.kind, self._rule.num_views)
        )
        for layer, tally in zip(self.layers, self._evaluation, strict=True):
            activations = layer.evaluate(activations, labels, where, tally, send=self._onward(message, layer, send))
        test = message.kind is Kind.TEST
        if test:
            self._ids.append(message.tensors[IDS].cpu().clone())
            self._labels.append(message.tensors[LABELS].cpu().clone())
        if message.last:
            report = PassReport(
                stage=self.index,
                kind=message.kind,
                epoch=message.epoch,
                layers=[tally.report(with_predictions=test) for tally in self._evaluation],
                ids=torch.cat(self._ids).numpy() if test else None,
                labels=torch.cat(self._labels).numpy() if test else None,
            )
            if message.kind is Kind.JUDGE:
                for layer, of_layer in zip(self.layers, report.layers, strict=True):
                    layer.readout_training.judge(of_layer.readout_loss)
            self._say(report)

    def _position_of(self, message: Message) -> BatchPosition:
        return self.spec.batch_position(message.kind, message.epoch, message.step, message.position)

    def _enter(self, message: Message, where: BatchPosition, num_views: int) -> tuple[Activations, Tensor]:
        """The batch's inputs and labels; the first stage makes ``num_views`` views, with 0 it takes plain images."""
        labels = message.tensors[LABELS].to(self.device, non_blocking=True)
        if self._augment is None:
            activations = {name: tensor for name, tensor in message.tensors.items() if name not in (LABELS, IDS)}
            return {name: tensor.to(self.device, non_blocking=True) for name, tensor in activations.items()}, labels
        images = self._images_of(message)
        make = self._augment.evaluation if message.kind.is_evaluation else self._augment.views
        views = make(images, epoch=message.epoch, position=message.position, num_views=num_views)
        return self.layers[0].make_inputs(views, labels, where), labels

    def _images_of(self, message: Message) -> Tensor:
        """A batch's images, which the first stage gets or has kept."""
        sent = message.tensors
        if self._kept is None:
            if IMAGES not in sent:
                raise ChannelError(f"stage 1 got {sorted(sent)} where it needs {IMAGES!r}")
            return sent[IMAGES]
        split = on_disk(SPLITS[message.kind], self.spec.settings.data.validation)
        if IMAGES in sent:
            self._kept.add(split, sent[IMAGES], sent[IMAGE_IDS])
        return self._kept.batch(split, sent[IDS])

    @property
    def keeps_images(self) -> bool:
        """Whether the images stay on its device: then it is to be sent each of them once."""
        return self._kept is not None

    def _onward(self, message: Message, layer: LocalLayer, send: Send) -> Callable[[Activations], None]:
        """What a layer does with its activations: the stage's last layer sends them on, with labels and ids."""
        if layer is not self.layers[-1]:
            return nowhere

        def send_on(activations: Activations) -> None:
            tensors = {**activations, LABELS: message.tensors[LABELS], IDS: message.tensors[IDS]}
            send(Message(message.kind, message.epoch, message.step, message.position, message.last, tensors))

        return send_on

    def _say(self, report: PassReport) -> None:
        report.account, report.started_at = self._clock.lap(), self._clock.started_at
        self._report(report)

    def _located(self, error: NonFiniteLossError) -> NonFiniteLossError:
        return error.at(stage=self.index, epoch=self._epoch, step=self._step)

    def look(self) -> list[float]:
        """The latest loss of each layer. Waits for the device.

        Raises:
            NonFiniteLossError: on CUDA, where nobody looked before.
        """
        try:
            return [tally.finite_latest() for tally in self._training]
        except NonFiniteLossError as error:
            raise self._located(error) from None

    def _look_behind(self) -> None:
        """Looks at losses that the device has given by now. Raises NonFiniteLossError."""
        try:
            for tally in self._training:
                tally.look_behind()
        except NonFiniteLossError as error:
            raise self._located(error) from None

    # What follows is asked for by another thread while the stage works.

    def status(self) -> Status:
        losses = [float(tally.losses[-1]) if tally.losses else math.nan for tally in self._training]
        return Status(
            stage=self.index,
            kind=self._kind,
            epoch=self._epoch,
            step=self._step,
            images=self._images,
            losses=losses,
            account=self._clock.read(),
            device=str(self.device),
            restored=self._restored,
            memory=bytes_now(self.device),
            machine=self._machine.read(),
            keeps_images=self.keeps_images,
            notes=self._notes,
        )

    def keep_only(self, best: int, upto: int) -> None:
        """Of the candidates up to epoch ``upto``, keeps that of epoch ``best`` alone."""
        with self._candidates_lock:
            for epoch in [e for e in self._candidates if e <= upto and e != best]:
                del self._candidates[epoch]

    def candidate(self, epoch: int) -> State:
        """Weights at the validation of an epoch."""
        with self._candidates_lock:
            return self._candidates[epoch]

    def weights(self) -> State:
        """Weights and readouts as they are, between two updates."""
        return {name: value for layer in self.layers for name, value in layer.weights().items()}

    def trained(self) -> State:
        """Weights and optimizer states at the end of the layers' training, or now if that goes on."""
        return self._trained if self._trained is not None else self._state()

    def _state(self) -> State:
        return {name: value for layer in self.layers for name, value in layer.state().items()}

    def _keep_candidate(self, epoch: int) -> None:
        weights = self.weights()
        with self._candidates_lock:
            self._candidates[epoch] = weights


class AwaitedState:
    """A source of shared state whose waiting counts as such on the stage's clock."""

    def __init__(self, source: SharedStateAccess, clock: Clock) -> None:
        self._source, self._clock = source, clock

    def read(self, layer: int, where: BatchPosition) -> Tensor:
        with self._clock.measure(TimeCategory.SYNC):
            return self._source.read(layer, where)

    def push(self, layer: int, step: int, contribution: Tensor) -> None:
        with self._clock.measure(TimeCategory.SYNC):
            self._source.push(layer, step, contribution)

    def freeze(self, epoch: int) -> None:
        with self._clock.measure(TimeCategory.SYNC):
            self._source.freeze(epoch)

    def checkpoint(self, key: str, step: int) -> None:
        with self._clock.measure(TimeCategory.SYNC):
            self._source.checkpoint(key, step)


def run(stage: Stage, inbox: Receiver, outbox: Sender | None, clock: Clock) -> None:
    """Works on messages until the stop token. What is not waiting or copying counts as busy."""
    busy = BusyMeter(clock, stage.device)

    def send(message: Message) -> None:
        if outbox is not None:
            with busy.pause():
                outbox.send(message)

    def receive() -> Message:
        if not stage.tracer.on:
            return inbox.receive()
        stage.tracer.queued(inbox.waiting)
        message = inbox.receive()
        stage.tracer.queued(inbox.waiting)
        return message

    message = inbox.receive()
    clock.restart()  # what came before the first batch is start-up
    more = True
    try:
        while more:
            with busy.step(alike=message.kind is Kind.TRAIN):
                more = stage.handle(message, send)
            if more:
                message = receive()
    finally:
        stage.tracer.close()
    busy.finish()
    if outbox is not None:
        outbox.close()
