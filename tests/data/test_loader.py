"""Batches: the same for cached, streamed, alone or shared; bad shards skipped or refused before anything starts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import chain
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.data import loader, shards
from pipeline.data.index import DataIndex
from pipeline.data.loader import Batch, Dataset
from pipeline.errors import UserError

Prepared = Callable[..., Path]


def joined(batches: Iterable[Batch]) -> tuple[Tensor, Tensor, Tensor]:
    parts = list(batches)
    return tuple(torch.cat([getattr(batch, name) for batch in parts]) for name in ("images", "labels", "ids"))  # type: ignore[return-value]


def same(first: Iterable[Batch], second: Iterable[Batch]) -> bool:
    pairs = list(zip(first, second, strict=True))
    return all(
        torch.equal(one.images, two.images)
        and torch.equal(one.labels, two.labels)
        and torch.equal(one.ids, two.ids)
        and (one.position, one.step, one.last) == (two.position, two.step, two.last)
        for one, two in pairs
    )


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[700] ^= 0xFF
    path.write_bytes(data)


def test_a_batch_has_the_stated_form(prepared: Prepared) -> None:
    batch = next(Dataset(prepared(), seed=0).batches("train", epoch=0, batch_size=8))
    assert batch.images.shape == (8, 3, 6, 5)
    assert batch.images.dtype == torch.uint8
    assert batch.images.is_contiguous()
    assert batch.labels.dtype == batch.ids.dtype == torch.int64


def test_images_and_labels_are_those_of_their_ids(prepared: Prepared) -> None:
    images, labels, ids = joined(Dataset(prepared(), seed=0).batches("train", epoch=2, batch_size=8))
    assert torch.equal(images[:, 0, 0, 0].long(), ids)
    assert torch.equal(labels, ids % 4)


def test_cached_is_streamed_bit_for_bit(prepared: Prepared) -> None:
    folder = prepared()
    cached, streamed = Dataset(folder, seed=5), Dataset(folder, seed=5, memory_budget=0)
    for epoch in range(3):
        for split in ("train", "validate", "test"):
            one, two = (data.batches(split, epoch=epoch, batch_size=7) for data in (cached, streamed))
            assert same(one, two)


def test_small_windows_give_the_same_order_cached_and_streamed(prepared: Prepared) -> None:
    folder = prepared()
    one, two = (Dataset(folder, seed=5, shuffle_window=20, memory_budget=budget) for budget in (1 << 30, 0))
    assert same(one.batches("train", epoch=1, batch_size=4), two.batches("train", epoch=1, batch_size=4))


@pytest.mark.parametrize("num_feeders", [2, 3, 20])
@pytest.mark.parametrize("budget", [0, 1 << 30])
def test_feeders_parts_interleave_to_the_whole(prepared: Prepared, num_feeders: int, budget: int) -> None:
    folder = prepared()
    whole = Dataset(folder, seed=1).batches("train", epoch=3, batch_size=4)
    feeders = [Dataset(folder, seed=1, memory_budget=budget) for _ in range(num_feeders)]
    parts = [
        feeder.batches("train", epoch=3, batch_size=4, part=(number, num_feeders))
        for number, feeder in enumerate(feeders)
    ]
    assert same(whole, sorted(chain(*parts), key=lambda batch: batch.step))


def test_a_feeder_decodes_only_its_own_samples(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = Mock(wraps=shards.decode)
    monkeypatch.setattr(shards, "decode", decoder)
    dataset = Dataset(prepared(), seed=0)
    batches = list(dataset.batches("train", epoch=0, batch_size=4, part=(1, 3)))
    assert decoder.call_count == 4 * len(batches)


def test_nothing_is_decoded_from_the_second_epoch_on(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = Dataset(prepared(), seed=0)
    list(dataset.batches("train", epoch=0, batch_size=1))
    monkeypatch.setattr(shards, "decode", None)
    assert len(list(dataset.batches("train", epoch=1, batch_size=8))) == dataset.num_batches("train", 8)


def test_the_training_samples_are_divided_between_train_and_validate(prepared: Prepared) -> None:
    dataset = Dataset(prepared(), seed=0, validation=0.2)
    train, validate = (joined(dataset.batches(split, epoch=0, batch_size=1))[2] for split in ("train", "validate"))
    assert len(validate) == dataset.count("validate") == 9
    assert sorted(train.tolist() + validate.tolist()) == list(range(47))


def test_training_drops_the_partial_batch_and_testing_keeps_it(prepared: Prepared) -> None:
    dataset = Dataset(prepared(), seed=0)
    assert [len(batch.ids) for batch in dataset.batches("train", epoch=0, batch_size=10)] == [10] * 4
    assert [len(batch.ids) for batch in dataset.batches("test", epoch=0, batch_size=10)] == [10, 3]
    assert dataset.num_batches("train", 10) == 4
    assert dataset.num_batches("test", 10) == 2


def test_training_keeps_the_partial_batch_where_asked(prepared: Prepared) -> None:
    dataset = Dataset(prepared(), seed=0, keep_last=True)
    count = dataset.count("train")
    assert [len(batch.ids) for batch in dataset.batches("train", epoch=0, batch_size=10)] == [10] * 4 + [count - 40]
    assert dataset.num_batches("train", 10) == 5
    assert dataset.images_per_pass("train", 10) == count
    ids = joined(dataset.batches("train", epoch=3, batch_size=10))[2]
    assert sorted(ids.tolist()) == sorted(joined(dataset.batches("train", epoch=0, batch_size=1))[2].tolist())
    assert dataset.num_batches("train", count + 1) == 0, "but not where it would be the only one"
    dropping = Dataset(prepared(), seed=0)
    assert dropping.images_per_pass("train", 10) == 40
    assert dropping.images_per_pass("test", 10) == dropping.count("test")


def test_the_test_images_validate_where_none_are_kept_back(prepared: Prepared) -> None:
    dataset = Dataset(prepared(), seed=0, validation="test")
    assert dataset.count("train") == 47
    for one, other in zip(
        joined(dataset.batches("validate", epoch=2, batch_size=4)),
        joined(dataset.batches("test", epoch=0, batch_size=4)),
        strict=True,
    ):
        assert torch.equal(torch.as_tensor(one), torch.as_tensor(other))


@pytest.mark.parametrize("split", ["validate", "test"])
def test_validation_and_test_go_in_disk_order(prepared: Prepared, split: loader.Split) -> None:
    ids = joined(Dataset(prepared(), seed=0).batches(split, epoch=5, batch_size=4))[2]
    assert ids.tolist() == sorted(ids.tolist())


def test_batches_know_their_place(prepared: Prepared) -> None:
    batches = list(Dataset(prepared(), seed=0).batches("train", epoch=0, batch_size=10))
    assert [(batch.step, batch.position, batch.last) for batch in batches] == [
        (0, 0, False),
        (1, 10, False),
        (2, 20, False),
        (3, 30, True),
    ]


def test_label_noise_is_in_training_alone_and_of_the_stated_share(prepared: Prepared) -> None:
    folder = prepared()
    clean, noisy = Dataset(folder, seed=0), Dataset(folder, seed=0, label_noise=0.5)
    before, after = (joined(data.batches("train", epoch=1, batch_size=1))[1] for data in (clean, noisy))
    assert int((before != after).sum()) == round(0.5 * clean.count("train"))
    for split in ("validate", "test"):
        assert same(clean.batches(split, epoch=0, batch_size=5), noisy.batches(split, epoch=0, batch_size=5))


def test_noisy_labels_stay_the_same_from_epoch_to_epoch(prepared: Prepared) -> None:
    dataset = Dataset(prepared(), seed=0, label_noise=0.5)
    epochs = [joined(dataset.batches("train", epoch=epoch, batch_size=1)) for epoch in (0, 1)]
    first, second = ({int(i): int(label) for i, label in zip(ids, labels, strict=True)} for _, labels, ids in epochs)
    assert first == second


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:-600]), "is truncated"),
    "corrupt": (damage, "is corrupt"),
    "missing": (Path.unlink, "is missing"),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_shard_is_skipped_with_its_reason(prepared: Prepared, kind: str) -> None:
    folder = prepared()
    before = set(joined(Dataset(folder, seed=0).batches("validate", epoch=0, batch_size=1))[2].tolist())
    change, says = DAMAGES[kind]
    change(folder / "train-000001.tar")
    dataset = Dataset(folder, seed=0)
    (shard,) = dataset.skipped
    assert shard.file == str(folder / "train-000001.tar")
    assert shard.reason.startswith(f"broken shard: it {says}")
    assert "10 train samples are left out" in shard.reason
    after = set(joined(dataset.batches("validate", epoch=0, batch_size=1))[2].tolist())
    assert after == before - set(range(10, 20)), "the other samples stay in their sets"
    assert dataset.count("train") + dataset.count("validate") == 37


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_shard_is_refused_when_strict(prepared: Prepared, kind: str) -> None:
    folder = prepared()
    change, says = DAMAGES[kind]
    change(folder / "train-000001.tar")
    with pytest.raises(UserError, match=rf"train-000001\.tar {says}.*leave out `strict_data` to skip it"):
        Dataset(folder, seed=0, strict=True)


def test_a_damaged_shard_of_a_large_set_is_named_when_it_is_reached(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "_HASHED_UP_TO", 0)
    folder = prepared()
    path = folder / "train-000001.tar"
    data = bytearray(path.read_bytes())
    data[512:530] = b"\0" * 18
    path.write_bytes(data)
    dataset = Dataset(folder, seed=0)
    with pytest.raises(UserError, match=r"train-000001\.tar.*'train-00000010'"):
        list(dataset.batches("train", epoch=0, batch_size=1))


def test_no_usable_shard_is_refused(prepared: Prepared) -> None:
    folder = prepared()
    for path in folder.glob("train-*.tar"):
        damage(path)
    with pytest.raises(UserError, match=r"no usable train samples.*train-000000\.tar: broken shard: it is corrupt"):
        Dataset(folder, seed=0)


@pytest.mark.parametrize("hashed", [True, False])
def test_a_label_outside_the_classes_is_refused_naming_shard_and_sample(prepared: Prepared, hashed: bool) -> None:
    folder = prepared()
    index = DataIndex.load(folder)
    splits = {
        name: replace(
            split, shards=tuple(replace(shard, sha256=shard.sha256 if hashed else "") for shard in split.shards)
        )
        for name, split in index.splits.items()
    }
    replace(index, classes=index.classes[:3], splits=splits).save(folder)
    with pytest.raises(UserError, match=r"train-000000\.tar.*'train-00000003' has label 3, outside 0 … 2"):
        Dataset(folder, seed=0)


def test_a_shard_with_fewer_samples_than_the_index_says_is_skipped(prepared: Prepared) -> None:
    folder = prepared()
    path = folder / "index.json"
    record = json.loads(path.read_text())
    del record["content_hash"]
    record["splits"]["train"]["shards"][0]["count"] = 11
    record["splits"]["train"]["count"] += 1
    path.write_text(json.dumps(record))
    assert "holds 10 samples where the index says 11" in Dataset(folder, seed=0).skipped[0].reason


def test_fewer_training_samples_than_a_batch_is_refused(prepared: Prepared) -> None:
    with pytest.raises(UserError, match="42 training samples, fewer than one batch of 64"):
        next(Dataset(prepared(), seed=0).batches("train", epoch=0, batch_size=64))


@pytest.mark.parametrize(
    "setting",
    [
        {"validation": 1.0},
        {"validation": -0.1},
        {"train_fraction": 0.0},
        {"train_fraction": 1.5},
        {"train_fraction": float("nan")},
        {"label_noise": 1.0},
        {"label_noise": -0.1},
        {"memory_budget": -1},
        {"shuffle_window": 0},
        {"validation": 0.001},
    ],
)
def test_a_setting_out_of_range_is_refused(prepared: Prepared, setting: dict[str, float]) -> None:
    with pytest.raises(UserError, match=r"validation|train_fraction|label_noise|memory_budget|shuffle_window"):
        Dataset(prepared(), seed=0, **setting)  # type: ignore[arg-type]


def test_one_window_reads_the_whole_set_mixed(prepared: Prepared) -> None:
    ids = next(Dataset(prepared(), seed=0).batches("train", epoch=0, batch_size=40)).ids
    assert len(np.unique(ids.numpy() // 10)) == 5
