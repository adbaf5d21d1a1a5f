"""Probabilities over time as an image."""

from __future__ import annotations

import matplotlib
import numpy as np
from numpy.typing import NDArray

_CELL = 12


def heat_map(probabilities: NDArray[np.float32]) -> NDArray[np.uint8]:
    """An RGB image of probabilities ``(groups, rounds)``: dark is 0, bright is 1, 12 pixels a cell."""
    colours = matplotlib.colormaps["viridis"](probabilities)[..., :3]
    pixels = (255 * colours).round().astype(np.uint8)
    return np.repeat(np.repeat(pixels, _CELL, axis=0), _CELL, axis=1)
