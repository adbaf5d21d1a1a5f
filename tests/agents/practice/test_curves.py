from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from agents.policy import SelectionNetwork
from agents.practice import curves
from agents.practice.curves import PREFERENCES, PracticeCurves
from agents.practice.learner import practise
from tests.agents.practice.test_learner import INVENTED, LANDSCAPES, QUICK, equal, probabilities, weights

NAMES = [f"task {i}" for i in range(len(LANDSCAPES))]


@pytest.fixture(scope="module")
def followed(tmp_path_factory: pytest.TempPathFactory) -> tuple[SelectionNetwork, Path]:
    """Five steps of an ascent and three updates of PPO, recorded before every third and after the last."""
    folder = tmp_path_factory.mktemp("practice")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(curves, "_EVERY", 3)
        with PracticeCurves(LANDSCAPES, NAMES, folder) as shown:
            network = practise(LANDSCAPES, QUICK, seed=1, watch=shown.show, logger=shown.logger)
            shown.end(network)
    return network, folder


def test_to_follow_changes_nothing(followed: tuple[SelectionNetwork, Path]) -> None:
    assert equal(weights(followed[0]), weights(practise(LANDSCAPES, QUICK, seed=1)))


def test_the_curves_say_how_good_the_choices_are(followed: tuple[SelectionNetwork, Path]) -> None:
    network, folder = followed
    events = EventAccumulator(str(folder))
    events.Reload()
    for name, invented, landscape in zip(NAMES, INVENTED, LANDSCAPES, strict=True):
        utilities = [event.value for event in events.Scalars(f"{name}/utility")]
        regrets = [event.value for event in events.Scalars(f"{name}/regret")]
        assert len(utilities) == len(regrets) == 4
        of_choice, of_best = [], []
        for w in PREFERENCES:
            everywhere = {mask: invented.objective.utility(axes, w) for mask, axes in invented.axes.items()}
            of_choice.append(everywhere[tuple(bool(p > 0.5) for p in probabilities(network, landscape, w))])
            of_best.append(max(everywhere.values()))
        assert utilities[-1] == pytest.approx(np.mean(of_choice), abs=1e-5)
        assert regrets[-1] == pytest.approx(np.mean(of_best) - np.mean(of_choice), abs=1e-5)
        assert len(events.Images(f"{name}/over time")) == 4
        assert [event.step for event in events.Scalars(f"{name}/utility")] == [0, 3, 6, 8]
    assert {"train/approx_kl", "train/entropy_loss", "train/value_loss"} <= set(events.Tags()["scalars"])
