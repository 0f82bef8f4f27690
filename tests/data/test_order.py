"""The order of an epoch and the division of the training samples are functions of seed, epoch and sizes."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.order import divide, epoch_order, label_shifts

SIZES = st.lists(st.integers(1, 30), min_size=1, max_size=8)


@given(sizes=SIZES, seed=st.integers(0, 9), epoch=st.integers(0, 9), window=st.integers(1, 100), data=st.data())
def test_an_epoch_visits_every_selected_sample_once(
    sizes: list[int], seed: int, epoch: int, window: int, data: st.DataObject
) -> None:
    selected = np.array(sorted(data.draw(st.sets(st.integers(0, sum(sizes) - 1)))), dtype=np.int64)
    order = epoch_order(sizes, selected, seed=seed, epoch=epoch, shuffle_window=window)
    assert np.array_equal(np.sort(order), selected)


@given(sizes=SIZES, window=st.integers(1, 100))
def test_a_window_holds_whole_shards_and_at_most_its_size(sizes: list[int], window: int) -> None:
    order = epoch_order(sizes, np.arange(sum(sizes)), seed=3, epoch=1, shuffle_window=window)
    shard_of = np.repeat(np.arange(len(sizes)), sizes)[order]
    place = 0
    while place < len(order):
        # A window ends at the first place where the shards seen so far are all complete.
        end = place + 1
        while sum(sizes[shard] for shard in set(shard_of[place:end])) != end - place:
            end += 1
        assert end - place <= max(window, sizes[shard_of[place]])
        place = end


def test_known_order() -> None:
    order = epoch_order([3, 3, 2], np.arange(8), seed=0, epoch=0, shuffle_window=6)
    assert order.tolist() == [6, 2, 7, 1, 0, 4, 5, 3]


def test_epochs_and_seeds_differ() -> None:
    orders = {
        tuple(epoch_order([50, 50], np.arange(100), seed=seed, epoch=epoch, shuffle_window=100))
        for seed in (0, 1)
        for epoch in (0, 1)
    }
    assert len(orders) == 4


def test_one_window_mixes_all_shards() -> None:
    order = epoch_order([100] * 5, np.arange(500), seed=0, epoch=0, shuffle_window=500)
    assert set(order[:50] // 100) == set(range(5))


def test_validation_and_training_are_disjoint_and_whole() -> None:
    division = divide(1000, seed=4, validation=0.1, train_fraction=1.0)
    assert len(division.validate) == 100
    assert np.array_equal(np.sort(np.concatenate([division.train, division.validate])), np.arange(1000))


def test_train_fraction_leaves_the_validation_set_alone() -> None:
    whole = divide(1000, seed=4, validation=0.1, train_fraction=1.0)
    part = divide(1000, seed=4, validation=0.1, train_fraction=0.25)
    assert np.array_equal(whole.validate, part.validate)
    assert len(part.train) == 225
    assert set(part.train) <= set(whole.train)


def test_label_noise_changes_its_share_of_training_labels_to_another_class() -> None:
    train = np.arange(0, 1000, 2)
    shifts = label_shifts(train, 1000, seed=1, share=0.3, num_classes=5)
    assert shifts is not None
    assert np.count_nonzero(shifts[train]) == 150
    assert np.count_nonzero(shifts[1::2]) == 0
    assert set(shifts[shifts > 0]) == {1, 2, 3, 4}


def test_more_label_noise_keeps_the_labels_already_changed() -> None:
    train = np.arange(1000)
    few = label_shifts(train, 1000, seed=1, share=0.1, num_classes=5)
    many = label_shifts(train, 1000, seed=1, share=0.4, num_classes=5)
    assert few is not None
    assert many is not None
    assert np.array_equal(few[few > 0], many[few > 0])
