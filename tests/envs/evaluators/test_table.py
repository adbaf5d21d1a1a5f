"""Tables of evaluations, on disk and as an evaluator."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from envs.evaluators.base import evaluate_many
from envs.evaluators.table import EvaluationTable
from envs.evaluators.tabular import TabularEvaluator
from envs.task import Schedule
from rewards.errors import InputError
from tests.envs.evaluators.conformance import check_evaluator
from tests.envs.evaluators.fakes import TASK, Counting, schedules

*WORKING, FAILING = schedules(16)
REASON = "diverged: the loss is nan at step 3"


@pytest.fixture
def table() -> EvaluationTable:
    evaluations = {e.schedule: e for e in evaluate_many(Counting({FAILING: REASON}), [*WORKING, FAILING])}
    again = {schedule: dataclasses.replace(evaluations[schedule], seconds=2.5) for schedule in WORKING[:3]}
    return EvaluationTable(
        TASK,
        {0: evaluations, 1: again},
        ("depth", "share"),
        np.asarray([[0, 0.1], [0.3, 0.2], [0.6, 0.3], [1, 0.4]], dtype=np.float32),
        ("log_steps",),
        np.asarray([0.2], dtype=np.float32),
        {"data": {"source": "nowhere"}},
    )


def test_a_file_gives_back_what_was_written(table: EvaluationTable, tmp_path: Path) -> None:
    path = tmp_path / "new" / "table.parquet"
    table.write(path)
    again = EvaluationTable.read(path)
    assert again.evaluations == table.evaluations
    assert again.task == table.task
    assert (again.task.id, again.task.backbone) == (TASK.id, TASK.backbone)
    assert (again.group_feature_names, again.task_feature_names) == (("depth", "share"), ("log_steps",))
    np.testing.assert_array_equal(again.group_features, table.group_features)
    np.testing.assert_array_equal(again.task_features, table.task_features)
    assert again.card == table.card
    assert again.repeated == WORKING[:3]
    assert not list(path.parent.glob(".*"))


def test_it_is_an_evaluator(table: EvaluationTable) -> None:
    check_evaluator(lambda: TabularEvaluator(table), WORKING, FAILING, REASON)


def test_what_is_not_in_the_table(table: EvaluationTable) -> None:
    with pytest.raises(InputError, match="no schedule 0000/1111 with seed 0"):
        evaluate_many(TabularEvaluator(table), [Schedule.from_key("0000/1111")])
    with pytest.raises(InputError, match=r"no schedule 0100 with seed 1 "):
        evaluate_many(TabularEvaluator(table, seed=1), [Schedule.from_key("0100")])
    with pytest.raises(ValueError, match="another length"):
        evaluate_many(TabularEvaluator(table), [Schedule.from_key("01")])


def test_a_mask_is_missing(table: EvaluationTable) -> None:
    evaluations = dict(table.evaluations[0])
    del evaluations[WORKING[5]]
    with pytest.raises(ValueError, match="4 toggles has 16 masks, not 15"):
        dataclasses.replace(table, evaluations={0: evaluations})


def test_a_file_that_is_none(table: EvaluationTable, tmp_path: Path) -> None:
    path = tmp_path / "table.parquet"
    with pytest.raises(InputError, match="cannot be read"):
        EvaluationTable.read(path)
    table.write(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match="cannot be read"):
        EvaluationTable.read(path)
    pq.write_table(pa.table({"x": [1]}), path)
    with pytest.raises(InputError, match="no table of evaluations"):
        EvaluationTable.read(path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b'"schema": 1', b'"schema": 9', "has schema 9, this version reads 1"),
        (b'"code": 2', b'"code": 1', "measured by code version 1"),
    ],
)
def test_another_version(table: EvaluationTable, tmp_path: Path, old: bytes, new: bytes, message: str) -> None:
    path = tmp_path / "table.parquet"
    table.write(path)
    written = pq.read_table(path)
    metadata = {key: value.replace(old, new) for key, value in written.schema.metadata.items()}
    assert metadata != written.schema.metadata
    pq.write_table(written.replace_schema_metadata(metadata), path)
    with pytest.raises(InputError, match=message):
        EvaluationTable.read(path)


def test_another_version_of_a_mitigation(
    table: EvaluationTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "table.parquet"
    monkeypatch.setattr("envs.task.MITIGATION_VERSIONS", {"ema": 2})
    mitigated = dataclasses.replace(table, task=dataclasses.replace(TASK, options={"mitigations": {"ema": {}}}))
    mitigated.write(path)
    assert EvaluationTable.read(path).task == mitigated.task
    monkeypatch.setattr("envs.task.MITIGATION_VERSIONS", {"ema": 3})
    with pytest.raises(InputError, match=r"versions \{'ema': 2\} of its mitigations, these are \{'ema': 3\}"):
        EvaluationTable.read(path)
