from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from agents.landscape.likeness import likeness
from agents.landscape.surface import Surface
from envs.evaluators.base import Evaluation
from envs.evaluators.table import EvaluationTable
from envs.task import Schedule
from rewards.objective import Objective
from tests.agents.noisy import noisy_table
from tests.agents.tables import invented_table

OBJECTIVE = Objective()


def moved(table: EvaluationTable, seed: int, factor: float, shift: float) -> EvaluationTable:
    """With another scale of a seed's KID, as another draw of real images would give."""

    def change(evaluation: Evaluation) -> Evaluation:
        kid = evaluation.metrics["kid"]
        assert kid.value is not None
        value = dataclasses.replace(kid, value=factor * kid.value + shift)
        return dataclasses.replace(evaluation, metrics={**evaluation.metrics, "kid": value})

    of_seed = {schedule: change(e) for schedule, e in table.evaluations[seed].items()}
    return dataclasses.replace(table, evaluations={**table.evaluations, seed: of_seed})


def test_every_mask_stands_between_the_anchors() -> None:
    surface = Surface.of("invented", invented_table(), OBJECTIVE)
    assert surface.masks.shape == (64, 6)
    assert surface.axes[0].tolist() == [0, 1]
    assert surface.axes[-1].tolist() == [1, 0]
    assert surface.share[0] == 0
    assert surface.share[-1] == 1
    assert surface.named(0) == "none"
    assert surface.named(63) == "all"
    assert surface.named(5) == "group 3, group 5"


def test_each_seed_lies_between_its_own_anchors() -> None:
    table = invented_table()
    own = table.task.seed
    surface = Surface.of("moved", moved(table, own + 1, 2.0, 7.0), OBJECTIVE)
    # The anchors are left out: 5 is the one further mask that has both seeds, and it stands where it stood.
    assert surface.repeated.tolist() == [5]
    np.testing.assert_allclose(surface.repeats[0, 0], surface.repeats[0, 1])
    assert {name: each.value for name, each in surface.noise().items()} == pytest.approx({"quality": 0, "privacy": 0})


def test_a_seed_without_axes_is_left_out() -> None:
    table = invented_table()
    surface = Surface.of("turned", moved(table, table.task.seed + 1, -1.0, 0.0), OBJECTIVE)
    assert surface.unusable == (table.task.seed + 1,)
    assert surface.noise() == {}


def test_noise_is_the_pooled_deviation_of_the_axes() -> None:
    surface = Surface.of("noisy", noisy_table(noise=0.05, repeated=40), OBJECTIVE)
    assert surface.repeats.shape == (38, 3, 2)
    quality = surface.noise()["quality"]
    assert quality.value == pytest.approx(surface.repeats[..., 0].var(axis=1, ddof=1).mean() ** 0.5)
    assert 0.03 < quality.value < 0.06


def test_a_failed_mask_is_left_out() -> None:
    table = invented_table()
    failed = Schedule.from_key("000111")
    found = {**table.evaluations[table.task.seed], failed: Evaluation(failed, failure="NaN loss")}
    surface = Surface.of(
        "failed", dataclasses.replace(table, evaluations={**table.evaluations, table.task.seed: found}), OBJECTIVE
    )
    assert len(surface.masks) == len(surface.axes) == len(surface.share) == 63
    assert tuple(surface.masks[7]) == Schedule.from_key("001000").phases[0]


def test_nothing_dominates_the_front_and_it_dominates_the_rest() -> None:
    surface = Surface.of("noisy", noisy_table(), OBJECTIVE)
    front = set(surface.front().tolist())
    for row, (quality, privacy) in enumerate(surface.axes):
        q, p = surface.axes.T
        dominated = ((q >= quality) & (p >= privacy) & ((q > quality) | (p > privacy))).any()
        assert dominated != (row in front)


def test_tables_of_the_same_ranks_are_alike() -> None:
    first, other = (Surface.of(str(seed), noisy_table(seed=seed, noise=0.02), OBJECTIVE) for seed in (0, 1))
    matrix = likeness([first, first, other], 0.5)
    assert matrix[0, 1] == pytest.approx(1)
    assert matrix[0, 2] == matrix[2, 1] < 0.99
    assert 0.8 < matrix[0, 0] < 1
    renamed = dataclasses.replace(other.table.task, groups=tuple("abcdef"))
    stranger = dataclasses.replace(other, table=dataclasses.replace(other.table, task=renamed))
    assert np.isnan(likeness([first, stranger], 0.5)[0, 1])
