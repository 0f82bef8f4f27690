"""What limits a pipeline is told from where its stages' time went, and a change's gain from its layers' times."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from pipeline.planning.limits import StageLoad, verdict


def loads(*stages: tuple[int, float, float, float]) -> list[StageLoad]:
    """Stages with so many layers, utilisation, waiting for input, waiting for the shared state."""
    found, first = [], 0
    for count, busy, wait_in, sync in stages:
        layers = range(first, first + count)
        found.append(StageLoad(layers=layers, utilisation=busy, wait_in=wait_in, sync=sync))
        first += count
    return found


@pytest.mark.parametrize(
    ("stages", "seconds", "said"),
    [
        # 1 + 3 layers of a second each: with 2 + 2 the slowest takes 2 s in place of 3.
        (
            loads((1, 0.33, 0.0, 0.0), (3, 0.98, 0.0, 0.0)),
            {0: 1.0, 1: 1.0, 2: 1.0, 3: 1.0},
            "stage 2 limits (busy 98%); moving layer 2 to stage 1 (`partition` 2 2): +50%",
        ),
        # The other way round, and of two moves the better one: 5 | 1 | 1 to 4 | 2 | 1.
        (
            loads((2, 0.97, 0.0, 0.0), (1, 0.2, 0.8, 0.0), (1, 0.2, 0.8, 0.0)),
            {0: 4.0, 1: 1.0, 2: 1.0, 3: 1.0},
            "stage 1 limits (busy 97%); moving layer 2 to stage 2 (`partition` 1 2 1): +25%",
        ),
        (
            loads((2, 0.97, 0.0, 0.0), (2, 0.95, 0.0, 0.0)),
            dict.fromkeys(range(4), 1.0),
            "stage 1 limits (busy 97%); no layer on another stage would make it faster",
        ),
        (loads((2, 0.97, 0.0, 0.0), (2, 0.95, 0.0, 0.0)), None, "stage 1 limits (busy 97%)"),
        (loads((4, 0.99, 0.0, 0.0)), dict.fromkeys(range(4), 1.0), "stage 1 limits (busy 99%)"),
        (
            loads((2, 0.6, 0.38, 0.0), (2, 0.6, 0.4, 0.0)),
            dict.fromkeys(range(4), 1.0),
            "input limits: stage 1 waits for images 38% of its time; try `feeders` 2",
        ),
        (
            loads((2, 0.6, 0.0, 0.2), (2, 0.6, 0.05, 0.35)),
            None,
            (
                "the state that layers share limits: stage 2 waits for it 35% of its time; "
                "a larger `embedding_lag` lets it come later"
            ),
        ),
    ],
)
def test_what_limits_is_named_with_what_helps(
    stages: Sequence[StageLoad], seconds: Mapping[int, float] | None, said: str
) -> None:
    assert str(verdict(stages, seconds)) == said


@pytest.mark.parametrize(
    ("feeders", "reading", "said"),
    [
        (1, 0.31, "input could feed 3.2 times as much"),
        (2, 0.04, "input could feed 25 times as much"),
        (1, 0.95, "input could hardly feed more"),
        (0, None, "input could feed 20 times as much"),  # the first stage reads, for 5 % of its time
    ],
)
def test_how_much_more_the_input_could_feed_is_told(feeders: int, reading: float | None, said: str) -> None:
    stages = loads((1, 0.33, 0.05, 0.0), (3, 0.98, 0.0, 0.0))
    found = verdict(stages, dict.fromkeys(range(4), 1.0), feeders=feeders, reading=reading)
    assert str(found) == f"stage 2 limits (busy 98%); moving layer 2 to stage 1 (`partition` 2 2): +50%; {said}"


def test_input_that_limits_has_no_headroom() -> None:
    found = verdict(loads((2, 0.6, 0.38, 0.0), (2, 0.6, 0.4, 0.0)), feeders=1, reading=0.99)
    assert found.headroom is None and "could" not in str(found)


def test_what_much_can_be_done_about_is_grave() -> None:
    even = dict.fromkeys(range(4), 1.0)
    assert verdict(loads((1, 0.3, 0.0, 0.0), (3, 0.98, 0.0, 0.0)), even).grave
    assert verdict(loads((2, 0.6, 0.38, 0.0), (2, 0.6, 0.4, 0.0)), even).grave
    assert not verdict(loads((2, 0.97, 0.0, 0.0), (2, 0.95, 0.0, 0.0)), even).grave
    assert not verdict(loads((2, 0.9, 0.0, 0.0), (2, 0.98, 0.0, 0.0)), {0: 0.9, 1: 1.0, 2: 1.02, 3: 1.02}).grave


def test_stages_that_share_cores_are_told_first() -> None:
    found = verdict(loads((1, 0.5, 0.4, 0.0), (1, 0.5, 0.0, 0.0), (1, 0.5, 0.0, 0.0)), cores=2)
    assert str(found) == "the cores limit: 3 stages take turns on 2; give at most 2 stages"
