"""Looks at a model in training: generated images, quality and memorization against held-out images."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agents.finetuning.curves import tiled
from envs.generate import Steering
from envs.judge import Judge
from rewards.measurement import Measurement


@dataclass(frozen=True)
class Validation:
    """What one look found.

    Attributes:
        metrics: By name.
        grid: Generated images as one, ``(height, width, 3)``; None for none.
        seconds: That it took.
    """

    metrics: dict[str, Measurement]
    grid: NDArray[np.uint8] | None
    seconds: float


def validate(judge: Judge, grid: int, steerings: Sequence[Steering] = ()) -> Validation:
    """Generates, if the metrics or the grid want it, and measures the model as it stands.

    Args:
        judge: On held-out images.
        grid: Images shown; 0 for none.
        steerings: Of the sampler.

    Raises:
        DivergedError: If the model's losses are not finite.
    """
    started = time.perf_counter()
    images = judge.generate(steerings) if grid or "images" in judge.suite.needs else None
    metrics = judge.measure(images, judge.evidence())
    shown = tiled(images, grid) if grid and images is not None else None
    return Validation(metrics, shown, time.perf_counter() - started)
