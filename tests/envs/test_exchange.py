"""Evaluations in files that are given to others."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from envs.evaluators.base import Evaluation
from envs.exchange import Record, read_records, write_records
from envs.task import Schedule
from rewards.errors import InputError
from rewards.measurement import Measurement
from tests.envs.evaluators.fakes import TASK, schedules, synthetic

A, B = schedules(2)


def record(schedule: Schedule, evaluation: Evaluation | None = None) -> Record:
    return Record(TASK.identity(), evaluation or synthetic(0).evaluate(schedule), "run", "2026-01-02T03:04:05+00:00")


def lines(*records: Record, folder: Path) -> list[str]:
    write_records(folder / "lines.jsonl", records)
    return (folder / "lines.jsonl").read_text(encoding="utf-8").splitlines()


def test_a_record_knows_its_key() -> None:
    assert record(A).key == TASK.evaluation_key(A)
    assert record(A).task_id == TASK.id


@pytest.mark.parametrize("name", ["evaluations.jsonl", "evaluations.jsonl.gz"])
def test_what_was_written_is_read(tmp_path: Path, name: str) -> None:
    odd = Evaluation(B, {"kid": Measurement(0.1 + 0.2, None, -1e-17, 1e300, 3, False, "é")}, 3, 7, 11, 0.1)
    records = [record(A), record(B, odd), record(A, Evaluation(A, failure="diverged: at step 3"))]
    assert write_records(tmp_path / "new folder" / name, records) == 3
    read = read_records(tmp_path / "new folder" / name)
    assert [each.evaluation for each in read] == [each.evaluation for each in records]
    assert [each.key for each in read] == [each.key for each in records]
    assert [(each.run, each.created) for each in read] == [(each.run, each.created) for each in records]


def test_the_same_records_are_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one.jsonl.gz", "two.jsonl.gz"):
        write_records(tmp_path / name, [record(A), record(B)])
    one, two = ((tmp_path / name).read_bytes() for name in ("one.jsonl.gz", "two.jsonl.gz"))
    assert one == two
    assert len(gzip.decompress(one).splitlines()) == 2
    assert {path.name for path in tmp_path.iterdir()} == {"one.jsonl.gz", "two.jsonl.gz"}


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    write_records(tmp_path / "known.jsonl", [record(A)])
    before = (tmp_path / "known.jsonl").read_bytes()
    broken = Evaluation(B, seconds=float("nan"))
    with pytest.raises(ValueError, match="JSON"):
        write_records(tmp_path / "known.jsonl", [record(A), record(B, broken)])
    assert (tmp_path / "known.jsonl").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["known.jsonl"]
    with pytest.raises(InputError, match=r"known\.jsonl/below\.jsonl cannot be written"):
        write_records(tmp_path / "known.jsonl" / "below.jsonl", [record(A)])


@pytest.mark.parametrize(
    "broken",
    [
        "not JSON",
        "[]",
        "{}",
        '{"task": [], "evaluation": {}, "run": "", "created": ""}',
        json.dumps({"task": {}, "evaluation": {"schedule": "012"}, "run": "", "created": ""}),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, broken: str) -> None:
    good = lines(record(A), folder=tmp_path)
    (tmp_path / "broken.jsonl").write_text("\n".join([*good, broken]) + "\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"line 2 of .*broken\.jsonl is no evaluation"):
        read_records(tmp_path / "broken.jsonl")


def test_a_number_that_is_none_is_refused(tmp_path: Path) -> None:
    text = lines(record(A), folder=tmp_path)[0]
    assert '"seconds": ' in text
    fields = json.loads(text)
    fields["evaluation"]["seconds"] = float("nan")
    (tmp_path / "broken.jsonl").write_text(json.dumps(fields), encoding="utf-8")
    with pytest.raises(InputError, match=r"line 1 .*NaN"):
        read_records(tmp_path / "broken.jsonl")


PACKED = gzip.compress(b"{}" * 999)


@pytest.mark.parametrize(
    "content", [b"no gzip", PACKED[:20], PACKED[:12] + b"\xff" * 20], ids=["not packed", "cut off", "overwritten"]
)
def test_a_damaged_file_is_one_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "damaged.jsonl.gz").write_bytes(content)
    with pytest.raises(InputError, match=r"damaged\.jsonl\.gz cannot be read"):
        read_records(tmp_path / "damaged.jsonl.gz")


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"missing\.jsonl cannot be read"):
        read_records(tmp_path / "missing.jsonl")
