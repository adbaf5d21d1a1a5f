"""What the best mask of a table owes to the luck of its seed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class Luck:
    """The winner's curse (Capen, Clapp & Campbell 1971): the best of many noisy measurements is too good to be true.

    Attributes:
        noise: Standard deviation of a mask's utility between seeds, pooled.
        reliability: The share of the variance between repeated masks that is not noise, in [0, 1].
        chosen: Mean utility of the mask that is best with one seed, with that seed; over the seeds in turn.
        again: Mean utility of the same masks with the other seeds.
        best_again: Mean utility with the other seeds of the masks that are best with these.
        expected: What the best of the *whole* table is expected to lose with another seed: (1 - reliability) times its
            distance from the mean, the shrinkage of normal values under normal noise (James & Stein 1961).
    """

    noise: float
    reliability: float
    chosen: float
    again: float
    best_again: float
    expected: float

    @classmethod
    def of(cls, utilities: Vector, repeated: Vector) -> Luck | None:
        """Estimates it.

        Args:
            utilities: ``(m,)``, of every mask.
            repeated: ``(r, s)``, of some of them with each seed.

        Returns:
            None with fewer than three repeated masks or two seeds.
        """
        if repeated.shape[0] < 3 or repeated.shape[1] < 2:
            return None
        within = float(repeated.var(axis=1, ddof=1).mean())
        total = float(repeated.var(axis=0, ddof=1).mean())
        reliability = min(max(1 - within / total, 0.0), 1.0) if total > 0 else 0.0
        chosen, again, best = [], [], []
        for seed in range(repeated.shape[1]):
            others = np.delete(repeated, seed, axis=1).mean(axis=1)
            winner = int(repeated[:, seed].argmax())
            chosen.append(repeated[winner, seed])
            again.append(others[winner])
            best.append(others.max())
        return cls(
            within**0.5,
            reliability,
            float(np.mean(chosen)),
            float(np.mean(again)),
            float(np.mean(best)),
            (1 - reliability) * float(utilities.max() - utilities.mean()),
        )
