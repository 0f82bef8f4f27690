"""CIFAR-10 and CIFAR-100 from the official archives, python (pickles) or binary, packed or unpacked.

A binary record is the label (CIFAR-100: coarse, then fine) and 3072 bytes: the red, green and blue planes, each 32 rows
of 32. CIFAR-100's labels here are the fine ones.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline import plain_json
from pipeline.data.skipped import Skipped
from pipeline.data.sources import tar
from pipeline.data.sources.base import Sample
from pipeline.errors import UserError

PIXELS = 3 * 32 * 32
_BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))

LAYOUTS: Mapping[str, tuple[Mapping[str, tuple[str, ...]], ...]] = {
    "cifar10": (
        {"train": tuple(f"{name}.bin" for name in _BATCHES), "test": ("test_batch.bin",)},
        {"train": _BATCHES, "test": ("test_batch",)},
    ),
    "cifar100": (
        {"train": ("train.bin",), "test": ("test.bin",)},
        {"train": ("train",), "test": ("test",)},
    ),
}
"""The files of each split: of the binary archive, then of the python one."""

# What a pickle that is cut off, altered or of something else raises.
_DAMAGED_PICKLE = (
    pickle.UnpicklingError, ArithmeticError, AttributeError, EOFError, ImportError, LookupError, MemoryError, TypeError,
    ValueError,
)  # fmt: skip

Labelled = tuple[NDArray[np.uint8], NDArray[np.int64]]  # (N, 3072) planar pixels, (N,) labels


class CifarSource:
    """CIFAR-10 or CIFAR-100.

    Args:
        name: ``cifar10`` or ``cifar100``.
        members: bytes of the files of one of ``LAYOUTS[name]``.
        classes: class names in label order.
        note: where the files came from.

    Raises:
        UserError: files are missing or are not what their names say.
    """

    def __init__(self, name: str, members: Mapping[str, bytes], *, classes: tuple[str, ...], note: str) -> None:
        layout = find_layout(name, members)
        if layout is None:
            raise UserError(
                f"This is not {name}: it holds {', '.join(sorted(members)[:8]) or 'nothing'}; expected "
                f"{' or '.join(', '.join(names['train'] + names['test']) for names in LAYOUTS[name])}."
            )
        self._splits = {
            split: [_records(name, file, members[file]) for file in files] for split, files in layout.items()
        }
        self.classes = classes
        self.shape = (3, 32, 32)
        self.counts = {split: sum(len(labels) for _, labels in parts) for split, parts in self._splits.items()}
        self.skipped: list[Skipped] = []
        self.note = note

    def read(self, split: str) -> Iterator[Sample]:
        """The samples of ``train`` or ``test`` in the archive's order."""
        for pixels, labels in self._splits[split]:
            for image, label in zip(pixels, labels, strict=True):
                yield np.ascontiguousarray(image.reshape(3, 32, 32).transpose(1, 2, 0)), int(label)


def find_layout(name: str, files: Mapping[str, Any]) -> Mapping[str, tuple[str, ...]] | None:
    """The layout of which all files are there."""
    for layout in LAYOUTS[name]:
        if all(file in files for names in layout.values() for file in names):
            return layout
    return None


def read_archive(path: Path, name: str) -> dict[str, bytes]:
    """The bytes of the files of ``LAYOUTS[name]`` in a tar (gzipped or not), by their last name.

    Raises:
        UserError: it is not a whole tar.
    """
    return tar.read_members(path, {file for layout in LAYOUTS[name] for files in layout.values() for file in files})


def rebuild_binaries(images: Mapping[str, Path], train_labels: Path, test_labels: Path) -> Iterator[tuple[str, bytes]]:
    """The official binary batches out of PNGs of one image a row (10,000 rows of 1,024 RGB pixels) and JSON labels.

    Args:
        images: PNG of each of ``data_batch_1`` … ``data_batch_5`` and ``test_batch``.

    Raises:
        UserError: a PNG or the labels do not have this layout.
    """
    train, test = _labels(train_labels), _labels(test_labels)
    per_batch = len(train) // len(_BATCHES)
    for number, name in enumerate((*_BATCHES, "test_batch")):
        labels = test if name == "test_batch" else train[number * per_batch : (number + 1) * per_batch]
        with Image.open(images[name]) as picture:
            pixels = np.asarray(picture.convert("RGB"))  # (N, 1024, 3)
        if pixels.shape != (len(labels), PIXELS // 3, 3):
            raise UserError(f"{images[name]} is {pixels.shape}, not {len(labels)} rows of {PIXELS // 3} RGB pixels.")
        records = np.empty((len(labels), 1 + PIXELS), dtype=np.uint8)
        records[:, 0] = labels
        records[:, 1:] = pixels.transpose(0, 2, 1).reshape(len(labels), PIXELS)
        yield f"{name}.bin", records.tobytes()


def _labels(path: Path) -> list[int]:
    try:
        labels = plain_json.read(path)
    except (OSError, ValueError) as cause:
        raise UserError(f"{path} cannot be read as JSON ({cause}). Get it again.") from None
    if not isinstance(labels, list) or not all(isinstance(label, int) and 0 <= label < 10 for label in labels):
        raise UserError(f"{path} is not a list of labels from 0 to 9. Get it again.")
    return labels


def _records(name: str, file: str, data: bytes) -> Labelled:
    pixels, labels = _from_binary(name, file, data) if file.endswith(".bin") else _from_pickle(name, file, data)
    num_classes = 10 if name == "cifar10" else 100
    if len(labels) and not 0 <= labels.min() <= labels.max() < num_classes:
        raise UserError(
            f"{file} has labels {labels.min()} … {labels.max()}, {name} has 0 … {num_classes - 1}. Get it again."
        )
    return pixels, labels


def _from_binary(name: str, file: str, data: bytes) -> Labelled:
    label_bytes = 1 if name == "cifar10" else 2
    size = label_bytes + PIXELS
    if not data or len(data) % size:
        raise UserError(f"{file} has {len(data)} bytes, not a multiple of {name}'s records of {size}. Get it again.")
    records = np.frombuffer(data, dtype=np.uint8).reshape(-1, size)
    return records[:, label_bytes:], records[:, label_bytes - 1].astype(np.int64)


def _from_pickle(name: str, file: str, data: bytes) -> Labelled:
    try:
        content = _ArrayUnpickler(io.BytesIO(data), encoding="latin1").load()
        pixels = np.asarray(content["data"], dtype=np.uint8)
        labels = np.asarray(content["labels" if name == "cifar10" else "fine_labels"], dtype=np.int64)
    except _DAMAGED_PICKLE as cause:
        raise UserError(f"{file} is not a batch of {name} ({type(cause).__name__}: {cause}). Get it again.") from None
    if pixels.shape != (len(labels), PIXELS):
        raise UserError(f"{file} has pixels of shape {pixels.shape} for {len(labels)} labels. Get it again.")
    return pixels, labels


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickles NumPy arrays and plain containers; a pickle that asks for anything else is refused, not run."""

    # Old pickles name modules that NumPy has since moved: take the functions themselves.
    _RECONSTRUCT = np.empty(0).__reduce__()[0]
    _SCALAR = np.int64(0).__reduce__()[0]

    def find_class(self, module: str, name: str) -> Any:
        of_numpy = module in ("numpy", "numpy.core.multiarray", "numpy._core.multiarray")
        allowed = {"_reconstruct": self._RECONSTRUCT, "ndarray": np.ndarray, "dtype": np.dtype, "scalar": self._SCALAR}
        if of_numpy and name in allowed:
            return allowed[name]
        if (module, name) == ("_codecs", "encode"):
            return _encode
        raise UserError(
            f"A CIFAR batch holds arrays and lists; this pickle asks for {module}.{name}. It was not opened."
        )


def _encode(text: str, encoding: str) -> bytes:
    """How protocol 2 spells bytes."""
    return text.encode("latin1" if encoding == "latin1" else "ascii")
