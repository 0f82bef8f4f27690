"""The size that a folder's images are brought to: their own where it serves, else a square that patches divide."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data import sizes
from pipeline.nets.patches import patch_grid, resolve_patch

SIDE = st.integers(1, 5000)
MIXED = st.dictionaries(st.tuples(SIDE, SIDE), st.integers(1, 20), min_size=1, max_size=6).map(Counter)


@pytest.mark.parametrize("size", [(4, 4), (6, 6), (8, 8), (28, 28), (32, 24), (32, 32), (64, 64), (64, 48)])
def test_images_of_one_size_that_patches_fit_keep_it(size: sizes.Size) -> None:
    assert sizes.choose(Counter({size: 60})) == (size[1], size[0])


@pytest.mark.parametrize(
    ("size", "side"),
    [
        ((1200, 900), 64),  # larger than the cap
        ((96, 96), 64),
        ((58, 23), 24),  # only patches of 1 divide it
        ((31, 31), 32),  # or of 31
        ((62, 46), 48),  # or of 2, 713 of them
        ((22, 22), 24),
        ((3, 3), 8),
    ],
)
def test_images_of_one_size_that_does_not_serve_become_squares_near_it(size: sizes.Size, side: int) -> None:
    assert sizes.choose(Counter({size: 60})) == (side, side)


@pytest.mark.parametrize(
    ("found", "side"),
    [
        ({(1200, 900): 57, (640, 480): 3}, 64),
        ({(58, 23): 5, (30, 24): 4, (26, 22): 4}, 24),
        ({(50, 41): 3, (41, 50): 3, (900, 900): 1}, 40),
        ({(8, 6): 7, (30, 40): 1}, 8),
    ],
)
def test_images_of_several_sizes_become_squares_near_the_median_shorter_side(
    found: dict[sizes.Size, int], side: int
) -> None:
    assert sizes.choose(Counter(found)) == (side, side)


@given(MIXED)
def test_whatever_is_chosen_makes_a_sensible_number_of_tokens(
    found: Counter[sizes.Size],
) -> None:
    height, width = sizes.choose(found)
    assert max(height, width) <= sizes.LARGEST_SIDE
    patch = resolve_patch("auto", (3, height, width))
    rows, columns = patch_grid(patch, (3, height, width))
    assert patch >= 2
    assert 4 <= rows * columns <= 256


def test_a_side_that_is_asked_for_is_taken() -> None:
    assert sizes.choose(Counter({(8, 8): 1}), 224) == (224, 224)


def test_the_sizes_are_told_in_a_few_words() -> None:
    assert sizes.words(Counter({(640, 480): 3, (1200, 900): 57})) == "1200×900 (57 images), 640×480 (3 images)"
    many = Counter({(1200, 900): 5000, (640, 480): 2, **{(300 + n, 200): 1 for n in range(13)}})
    assert sizes.words(many) == "1200×900 (5,000 images), 640×480 (2 images), 300×200 (1 image) and 12 other sizes"
    assert sizes.words(Counter({(n, n): 1 for n in range(1, 5)})).endswith("and 1 other size")
