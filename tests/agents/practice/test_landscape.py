from __future__ import annotations

import dataclasses
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.practice.landscape import Landscape, LandscapeEvaluator, some_masks, unit_objective, utilities_at
from envs.evaluators.base import evaluate_many
from envs.task import Schedule
from rewards.errors import InputError
from rewards.objective import Axes, Objective, Scalarization
from tests.agents.search.problems import Invented

INVENTED = Invented(5, seed=2)
EXPERIENCE = INVENTED.experience("task")
LANDSCAPE = Landscape.of_table(EXPERIENCE)
UNIT = st.floats(0, 1)
SCALARIZATIONS = get_args(Scalarization)


def test_a_table_is_looked_up() -> None:
    masks = list(INVENTED.axes)
    order = np.random.default_rng(0).permutation(len(masks))[:11]
    found = LANDSCAPE.axes(np.asarray([masks[i] for i in order]))
    assert [tuple(axes) for axes in found.tolist()] == [tuple(INVENTED.axes[masks[i]]) for i in order]
    assert LANDSCAPE.toggles == 5


def test_a_table_with_a_gap_is_one_line() -> None:
    rest = dict(list(INVENTED.axes.items())[:-2])
    with pytest.raises(InputError, match="of phantom not every mask was measured"):
        Landscape.of_table(dataclasses.replace(EXPERIENCE, outcomes=rest))


@settings(deadline=None)
@given(
    axes=st.lists(st.builds(Axes, UNIT, UNIT), min_size=1, max_size=5),
    preference=UNIT,
    scalarization=st.sampled_from(SCALARIZATIONS),
    rho=st.sampled_from([0.0, 0.05, 1.0]),
)
def test_many_utilities_at_once_are_those_of_the_objective(
    axes: list[Axes], preference: float, scalarization: Scalarization, rho: float
) -> None:
    unit = unit_objective(Objective(("kid",), ("membership",), scalarization, rho))
    quality, privacy = np.asarray(axes).T
    found = utilities_at(unit, quality, privacy, preference)
    np.testing.assert_allclose(found, [unit.utility(each, preference) for each in axes], atol=1e-12)
    anchored = dataclasses.replace(INVENTED.objective, objective=Objective(scalarization=scalarization, rho=rho))
    np.testing.assert_allclose(found, [anchored.utility(each, preference) for each in axes], atol=1e-12)


@pytest.mark.parametrize("scalarization", SCALARIZATIONS)
def test_regret_is_what_is_missing_to_the_best_as_a_share_of_it(scalarization: Scalarization) -> None:
    landscape = dataclasses.replace(LANDSCAPE, objective=Objective(scalarization=scalarization))
    anchored = dataclasses.replace(INVENTED.objective, objective=landscape.objective)
    on_grid, between = (0.0, 0.05, 0.35, 0.5, 0.85, 1.0), np.random.default_rng(1).uniform(size=20).tolist()
    for preference in (*on_grid, *between):
        regret = [landscape.regret.utility(axes, preference) for axes in INVENTED.axes.values()]
        raw = np.asarray([anchored.utility(axes, preference) for axes in INVENTED.axes.values()])
        assert regret == pytest.approx(raw / raw.max() - 1, abs=1e-9 if preference in on_grid else 0.02)
        assert np.argsort(regret).tolist() == np.argsort(raw).tolist()


def test_a_landscape_without_anything_to_have_has_finite_regret() -> None:
    barren = dataclasses.replace(LANDSCAPE, axes=lambda masks: np.zeros((len(masks), 2)))
    assert barren.regret.utility(Axes(0.0, 0.0), 0.5) == pytest.approx(-1)


@pytest.mark.parametrize("preference", [0.2, 0.5, 0.8])
def test_its_best_mask_is_the_best(preference: float) -> None:
    assert LANDSCAPE.best(preference) == EXPERIENCE.best(preference)


def test_its_evaluator_measures_the_axes_themselves() -> None:
    calls: list[int] = []

    def axes(masks: np.ndarray) -> np.ndarray:
        calls.append(len(masks))
        return LANDSCAPE.axes(masks)

    evaluator = LandscapeEvaluator(dataclasses.replace(LANDSCAPE, axes=axes))
    asked = [Schedule.from_key(key) for key in ("01010", "11111", "01010", "00001")]
    unit = unit_objective(LANDSCAPE.objective)
    for _ in range(2):
        found = evaluate_many(evaluator, asked)
        assert [evaluation.schedule for evaluation in found] == asked
        assert [unit.axes(e.metrics) for e in found] == [pytest.approx(INVENTED.axes[s.phases[0]]) for s in asked]
    assert calls == [3], "each mask once"
    assert len(evaluator.groups) == 5


@pytest.mark.parametrize("toggles", [1, 8, 10])
def test_few_toggles_have_every_mask_in_the_order_of_binary_numbers(toggles: int) -> None:
    numbers = some_masks(toggles) @ (1 << np.arange(toggles)[::-1])
    assert numbers.tolist() == list(range(2**toggles))


def test_of_many_toggles_there_is_a_fixed_sample_of_all_sizes() -> None:
    masks = some_masks(25)
    assert masks.shape == (512, 25)
    assert not masks[0].any()
    assert masks[-1].all()
    np.testing.assert_array_equal(masks, some_masks(25))
    sizes = np.bincount(masks.sum(axis=1), minlength=26)
    assert (sizes > 0).all()
    assert sizes[:5].sum() > 50, "fair coins would give hardly one mask of at most 4 of 25"
