"""A folder of images by class: ROOT/CLASS/*.png, or ROOT/train/CLASS/*.png with ROOT/test/CLASS/*.png.

Classes are the folders' names in alphabetic order. Without a test (or val) folder a fixed 20 % of each class is the
test split. Images of several sizes are brought to one: see ``images.read``.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from pipeline import keys
from pipeline.data.shards import IMAGE_EXTENSIONS
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
        strict: refuse an unreadable image instead of leaving it out.
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
        self.skipped = 0
        split_roots = _is_split(folder)
        by_class = _by_class(folder / "train" if split_roots else folder)
        self.classes = tuple(by_class)
        test_root = next((folder / name for name in _TEST_FOLDERS if (folder / name).is_dir()), None)
        if len(self.classes) < 2:
            raise UserError(
                f"{folder} holds images of {len(self.classes)} class(es) {list(self.classes)}; classification needs at "
                "least 2. Give a folder with one sub-folder of images for each class."
            )
        train = [(path, label) for label, paths in enumerate(by_class.values()) for path in paths]
        if split_roots and test_root is not None:
            test = _test_files(test_root, self.classes)
            self.note = f"folder of images {folder}, test from {test_root.name}/"
        else:
            held_out = holdout_mask([label for _, label in train])
            test = [sample for sample, out in zip(train, held_out, strict=True) if out]
            train = [sample for sample, out in zip(train, held_out, strict=True) if not out]
            self.note = f"folder of images {folder}, test: a fixed 20 % of each class"
        looks: Counter[images.Look] = Counter()
        train, test = (self._look(files, looks, progress) for files in (train, test))
        if not looks:
            raise UserError(f"None of the {self.skipped} images of {folder} can be read.")
        self.shape, self.resized_from = images.common_shape(looks, image_size)
        # By class on disk, mixed in the shards: a window of the epoch's shuffle then holds all classes.
        mixed = keys.generator(_ORDER_SEED, "folder-order").permutation(len(train))
        self._files = {"train": [train[place] for place in mixed], "test": test}
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

    def _look(self, files: Labelled, looks: Counter[images.Look], progress: Progress) -> Labelled:
        readable = []
        for done, (path, label) in enumerate(files):
            try:
                looks[images.look(path)] += 1
            except images.UNREADABLE as cause:
                self._skip(path, cause)
                continue
            readable.append((path, label))
            if done % 1000 == 0:
                progress("looking at images", done, len(files))
        return readable

    def _skip(self, path: Path, cause: BaseException) -> None:
        if self._strict:
            raise UserError(f"{path} is not a readable image ({cause}). Remove it, or allow skipping it.") from None
        self.skipped += 1


def holds_images(folder: Path) -> bool:
    """Whether there is an image two or three levels down, where classes keep theirs."""
    root = folder / "train" if _is_split(folder) else folder
    return any(_image_files(child) for child in _class_folders(root))


def _is_split(folder: Path) -> bool:
    """Whether ``train`` holds classes. One that holds images only is a class itself, as CIFAR-100's trains are."""
    train = folder / "train"
    return train.is_dir() and bool(_class_folders(train))


def _by_class(root: Path) -> dict[str, list[Path]]:
    found = {child.name: _image_files(child) for child in _class_folders(root)}
    return {name: paths for name, paths in found.items() if paths}


def _class_folders(root: Path) -> list[Path]:
    return sorted(child for child in root.iterdir() if child.is_dir() and not child.name.startswith("."))


def _image_files(folder: Path) -> list[Path]:
    """All image files under a class's folder, sorted."""
    return sorted(
        Path(base, name)
        for base, _, names in os.walk(folder)
        for name in names
        if name.rpartition(".")[2].lower() in IMAGE_EXTENSIONS and not name.startswith(".")
    )


def _test_files(root: Path, classes: tuple[str, ...]) -> Labelled:
    by_class = _by_class(root)
    unknown = sorted(set(by_class) - set(classes))
    if unknown:
        raise UserError(
            f"{root} holds classes that the training folder does not: {', '.join(unknown)}. Classes of training: "
            f"{', '.join(classes)}. Name the folders alike."
        )
    labels = {name: label for label, name in enumerate(classes)}
    return [(path, labels[name]) for name, paths in by_class.items() for path in paths]
