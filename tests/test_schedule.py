"""Stages, passes, fill and ideal speed-up, against tables written by hand."""

from __future__ import annotations

from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config.partition import balanced, partition, sized
from pipeline.errors import UserError
from pipeline.kind import Kind
from pipeline.planning.ideal import fill, ideal_speedup
from pipeline.runtime.passes import Pass, layer_passes, readout_passes


@pytest.mark.parametrize(
    ("num_stages", "stages"),
    [
        (1, [[0, 1, 2, 3, 4]]),
        (2, [[0, 1], [2, 3, 4]]),
        (3, [[0], [1, 2], [3, 4]]),
        (4, [[0], [1], [2], [3, 4]]),
        (5, [[0], [1], [2], [3], [4]]),
    ],
)
def test_five_layers_in_stages(num_stages: int, stages: list[list[int]]) -> None:
    assert [list(layers) for layers in partition(5, num_stages)] == stages


@pytest.mark.parametrize(
    ("num_layers", "num_stages", "sizes"),
    [(4, 2, [2, 2]), (6, 4, [1, 1, 2, 2]), (7, 3, [2, 2, 3]), (8, 3, [2, 3, 3]), (1, 1, [1])],
)
def test_larger_stages_come_last(num_layers: int, num_stages: int, sizes: list[int]) -> None:
    assert [len(layers) for layers in partition(num_layers, num_stages)] == sizes


@given(st.integers(1, 40).flatmap(lambda layers: st.tuples(st.just(layers), st.integers(1, layers))))
def test_stages_are_contiguous_and_as_even_as_can_be(layers_and_stages: tuple[int, int]) -> None:
    num_layers, num_stages = layers_and_stages
    stages = partition(num_layers, num_stages)
    assert [layer for layers in stages for layer in layers] == list(range(num_layers))
    sizes = [len(layers) for layers in stages]
    assert len(sizes) == num_stages
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(
    ("num_stages", "advice"),
    [(0, "Give 1 to 5"), (-1, "Give 1 to 5"), (6, "at most `stages` 5"), (100, "at most `stages` 5")],
)
def test_impossible_number_of_stages_is_refused_with_what_is_possible(num_stages: int, advice: str) -> None:
    """Symptom: none at all were answered by "at most"."""
    with pytest.raises(UserError, match=rf"`stages` {num_stages}: .*5 layers.*{advice}"):
        partition(5, num_stages)


def test_every_epoch_trains_then_validates() -> None:
    T, V = Kind.TRAIN, Kind.VALIDATE  # noqa: N806 - a table
    assert layer_passes(range(3)) == [Pass(*one) for one in ((T, 0), (V, 0), (T, 1), (V, 1), (T, 2), (V, 2))]


def test_run_closes_with_readouts_and_test() -> None:
    closing = [(Kind.READOUT, 3), (Kind.READOUT, 4), (Kind.TEST, 0), (Kind.STOP, 0)]
    assert readout_passes(epochs=3, readout_epochs=2) == [Pass(*one) for one in closing]


def test_readouts_that_are_judged_are_validated_after_each_epoch() -> None:
    closing = [
        (Kind.READOUT, 3),
        (Kind.JUDGE, 3),
        (Kind.READOUT, 4),
        (Kind.JUDGE, 4),
        (Kind.TEST, 0),
        (Kind.STOP, 0),
    ]
    assert readout_passes(epochs=3, readout_epochs=2, judged=True) == [Pass(*one) for one in closing]


def test_run_with_online_readouts_closes_without_a_readout_pass() -> None:
    assert readout_passes(epochs=1, readout_epochs=0) == [Pass(Kind.TEST, 0), Pass(Kind.STOP, 0)]


@pytest.mark.parametrize(
    ("num_steps", "num_stages", "share"),
    [(1, 1, 1.0), (100, 1, 1.0), (1, 4, 0.25), (3, 2, 0.75), (5, 5, 5 / 9), (97, 4, 0.97), (0, 3, 0.0)],
)
def test_pipeline_is_full_for_a_share_of_its_ticks(num_steps: int, num_stages: int, share: float) -> None:
    assert fill(num_steps, num_stages) == pytest.approx(share)


@pytest.mark.parametrize(
    ("stage_seconds", "fill_seconds", "speedup"),
    [
        ([20.0], 0.0, 1.0),
        ([3.0, 3.0], 1.0, 1.5),  # three steps of 1 s: 6 s one after another; 4 ticks of 1 s
        ([98.0, 196.0, 294.0], 3.0, 588 / 297),  # 98 steps; before the slowest one's first step, 1 s and 2 s of others
        ([1.0, 1.0, 1.0, 1.0], 3.0, 1.0),  # one batch gains nothing
        ([3.0, 1.0], 0.0, 4 / 3),  # always full
        ([0.0, 0.0], 5.0, 0.0),
        ([], 5.0, 0.0),
    ],
)
def test_ideal_speedup_by_hand(stage_seconds: list[float], fill_seconds: float, speedup: float) -> None:
    assert ideal_speedup([stage_seconds], fill_seconds) == pytest.approx(speedup)


@given(st.integers(1, 6), st.integers(1, 200))
def test_even_stages_gain_what_a_tick_by_tick_simulation_gains(num_stages: int, num_steps: int) -> None:
    ended = [[0] * num_stages for _ in range(num_steps)]
    for step in range(num_steps):
        for stage in range(num_stages):
            before = max(ended[step - 1][stage] if step else 0, ended[step][stage - 1] if stage else 0)
            ended[step][stage] = before + 1
    simulated = num_steps * num_stages / ended[-1][-1]
    assert ideal_speedup([[float(num_steps)] * num_stages], num_stages - 1) == pytest.approx(simulated)
    assert num_stages * fill(num_steps, num_stages) == pytest.approx(simulated)


def slowest_stage(costs: list[float], stages: tuple[range, ...]) -> float:
    return max(sum(costs[layer] for layer in layers) for layers in stages)


@pytest.mark.parametrize(
    ("costs", "sizes"),
    [
        ([5, 1, 1, 1], [1, 3]),
        ([1, 1, 1, 5], [3, 1]),
        ([3, 2, 2, 2, 3], [2, 3]),  # 5 | 7, as good as 7 | 5: the larger stage last
        ([4, 1, 1, 1, 1, 1, 1], [1, 3, 3]),  # 4 is the least; of what keeps it, 4 | 3 | 3 is the most even
        ([9, 1, 1, 1, 1], [1, 2, 2]),  # not 1, 1, 3, which is no slower
        ([0, 0, 0], [1, 2]),
        ([2, 7], [2]),
    ],
)
def test_balanced_stages_by_hand(costs: list[float], sizes: list[int]) -> None:
    assert [len(layers) for layers in balanced(costs, len(sizes))] == sizes


@given(st.lists(st.integers(0, 20), min_size=1, max_size=8), st.data())
def test_no_other_partition_has_a_faster_slowest_stage_or_is_more_even(costs: list[float], data: st.DataObject) -> None:
    num_stages = data.draw(st.integers(1, len(costs)))

    def weight(stages: tuple[range, ...]) -> tuple[float, float]:
        return slowest_stage(costs, stages), sum(sum(costs[layer] for layer in layers) ** 2 for layers in stages)

    every = [
        sized([end - start for start, end in pairwise([0, *cuts, len(costs)])])
        for cuts in combinations(range(1, len(costs)), num_stages - 1)
    ]
    chosen = balanced(costs, num_stages)
    assert chosen in every
    assert weight(chosen) == min(weight(stages) for stages in every)


def test_equal_layers_are_balanced_by_the_even_partition() -> None:
    for num_layers in range(1, 9):
        for num_stages in range(1, num_layers + 1):
            even = [1.0 * len(layers) for layers in partition(num_layers, num_stages)]
            chosen = balanced([1.0] * num_layers, num_stages)
            assert sorted(len(layers) for layers in chosen) == sorted(even)


def test_more_balanced_stages_than_layers_are_refused() -> None:
    with pytest.raises(UserError, match=r"`stages` 3: .*2 layers"):
        balanced([1.0, 2.0], 3)
