"""One locally trained layer: its net, its rule, its optimizer and its readout. The unit that every executor runs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from pipeline import rng
from pipeline.config.run_spec import RunSpec
from pipeline.layers import state as states
from pipeline.layers.beginning import Beginning
from pipeline.layers.determinism import operations_named
from pipeline.layers.forward import Arithmetic, LayerForward, Outputs
from pipeline.layers.guard import Guard, running_statistics
from pipeline.layers.optimizer import is_capturable, layer_optimizer
from pipeline.layers.rates import Rates
from pipeline.layers.readout import ReadoutTraining
from pipeline.layers.shared_state import SharedStateAccess
from pipeline.layers.state import Snapshot, State, below
from pipeline.layers.step_graph import Capturer, GraphRefusedError, Sample, StepGraph, StepWork, capture, check_step
from pipeline.layers.tallies import EvaluationTally
from pipeline.methods import Activations, BatchPosition, StepContext


def _unheard(what: str) -> None:
    """Nobody traces the layer."""


def nowhere(activations: Activations) -> None:
    """Sends nothing: the next layer is in the same stage, or there is none."""


@dataclass(frozen=True)
class _Forwarded:
    """What a step's forward pass gives: outputs, what is passed on, and running statistics (``_running``) before it."""

    outputs: Outputs
    passed: Activations
    running: list[Tensor]


class LocalLayer:
    """Layer ``index`` of a run. Its numbers depend on the spec and its index alone, not on which stage holds it.

    Args:
        shared: the state that layers share, such as label embeddings, for methods that have one.
    """

    def __init__(
        self, spec: RunSpec, index: int, device: torch.device, shared: SharedStateAccess | None = None
    ) -> None:
        settings = spec.settings
        self.index = index
        self._prefix = f"layers.{index}"
        self.device, self._spec = device, spec
        self._train, self._readout_settings = settings.train, settings.readout
        begun = Beginning.of(spec, index, device)
        self.net, self.rule, self.readout = begun.net, begun.rule, begun.readout
        self.forward = LayerForward(
            self.net, self.rule, begun.joined, Arithmetic.of(settings.pipeline), compiles=spec.compiles
        )
        self._method = settings.method
        parameters = [*self.net.parameters(), *self.rule.parameters()]
        self.optimizer = layer_optimizer(settings, index, parameters)
        self._rates, self._guard = Rates(self.optimizer), Guard(self.optimizer, index)
        # Held while weights change, so that another thread (an interrupt) can copy them between two updates.
        self._updating = threading.Lock()
        self.readout_training = ReadoutTraining(self.readout, settings, index, device, self._updating)
        self.has_readout = index in spec.readouts
        self._modules = {"net": self.net, "rule": self.rule, "readout": self.readout}
        self._optimizers = {"optimizer": self.optimizer, "readout_optimizer": self.readout_training.optimizer}
        # Random numbers of dropout and label noise: seeded anew in every step, so no stream is shared or resumed.
        self._generator = torch.Generator(device)
        begun.draw_from(self._generator)
        self._shared, self._versions = shared, spec.shared_versions
        self._contributes = self._versions is not None and index in self._versions.contributors
        assert shared is not None or self._versions is None, "a shared state has a source"
        if device.type == "cuda":
            self._decide_on_device()
        self._running = running_statistics(self.net, self.rule)
        self._graph: StepGraph[_Forwarded] | None = None
        self.mark: Callable[[str], None] = _unheard
        """Told in ``train`` what has been done since it was told last."""

    def _decide_on_device(self) -> None:
        """Leaves to the device what an update depends on, so that the host reads nothing back.

        With another optimizer than torch's fused ones the host does that.
        """
        self._guard = Guard(self.optimizer, self.index, device=self.device)
        if is_capturable(self.optimizer):
            self._rates = Rates(self.optimizer, self.device)
        self.readout_training.decide_on_device()

    def make_inputs(self, images: Tensor, labels: Tensor, where: BatchPosition) -> Activations:
        """The activations that this layer, a net's first, takes of network input (V·N, channels, H, W)."""
        generator = None
        if where.training:
            generator = self._generator.manual_seed(rng.torch_seed(self._train.seed, "inputs", where.step))
        return self.rule.make_inputs(images, StepContext(labels=labels, where=where, generator=generator))

    def train(
        self,
        activations: Activations,
        labels: Tensor,
        where: BatchPosition,
        *,
        send: Callable[[Activations], None] = nowhere,
    ) -> tuple[Activations, Tensor]:
        """One local update. Returns what is passed on and the loss ().

        ``send`` gets what is passed on before the backward pass begins, so that the next stage need not wait for it.

        Raises:
            NonFiniteLossError: on CPU, before the update. On CUDA the caller looks at the losses at intervals; no
                update is made from the bad one on.
            SharedStateError, PeerLostError: the label embeddings that the layer needs do not come.
            NondeterministicError: an operation has no deterministic kernel, and the run asks for one.
        """
        with operations_named(self.index):
            return self._learn(activations, labels, where, send)

    def _learn(
        self, activations: Activations, labels: Tensor, where: BatchPosition, send: Callable[[Activations], None]
    ) -> tuple[Activations, Tensor]:
        self._set_mode(training=True)
        self._set_rates(where)
        context = self._drawing(labels, where)
        if self._graph is not None and self._graph.fits(activations, labels):
            return self._replay(self._graph, activations, context, send)
        forwarded = self._run_forward(activations, context)
        self.mark("forward")
        send(forwarded.passed)
        self.mark("send")
        loss = self._update(forwarded, self._with_shared(context), partial(self._push, where))
        self.mark("update")
        return forwarded.passed, loss

    def _replay(
        self,
        graph: StepGraph[_Forwarded],
        activations: Activations,
        context: StepContext,
        send: Callable[[Activations], None],
    ) -> tuple[Activations, Tensor]:
        with self._updating:
            passed = graph.forward(activations, context.labels)
        self.mark("forward")
        send(passed)
        self.mark("send")
        shared = self._shared.read(self.index, context.where) if self._shared is not None else None
        with self._updating:
            loss, contribution = graph.update(shared)
            self.readout_training.trained |= self._readout_learns
        if contribution is not None:
            self._push(context.where, contribution)
        self.mark("update")
        return passed, loss

    def capture(
        self, capturer: Capturer, activations: Activations, labels: Tensor, *, sends: bool, proved: bool
    ) -> None:
        """Captures the training step as CUDA graphs, for batches of these shapes. Steps with others go without.

        Nothing that waits for a neighbour may be posted on the device before.

        Args:
            sends: whether activations leave the stage behind the forward pass, so that the step is in two graphs.
            proved: whether replays are compared with the step that was captured.

        Raises:
            GraphRefusedError: the step cannot be captured. The layer is as it was.
        """
        check_step(self.rule, self.optimizer)
        shared = None
        if self._shared is not None:
            shared = self._spec.shared_state().values.detach().to(self.device).requires_grad_(self._contributes)
        trained = self.readout_training.trained
        self._set_mode(training=True)
        try:
            with operations_named(self.index):
                self._graph = capture(
                    capturer,
                    self._work(),
                    Sample(activations, labels, shared),
                    apart=sends or self._shared is not None,
                    proved=proved,
                )
        except RuntimeError as error:
            raise GraphRefusedError.after(error) from error
        finally:
            self.readout_training.trained = trained

    def _work(self) -> StepWork[_Forwarded]:
        """The training step, as it is captured."""
        of_all = self._spec.phases
        own = next(phase for phase in of_all if self.index in phase.layers)

        def begin(number: int) -> None:
            epoch = own.epochs.start
            where = BatchPosition(epoch=epoch, step=number, phase_step=number, position=number, training=True)
            self._set_rates(where)
            self._seed(where)

        def update(forwarded: _Forwarded, context: StepContext) -> tuple[Tensor, Tensor | None]:
            given: list[Tensor] = []
            loss = self._update(forwarded, context, given.append)
            if all(parameter.grad is None for group in self.optimizer.param_groups for parameter in group["params"]):
                raise GraphRefusedError("its loss has no gradient, so there is no update")
            return loss, given[0] if given else None

        def tensors() -> State:
            flags = {"not_finite": self._guard.flag, "readout_not_finite": self.readout_training.guard.flag}
            return {**self.snapshot().tensors, **{name: flag for name, flag in flags.items() if flag is not None}}

        learning = [self.readout_training] if self._readout_learns else []
        return StepWork(
            begin=begin,
            forward=self._run_forward,
            passed=lambda forwarded: forwarded.passed,
            update=update,
            generators=[self._generator, *(generator for one in learning for generator in one.generators)],
            optimizers=[self.optimizer, *(one.optimizer for one in learning)],
            parameters=[*self.net.parameters(), *self.rule.parameters(), *self.readout.parameters()],
            tensors=tensors,
            phase=own.layers if len(of_all) > 1 else None,
        )

    def _run_forward(self, activations: Activations, context: StepContext) -> _Forwarded:
        with self._updating:  # batch norm's running statistics change here
            running = self._running if self._guard.flag is not None else []
            before = [statistic.clone() for statistic in running]
            outputs = self.forward.outputs(activations, context, training=True)
        return _Forwarded(outputs, self._to_send(outputs, context), before)

    def _update(self, forwarded: _Forwarded, context: StepContext, push: Callable[[Tensor], None]) -> Tensor:
        """Updates net, rule and online readout; returns the loss (). ``push`` gets what it adds to the shared state."""
        own = forwarded.outputs.own
        loss = self.rule.loss(self.net, own, context)
        self.mark("loss")
        self._guard.see(loss)
        self.optimizer.zero_grad(set_to_none=True)
        if loss.requires_grad:
            loss.backward()
        self.mark("backward")
        with self._updating:
            self.optimizer.step()
            if self._guard.flag is not None:
                # Only now: the backward pass refuses what has been written since the forward pass.
                for statistic, value in zip(self._running, forwarded.running, strict=True):
                    statistic.copy_(torch.where(self._guard.flag > 0, value, statistic))
            with torch.no_grad():
                self.rule.collect(self.net, own, context)
        if self._contributes:
            push(self.rule.contribution(self.net, own, context))
        if self._readout_learns:
            self._update_readout(forwarded.outputs, context.labels)
        return loss.detach()

    def _push(self, where: BatchPosition, contribution: Tensor) -> None:
        assert self._shared is not None, "it was read"
        self._shared.push(self.index, where.step, contribution)

    def _drawing(self, labels: Tensor, where: BatchPosition) -> StepContext:
        """The context of a training step, with random numbers of this layer and step."""
        return StepContext(labels=labels, where=where, generator=self._seed(where))

    def _seed(self, where: BatchPosition) -> torch.Generator:
        return self._generator.manual_seed(rng.torch_seed(self._train.seed, "layer", self.index, where.step))

    def _set_rates(self, where: BatchPosition) -> None:
        """The learning rates at this step."""
        milestones = self._train.lr_factor(self._spec.epoch_in_phase(where.epoch))
        self._rates.set(milestones, self._method.lr_factor(self.index, where))
        if self._readout_learns:
            self.readout_training.begin(where, milestones)

    @property
    def _readout_learns(self) -> bool:
        """Whether the readout learns along with the layer."""
        return self.has_readout and self._readout_settings.mode == "online"

    def take_part(
        self,
        activations: Activations,
        labels: Tensor,
        where: BatchPosition,
        *,
        send: Callable[[Activations], None] = nowhere,
    ) -> tuple[Activations, Tensor | None]:
        """As ``train`` if the layer learns in this phase of the run; else its loss is None.

        A layer that has learned before stays as it is, one that learns later passes nothing on.
        """
        if where.phase is None or self.index in where.phase:
            return self.train(activations, labels, where, send=send)
        if self._waits(where):
            send({})
            return {}, None
        return self._pass_through(activations, self._drawing(labels, where), send)[1], None

    @torch.no_grad()
    def end_epoch(self, where: BatchPosition) -> None:
        """Comes after the last training batch of an epoch, which was ``where``.

        Raises:
            RunError: the rule can make nothing of the epoch.
        """
        if where.phase is None or self.index in where.phase:
            with self._updating:
                self.rule.end_epoch()

    def _waits(self, where: BatchPosition) -> bool:
        """Whether the layer's phase is yet to come."""
        return where.phase is not None and self.index >= where.phase.stop

    def train_readout(
        self,
        activations: Activations,
        labels: Tensor,
        where: BatchPosition,
        *,
        send: Callable[[Activations], None] = nowhere,
    ) -> tuple[Activations, Tensor | None]:
        """One update of the readout on the frozen layer. Returns what is passed on and the cross-entropy ().

        A layer without a readout passes on what it computes; its cross-entropy is None.
        """
        context = StepContext(labels=labels, where=where)
        outputs, passed = self._pass_through(activations, context, send)
        if not self.has_readout:
            return passed, None
        self.readout_training.begin(where, self._readout_settings.lr_factor(where.epoch - self._spec.epochs))
        return passed, self._update_readout(outputs, labels)

    def _update_readout(self, outputs: Outputs, labels: Tensor) -> Tensor:
        return self.readout_training.update(self.forward.readout_input(outputs), labels)

    @torch.no_grad()
    def evaluate(
        self,
        activations: Activations,
        labels: Tensor,
        where: BatchPosition,
        tally: EvaluationTally,
        *,
        send: Callable[[Activations], None] = nowhere,
    ) -> Activations:
        """Adds the batch to the tally; returns what is passed on. Changes nothing.

        A layer whose phase has not come passes nothing on, and its tally stays empty.
        """
        context = StepContext(labels=labels, where=where)
        if self._waits(where):
            send({})
            return {}
        outputs, passed = self._pass_through(activations, context, send)
        context = self._with_shared(context)
        features = self.forward.features(outputs)
        if tally.is_empty:
            tally.show(self.rule.figures(self.net, outputs.own, context))
        tally.add(
            loss=self.rule.loss(self.net, outputs.own, context),
            features=features,
            labels=labels.repeat(len(features) // len(labels)),  # a row for each view
            scores=self.readout(self.forward.readout_input(outputs)) if self.readout_training.trained else None,
            direct_scores=self.rule.scores(self.net, outputs.own, context),
        )
        return passed

    def version_skew(self, where: BatchPosition) -> int | None:
        """By how many updates the shared state that the layer reads there lags behind; None where it shares none."""
        return self._versions.behind(self.index, where.step) if self._versions is not None else None

    @torch.no_grad()
    def _pass_through(
        self, activations: Activations, context: StepContext, send: Callable[[Activations], None]
    ) -> tuple[Outputs, Activations]:
        """Outputs of the layer as it is, and what is passed on of them, which is sent."""
        self._set_mode(training=False)
        outputs = self.forward.outputs(activations, context)
        passed = self._to_send(outputs, context)
        send(passed)
        return outputs, passed

    def _to_send(self, outputs: Outputs, context: StepContext) -> Activations:
        for_readouts = self._readout_settings.see(training=context.where.training)
        return self.forward.to_send(outputs, context, for_readouts=for_readouts)

    def _set_mode(self, *, training: bool) -> None:
        if self.net.training != training:
            self.net.train(training)
            self.rule.train(training)

    def _with_shared(self, context: StepContext) -> StepContext:
        """The context with the version of the shared state that it reads at this step. Waits for it."""
        if self._shared is None:
            return context
        values = self._shared.read(self.index, context.where).to(self.device, non_blocking=True).detach()
        return replace(context, shared=values.requires_grad_(self._contributes and context.where.training))

    def weights(self) -> State:
        """Copies of the layer's and, once trained, its (best) readout's parameters. Safe from any thread."""
        with self._updating:
            return self._weights()

    def _weights(self) -> State:
        return {
            **states.copies(self.net, f"{self._prefix}.net."),
            **states.copies(self.rule, f"{self._prefix}.rule."),
            **self.readout_training.weights(f"{self._prefix}.readout."),
        }

    def load_weights(self, state: Mapping[str, Tensor]) -> None:
        """Takes weights that ``weights`` returned."""
        readout = below(state, f"{self._prefix}.readout.")
        with self._updating:
            self.net.load_state_dict(below(state, f"{self._prefix}.net."))
            self.rule.load_state_dict(below(state, f"{self._prefix}.rule."))
            if readout:
                self.readout.load_state_dict(readout)
                self.readout_training.trained = True

    def state(self) -> State:
        """Weights and optimizer states: everything that the next update depends on. Safe from any thread."""
        with self._updating:
            state = self._weights()
            for optimizer, module, part in (
                (self.optimizer, self.net, "optimizer"),
                (self.optimizer, self.rule, "optimizer.rule"),
                (self.readout_training.optimizer, self.readout, "readout_optimizer"),
            ):
                state |= states.optimizer_copies(optimizer, module, f"{self._prefix}.{part}.")
        return state

    # What follows is asked for between two batches by the thread that trains.

    @torch.no_grad()
    def vitals(self) -> dict[str, float]:
        """Norms of the layer's parameters and of their last gradient, and the learning rate of the last update."""
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        return {
            "gradient_norm": float(get_total_norm(gradients)),
            "weight_norm": float(get_total_norm([parameter.detach() for parameter in parameters])),
            "learning_rate": self._rates.now[0],
        }

    def snapshot(self) -> Snapshot:
        """Everything that the next update depends on, and the readout that is kept. The tensors are the layer's own."""
        found = states.take_snapshot(self._modules, self._optimizers, collects="rule")
        readout = self.readout_training
        found.values["readout_trained"] = readout.trained
        if readout.best is not None:
            found.values["best_readout_loss"], best = readout.best
            found.tensors |= {f"best_readout.{name}": value for name, value in best.items()}
        return found

    def load_snapshot(self, snapshot: Snapshot) -> None:
        """Goes on from a snapshot of the same layer, taken on whatever device.

        Raises:
            KeyError, RuntimeError, ValueError: it is not of such a layer.
        """
        values, readout = snapshot.values, self.readout_training
        self._graph = None  # it updates what the optimizers are about to replace
        with self._updating:
            states.load_snapshot(snapshot, self._modules, self._optimizers, collects="rule", device=self.device)
            self._rates.hold()
            readout.rates.hold()
            readout.trained = bool(values["readout_trained"])
            if "best_readout_loss" in values:
                readout.best = float(values["best_readout_loss"]), below(snapshot.tensors, "best_readout.")
