"""Augmentation: Pillow's arithmetic, keyed draws, uniform crops, the same bits in any batch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from pipeline import rng
from pipeline.data.augment import Augment, AugmentConfig
from pipeline.data.crop_flip import CropFlip
from pipeline.data.magnitudes import NUM_BINS
from pipeline.data.randaugment import RandAugment
from pipeline.data.rounds import OPS
from pipeline.errors import UserError

CPU = torch.device("cpu")
CIFAR: dict[str, Any] = {"mean": (0.4914, 0.4822, 0.4465), "std": (0.2023, 0.1994, 0.2010)}
GRAY: dict[str, Any] = {"mean": (0.5,), "std": (0.25,)}
UNSCALED: dict[str, Any] = {"mean": (0.0,) * 3, "std": (1.0,) * 3}  # normalising only divides by 255


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def noise(n: int, channels: int, height: int, width: int, seed: int = 0) -> Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.integers(0, 256, (n, channels, height, width), dtype=np.uint8))


def pictures(n: int, channels: int, height: int, width: int, seed: int = 0) -> Tensor:
    """Images of a narrow range of levels, some flat or all but flat, as histogram operations meet them."""
    rng = np.random.default_rng(seed)
    low, span = rng.integers(0, 200, (n, channels, 1, 1)), rng.integers(0, 56, (n, channels, 1, 1))
    images = low + rng.integers(0, 1 + span, (n, channels, height, width))
    images[0, :, :, :] = 77
    images[1, :, :, :] = 77
    images[1, :, 0, 0] = 80
    return torch.from_numpy(images.astype(np.uint8))


def everything(**changes: Any) -> AugmentConfig:
    given_values: dict[str, Any] = {"crop_padding": 4, "flip": True, "randaugment_ops": 3, **CIFAR, **changes}
    return AugmentConfig(**given_values)


# ---------------------------------------------------------------------------------------------------------------------
# RandAugment against Pillow


def torchvision_affine(x_shear: float, y_shear: float, translate: tuple[int, int], center: tuple[float, float]) -> Any:
    """torchvision's inverse affine matrix for scale 1 and no rotation, shears in degrees."""
    sx, sy = math.radians(x_shear), math.radians(y_shear)
    a, b = math.cos(-sy) / math.cos(sy), -math.cos(-sy) * math.tan(sx) / math.cos(sy)
    c, d = math.sin(-sy) / math.cos(sy), -math.sin(-sy) * math.tan(sx) / math.cos(sy) + 1.0
    matrix = [d, -b, 0.0, -c, a, 0.0]
    x, y = -center[0] - translate[0], -center[1] - translate[1]
    matrix[2] += matrix[0] * x + matrix[1] * y + center[0]
    matrix[5] += matrix[3] * x + matrix[4] * y + center[1]
    return tuple(matrix)


def pillow(image: Image.Image, op: str, magnitude: int, negative: bool) -> Image.Image:
    """The operation as torchvision's RandAugment applies it to a Pillow image."""
    width, height = image.size
    levels = {
        "Shear": torch.linspace(0.0, 0.3, NUM_BINS),
        "TranslateX": torch.linspace(0.0, 150.0 / 331.0 * width, NUM_BINS),
        "TranslateY": torch.linspace(0.0, 150.0 / 331.0 * height, NUM_BINS),
        "Rotate": torch.linspace(0.0, 30.0, NUM_BINS),
        "Enhance": torch.linspace(0.0, 0.9, NUM_BINS),
        "Solarize": torch.linspace(255.0, 0.0, NUM_BINS),
        "Posterize": 8 - (torch.arange(NUM_BINS) / ((NUM_BINS - 1) / 4)).round().int(),
    }

    def level(name: str) -> float:
        return float(levels[name][magnitude]) * (-1.0 if negative else 1.0)

    def affine(**parameters: Any) -> Image.Image:
        values = {"x_shear": 0.0, "y_shear": 0.0, "translate": (0, 0), "center": (width * 0.5, height * 0.5)}
        matrix = torchvision_affine(**{**values, **parameters})
        return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST, fillcolor=0)

    match op:
        case "Identity":
            return image
        case "ShearX":
            return affine(x_shear=math.degrees(math.atan(level("Shear"))), center=(0, 0))
        case "ShearY":
            return affine(y_shear=math.degrees(math.atan(level("Shear"))), center=(0, 0))
        case "TranslateX":
            return affine(translate=(int(level("TranslateX")), 0))
        case "TranslateY":
            return affine(translate=(0, int(level("TranslateY"))))
        case "Rotate":
            return image.rotate(level("Rotate"), Image.Resampling.NEAREST, fillcolor=0)
        case "Brightness" | "Color" | "Contrast" | "Sharpness":
            enhancer: Any = getattr(ImageEnhance, op)(image)
            enhanced: Image.Image = enhancer.enhance(1.0 + level("Enhance"))
            return enhanced
        case "Posterize":
            return ImageOps.posterize(image, int(levels[op][magnitude]))
        case "Solarize":
            return ImageOps.solarize(image, float(levels[op][magnitude]))  # type: ignore[arg-type]
        case "AutoContrast":
            return ImageOps.autocontrast(image)
        case "Equalize":
            return ImageOps.equalize(image)
    raise AssertionError(op)


def by_pillow(images: Tensor, op: str, magnitude: int, negative: bool) -> Tensor:
    out = []
    for image in images.numpy():
        array = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
        result = np.asarray(pillow(Image.fromarray(array), op, magnitude, negative))
        out.append(result[None] if len(image) == 1 else result.transpose(2, 0, 1))
    return torch.from_numpy(np.stack(out))


def by_us(images: Tensor, op: str, magnitude: int, negative: bool) -> Tensor:
    augment = RandAugment(num_ops=1, magnitude=magnitude, device=CPU)
    n = len(images)
    return augment.apply(images, np.full((n, 1), OPS.index(op)), np.full((n, 1), negative))


@pytest.mark.parametrize("negative", [False, True], ids=["positive", "negative"])
@pytest.mark.parametrize("op", OPS)
def test_every_operation_gives_pillows_bits(op: str, negative: bool) -> None:
    """Tolerance: none, for geometry too."""
    for size in ((3, 32, 32), (1, 28, 28), (3, 17, 33), (1, 5, 8), (3, 2, 1)):
        for images in (noise(4, *size), pictures(6, *size)):
            for magnitude in (0, 1, 9, 14, 23, 30):
                expected = by_pillow(images, op, magnitude, negative)
                assert torch.equal(by_us(images, op, magnitude, negative), expected), (size, magnitude)


@settings(max_examples=40, deadline=None)
@given(
    op=st.sampled_from(OPS),
    channels=st.sampled_from((1, 3)),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    magnitude=st.integers(0, NUM_BINS - 1),
    negative=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_any_size_and_magnitude_gives_pillows_bits(
    op: str, channels: int, height: int, width: int, magnitude: int, negative: bool, seed: int
) -> None:
    images = noise(2, channels, height, width, seed)
    assert torch.equal(by_us(images, op, magnitude, negative), by_pillow(images, op, magnitude, negative))


def test_operations_that_do_something_do_it() -> None:
    """The comparison with Pillow is not one of identities."""
    images = pictures(8, 3, 32, 32)[2:]
    changing = {op for op in OPS if not torch.equal(by_us(images, op, 14, False), images)}
    assert changing == set(OPS) - {"Identity"}


def test_rounds_follow_one_another_sample_by_sample() -> None:
    """Grouping by operation and putting back keeps every sample in its place."""
    images = noise(60, 3, 12, 15)
    augment = RandAugment(num_ops=3, magnitude=14, device=CPU)
    draws = rng.uniform(3, "test", first=0, count=60, draws=augment.num_draws)
    expected = []
    for image, draw in zip(images, draws, strict=True):
        one = image[None]
        for op, sign in draw.reshape(3, 2):
            one = by_pillow(one, OPS[int(op * len(OPS))], 14, bool(sign < 0.5))
        expected.append(one)
    assert torch.equal(augment(images, draws), torch.cat(expected))


@pytest.mark.exhaustive
def test_autocontrast_of_any_range_of_levels_gives_pillows_bits() -> None:
    ranges = [(low, high) for low in range(256) for high in range(low, 256)]
    images = np.stack([np.arange(256, dtype=np.uint8).clip(*levels).reshape(1, 16, 16) for levels in ranges])
    tensor = torch.from_numpy(images)
    assert torch.equal(by_us(tensor, "AutoContrast", 14, False), by_pillow(tensor, "AutoContrast", 14, False))


@pytest.mark.exhaustive
@pytest.mark.parametrize("side", [64, 100, 224])
def test_equalizing_large_and_uneven_images_gives_pillows_bits(side: int) -> None:
    random = np.random.default_rng(side)
    shares = random.dirichlet(np.full(256, 0.05), size=60)  # most pixels have a few levels
    images = np.stack([random.choice(256, size=(1, side, side), p=share).astype(np.uint8) for share in shares])
    images[0, :, 0] = 255  # a dark image with one bright line: 255 steps of many pixels
    tensor = torch.from_numpy(images)
    assert torch.equal(by_us(tensor, "Equalize", 14, False), by_pillow(tensor, "Equalize", 14, False))


def test_views_made_at_once_are_each_as_made_alone() -> None:
    images = noise(20, 3, 12, 15)
    randaugment = RandAugment(num_ops=3, magnitude=14, device=CPU)
    crop_flip = CropFlip(padding=3, flip=True, device=CPU)
    draws = rng.uniform(4, "test", first=0, count=60, draws=randaugment.num_draws)
    for change in (randaugment, crop_flip):
        alone = [change(images, of_view) for of_view in np.split(draws, 3)]
        assert torch.equal(change(images, draws), torch.cat(alone))


def test_operations_and_signs_are_uniform() -> None:
    """What is applied is watched, not the draws: 14,000 samples, 3 rounds."""
    applied: list[tuple[Any, Any]] = []

    class Watched(RandAugment):
        def apply(self, images: Tensor, ops: Any, negative: Any) -> Tensor:
            applied.append((ops, negative))
            return images

    augment = Watched(num_ops=3, magnitude=14, device=CPU)
    draws = rng.uniform(11, "test", first=0, count=14_000, draws=augment.num_draws)
    augment(torch.zeros(14_000, 1, 1, 1, dtype=torch.uint8), draws)
    ops, negative = applied[0]
    for r in range(3):
        counts = np.bincount(ops[:, r], minlength=len(OPS))
        assert ((counts - 1000) ** 2 / 1000).sum() < 34.5  # 99.9 % of chi-square with 13 degrees of freedom
        assert abs(negative[:, r].mean() - 0.5) < 0.013  # 3 standard deviations
    assert np.abs(np.corrcoef(np.hstack((ops, negative)).T) - np.eye(6)).max() < 0.03


# ---------------------------------------------------------------------------------------------------------------------
# Crop and flip


def test_crop_and_flip_against_slicing() -> None:
    images = noise(50, 3, 7, 10)
    draws = rng.uniform(5, "test", first=0, count=50, draws=3)
    padded = np.pad(images.numpy(), ((0, 0), (0, 0), (4, 4), (4, 4)))
    for flip in (False, True):
        out = CropFlip(padding=4, flip=flip, device=CPU)(images, draws)
        for i, (u, v, m) in enumerate(draws):
            top, left = int(u * 9), int(v * 9)
            expected = padded[i, :, top : top + 7, left : left + 10]
            expected = expected[:, :, ::-1] if flip and m < 0.5 else expected
            assert np.array_equal(out[i].numpy(), expected)


def places(config: AugmentConfig, count: int) -> Tensor:
    """Where one bright pixel, at (2, 2) of 5×5, ends in each of ``count`` views: (count,) place y·5 + x."""
    images = torch.zeros(count, 1, 5, 5, dtype=torch.uint8)
    images[:, :, 2, 2] = 255
    views = Augment(config, seed=1, device=CPU).views(images, epoch=3, position=0, num_views=1)
    return views.flatten(1).argmax(dim=1)


def test_crops_are_uniform_over_all_places() -> None:
    padding, count = 2, 10_000
    counts = places(AugmentConfig(crop_padding=padding, **GRAY), count).bincount(minlength=25).double()
    expected = count / (2 * padding + 1) ** 2
    assert float(((counts - expected) ** 2 / expected).sum()) < 51.2  # 99.9 % of chi-square with 24 degrees of freedom


def test_flips_are_about_half_and_independent_of_the_crop() -> None:
    images = torch.zeros(10_000, 1, 1, 2, dtype=torch.uint8)
    images[..., 0] = 255
    views = Augment(AugmentConfig(flip=True, **GRAY), seed=1, device=CPU).views(
        images, epoch=0, position=0, num_views=1
    )
    flipped = views[:, 0, 0, 1] > views[:, 0, 0, 0]
    assert abs(float(flipped.double().mean()) - 0.5) < 0.015  # 3 standard deviations
    draws = rng.uniform(1, "augment/crop-flip", 0, 0, first=0, count=10_000, draws=3)
    assert np.abs(np.corrcoef(draws.T) - np.eye(3)).max() < 0.03


def test_padding_is_pixel_zero_before_normalising() -> None:
    images = torch.full((200, 3, 4, 4), 255, dtype=torch.uint8)
    config = AugmentConfig(crop_padding=3, **CIFAR)
    views = Augment(config, seed=0, device=CPU).views(images, epoch=0, position=0, num_views=1)
    for c in range(3):
        black, white = -CIFAR["mean"][c] / CIFAR["std"][c], (1 - CIFAR["mean"][c]) / CIFAR["std"][c]
        np.testing.assert_allclose(np.unique(views[:, c].numpy()), [black, white], rtol=1e-6)


# ---------------------------------------------------------------------------------------------------------------------
# Views


@settings(max_examples=25, deadline=None)
@given(
    count=st.integers(1, 40),
    cut=st.floats(0.0, 1.0),
    position=st.integers(0, 10**6),
    ops=st.sampled_from((0, 3)),
    shape=st.sampled_from(((3, 8, 8), (1, 9, 7), (3, 5, 11))),
    seed=st.integers(0, 2**31),
)
def test_a_batch_cut_in_two_gives_the_same_bits(
    count: int, cut: float, position: int, ops: int, shape: tuple[int, int, int], seed: int
) -> None:
    images = noise(count, *shape)
    config = everything(randaugment_ops=ops, **(GRAY if shape[0] == 1 else CIFAR))
    augment = Augment(config, seed=seed, device=CPU)
    whole = augment.views(images, epoch=2, position=position, num_views=2)
    middle = round(cut * count)
    first = augment.views(images[:middle], epoch=2, position=position, num_views=2)
    second = augment.views(images[middle:], epoch=2, position=position + middle, num_views=2)
    for view in range(2):
        parts = (
            first[view * middle : (view + 1) * middle],
            second[view * (count - middle) : (view + 1) * (count - middle)],
        )
        assert torch.equal(whole[view * count : (view + 1) * count], torch.cat(parts))
    plain = torch.cat((augment.plain(images[:middle]), augment.plain(images[middle:])))
    assert torch.equal(augment.plain(images), plain)


def test_a_sample_alone_is_as_in_its_batch() -> None:
    """Batch 1 takes other vector widths and tails than batch 37; pixels come out the same."""
    images = noise(37, 3, 32, 32)
    augment = Augment(everything(), seed=0, device=CPU)
    whole = augment.views(images, epoch=0, position=100, num_views=1)
    for i in range(37):
        assert torch.equal(augment.views(images[i : i + 1], epoch=0, position=100 + i, num_views=1)[0], whole[i])


def test_one_and_two_threads_give_the_same_bits() -> None:
    images = noise(64, 3, 32, 32)
    augment = Augment(everything(), seed=0, device=CPU)
    one = augment.views(images, epoch=0, position=0, num_views=2)
    torch.set_num_threads(2)
    assert torch.equal(augment.views(images, epoch=0, position=0, num_views=2), one)


def test_views_are_view_major_and_each_keyed_by_its_number() -> None:
    images = noise(10, 3, 8, 8)
    augment = Augment(everything(), seed=0, device=CPU)
    one = augment.views(images, epoch=0, position=0, num_views=1)
    three = augment.views(images, epoch=0, position=0, num_views=3)
    assert three.shape == (30, 3, 8, 8) and three.dtype == torch.float32
    assert torch.equal(three[:10], one)


def test_another_view_epoch_position_or_seed_gives_other_crops() -> None:
    image = noise(1, 3, 32, 32).expand(100, -1, -1, -1)
    config = AugmentConfig(crop_padding=12, flip=True, **UNSCALED)

    def run(seed: int = 0, epoch: int = 0, position: int = 0) -> Tensor:
        return Augment(config, seed=seed, device=CPU).views(image, epoch=epoch, position=position, num_views=2)

    base, other_view = run().chunk(2)
    others = (other_view, run(epoch=1)[:100], run(position=100)[:100], run(seed=1)[:100])
    for other in others:
        same = (base == other).flatten(1).all(dim=1)
        assert int(same.sum()) <= 2  # one in 1250 by chance
    neighbours_same = (base[1:] == base[:-1]).flatten(1).all(dim=1)
    assert int(neighbours_same.sum()) <= 2
    assert torch.equal(base, run()[:100])


def test_the_global_generators_are_neither_read_nor_moved() -> None:
    images = noise(8, 3, 8, 8)
    augment = Augment(everything(), seed=0, device=CPU)
    torch.manual_seed(1)
    np.random.seed(1)
    before = torch.get_rng_state()
    one = augment.views(images, epoch=0, position=0, num_views=1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    np.random.seed(2)
    assert torch.equal(augment.views(images, epoch=0, position=0, num_views=1), one)


def test_randaugment_leaves_crops_and_flips_as_they_were() -> None:
    """Constant images: most operations keep them constant, so the padding shows where the crop lies."""
    images = torch.full((50, 1, 8, 8), 200, dtype=torch.uint8)
    without = Augment(everything(randaugment_ops=0, **GRAY), seed=0, device=CPU)
    identities = Augment(everything(randaugment_ops=1, randaugment_magnitude=0, **GRAY), seed=0, device=CPU)
    # At magnitude 0 no operation changes this level, so only crop and flip are left.
    arguments: dict[str, Any] = {"epoch": 0, "position": 0, "num_views": 2}
    assert torch.equal(without.views(images, **arguments), identities.views(images, **arguments))


def test_the_input_is_left_alone() -> None:
    images = noise(32, 3, 8, 8)
    before = images.clone()
    for ops in (0, 3):
        augment = Augment(everything(randaugment_ops=ops), seed=0, device=CPU)
        augment.views(images, epoch=0, position=0, num_views=2)
        augment.plain(images)
    assert torch.equal(images, before)


def test_nothing_asked_for_is_plain() -> None:
    images = noise(5, 3, 9, 9)
    augment = Augment(AugmentConfig(**CIFAR), seed=0, device=CPU)
    plain = augment.plain(images)
    assert torch.equal(augment.views(images, epoch=0, position=0, num_views=2), torch.cat((plain, plain)))


def test_plain_is_the_usual_normalisation() -> None:
    images = noise(5, 3, 9, 9)
    mean, std = (torch.tensor(CIFAR[name], dtype=torch.float64).view(-1, 1, 1) for name in ("mean", "std"))
    plain = Augment(everything(), seed=0, device=CPU).plain(images)
    assert plain.dtype == torch.float32
    torch.testing.assert_close(plain.double(), (images.double() / 255 - mean) / std, rtol=1e-6, atol=1e-6)


def test_an_empty_batch_stays_empty() -> None:
    augment = Augment(everything(), seed=0, device=CPU)
    assert augment.views(noise(0, 3, 8, 8), epoch=0, position=0, num_views=2).shape == (0, 3, 8, 8)
    assert augment.plain(noise(0, 3, 8, 8)).shape == (0, 3, 8, 8)


# ---------------------------------------------------------------------------------------------------------------------
# Bad input


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"crop_padding": -1}, "`crop_padding` -1: must be 0"),
        ({"randaugment_ops": -1}, "`randaugment_ops` -1: must be 0"),
        ({"randaugment_magnitude": 31}, "`randaugment_magnitude` 31: must be 0 to 30"),
        ({"mean": (0.5,)}, "mean has 1 channels and std 3"),
        ({"mean": (), "std": ()}, "mean has 0 channels"),
        ({"mean": (0.5, math.nan, 0.5)}, "must be finite"),
        ({"std": (0.2, 0.0, 0.2)}, "above 0"),
        ({"mean": (0.5, 0.5), "std": (0.2, 0.2)}, "images of 1 or 3 channels, these have 2"),
    ],
)
def test_bad_configuration_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        everything(**changes)


@pytest.mark.parametrize("images", [torch.zeros(2, 3, 8, 8), noise(2, 1, 8, 8), noise(2, 3, 8, 8)[0]])
def test_images_that_do_not_fit_are_refused(images: Tensor) -> None:
    augment = Augment(everything(), seed=0, device=CPU)
    with pytest.raises(ValueError, match="uint8 is needed"):
        augment.views(images, epoch=0, position=0, num_views=1)
    with pytest.raises(ValueError, match="uint8 is needed"):
        augment.plain(images)


@pytest.mark.parametrize("wrong", [{"epoch": -1}, {"position": -1}, {"num_views": -1}])
def test_numbers_out_of_range_are_refused(wrong: dict[str, int]) -> None:
    arguments: dict[str, Any] = {"epoch": 0, "position": 0, "num_views": 1, **wrong}
    with pytest.raises(ValueError, match="are needed"):
        Augment(everything(), seed=0, device=CPU).views(noise(2, 3, 8, 8), **arguments)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_cpus_bits_and_waits_for_nothing() -> None:
    images = pictures(300, 3, 32, 32)
    gpu = torch.device("cuda")
    augment = Augment(everything(), seed=0, device=gpu)
    augment.views(images, epoch=0, position=0, num_views=2)  # makes the tables for this size
    on_device = images.to(gpu)
    torch.cuda.set_sync_debug_mode("error")
    try:
        views = augment.views(on_device, epoch=0, position=0, num_views=2)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    expected = Augment(everything(), seed=0, device=CPU).views(images, epoch=0, position=0, num_views=2)
    assert torch.equal(views.cpu(), expected)
