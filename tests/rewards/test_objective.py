from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.errors import InputError
from rewards.measurement import Measurement
from rewards.objective import AnchoredObjective, Axes, NotMeasuredError, Objective, Scalarization, hypervolume

unit = st.floats(0, 1)
Metrics = Mapping[str, Measurement]


def metrics(kid: float, auc: float, distance: float = 1.0, width: float = 0.01) -> Metrics:
    def around(value: float, null: float | None, higher_is_better: bool) -> Measurement:
        return Measurement(value, null, value - width, value + width, 100, higher_is_better)

    return {
        "kid": around(kid, 0.0, False),
        "membership": around(auc, 0.5, False),
        "average_minimum_distance": around(distance, 2.0, True),
    }


BASE, FULL = metrics(10.0, 0.5, 3.0), metrics(2.0, 0.9, 1.0)


def anchored(scalarization: Scalarization = "chebyshev", rho: float = 0.05) -> AnchoredObjective:
    return Objective(scalarization=scalarization, rho=rho).anchor(BASE, FULL)


def test_anchors_are_the_ends_of_both_axes() -> None:
    assert anchored().axes(BASE) == Axes(0, 1)
    assert anchored().axes(FULL) == Axes(1, 0)
    assert anchored().axes(metrics(4.0, 0.8)) == pytest.approx((0.75, 0.25))


def test_beyond_an_anchor_is_the_anchor() -> None:
    assert anchored().axes(metrics(0.5, 0.3)) == Axes(1, 1)
    assert anchored().axes(metrics(20.0, 0.99)) == Axes(0, 0)


def test_an_axis_is_the_mean_over_its_metrics_whatever_their_direction() -> None:
    both = Objective(privacy=("membership", "average_minimum_distance")).anchor(BASE, FULL)
    assert both.axes(metrics(2.0, 0.8, 1.5)).privacy == pytest.approx((0.25 + 0.5) / 2)
    assert both.axes(metrics(2.0, 0.4, 3.0)).privacy == 1


@given(quality=unit, privacy=unit, preference=unit, rho=st.floats(0, 2))
def test_utility_is_the_augmented_chebyshev_scalarisation(
    quality: float, privacy: float, preference: float, rho: float
) -> None:
    w, q, p = preference, quality, privacy
    loss = max(w * (1 - p), (1 - w) * (1 - q)) + rho * (w * (1 - p) + (1 - w) * (1 - q))
    utility = anchored(rho=rho).utility(Axes(q, p), w)
    assert utility == pytest.approx(1 - loss / (max(w, 1 - w) + rho))
    assert -1e-12 <= utility <= 1 + 1e-12


@pytest.mark.parametrize("scalarization", ["chebyshev", "weighted_sum"])
@given(quality=unit, privacy=unit, preference=unit, more=unit)
def test_more_of_an_axis_is_never_worse_and_the_corners_are_zero_and_one(
    scalarization: Scalarization, quality: float, privacy: float, preference: float, more: float
) -> None:
    objective = anchored(scalarization)
    utility = objective.utility(Axes(quality, privacy), preference)
    assert objective.utility(Axes(max(quality, more), privacy), preference) >= utility - 1e-12
    assert objective.utility(Axes(quality, max(privacy, more)), preference) >= utility - 1e-12
    assert objective.utility(Axes(1, 1), preference) == pytest.approx(1)
    assert objective.utility(Axes(0, 0), preference) == pytest.approx(0)


def test_preference_is_the_weight_of_privacy() -> None:
    for objective in (anchored("chebyshev"), anchored("weighted_sum")):
        assert objective.utility(Axes(0, 1), 1) == pytest.approx(1)
        assert objective.utility(Axes(1, 0), 1) == pytest.approx(0)
        assert objective.utility(Axes(0, 1), 0.8) > objective.utility(Axes(1, 0), 0.8)
    assert anchored("weighted_sum").utility(Axes(0.3, 0.9), 0.25) == pytest.approx(0.75 * 0.3 + 0.25 * 0.9)


def test_chebyshev_finds_a_trade_off_that_the_weighted_sum_does_not() -> None:
    candidates = [Axes(1, 0), Axes(0.4, 0.4), Axes(0, 1)]
    preferences = np.linspace(0, 1, 21)
    for objective, found in ((anchored("chebyshev"), True), (anchored("weighted_sum"), False)):
        best = {max(candidates, key=lambda axes: objective.utility(axes, w)) for w in preferences}
        assert (Axes(0.4, 0.4) in best) is found


@pytest.mark.parametrize("kid", [10.0, 12.0])
def test_full_fine_tuning_must_be_better_than_the_base_model(kid: float) -> None:
    with pytest.raises(InputError, match=r"no better than the base model: kid .*inner\.steps"):
        Objective().anchor(BASE, metrics(kid, 0.9))


@pytest.mark.parametrize("auc", [0.5, 0.4])
def test_full_fine_tuning_must_memorize(auc: float) -> None:
    with pytest.raises(InputError, match=r"memorizes nothing: membership .*inner\.steps"):
        Objective().anchor(BASE, metrics(2.0, auc))


def test_directions_come_from_the_metrics() -> None:
    objective = Objective(privacy=("average_minimum_distance",))
    with pytest.raises(InputError, match="average_minimum_distance"):
        objective.anchor(BASE, metrics(2.0, 0.9, distance=2.5))
    assert objective.anchor(BASE, FULL).axes(metrics(2.0, 0.9, distance=1.25)).privacy == pytest.approx(0.25)


def test_anchors_that_the_interval_cannot_tell_apart_are_named() -> None:
    assert anchored().uncertain == ()
    assert Objective().anchor(BASE, metrics(2.0, 0.55, width=0.06)).uncertain == ("membership",)
    assert Objective().anchor(BASE, metrics(9.0, 0.9, width=2.0)).uncertain == ("kid", "membership")


def test_a_missing_anchor_is_an_input_error() -> None:
    absent = Measurement(None, None, None, None, 0, False, "needs more than 1280 images")
    with pytest.raises(InputError, match="no anchor: kid was not measured: needs more than 1280 images"):
        Objective().anchor({**BASE, "kid": absent}, FULL)
    with pytest.raises(InputError, match="no anchor: membership has no null"):
        Objective().anchor(BASE, {**FULL, "membership": Measurement(0.9, None, None, None, 9, False)})
    with pytest.raises(InputError, match="no anchor: copy_rate is not among the metrics kid, membership"):
        Objective(privacy=("copy_rate",)).anchor(BASE, FULL)


def test_a_missing_value_is_a_failed_evaluation() -> None:
    absent = Measurement(None, 0.5, None, None, 0, False, "no denoising losses were computed")
    with pytest.raises(NotMeasuredError, match="membership was not measured: no denoising losses"):
        anchored().axes({**FULL, "membership": absent})
    with pytest.raises(NotMeasuredError, match="kid is not among the metrics membership"):
        anchored().axes({"membership": FULL["membership"]})


@pytest.mark.parametrize(
    "settings", [{"quality": ()}, {"privacy": ()}, {"scalarization": "hypervolume"}, {"rho": -1}, {"rho": float("nan")}]
)
def test_settings_that_are_none_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(InputError):
        Objective(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("preference", [-0.1, 1.1, float("nan")])
def test_a_preference_outside_the_unit_interval_is_refused(preference: float) -> None:
    with pytest.raises(InputError, match="preference"):
        anchored().utility(Axes(1, 1), preference)


@given(st.lists(st.tuples(st.integers(-3, 12), st.integers(-3, 12)), max_size=12))
def test_hypervolume_counts_the_dominated_cells(points: list[tuple[int, int]]) -> None:
    cells = sum(any(x > i and y > j for x, y in points) for i in range(12) for j in range(12))
    assert hypervolume((float(x), float(y)) for x, y in points) == cells
