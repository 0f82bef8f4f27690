"""What the workers of a failed run that still live have learned."""

from __future__ import annotations

from typing import Any

import ray
from ray.exceptions import RayError

from pipeline.layers.state import State
from pipeline.runtime.history import Salvage

_ANSWER = 5.0  # seconds in which a worker that lives answers a call that needs no work


def salvage(owners: dict[str, Any], attempt: int, epoch: int | None, seconds: float) -> Salvage:
    """Fetches weights and states from the workers that answer.

    Args:
        owners: the workers that hold what the run learned, by what each of them holds, for people.
        attempt: at the run, that has ended.
        epoch: whose weights at its validation are fetched; None: the present ones.
        seconds: how long that may take. A worker that does not answer at all is not waited for so long.
    """
    answers = {what: owner.__ray_ready__.remote() for what, owner in owners.items()}
    _done(list(answers.values()), min(_ANSWER, seconds))
    weights, states = {}, {}
    for what, answer in answers.items():
        if _value(answer) is not None:
            owner = owners[what]
            weights[what] = owner.weights.remote(attempt) if epoch is None else owner.candidate.remote(attempt, epoch)
            states[what] = owner.trained.remote(attempt)
    _done([*weights.values(), *states.values()], seconds)
    found = Salvage(weights={}, last={}, lost=[what for what in owners if what not in weights])
    for what, ref in weights.items():
        theirs, state = _value(ref), _value(states[what])
        if theirs is None or state is None:
            found.lost.append(what)
        else:
            found.weights.update(theirs)
            found.last.update(state)
    return found


def _done(refs: list[Any], seconds: float) -> None:
    if refs:
        ray.wait(refs, num_returns=len(refs), timeout=seconds)


def _value(ref: Any) -> State | None:
    """What has come by now; None of a worker that is dead or silent, which the run's error names."""
    try:
        value: State = ray.get(ref, timeout=0)
    except RayError:
        return None
    return value
