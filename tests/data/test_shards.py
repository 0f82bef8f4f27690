"""Shards: webdataset's format, and the same samples whether streamed or read by offset."""

from __future__ import annotations

import io
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.data import shards
from pipeline.data.shards import ShardError
from pipeline.errors import UserError

Prepared = Callable[..., Path]


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def png(height: int = 4, width: int = 4) -> bytes:
    return shards.encode_png(np.zeros((height, width, 3), dtype=np.uint8))


def test_reading_by_offset_gives_what_webdataset_streams(prepared: Prepared) -> None:
    path = prepared() / "train-000001.tar"
    table = shards.scan(path)
    images = np.empty((10, 3, 6, 5), dtype=np.uint8)
    shards.read_images(table, np.arange(10), (3, 6, 5), images)
    streamed = list(shards.stream([path]))
    assert [sample["__key__"] for sample in streamed] == list(table.keys)
    assert [int(sample["cls"]) for sample in streamed] == table.labels.tolist()
    for image, sample in zip(images, streamed, strict=True):
        assert np.array_equal(image, shards.decode(sample["png"], (3, 6, 5)))


def test_keys_count_through_the_split(prepared: Prepared) -> None:
    assert shards.scan(prepared() / "train-000001.tar").keys[2] == "train-00000012"


@pytest.mark.parametrize("name", ["a#b", "what?", "x;y", "50%25", "{0..3}", "a b"])
def test_a_shard_is_streamed_whatever_its_folder_is_called(prepared: Prepared, tmp_path: Path, name: str) -> None:
    """Symptom: webdataset took the path for a URL, and what stands behind # for a fragment of it."""
    (tmp_path / name).mkdir()
    path = shutil.copy(prepared() / "train-000000.tar", tmp_path / name)
    assert len(list(shards.stream([Path(path)]))) == 10


def test_a_member_of_negative_size_is_refused(tmp_path: Path) -> None:
    """Symptom: the reader went back to the same header, again and again."""
    with tarfile.open(tmp_path / "bad.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("0.png"))
    data = bytearray((tmp_path / "bad.tar").read_bytes())
    data[124:136] = b"-0000002000\0"
    data[148:156] = b" " * 8
    data[148:156] = f"{sum(data[:512]):06o}\0 ".encode()
    (tmp_path / "bad.tar").write_bytes(data)
    with pytest.raises(ShardError, match="negative size"):
        shards.scan(tmp_path / "bad.tar")


@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_survive_png(channels: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (7, 9, channels), dtype=np.uint8)
    assert np.array_equal(shards.decode(shards.encode_png(image), (channels, 7, 9)), image.transpose(2, 0, 1))


def test_jpeg_and_grey_are_decoded_to_the_channels_asked_for() -> None:
    buffer = io.BytesIO()
    Image.new("L", (8, 6), 200).save(buffer, format="JPEG")
    assert shards.decode(buffer.getvalue(), (3, 6, 8)).shape == (3, 6, 8)
    assert shards.decode(buffer.getvalue(), (1, 6, 8)).shape == (1, 6, 8)


@pytest.mark.parametrize(
    ("data", "extension", "label"),
    [
        (b"3", "cls", 3),
        (b" 7\n", "cls", 7),
        (b"4", "json", 4),
        (b'{"label": 5}', "json", 5),
        (b'{"cls": 6}', "json", 6),
    ],
)
def test_labels_are_read_from_cls_and_json(data: bytes, extension: str, label: int) -> None:
    assert shards.parse_label(data, extension) == label


@pytest.mark.parametrize(
    ("data", "extension"), [(b"cat", "cls"), (b'"cat"', "json"), (b"{}", "json"), (b"true", "json")]
)
def test_a_label_that_is_no_whole_number_is_refused(data: bytes, extension: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        shards.parse_label(data, extension)


@pytest.mark.parametrize("keep", [0, 100, 512, 700, 3000])
def test_a_cut_shard_is_seen_without_any_hash(prepared: Prepared, keep: int) -> None:
    path = prepared() / "train-000000.tar"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ShardError, match=r"truncated|empty"):
        shards.scan(path)


def test_a_file_that_is_no_tar_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "noise.tar"
    path.write_bytes(b"no tar at all" * 200)
    with pytest.raises(ShardError, match="corrupt"):
        shards.scan(path)


@pytest.mark.parametrize("members", [{"a.png": png()}, {"a.cls": b"0"}, {"a.png": png(), "a.cls": b"cat"}])
def test_a_sample_without_image_or_label_is_seen(tmp_path: Path, members: dict[str, bytes]) -> None:
    with pytest.raises(ShardError, match="sample 'a'"):
        shards.scan(write_tar(tmp_path / "a.tar", members))


@pytest.mark.parametrize("image", [b"no image", png()[:40], png(5, 4)])
def test_an_unusable_image_is_named(tmp_path: Path, image: bytes) -> None:
    table = shards.scan(write_tar(tmp_path / "a.tar", {"a.png": image, "a.cls": b"0"}))
    with pytest.raises(UserError, match=r"a\.tar.*'a'"):
        shards.read_images(table, np.array([0]), (3, 4, 4), np.empty((1, 3, 4, 4), dtype=np.uint8))
