"""Tiny ImageNet: the official zip, or its unpacked folder.

The labels of its test images were never published; like Aghagolzadeh & Ezoji 2025, who test on 10,000 labelled images,
this takes the official validation images as the test split. Labels are the positions of the WordNet ids in alphabetic
order.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from pipeline import rng
from pipeline.data.skipped import Skipped
from pipeline.data.sources import images
from pipeline.data.sources.base import Sample
from pipeline.errors import UserError

_ORDER_SEED = 0
_LARGEST_FILE = 16 << 20  # bytes; words.txt has 2.7 MB
_ROOT = "tiny-imagenet-200"


class TinyImageNetSource:
    """Tiny ImageNet from its zip or from the folder that holds ``wnids.txt``. Close it, or use it in a ``with``.

    Raises:
        UserError: parts are missing, or it is not a zip.
    """

    def __init__(self, path: Path, *, note: str) -> None:
        self._files: _Folder | _Zip = _Folder(path) if path.is_dir() else _Zip(path)
        names = self._files.names()
        ids = sorted(self._text("wnids.txt").split())
        labels = {wnid: label for label, wnid in enumerate(ids)}
        train = [
            (name, labels[name.split("/")[1]])
            for name in names
            if name.startswith("train/") and name.endswith(".JPEG") and name.split("/")[1] in labels
        ]
        known = set(names)
        test = []
        for line in self._text("val/val_annotations.txt").splitlines():
            file, wnid = line.split("\t")[:2]
            name = f"val/images/{file}"
            if wnid not in labels or name not in known:
                raise UserError(
                    f"{path}: the validation image {file} of class {wnid} is missing. Get the archive again."
                )
            test.append((name, labels[wnid]))
        if not train or not test:
            raise UserError(
                f"{path} holds {len(train)} training and {len(test)} validation images. Get the archive again."
            )
        # By class in the archive, mixed in the shards: a window of the epoch's shuffle then holds all classes.
        mixed = rng.generator(_ORDER_SEED, "tiny-imagenet-order").permutation(len(train))
        self._samples = {"train": [train[index] for index in mixed], "test": test}
        self.classes = self._class_names(ids)
        self.shape = (3, 64, 64)
        self.counts = {split: len(samples) for split, samples in self._samples.items()}
        self.skipped: list[Skipped] = []
        self.note = f"{note}; test: the official validation images"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the zip."""
        self._files.close()

    def read(self, split: str) -> Iterator[Sample]:
        """The samples of ``train`` (mixed) or ``test`` (in the order of the annotations)."""
        for name, label in self._samples[split]:
            try:
                # Some of the images are grey: all are made RGB.
                image = images.read(self._files.read(name), self.shape)
            except (*images.UNREADABLE, zipfile.BadZipFile, zlib.error) as cause:
                raise UserError(f"{name} of Tiny ImageNet cannot be read ({cause}). Get the archive again.") from None
            yield image, label

    def _text(self, name: str) -> str:
        try:
            return self._files.read(name).decode()
        except (zipfile.BadZipFile, zlib.error, UnicodeDecodeError) as cause:
            raise UserError(f"{name} of Tiny ImageNet cannot be read ({cause}). Get the archive again.") from None
        except (OSError, KeyError):
            raise UserError(f"{name} is missing: this is not Tiny ImageNet ({_ROOT}). Get the archive again.") from None

    def _class_names(self, ids: list[str]) -> tuple[str, ...]:
        """The first word of each id; with the id where two classes share it."""
        words = dict(line.split("\t", 1) for line in self._text("words.txt").splitlines() if "\t" in line)
        first = [words.get(wnid, wnid).split(",")[0].strip() for wnid in ids]
        return tuple(
            f"{name} ({wnid})" if first.count(name) > 1 else name for name, wnid in zip(first, ids, strict=True)
        )


class _Folder:
    def __init__(self, path: Path) -> None:
        self._root = path / _ROOT if (path / _ROOT).is_dir() else path

    def names(self) -> list[str]:
        return sorted(str(file.relative_to(self._root)) for file in self._root.rglob("*.JPEG"))

    def read(self, name: str) -> bytes:
        return (self._root / name).read_bytes()

    def close(self) -> None:
        pass


class _Zip:
    def __init__(self, path: Path) -> None:
        try:
            self._zip = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, OSError) as cause:
            raise UserError(f"{path} is not a whole zip ({cause}). Get it again.") from None

    def names(self) -> list[str]:
        start = f"{_ROOT}/"
        return sorted(name[len(start) :] for name in self._zip.namelist() if name.startswith(start))

    def read(self, name: str) -> bytes:
        size = self._zip.getinfo(f"{_ROOT}/{name}").file_size  # zipfile unpacks no more than this
        if size > _LARGEST_FILE:
            raise zipfile.BadZipFile(f"it claims {size:,} bytes")
        return self._zip.read(f"{_ROOT}/{name}")

    def close(self) -> None:
        self._zip.close()
