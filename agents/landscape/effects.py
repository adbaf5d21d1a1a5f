"""What each toggle and each pair of toggles does to a number, over all masks."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class Effects:
    """The first two orders of a factorial analysis.

    Fitted by least squares to toggles coded as -1 and 1. Where every mask is measured the columns are orthogonal, and
    the coefficients are the Walsh contrasts of the full factorial (Box, Hunter & Hunter, Statistics for Experimenters,
    chapter 5): exact, with no model assumed.

    Attributes:
        main: ``(g,)``, the mean with a toggle on minus the mean with it off.
        pairs: ``(g, g)``, symmetric: how much more the one toggle adds where the other is on than where it is off; NaN
            on the diagonal.
        explained: Shares of the variance that the main effects and the pairs account for; what is left belongs to
            higher orders and to noise. Zeros if there is no variance.
    """

    main: Vector
    pairs: Vector
    explained: tuple[float, float]

    @classmethod
    def of(cls, masks: NDArray[np.bool_], values: Vector) -> Effects:
        """Fits them.

        Args:
            masks: ``(m, g)``.
            values: ``(m,)``, finite.
        """
        toggles = masks.shape[1]
        signs = np.where(masks, 1.0, -1.0)
        both = list(combinations(range(toggles), 2))
        linear = np.column_stack([np.ones(len(masks)), signs])
        full = np.column_stack([linear, *(signs[:, i] * signs[:, j] for i, j in both)])
        coefficients = np.linalg.lstsq(full, values)[0]
        pairs = np.full((toggles, toggles), np.nan)
        for (i, j), coefficient in zip(both, coefficients[1 + toggles :], strict=True):
            pairs[i, j] = pairs[j, i] = 4 * coefficient
        first, second = (_explained(design, values) for design in (linear, full))
        return cls(2 * coefficients[1 : 1 + toggles], pairs, (first, second - first))


def _explained(design: Vector, values: Vector) -> float:
    variance = float(values.var())
    if variance < 1e-15:
        return 0.0
    return 1 - float((values - design @ np.linalg.lstsq(design, values)[0]).var()) / variance
