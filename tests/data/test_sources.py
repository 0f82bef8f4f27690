"""Readers of the published formats and of people's own folders."""

from __future__ import annotations

import io
import os
import pickle
import tarfile
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from pipeline.data import shards
from pipeline.data.index import UNLABELLED
from pipeline.data.registry import DATASETS
from pipeline.data.sources import cifar, stl10, svhn
from pipeline.data.sources.base import Source, holdout_mask
from pipeline.data.sources.cifar import CifarSource
from pipeline.data.sources.digits import DigitsSource
from pipeline.data.sources.folder import FolderSource, holds_images
from pipeline.data.sources.idx import NAMES, IdxSource
from pipeline.data.sources.stl10 import Stl10Source
from pipeline.data.sources.svhn import SvhnSource
from pipeline.data.sources.tiny_imagenet import TinyImageNetSource
from pipeline.data.sources.webdataset_folder import WebDatasetSource
from pipeline.errors import UserError

from . import archives

CLASSES = tuple("0123456789")


def labels_of(source: Source, split: str) -> list[int]:
    return [label for _, label in source.read(split)]


def write_image(path: Path, colour: int | tuple[int, int, int] = 0, size: tuple[int, int] = (6, 6)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L" if isinstance(colour, int) else "RGB", size, colour).save(path)


def write_shard(path: Path, samples: dict[str, dict[str, bytes]]) -> None:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for key, parts in samples.items():
            for extension, data in parts.items():
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))


def picture(value: int = 0, size: int = 6, kind: str = "PNG") -> bytes:
    return archives.image_bytes(np.full((size, size, 3), value, dtype=np.uint8), kind)


# The holdout


def test_a_holdout_is_a_fifth_of_each_class_and_always_the_same() -> None:
    labels = np.arange(1000) % 10
    mask = holdout_mask(labels)
    assert np.bincount(labels[mask]).tolist() == [20] * 10
    assert np.array_equal(mask, holdout_mask(labels))


def test_a_holdout_leaves_small_classes_on_both_sides() -> None:
    assert holdout_mask([0, 0, 1]).tolist().count(True) == 1


# Digits


def test_digits_have_all_their_images_once() -> None:
    source = DigitsSource()
    assert source.counts == {"train": 1438, "test": 359}
    assert Counter(labels_of(source, "test")).keys() == set(range(10))


def test_digits_pixels_span_the_bytes() -> None:
    values = np.unique(np.stack([image for image, _ in DigitsSource().read("train")]))
    assert values.tolist() == [round(value * 255 / 16) for value in range(17)]


# IDX


@pytest.mark.parametrize("gz", [True, False])
def test_idx_gives_images_and_labels_in_order(tmp_path: Path, gz: bool) -> None:
    splits = archives.write_idx(tmp_path, gz=gz)
    files = {name: tmp_path / (f"{name}.gz" if gz else name) for name in NAMES}
    source = IdxSource(files, classes=CLASSES, note="")
    for split, (images, labels) in splits.items():
        read = list(source.read(split))
        assert np.array_equal(np.stack([image[:, :, 0] for image, _ in read]), images)
        assert [label for _, label in read] == labels.tolist()


@pytest.mark.parametrize("change", [lambda data: data[:-1], lambda data: b"\1" + data[1:], lambda data: data[:3]])
def test_a_damaged_idx_file_is_refused_by_name(tmp_path: Path, change: object) -> None:
    archives.write_idx(tmp_path, gz=False)
    path = tmp_path / "t10k-images-idx3-ubyte"
    path.write_bytes(change(path.read_bytes()))  # type: ignore[operator]
    with pytest.raises(UserError, match="t10k-images-idx3-ubyte"):
        IdxSource({name: tmp_path / name for name in NAMES}, classes=CLASSES, note="")


# CIFAR


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
@pytest.mark.parametrize("binary", [True, False])
def test_cifar_archives_give_images_and_fine_labels_in_order(tmp_path: Path, name: str, binary: bool) -> None:
    files, splits = archives.cifar_members(name, binary=binary)
    path = archives.write_tar_gz(tmp_path / "cifar.tar.gz", "cifar-batches", {**files, "readme.html": b"hello"})
    source = CifarSource(name, cifar.read_archive(path, name), classes=(), note="")
    for split, (images, labels) in splits.items():
        read = list(source.read(split))
        assert np.array_equal(np.stack([image for image, _ in read]).transpose(0, 3, 1, 2), images)
        assert [label for _, label in read] == labels.tolist()


def test_a_cifar_archive_with_a_missing_batch_is_refused() -> None:
    files, _ = archives.cifar_members("cifar10", binary=True)
    del files["data_batch_3.bin"]
    with pytest.raises(UserError, match="This is not cifar10"):
        CifarSource("cifar10", files, classes=(), note="")


def test_a_cut_archive_is_refused(tmp_path: Path) -> None:
    files, _ = archives.cifar_members("cifar10", binary=True)
    path = archives.write_tar_gz(tmp_path / "cifar.tar.gz", "cifar", files)
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(UserError, match="not a whole tar archive"):
        cifar.read_archive(path, "cifar10")


class _Evil:
    def __reduce__(self) -> tuple[object, ...]:
        return os.system, ("touch evil",)


def test_a_pickle_that_would_run_code_is_refused_unrun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    files, _ = archives.cifar_members("cifar10", binary=False)
    files["test_batch"] = pickle.dumps({"data": _Evil(), "labels": [0]}, protocol=2)
    with pytest.raises(UserError, match=r"asks for posix\.system"):
        CifarSource("cifar10", files, classes=(), note="")
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize("data", [b"", b"garbage", pickle.dumps([1]), pickle.dumps({"labels": [1]})])
def test_a_damaged_pickle_is_refused_by_name(data: bytes) -> None:
    files, _ = archives.cifar_members("cifar10", binary=False)
    files["test_batch"] = data
    with pytest.raises(UserError, match="test_batch"):
        CifarSource("cifar10", files, classes=(), note="")


def test_the_official_binaries_are_rebuilt_from_rows_of_pngs(tmp_path: Path) -> None:
    files = archives.write_png_package(tmp_path / "package")
    pngs = {name.removesuffix(".bin"): tmp_path / "package" / name.replace(".bin", ".png") for name in files}
    labels = (tmp_path / "package" / f"{split}_lables.json" for split in ("train", "test"))
    assert dict(cifar.rebuild_binaries(pngs, *labels)) == files


# SVHN


def open_svhn(folder: Path) -> SvhnSource:
    return SvhnSource({name: folder / name for name in svhn.FILES.values()}, classes=CLASSES, note="")


def test_svhn_gives_images_and_digits_in_order(tmp_path: Path) -> None:
    splits = archives.write_svhn(tmp_path)
    source = open_svhn(tmp_path)
    assert source.counts == {"train": 20, "test": 20}
    for split, (images, digits) in splits.items():
        read = list(source.read(split))
        assert np.array_equal(np.stack([image for image, _ in read]), images)
        assert [label for _, label in read] == digits.tolist()


@pytest.mark.parametrize("kind", [np.uint8, np.float64])
def test_svhn_label_10_is_the_digit_0(tmp_path: Path, kind: type[np.generic]) -> None:
    content = {"X": np.zeros((32, 32, 3, 3), dtype=np.uint8), "y": np.array([[10], [1], [9]], dtype=kind)}
    for name in svhn.FILES.values():
        savemat(tmp_path / name, content)
    source = open_svhn(tmp_path)
    assert [source.classes[label] for label in labels_of(source, "train")] == ["0", "1", "9"]


@pytest.mark.parametrize(
    "change",
    [
        lambda data: b"",
        lambda data: data[:100],
        lambda data: data[:-1],
        lambda data: data[: len(data) // 2],
        lambda data: data[:5000] + bytes([data[5000] ^ 1]) + data[5001:],
        lambda data: b"\x89HDF\r\n\x1a\n" + data[8:124] + b"\x00\x02IM" + data[128:],  # MATLAB 7.3
        lambda data: b"<html>no such page</html>" * 20,
    ],
)
def test_a_damaged_svhn_file_is_refused_by_name(tmp_path: Path, change: object) -> None:
    archives.write_svhn(tmp_path)
    path = tmp_path / "test_32x32.mat"
    path.write_bytes(change(path.read_bytes()))  # type: ignore[operator]
    with pytest.raises(UserError, match=r"test_32x32\.mat is not a whole MATLAB 5 file"):
        open_svhn(tmp_path)


def test_an_svhn_file_that_unpacks_to_too_much_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archives.write_svhn(tmp_path)
    monkeypatch.setattr(svhn, "LARGEST_MEMBER", 1000)
    monkeypatch.setattr("scipy.io.loadmat", lambda *_, **__: pytest.fail("it was unpacked"))
    with pytest.raises(UserError, match=r"X has 61,440 values, at most 1,000 are read"):
        open_svhn(tmp_path)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"digitStruct": np.zeros((1, 2))}, "lacks the variable X or y"),
        ({"X": np.zeros((32, 32, 3, 2), dtype=np.uint8), "y": np.ones((3, 1))}, r"has X \(32, 32, 3, 2\) of uint8"),
        ({"X": np.zeros((32, 32, 3, 2)), "y": np.ones((2, 1))}, "of float64"),
        ({"X": np.zeros((32, 32, 3, 2), dtype=np.uint8), "y": np.array([[0], [1]])}, "labels other than 1 … 10"),
    ],
)
def test_a_matlab_file_of_something_else_is_no_svhn(tmp_path: Path, content: dict[str, object], says: str) -> None:
    archives.write_svhn(tmp_path)
    savemat(tmp_path / "train_32x32.mat", content)
    with pytest.raises(UserError, match=rf"train_32x32\.mat .*{says}"):
        open_svhn(tmp_path)


# STL-10


def test_stl10_archives_give_images_and_labels_in_order(tmp_path: Path) -> None:
    files, splits = archives.stl10_members()
    path = archives.write_tar_gz(tmp_path / "stl10.tar.gz", "stl10_binary", files)
    source = Stl10Source(stl10.read_archive(path), classes=(), note="")
    for split, (images, labels) in splits.items():
        read = list(source.read(split))
        assert np.array_equal(np.stack([image for image, _ in read]), images)
        assert [label for _, label in read] == labels.tolist()


def test_stl10_stores_the_columns_of_an_image_one_after_another() -> None:
    plane = bytes(row for _ in range(96) for row in range(96))  # every column counts its rows from the top
    other = bytes(column for column in range(96) for _ in range(96))
    files = {name: plane + other + bytes(96 * 96) if name.endswith("_X.bin") else bytes([1]) for name in stl10.NAMES}
    image, _ = next(Stl10Source(files, classes=(), note="").read("train"))
    assert image.shape == (96, 96, 3)
    assert image[7, 50].tolist() == [7, 50, 0]  # row 7 from the top, column 50 from the left
    assert np.array_equal(image[:, 0, 0], np.arange(96))
    assert np.array_equal(image[0, :, 1], np.arange(96))


def test_stl10_classes_are_named_as_in_the_archive() -> None:
    files, _ = archives.stl10_members(count=1)
    assert DATASETS["stl10"].classes == tuple(files["class_names.txt"].decode().split())


def test_the_unlabelled_images_of_stl10_are_not_unpacked(tmp_path: Path) -> None:
    files, _ = archives.stl10_members()
    path = archives.write_tar_gz(tmp_path / "stl10.tar.gz", "stl10_binary", files)
    # Cut within them, which whoever reads on would notice.
    path.write_bytes(path.read_bytes()[:-300_000])
    assert stl10.read_archive(path).keys() == set(stl10.NAMES)


def test_a_cut_stl10_archive_is_refused(tmp_path: Path) -> None:
    files, _ = archives.stl10_members()
    path = archives.write_tar_gz(tmp_path / "stl10.tar.gz", "stl10_binary", files)
    path.write_bytes(path.read_bytes()[:700_000])
    with pytest.raises(UserError, match=r"stl10\.tar\.gz is not a whole tar archive"):
        stl10.read_archive(path)


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("train_X.bin", lambda data: data[:-1], "train_X.bin has 552959 bytes, not a multiple"),
        ("train_X.bin", lambda data: data[:-27648], "19 train images but 20 labels"),
        ("test_X.bin", lambda data: b"", "test_X.bin has 0 bytes"),
        ("test_y.bin", lambda data: data[:-1], "20 test images but 19 labels"),
        ("train_y.bin", lambda data: b"\0" + data[1:], "train_y.bin has labels 0 … 10, stl10 has 1 … 10"),
        ("test_y.bin", lambda data: b"\x0b" + data[1:], "test_y.bin has labels 1 … 11"),
    ],
)
def test_damaged_stl10_files_are_refused_by_name(name: str, change: object, says: str) -> None:
    files, _ = archives.stl10_members()
    files[name] = change(files[name])  # type: ignore[operator]
    with pytest.raises(UserError, match=says):
        Stl10Source(files, classes=(), note="")


def test_an_stl10_archive_with_a_missing_file_is_refused() -> None:
    files, _ = archives.stl10_members()
    del files["test_y.bin"]
    with pytest.raises(UserError, match=r"This is not stl10: test_y\.bin missing"):
        Stl10Source(files, classes=(), note="")


# Tiny ImageNet


@pytest.mark.parametrize("packed", [True, False])
def test_tiny_imagenet_tests_on_its_validation_images(tmp_path: Path, packed: bool) -> None:
    path = archives.write_tiny_imagenet(tmp_path / "tiny-imagenet-200.zip")
    if not packed:
        with zipfile.ZipFile(path) as archive:
            archive.extractall(tmp_path / "unpacked")
        path = tmp_path / "unpacked"
    with TinyImageNetSource(path, note="made up") as source:
        assert source.classes == ("name 0", "name 1", "name 2")
        assert source.counts == {"train": 12, "test": 3}
        assert labels_of(source, "test") == [0, 1, 2]
        for image, label in source.read("train"):
            assert image.shape == (64, 64, 3)
            assert abs(int(image.mean()) - 50 * label) < 3
        assert "validation images" in source.note


def test_something_else_is_no_tiny_imagenet(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"wnids\.txt is missing"):
        TinyImageNetSource(tmp_path, note="")


# Folders of images


def test_a_folder_of_classes_gets_a_test_split(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        for number in range(10):
            write_image(tmp_path / name / f"{number}.png", number)
    source = FolderSource(tmp_path)
    assert source.classes == ("cat", "dog")
    assert source.counts == {"train": 16, "test": 4}
    assert source.shape == (1, 6, 6)


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    """As one of CIFAR-100's is; it was once taken for the training half of the folder."""
    for name in ("bus", "train"):
        for number in range(5):
            write_image(tmp_path / name / f"{number}.png")
    source = FolderSource(tmp_path)
    assert source.classes == ("bus", "train")
    assert holds_images(tmp_path)


@pytest.mark.parametrize("test_name", ["test", "val"])
def test_train_and_test_folders_are_used_as_they_are(tmp_path: Path, test_name: str) -> None:
    for split, count in (("train", 3), (test_name, 2)):
        for name in ("cat", "dog"):
            for number in range(count):
                write_image(tmp_path / split / name / f"{number}.jpg", (200, 0, 0))
    source = FolderSource(tmp_path)
    assert source.counts == {"train": 6, "test": 4}
    assert labels_of(source, "test") == [0, 0, 1, 1]
    assert source.shape == (3, 6, 6)


def test_images_of_several_sizes_are_brought_to_a_square(tmp_path: Path) -> None:
    for number in range(4):
        write_image(tmp_path / "cat" / f"{number}.png", size=(18, 13))
        write_image(tmp_path / "dog" / f"{number}.png", size=(18, 13) if number else (30, 40))
    source = FolderSource(tmp_path)
    assert source.shape == (1, 12, 12)
    assert source.resized_from == "18×13 (7 images), 30×40 (1 image)"
    assert {image.shape for split in ("train", "test") for image, _ in source.read(split)} == {(12, 12, 1)}


def test_images_of_foreign_shards_are_brought_to_a_square(tmp_path: Path) -> None:
    samples = {f"{n}": {"png": picture(n, size=100 if n % 3 else 80), "cls": str(n % 2).encode()} for n in range(10)}
    write_shard(tmp_path / "shard-0.tar", samples)
    source = WebDatasetSource(tmp_path)
    assert source.shape == (3, 64, 64)
    assert source.resized_from == "100×100 (6 images), 80×80 (4 images)"


def test_image_size_makes_centred_squares(tmp_path: Path) -> None:
    wide = np.zeros((10, 30), dtype=np.uint8)
    wide[:, 10:20] = 255
    for name in ("cat", "dog"):
        for number in range(2):
            (tmp_path / name).mkdir(exist_ok=True)
            Image.fromarray(wide).save(tmp_path / name / f"{number}.png")
    source = FolderSource(tmp_path, image_size=5)
    image, _ = next(source.read("train"))
    assert image.shape == (5, 5, 1)
    assert image.min() > 200


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path: Path) -> None:
    for name, value in (("cat", 0x4000), ("dog", 0x8000)):
        (tmp_path / name).mkdir()
        for number in range(2):
            Image.fromarray(np.full((4, 4), value, dtype=np.uint16)).save(tmp_path / name / f"{number}.png")
    assert {int(image[0, 0, 0]) for image, _ in FolderSource(tmp_path).read("train")} == {0x40, 0x80}


def test_unreadable_images_are_counted_or_refused(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        for number in range(5):
            write_image(tmp_path / name / f"{number}.png", number)
    (tmp_path / "cat" / "9.png").write_bytes(b"no image")
    cut = tmp_path / "dog" / "9.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 60), dtype=np.uint8)).save(cut)
    cut.write_bytes(cut.read_bytes()[:1000])
    source = FolderSource(tmp_path)
    assert len(labels_of(source, "train")) + len(labels_of(source, "test")) == 10
    assert [(one.short, one.reason) for one in source.skipped] == [
        ("cat/9.png", "unreadable image: in no format of images that Pillow knows"),
        ("dog/9.png", "unreadable image: image file is truncated"),
    ]
    with pytest.raises(UserError, match=r"cat/9\.png is not a readable image: .*leave out `strict_data` to skip it"):
        FolderSource(tmp_path, strict=True)


def test_a_pipe_among_images_is_left_out_and_not_waited_for(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        for number in range(5):
            write_image(tmp_path / name / f"{number}.png", number)
    os.mkfifo(tmp_path / "cat" / "9.png")
    source = FolderSource(tmp_path)
    assert [(one.short, one.reason) for one in source.skipped] == [("cat/9.png", "unreadable image: no regular file")]


def test_a_test_class_that_training_lacks_is_refused(tmp_path: Path) -> None:
    for name in ("train/cat", "train/dog", "test/cow"):
        write_image(tmp_path / name / "1.png")
    with pytest.raises(UserError, match="classes that the training folder does not: cow"):
        FolderSource(tmp_path)


def test_one_class_is_refused(tmp_path: Path) -> None:
    write_image(tmp_path / "cat" / "1.png")
    with pytest.raises(UserError, match="at least 2"):
        FolderSource(tmp_path)


def test_images_right_in_a_folder_are_without_classes_unless_there_are_class_folders(tmp_path: Path) -> None:
    for number in range(10):
        write_image(tmp_path / f"{number}.png", number)
    (tmp_path / "empty").mkdir()
    loose = FolderSource(tmp_path)
    assert (loose.classes, loose.counts) == (UNLABELLED, {"train": 8, "test": 2})
    assert {label for split in ("train", "test") for _, label in loose.read(split)} == {0}
    for name in ("cat", "dog"):
        write_image(tmp_path / name / "1.png")
    assert FolderSource(tmp_path).classes == ("cat", "dog")


# Folders of WebDataset shards


@pytest.mark.parametrize("kind", ["png", "jpg", "webp"])
@pytest.mark.parametrize("label", ["cls", "json"])
def test_foreign_shards_are_read_whatever_their_extensions(tmp_path: Path, kind: str, label: str) -> None:
    encoder = {"png": "PNG", "jpg": "JPEG", "webp": "WEBP"}[kind]
    for split, count in (("train", 6), ("val", 4)):
        samples = {
            f"{split}/{number}": {
                kind: picture(60 * (number % 3), kind=encoder),
                label: str(number % 3).encode() if label == "cls" else b'{"label": %d}' % (number % 3),
            }
            for number in range(count)
        }
        write_shard(tmp_path / f"{split}-0.tar", samples)
    source = WebDatasetSource(tmp_path)
    assert source.counts == {"train": 6, "test": 4}
    assert source.classes == ("0", "1", "2")
    assert labels_of(source, "test") == [0, 1, 2, 0]
    for image, value in source.read("train"):
        assert abs(int(image.mean()) - 60 * value) < 3


def numbered(count: int) -> dict[str, dict[str, bytes]]:
    return {f"{number}": {"png": picture(number), "cls": str(number % 2).encode()} for number in range(count)}


def test_foreign_shards_without_a_test_tar_get_a_test_split(tmp_path: Path) -> None:
    write_shard(tmp_path / "shard-0.tar", numbered(20))
    assert WebDatasetSource(tmp_path).counts == {"train": 16, "test": 4}


def test_classes_txt_names_the_classes_and_bounds_the_labels(tmp_path: Path) -> None:
    write_shard(tmp_path / "shard-0.tar", numbered(20))
    (tmp_path / "classes.txt").write_text("cat\ndog\ncow\n")
    assert WebDatasetSource(tmp_path).classes == ("cat", "dog", "cow")
    (tmp_path / "classes.txt").write_text("cat\n")
    with pytest.raises(UserError, match=r"shard-0\.tar: sample '1' has label 1"):
        WebDatasetSource(tmp_path)


def test_a_negative_label_is_refused(tmp_path: Path) -> None:
    write_shard(tmp_path / "shard-0.tar", {"a": {"png": picture(), "cls": b"-1"}})
    with pytest.raises(UserError, match="sample 'a' has label -1"):
        WebDatasetSource(tmp_path)


@pytest.mark.parametrize("keep", [300, 5000, -1024])
def test_a_truncated_foreign_shard_is_left_out_or_refused(tmp_path: Path, keep: int) -> None:
    write_shard(tmp_path / "shard-0.tar", numbered(20))
    broken = tmp_path / "shard-1.tar"
    write_shard(broken, numbered(20))
    # Cut before the padding of zeros that Python puts after the end mark.
    broken.write_bytes(broken.read_bytes()[: keep if keep > 0 else 20 * 4 * 512 - 512])
    source = WebDatasetSource(tmp_path)
    assert sum(source.counts.values()) == 20
    (shard,) = source.skipped
    assert shard.file == str(broken)
    assert shard.reason.startswith("broken shard: it is truncated")
    with pytest.raises(UserError, match=r"shard-1\.tar is truncated.*leave out `strict_data` to skip it"):
        WebDatasetSource(tmp_path, strict=True)


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ({"png": picture()}, "no label"),
        ({"cls": b"1"}, "no image"),
        ({"png": picture(), "cls": b"cat"}, "bad label: 'cat' is no whole number (.cls)"),
        (
            {"png": picture(), "json": b"{}"},
            "bad label: no whole number under any of label, cls, class, target (.json)",
        ),
        ({"png": b"no image", "cls": b"1"}, "unreadable image: in no format of images that Pillow knows"),
        ({"png": picture(size=40)[:-30], "cls": b"1"}, "unreadable image: image file is truncated"),
    ],
)
def test_a_sample_that_cannot_be_used_is_left_out_for_what_is_the_matter_with_it(
    tmp_path: Path, parts: dict[str, bytes], reason: str
) -> None:
    write_shard(tmp_path / "shard-0.tar", {**numbered(20), "odd": parts})
    source = WebDatasetSource(tmp_path)
    assert sum(len(labels_of(source, split)) for split in ("train", "test")) == 20
    assert [(one.file, one.reason) for one in source.skipped] == [(f"{tmp_path}/shard-0.tar: odd", reason)]


def test_a_sample_that_cannot_be_used_is_refused_when_strict(tmp_path: Path) -> None:
    write_shard(tmp_path / "shard-0.tar", {**numbered(20), "odd": {"png": picture()}})
    with pytest.raises(UserError, match=r"sample 'odd' cannot be used, no label.*leave out `strict_data` to skip it"):
        WebDatasetSource(tmp_path, strict=True)


def test_classes_without_images_are_no_classes_and_are_named(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        for number in range(5):
            write_image(tmp_path / name / f"{number}.png", number)
    (tmp_path / "cow").mkdir()
    (tmp_path / "bee").mkdir()
    (tmp_path / "bee" / "1.png").write_bytes(b"no image")
    source = FolderSource(tmp_path)
    assert source.classes == ("cat", "dog")
    assert [(one.short.rpartition("/")[2], one.matter) for one in source.skipped] == [
        ("1.png", "unreadable image"),
        ("bee", "class without readable images"),
        ("cow", "empty class"),
    ]


def test_the_written_shards_read_back_as_foreign_ones(tmp_path: Path) -> None:
    writer = shards.SplitWriter(tmp_path, "train")
    for number in range(10):
        writer.write(np.full((4, 4, 3), number, dtype=np.uint8), number % 2)
    writer.close()
    assert sum(WebDatasetSource(tmp_path).counts.values()) == 10
