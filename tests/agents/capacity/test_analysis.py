"""What the comparison concludes, from evaluations made by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_module
from scipy import stats

from agents.capacity.analysis import EARLY, analyse, rank_correlation
from agents.capacity.document import write_document
from agents.capacity.runs import best_rates, table_cells, tuning_cells
from agents.capacity.settings import MethodsSettings
from agents.settings import read_settings
from agents.study.laboratory import Cell, from_json, to_json
from agents.study.rows import Interval, Row, privacy_beyond
from envs.evaluators.base import Evaluation
from envs.task import Schedule
from rewards.errors import InputError
from rewards.measurement import Measurement

SMALL = (
    "envs=[phantom]",
    "methods=[full,lora]",
    "seeds=[0,1]",
    "early_stops=[100]",
    "tuning.env=phantom",
    "tuning.learning_rates=[1e-3,1e-2]",
)


def settings(*overrides: str) -> MethodsSettings:
    with initialize_config_module("conf", version_base="1.3"):
        return read_settings(compose("methods", overrides=[*SMALL, *overrides]), MethodsSettings)


def evaluation(share: float, kid: float, auc: float) -> Evaluation:
    def measured(value: float, null: float, higher_is_better: bool = False) -> Measurement:
        return Measurement(value, null, None, None, 10, higher_is_better)

    metrics = {
        "kid": measured(kid, 0.0),
        "membership": measured(auc, 0.5),
        "copy_rate": measured(0.0, 0.0),
        "average_minimum_distance": measured(0.1, 0.1, higher_is_better=True),
    }
    return Evaluation(
        Schedule.constant([share > 0]),
        metrics,
        trainable_parameters=round(share * 1000),
        total_parameters=1000,
        steps=200,
        seconds=2.0,
    )


def made(of: Callable[[Cell], tuple[float, float, float]]) -> dict[Cell, Evaluation]:
    given = settings()
    return {cell: evaluation(*of(cell)) for cell in table_cells(given, dict.fromkeys(given.methods, 1e-3))}


def straight(cell: Cell) -> tuple[float, float, float]:
    """Early stopping trades quality for privacy one for one; LoRA pays next to nothing for quality."""
    if cell.mask == "nothing":
        return 0, 10, 0.5
    if cell.steps == 100:
        return 1, 6, 0.7
    if cell.mask == "everything":
        return (1, 2, 0.9) if cell.method == "full" else (0.1, 2, 0.5 + 0.1 * cell.seed)
    return (0.5, 6, 0.7) if cell.method == "full" else (0.05, 6, 0.5)


def test_axes_lie_between_the_base_model_and_full_fine_tuning() -> None:
    analysis = analyse(settings(), made(straight))
    rows = {(row.method, row.mask): row for row in analysis.rows}
    assert rows["full", "nothing"].quality.tolist() == [0, 0]
    assert rows["full", "nothing"].privacy.tolist() == [1, 1]
    assert rows["full", "everything"].quality.tolist() == [1, 1]
    assert rows["full", "everything"].privacy.tolist() == [0, 0]
    np.testing.assert_allclose(rows["full", "encoder"].quality, 0.5)
    np.testing.assert_allclose(rows["lora", "everything"].privacy, [1, 0.75])
    assert rows["lora", "middle"].share == 0.05
    assert [stop.mask for stop in analysis.early] == ["0", "100", "200"]
    assert analysis.nulls == {"kid": 0, "membership": 0.5, "copy_rate": 0, "average_minimum_distance": 0.1}


def test_privacy_is_compared_at_no_less_quality() -> None:
    against = analyse(settings(), made(straight)).against_early
    np.testing.assert_allclose(against["full", "encoder"], 0, atol=1e-12)
    np.testing.assert_allclose(against["lora", "decoder"], 0.5)
    np.testing.assert_allclose(against["lora", "everything"], [1, 0.75])
    assert ("full", "everything") not in against
    assert ("lora", "nothing") not in against


def row(quality: list[float], privacy: list[float]) -> Row:
    return Row(EARLY, "", 1, np.asarray(quality), np.asarray(privacy), {}, 0)


def test_the_best_early_stop_stands_in_where_none_is_as_good() -> None:
    early = [row([0, 0], [1, 1]), row([0.8, 0.5], [0.6, 0.9]), row([0.6, 1], [0.1, 0])]
    np.testing.assert_allclose(privacy_beyond(row([0.9, 0.75], [0.7, 0.7]), early), [0.1, 0.25], atol=1e-12)


def test_the_interval_over_seeds_is_students() -> None:
    values = np.asarray([1.0, 2.0, 4.0])
    interval = Interval.over(values)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    np.testing.assert_allclose([interval.low, interval.high], [expected.low, expected.high])
    assert [Interval(1, 0.5, 2).side, Interval(1, -0.5, 2).side, Interval(-1, -2, -0.5).side] == [1, 0, -1]


def test_a_rank_correlation_covers_what_is_there() -> None:
    x = np.arange(30.0)
    noise = np.random.default_rng(1).normal(size=30)
    perfect = rank_correlation(list(x), list(x**3))
    np.testing.assert_allclose([perfect.mean, perfect.low, perfect.high], 1)
    assert rank_correlation([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]) == Interval(0, -1, 1)
    nothing = rank_correlation(list(x), list(noise))
    assert nothing.low < 0 < nothing.high
    assert nothing.mean == stats.spearmanr(x, noise).statistic


def test_no_axes_without_memorization() -> None:
    with pytest.raises(InputError, match="full fine-tuning memorizes nothing"):
        analyse(settings(), made(lambda cell: (0.5, 10.0 if cell.mask == "nothing" else 2.0, 0.5)))


def test_the_learning_rate_of_best_quality_is_chosen_and_of_equals_the_lowest() -> None:
    given = settings()
    kid = {("full", 1e-3): 3.0, ("full", 1e-2): 2.0, ("lora", 1e-3): 5.0, ("lora", 1e-2): 5.0}
    found = {cell: evaluation(1, kid[cell.method, cell.learning_rate], 0.6) for cell in tuning_cells(given)}
    assert best_rates(given, found) == {"full": 1e-2, "lora": 1e-3}
    assert from_json(to_json(found)) == found


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("methods=[lora]", "keep full in methods="),
        ("seeds=[0]", "two seeds or more"),
        ("seeds=[0,100]", "tuning.seed not"),
        ("early_stops=[200]", "stop before inner.steps=200"),
        ("metrics=[kid,membership]", "lacks copy_rate"),
        ("methods=[full,lorra]", "method=lorra is no adaptation method"),
        ("envs=[]", "envs= is empty"),
    ],
)
def test_settings_that_do_not_fit(override: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        settings(override)


def test_the_page_says_what_was_found(tmp_path: Path) -> None:
    given = settings()
    kid = {("full", 1e-3): 3.0, ("full", 1e-2): 2.0, ("lora", 1e-3): 4.0, ("lora", 1e-2): 5.0}
    tuning = {cell: evaluation(1, kid[cell.method, cell.learning_rate], 0.6) for cell in tuning_cells(given)}
    about = {"seconds": 1.0, "date": "2000-01-01", "git": {"commit": "0" * 40, "dirty": False}}
    about |= {"hardware": "none", "versions": {"python": "3"}}
    times = {method: {mask: 0.0 if mask == "nothing" else 12.3 for mask in given.masks} for method in given.methods}
    records = {
        "tuning": about | {"result": to_json(tuning)},
        "phantom": about | {"result": to_json(made(straight))},
        "timing": about | {"result": times},
    }
    page = write_document(tmp_path, given, records).read_text(encoding="utf-8")
    assert (tmp_path / "methods-phantom.png").stat().st_size > 10_000
    said = " ".join(page.split())
    assert "membership from 0.5 to 0.9 (held-out images: 0.5)" in said
    assert "beaten in privacy by 3 of 7 combinations, beats 0, and 4 are not settled" in said
    assert (
        "With at least half of full fine-tuning's quality, lora with encoder is the most private: privacy 1.00" in said
    )
    assert "With at least four fifths of full fine-tuning's quality, lora with everything is the most private" in said
    assert "| lora | middle | 5.000% | 0.50 [0.50, 0.50] | 1.00 [1.00, 1.00] | 0.50 [0.50, 0.50] |" in page
    assert "| full | 3 | **2** |" in page
    assert "| lora | **4** | 5 |" in page
    assert "| full | 12 |  | 12 | 12 | 12 |" in page
