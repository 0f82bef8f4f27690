"""A folder of images by class: ROOT/CLASS/*.png, or ROOT/train/CLASS/*.png with ROOT/test/CLASS/*.png; or without.

Classes are the folders' names in alphabetic order. Images right in ROOT, with no folders of others beside them, are
without classes, for methods that need none. Without a test (or val) folder a fixed 20 % of each class is the
test split. Images of several sizes are brought to one: see ``images.read``.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from pipeline import rng
from pipeline.data import skipped
from pipeline.data.index import UNLABELLED
from pipeline.data.shards import IMAGE_EXTENSIONS
from pipeline.data.skipped import Skipped
from pipeline.data.sources import images
from pipeline.data.sources.base import Progress, Sample, holdout_mask, silent
from pipeline.errors import UserError

_TEST_FOLDERS = ("test", "val", "valid", "validation")
_ORDER_SEED = 0

Labelled = list[tuple[Path, int]]


class FolderSource:
    """Images by class.

    Args:
        folder: the root.
        image_size: side in pixels that all images are brought to. Default: what ``sizes.choose`` makes of theirs.
        strict: refuse an unreadable image instead of leaving it out. Classes without images are left out anyway.
        progress: called with (what, done, total).

    Raises:
        UserError: no images, one class only, test classes that are not in train, or with ``strict`` an unreadable
            image.
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
        split_roots = _is_split(folder)
        root = folder / "train" if split_roots else folder
        looks: Counter[images.Look] = Counter()
        by_class = self._readable(root, looks, progress)
        self.classes = tuple(by_class)
        test_root = next((folder / name for name in _TEST_FOLDERS if (folder / name).is_dir()), None)
        if len(self.classes) < 2 and self.classes != UNLABELLED:
            named = f" ({self.classes[0]})" if self.classes else ""
            left_out = f" Left out: {skipped.by_reason(self.skipped)}." if self.skipped else ""
            raise UserError(
                f"{folder} holds readable images of {len(self.classes)} classes{named}; classification needs at least "
                f"2.{left_out} Give a folder with one sub-folder of images for each class."
            )
        train = [(path, label) for label, paths in enumerate(by_class.values()) for path in paths]
        if split_roots and test_root is not None:
            test = self._test_files(test_root, looks, progress)
            self.note = f"folder of images {folder}, test from {test_root.name}/"
        else:
            held_out = holdout_mask([label for _, label in train])
            test = [sample for sample, out in zip(train, held_out, strict=True) if out]
            train = [sample for sample, out in zip(train, held_out, strict=True) if not out]
            self.note = f"folder of images {folder}, test: a fixed 20 % of each class"
        self.shape, self.resized_from = images.common_shape(looks, image_size)
        # By class on disk, mixed in the shards: a window of the epoch's shuffle then holds all classes.
        mixed = rng.generator(_ORDER_SEED, "folder-order").permutation(len(train))
        self._files = {"train": [train[index] for index in mixed], "test": test}
        self.counts = {split: len(files) for split, files in self._files.items()}

    def read(self, split: str) -> Iterator[Sample]:
        """The samples of ``train`` or ``test``."""
        for path, label in self._files[split]:
            try:
                image = images.read(path, self.shape)
            except images.UNREADABLE as cause:
                self._skip(path, cause)
                continue
            yield image, label

    def _readable(self, root: Path, looks: Counter[images.Look], progress: Progress) -> dict[str, list[Path]]:
        """The files of each class whose headers can be read; what they tell is added to ``looks``."""
        found = {child.name: _image_files(child) for child in _class_folders(root)}
        if not any(found.values()) and (loose := _loose_images(root)):
            found = {UNLABELLED[0]: loose}
        total = sum(len(paths) for paths in found.values())
        done = 0
        readable: dict[str, list[Path]] = {}
        for name, paths in found.items():
            kept = []
            for path in paths:
                if done % 1000 == 0:
                    progress("looking at images", done, total)
                done += 1
                try:
                    looks[images.look(path)] += 1
                except images.UNREADABLE as cause:
                    self._skip(path, cause)
                    continue
                kept.append(path)
            if kept:
                readable[name] = kept
            else:
                self.skipped.append(
                    skipped.skip(root / name, "class without readable images" if paths else "empty class")
                )
        return readable

    def _test_files(self, root: Path, looks: Counter[images.Look], progress: Progress) -> Labelled:
        by_class = self._readable(root, looks, progress)
        unknown = sorted(set(by_class) - set(self.classes))
        if unknown:
            raise UserError(
                f"{root} holds classes that the training folder does not: {', '.join(unknown)}. Classes of training: "
                f"{', '.join(self.classes)}. Name the folders alike."
            )
        labels = {name: label for label, name in enumerate(self.classes)}
        return [(path, labels[name]) for name, paths in by_class.items() for path in paths]

    def _skip(self, path: Path, cause: BaseException) -> None:
        if self._strict:
            raise UserError(
                f"{path} is not a readable image: {images.why(cause)}. Remove it, or leave out `strict_data` to skip "
                "it."
            ) from None
        self.skipped.append(skipped.skip(path, "unreadable image", images.why(cause)))


def holds_images(folder: Path) -> bool:
    """Whether there is an image two or three levels down, where classes keep theirs, or right in the folder."""
    root = folder / "train" if _is_split(folder) else folder
    return any(_image_files(child) for child in _class_folders(root)) or bool(_loose_images(folder))


def _is_split(folder: Path) -> bool:
    """Whether ``train`` holds classes. One that holds images only is a class itself, as CIFAR-100's trains are."""
    train = folder / "train"
    return train.is_dir() and bool(_class_folders(train))


def _class_folders(root: Path) -> list[Path]:
    return sorted(child for child in root.iterdir() if child.is_dir() and not child.name.startswith("."))


def _image_files(folder: Path) -> list[Path]:
    """All image files under a class's folder, sorted."""
    return sorted(Path(base, name) for base, _, names in os.walk(folder) for name in names if _is_image(name))


def _loose_images(folder: Path) -> list[Path]:
    """The image files right in a folder, sorted."""
    return sorted(path for path in folder.iterdir() if _is_image(path.name) and path.is_file())


def _is_image(name: str) -> bool:
    return name.rpartition(".")[2].lower() in IMAGE_EXTENSIONS and not name.startswith(".")
