"""Label embeddings in a pipeline: which version a layer reads, and so every number, follows from the settings alone."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor

from pipeline import rng
from pipeline.config.settings import DataSettings, PipelineSettings, ReadoutSettings, Settings, TrainSettings
from pipeline.data.augment import Augment
from pipeline.kind import Kind
from pipeline.layers.layer import LocalLayer
from pipeline.layers.shared_state import VALUES, VersionedState
from pipeline.methods import BatchPosition, CflSettings, DclSettings, MethodConfig, StepContext
from pipeline.methods.embeddings import EmbeddingSettings
from pipeline.nets import ConvSettings, MlpSettings, NetConfig, VitSettings
from pipeline.runtime.history import RunResult
from pipeline.runtime.serial import train_serial
from pipeline.versions import Mode
from tests.conftest import make_run
from tests.support import outputs_of
from tests.test_equality import assert_same, through_ray, through_threads

FC = MlpSettings(width=48, depth=4, groups=3, norm="after", dropout=0.1)
LAST_LAYER_READOUT = ReadoutSettings(mode="online", readout_layers="last", readout_norm=False, readout_lr="lr")


def settings_with(
    *, mode: Mode = "last", lag: int = 1, exact: bool = False, method: MethodConfig | None = None, net: NetConfig = FC
) -> Settings:
    """Digits, four layers, 2 epochs of 16 steps with validation between, and a learning rate that falls."""
    chosen = method or CflSettings(dictionary_weight=0.5)
    embedding = EmbeddingSettings(embedding_mode=mode, embedding_lag=lag, embedding_sync="exact" if exact else "lagged")
    return Settings(
        data=DataSettings(data="digits", train_fraction=0.4),
        net=net,
        method=replace(chosen, embedding=embedding),  # type: ignore[call-arg]  # both label methods have one
        train=TrainSettings(epochs=2, batch_size=32, milestones=(1,), keep="accuracy"),
        readout=LAST_LAYER_READOUT,
        pipeline=PipelineSettings(executor="serial", device="cpu", stall_timeout=60),
    )


@cache
def serial(settings: Settings) -> RunResult:
    return train_serial(*make_run(settings))


_MODES, _SYNCS = ("last", "in-turn", "shared-mean", "shared-sum"), ("lag 0", "lag 1", "lag 3", "exact")
CASES = {
    **{f"{mode}, lag {lag}": (mode, lag, False) for mode in _MODES for lag in (0, 1, 3)},
    **{f"{mode}, exact": (mode, 1, True) for mode in _MODES},
    "static": ("static", 1, False),
    "per-layer": ("per-layer", 1, False),
}


def case(name: str) -> Settings:
    mode, lag, exact = CASES[name]
    return settings_with(mode=mode, lag=lag, exact=exact)  # type: ignore[arg-type]


_EVERY_DAY = {
    ("static", 3),
    ("per-layer", 2),
    *((f"{mode}, {sync}", 1 + (m + n) % 4) for m, mode in enumerate(_MODES) for n, sync in enumerate(_SYNCS)),
}
"""Of every case one number of stages in `make test`, so that each meets each mode and each lag once (a Latin square);
`make test-all` has the others."""


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        pytest.param(name, stages, marks=() if (name, stages) in _EVERY_DAY else pytest.mark.exhaustive)
        for name in CASES
        for stages in (1, 2, 3, 4)
    ],
)
def test_threads_give_the_serial_bits(name: str, stages: int) -> None:
    assert_same(through_threads(case(name), stages), serial(case(name)))


def test_each_number_of_stages_meets_each_mode_and_each_lag() -> None:
    assert {name for name, _ in _EVERY_DAY} == set(CASES)
    for part in (*_MODES, *_SYNCS):
        assert {stages for name, stages in _EVERY_DAY if part in name.split(", ")} == {1, 2, 3, 4}, part


def far(settings: Settings) -> Settings:
    """The same run with all its edges as between machines, those to the coordinator among them."""
    return replace(settings, pipeline=replace(settings.pipeline, transport="gloo"))


@pytest.mark.parametrize(
    ("name", "stages"),
    [("in-turn, lag 1", 3), pytest.param("last, lag 1", 3, marks=pytest.mark.exhaustive)],
)
def test_ray_gives_the_serial_bits(name: str, stages: int, cluster: None) -> None:
    assert_same(through_ray(case(name), stages), serial(case(name)))


def test_a_coordinator_that_shares_no_memory_with_stages_gives_the_serial_bits(cluster: None) -> None:
    """Two layers of a stage change the state one after the other, so what a step contributes takes several messages."""
    settings = case("in-turn, exact")
    assert_same(through_ray(far(settings), 2), serial(settings))


@pytest.mark.exhaustive
@pytest.mark.parametrize("stages", [2, 3])
@pytest.mark.parametrize(
    ("mode", "lag", "exact"),
    [
        ("shared-mean", 0, False),
        ("shared-sum", 1, False),
        ("in-turn", 0, False),
        ("in-turn", 4, False),
        ("last", 4, False),
        ("shared-mean", 1, True),
        ("in-turn", 1, True),
        ("static", 1, False),
    ],
)
def test_dcl_gives_the_serial_bits_with_a_coordinator_that_shares_no_memory(
    mode: Mode, lag: int, exact: bool, stages: int, cluster: None
) -> None:
    settings = settings_with(mode=mode, lag=lag, exact=exact, method=DclSettings())
    assert_same(through_ray(far(settings), stages), serial(settings))


@pytest.mark.exhaustive  # threads have shown the versions above; what Ray adds, the three cases show
@pytest.mark.parametrize("stages", [1, 2, 3, 4])
@pytest.mark.parametrize("name", ["last, lag 1", "in-turn, lag 1"])
def test_ray_gives_the_serial_bits_in_any_number_of_stages(name: str, stages: int, cluster: None) -> None:
    assert_same(through_ray(case(name), stages), serial(case(name)))


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", [name for name in CASES if name not in ("last, lag 1", "in-turn, lag 1")])
def test_ray_gives_the_serial_bits_in_every_mode(name: str, cluster: None) -> None:
    assert_same(through_ray(case(name), 4), serial(case(name)))


VARIANTS = {
    "batch norm": settings_with(net=ConvSettings(channels=(8, 12, 16))),
    "DCL, whose gradients come from every layer": settings_with(method=DclSettings(), mode="shared-mean", lag=0),
    "cosine similarity": settings_with(method=DclSettings(similarity="cosine")),
    "ViT": settings_with(net=VitSettings(dim=16, heads=2, depth=4)),
    "prediction by similarity": replace(settings_with(), readout=ReadoutSettings(mode="none")),
    "a readout on every layer, afterwards": replace(settings_with(), readout=ReadoutSettings(readout_epochs=1)),
    "a readout on the last layer, afterwards": replace(
        settings_with(), readout=ReadoutSettings(readout_epochs=1, readout_layers="last")
    ),
    "the last epoch kept": replace(settings_with(), train=replace(settings_with().train, keep="last")),
    "an early epoch kept": replace(settings_with(), train=replace(settings_with().train, epochs=4, lr=0.5)),
    "features alone": settings_with(method=CflSettings(batch_weight=0), mode="shared-sum"),
}


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_setting_gives_the_serial_bits(variant: str) -> None:
    assert_same(through_threads(VARIANTS[variant], 3), serial(VARIANTS[variant]))


@pytest.mark.exhaustive
@pytest.mark.parametrize("variant", ["batch norm", "an early epoch kept"])
def test_ray_gives_the_serial_bits_with(variant: str, cluster: None) -> None:
    assert_same(through_ray(VARIANTS[variant], 2), serial(VARIANTS[variant]))


def test_the_early_epoch_is_an_early_one_and_its_dictionary_is_kept() -> None:
    """Otherwise the variant above would show nothing of keeping and restoring the dictionary."""
    result = serial(VARIANTS["an early epoch kept"])
    assert result.best_epoch is not None
    assert result.best_epoch < 3
    assert not torch.equal(result.weights[VALUES], result.last[VALUES])


@pytest.mark.parametrize("mode", ["last", "in-turn", "shared-mean", "shared-sum"])
def test_exact_is_plain_sequential_training(mode: Mode) -> None:
    settings = settings_with(mode=mode, exact=True, method=DclSettings())
    want = sequential(settings)
    got = serial(settings).last
    assert torch.equal(got[VALUES], want.pop(VALUES))
    assert all(torch.equal(got[name], value) for name, value in want.items())


def sequential(settings: Settings) -> dict[str, Tensor]:
    """A dozen lines of PyTorch: one dictionary, every layer reads it, all step, the dictionary steps. In turn: every
    layer has an optimizer of its own for the dictionary too, as in the program of Choi et al. 2024."""
    spec, dataset = make_run(settings)
    cpu = torch.device("cpu")
    parts = [LocalLayer(spec, index, cpu, NoState()) for index in range(spec.num_layers)]  # initial weights
    start = VersionedState(spec).weights()[VALUES]
    dictionary = torch.nn.Parameter(start.clone())
    decay = settings.train.weight_decay
    optimizers = [torch.optim.AdamW(part.net.parameters(), weight_decay=decay, fused=True) for part in parts]
    of_dictionary = torch.optim.AdamW([dictionary], weight_decay=decay, fused=True)
    of_layers = [torch.optim.AdamW([dictionary], weight_decay=decay, fused=True) for _ in parts]
    in_turn = settings_mode(settings) == "in-turn"
    augment = Augment(spec.augment, seed=settings.train.seed, device=cpu)
    for part in parts:
        part.net.train()
    for epoch in range(settings.train.epochs):
        for optimizer in (*optimizers, of_dictionary, *of_layers):
            optimizer.param_groups[0]["lr"] = settings.train.lr * settings.train.lr_factor(epoch)
        for batch in dataset.batches("train", epoch=epoch, batch_size=settings.train.batch_size):
            x = augment.views(batch.images, epoch=epoch, position=batch.position, num_views=1)
            step, gradients = spec.batch_position(Kind.TRAIN, epoch, batch.step).step, []
            for index, (part, optimizer) in enumerate(zip(parts, optimizers, strict=True)):
                part._generator.manual_seed(reference_seed(settings, index, step))
                out = part.net(x)
                read = dictionary.detach().clone().requires_grad_()
                context = StepContext(labels=batch.labels, where=BatchPosition(training=True), shared=read)
                optimizer.zero_grad()
                part.rule.loss(part.net, outputs_of(part.net, out), context).backward()
                optimizer.step()
                assert read.grad is not None
                gradients.append(read.grad)
                if in_turn:
                    dictionary.grad = read.grad
                    of_layers[index].step()
                x = out.detach()
            match settings.method.label_embeddings():
                case EmbeddingSettings(embedding_mode="last"):
                    dictionary.grad = gradients[-1]
                case EmbeddingSettings(embedding_mode="shared-sum"):
                    dictionary.grad = sum(gradients, torch.zeros_like(dictionary))
                case EmbeddingSettings(embedding_mode="shared-mean"):
                    dictionary.grad = sum(gradients, torch.zeros_like(dictionary)) / len(gradients)
            if not in_turn:
                of_dictionary.step()
    layers = {f"layers.{i}.net.{n}": v.detach() for i, part in enumerate(parts) for n, v in part.net.named_parameters()}
    return {VALUES: dictionary.detach(), **layers}


def settings_mode(settings: Settings) -> str:
    dictionary = settings.method.label_embeddings()
    assert dictionary is not None
    return dictionary.embedding_mode


class NoState:
    """The sequential loop above hands the label embeddings over itself."""

    def read(self, layer: int, where: BatchPosition) -> Tensor:
        raise AssertionError

    def push(self, layer: int, step: int, gradient: Tensor) -> None:
        raise AssertionError

    def freeze(self, epoch: int) -> None:
        raise AssertionError

    def checkpoint(self, key: str, step: int) -> None:
        raise AssertionError


def reference_seed(settings: Settings, layer: int, step: int) -> int:
    return rng.torch_seed(settings.train.seed, "layer", layer, step)


def test_the_lag_changes_the_numbers_and_its_absence_is_not_exact() -> None:
    last = {
        name: serial(case(f"last, {name}")).last["layers.0.net.linear.weight"] for name in ("lag 0", "lag 1", "exact")
    }
    assert not torch.equal(last["lag 0"], last["lag 1"])
    assert not torch.equal(last["lag 0"], last["exact"])


def test_version_skew_is_reported_for_every_layer() -> None:
    def skew(name: str) -> list[float | None]:
        layers = serial(case(name)).history.layers(Kind.TRAIN, 1)
        assert layers is not None
        return [layer.version_skew for layer in layers]

    assert skew("last, lag 0") == [3, 2, 1, 0]
    assert skew("shared-mean, lag 3") == [6, 5, 4, 3]
    assert skew("last, exact") == [0, 0, 0, 0]
    assert skew("static") == [0, 0, 0, 0]
    assert skew("per-layer") == [None] * 4


def test_a_dictionary_for_each_layer_needs_no_coordination() -> None:
    result = serial(case("per-layer"))
    assert VALUES not in result.weights
    shapes = [result.weights[f"layers.{i}.rule.embeddings"].shape for i in range(4)]
    assert shapes == [(10, 16)] * 4


def test_static_embeddings_never_change() -> None:
    settings = case("static")
    spec, _ = make_run(settings)
    assert torch.equal(serial(settings).last[VALUES], VersionedState(spec).weights()[VALUES])


def test_methods_learn_from_their_embeddings() -> None:
    settings = settings_with(method=DclSettings(), mode="shared-sum")
    settings = replace(
        settings,
        data=replace(settings.data, train_fraction=1.0),
        train=replace(settings.train, epochs=6, milestones=()),
    )
    tested = serial(settings).history.layers(Kind.TEST, 0)
    assert tested is not None
    assert min(layer.direct_accuracy or 0 for layer in tested) > 0.6
    assert (tested[-1].accuracy or 0) > 0.6
