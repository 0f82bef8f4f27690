"""The index of a prepared folder: kept whole, refused when it is not."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.data.index import DataIndex
from pipeline.errors import UserError

Prepared = Callable[..., Path]


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_an_index_comes_back_as_it_was_saved(prepared: Prepared, tmp_path: Path) -> None:
    index = DataIndex.load(prepared())
    index.save(tmp_path)
    assert DataIndex.load(tmp_path) == index


def test_an_index_tells_counts_shape_and_moments(prepared: Prepared) -> None:
    index = DataIndex.load(prepared(num_train=40, num_test=8))
    assert index.shape == (3, 6, 5)
    assert index.splits["train"].class_counts == (10, 10, 10, 10)
    assert [shard.count for shard in index.splits["train"].shards] == [10] * 4
    assert index.mean == pytest.approx((0.5,) * 3, abs=0.1)
    assert index.std == pytest.approx((0.289,) * 3, abs=0.05)


def test_the_same_data_gives_the_same_bytes_and_content_hash(prepared: Prepared) -> None:
    first, second = prepared("a"), prepared("b")
    assert DataIndex.load(first).content_hash == DataIndex.load(second).content_hash
    for path in first.glob("*.tar"):
        assert path.read_bytes() == (second / path.name).read_bytes()


def test_other_data_gives_another_content_hash(prepared: Prepared) -> None:
    hashes = {DataIndex.load(prepared("a")).content_hash, DataIndex.load(prepared("b", num_train=46)).content_hash}
    assert len(hashes) == 2


def test_the_sizes_that_images_had_are_kept(prepared: Prepared, tmp_path: Path) -> None:
    replace(DataIndex.load(prepared()), resized_from="1200×900 (57 images)").save(tmp_path)
    assert DataIndex.load(tmp_path).resized_from == "1200×900 (57 images)"


def test_an_index_of_what_was_never_resized_is_as_older_versions_wrote_it(prepared: Prepared) -> None:
    folder = prepared()
    assert list(json.loads((folder / "index.json").read_text())) == [
        *("format_version", "content_hash", "name", "classes", "shape", "mean", "std", "splits", "skipped", "source")
    ]
    assert DataIndex.load(folder).resized_from == ""


def test_a_missing_index_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no index\.json.*launch prepare"):
        DataIndex.load(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "\x00\xff", "[]", "3"])
def test_an_index_that_is_no_json_object_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "index.json").write_text(text)
    with pytest.raises(UserError, match=r"index\.json"):
        DataIndex.load(tmp_path)


def test_an_unknown_version_is_refused(prepared: Prepared) -> None:
    folder = prepared()
    edit(folder, format_version=99)
    with pytest.raises(UserError, match="version 99; this program reads version 1"):
        DataIndex.load(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"splits": {}},
        {"splits": None},
        {"shape": [3, 6]},
        {"mean": [0.5]},
        {"classes": ["one"]},
        {"splits": {"train": {"count": 1}, "test": {}}},
    ],
)
def test_an_index_that_contradicts_itself_is_refused(prepared: Prepared, changes: dict[str, Any]) -> None:
    folder = prepared()
    edit(folder, **changes)
    with pytest.raises(UserError, match=r"index\.json"):
        DataIndex.load(folder)


def test_a_shard_name_cannot_lead_out_of_the_folder(prepared: Prepared) -> None:
    folder = prepared()
    path = folder / "index.json"
    path.write_text(path.read_text().replace("train-000000.tar", "../train-000000.tar"))
    with pytest.raises(UserError, match="not a plain file name"):
        DataIndex.load(folder)
