from __future__ import annotations

import numpy as np
import pytest

from agents.landscape.luck import Luck


def test_without_noise_there_is_no_luck() -> None:
    values = np.linspace(0, 1, 20)
    luck = Luck.of(values, np.repeat(values[:, None], 3, axis=1))
    assert luck is not None
    assert (luck.noise, luck.reliability, luck.expected) == pytest.approx((0, 1, 0))
    assert luck.chosen == luck.again == luck.best_again == 1


def test_of_pure_noise_the_winner_is_all_luck() -> None:
    repeated = np.random.default_rng(0).normal(0.5, 0.1, (4000, 3))
    luck = Luck.of(repeated[:, 0], repeated)
    assert luck is not None
    assert luck.noise == pytest.approx(0.1, rel=0.05)
    assert luck.reliability < 0.05
    assert luck.again == pytest.approx(0.5, abs=0.2)
    assert luck.chosen - luck.again > 0.2
    assert luck.expected == pytest.approx(repeated[:, 0].max() - repeated[:, 0].mean(), rel=0.05)


def test_the_expected_loss_is_what_measuring_again_loses() -> None:
    """Of normal values under normal noise, averaged over many tables."""
    rng, lost, expected = np.random.default_rng(1), [], []
    for _ in range(300):
        true = rng.normal(0, 1, 256)
        repeated = true[:, None] + rng.normal(0, 0.7, (256, 3))
        luck = Luck.of(repeated[:, 0], repeated)
        assert luck is not None
        best = int(repeated[:, 0].argmax())
        lost.append(repeated[best, 0] - true[best])
        expected.append(luck.expected)
    assert np.mean(expected) == pytest.approx(np.mean(lost), rel=0.1)


def test_nothing_is_said_without_repeats() -> None:
    assert Luck.of(np.ones(5), np.ones((5, 1))) is None
    assert Luck.of(np.ones(5), np.ones((0, 3))) is None
