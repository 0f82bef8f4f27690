"""Figures over several seeds: mean and deviation, and whether two means differ by more than chance."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence


def mean_and_deviation(values: Sequence[float | None], shown: Callable[[float], str]) -> str:
    """ "97.1% ± 0.3%", with the standard deviation of a sample; a dash where there is no value.

    Args:
        values: None of a run that did not come to it.
        shown: how one figure looks.
    """
    there = [value for value in values if value is not None]
    if not there:
        return "–"
    if len(there) == 1:
        return shown(there[0])
    return f"{shown(statistics.mean(there))} ± {shown(statistics.stdev(there))}"


def chance(one: Sequence[float], other: Sequence[float]) -> float | None:
    """How likely such a difference of two means is by chance alone: p of Welch's t-test.

    None where it cannot be told: a side has fewer than two values, or neither has any spread.
    """
    if min(len(one), len(other)) < 2 or not (statistics.pvariance(one) or statistics.pvariance(other)):
        return None
    from scipy.stats import ttest_ind  # noqa: PLC0415 (half a second)

    p = float(ttest_ind(one, other, equal_var=False).pvalue)
    return None if math.isnan(p) else p


def difference(name: str, base_name: str, values: Sequence[float], base: Sequence[float]) -> str:
    """A sentence on the test accuracies of two settings, over two seeds or more each."""
    p = chance(values, base)
    judged = "no spread to judge it by" if p is None else f"p = {p:.2g}"
    return (
        f"test accuracy, {name} against {base_name}: {statistics.mean(values) - statistics.mean(base):+.2%}, {judged} "
        f"(Welch's t-test, {len(values)} and {len(base)} seeds)"
    )
