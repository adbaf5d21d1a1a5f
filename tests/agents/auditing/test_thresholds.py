from __future__ import annotations

from pathlib import Path

import pytest

from agents.auditing.thresholds import read_thresholds
from rewards.errors import InputError
from rewards.measurement import Measurement
from rewards.suite import METRICS


def measured(value: float | None, null: float | None = None, note: str = "") -> Measurement:
    return Measurement(value, null, None, None, 9, False, note)


def written(folder: Path, text: str) -> Path:
    path = folder / "policy.yaml"
    path.write_text(text)
    return path


def test_the_thresholds_that_ship_are_about_metrics_and_keep_heldout_images() -> None:
    thresholds = read_thresholds(None)
    assert set(thresholds.limits) <= set(METRICS)
    nulls = {"copy_rate": 0.01, "nearest_ratio": 0.0, "authenticity": 0.6, "data_copying": 0.0, "extraction": 0.0}
    nulls |= {"membership": 0.5, "inversion_success": 0.0}
    assert all(check.passed for check in thresholds.check({name: measured(x, x) for name, x in nulls.items()}))


@pytest.mark.parametrize(
    ("limit", "value", "null", "passed"),
    [
        ("{max: 0.1}", 0.1, None, True),
        ("{max: 0.1}", 0.11, None, False),
        ("{min: -3}", -3.0, None, True),
        ("{min: -3}", -3.1, None, False),
        ("{max_above_null: 0.2}", 0.69, 0.5, True),
        ("{max_above_null: 0.2}", 0.71, 0.5, False),
        ("{max_above_null: 0}", 0.2, 0.5, True),
        ("{max_below_null: 0.1}", 0.41, 0.5, True),
        ("{max_below_null: 0.1}", 0.39, 0.5, False),
    ],
)
def test_a_limit(tmp_path: Path, limit: str, value: float, null: float | None, passed: bool) -> None:
    thresholds = read_thresholds(written(tmp_path, f"copy_rate: {limit}"))
    (check,) = thresholds.check({"copy_rate": measured(value, null)})
    assert check.passed is passed


@pytest.mark.parametrize("required", [False, True])
def test_what_was_not_measured_is_a_failure_only_where_it_is_required(tmp_path: Path, required: bool) -> None:
    path = written(tmp_path, f"kid: {{max: 1, max_above_null: 1, required: {str(required).lower()}}}")
    cases = {
        "too few images": {"kid": measured(None, note="too few images")},
        "not among the metrics of this audit": {},
    }
    for note, measurements in cases.items():
        checks = read_thresholds(path).check(measurements)
        assert [(check.passed, check.note) for check in checks] == [(False if required else None, note)] * 2
    absolute, relative = read_thresholds(path).check({"kid": measured(0.5)})
    assert absolute.passed is True
    assert (relative.passed, relative.note) == (False if required else None, "it has no null here")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("beauty: {max: 1}", "'beauty' is unknown — choose among average_minimum_distance"),
        ("copy_rate: {most: 1}", r"copy_rate\.most"),
        ("copy_rate: {max: high}", r"copy_rate\.max"),
        ("copy_rate: {max: .nan}", r"copy_rate\.max"),
        ("copy_rate: {required: true}", "copy_rate has no limit"),
        ("copy_rate: 0.03", "copy_rate"),
        ("- copy_rate", "no mapping"),
        ("", "no mapping"),
        ("copy_rate: {max: [", "cannot be read"),
    ],
)
def test_a_file_that_is_none(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as raised:
        read_thresholds(written(tmp_path, text))
    assert "\n" not in str(raised.value)


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(InputError, match=r"policy=nowhere\.yaml cannot be read"):
        read_thresholds("nowhere.yaml")
