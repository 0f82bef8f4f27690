"""Keyed randomness: the same numbers in any block, others for another purpose, and never silently others than today."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import rng

# What these functions gave when runs were first recorded. A change here changes every run's numbers: old seeds, golden
# losses and interrupted runs would no longer agree.


def test_keys_are_pinned() -> None:
    assert rng.key(0, "init", 0) == 0x8F390B80E2ED450AF8CD8746C25B6034
    assert rng.key(1, "order", 2, 3) == 0x3031BBB3736B2977677570FE990A928E


def test_torch_seeds_are_pinned() -> None:
    assert rng.torch_seed(0, "init", 0) == 5160146334643561093
    assert rng.torch_seed(7, "init-readout", 4) == 2350710531507824710


def test_generators_are_pinned() -> None:
    assert rng.generator(0, "order", 1).permutation(10).tolist() == [9, 8, 6, 5, 2, 7, 4, 0, 1, 3]


def test_uniform_numbers_are_pinned() -> None:
    drawn = rng.uniform(3, "views", 1, first=5, count=2, draws=5)
    by_hand = [
        [0.09770282, 0.00663355, 0.5505423, 0.96870055, 0.91055136],
        [0.71522919, 0.39655811, 0.55952342, 0.58848506, 0.71095899],
    ]
    np.testing.assert_allclose(drawn, by_hand, atol=5e-9)


@settings(max_examples=100, deadline=None)
@given(first=st.integers(0, 10**9), split=st.integers(0, 20), count=st.integers(0, 20), draws=st.integers(1, 13))
def test_positions_numbers_are_the_same_in_any_block(first: int, split: int, count: int, draws: int) -> None:
    count = max(count, split)
    whole = rng.uniform(0, "views", 2, first=first, count=count, draws=draws)
    head = rng.uniform(0, "views", 2, first=first, count=split, draws=draws)
    tail = rng.uniform(0, "views", 2, first=first + split, count=count - split, draws=draws)
    assert whole.shape == (count, draws)
    np.testing.assert_array_equal(whole, np.concatenate([head, tail]))


def test_positions_share_no_numbers() -> None:
    drawn = rng.uniform(0, "views", first=0, count=1000, draws=7)
    assert len(np.unique(drawn)) == drawn.size


def test_uniform_numbers_are_uniform() -> None:
    drawn = rng.uniform(0, "views", first=0, count=20_000, draws=4)
    assert drawn.min() >= 0
    assert drawn.max() < 1
    share, _ = np.histogram(drawn, bins=10, range=(0, 1))
    np.testing.assert_allclose(share / drawn.size, 0.1, atol=0.005)


@pytest.mark.parametrize(
    "other",
    [
        (1, "views", 2, 3),
        (0, "order", 2, 3),
        (0, "views", 3, 3),
        (0, "views", 2, 4),
        (0, "views", 3, 2),
        (0, "views", 2),
    ],
)
def test_other_seed_purpose_or_index_gives_other_numbers(other: tuple[int, str, int]) -> None:
    seed, purpose, *index = other
    assert rng.key(seed, purpose, *index) != rng.key(0, "views", 2, 3)
    assert rng.torch_seed(seed, purpose, *index) != rng.torch_seed(0, "views", 2, 3)
    assert rng.generator(seed, purpose, *index).random() != rng.generator(0, "views", 2, 3).random()
    mine = rng.uniform(seed, purpose, *index, first=0, count=3, draws=3)
    assert not np.isin(mine, rng.uniform(0, "views", 2, 3, first=0, count=3, draws=3)).any()


def test_digits_of_an_index_do_not_run_together() -> None:
    assert rng.key(0, "views", 1, 23) != rng.key(0, "views", 12, 3)
    assert rng.key(0, "views1", 2) != rng.key(0, "views", 12)


@given(st.integers(0, 2**31), st.text(max_size=10), st.lists(st.integers(0, 2**40), max_size=4))
def test_keys_fit_their_generators(seed: int, purpose: str, index: list[int]) -> None:
    assert 0 <= rng.key(seed, purpose, *index) < 2**128
    assert 0 <= rng.torch_seed(seed, purpose, *index) < 2**63


def test_numpy_integers_key_as_pythons_do() -> None:
    assert rng.key(np.int64(3), "views", np.int32(1)) == rng.key(3, "views", 1)  # type: ignore[arg-type]


def test_drawing_from_one_generator_leaves_the_others_alone() -> None:
    first = rng.generator(0, "order", 1)
    first.random(100)
    assert rng.generator(0, "order", 1).random() == rng.generator(0, "order", 1).random()
