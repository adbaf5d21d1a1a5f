"""``python -m agents.merge``: stores of several machines become one, and evaluations a file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from envs.evaluators.base import Evaluation
from envs.exchange import read_records
from envs.store import EvaluationStore
from tests.agents.command import Command, Outcome
from tests.agents.test_bad_input import refused_in_one_line
from tests.envs.evaluators.fakes import TASK, schedules, synthetic

A, B, C = schedules(3)


def merge(*arguments: str, folder: Path) -> Outcome:
    return Command(arguments, folder, name="merge").wait()


def evaluated(index: int) -> Evaluation:
    return synthetic(0).evaluate(schedules(index + 1)[index])


def store(path: Path, *evaluations: Evaluation, run: str = "run") -> Path:
    with EvaluationStore(path) as filled:
        for evaluation in evaluations:
            filled.put(TASK, evaluation, run)
    return path


def test_two_stores_become_one(tmp_path: Path) -> None:
    first = store(tmp_path / "first.sqlite", evaluated(0), evaluated(1), run="one")
    second = store(tmp_path / "second.sqlite", evaluated(1), evaluated(2), run="two")
    outcome = merge(f"sources=[{first},{second}]", folder=tmp_path)
    assert outcome.code == 0, outcome.err
    assert outcome.out.splitlines() == [f"{first}: 2 new, 0 known", f"{second}: 1 new, 1 known"]
    with EvaluationStore(tmp_path / "runs" / "evaluations.sqlite") as merged:
        found = [merged.get(TASK.evaluation_key(schedule)) for schedule in (A, B, C)]
        assert [each.run for each in found if each is not None] == ["one", "one", "two"]
        assert [each.evaluation for each in found if each is not None] == [evaluated(i) for i in range(3)]
        assert [each.evaluation for each in merged.evaluations(TASK.id)] == [evaluated(i) for i in range(3)]


def test_a_file_carries_a_store_to_another_machine(tmp_path: Path) -> None:
    store(tmp_path / "here.sqlite", evaluated(0), evaluated(1))
    outcome = merge("store.path=here.sqlite", "export=given/away.jsonl.gz", folder=tmp_path)
    assert outcome.code == 0, outcome.err
    assert outcome.out == "wrote 2 evaluations to given/away.jsonl.gz\n"
    outcome = merge(
        "store.path=there.sqlite", "sources=[given/away.jsonl.gz]", "export=again.jsonl.gz", folder=tmp_path
    )
    assert outcome.code == 0, outcome.err
    assert (tmp_path / "again.jsonl.gz").read_bytes() == (tmp_path / "given" / "away.jsonl.gz").read_bytes()
    outcome = merge("store.path=there.sqlite", "sources=[given/away.jsonl.gz]", folder=tmp_path)
    assert outcome.out == "given/away.jsonl.gz: 0 new, 2 known\n"


def test_other_numbers_are_told_of_and_change_nothing(tmp_path: Path) -> None:
    own = evaluated(0)
    kid = own.metrics["kid"]
    assert kid.value is not None
    other = replace(own, metrics={**own.metrics, "kid": replace(kid, value=kid.value + 1e-6)}, seconds=9.0)
    slower = replace(evaluated(1), seconds=9.0)
    store(tmp_path / "runs" / "evaluations.sqlite", own, evaluated(1))
    source = store(tmp_path / "other.sqlite", other, slower)
    outcome = merge(f"sources=[{source}]", folder=tmp_path)
    assert outcome.out == f"{source}: 0 new, 2 known, 1 of them with other numbers here, which stay\n"
    with EvaluationStore(tmp_path / "runs" / "evaluations.sqlite") as kept:
        assert [each.evaluation for each in kept.evaluations(TASK.id)] == [own, evaluated(1)]


def test_another_machines_troubles_stay_there(tmp_path: Path) -> None:
    source = store(
        tmp_path / "other.sqlite",
        Evaluation(A, failure="out of memory: it was a small one"),
        Evaluation(B, failure="diverged: loss nan at step 3"),
    )
    store(tmp_path / "runs" / "evaluations.sqlite", Evaluation(B, failure="killed: by the machine"))
    assert merge(f"sources=[{source}]", "export=all.jsonl", folder=tmp_path).code == 0
    assert [each.evaluation.failure for each in read_records(tmp_path / "all.jsonl")] == [
        "diverged: loss nan at step 3"
    ]
    with EvaluationStore(tmp_path / "runs" / "evaluations.sqlite") as merged:
        found = merged.get(TASK.evaluation_key(B))
        assert found is not None
        assert found.evaluation.failure.startswith("diverged")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "neither sources nor export"),
        (["export=all.csv"], "export=all.csv"),
        (["export=all.jsonl"], "there is no evaluation store"),
        (["sources=[nowhere.sqlite]"], "there is no file nowhere.sqlite"),
        (["sources=[nowhere.jsonl]"], "there is no file nowhere.jsonl"),
        (["sources=[good.sqlite,broken.jsonl]"], "line 1 of broken.jsonl"),
        (["sources=[good.sqlite,broken.sqlite]"], "broken.sqlite cannot be used"),
        (["sources=[good.sqlite]", "store.path=./good.sqlite"], "is among the sources"),
        (["sources=good.sqlite"], "sources"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_call_is_one_line_and_makes_no_store(tmp_path: Path, arguments: list[str], named: str) -> None:
    store(tmp_path / "good.sqlite", evaluated(0))
    (tmp_path / "broken.jsonl").write_text("{}\n")
    (tmp_path / "broken.sqlite").write_text("this is no database, and longer than a header of SQLite's" * 9)
    outcome = merge(*arguments, folder=tmp_path)
    refused_in_one_line(outcome.code, outcome.err, named)
    assert not (tmp_path / "runs").exists()
