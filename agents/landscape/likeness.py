"""How alike tables are: what is good in one, is it good in the other?"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from agents.landscape.surface import Surface

Vector = NDArray[np.float64]


def likeness(surfaces: Sequence[Surface], preference: float) -> Vector:
    """Spearman's rank correlation of the utilities of the masks that two tables share.

    Args:
        surfaces: The tables.
        preference: The weight of privacy.

    Returns:
        ``(t, t)``, symmetric. On the diagonal stands what a table reaches with itself: the mean correlation between two
        of its seeds over the masks that were repeated, the most that another table can be expected to reach. NaN where
        toggles differ, where nothing was repeated, and where a side is constant.
    """
    utilities = [surface.utilities(preference) for surface in surfaces]
    result = np.full((len(surfaces), len(surfaces)), np.nan)
    for i, surface in enumerate(surfaces):
        repeated = surface.repeated_utilities(preference)
        if repeated.shape[0] > 2 and repeated.shape[1] > 1:
            columns = combinations(repeated.T, 2)
            result[i, i] = np.mean([_spearman(*pair) for pair in columns])
        for j in range(i):
            other = surfaces[j]
            if surface.toggles == other.toggles:
                here, there = ({m.tobytes(): r for r, m in enumerate(s.masks)} for s in (surface, other))
                shared = sorted(here.keys() & there.keys())
                result[i, j] = result[j, i] = _spearman(
                    utilities[i][[here[mask] for mask in shared]], utilities[j][[there[mask] for mask in shared]]
                )
    return result


def _spearman(x: Vector, y: Vector) -> float:
    return float(stats.spearmanr(x, y).statistic) if np.ptp(x) and np.ptp(y) else float("nan")
