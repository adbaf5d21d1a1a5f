from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from tests.agents.comparison.invented import scores


def test_a_searcher_that_stopped_keeps_what_it_had() -> None:
    found = scores({"one": lambda t, s, p: [0.1 * (t + 1)], "none": lambda t, s, p: []})
    assert found.utility("one", 8).shape == (2, 4, 1)
    np.testing.assert_allclose(found.utility("one", 8)[..., 0], [[0.1] * 4, [0.2] * 4])
    np.testing.assert_allclose(found.volume("one", 1), [[0.1] * 4, [0.2] * 4])
    assert not found.utility("none", 8).any()


def test_nothing_is_claimed_beyond_a_budget() -> None:
    found = scores({"slow": lambda t, s, p: [0.5, 0.6]}, budgets={"slow": 2})
    with pytest.raises(AssertionError):
        found.utility("slow", 3)


def test_evaluations_to_a_share_of_the_front() -> None:
    found = scores({"x": lambda t, s, p: [0.5, 0.94, 0.95 if s else 0.9499, 0.9499 if not s else 1]})
    np.testing.assert_array_equal(found.evaluations_to("x"), [[np.inf, 3, 3, 3]] * 2)


def test_by_time_a_result_counts_when_its_evaluation_is_done() -> None:
    found = scores({"x": lambda t, s, p: [0.5, 0.7, 0.9]})
    at = found.at_seconds("x", [0.5], np.asarray([0, 9.9, 10, 29, 30, 1000]))
    assert at.shape == (6, 2, 4, 1)
    np.testing.assert_allclose(at[:, 1, 2, 0], [0, 0, 0.5, 0.7, 0.9, 0.9])
    assert found.seconds("x", 2) == (20, 0)
    assert found.seconds("x", 8) == (30, 0)


def test_learning_elsewhere_stands_in_the_run_that_paid() -> None:
    found = scores({"x": lambda t, s, p: [0.5, 0.7]})
    paid = dataclasses.replace(found.traces["x", "table 1"][2, 0.5], searching=(61.0, 62.0))
    traces = {**found.traces, ("x", "table 1"): {**found.traces["x", "table 1"], (2, 0.5): paid}}
    found = dataclasses.replace(found, traces=traces)
    assert found.slowest_start("x") == 61
    assert found.seconds("x", 2) == (20, 0)
    late = found.at_seconds("x", [0.5], np.asarray([70.9, 71.0, 81.9, 82.0]))[:, 1, 2, 0]
    np.testing.assert_allclose(late, [0, 0.5, 0.5, 0.7])


def test_anchors_are_shares_of_the_best() -> None:
    np.testing.assert_allclose(scores({"x": lambda t, s, p: [1.0]}).anchors(), [[0.3], [0.3]])
