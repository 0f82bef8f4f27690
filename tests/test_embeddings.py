"""The label dictionary: pooling, which version a layer reads, each one from the one before, and who waits for it."""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline.config.run_spec import RunSpec
from pipeline.errors import PeerLostError, RunError, SharedStateError, UserError
from pipeline.export import card_of, network_of
from pipeline.layers.layer import LocalLayer
from pipeline.layers.shared_state import VALUES, FixedState, VersionedState
from pipeline.methods import BatchPosition, CflSettings
from pipeline.methods.embeddings import EmbeddingSettings, pool_embeddings
from pipeline.nets import MlpSettings
from pipeline.versions import Mode, Versions, contributors
from tests.support import changed, tiny_spec

NUM_CLASSES, WIDTH, STEPS_PER_EPOCH = 3, 5, 4  # the last as in tiny_spec

# ---------------------------------------------------------------------------------------------------------------------
# Pooling


def random_embeddings(width: int, seed: int = 0) -> Tensor:
    """(Z, width) float64."""
    random = torch.Generator().manual_seed(seed)
    return torch.randn(NUM_CLASSES, width, generator=random, dtype=torch.float64)


def bin_by_bin(embeddings: Tensor, length: int) -> Tensor:
    """The mean over [⌊i·C_D/length⌋, ⌈(i+1)·C_D/length⌉), in Python floats."""
    width = embeddings.shape[1]
    pooled = [
        [
            math.fsum(row[math.floor(i * width / length) : math.ceil((i + 1) * width / length)])
            / (math.ceil((i + 1) * width / length) - math.floor(i * width / length))
            for i in range(length)
        ]
        for row in embeddings.tolist()
    ]
    return torch.tensor(pooled, dtype=torch.float64)


@pytest.mark.parametrize(("width", "length"), [(8, 8), (8, 4), (8, 1), (9, 3), (7, 3), (10, 4), (11, 10), (2048, 96)])
def test_embeddings_are_pooled_bin_by_bin(width: int, length: int) -> None:
    embeddings = random_embeddings(width)
    pooled = pool_embeddings(embeddings, length)
    torch.testing.assert_close(pooled, bin_by_bin(embeddings, length), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(pooled, F.adaptive_avg_pool1d(embeddings, length), rtol=1e-13, atol=1e-13)


@settings(max_examples=60, deadline=None)
@given(width=st.integers(1, 40), data=st.data())
def test_any_length_is_pooled_as_torchs_adaptive_pooling_does(width: int, data: st.DataObject) -> None:
    length = data.draw(st.integers(1, width))
    embeddings, pulled = random_embeddings(width).requires_grad_(), random_embeddings(length, seed=1)
    ours, theirs = pool_embeddings(embeddings, length), F.adaptive_avg_pool1d(embeddings, length)
    torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-13)
    gradients = [torch.autograd.grad((pooled * pulled).sum(), embeddings)[0] for pooled in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=1e-13, atol=1e-13)


def test_pooling_by_hand_with_bins_that_overlap() -> None:
    embeddings = torch.tensor([[1.0, 2.0, 4.0, 8.0, 16.0]])
    assert pool_embeddings(embeddings, 3).tolist() == [[1.5, pytest.approx(14 / 3), 12.0]]


def test_embeddings_are_not_pooled_to_more_than_their_length() -> None:
    with pytest.raises(ValueError, match="5 cannot be pooled to 6"):
        pool_embeddings(random_embeddings(5), 6)


# ---------------------------------------------------------------------------------------------------------------------
# Settings


def test_automatic_width_is_the_longest_features() -> None:
    assert EmbeddingSettings().resolve([64, 256, 96]).embedding_width == 256


def test_width_that_was_asked_for_stays() -> None:
    assert EmbeddingSettings(embedding_width=300).resolve([64, 256, 96]).embedding_width == 300
    assert EmbeddingSettings(embedding_width=256).resolve([64, 256, 96]).embedding_width == 256


def test_embeddings_shorter_than_a_layers_features_are_refused_naming_the_layer_and_what_would_do() -> None:
    with pytest.raises(UserError) as refusal:
        EmbeddingSettings(embedding_width=100).resolve([64, 128, 256])
    for part in ("`embedding_width` 100", "layer 2", "length 128", "at least 256"):
        assert part in str(refusal.value)


def test_embeddings_that_each_layer_has_for_itself_need_no_width() -> None:
    chosen = EmbeddingSettings(embedding_mode="per-layer", embedding_width=100)
    assert chosen.resolve([64, 256]) == chosen
    assert not chosen.shared


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({"embedding_width": 0}, "`embedding_width` 0: must be at least 1"),
        ({"embedding_lag": -1}, "`embedding_lag` -1: must be at least 0"),
        ({"embedding_lr": 0.0}, "`embedding_lr` 0.0: must be above 0"),
        ({"embedding_lr": math.nan}, "`embedding_lr` nan: must be above 0"),
        ({"embedding_lr": math.inf}, "`embedding_lr` inf: must be above 0"),
    ],
)
def test_bad_setting_is_refused_by_name(bad: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        EmbeddingSettings(**bad).check()


def test_settings_from_the_lowest_value_on_are_accepted() -> None:
    EmbeddingSettings(embedding_width=1, embedding_lag=0, embedding_lr=1e-9).check()


# ---------------------------------------------------------------------------------------------------------------------
# Which version a layer reads

#   step      0  1  2  3  4  5  6  7
VERSIONS_READ = {
    0: [
        [0, 0, 0, 1, 2, 3, 4, 5],
        [0, 0, 1, 2, 3, 4, 5, 6],
        [0, 1, 2, 3, 4, 5, 6, 7],
    ],
    1: [
        [0, 0, 0, 0, 1, 2, 3, 4],
        [0, 0, 0, 1, 2, 3, 4, 5],
        [0, 0, 1, 2, 3, 4, 5, 6],
    ],
    3: [
        [0, 0, 0, 0, 0, 0, 1, 2],
        [0, 0, 0, 0, 0, 1, 2, 3],
        [0, 0, 0, 0, 1, 2, 3, 4],
    ],
}


def version_read(chosen: EmbeddingSettings, layer: int, step: int, num_layers: int) -> int:
    return chosen.versions(num_layers, STEPS_PER_EPOCH).read(layer, step)


def table(chosen: EmbeddingSettings, num_layers: int = 3) -> list[list[int]]:
    return [[version_read(chosen, layer, step, num_layers) for step in range(8)] for layer in range(num_layers)]


@pytest.mark.parametrize("lag", VERSIONS_READ)
@pytest.mark.parametrize("mode", ["last", "shared-mean", "shared-sum"])
def test_three_layers_read_the_versions_of_the_table(mode: Mode, lag: int) -> None:
    assert table(EmbeddingSettings(embedding_mode=mode, embedding_lag=lag)) == VERSIONS_READ[lag]


def test_single_layer_reads_what_the_step_before_wrote_but_for_the_lag() -> None:
    assert table(EmbeddingSettings(embedding_lag=0), 1) == [[0, 1, 2, 3, 4, 5, 6, 7]]
    assert table(EmbeddingSettings(embedding_lag=2), 1) == [[0, 0, 0, 1, 2, 3, 4, 5]]


def test_static_embeddings_are_read_as_they_were_drawn() -> None:
    assert table(EmbeddingSettings(embedding_mode="static", embedding_lag=0)) == [[0] * 8] * 3


def test_exact_reading_is_sequential_whatever_the_lag() -> None:
    assert table(EmbeddingSettings(embedding_sync="exact", embedding_lag=3)) == [[0, 1, 2, 3, 4, 5, 6, 7]] * 3


@pytest.mark.parametrize("lag", [0, 1, 3])
def test_in_one_tick_of_the_pipeline_all_layers_read_the_same_version(lag: int) -> None:
    chosen = EmbeddingSettings(embedding_lag=lag)
    for tick in range(4, 20):
        assert len({version_read(chosen, layer, tick - layer, 5) for layer in range(5)}) == 1


@pytest.mark.parametrize(
    ("mode", "who"),
    [
        ("static", ()),
        ("per-layer", ()),
        ("last", (3,)),
        *((mode, (0, 1, 2, 3)) for mode in ("in-turn", "shared-mean", "shared-sum")),
    ],
)
def test_mode_says_whose_gradients_count(mode: Mode, who: tuple[int, ...]) -> None:
    assert contributors(mode, 4) == who


# Three layers, four steps an epoch: updates that each version adds to the one before, as (layer, step), both from 0.
IN_TURN = [
    [(0, 0)],
    [(1, 0)],
    [(2, 0), (0, 1), (1, 1)],
    [(2, 1), (0, 2), (1, 2)],
    [(2, 2), (0, 3), (1, 3)],
    [(2, 3)],
    [(0, 4)],
    [(1, 4)],
    [(2, 4), (0, 5), (1, 5)],
]


def in_turn(num_layers: int = 3, lag: int = 0, steps: int = 4, *, exact: bool = False) -> Versions:
    return Versions(mode="in-turn", lag=lag, exact=exact, num_layers=num_layers, steps_per_epoch=steps)


def test_updates_in_turn_make_the_versions_of_the_table() -> None:
    assert [list(in_turn().updates(version)) for version in range(9)] == IN_TURN
    assert [[in_turn().read(layer, step) for step in range(6)] for layer in range(3)] == [
        [0, 1, 2, 3, 6, 7],
        [1, 2, 3, 4, 7, 8],
        [2, 3, 4, 5, 8, 9],
    ]
    assert [[in_turn().behind(layer, step) for step in (1, 2, 3, 5)] for layer in range(3)] == [
        [2, 4, 4, 2],
        [2, 2, 2, 2],
        [0, 0, 0, 0],
    ]
    assert [in_turn().read(layer, 4, training=False) for layer in range(3)] == [4, 5, 6]
    assert [in_turn().end(epoch) for epoch in range(2)] == [6, 12]


@settings(max_examples=200, deadline=None)
@given(
    num_layers=st.integers(1, 6),
    lag=st.integers(0, 4),
    steps=st.integers(1, 6),
    exact=st.booleans(),
)
def test_updates_in_turn_can_be_had_serially_and_in_a_pipeline(
    num_layers: int, lag: int, steps: int, exact: bool
) -> None:
    """Every update counts once, in sequential order. A layer reads what is there: in the serial loop, and in a pipeline
    of one layer a stage; and at lag 0 as much of it as sequential order allows, within its epoch."""
    chosen = in_turn(num_layers, lag, steps, exact=exact)
    made: list[tuple[int, int]] = []  # in order
    count = [0]  # updates in each version
    for version in range(chosen.end(2)):
        made += chosen.updates(version)
        count.append(len(made))
        assert all(chosen.changed_by(layer, step) == version for layer, step in chosen.updates(version))
    assert made == [(layer, step) for step in range(3 * steps) for layer in range(num_layers)]
    assert [count[chosen.end(epoch)] for epoch in range(3)] == [num_layers * steps * (epoch + 1) for epoch in range(3)]
    for step in range(3 * steps):
        for layer in range(num_layers):
            read = chosen.read(layer, step)
            before = made[: count[read]]
            assert chosen.behind(layer, step) == step * num_layers + layer - len(before) >= 0
            if exact:
                assert chosen.behind(layer, step) == 0
                continue
            epoch = step // steps
            first = epoch * steps  # of the epoch, whose ticks come after all of the epoch before
            assert all(s < first or s + other < step + layer - lag for other, s in before)
            if lag == 0:
                later = made[len(before)]
                assert later[1] >= first
                assert later[1] + later[0] >= step + layer
    for epoch in range(3):
        for layer in range(num_layers):
            read = chosen.read(layer, (epoch + 1) * steps, training=False)
            assert count[read] <= (epoch + 1) * steps * num_layers, "an evaluation waits for no later step"


# ---------------------------------------------------------------------------------------------------------------------
# A dictionary and its versions


@dataclass(kw_only=True)
class Plan:
    """What a test's dictionary is made from."""

    mode: Mode = "shared-sum"
    num_layers: int = 3
    lag: int = 1
    sync: Any = "lagged"
    lr: Any = "lr"
    timeout: float = 100.0
    stages: int = 1
    seed: int = 0
    train: dict[str, Any] = field(default_factory=dict)

    def spec(self) -> RunSpec:
        chosen = EmbeddingSettings(
            embedding_mode=self.mode,
            embedding_width=WIDTH,
            embedding_lag=self.lag,
            embedding_sync=self.sync,
            embedding_lr=self.lr,
        )
        spec = tiny_spec(
            net=MlpSettings(width=4, depth=self.num_layers),
            method=CflSettings(embedding=chosen),
            num_classes=NUM_CLASSES,
            stages=self.stages,
            seed=self.seed,
            lr=1e-2,
        )
        assert spec.steps_per_epoch == STEPS_PER_EPOCH
        return changed(changed(spec, "train", **self.train), "pipeline", stall_timeout=self.timeout)

    def build(self) -> VersionedState:
        return VersionedState(self.spec())

    @property
    def contributors(self) -> tuple[int, ...]:
        return contributors(self.mode, self.num_layers)


def gradient(layer: int, step: int) -> Tensor:
    return torch.randn(NUM_CLASSES, WIDTH, generator=torch.Generator().manual_seed(100 * step + layer))


def learn(dictionary: VersionedState, plan: Plan, steps: Sequence[int] | range) -> list[Tensor]:
    """Pushes every contributor's gradients of these steps, in order. Returns the version that each step made."""
    made = []
    for step in steps:
        for layer in plan.contributors:
            dictionary.push(layer, step, gradient(layer, step))
        made.append(dictionary.wait_for(step + 1).clone())
    return made


def adamw(values: Tensor, gradients: Sequence[Tensor], rates: Sequence[float], weight_decay: float) -> list[Tensor]:
    """Loshchilov and Hutter's algorithm 2 with Adam's moments, in float64: the values after every step."""
    p, m, v = values.double(), torch.zeros_like(values).double(), torch.zeros_like(values).double()
    after = []
    for t, (g, rate) in enumerate(zip(gradients, rates, strict=True), start=1):
        m = 0.9 * m + 0.1 * g.double()
        v = 0.999 * v + 0.001 * g.double() ** 2
        p = p - rate * weight_decay * p
        p = p - rate * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
        after.append(p)
    return after


def assert_versions(got: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    assert len(got) == len(expected)
    for version, values in zip(got, expected, strict=True):
        torch.testing.assert_close(version.double(), values, rtol=1e-5, atol=1e-6)


COMBINED: dict[Mode, Callable[[int], Tensor]] = {
    "last": lambda step: gradient(2, step),
    "shared-sum": lambda step: gradient(0, step) + gradient(1, step) + gradient(2, step),
    "shared-mean": lambda step: (gradient(0, step) + gradient(1, step) + gradient(2, step)) / 3,
}


@pytest.mark.parametrize("exact", [False, True])
def test_in_turn_every_layer_makes_adamw_steps_of_its_own(exact: bool) -> None:
    """In float64: each layer's moments know its own gradients alone, each step moves what the one before has left."""
    plan = Plan(mode="in-turn", sync="exact" if exact else "lagged", train={"weight_decay": 0.3})
    dictionary, num_steps = plan.build(), 8
    p = dictionary.wait_for(0).clone().double()
    for step in range(num_steps):
        for layer in reversed(range(3)) if not exact else range(3):
            dictionary.push(layer, step, gradient(layer, step))
    moments = {layer: (torch.zeros_like(p), torch.zeros_like(p)) for layer in range(3)}
    for step in range(num_steps):
        for layer in range(3):
            g, (m, v) = gradient(layer, step).double(), moments[layer]
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
            moments[layer], t = (m, v), step + 1
            p = p - 1e-2 * 0.3 * p
            p = p - 1e-2 * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
    state = dictionary.state()
    torch.testing.assert_close(state[VALUES].double(), p, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(dictionary.candidate(1), state[VALUES])
    for layer, (m, _) in moments.items():
        torch.testing.assert_close(state[f"embeddings.optimizer.layers.{layer}.exp_avg"].double(), m)


@pytest.mark.parametrize("mode", COMBINED)
def test_version_is_one_adamw_step_on_the_modes_combined_gradient(mode: Mode) -> None:
    plan = Plan(mode=mode, train={"weight_decay": 0.3})
    dictionary = plan.build()
    first = dictionary.wait_for(0).clone()
    got = learn(dictionary, plan, range(6))
    assert_versions(got, adamw(first, [COMBINED[mode](step) for step in range(6)], [1e-2] * 6, 0.3))


def test_mean_and_sum_are_what_the_optimizer_gets() -> None:
    """Its first moment tells them apart; the step that it takes, which knows no scale, would not."""
    moments = {}
    for mode, combined in COMBINED.items():
        plan = Plan(mode=mode)
        dictionary = plan.build()
        learn(dictionary, plan, range(1))
        moments[mode] = dictionary.state()["embeddings.optimizer.exp_avg"]
        torch.testing.assert_close(moments[mode], 0.1 * combined(0))
    torch.testing.assert_close(moments["shared-sum"], 3 * moments["shared-mean"])


def test_learning_rate_falls_at_the_milestones_of_the_epochs() -> None:
    plan = Plan(train={"milestones": (1, 2), "lr_decay": 0.1})
    dictionary = plan.build()
    first = dictionary.wait_for(0).clone()
    got = learn(dictionary, plan, range(10))
    rates = [1e-2] * 4 + [1e-3] * 4 + [1e-4] * 2  # four steps an epoch
    assert_versions(got, adamw(first, [COMBINED["shared-sum"](step) for step in range(10)], rates, 0.01))


def test_dictionary_may_have_a_learning_rate_of_its_own() -> None:
    plan = Plan(lr=0.2, train={"milestones": (1,), "lr_decay": 0.5})
    dictionary = plan.build()
    first = dictionary.wait_for(0).clone()
    got = learn(dictionary, plan, range(6))
    rates = [0.2] * 4 + [0.1] * 2
    assert_versions(got, adamw(first, [COMBINED["shared-sum"](step) for step in range(6)], rates, 0.01))


def test_first_version_is_a_standard_normal_that_belongs_to_the_seed_alone() -> None:
    first = Plan().build().wait_for(0)
    assert first.shape == (NUM_CLASSES, WIDTH)
    assert torch.equal(Plan(stages=3, mode="last", lag=3).build().wait_for(0), first)
    assert not torch.equal(Plan(seed=1).build().wait_for(0), first)
    many = torch.cat([Plan(seed=seed).build().wait_for(0).flatten() for seed in range(40)])
    assert many.mean().item() == pytest.approx(0, abs=0.15)
    assert many.std().item() == pytest.approx(1, abs=0.1)


def test_building_a_dictionary_leaves_the_shared_random_stream_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    Plan().build()
    assert torch.equal(torch.rand(3), expected)


# ---------------------------------------------------------------------------------------------------------------------
# Gradients in any order

STEPS = 3


def telling(layer: int, step: int) -> Tensor:
    """Gradients whose sum shows the order in which they were added: (1e8 + x) − 1e8 is not x."""
    return gradient(layer, step) if layer == 1 else gradient(0, step).sign() * (1e8 if layer == 0 else -1e8)


def versions_after(plan: Plan, order: Sequence[tuple[int, int]]) -> list[Tensor]:
    dictionary = plan.build()
    for layer, step in order:
        dictionary.push(layer, step, telling(layer, step))
    return [dictionary.wait_for(version) for version in range(STEPS + 1)]


def all_gradients(plan: Plan) -> list[tuple[int, int]]:
    return [(layer, step) for step in range(STEPS) for layer in plan.contributors]


def test_gradients_added_in_another_order_would_give_other_bits() -> None:
    """Otherwise the next two tests would show nothing."""
    a, b, c = (telling(layer, 0) for layer in range(3))
    assert not torch.equal((a + b) + c, (a + c) + b)


@pytest.mark.parametrize("mode", ["shared-sum", "shared-mean", "in-turn"])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_gradients_in_any_order_give_the_same_bits(mode: Mode, data: st.DataObject) -> None:
    plan = Plan(mode=mode)
    order = data.draw(st.permutations(all_gradients(plan)))
    for got, want in zip(versions_after(plan, order), versions_after(plan, all_gradients(plan)), strict=True):
        assert torch.equal(got, want)


def test_last_layers_gradients_in_any_order_give_the_same_bits() -> None:
    plan = Plan(mode="last")
    want = versions_after(plan, all_gradients(plan))
    for order in itertools.permutations(all_gradients(plan)):
        assert all(torch.equal(a, b) for a, b in zip(versions_after(plan, order), want, strict=True))


def test_gradients_from_several_threads_give_the_same_bits_and_every_reader_its_version() -> None:
    plan, steps = Plan(lag=1), 60
    wanted = plan.build()
    made = [wanted.wait_for(0).clone(), *learn(wanted, plan, range(steps))]
    dictionary, failures = plan.build(), []

    def train_layer(layer: int) -> None:
        try:
            for step in range(steps):
                values = dictionary.read(layer, BatchPosition(step=step, training=True))
                assert torch.equal(values, made[max(0, step + layer - 2 - 1)])
                dictionary.push(layer, step, gradient(layer, step))
        except (AssertionError, RunError) as error:
            failures.append(error)
            dictionary.break_off()

    threads = [threading.Thread(target=train_layer, args=(layer,)) for layer in plan.contributors]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures
    assert torch.equal(dictionary.wait_for(steps), made[steps])


def test_gradient_may_be_overwritten_once_it_was_pushed() -> None:
    plan = Plan()
    want, dictionary = plan.build(), plan.build()
    for layer in plan.contributors:
        mine = gradient(layer, 0)
        dictionary.push(layer, 0, mine)
        mine.zero_()
    assert torch.equal(dictionary.wait_for(1), learn(want, plan, range(1))[0])


def test_version_stays_as_it_was_read() -> None:
    plan = Plan()
    dictionary = plan.build()
    first = dictionary.read(0, BatchPosition(step=0, training=True))
    kept = first.clone()
    learn(dictionary, plan, range(3))
    assert torch.equal(first, kept)


# ---------------------------------------------------------------------------------------------------------------------
# Gradients that are refused


def refused(dictionary: VersionedState, layer: int, step: int, values: Tensor | None = None) -> str:
    """What the refusal says."""
    with pytest.raises(SharedStateError) as refusal:
        dictionary.push(layer, step, gradient(layer, step) if values is None else values)
    return str(refusal.value)


def test_gradient_that_comes_twice_is_refused_by_name() -> None:
    plan = Plan()
    dictionary = plan.build()
    dictionary.push(1, 0, gradient(1, 0))
    assert refused(dictionary, 1, 0) == "label embeddings: layer 2, step 1: its gradient came twice"


def test_gradient_that_comes_again_after_its_step_is_refused_by_name() -> None:
    plan = Plan()
    dictionary = plan.build()
    learn(dictionary, plan, range(2))
    assert refused(dictionary, 0, 1) == "label embeddings: layer 1, step 2: its gradient came twice"


@pytest.mark.parametrize(("mode", "layer"), [("last", 0), ("last", 1), ("static", 2), ("shared-sum", 3)])
def test_gradient_of_a_layer_that_does_not_contribute_is_refused(mode: Mode, layer: int) -> None:
    said = refused(Plan(mode=mode).build(), layer, 0)
    assert f"layer {layer + 1}, step 1" in said
    assert f"mode {mode} takes no gradient" in said


@pytest.mark.parametrize("lag", [0, 1, 3])
def test_gradient_of_a_step_further_ahead_than_versions_allow_is_refused(lag: int) -> None:
    """A layer cannot be there: it would have read a version that does not exist. So one before was lost."""
    dictionary = Plan(lag=lag).build()
    # The first layer reads version 0 until step L − 1 + lag, and then has to wait.
    for step in range(3 + lag):
        dictionary.push(0, step, gradient(0, step))
    said = refused(dictionary, 0, 4 + lag)
    assert f"layer 1, step {5 + lag}" in said
    assert "step 1 lacks the gradient of layer 2, 3; one was lost" in said


@pytest.mark.parametrize("shape", [(WIDTH,), (NUM_CLASSES, WIDTH + 1), (NUM_CLASSES + 1, WIDTH), (WIDTH, NUM_CLASSES)])
def test_gradient_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    said = refused(Plan().build(), 0, 0, torch.zeros(shape))
    assert "layer 1, step 1" in said
    assert str(shape) in said
    assert str((NUM_CLASSES, WIDTH)) in said


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_gradient_that_is_no_number_is_refused_naming_layer_and_step(bad: float) -> None:
    plan = Plan()
    dictionary = plan.build()
    learn(dictionary, plan, range(1))
    values = gradient(2, 1)
    values[1, 3] = bad
    said = refused(dictionary, 2, 1, values)
    assert "layer 3, step 2" in said
    assert "`embedding_lr`" in said


def test_version_that_is_no_number_is_refused_by_its_number() -> None:
    """Gradients that are numbers may have a sum that is none."""
    dictionary = Plan(num_layers=2).build()
    huge = torch.full((NUM_CLASSES, WIDTH), 3e38)
    dictionary.push(0, 0, huge)
    assert "version 1 is not a number" in refused(dictionary, 1, 0, huge)


def test_refused_gradients_change_nothing() -> None:
    plan = Plan()
    want, dictionary = plan.build(), plan.build()
    dictionary.push(0, 0, gradient(0, 0))
    for layer, step, values in ((0, 0, None), (3, 0, None), (1, 9, None), (1, 0, torch.full((3, 5), math.nan))):
        refused(dictionary, layer, step, values)
    for layer in (1, 2):
        dictionary.push(layer, 0, gradient(layer, 0))
    assert torch.equal(dictionary.wait_for(1), learn(want, plan, range(1))[0])


# ---------------------------------------------------------------------------------------------------------------------
# Waiting


@dataclass
class Waiting:
    """A thread that waits for something of a dictionary, and what it got."""

    work: Callable[[], Tensor]
    outcome: Tensor | RunError | None = None
    seconds: float = 0.0

    def __post_init__(self) -> None:
        self.thread = threading.Thread(target=self._wait)
        self.thread.start()

    def _wait(self) -> None:
        began = time.perf_counter()
        try:
            self.outcome = self.work()
        except RunError as error:
            self.outcome = error
        self.seconds = time.perf_counter() - began

    def end(self) -> Tensor | RunError | None:
        self.thread.join(60)
        assert not self.thread.is_alive()
        return self.outcome


def test_reader_waits_for_the_gradient_that_its_version_lacks() -> None:
    plan = Plan(lag=0)
    want = learn(plan.build(), plan, range(2))
    dictionary = plan.build()
    waiting = Waiting(lambda: dictionary.read(2, BatchPosition(step=2, training=True)))
    for step in range(2):
        for layer in plan.contributors:
            assert waiting.thread.is_alive()
            dictionary.push(layer, step, gradient(layer, step))
    got = waiting.end()
    assert isinstance(got, Tensor)
    assert torch.equal(got, want[1])


def test_version_that_never_comes_ends_in_an_error_naming_what_is_missing() -> None:
    plan = Plan(timeout=0.3)
    dictionary = plan.build()
    learn(dictionary, plan, range(1))
    dictionary.push(1, 1, gradient(1, 1))
    began = time.perf_counter()
    with pytest.raises(PeerLostError) as failure:
        dictionary.read(2, BatchPosition(step=4, training=True))
    assert time.perf_counter() - began >= 0.3
    assert str(failure.value) == (
        "label embeddings: version 3 did not come within 0.3 s; step 2 lacks the gradient of layer 1, 3"
    )


def test_end_of_the_run_wakes_who_waits_at_once() -> None:
    dictionary = Plan().build()
    waiting = [
        Waiting(lambda: dictionary.wait_for(1)),
        Waiting(lambda: dictionary.candidate(0)),
    ]
    time.sleep(0.05)
    began = time.perf_counter()
    dictionary.break_off()
    assert all(isinstance(waiter.end(), PeerLostError) for waiter in waiting)
    assert time.perf_counter() - began < 60  # not the stall timeout


def test_after_the_end_of_the_run_versions_that_exist_can_be_read_and_none_is_waited_for() -> None:
    plan = Plan()
    dictionary = plan.build()
    made = learn(dictionary, plan, range(STEPS_PER_EPOCH))
    dictionary.break_off()
    assert torch.equal(dictionary.wait_for(4), made[3])
    assert torch.equal(dictionary.read(2, BatchPosition(step=4, training=True)), made[2])
    assert torch.equal(dictionary.candidate(0), made[3])
    assert torch.equal(dictionary.weights()[VALUES], made[3])
    began = time.perf_counter()
    with pytest.raises(PeerLostError):
        dictionary.wait_for(5)
    assert time.perf_counter() - began < 60  # not the stall timeout


@pytest.mark.parametrize("mode", ["static", "shared-sum"])
def test_layers_read_the_version_of_their_place(mode: Mode) -> None:
    plan = Plan(mode=mode, lag=1)
    dictionary = plan.build()
    versions = [dictionary.wait_for(0).clone(), *learn(dictionary, plan, range(4) if plan.contributors else [])]
    for layer in range(3):
        version = max(0, 4 + layer - 2 - 1) if mode != "static" else 0
        assert torch.equal(dictionary.read(layer, BatchPosition(step=4, training=True)), versions[version])
        assert torch.equal(dictionary.read(layer, BatchPosition(step=4)), versions[version]), "in validation too"


def test_exact_reading_waits_for_what_the_step_before_writes() -> None:
    plan = Plan(sync="exact", lag=3)
    dictionary = plan.build()
    for step in range(5):
        before = dictionary.wait_for(step)
        for layer in range(3):
            assert torch.equal(dictionary.read(layer, BatchPosition(step=step, training=True)), before)
        learn(dictionary, plan, [step])


# ---------------------------------------------------------------------------------------------------------------------
# What is kept


@pytest.mark.parametrize("num_layers", [1, 3, 6])
@pytest.mark.parametrize("lag", [0, 1, 3])
@pytest.mark.parametrize("mode", ["last", "shared-sum"])
def test_only_versions_that_a_layer_may_still_read_are_kept(mode: Mode, num_layers: int, lag: int) -> None:
    plan = Plan(mode=mode, num_layers=num_layers, lag=lag)
    dictionary = plan.build()
    for step in range(25):
        learn(dictionary, plan, [step])
        assert len(dictionary._versions) <= num_layers + lag + 1


@pytest.mark.parametrize("num_layers", [2, 3, 6])
@pytest.mark.parametrize("lag", [0, 1, 3])
def test_layer_may_read_after_the_last_one_has_learned_from_the_same_batch(num_layers: int, lag: int) -> None:
    """Symptom: KeyError in a layer that had sent its activations on and was slow to read, while the last layer, the
    only one to contribute, was through with them already.
    """
    plan = Plan(mode="last", num_layers=num_layers, lag=lag)
    dictionary = plan.build()
    versions = [dictionary.wait_for(0).clone()]
    for step in range(15):
        versions += learn(dictionary, plan, [step])
        for layer in range(num_layers - 1):
            values = dictionary.read(layer, BatchPosition(step=step, training=True))
            assert torch.equal(values, versions[max(0, step + layer - (num_layers - 1) - lag)])


def epochs_of(plan: Plan, count: int) -> tuple[VersionedState, list[Tensor]]:
    """A dictionary after some epochs, and how it was at the end of each."""
    dictionary = plan.build()
    return dictionary, learn(dictionary, plan, range(STEPS_PER_EPOCH * count))[STEPS_PER_EPOCH - 1 :: STEPS_PER_EPOCH]


@pytest.mark.parametrize("mode", ["last", "shared-mean"])
def test_candidate_is_the_dictionary_at_the_end_of_its_epoch_however_long_ago(mode: Mode) -> None:
    dictionary, ends = epochs_of(Plan(mode=mode), 6)
    for epoch, values in enumerate(ends):
        assert torch.equal(dictionary.candidate(epoch), values)
        assert torch.equal(dictionary.candidate_weights(epoch)[VALUES], values)


def test_candidate_of_an_epoch_is_waited_for() -> None:
    plan = Plan()
    dictionary = plan.build()
    learn(dictionary, plan, range(STEPS_PER_EPOCH - 1))
    waiting = Waiting(lambda: dictionary.candidate(0))
    (end,) = learn(dictionary, plan, [STEPS_PER_EPOCH - 1])
    got = waiting.end()
    assert isinstance(got, Tensor)
    assert torch.equal(got, end)


def test_candidates_that_were_not_the_best_are_forgotten() -> None:
    dictionary, ends = epochs_of(Plan(), 5)
    dictionary.keep_only(best=1, upto=2)
    assert sorted(dictionary._ends) == [1, 3, 4]
    assert torch.equal(dictionary.candidate(1), ends[1])
    dictionary.keep_only(best=4, upto=4)
    assert sorted(dictionary._ends) == [4]


def test_static_dictionary_is_every_epochs_candidate() -> None:
    dictionary = Plan(mode="static").build()
    assert torch.equal(dictionary.candidate(7), dictionary.wait_for(0))
    dictionary.freeze(3)
    assert torch.equal(dictionary.weights()[VALUES], dictionary.wait_for(0))


def test_frozen_dictionary_is_what_everything_but_training_reads() -> None:
    plan = Plan()
    dictionary, ends = epochs_of(plan, 3)
    dictionary.freeze(0)
    assert all(torch.equal(dictionary.read(layer, BatchPosition(epoch=2, step=12)), ends[0]) for layer in range(3))
    training = dictionary.read(2, BatchPosition(epoch=2, step=12, training=True))
    assert torch.equal(training, dictionary.wait_for(11))
    assert not torch.equal(training, ends[0])
    assert torch.equal(dictionary.weights()[VALUES], ends[0])
    assert torch.equal(dictionary.state()[VALUES], ends[2]), "the state goes on from where training ended"


def test_weights_are_the_newest_version_until_frozen() -> None:
    dictionary, ends = epochs_of(Plan(), 2)
    assert list(dictionary.weights()) == [VALUES]
    assert torch.equal(dictionary.weights()[VALUES], ends[1])


def test_state_holds_the_optimizers_moments_beside_the_newest_version() -> None:
    plan = Plan()
    dictionary = plan.build()
    assert list(dictionary.state()) == [VALUES]
    learn(dictionary, plan, range(3))
    state = dictionary.state()
    assert set(state) == {VALUES, *(f"embeddings.optimizer.{name}" for name in ("step", "exp_avg", "exp_avg_sq"))}
    assert state["embeddings.optimizer.step"].item() == 3
    moments = torch.zeros(NUM_CLASSES, WIDTH)
    for step in range(3):
        moments = 0.999 * moments + 0.001 * COMBINED["shared-sum"](step) ** 2
    torch.testing.assert_close(state["embeddings.optimizer.exp_avg_sq"], moments)


def test_weights_state_and_candidates_are_copies() -> None:
    plan = Plan()
    dictionary, ends = epochs_of(plan, 1)
    before = {name: value.clone() for name, value in dictionary.state().items()}
    for handed_out in (dictionary.weights(), dictionary.state(), dictionary.candidate_weights(0)):
        for value in handed_out.values():
            value.fill_(7)
    after = dictionary.state()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert torch.equal(dictionary.candidate(0), ends[0])


# ---------------------------------------------------------------------------------------------------------------------
# A dictionary that no longer changes


def test_fixed_dictionary_is_read_the_same_everywhere() -> None:
    values = random_embeddings(WIDTH)
    fixed = FixedState(values)
    for layer, where in ((0, BatchPosition()), (2, BatchPosition(epoch=3, step=17))):
        assert torch.equal(fixed.read(layer, where), values)


@pytest.mark.parametrize("num_classes", [NUM_CLASSES - 1, NUM_CLASSES + 1])
def test_a_dictionary_of_other_classes_than_the_nets_is_refused(num_classes: int) -> None:
    spec = Plan().spec()
    layers = [LocalLayer(spec, index, torch.device("cpu"), FixedState(random_embeddings(WIDTH))) for index in range(3)]
    weights = {name: value for layer in layers for name, value in layer.weights().items()}
    network_of(weights | {VALUES: torch.randn(NUM_CLASSES, WIDTH)}, card_of(spec))
    with pytest.raises(UserError, match=f"embeddings is {num_classes}×{WIDTH} and should be {NUM_CLASSES}×{WIDTH}"):
        network_of(weights | {VALUES: torch.randn(num_classes, WIDTH)}, card_of(spec))


def test_fixed_dictionary_takes_no_gradient() -> None:
    with pytest.raises(SharedStateError):
        FixedState(random_embeddings(WIDTH)).push(0, 0, gradient(0, 0))
