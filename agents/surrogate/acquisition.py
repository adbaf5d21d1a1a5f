"""What a measurement is worth: improvements that a belief expects, by Monte Carlo over its draws."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from rewards.objective import Axes

Floats = NDArray[np.float64]


def expected_improvement(utilities: Floats, best: Floats) -> Floats:
    """Mockus's expected improvement of the best utility, ``(n,)``.

    Args:
        utilities: Draws ``(s, n)``.
        best: Of what is there already, in each draw, ``(s,)``.
    """
    return np.asarray(np.maximum(utilities - best[:, None], 0).mean(axis=0))


def expected_hypervolume_improvement(axes: Floats, front: Iterable[Axes]) -> Floats:
    """What each mask is expected to add to the area that the front dominates above (0, 0), ``(n,)``.

    Emmerich et al. 2006 (doi:10.1109/TEVC.2005.859463), in two dimensions, where the area that a point adds is a sum
    over the strips between the qualities of the front.

    Args:
        axes: Draws ``(s, n, 2)``, 0 or more.
        front: Measured axes, dominated ones among them or not.
    """
    points = sorted(front)
    edges = np.asarray([0.0, *(point.quality for point in points), np.inf])
    privacy = np.asarray([point.privacy for point in points])
    # The height of the dominated area between two edges: the best privacy of all points at least as far right.
    heights = np.append(np.maximum.accumulate(privacy[::-1])[::-1], 0.0)
    wide = np.clip(axes[..., :1], edges[:-1], edges[1:]) - edges[:-1]
    return np.asarray((wide * np.maximum(axes[..., 1:] - heights, 0)).sum(axis=-1).mean(axis=0))
