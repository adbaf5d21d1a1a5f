"""A run in a table: the right one is found, a wrong one is refused with what differs."""

from __future__ import annotations

from pathlib import Path

import pytest

from agents import lookup
from agents.lookup import find_table
from agents.settings import TrainSettings
from rewards.errors import InputError
from tests.agents.command import answers, read_json, train, trained
from tests.agents.tables import invented_table, settings_of

TABULAR = ("evaluator=tabular", "inner.steps=37")  # no table that ships has this number of steps
SEARCH = ("agent=ppo", "budget.evaluations=12", "agent.rollout=4", "agent.epochs=2")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with two tables; none ships."""
    monkeypatch.setattr(lookup, "SHIPPED", tmp_path / "nowhere")
    for name, override in (("b", "method=full"), ("a", "method=svdiff")):
        invented_table("inner.steps=37", override).write(tmp_path / "runs" / "tables" / f"{name}.parquet")
    return tmp_path


def asked(folder: Path, *overrides: str) -> TrainSettings:
    return settings_of(*TABULAR, f"run_dir={folder / 'runs'}", *overrides)


def test_the_table_of_the_task_is_found(folder: Path) -> None:
    for method in ("full", "svdiff"):
        assert find_table(asked(folder, f"method={method}", "seed=5")).task.method == method


@pytest.mark.parametrize(
    ("override", "difference"),
    [
        ("inner.steps=38", "inner.steps=37 instead of 38"),
        ("method.name=bias_norm", " instead of bias_norm"),
        ("env.seed=1", "env.seed=0 instead of 1"),
        ("groups=memcontrol13", "groups=blocks instead of memcontrol13"),
        ("reward.quality=[copy_rate]", "it has no copy_rate"),
    ],
)
def test_what_differs_is_said(folder: Path, override: str, difference: str) -> None:
    with pytest.raises(InputError, match="no table was measured for this task") as error:
        find_table(asked(folder, override))
    assert error.value.what.endswith(difference)
    with pytest.raises(InputError, match="was measured for another task") as error:
        find_table(asked(folder, override, f"evaluator.table={folder}/runs/tables/b.parquet"))
    assert error.value.what.endswith(difference)


def test_a_search_in_a_table(folder: Path) -> None:
    """It needs neither images nor the store, and says what its final numbers stand on."""
    run = trained(*TABULAR, *SEARCH, folder=folder)
    result = read_json(run / "result.json")
    assert result["judged_by"].startswith("the table")
    assert result["evaluations"]["distinct"] >= 12
    selected = result["selected"]["schedule"]
    found = next(line for line in answers(run) if line["schedule"] == selected)
    assert result["metrics"] == found["metrics"]
    assert result["axes"] == result["selected"]["search"]["axes"]
    assert not (folder / "runs" / "evaluations.sqlite").exists()
    assert "test split" not in (run / "report.html").read_text(encoding="utf-8").split("<h2>Data</h2>")[0]


def test_bad_input(folder: Path) -> None:
    outcome = train(*TABULAR, "agent=ppo", "horizon=2", folder=folder)
    assert (outcome.code, outcome.err) == (2, "error: horizon=2 — tables hold masks of one phase: set horizon=1\n")
    outcome = train(*TABULAR, "evaluator.table=nowhere.parquet", folder=folder)
    assert outcome.code == 2
    assert outcome.err.startswith("error: table nowhere.parquet cannot be read")
