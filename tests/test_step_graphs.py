"""A layer's training step as CUDA graphs, without a GPU: what is captured, and when; replays give a step's bits."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.config.build import build_run
from pipeline.config.devices import Devices
from pipeline.config.run_spec import RunSpec
from pipeline.config.settings import (
    CheckpointSettings,
    DataSettings,
    PipelineSettings,
    ReadoutSettings,
    Settings,
    TrainSettings,
    from_dict,
    to_dict,
)
from pipeline.errors import RunError, UserError
from pipeline.kind import Kind
from pipeline.layers.layer import LocalLayer
from pipeline.layers.shared_state import VALUES, VersionedState
from pipeline.methods import (
    Activations,
    AuglocalSettings,
    BaselineSettings,
    CafoSettings,
    CffSettings,
    CflSettings,
    CollabSettings,
    DclSettings,
    FfSettings,
    IffclSettings,
    InfoproSettings,
    MethodConfig,
    PredsimSettings,
    ScffSettings,
    StepContext,
    SymbaSettings,
)
from pipeline.methods.cff import CffRule
from pipeline.methods.embeddings import EmbeddingSettings
from pipeline.nets import (
    ConvSettings,
    MixerSettings,
    MlpSettings,
    NetConfig,
    PairedMlpSettings,
    ResnetSettings,
    VitSettings,
)
from pipeline.nets.sizes import layer_features
from pipeline.runtime.checkpointing import NO_CHECKPOINTS, Checkpointing
from pipeline.runtime.history import RunResult
from pipeline.runtime.serial import train_serial
from pipeline.runtime.step_graphs import capture_steps
from pipeline.runtime.threads import train_threads
from pipeline.telemetry.clock import Clock
from pipeline.transport.buffers import HostBuffer
from pipeline.transport.edges import Ends
from pipeline.transport.process_group import DistReceiver
from tests.conftest import make_run
from tests.support import CPU, Watching, changed, tiny_spec
from tests.support_graphs import FakeCuda, LayerOfGpu, as_on_gpus, tensors_of
from tests.test_equality import assert_same
from tests.test_resume import resumes
from workers.names import StageName
from workers.stage import StageWorker

VIT, MLP, CONV = (
    VitSettings(dim=8, heads=2, depth=2, patch=4),
    MlpSettings(width=8, depth=2),
    ConvSettings(channels=(4, 6)),
)
IMAGES, CLASSES = (1, 8, 8), torch.arange(6) % 3
Changes = dict[str, Any]


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    as_on_gpus(monkeypatch)
    return FakeCuda(monkeypatch)


@dataclass
class Versions:
    """A shared state that is another one in every step, and what layers gave to it."""

    values: Tensor
    given: list[Tensor] = field(default_factory=list)

    def read(self, layer: int, where: Any) -> Tensor:
        return self.values + 0.01 * where.step

    def push(self, layer: int, step: int, contribution: Tensor) -> None:
        self.given.append(contribution.clone())

    def freeze(self, epoch: int) -> None:
        raise NotImplementedError

    def checkpoint(self, key: str, step: int) -> None:
        raise NotImplementedError


def spec_of(
    net: NetConfig, method: MethodConfig, train: Changes | None = None, readout: Changes | None = None, **values: Any
) -> RunSpec:
    """Two epochs of four steps; the learning rate falls after the first.

    Args:
        train, readout: other settings of theirs.
    """
    net = net.resolve(IMAGES)
    method = method.resolve(layer_features(method.adapt(net), IMAGES))
    spec = tiny_spec(net=net, method=method, readout="online" if method.online_readouts else "after", **values)
    spec = changed(spec, "train", milestones=(1,), lr_decay=0.3, **train or {})
    return changed(spec, "readout", **readout or {})


def layers_of(spec: RunSpec) -> tuple[list[LocalLayer], list[Versions]]:
    values = VersionedState(spec).weights()[VALUES] if spec.shared_versions is not None else None
    sources = [Versions(values) for _ in range(spec.num_layers) if values is not None]
    layers: list[LocalLayer] = [
        LayerOfGpu(spec, index, CPU, sources[index] if sources else None) for index in range(spec.num_layers)
    ]
    return layers, sources


def trained(spec: RunSpec, layers: list[LocalLayer], steps: int = 8, bad: int | None = None) -> list[Tensor]:
    """Losses and what is passed on, of every layer and step."""
    seen: list[Tensor] = []
    for step in range(steps):
        where = spec.batch_position(Kind.TRAIN, step // 4, step % 4)
        views = layers[0].rule.num_views
        random = torch.Generator().manual_seed(step)
        images, labels = torch.randn(views * 6, *IMAGES, generator=random), CLASSES[torch.randperm(6, generator=random)]
        if step == bad:
            images[0] = torch.nan
        activations = layers[0].make_inputs(images, labels, where)
        for layer in layers:
            activations, loss = layer.train(activations, labels, where)
            seen += [loss, *(tensor.clone() for tensor in activations.values())]
    return seen


def bits(tensors: list[Tensor]) -> list[bytes]:
    """Of tensors; one that is no number equals itself."""
    return [tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes() for tensor in tensors]


BLOCKS = ResnetSettings(depth=8, width=4)
FULL = InfoproSettings(reconstruction_first=5, task_first=0.5, reconstruction_last=1, modules=3)
SGD: Changes = {"optimizer": "sgd", "lr": 0.05}
CASES: dict[str, tuple[Any, ...]] = {
    "CFF": (VIT, CffSettings()),
    "CFF, one view, dropout": (MlpSettings(width=8, depth=2, dropout=0.3), CffSettings(views=1)),
    "CFF, mixer": (MixerSettings(dim=8, depth=2, patch=4), CffSettings()),
    "CFL, noise": (CONV, CflSettings()),
    "CFL, cosine, last": (VIT, CflSettings(similarity="cosine")),
    "DCL, in turn": (ResnetSettings(depth=8, width=4), DclSettings()),
    "DCL, each its own": (MLP, DclSettings(embedding=EmbeddingSettings(embedding_mode="per-layer"))),
    "FF": (MLP, FfSettings()),
    "SymBa": (VIT, SymbaSettings()),
    "FF Collab": (MLP, CollabSettings()),
    "bp": (CONV, BaselineSettings()),
    "fa": (CONV, BaselineSettings(feedback="fa")),
    "readout with dropout": (MLP, CffSettings(), {}, {"readout_dropout": 0.3, "readout_weight_decay": 0.2}),
    "AugLocal, SGD": (BLOCKS, AuglocalSettings(aux_depth=1), SGD),
    "InfoPro, SGD, decoders": (BLOCKS, FULL, {**SGD, "sgd_momentum": 0.0}),
    "IFFCL": (MLP, IffclSettings()),
    "CaFo, sparsemax": (MLP, CafoSettings(predictor="sparsemax")),
    "InfoPro, predict, dropout": (
        MlpSettings(width=8, depth=3, dropout=0.3),
        InfoproSettings(task="predict"),
        {"lr_schedule": "cosine", "warmup_epochs": 1},
    ),
    "PredSim": (BLOCKS, PredsimSettings()),
    "AugLocal, deep supervision": (BLOCKS, AuglocalSettings(aux_depth=1, deep_supervision=True), SGD),
}
_RARE = ("CFF, mixer", "InfoPro, predict, dropout", "PredSim", "AugLocal, deep supervision")
_IN_BF16 = ("CFF", "CFL, noise", "FF")


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        pytest.param(
            name,
            precision,
            marks=() if name not in _RARE and (precision == "fp32" or name in _IN_BF16) else pytest.mark.exhaustive,
        )
        for name in CASES
        for precision in ("fp32", "bf16")
    ],
)
def test_replays_give_the_bits_of_steps_without_graphs(cuda: FakeCuda, name: str, precision: Any) -> None:
    """Losses, what is passed on and contributed, weights and optimizers; also past a batch that is no number."""
    spec = spec_of(*CASES[name], precision=precision)
    (plain, given), (captured, given_by_replays) = layers_of(spec), layers_of(spec)
    assert capture_steps(spec, captured) == ()
    assert [tensors_of(layer).keys() >= tensors_of(other).keys() for layer, other in zip(captured, plain, strict=True)]
    bad = None if name == "IFFCL" else 5  # PyTorch refuses a cross-entropy of what is no probability
    wanted = trained(spec, plain, bad=bad)
    cuda.log.clear()
    assert bits(trained(spec, captured, bad=bad)) == bits(wanted)
    each = 2 if given else 1  # label embeddings are read between two graphs
    assert len(cuda.log) == 8 * each * spec.num_layers, "a step went without its graph"
    for layer, other in zip(captured, plain, strict=True):
        state, want = tensors_of(layer), tensors_of(other)
        assert state.keys() == want.keys()
        assert bits(list(state.values())) == bits([want[key] for key in state])
        assert layer.vitals().keys() == other.vitals().keys()
    for source, other_source in zip(given_by_replays, given, strict=True):
        assert bits(source.given) == bits(other_source.given)


def test_activations_that_travel_in_half_precision_fit_the_graphs(cuda: FakeCuda) -> None:
    spec = changed(spec_of(MLP, CffSettings(), precision="bf16"), "pipeline", transfer_dtype="bf16")
    (plain, _), (captured, _) = layers_of(spec), layers_of(spec)
    capture_steps(spec, captured)
    cuda.log.clear()
    assert bits(trained(spec, captured)) == bits(trained(spec, plain))
    assert len(cuda.log) == 8 * spec.num_layers


def test_capturing_leaves_a_layer_as_it_was(cuda: FakeCuda) -> None:
    spec = spec_of(CONV, CffSettings())
    layers, _ = layers_of(spec)
    trained(spec, layers, steps=2)
    before = [tensors_of(layer) for layer in layers]
    assert capture_steps(spec, layers) == ()
    for layer, state in zip(layers, before, strict=True):
        after = tensors_of(layer)
        assert all(torch.equal(after[name], value) for name, value in state.items())
        assert layer.readout_training.trained
        assert not [parameter for parameter in layer.net.parameters() if parameter.grad is not None]


def test_all_layers_of_a_stage_share_one_pool_and_only_what_sends_is_in_two_graphs(cuda: FakeCuda) -> None:
    spec = replace(
        spec_of(VitSettings(dim=8, heads=2, depth=4, patch=4), CffSettings()), stages=(range(3), range(3, 4))
    )
    layers, _ = layers_of(spec)
    for stage in spec.stages:
        capture_steps(spec, layers[stage.start : stage.stop])
    assert [line for line in cuda.log if "capture" in line] == [f"capture {number}" for number in range(5)]
    assert len(cuda.pools) == 2


def test_activations_are_sent_between_the_two_graphs(cuda: FakeCuda) -> None:
    spec = replace(spec_of(MLP, CffSettings()), stages=(range(1), range(1, 2)))
    (first, _), _ = layers_of(spec)
    assert capture_steps(spec, [first]) == ()
    cuda.log.clear()
    images = torch.randn(12, *IMAGES)
    first.train({"x": images}, CLASSES, spec.batch_position(Kind.TRAIN, 0), send=lambda _: cuda.log.append("send"))
    assert cuda.log == ["replay 0", "send", "replay 1"]


def test_inputs_are_copied_into_the_same_memory_in_every_step(cuda: FakeCuda) -> None:
    spec = spec_of(MLP, CffSettings())
    layers, _ = layers_of(spec)
    capture_steps(spec, layers)
    seen = []
    for step in range(3):
        activations: Activations = {"x": torch.randn(12, *IMAGES)}
        passed, _ = layers[0].train(activations, CLASSES, spec.batch_position(Kind.TRAIN, 0, step))
        graph = layers[0]._graph
        assert graph is not None
        slot = graph._inputs.activations["x"]
        assert torch.equal(slot, activations["x"])
        gradients = [
            parameter.grad.data_ptr() for parameter in layers[0].net.parameters() if parameter.grad is not None
        ]
        seen.append([slot.data_ptr(), passed["x"].data_ptr(), *gradients])
    assert seen[0] == seen[1] == seen[2]


def test_a_batch_of_another_size_goes_without_and_the_next_by_the_graph_again(cuda: FakeCuda) -> None:
    spec = spec_of(MLP, CffSettings(views=1))
    (plain, _), (captured, _) = layers_of(spec), layers_of(spec)
    capture_steps(spec, captured)
    for step, size in enumerate((6, 6, 4, 6)):
        cuda.log.clear()
        where, images = spec.batch_position(Kind.TRAIN, 0, step), torch.randn(size, *IMAGES)
        for layer in (plain[0], captured[0]):
            layer.train({"x": images}, CLASSES[:size], where)
        assert bool(cuda.log) == (size == 6)
        assert captured[0].vitals() == plain[0].vitals()  # of the last step's gradients
        assert bits(list(tensors_of(captured[0]).values())) == bits(list(tensors_of(plain[0]).values()))


@dataclass
class Posting:
    """Groups that post a receive when they are joined, as a carrier does."""

    log: list[str]

    def join(self, *_: Any) -> tuple[Ends, Ends]:
        buffer = HostBuffer(1 << 10, 0, "group", pinned=False)  # type: ignore[arg-type]
        return Ends((DistReceiver("edge", [buffer], stall_timeout=1, clock=Clock(), device=CPU),)), Ends()


def test_a_worker_captures_before_it_posts_its_first_receive(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    """A capture waits for all that its device has to do. What is received may wait for a neighbour that waits here."""
    for quiet in ("die_of_sigterm", "show_on_demand"):
        monkeypatch.setattr(f"workers.stage.{quiet}", lambda: None)
    monkeypatch.setattr(torch.distributed, "irecv", lambda *_, **__: cuda.log.append("receive posted"))
    spec = replace(spec_of(MLP, CffSettings()), stages=(range(1), range(1, 2)))
    worker = StageWorker(spec, StageName(1))
    for attempt in range(2):
        cuda.log.clear()
        worker.begin(NO_CHECKPOINTS, attempt=attempt)
        worker.connect(attempt, Posting(cuda.log), None)  # type: ignore[arg-type]
        captured = [line for line in cuda.log if line.startswith("capture")]
        assert captured
        assert cuda.log[-1] == "receive posted"
        assert cuda.log.count("receive posted") == 1


# ---------------------------------------------------------------------------------------------------------------------
# What cannot be captured


class StepReader(CffRule):
    """Its loss depends on the step's number, which it takes from the host."""

    def loss(self, layer: Any, outputs: Activations, context: StepContext) -> Tensor:
        return super().loss(layer, outputs, context) * (1 + context.where.step)


class Counter(CffRule):
    """Its loss depends on a number of its own, which changes from step to step."""

    count = 0

    def loss(self, layer: Any, outputs: Activations, context: StepContext) -> Tensor:
        self.count += 1
        return super().loss(layer, outputs, context) / self.count


class HostReader(CffRule):
    """Its loss decides at the host."""

    def loss(self, layer: Any, outputs: Activations, context: StepContext) -> Tensor:
        loss = super().loss(layer, outputs, context)
        return loss * 2 if loss > 100 else loss


class Unregistered(CffRule):
    """It draws from a generator of its own."""

    def loss(self, layer: Any, outputs: Activations, context: StepContext) -> Tensor:
        drawn = torch.rand((), generator=torch.Generator().manual_seed(1))
        return super().loss(layer, outputs, context) * drawn


class Honest(CffRule):
    """It says itself that it cannot be captured."""

    eager = "its loss draws a layer at the host"


class WithoutGradient(CffRule):
    """It has nothing to learn."""

    def loss(self, layer: Any, outputs: Activations, context: StepContext) -> Tensor:
        return super().loss(layer, outputs, context).detach()


class AtEpochsEnd(CffRule):
    """It learns something else at the end of an epoch."""

    def end_epoch(self) -> None:
        self.weight = 1.0


REFUSED: dict[type[CffRule], str] = {
    StepReader: "its method reads `where.step`, and a graph would keep what it was once",
    Counter: "its replays do not give the step's bits, so something in it changes from step to step in Python",
    HostReader: "it cannot be captured (CUDA error: operation not permitted when stream is capturing)",
    Unregistered: "it cannot be captured (the generator is not registered with the graph that is being captured)",
    Honest: "its loss draws a layer at the host",
    WithoutGradient: "its loss has no gradient, so there is no update",
    AtEpochsEnd: "its method learns beside a gradient, from what it collects over an epoch",
}


def with_rule(monkeypatch: pytest.MonkeyPatch, rule: type[CffRule]) -> None:
    monkeypatch.setattr(CffSettings, "build", lambda self, index, layer, info: rule(self, 0.1))


@pytest.mark.parametrize("rule", REFUSED)
def test_a_step_that_depends_on_the_host_goes_without_a_graph_and_says_why(
    cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch, rule: type[CffRule]
) -> None:
    with_rule(monkeypatch, rule)
    spec = spec_of(MLP, CffSettings())
    (plain, _), (refused, _) = layers_of(spec), layers_of(spec)
    assert capture_steps(spec, refused) == (f"Layers 1, 2 train without a CUDA graph: {REFUSED[rule]}.",)
    for layer in (*plain, *refused):
        layer.rule.count = 0  # type: ignore[assignment]
    cuda.log.clear()
    assert bits(trained(spec, refused)) == bits(trained(spec, plain))
    assert cuda.log == []
    with pytest.raises(
        RunError, match=r"`graphs` on: Layers 1, 2 train without a CUDA graph.* Use `graphs` auto or off"
    ):
        capture_steps(changed(spec, "pipeline", graphs="on"), refused)


PAIRED = PairedMlpSettings(width=8, depth=2, pairing=("anew", "passed"))
METHODS_REFUSED: dict[str, tuple[NetConfig, MethodConfig, str]] = {
    "CaFo, closed form": (MLP, CafoSettings(), REFUSED[AtEpochsEnd]),
    "CaFo, batch norm": (
        CONV,
        CafoSettings(predictor="cross-entropy"),
        "its batch norm takes a mean over all batches, which the host counts",
    ),
    "SCFF": (
        PAIRED,
        ScffSettings(),
        "which samples it pairs is taken at the host from the seed of its random numbers",
    ),
}


@pytest.mark.parametrize("name", METHODS_REFUSED)
def test_methods_that_need_the_host_say_why_and_learn_as_without_graphs(cuda: FakeCuda, name: str) -> None:
    """A layer of SCFF that goes on with pairs of the layer before needs it not."""
    net, method, reason = METHODS_REFUSED[name]
    spec = spec_of(net, method)
    (plain, _), (others, _) = layers_of(spec), layers_of(spec)
    which = "Layer 1 trains" if name == "SCFF" else "Layers 1, 2 train"
    assert capture_steps(spec, others) == (f"{which} without a CUDA graph: {reason}.",)
    cuda.log.clear()
    assert bits(trained(spec, others)) == bits(trained(spec, plain))
    assert len(cuda.log) == (8 if name == "SCFF" else 0)


class SgdSettings(CffSettings):
    def optimizer(self, index: int, parameters: Any, *, lr: float, weight_decay: float) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=lr)


def test_an_optimizer_that_cannot_be_captured_keeps_its_layer_without_a_graph(cuda: FakeCuda) -> None:
    spec = spec_of(MLP, SgdSettings())
    layers, _ = layers_of(spec)
    (note,) = capture_steps(spec, layers)
    assert note == (
        "Layers 1, 2 train without a CUDA graph: its optimizer, SGD, is no fused AdamW, Adam or SGD of PyTorch."
    )


def test_graphs_are_a_gpus_and_are_off_on_request(small_settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = small_settings.pipeline
    with pytest.raises(UserError, match="`graphs` on: CUDA graphs are a GPU's"):
        build_run(replace(small_settings, pipeline=replace(pipe, graphs="on")), Devices("cpu", 2))
    spec = build_run(small_settings, Devices("cpu", 2))
    assert not spec.graphs
    assert replace(spec, device="cuda").graphs
    assert not replace(changed(spec, "pipeline", graphs="off"), device="cuda").graphs


def test_runs_that_asked_the_compiler_for_graphs_still_load() -> None:
    """Until version 0.1 `compile` graphs was one of its values."""
    values = to_dict(Settings())
    values["pipeline"]["compile"] = "graphs"
    values["pipeline"].pop("graphs")
    pipe = from_dict(values, source="config.json").pipeline
    assert (pipe.compile, pipe.graphs) == ("on", "auto")


# ---------------------------------------------------------------------------------------------------------------------
# Runs


def run_settings(method: MethodConfig, net: NetConfig) -> Settings:
    """Digits, two epochs of 8 steps and a smaller one; the learning rate falls after the first."""
    return Settings(
        data=DataSettings(data="digits", train_fraction=0.4),
        net=net,
        method=method,
        train=TrainSettings(epochs=2, batch_size=72, milestones=(1,), last_batch="keep"),
        readout=ReadoutSettings(readout_epochs=1, readout_layers="last"),
        pipeline=PipelineSettings(executor="serial", device="cpu", stall_timeout=60),
        checkpoint=CheckpointSettings(checkpoint_every="5", keep_checkpoints=100),
    )


def run(settings: Settings, stages: int, checkpointing: Checkpointing = NO_CHECKPOINTS, **values: Any) -> RunResult:
    if stages == 1:
        return train_serial(*make_run(settings), checkpointing=checkpointing, **values)
    pipe = replace(settings.pipeline, executor="threads")
    spec, dataset = make_run(replace(settings, pipeline=pipe), stages=stages)
    return train_threads(spec, dataset, checkpointing=checkpointing, **values)


RUNS: dict[str, Settings] = {
    "DCL": run_settings(DclSettings(), ConvSettings(channels=(4, 4, 6))),
    "CFF": run_settings(CffSettings(), MlpSettings(width=16, depth=3, dropout=0.1)),
    "FF": run_settings(FfSettings(), MlpSettings(width=16, depth=3)),
}


@pytest.mark.parametrize(
    "name", [*list(RUNS)[:1], *(pytest.param(one, marks=pytest.mark.exhaustive) for one in list(RUNS)[1:])]
)
def test_a_run_with_graphs_and_its_resumptions_have_the_bits_of_one_without(
    cuda: FakeCuda, name: str, tmp_path: Path
) -> None:
    settings = RUNS[name]
    without = replace(settings, pipeline=replace(settings.pipeline, graphs="off"))
    want = run(without, 1)
    assert not cuda.log
    assert_same(run(settings, 2, Checkpointing(folder=tmp_path)), want)
    assert [line for line in cuda.log if "replay" in line]
    cuts = resumes(tmp_path)
    middle = next(one for one in cuts if one.cut.steps)
    for resume in (middle, cuts[-1]):
        assert_same(run(settings, 1, Checkpointing(resume=resume)), want)


def test_a_run_says_once_which_layers_train_without_a_graph(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    with_rule(monkeypatch, Honest)
    settings = replace(run_settings(CffSettings(), MLP), checkpoint=CheckpointSettings(checkpoint_every="off"))
    for stages, wanted in ((1, ["Layers 1, 2 train"]), (2, ["Layer 1 trains", "Layer 2 trains"])):
        said: list[str] = []
        run(settings, stages, observer=Watching(notify=said.append))
        assert said == [f"{one} without a CUDA graph: its loss draws a layer at the host." for one in wanted]
