"""What of RandAugment is decided on the host: in each round, which samples get which operation and where they stand."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.data import pixel_tables
from pipeline.data.geometry import GEOMETRIC
from pipeline.data.pixel_tables import LEVELS

# An operation's number is its index here.
OPS: Final = (
    "Identity",
    *GEOMETRIC,
    "Brightness",
    "Color",
    "Contrast",
    "Sharpness",
    "Posterize",
    "Solarize",
    "AutoContrast",
    "Equalize",
)
# How a round puts its samples side by side: what operations have in common is done to one slice.
_ORDER: Final = (
    "Identity",
    *GEOMETRIC,
    "Brightness",
    "Posterize",
    "Solarize",
    "AutoContrast",
    "Equalize",
    "Contrast",
    "Color",
    "Sharpness",
)
_PLACES: Final = np.array([_ORDER.index(op) for op in OPS])
# By place and sign, the first of the tables that are there from the start; of blends that towards base 0.
_FIRST_TABLES: Final = np.array(
    [
        {"Posterize": (pixel_tables.POSTERIZED,) * 2, "Solarize": (pixel_tables.SOLARIZED,) * 2}.get(op, (0, LEVELS))
        for op in _ORDER
    ]
)


class Bounds:
    """Where each operation's samples begin in a round's order, and the last one's end."""

    def __init__(self, bounds: list[int]) -> None:
        self._bounds = bounds

    def of(self, first: str, last: str | None = None) -> slice:
        """Samples of an operation, or of those from ``first`` to ``last``."""
        return slice(self._bounds[_ORDER.index(first)], self._bounds[_ORDER.index(last or first) + 1])

    def counted_from(self, start: int) -> Bounds:
        """The same for the samples from number ``start`` on, which is then 0."""
        return Bounds([bound - start for bound in self._bounds])


class Plan:
    """What is decided on the host.

    Attributes:
        numbers: all that the device needs, in one piece, int32: in which order each round takes the samples of the one
            before, and the result those of the last (R+1, V·N); in which table each channel is looked up, as an offset
            (R, C, V·N); the geometric operations of all rounds, by operation and sign.
        sizes: how many numbers each of these is.
        bounds: of each round.
        num_moved: samples that geometry moves, in each round.
        num_tables: that are needed at a time.
    """

    def __init__(self, ops: NDArray[np.int64], negative: NDArray[np.bool_], *, num_images: int, channels: int) -> None:
        places = _PLACES[ops]
        order = np.argsort(places, axis=0, kind="stable")
        back = np.argsort(order, axis=0)
        orders = np.vstack((order.T, back[:, -1:].T))
        orders[0] %= num_images
        for r in range(1, ops.shape[1]):
            orders[r] = back[orders[r], r - 1]
        places = np.take_along_axis(places, order, axis=0).T  # (R, V·N) from here on
        signs = np.take_along_axis(negative, order, axis=0).T.astype(np.int64)
        self.bounds = [Bounds(np.searchsorted(row, np.arange(len(_ORDER) + 1)).tolist()) for row in places]
        tables = np.repeat(_FIRST_TABLES[places, signs][:, None], channels, axis=1)  # (R, C, V·N)
        self.num_tables = pixel_tables.NUM_FIXED
        for of_round, bounds in zip(tables, self.bounds, strict=True):
            own = of_round[:, bounds.of("AutoContrast", "Equalize")]
            own[:] = pixel_tables.NUM_FIXED + np.arange(own.size).reshape(-1, channels).T
            self.num_tables = max(self.num_tables, pixel_tables.NUM_FIXED + own.size)
        moved = [bounds.of(GEOMETRIC[0], GEOMETRIC[-1]) for bounds in self.bounds]
        variants = 2 * (places - _ORDER.index(GEOMETRIC[0])) + signs
        parts = (orders, tables * LEVELS, *(row[rows] for row, rows in zip(variants, moved, strict=True)))
        self.numbers = np.concatenate([part.ravel() for part in parts], dtype=np.int32, casting="same_kind")
        self.num_moved = [count_of(rows) for rows in moved]
        self.sizes = [orders.size, tables.size, sum(self.num_moved)]


def count_of(rows: slice) -> int:
    """Samples of a slice."""
    return int(rows.stop - rows.start)
