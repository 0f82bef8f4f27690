"""One locally trained layer: its net, its rule, its optimizer and its readout. The unit that every executor runs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from pipeline import rng
from pipeline.config.run_spec import RunSpec
from pipeline.errors import NonFiniteLossError
from pipeline.layers.determinism import operations_named
from pipeline.layers.forward import Arithmetic, LayerForward, Outputs
from pipeline.layers.joined import JoinedFeatures
from pipeline.layers.rates import Rates
from pipeline.layers.shared_state import SharedStateAccess
from pipeline.layers.step_graph import Capturer, GraphRefusedError, Sample, StepGraph, StepWork, capture
from pipeline.layers.tallies import EvaluationTally
from pipeline.methods import Activations, BatchPosition, StepContext
from pipeline.methods.adamw import AdamW, is_capturable, load_optimizer
from pipeline.nets import Dropout

_OF_A_DEVICE = ("fused", "foreach", "capturable", "differentiable")  # settings of an optimizer that change no number

State = dict[str, Tensor]
"""Flat names → tensors, such as ``layers.2.net.qkv.weight`` or ``layers.2.optimizer.qkv.weight.exp_avg``."""


def _unheard(what: str) -> None:
    """Nobody traces the layer."""


def nowhere(activations: Activations) -> None:
    """Sends nothing: the next layer is in the same stage, or there is none."""


class Readout(nn.Module):
    """Linear classifier on a layer's features: LayerNorm → Linear (CFF, stage 2), or Linear alone (CFL's f^L)."""

    def __init__(self, features: int, num_classes: int, *, norm: bool = True) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(features) if norm else nn.Identity()
        self.linear = nn.Linear(features, num_classes)

    def forward(self, features: Tensor) -> Tensor:
        scores: Tensor = self.linear(self.norm(features))
        return scores


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
        # Initial weights are drawn on the CPU, so that a GPU starts from the same ones.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(rng.torch_seed(settings.train.seed, "init", index))
            self.net = spec.net.build(index, spec.shape)
            torch.manual_seed(rng.torch_seed(settings.train.seed, "init-rule", index))
            self.rule = settings.method.build(index, self.net, spec.model_info)
            torch.manual_seed(rng.torch_seed(settings.train.seed, "init-readout", index))
            joined = JoinedFeatures(settings.method, spec.net, spec.shape, index, self.net, spec.readouts)
            self.readout = Readout(joined.width, len(spec.classes), norm=settings.readout.readout_norm)
        for part in (self.net, self.rule, self.readout):
            part.to(device)
        self.forward = LayerForward(
            self.net, self.rule, joined, Arithmetic.of(settings.pipeline), compiles=spec.compiles
        )
        self._method = settings.method
        parameters = [*self.net.parameters(), *self.rule.parameters()]
        self.optimizer = settings.method.optimizer(
            index, parameters, lr=settings.train.lr, weight_decay=settings.train.weight_decay
        )
        readout_lr = settings.train.lr if settings.readout.readout_lr == "lr" else settings.readout.readout_lr
        self.readout_optimizer = AdamW(self.readout.parameters(), lr=readout_lr, fused=True)
        self._rates, self._readout_rates = Rates(self.optimizer), Rates(self.readout_optimizer)
        self.has_readout = index in spec.readouts
        self.readout_trained = False
        self._best_readout: tuple[float, State] | None = None  # its cross-entropy, and its weights
        # Random numbers of dropout and label noise: seeded anew in every step, so no stream is shared or resumed.
        self._generator = torch.Generator(device)
        for module in self.net.modules():
            if isinstance(module, Dropout):
                module.generator = self._generator
        self._shared, self._versions = shared, spec.shared_versions
        self._contributes = self._versions is not None and index in self._versions.contributors
        assert shared is not None or self._versions is None, "a shared state has a source"
        self._not_finite: Tensor | None = None
        self._readout_not_finite: Tensor | None = None
        if device.type == "cuda":
            self._decide_on_device()
        self._running = _running_statistics(self.net)
        self._graph: StepGraph[_Forwarded] | None = None
        # Held while weights change, so that another thread (an interrupt) can copy them between two updates.
        self._updating = threading.Lock()
        self.mark: Callable[[str], None] = _unheard
        """Told in ``train`` what has been done since it was told last."""

    def _decide_on_device(self) -> None:
        """Leaves to the device what an update depends on, so that the host reads nothing back.

        Reading a loss is free on a CPU and stalls a GPU. There the losses are looked at now and then, and until then
        flags, which never fall, keep fused optimizers from applying an update that is no number. With another optimizer
        every loss is looked at.
        """
        if all(group.get("fused") for group in self.optimizer.param_groups):
            self._not_finite = _flag(self.optimizer, self.device)
        if is_capturable(self.optimizer):
            self._rates = Rates(self.optimizer, self.device)
        self._readout_not_finite = _flag(self.readout_optimizer, self.device)
        self._readout_rates = Rates(self.readout_optimizer, self.device)

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
        self._generator.manual_seed(rng.torch_seed(self._train.seed, "layer", self.index, where.step))
        self._set_mode(training=True)
        self._set_rates(where)
        if self._graph is not None and self._graph.fits(activations, labels):
            return self._replay(self._graph, activations, labels, where, send)
        context = StepContext(labels=labels, where=where, generator=self._generator)
        forwarded = self._run_forward(activations, context)
        self.mark("forward")
        send(forwarded.passed)
        self.mark("send")
        context = self._with_shared(context)
        loss = self._update(forwarded, context)
        if self._contributes:
            self._push(where, self.rule.contribution(self.net, forwarded.outputs.own, context))
        if self._readout_learns:
            self._update_readout(forwarded.outputs, labels)
        self.mark("update")
        return forwarded.passed, loss

    def _replay(
        self,
        graph: StepGraph[_Forwarded],
        activations: Activations,
        labels: Tensor,
        where: BatchPosition,
        send: Callable[[Activations], None],
    ) -> tuple[Activations, Tensor]:
        with self._updating:
            passed = graph.forward(activations, labels)
        self.mark("forward")
        send(passed)
        self.mark("send")
        shared = self._shared.read(self.index, where) if self._shared is not None else None
        with self._updating:
            loss, contribution = graph.update(shared)
            self.readout_trained |= self._readout_learns
        if contribution is not None:
            self._push(where, contribution)
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
        if self.rule.eager is not None:
            raise GraphRefusedError(self.rule.eager)
        if not is_capturable(self.optimizer):
            raise GraphRefusedError(f"its optimizer, {type(self.optimizer).__name__}, is none that can be captured")
        shared = None
        if self._shared is not None:
            shared = self._spec.shared_state().values.detach().to(self.device).requires_grad_(self._contributes)
        trained = self.readout_trained
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
            raise GraphRefusedError(f"it cannot be captured ({_first_sentence(error)})") from error
        finally:
            self.readout_trained = trained

    def _work(self) -> StepWork[_Forwarded]:
        """The training step, as it is captured."""
        of_all = self._spec.phases
        own = next(phase for phase in of_all if self.index in phase.layers)

        def begin(number: int) -> None:
            self._generator.manual_seed(rng.torch_seed(self._train.seed, "capture", self.index, number))
            self._set_rates(BatchPosition(epoch=own.epochs.start, step=number, phase_step=number, training=True))

        def update(forwarded: _Forwarded, context: StepContext) -> tuple[Tensor, Tensor | None]:
            loss, contribution = self._update(forwarded, context), None
            if self._contributes:
                contribution = self.rule.contribution(self.net, forwarded.outputs.own, context)
            if self._readout_learns:
                self._update_readout(forwarded.outputs, context.labels)
            return loss, contribution

        def tensors() -> State:
            flags = {"not_finite": self._not_finite, "readout_not_finite": self._readout_not_finite}
            return {**self.snapshot().tensors, **{name: flag for name, flag in flags.items() if flag is not None}}

        return StepWork(
            begin=begin,
            forward=self._run_forward,
            passed=lambda forwarded: forwarded.passed,
            update=update,
            generator=self._generator,
            optimizers=[self.optimizer, *([self.readout_optimizer] if self._readout_learns else [])],
            parameters=[*self.net.parameters(), *self.rule.parameters(), *self.readout.parameters()],
            tensors=tensors,
            phase=own.layers if len(of_all) > 1 else None,
        )

    def _run_forward(self, activations: Activations, context: StepContext) -> _Forwarded:
        with self._updating:  # batch norm's running statistics change here
            running = self._running if self._not_finite is not None else []
            before = [statistic.clone() for statistic in running]
            outputs = self.forward.outputs(activations, context, training=True)
        return _Forwarded(outputs, self._to_send(outputs, context), before)

    def _update(self, forwarded: _Forwarded, context: StepContext) -> Tensor:
        """Updates net and rule; returns the loss ()."""
        loss = self.rule.loss(self.net, forwarded.outputs.own, context)
        self.mark("loss")
        if self._not_finite is None:
            if not torch.isfinite(loss):
                raise NonFiniteLossError(self.index, loss.item())
        else:
            _raise(self._not_finite, loss)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.mark("backward")
        with self._updating:
            self.optimizer.step()
            if self._not_finite is not None:
                # Only now: the backward pass refuses what has been written since the forward pass.
                for statistic, value in zip(self._running, forwarded.running, strict=True):
                    statistic.copy_(torch.where(self._not_finite > 0, value, statistic))
        return loss.detach()

    def _push(self, where: BatchPosition, contribution: Tensor) -> None:
        assert self._shared is not None, "it was read"
        self._shared.push(self.index, where.step, contribution)

    def _set_rates(self, where: BatchPosition) -> None:
        """The learning rates at this step."""
        milestones = self._milestones(where)
        self._rates.set(milestones, self._method.lr_factor(self.index, where))
        if self._readout_learns:
            self._readout_rates.set(milestones)

    @property
    def _readout_learns(self) -> bool:
        """Whether the readout learns along with the layer."""
        return self.has_readout and self._readout_settings.mode == "online"

    def _milestones(self, where: BatchPosition) -> float:
        return self._train.lr_factor(self._spec.epoch_in_phase(where.epoch))

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
        return self._pass_through(activations, StepContext(labels=labels, where=where), send)[1], None

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
        return passed, self._update_readout(outputs, labels) if self.has_readout else None

    def _update_readout(self, outputs: Outputs, labels: Tensor) -> Tensor:
        seen = self.forward.readout_input(outputs).detach()  # (V·N, C)
        loss = F.cross_entropy(self.readout(seen), labels.repeat(len(seen) // len(labels)))
        if self._readout_not_finite is None:
            if not torch.isfinite(loss):
                raise NonFiniteLossError(self.index, loss.item(), readout=True)
        else:
            _raise(self._readout_not_finite, loss)
        self.readout_optimizer.zero_grad(set_to_none=True)
        loss.backward()
        with self._updating:
            self.readout_optimizer.step()
            self.readout_trained = True
        return loss.detach()

    def judge_readout(self, loss: float | None) -> None:
        """Keeps the readout as it is if this cross-entropy on validation images is its lowest. None: it has none."""
        if loss is not None and (self._best_readout is None or loss < self._best_readout[0]):
            with self._updating:
                self._best_readout = loss, {name: _copy(value) for name, value in self.readout.state_dict().items()}

    def take_best_readout(self) -> None:
        """Goes back to the best of the readouts that were judged, if any were."""
        if self._best_readout is not None:
            with self._updating:
                self.readout.load_state_dict(self._best_readout[1])

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
            scores=self.readout(self.forward.readout_input(outputs)) if self.readout_trained else None,
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
        state = {f"{self._prefix}.net.{name}": _copy(value) for name, value in self.net.state_dict().items()}
        state |= {f"{self._prefix}.rule.{name}": _copy(value) for name, value in self.rule.state_dict().items()}
        if self.readout_trained:
            best = self._best_readout[1] if self._best_readout is not None else self.readout.state_dict()
            state |= {f"{self._prefix}.readout.{name}": _copy(value) for name, value in best.items()}
        return state

    def load_weights(self, state: State) -> None:
        """Takes weights that ``weights`` returned."""
        readout = below(state, f"{self._prefix}.readout.")
        with self._updating:
            self.net.load_state_dict(below(state, f"{self._prefix}.net."))
            self.rule.load_state_dict(below(state, f"{self._prefix}.rule."))
            if readout:
                self.readout.load_state_dict(readout)
                self.readout_trained = True

    def state(self) -> State:
        """Weights and optimizer states: everything that the next update depends on. Safe from any thread."""
        with self._updating:
            state = self._weights()
            state |= _optimizer_state(self.optimizer, self.net, f"{self._prefix}.optimizer.")
            state |= _optimizer_state(self.optimizer, self.rule, f"{self._prefix}.optimizer.rule.")
            state |= _optimizer_state(self.readout_optimizer, self.readout, f"{self._prefix}.readout_optimizer.")
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
        tensors: State = {}
        for part, module in (("net", self.net), ("rule", self.rule), ("readout", self.readout)):
            tensors |= {f"{part}.{name}": value.detach() for name, value in module.state_dict().items()}
        values: dict[str, Any] = {"readout_trained": self.readout_trained}
        for part, optimizer in self._optimizers():
            noted, groups = _noted(optimizer, self._named())
            tensors |= {f"{part}.{name}": value for name, value in noted.items() if isinstance(value, Tensor)}
            values[part] = {
                "state": {name: value for name, value in noted.items() if not isinstance(value, Tensor)},
                "groups": groups,
            }
        if self._best_readout is not None:
            values["best_readout_loss"], best = self._best_readout
            tensors |= {f"best_readout.{name}": value for name, value in best.items()}
        return Snapshot(tensors, values)

    def load_snapshot(self, snapshot: Snapshot) -> None:
        """Goes on from a snapshot of the same layer, taken on whatever device.

        Raises:
            KeyError, RuntimeError, ValueError: it is not of such a layer.
        """
        tensors, values = snapshot.tensors, snapshot.values
        self._graph = None  # it updates what the optimizers are about to replace
        with self._updating:
            for part, module in (("net", self.net), ("rule", self.rule), ("readout", self.readout)):
                module.load_state_dict(below(tensors, f"{part}."))
            self.readout_trained = bool(values["readout_trained"])
            named = self._named()
            for part, optimizer in self._optimizers():
                state: dict[Tensor, dict[str, Any]] = {}
                for name, value in {**below(tensors, f"{part}."), **values[part]["state"]}.items():
                    parameter, _, field = name.rpartition(".")
                    state.setdefault(named[parameter], {})[field] = value
                load_optimizer(optimizer, state, values[part]["groups"])
            self._rates.hold()
            self._readout_rates.hold()
            if "best_readout_loss" in values:
                self._best_readout = float(values["best_readout_loss"]), below(tensors, "best_readout.")

    def _optimizers(self) -> tuple[tuple[str, torch.optim.Optimizer], ...]:
        return ("optimizer", self.optimizer), ("readout_optimizer", self.readout_optimizer)

    def _named(self) -> dict[str, nn.Parameter]:
        """Every parameter of the layer by its name in a snapshot."""
        parts = (("net", self.net), ("rule", self.rule), ("readout", self.readout))
        return {f"{part}.{name}": value for part, module in parts for name, value in module.named_parameters()}


@dataclass
class Snapshot:
    """A layer, or what a stage keeps of it, between two batches.

    Attributes:
        tensors: by name. They change with the layer's next update unless they are copied before.
        values: what is no tensor, as JSON has it.
    """

    tensors: State = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)


def _noted(
    optimizer: torch.optim.Optimizer, named: Mapping[str, nn.Parameter]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What an optimizer has noted of each parameter, by its name and the field's; and its groups' settings."""
    names = {id(parameter): name for name, parameter in named.items()}
    noted = {
        f"{names[id(parameter)]}.{name}": value
        for parameter, fields in optimizer.state.items()
        for name, value in fields.items()
    }
    groups = [
        {name: value for name, value in group.items() if isinstance(value, (int, float)) and name not in _OF_A_DEVICE}
        for group in optimizer.param_groups
    ]
    return noted, groups


def _first_sentence(error: RuntimeError) -> str:
    return str(error).splitlines()[0].split(". ")[0].removesuffix(".")


def _running_statistics(net: nn.Module) -> list[Tensor]:
    """Batch norm's means and variances, which a batch that is no number would spoil for good."""
    norms = [module for module in net.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    kept = [tensor for norm in norms for tensor in (norm.running_mean, norm.running_var)]
    return [tensor for tensor in kept if tensor is not None]


def _flag(optimizer: torch.optim.Optimizer, device: torch.device) -> Tensor:
    """A flag that keeps a fused optimizer from updating once it is 1: what GradScaler gives it, too."""
    flag = torch.zeros((), device=device)
    optimizer.found_inf = flag  # type: ignore[attr-defined]
    return flag


@torch.no_grad()
def _raise(flag: Tensor, loss: Tensor) -> None:
    """Sets the flag to 1 if the loss is no number."""
    torch.maximum(flag, (~torch.isfinite(loss)).float(), out=flag)


def is_finite(state: State) -> bool:
    """Whether every number in it is one: a gradient can spoil weights a step before a loss shows it."""
    return all(bool(torch.isfinite(value).all()) for value in state.values())


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().clone() if tensor.is_cuda else tensor.detach().clone()


def below(state: Mapping[str, Tensor], prefix: str) -> State:
    """What names that begin so stand for, without that beginning."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _optimizer_state(optimizer: torch.optim.Optimizer, module: nn.Module, prefix: str) -> State:
    return {
        f"{prefix}{name}.{field}": _copy(value)
        for name, parameter in module.named_parameters()
        for field, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)  # SGD without momentum notes that there is none
    }
