"""Small copies of the published data sets in their authors' formats."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.io import savemat

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]


def random_images(count: int, shape: tuple[int, ...], num_classes: int, seed: int = 0) -> tuple[Images, Labels]:
    """(count, *shape) uint8 and labels in which every class occurs."""
    random = np.random.default_rng(seed)
    return random.integers(0, 256, (count, *shape), dtype=np.uint8), np.arange(count) % num_classes


def idx_bytes(array: NDArray[np.uint8]) -> bytes:
    return bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_idx(folder: Path, *, gz: bool, count: int = 20) -> dict[str, tuple[Images, Labels]]:
    """The four files of MNIST with 28x28 images."""
    folder.mkdir(parents=True, exist_ok=True)
    splits = {}
    for seed, (split, prefix) in enumerate({"train": "train", "test": "t10k"}.items()):
        images, labels = random_images(count, (28, 28), 10, seed)
        splits[split] = images, labels
        for part, array in (("images-idx3", images), ("labels-idx1", labels.astype(np.uint8))):
            data, name = idx_bytes(array), f"{prefix}-{part}-ubyte"
            (folder / (f"{name}.gz" if gz else name)).write_bytes(gzip.compress(data, mtime=0) if gz else data)
    return splits


def cifar_members(
    name: str, *, binary: bool, per_file: int = 10
) -> tuple[dict[str, bytes], dict[str, tuple[Images, Labels]]]:
    """Files of the archive by name, and the (N, 3, 32, 32) images with labels of each split."""
    ten = name == "cifar10"
    train = [f"data_batch_{number}" for number in range(1, 6)] if ten else ["train"]
    files, splits = {}, {}
    for split, names in {"train": train, "test": ["test_batch" if ten else "test"]}.items():
        parts = []
        for number, file in enumerate(names):
            images, labels = random_images(per_file, (3, 32, 32), 10 if ten else 100, seed=number + 7 * len(split))
            parts.append((images, labels))
            flat = images.reshape(per_file, 3072)
            if binary:
                columns = [labels[:, None]] if ten else [labels[:, None] // 5, labels[:, None]]
                files[f"{file}.bin"] = np.concatenate([*columns, flat], axis=1).astype(np.uint8).tobytes()
            else:
                key = "labels" if ten else "fine_labels"
                record = {b"data": flat, key.encode(): labels.tolist(), b"filenames": [b"a.png"] * per_file}
                files[file] = pickle.dumps({k.decode(): v for k, v in record.items()}, protocol=2)
        splits[split] = np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])
    return files, splits


def write_tar_gz(path: Path, folder: str, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(f"{folder}/{name}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def write_svhn(folder: Path, count: int = 20) -> dict[str, tuple[Images, Labels]]:
    """The two files of SVHN; gives (N, 32, 32, 3) images and the digits that they show."""
    folder.mkdir(parents=True, exist_ok=True)
    splits = {}
    for seed, split in enumerate(("train", "test")):
        images, digits = random_images(count, (32, 32, 3), 10, seed)
        splits[split] = images, digits
        labels = np.where(digits == 0, 10, digits).astype(np.uint8)[:, None]
        content = {"X": images.transpose(1, 2, 3, 0), "y": labels}
        savemat(folder / f"{split}_32x32.mat", content, do_compression=True)
    return splits


def stl10_members(count: int = 20) -> tuple[dict[str, bytes], dict[str, tuple[Images, Labels]]]:
    """Files of the archive by name, in its order, and the (N, 96, 96, 3) images with labels 0 … 9 of each split."""
    files, splits = {}, {}
    for seed, split in enumerate(("test", "train")):
        images, labels = random_images(count, (96, 96, 3), 10, seed)
        splits[split] = images, labels
        files[f"{split}_X.bin"] = images.transpose(0, 3, 2, 1).tobytes()
        files[f"{split}_y.bin"] = (labels + 1).astype(np.uint8).tobytes()
    unlabelled, _ = random_images(count, (96, 96, 3), 10, seed=2)
    names = "airplane\nbird\ncar\ncat\ndeer\ndog\nhorse\nmonkey\nship\ntruck\n"
    return {**files, "unlabeled_X.bin": unlabelled.tobytes(), "class_names.txt": names.encode()}, splits


def write_png_package(folder: Path, per_batch: int = 10) -> dict[str, bytes]:
    """The layout of one PNG a batch and one image a row; gives the binary files it stands for."""
    files, splits = cifar_members("cifar10", binary=True, per_file=per_batch)
    folder.mkdir(parents=True)
    for name, data in files.items():
        records = np.frombuffer(data, dtype=np.uint8).reshape(per_batch, 3073)
        rows = np.ascontiguousarray(records[:, 1:].reshape(per_batch, 3, 1024).transpose(0, 2, 1))
        Image.fromarray(rows).save(folder / name.replace(".bin", ".png"))
    for split in ("train", "test"):
        (folder / f"{split}_lables.json").write_text(json.dumps(splits[split][1].tolist()))
    return files


def image_bytes(image: Images, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format=kind)
    return buffer.getvalue()


def write_tiny_imagenet(path: Path, num_classes: int = 3, per_class: int = 4) -> Path:
    """The official zip's layout; one image is grey, as some are."""
    ids = [f"n{number:08d}" for number in range(num_classes)][::-1]
    root = "tiny-imagenet-200"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{root}/wnids.txt", "\n".join(ids))
        archive.writestr(f"{root}/words.txt", "".join(f"{wnid}\tname {wnid[-1]}, other name\n" for wnid in ids))
        for wnid in ids:
            for number in range(per_class):
                shape = (64, 64) if number == 0 else (64, 64, 3)
                archive.writestr(
                    f"{root}/train/{wnid}/images/{wnid}_{number}.JPEG",
                    image_bytes(np.full(shape, 50 * int(wnid[-1]), dtype=np.uint8), "JPEG"),
                )
        lines = []
        for number in range(num_classes):
            wnid = f"n{number:08d}"
            image = np.full((64, 64, 3), 50 * number, dtype=np.uint8)
            archive.writestr(f"{root}/val/images/val_{number}.JPEG", image_bytes(image, "JPEG"))
            lines.append(f"val_{number}.JPEG\t{wnid}\t0\t0\t62\t62\n")
        archive.writestr(f"{root}/val/val_annotations.txt", "".join(lines))
        archive.writestr(f"{root}/test/images/test_0.JPEG", b"not labelled")
    return path
