"""The simulated schedule against closed forms, and against small schedules drawn by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.methods.embeddings import EmbeddingSettings
from pipeline.planning.bottleneck import Limit, limit
from pipeline.planning.ideal import fill, ideal_speedup
from pipeline.planning.parts import Cores, Edge, Feed, LayerWork, Pipeline, Shared
from pipeline.planning.simulate import simulate
from pipeline.telemetry.clock import TimeCategory


def stages_of(seconds: Sequence[float], **values: Any) -> Pipeline:
    """A layer per stage, all of whose work comes before it sends."""
    values.setdefault("edges", (Edge(),) * (len(seconds) - 1))
    return Pipeline(stages=tuple((LayerWork(before=before),) for before in seconds), **values)


def test_one_stage_does_one_step_after_the_other() -> None:
    outcome = simulate(Pipeline(stages=((LayerWork(before=1, after=2), LayerWork(before=3, after=4)),), edges=()))
    assert outcome.steps_per_second == pytest.approx(1 / 10)
    assert outcome.fill_seconds == pytest.approx(0, abs=1e-6)
    assert outcome.utilisation == pytest.approx((1.0,))


@pytest.mark.parametrize("num_stages", [2, 3, 4, 7])
def test_equal_stages_fill_as_the_closed_form_says(num_stages: int) -> None:
    outcome = simulate(stages_of([0.5] * num_stages))
    assert outcome.steps_per_second == pytest.approx(2)
    assert outcome.fill_seconds == pytest.approx((num_stages - 1) * 0.5)
    for num_steps in (1, 10, 1000):
        assert outcome.fill(num_steps) == pytest.approx(fill(num_steps, num_stages))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.integers(1, 3))
def test_the_slowest_stage_dictates(seconds: list[int], depth: int) -> None:
    outcome = simulate(stages_of(seconds, queue_depth=depth), num_steps=250)
    assert outcome.steps_per_second == pytest.approx(1 / max(seconds))
    assert outcome.utilisation == pytest.approx(tuple(own / max(seconds) for own in seconds))
    serial = 1 / sum(seconds)
    assert outcome.steps_per_second / serial == pytest.approx(ideal_speedup([seconds]))


def test_a_stage_sends_before_it_learns() -> None:
    """The second stage begins after the first one's forward pass: the pipeline fills in 1 s, not in 3."""
    work = (LayerWork(before=1, after=2),)
    outcome = simulate(Pipeline(stages=(work, work), edges=(Edge(),)))
    assert outcome.ended[0][:3] == pytest.approx((3, 6, 9))
    assert outcome.ended[1][:3] == pytest.approx((4, 7, 10))
    assert outcome.fill_seconds == pytest.approx(1)


def test_a_slow_second_stage_holds_the_first_one_back_by_hand() -> None:
    """
    seconds   0   1   2   3   4   5   6   7   8   9  10  11  12  13  14
    stage 1   f0  b0  f1  b1  f2  b2  f3  b3  f4  b4  f5  -   -   b5     message 4 lies in its hand until 13
    stage 2       |--- 0 -------|--- 1 -------|--- 2 -------|--- 3       one message waits, beside the one worked on
    """
    slow = Pipeline(stages=((LayerWork(before=1, after=1),), (LayerWork(before=4),)), edges=(Edge(),), queue_depth=1)
    outcome = simulate(slow)
    assert outcome.ended[0][:7] == pytest.approx((2, 4, 6, 8, 10, 14, 18))
    assert outcome.ended[1][:4] == pytest.approx((5, 9, 13, 17))
    assert outcome.shares[0][TimeCategory.WAIT_OUT] == pytest.approx(0.5)
    assert outcome.shares[1][TimeCategory.BUSY] == pytest.approx(1)


def test_a_deeper_queue_lets_the_first_stage_run_further_ahead() -> None:
    """Ahead of the second stage's k-th step: those that wait, the one in hand, and the one that is worked on."""
    for depth in (1, 2, 5):
        outcome = simulate(stages_of([1e-6, 1.0], queue_depth=depth))
        at = outcome.ended[1][40] + 0.5  # while it works on its 42nd step
        assert sum(end < at for end in outcome.ended[0]) == 42 + depth + 1


@pytest.mark.parametrize("depth", [1, 2, 3, 8])
@pytest.mark.parametrize("delay", [0.0, 0.7, 2.0, 5.0])
def test_over_a_long_way_a_buffer_is_away_for_a_round_trip_and_a_step(depth: int, delay: float) -> None:
    """Of depth + 1 buffers each takes a message, is worked on for 1 s, and is heard to be free a round trip later."""
    outcome = simulate(stages_of([0.5, 1.0], queue_depth=depth, edges=(Edge(delay=delay),)), num_steps=300)
    assert outcome.steps_per_second == pytest.approx(min(1.0, (depth + 1) / (2 * delay + 1.0)), rel=5e-3)


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_a_tcp_that_paces_makes_the_round_trip_longer_by_a_share_for_each_message(depth: int) -> None:
    """Symptom: 12 % fewer steps than predicted, at --queue-depth 1 over 50 ms, where the system's TCP is BBR."""
    way = Edge(delay=3.0, spread=3.0)
    outcome = simulate(stages_of([0.5, 1.0], queue_depth=depth, edges=(way,)), num_steps=300)
    away = 2 * 3.0 + 3.0 / (depth + 1) + 1.0
    assert outcome.steps_per_second == pytest.approx(min(1.0, (depth + 1) / away), rel=5e-3)


def test_a_long_way_is_what_limits_until_the_queue_is_deep_enough() -> None:
    far = stages_of([1.0, 1.0], queue_depth=2, edges=(Edge(delay=3.0),))
    assert limit(far) == Limit("link", 0)
    assert limit(replace(far, queue_depth=6)).kind == "stage"


def test_a_shallow_queue_loses_by_jitter_what_a_deeper_one_keeps() -> None:
    rates = [
        simulate(stages_of([1.0] * 3, queue_depth=depth, jitter=0.3), num_steps=2000).steps_per_second
        for depth in (1, 4, 16)
    ]
    assert rates[0] < 0.96
    assert rates[0] < rates[1] < rates[2] < 1.02
    assert simulate(stages_of([1.0] * 3, queue_depth=1)).steps_per_second == pytest.approx(1)


def test_jitter_keeps_the_mean_and_is_the_same_again() -> None:
    noisy = stages_of([1.0], jitter=0.2)
    assert simulate(noisy, num_steps=5000).steps_per_second == pytest.approx(1, rel=0.02)
    assert simulate(noisy) == simulate(noisy)
    assert simulate(noisy) != simulate(replace(noisy, seed=1))


@pytest.mark.parametrize(("num_stages", "cores", "rate"), [(4, 2, 0.5), (4, 3, 0.75), (3, 2, 2 / 3), (2, 2, 1.0)])
def test_stages_share_cores(num_stages: int, cores: int, rate: float) -> None:
    outcome = simulate(stages_of([1.0] * num_stages, cores=Cores(count=cores)))
    assert outcome.steps_per_second == pytest.approx(rate)


def test_two_stages_on_one_core_by_hand() -> None:
    """Each step is 1 s of work. Until 1 the first is alone; from then on both get half a core."""
    outcome = simulate(stages_of([1.0, 1.0], cores=Cores(count=1)))
    assert outcome.ended[0][:3] == pytest.approx((1, 3, 5))
    assert outcome.ended[1][:3] == pytest.approx((3, 5, 7))


def test_a_device_is_faster_while_the_other_one_rests() -> None:
    cores = Cores(count=2, profiled=2, alone=1.25)
    assert simulate(stages_of([1.0], cores=cores)).steps_per_second == pytest.approx(1.25)
    assert simulate(stages_of([1.0, 1.0], cores=cores)).steps_per_second == pytest.approx(1)
    # 1 s of the slow stage's work beside the fast one's 1 s, the other 2 s alone and so in 1.6 s.
    assert simulate(stages_of([1.0, 3.0], cores=cores)).steps_per_second == pytest.approx(1 / 2.6)
    assert [cores.speed(running) for running in (1, 2, 4)] == [1.25, 1.0, 0.5]
    many = Cores(count=4, profiled=4, alone=1.6)
    assert [many.speed(running) for running in (1, 2, 4, 8)] == pytest.approx([1.6, 1.4, 1.0, 0.5])


def test_others_take_their_part_of_full_cores_and_turns_cost_something() -> None:
    cores = Cores(count=2, others=0.1, crowded=0.9)
    assert [cores.speed(running) for running in (1, 2, 4)] == pytest.approx([1.0, 1.9 / 2, 0.9**2 * 1.9 / 4])
    assert simulate(stages_of([1.0, 1.0], cores=cores)).steps_per_second == pytest.approx(1.9 / 2)


def test_a_slow_link_is_the_limit_and_a_fast_one_costs_nothing_but_the_fill() -> None:
    slow = simulate(stages_of([1.0, 1.0], edges=(Edge(transfer=5),)))
    assert slow.steps_per_second == pytest.approx(1 / 5)
    fast = simulate(stages_of([1.0, 1.0], edges=(Edge(transfer=0.4),)))
    assert fast.steps_per_second == pytest.approx(1)
    assert fast.fill_seconds == pytest.approx(1.4)


def test_copies_are_work_of_the_ends() -> None:
    outcome = simulate(stages_of([1.0, 1.0], edges=(Edge(send=0.25, receive=0.5),)))
    assert outcome.steps_per_second == pytest.approx(1 / 1.5)
    assert outcome.shares[0][TimeCategory.COPY] == pytest.approx(0.25 / 1.5)
    assert outcome.shares[1][TimeCategory.COPY] == pytest.approx(0.5 / 1.5)


@pytest.mark.parametrize(("feeders", "rate"), [(1, 1 / 3), (2, 2 / 3), (3, 1.0), (4, 1.0), (0, 1 / 4)])
def test_feeders_take_turns_and_without_any_the_first_stage_reads(feeders: int, rate: float) -> None:
    outcome = simulate(stages_of([1.0, 1.0], feed=Feed(seconds=3.0, feeders=feeders)))
    assert outcome.steps_per_second == pytest.approx(rate)


def test_a_feeder_takes_its_share_of_the_cores_but_not_of_gpus() -> None:
    feed = Feed(seconds=0.5)
    assert simulate(stages_of([1.0], feed=feed, cores=Cores(count=1))).steps_per_second == pytest.approx(1 / 1.5)
    beside = replace(feed, on_cores=False)
    assert simulate(stages_of([1.0], feed=beside, cores=Cores(count=1))).steps_per_second == pytest.approx(1)


def embeddings(num_layers: int, **values: Any) -> Shared:
    return Shared(versions=EmbeddingSettings(**values).versions(num_layers, steps_per_epoch=1))


def test_lagged_label_embeddings_hold_no_equal_stage_back() -> None:
    for lag in (0, 1):
        outcome = simulate(stages_of([1.0] * 4, shared=embeddings(4, embedding_lag=lag)))
        assert outcome.steps_per_second == pytest.approx(1)
        assert all(share[TimeCategory.SYNC] == pytest.approx(0) for share in outcome.shares)


def test_exact_label_embeddings_by_hand() -> None:
    """Three layers, forward 2 s, update 1 s. All wait for E(t-1), when the last layer has learned from batch t-1.

    Then layer 1 updates and sends batch t+1 on: it is at layer 3 after 1 + 2·2 s. E(t+1) = E(t-1) + 1 + 3·2 + 1.
    """
    work = (LayerWork(before=2, after=1),)
    exact = Pipeline(stages=(work,) * 3, edges=(Edge(),) * 2, shared=embeddings(3, embedding_sync="exact"))
    outcome = simulate(exact)
    assert outcome.steps_per_second == pytest.approx(2 / 8)
    assert simulate(replace(exact, shared=None)).steps_per_second == pytest.approx(1 / 3)
    assert limit(exact) == Limit("shared")


@pytest.mark.parametrize(("lag", "ahead"), [(0, 2), (1, 3), (4, 6)])
def test_layers_run_at_most_as_many_steps_ahead_as_there_are_layers_and_lag(lag: int, ahead: int) -> None:
    """The first of two layers learns from batch t once the last one has learned from batch t − 2 − lag."""
    outcome = simulate(stages_of([1e-3, 1.0], queue_depth=50, shared=embeddings(2, embedding_lag=lag)))
    at = outcome.ended[1][30] + 0.5  # it has done 31 steps
    assert sum(end < at for end in outcome.ended[0]) == 31 + ahead
    assert outcome.shares[0][TimeCategory.SYNC] > 0.9


@pytest.mark.parametrize(("mode", "rate"), [("last", 1.0), ("shared-sum", 1.0), ("static", 1.0)])
def test_whoever_contributes_the_first_version_comes(mode: str, rate: float) -> None:
    outcome = simulate(stages_of([1.0, 1.0], shared=embeddings(2, embedding_mode=mode)))
    assert outcome.steps_per_second == pytest.approx(rate)


def test_a_slow_coordinator_is_waited_for() -> None:
    """A version 4 s after its gradients, and a lag of 1: the last layer does two steps in 1 + 4 s."""
    slow = replace(embeddings(2, embedding_lag=1), seconds=4.0)
    outcome = simulate(stages_of([1.0, 1.0], shared=slow))
    assert outcome.steps_per_second < 0.5
    assert limit(stages_of([1.0, 1.0], shared=slow)) == Limit("shared")


@pytest.mark.parametrize(
    ("pipeline", "limited"),
    [
        (stages_of([1.0, 2.0, 1.0]), "stage 2"),
        (stages_of([1.0, 1.0], feed=Feed(seconds=1.5)), "the feeder"),
        (stages_of([1.0, 1.0, 1.0], edges=(Edge(transfer=1.2), Edge(transfer=3.0))), "the link from stage 2"),
        (stages_of([1.0, 1.0, 1.0], cores=Cores(count=2)), "the cores"),
        (stages_of([1.0, 1.1], feed=Feed(seconds=1.0)), "stage 2"),
    ],
)
def test_what_limits_is_named(pipeline: Pipeline, limited: str) -> None:
    assert str(limit(pipeline)) == limited


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0.1, 2), st.floats(0, 2)), min_size=1, max_size=4),
    st.integers(1, 3),
    st.sampled_from([1, 2, math.inf]),
)
def test_every_stages_time_adds_up(work: list[tuple[float, float]], depth: int, cores: float) -> None:
    pipeline = Pipeline(
        stages=tuple((LayerWork(before=before, after=after),) for before, after in work),
        edges=(Edge(send=0.05, transfer=0.3, receive=0.1),) * (len(work) - 1),
        queue_depth=depth,
        feed=Feed(seconds=0.2, edge=Edge(send=0.02, transfer=0.1)),
        cores=Cores(count=cores, profiled=2, alone=1.1),
        jitter=0.1,
    )
    outcome = simulate(pipeline, num_steps=30)
    for shares in outcome.shares:
        assert sum(shares.values()) == pytest.approx(1)
        assert min(shares.values()) >= 0
