from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.evaluators.synthetic import SyntheticEvaluator
from envs.task import Mask, Schedule
from rewards.measurement import Measurement

MASKS = [tuple(bool(n >> i & 1) for i in range(8)) for n in range(256)]


def value(metrics: Mapping[str, Measurement], name: str) -> float:
    number = metrics[name].value
    assert number is not None
    return number


def table(seed: int) -> dict[Mask, tuple[float, float]]:
    """(kid, membership) of every mask of eight groups."""
    evaluator = SyntheticEvaluator("abcdefgh", seed)
    found = {mask: evaluator.evaluate(Schedule.constant(mask)).metrics for mask in MASKS}
    return {mask: (value(m, "kid"), value(m, "membership")) for mask, m in found.items()}


@pytest.mark.parametrize("seed", range(8))
def test_neither_all_nor_nothing_is_best(seed: int) -> None:
    """By the worse of two axes that the two ends anchor: 0 for both ends, above a half for the best mask."""
    numbers = table(seed)
    (kid_0, leak_0), (kid_1, leak_1) = numbers[(False,) * 8], numbers[(True,) * 8]
    assert leak_0 == 0.5
    assert kid_0 == pytest.approx(0.3)
    for weight in (0.2, 0.5, 0.8):
        utility = {
            mask: min((1 - weight) * (kid_0 - kid) / (kid_0 - kid_1), weight * (leak_1 - leak) / (leak_1 - leak_0))
            for mask, (kid, leak) in numbers.items()
        }
        best = max(utility, key=lambda mask: utility[mask])
        assert 0 < sum(best) < 8
        assert utility[best] > 0.5 * min(weight, 1 - weight)


@given(st.integers(0, 100), st.lists(st.booleans(), min_size=8, max_size=8), st.integers(0, 7))
def test_one_more_group_memorizes_more(seed: int, bits: list[bool], i: int) -> None:
    evaluator = SyntheticEvaluator("abcdefgh", seed)
    less, more = ([*bits[:i], on, *bits[i + 1 :]] for on in (False, True))
    low, high = (value(evaluator.evaluate(Schedule.constant(m)).metrics, "membership") for m in (less, more))
    assert 0.5 <= low < high < 1


def test_groups_interact() -> None:
    """What a group adds depends on its neighbour, in both directions over the seeds: no sum of single effects fits."""
    gaps = []
    for seed in range(10):
        evaluator = SyntheticEvaluator("ab", seed)
        kid = {
            bits: value(evaluator.evaluate(Schedule.constant(bits)).metrics, "kid")
            for bits in itertools.product((0, 1), repeat=2)
        }
        u = {bits: -np.log((k - 0.03) / 0.27) / 3 for bits, k in kid.items()}
        gaps.append(u[1, 1] - u[1, 0] - u[0, 1] + u[0, 0])
    assert min(gaps) < -0.05
    assert max(gaps) > 0.05


def test_phases_are_averaged() -> None:
    evaluator = SyntheticEvaluator("abcd", 3)
    a, b = (True, False, True, True), (False, True, True, False)
    one = evaluator.evaluate(Schedule((a,)))
    assert evaluator.evaluate(Schedule((a, a))).metrics == one.metrics
    assert evaluator.evaluate(Schedule((a, b))).metrics == evaluator.evaluate(Schedule((b, a))).metrics
    u = {m: -np.log((value(evaluator.evaluate(Schedule((m,))).metrics, "kid") - 0.03) / 0.27) / 3 for m in (a, b)}
    mixed = value(evaluator.evaluate(Schedule((a, b, b))).metrics, "kid")
    assert mixed == pytest.approx(0.03 + 0.27 * np.exp(-(u[a] + 2 * u[b])))


def test_trainable_parameters_are_those_of_any_phase() -> None:
    evaluator = SyntheticEvaluator("abc", 0)
    a, b, c = evaluator.parameters
    evaluation = evaluator.evaluate(Schedule(((True, False, False), (True, False, True))))
    assert (evaluation.trainable_parameters, evaluation.total_parameters) == (a + c, a + b + c)


def test_a_schedule_of_another_length_is_a_programming_error() -> None:
    with pytest.raises(ValueError, match="length"):
        SyntheticEvaluator("abc").evaluate(Schedule.constant([1, 0]))
