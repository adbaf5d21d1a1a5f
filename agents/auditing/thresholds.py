"""A file of thresholds, which turns measurements into a verdict."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import FiniteFloat, TypeAdapter, ValidationError

from rewards.errors import InputError
from rewards.measurement import Measurement
from rewards.suite import METRICS

RELEASE = Path(__file__).parent / "release.yaml"
"""The thresholds that ship."""


@dataclass(frozen=True)
class Limits:
    """What one metric's value has to keep to; None where it does not matter.

    Attributes:
        max: The largest value.
        min: The smallest value.
        max_above_null: How far the value may be above its null.
        max_below_null: How far the value may be below its null.
        required: True if it is a failure that the metric was not measured.
    """

    max: FiniteFloat | None = None
    min: FiniteFloat | None = None
    max_above_null: FiniteFloat | None = None
    max_below_null: FiniteFloat | None = None
    required: bool = False


@dataclass(frozen=True)
class Check:
    """One limit, looked at.

    Attributes:
        metric: Its name.
        rule: In words, with the number.
        passed: None if the metric, or its null, was not measured and need not be.
        note: Why not.
    """

    metric: str
    rule: str
    passed: bool | None
    note: str = ""


@dataclass(frozen=True)
class Thresholds:
    """The limits of a file.

    Attributes:
        path: Of the file.
        sha256: Of its content.
        limits: By metric.
    """

    path: Path
    sha256: str
    limits: Mapping[str, Limits]

    def check(self, measurements: Mapping[str, Measurement]) -> list[Check]:
        """Every limit, in the file's order."""
        return [
            check
            for metric, limits in self.limits.items()
            for check in _checks(metric, limits, measurements.get(metric))
        ]


def read_thresholds(path: str | Path | None) -> Thresholds:
    """Reads a YAML mapping from metrics to `Limits`.

    Args:
        path: Of the file; None for the one that ships.

    Raises:
        InputError: If it cannot be read, or names a metric or a limit that there is not.
    """
    path = RELEASE if path is None else Path(path)
    try:
        content = path.read_bytes()
        entries: Any = yaml.safe_load(content)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(
            f"policy={path} cannot be read ({' '.join(str(error).split())})", "give a YAML file"
        ) from error
    remedy = f"write a mapping like copy_rate: {{max: 0.03}}; see {RELEASE.name}"
    if not isinstance(entries, dict) or not entries:
        raise InputError(f"policy={path} holds no mapping from metrics to limits", remedy)
    limits = {}
    for metric, entry in entries.items():
        if metric not in METRICS:
            raise InputError(f"policy={path}: metric {metric!r} is unknown", f"choose among {', '.join(METRICS)}")
        try:
            limits[metric] = TypeAdapter(Limits).validate_python(entry, extra="forbid")
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(map(str, (metric, *first["loc"])))
            raise InputError(f"policy={path}: {key}: {first['msg']}", remedy) from error
        if limits[metric] == Limits(required=limits[metric].required):
            raise InputError(f"policy={path}: {metric} has no limit", remedy)
    return Thresholds(path, hashlib.sha256(content).hexdigest(), limits)


def _checks(metric: str, limits: Limits, measurement: Measurement | None) -> list[Check]:
    value = None if measurement is None else measurement.value
    null = None if measurement is None else measurement.null
    checks = []
    for bound, words, sign, relative in (
        (limits.max, "at most {:g}", 1, False),
        (limits.min, "at least {:g}", -1, False),
        (limits.max_above_null, "at most {:g} above its null", 1, True),
        (limits.max_below_null, "at most {:g} below its null", -1, True),
    ):
        if bound is None:
            continue
        rule = words.format(bound)
        missing = "" if value is not None else _reason(measurement)
        if not missing and relative and null is None:
            missing = "it has no null here"
        if missing:
            checks.append(Check(metric, rule, False if limits.required else None, missing))
            continue
        assert value is not None
        distance = value - (null or 0.0) if relative else value
        kept = sign * distance <= (bound if relative else sign * bound)
        checks.append(Check(metric, rule, kept))
    return checks


def _reason(measurement: Measurement | None) -> str:
    return "not among the metrics of this audit" if measurement is None else measurement.note
