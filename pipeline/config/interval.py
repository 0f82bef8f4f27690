"""How often checkpoints are saved: the setting's text, read."""

from __future__ import annotations

import re
from dataclasses import dataclass

from pipeline.errors import UserError

_FORM = re.compile(r"(?P<number>[0-9]{1,9})(?P<unit>s|m|h|)")
_SECONDS = {"s": 1, "m": 60, "h": 3600}


@dataclass(frozen=True)
class Interval:
    """So many training steps, or so many seconds.

    Attributes:
        steps: None: seconds count.
    """

    steps: int | None = None
    seconds: float = 0.0


def read_interval(text: str) -> Interval | None:
    """The interval that `checkpoint_every` asks for; None for "off". Raises UserError where it is none."""
    if text == "off":
        return None
    found = _FORM.fullmatch(text)
    if found is None or int(found["number"]) == 0:
        raise UserError(
            f"`checkpoint_every` {text}: give a number of training steps such as 500, a time such as 30s, 5m or 1h, "
            "or off."
        )
    number = int(found["number"])
    return Interval(seconds=number * _SECONDS[found["unit"]]) if found["unit"] else Interval(steps=number)
