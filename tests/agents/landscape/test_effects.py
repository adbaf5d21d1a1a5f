from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from agents.landscape.effects import Effects

MASKS = np.asarray(list(product([False, True], repeat=5)))


def test_an_additive_function_is_its_main_effects() -> None:
    weights = np.asarray([0.5, -0.2, 0.0, 0.1, 1.0])
    effects = Effects.of(MASKS, 3 + MASKS @ weights)
    np.testing.assert_allclose(effects.main, weights, atol=1e-12)
    np.testing.assert_allclose(effects.pairs[~np.eye(5, dtype=bool)], 0, atol=1e-12)
    assert np.isnan(np.diag(effects.pairs)).all()
    assert effects.explained == pytest.approx((1, 0))


def test_a_pair_adds_what_it_adds() -> None:
    effects = Effects.of(MASKS, MASKS[:, 0] + 0.6 * (MASKS[:, 1] & MASKS[:, 3]))
    assert effects.pairs[1, 3] == effects.pairs[3, 1] == pytest.approx(0.6)
    assert effects.main[1] == pytest.approx(0.3)  # half of the masks have the other one on
    assert sum(effects.explained) == pytest.approx(1)
    assert effects.explained[1] == pytest.approx(0.6**2 / 16 / np.var(MASKS[:, 0] + 0.6 * (MASKS[:, 1] & MASKS[:, 3])))


def test_they_are_differences_of_means() -> None:
    values = np.random.default_rng(0).normal(size=len(MASKS))
    effects = Effects.of(MASKS, values)

    def mean(**on: bool) -> float:
        return float(values[np.logical_and.reduce([MASKS[:, int(k[1])] == bit for k, bit in on.items()])].mean())

    for i in range(5):
        assert effects.main[i] == pytest.approx(mean(**{f"t{i}": True}) - mean(**{f"t{i}": False}))
    with_other = mean(t0=True, t2=True) - mean(t0=False, t2=True)
    without = mean(t0=True, t2=False) - mean(t0=False, t2=False)
    assert effects.pairs[0, 2] == pytest.approx(with_other - without)
    # Walsh contrasts by hand: of both orders, their squares are the variance explained.
    signs = np.where(MASKS, 1, -1)
    contrasts = [float((values * signs[:, i]).mean()) for i in range(5)]
    assert effects.explained[0] == pytest.approx(np.square(contrasts).sum() / values.var())


def test_a_missing_mask_does_not_disturb_what_is_exact() -> None:
    effects = Effects.of(MASKS[3:], MASKS[3:] @ np.arange(5.0))
    np.testing.assert_allclose(effects.main, np.arange(5), atol=1e-9)


def test_a_constant_has_no_effects() -> None:
    effects = Effects.of(MASKS, np.full(len(MASKS), 0.3))
    np.testing.assert_allclose(effects.main, 0, atol=1e-12)
    assert effects.explained == (0, 0)
