from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agents.experience_file import load_experience, save_experience
from agents.search.base import Experience
from rewards.errors import InputError
from rewards.objective import Objective
from tests.agents.search.problems import Invented

WHOLE = Invented(4, seed=1).experience("0123456789abcdef")
EXPERIENCE = dataclasses.replace(WHOLE, outcomes=dict(list(WHOLE.outcomes.items())[::3]))


def test_what_is_written_is_read(tmp_path: Path) -> None:
    save_experience(tmp_path, EXPERIENCE)
    assert [path.name for path in tmp_path.iterdir()] == ["experience.json"]
    read = load_experience(tmp_path)
    for field in dataclasses.fields(Experience):
        old, new = getattr(EXPERIENCE, field.name), getattr(read, field.name)
        if isinstance(old, np.ndarray):
            np.testing.assert_array_equal(new, old)
            assert new.dtype == old.dtype
        else:
            assert new == old, field.name
    assert list(read.outcomes) == list(EXPERIENCE.outcomes), "in the order of the answers"
    assert load_experience(str(tmp_path)).task == EXPERIENCE.task


def test_an_objective_of_ones_own_is_kept(tmp_path: Path) -> None:
    objective = dataclasses.replace(EXPERIENCE.objective, objective=Objective(scalarization="weighted_sum", rho=0.5))
    save_experience(tmp_path, dataclasses.replace(EXPERIENCE, objective=objective))
    read = load_experience(tmp_path)
    assert read.objective == objective
    assert read.utilities(0.3) == {mask: objective.utility(axes, 0.3) for mask, axes in read.outcomes.items()}


def test_a_second_writing_replaces_the_first(tmp_path: Path) -> None:
    save_experience(tmp_path, EXPERIENCE)
    save_experience(tmp_path, WHOLE)
    assert load_experience(tmp_path).outcomes == WHOLE.outcomes


DAMAGES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "another schema": (lambda fields: fields | {"schema": 2}, "has schema 2, this version reads 1"),
    "no object": (lambda fields: [fields], "has schema None, this version reads 1"),
    "no objective": (
        lambda fields: {k: v for k, v in fields.items() if k != "objective"},
        "cannot be read: 'objective'",
    ),
    "no key": (lambda fields: fields | {"outcomes": {"01x0": [0, 1]}}, "cannot be read: the key of a schedule"),
    "one axis": (lambda fields: changed(fields, "0100", [0.5]), "cannot be read: "),
    "three axes": (lambda fields: changed(fields, "0100", [0.5, 0.5, 0.5]), "cannot be read: "),
    "an axis in words": (lambda fields: changed(fields, "0100", [0.5, "high"]), "cannot be read: "),
    "an axis beyond 1": (lambda fields: changed(fields, "0100", [0.5, 1.5]), "axes outside [0, 1]"),
    "not a number": (lambda fields: changed(fields, "0100", [0.5, float("nan")]), "axes outside [0, 1]"),
    "a short mask": (lambda fields: changed(fields, "010", [0.5, 0.5]), "a mask of another length than its 4 groups"),
    "two phases": (lambda fields: changed(fields, "0100/0101", [0.5, 0.5]), "a schedule of 2 phases"),
    "a list of outcomes": (lambda fields: fields | {"outcomes": [["0100", [0.5, 0.5]]]}, "cannot be read: "),
    "no outcomes": (lambda fields: fields | {"outcomes": {}}, "an anchor is missing"),
    "a list of scales": (lambda fields: fields | {"quality": ["kid"]}, "cannot be read: "),
    "an unknown scalarization": (
        lambda fields: fields | {"objective": fields["objective"] | {"scalarization": "sum"}},
        "cannot be read: scalarization='sum' is unknown",
    ),
    "no scales": (lambda fields: fields | {"objective": None}, "cannot be read: "),
    "features in words": (
        lambda fields: fields | {"task_features": {"names": ["a"], "values": ["x"]}},
        "cannot be read",
    ),
    "more values than names": (
        lambda fields: fields | {"task_features": {"names": ["a"], "values": [1.0, 2.0]}},
        "other features than their names",
    ),
    "more columns than names": (
        lambda fields: fields | {"group_features": {"names": ["a"], "values": [[1.0, 2.0]] * 4}},
        "other features than their names",
    ),
    "no rows": (
        lambda fields: fields | {"group_features": {"names": ["a"], "values": []}},
        "other features than their names",
    ),
}


def changed(fields: dict[str, Any], key: str, axes: list[Any]) -> dict[str, Any]:
    return fields | {"outcomes": fields["outcomes"] | {key: axes}}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_one_line(tmp_path: Path, damage: str) -> None:
    save_experience(tmp_path, WHOLE)
    path = tmp_path / "experience.json"
    change, said = DAMAGES[damage]
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    refused(tmp_path, said)


@pytest.mark.parametrize("content", [b"", b'{"schema": 1, "en', b"\x80\x04K\x01.", b"null"], ids=range(4))
def test_a_truncated_or_another_file_is_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "experience.json").write_bytes(content)
    refused(tmp_path, "")


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    refused(tmp_path, "No such file")


def refused(folder: Path, said: str) -> None:
    with pytest.raises(InputError) as error:
        load_experience(folder)
    assert str(folder / "experience.json") in error.value.what
    assert said in error.value.what
    assert "\n" not in str(error.value)
    assert "—" not in error.value.what
    assert error.value.remedy == "name the folder of a finished train or transfer run"
