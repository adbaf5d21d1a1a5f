from __future__ import annotations

import pytest

from agents.finetuning.settings import StopSettings
from agents.finetuning.stop import StopRule, worse_than_null
from rewards.errors import InputError
from rewards.measurement import Measurement


def measured(value: float | None, low: float | None, high: float | None, *, higher_is_better: bool) -> Measurement:
    return Measurement(value, 0.5, low, high, 10, higher_is_better, "" if value is not None else "too few")


@pytest.mark.parametrize(
    ("value", "low", "high", "higher_is_better", "worse"),
    [
        (0.7, 0.6, 0.8, False, True),
        (0.7, 0.4, 0.9, False, False),
        (0.3, 0.2, 0.4, False, False),
        (0.3, 0.2, 0.4, True, True),
        (0.3, 0.2, 0.6, True, False),
        (0.7, None, None, False, True),
        (0.7, None, None, True, False),
        (0.5, None, None, False, False),
        (None, None, None, False, False),
    ],
)
def test_worse_than_the_null_is_the_whole_interval(
    value: float | None, low: float | None, high: float | None, higher_is_better: bool, worse: bool
) -> None:
    found = measured(value, low, high, higher_is_better=higher_is_better)
    assert worse_than_null(found) == worse
    if value is not None:
        rule = StopRule(StopSettings("membership", None), {"membership": 0.5})
        assert rule.broken({"membership": found}) == worse


@pytest.mark.parametrize(("higher_is_better", "broken"), [(False, [False, False, True]), (True, [True, False, False])])
def test_a_limit_is_for_the_value(higher_is_better: bool, broken: list[bool]) -> None:
    rule = StopRule(StopSettings("membership", 0.6), {"membership": None})
    found = [measured(value, 0.0, 1.0, higher_is_better=higher_is_better) for value in (0.5, 0.6, 0.7)]
    assert [rule.broken({"membership": each}) for each in found] == broken


def test_without_a_metric_nothing_ends() -> None:
    assert not StopRule(StopSettings(None, None), {}).broken({})


def test_a_metric_without_a_null_needs_a_limit() -> None:
    with pytest.raises(InputError, match=r"no null here — set stop\.limit"):
        StopRule(StopSettings("membership", None), {"membership": None})


def test_what_cannot_be_measured_is_no_rule_that_is_kept() -> None:
    rule = StopRule(StopSettings("membership", 0.6), {"membership": 0.5})
    with pytest.raises(InputError, match="cannot be measured: too few"):
        rule.broken({"membership": measured(None, None, None, higher_is_better=False)})


def test_settings_that_mean_nothing() -> None:
    with pytest.raises(InputError, match=r"stop\.limit=0\.1 without a metric"):
        StopSettings(None, 0.1)
    with pytest.raises(InputError, match=r"stop\.metric=nope"):
        StopSettings("nope", 0.1)
