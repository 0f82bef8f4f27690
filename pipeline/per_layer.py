"""Settings with one value for all layers of a net, or with one for each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from pipeline.errors import UserError, shortened

Value = TypeVar("Value")


def check_per_layer(num_layers: int, **values: Sequence[Any]) -> None:
    """Refuses values, by their settings' names, that are neither one for all layers nor one for each.

    Raises:
        UserError: naming the first.
    """
    for name, each in values.items():
        if len(each) not in (1, num_layers):
            given = " ".join(map(shortened, each)) or "without a value"
            counted = "1 layer" if num_layers == 1 else f"{num_layers} layers"
            raise UserError(
                f"`{name}` {given}: {len(each)} values for a net of {counted}. Give one for all, or one for each."
            )


def of_layer(values: Sequence[Value], index: int) -> Value:
    """The value of layer ``index`` (0-based)."""
    return values[index] if len(values) > 1 else values[0]
