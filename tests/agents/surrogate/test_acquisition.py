from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from agents.surrogate.acquisition import expected_hypervolume_improvement, expected_improvement
from rewards.objective import Axes, hypervolume

UNIT = st.floats(0, 1, width=32)
POINT = st.builds(Axes, UNIT, UNIT)


@settings(deadline=None)
@given(
    front=st.lists(POINT, max_size=6), draws=st.lists(st.lists(POINT, min_size=3, max_size=3), min_size=1, max_size=3)
)
def test_the_area_that_a_mask_adds(front: list[Axes], draws: list[list[Axes]]) -> None:
    """Against the difference of two areas, draw by draw."""
    expected = [
        np.mean([hypervolume([*front, draw[mask]]) - hypervolume(front) for draw in draws]) for mask in range(3)
    ]
    np.testing.assert_allclose(expected_hypervolume_improvement(np.asarray(draws), front), expected, atol=1e-12)


def test_without_a_front_it_is_the_area_itself() -> None:
    axes = np.asarray([[[0.5, 0.5], [1.0, 0.25]]])
    np.testing.assert_allclose(expected_hypervolume_improvement(axes, []), [0.25, 0.25])


def test_of_normal_draws_it_is_the_closed_form() -> None:
    """Jones et al. 1998: (m - b) Phi(z) + s phi(z) with z = (m - b) / s."""
    means, deviations, best = np.asarray([0.2, 0.5, 0.9]), np.asarray([0.3, 0.1, 0.2]), 0.6
    count = 200_000
    draws = means + deviations * np.random.default_rng(0).standard_normal((count, 3))
    z = (means - best) / deviations
    expected = (means - best) * norm.cdf(z) + deviations * norm.pdf(z)
    error = 4 * deviations / count**0.5
    assert (np.abs(expected_improvement(draws, np.full(count, best)) - expected) < error).all()


def test_every_draw_has_a_best_of_its_own() -> None:
    utilities = np.asarray([[0.5, 0.9], [0.2, 0.4]])
    np.testing.assert_allclose(expected_improvement(utilities, np.asarray([0.6, 0.1])), [0.05, 0.3])
    assert expected_improvement(utilities, np.asarray([1.0, 1.0])) == pytest.approx([0, 0])
