"""A folder of WebDataset tars from elsewhere: any image extension with ``.cls`` or ``.json`` labels.

A tar whose name (or folder) contains "test" or "val" belongs to the test split; without one, a fixed 20 % of each class
does. A ``classes.txt`` beside the tars, one name a line, names the classes; otherwise they are called by number.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.data import archives, skipped
from pipeline.data.shards import IMAGE_EXTENSIONS, LABEL_EXTENSIONS, parse_label, stream
from pipeline.data.skipped import Skipped
from pipeline.data.sources import images
from pipeline.data.sources.base import Progress, Sample, holdout_mask, silent
from pipeline.errors import UserError

_TEST_NAMES = ("test", "val")
_BLOCK = 512  # bytes; a tar is made of such blocks
_MAX_LABEL = 65535  # beyond it a "label" is an id or a mistake


class WebDatasetSource:
    """Foreign shards.

    Args:
        folder: holds the tars, at any depth.
        image_size: side in pixels that all images are brought to. Default: what ``sizes.choose`` makes of theirs.
        strict: refuse an unreadable shard or sample instead of leaving it out.
        progress: called with (what, done, total).

    Raises:
        UserError: no readable samples, labels outside the classes, or with ``strict`` anything unreadable.
    """

    def __init__(
        self,
        folder: Path,
        *,
        image_size: int | None = None,
        strict: bool = False,
        progress: Progress = silent,
    ) -> None:
        self._strict = strict
        self.skipped: list[Skipped] = []
        paths = tars(folder)
        self._is_test = {
            path: any(word in str(path.relative_to(folder)).lower() for word in _TEST_NAMES) for path in paths
        }
        self._labels: dict[Path, list[tuple[str, int]]] = {}  # (key, label) of the readable samples
        looks: Counter[images.Look] = Counter()
        for done, path in enumerate(paths):
            progress("reading labels", done, len(paths))
            try:
                self._labels[path] = self._scan(path, looks)
            except _BrokenShardError as cause:
                if strict:
                    raise UserError(
                        f"Shard {path} {cause}. Replace it, or leave out `strict_data` to skip it."
                    ) from None
                self.skipped.append(skipped.skip(path, "broken shard", f"it {cause}"))
        if not looks:
            reason = f" Left out: {skipped.by_reason(self.skipped)}." if self.skipped else ""
            raise UserError(
                f"{folder} holds no sample with an image ({', '.join(IMAGE_EXTENSIONS)}) and a label (.cls or .json) "
                f"that can be read.{reason}"
            )
        self.shape, self.resized_from = images.common_shape(looks, image_size)
        self.classes = self._class_names(folder)
        self._split()
        self.note = f"WebDataset shards of {folder}"

    def read(self, split: str) -> Iterator[Sample]:
        """The samples of ``train`` or ``test`` in the tars' order."""
        for path, chosen in self._chosen[split].items():
            for sample in stream([path]):
                label = chosen.get(sample["__key__"])
                if label is None:
                    continue
                try:
                    image = images.read(_image(sample), self.shape)
                except images.UNREADABLE as cause:
                    self._skip(path, sample["__key__"], "unreadable image", images.why(cause))
                    continue
                yield image, label

    def _scan(self, path: Path, looks: Counter[images.Look]) -> list[tuple[str, int]]:
        """Keys and labels of a tar's readable samples; their headers are added to ``looks``."""
        if not _has_end(path):
            raise _BrokenShardError("is truncated (a tar ends with a block of zeros)")
        labels, seen = [], Counter[images.Look]()
        try:
            for sample in stream([path]):
                try:
                    label = _label(sample)
                    look = _look(sample)
                except _UnusableError as cause:
                    self._skip(path, sample["__key__"], *cause.args)
                    continue
                seen[look] += 1
                labels.append((sample["__key__"], label))
        except archives.UnfitError as cause:
            raise _BrokenShardError(str(cause)) from None
        except archives.DAMAGED as cause:
            raise _BrokenShardError(f"cannot be read ({cause})") from None
        looks += seen
        return labels

    def _class_names(self, folder: Path) -> tuple[str, ...]:
        listed = folder / "classes.txt"
        names = (
            tuple(line.strip() for line in listed.read_text().splitlines() if line.strip()) if listed.is_file() else ()
        )
        limit = len(names) or _MAX_LABEL + 1
        for path, labels in self._labels.items():
            for key, label in labels:
                if not 0 <= label < limit:
                    told = f"the {limit} classes of classes.txt" if names else f"0 … {_MAX_LABEL}"
                    raise UserError(
                        f"Shard {path}: sample {key!r} has label {label}, outside {told}. Correct the labels."
                    )
        highest = max(label for labels in self._labels.values() for _, label in labels)
        if not names and highest == 0:
            raise UserError(f"All samples of {folder} have label 0; classification needs at least 2 classes.")
        return names or tuple(str(label) for label in range(highest + 1))

    def _split(self) -> None:
        """Sort the samples into ``_chosen``: split → tar → key → label."""
        self._chosen: dict[str, dict[Path, dict[str, int]]] = {"train": {}, "test": {}}
        for path, labels in self._labels.items():
            self._chosen["test" if self._is_test[path] else "train"][path] = dict(labels)
        if not self._chosen["test"]:
            everything = [(path, key, label) for path, labels in self._labels.items() for key, label in labels]
            held_out = holdout_mask([label for _, _, label in everything])
            self._chosen["train"] = {}
            for (path, key, label), out in zip(everything, held_out, strict=True):
                self._chosen["test" if out else "train"].setdefault(path, {})[key] = label
        self.counts = {split: sum(len(labels) for labels in tars.values()) for split, tars in self._chosen.items()}

    def _skip(self, path: Path, key: str, matter: str, detail: str = "") -> None:
        record = skipped.skip(path, matter, detail, sample=key)
        if self._strict:
            raise UserError(
                f"Shard {path}: sample {key!r} cannot be used, {record.reason}. Remove it, or leave out `strict_data` "
                "to skip it."
            ) from None
        self.skipped.append(record)


class _BrokenShardError(Exception):
    """A tar that cannot be read; the message is a clause."""


class _UnusableError(Exception):
    """A sample that cannot be used; the arguments are what is the matter and, where there is more to say, that."""


def tars(folder: Path) -> list[Path]:
    """The tars under a folder, sorted."""
    return sorted(path for path in folder.rglob("*.tar") if path.is_file())


def _has_end(path: Path) -> bool:
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - _BLOCK))
        return size > _BLOCK and not any(file.read())


def _image(sample: dict[str, Any]) -> bytes:
    for wanted in IMAGE_EXTENSIONS:
        for name, data in sample.items():
            if name.rpartition(".")[2] == wanted and isinstance(data, bytes):
                return data
    raise _UnusableError("no image")


def _look(sample: dict[str, Any]) -> images.Look:
    image = _image(sample)
    try:
        return images.look(image)
    except images.UNREADABLE as cause:
        raise _UnusableError("unreadable image", images.why(cause)) from None


def _label(sample: dict[str, Any]) -> int:
    for wanted in LABEL_EXTENSIONS:
        if wanted in sample:
            try:
                return parse_label(sample[wanted], wanted)
            except ValueError as cause:
                raise _UnusableError("bad label", f"{cause} (.{wanted})") from None
    raise _UnusableError("no label")
