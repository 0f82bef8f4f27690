"""The order of an epoch and the division of the training samples are functions of seed, epoch and sizes."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.order import Ids, divide, epoch_order, label_shifts

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
    division = divide(1000, None, seed=4, validation=0.1, train_fraction=1.0)
    assert len(division.validate) == 100
    assert np.array_equal(np.sort(np.concatenate([division.train, division.validate])), np.arange(1000))


CLASSES = st.lists(st.integers(1, 40), min_size=2, max_size=6)


def labels_of(counts: list[int]) -> Ids:
    return np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))


@given(counts=CLASSES, seed=st.integers(0, 9), share=st.floats(0.01, 1))
def test_a_part_of_the_training_samples_has_the_classes_in_their_proportions(
    counts: list[int], seed: int, share: float
) -> None:
    labels, count = labels_of(counts), sum(counts)
    whole = divide(count, None, seed=seed, validation=0.2, train_fraction=1.0)
    part = divide(count, labels, seed=seed, validation=0.2, train_fraction=share)
    assert np.array_equal(whole.validate, part.validate)
    assert set(part.train) <= set(whole.train)
    assert len(part.train) == round(share * len(whole.train))
    there, kept = (np.bincount(labels[ids], minlength=len(counts)) for ids in (whole.train, part.train))
    for one in np.flatnonzero(there):  # nobody has a sample more that another has the better claim to
        for other in np.flatnonzero(there):
            assert (kept[one] - 0.5) / there[one] <= (kept[other] + 0.5) / there[other] + 1e-9


def test_classes_of_one_size_keep_as_many_samples_each() -> None:
    labels = labels_of([100] * 7)
    kept = divide(700, labels, seed=1, validation=0.0, train_fraction=0.3).train
    assert np.bincount(labels[kept]).tolist() == [30] * 7


def test_the_seed_decides_which_samples_are_kept_and_more_of_them_keep_the_first() -> None:
    labels = labels_of([100] * 5)

    def kept(seed: int, share: float) -> set[int]:
        return set(divide(500, labels, seed=seed, validation=0.0, train_fraction=share).train.tolist())

    assert kept(1, 0.2) == kept(1, 0.2) != kept(2, 0.2)
    assert kept(1, 0.2) < kept(1, 0.5)


@given(counts=CLASSES, seed=st.integers(0, 9), share=st.floats(0, 0.99))
def test_label_noise_is_of_every_class_and_goes_to_each_other_class_equally_often(
    counts: list[int], seed: int, share: float
) -> None:
    labels, classes = labels_of(counts), len(counts)
    train = np.arange(0, len(labels), 2)
    shifts = label_shifts(train, labels, seed=seed, share=share, num_classes=classes)
    assert np.count_nonzero(shifts[train]) == np.count_nonzero(shifts) == round(share * len(train))
    assert shifts.min() >= 0 and shifts.max() < classes
    there = np.bincount(labels[train], minlength=classes)
    changed = np.bincount(labels[shifts > 0], minlength=classes)
    for one in np.flatnonzero(there):
        for other in np.flatnonzero(there):
            assert (changed[one] - 0.5) / there[one] <= (changed[other] + 0.5) / there[other] + 1e-9
        to = np.bincount(shifts[(labels == one) & (shifts > 0)], minlength=classes)[1:]
        assert to.max() - to.min() <= 1


def test_label_noise_keeps_classes_of_one_size_at_one_size() -> None:
    labels = labels_of([100] * 5)
    shifts = label_shifts(np.arange(500), labels, seed=1, share=0.4, num_classes=5)
    assert np.bincount((labels + shifts) % 5).tolist() == [100] * 5


def test_more_label_noise_keeps_the_labels_already_changed() -> None:
    labels = labels_of([200] * 5)
    few, many = (label_shifts(np.arange(1000), labels, seed=1, share=share, num_classes=5) for share in (0.1, 0.4))
    assert np.array_equal(few[few > 0], many[few > 0])
    other = label_shifts(np.arange(1000), labels, seed=2, share=0.1, num_classes=5)
    assert not np.array_equal(few, other)
