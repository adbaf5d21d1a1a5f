"""One measured number, never without what it takes to believe it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Measurement:
    """A metric's value on generated images beside the same formula on held-out real ones.

    Attributes:
        value: The metric on generated images; None if it could not be measured (then ``note`` says why).
        null: The same formula with held-out real images in place of generated ones; None where none exists.
        low: Lower end of the 95 % interval of ``value``, or None.
        high: Upper end, or None.
        n: How many images (or pairs, or prompts) ``value`` rests on.
        higher_is_better: True if a larger value means better images, or less of the training set given away.
        note: Why there is no value; empty otherwise.
    """

    value: float | None
    null: float | None
    low: float | None
    high: float | None
    n: int
    higher_is_better: bool
    note: str = ""

    def __post_init__(self) -> None:
        for name in ("value", "null", "low", "high"):
            number = getattr(self, name)
            if number is not None and not math.isfinite(number):
                raise ValueError(f"a measurement's {name} is finite or None, got {number}")

    def to_json(self) -> dict[str, Any]:
        """The fields of ``result.json``; the note only where there is one."""
        fields = asdict(self)
        if not self.note:
            del fields["note"]
        return fields

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Measurement:
        """The inverse of `to_json`."""
        return cls(**fields)
