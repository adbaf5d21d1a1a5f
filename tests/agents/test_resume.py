"""No way of dying loses what was paid for: the resumed run ends as the uninterrupted one does."""

from __future__ import annotations

import json
import signal
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.agents.command import (
    SMALL,
    Command,
    answers,
    killed,
    read_json,
    run_folders,
    slow,
    train,
    trained,
    without_times,
)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(*SMALL, folder=tmp_path_factory.mktemp("uninterrupted"))


@pytest.mark.parametrize(
    ("where", "count"),
    [
        ("evaluate", 2),  # an anchor is measured, not yet stored
        ("store", 1),  # the first anchor is stored, not yet seen by anybody
        ("store", 5),  # in the first rollout
        ("record", 10),  # in the second
        ("store", 15),  # in the final table
        ("save policy", 1),
        ("report", 1),
        ("write", 1),  # result.json is half written
    ],
)
def test_a_run_killed_anywhere_is_resumed_to_the_same_result(
    tmp_path: Path, uninterrupted: Path, where: str, count: int
) -> None:
    outcome = train(*SMALL, folder=tmp_path, double=killed(where, count))
    assert outcome.code == -signal.SIGKILL
    (run,) = run_folders(tmp_path)
    assert not (run / "result.json").exists()
    resumed_as(uninterrupted, run, tmp_path)


def test_a_run_killed_from_outside_and_again_while_resumed(tmp_path: Path, uninterrupted: Path) -> None:
    arguments: tuple[str, ...] = SMALL
    for count in (4, 11):
        command = Command(arguments, tmp_path, slow(0.1))
        wait_for_answers(tmp_path, count)
        command.send(signal.SIGKILL)
        assert command.wait().code == -signal.SIGKILL
        (run,) = run_folders(tmp_path)
        arguments = (f"resume={run}",)
    resumed_as(uninterrupted, run, tmp_path)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_says_how_to_go_on(tmp_path: Path, uninterrupted: Path, number: signal.Signals) -> None:
    command = Command(SMALL, tmp_path, slow(0.1))
    wait_for_answers(tmp_path, 6)
    command.send(number)
    outcome = command.wait()
    (run,) = run_folders(tmp_path)
    assert outcome.code == 130
    assert (
        outcome.err
        == f"interrupted: every finished evaluation is kept; go on with resume={run.relative_to(tmp_path)}\n"
    )
    assert len(answers(run)) >= 6
    resumed_as(uninterrupted, run, tmp_path)


def test_a_finished_run_resumed_is_the_same_run(tmp_path: Path, uninterrupted: Path) -> None:
    run = trained(*SMALL, folder=tmp_path)
    resumed_as(uninterrupted, run, tmp_path)


def test_a_run_is_resumed_from_another_folder_without_paying_again(tmp_path: Path) -> None:
    train(*SMALL, folder=tmp_path, double=killed("store", 9))
    (run,) = run_folders(tmp_path)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    paid = stored_evaluations(tmp_path)
    outcome = train(f"resume={run}", folder=elsewhere)
    assert outcome.code == 0, outcome.err
    assert stored_evaluations(tmp_path) > paid
    assert not (elsewhere / "runs").exists()


def test_one_run_folder_has_one_writer(tmp_path: Path, uninterrupted: Path) -> None:
    first = Command(SMALL, tmp_path, slow(0.2))
    wait_for_answers(tmp_path, 2)
    (run,) = run_folders(tmp_path)
    second = train(f"resume={run}", folder=tmp_path)
    assert second.code == 2
    assert second.err == f"error: {run} is being written by another process — wait for it, or stop it\n"
    assert first.wait().code == 0, "the second has not disturbed the first"
    assert without_times(read_json(run / "result.json")) == without_times(read_json(uninterrupted / "result.json"))


def resumed_as(uninterrupted: Path, run: Path, folder: Path) -> None:
    """Resumes, and compares everything that a run leaves; nothing that was stored is computed again."""
    paid = stored_evaluations(folder)
    outcome = train(f"resume={run}", folder=folder)
    assert outcome.code == 0, outcome.err
    assert run_folders(folder) == [run]
    expected = read_json(uninterrupted / "result.json")
    assert without_times(read_json(run / "result.json")) == without_times(expected)
    # What is stored is answered first, so the order within a rollout may be another.
    assert sorted(map(telling, answers(run))) == sorted(map(telling, answers(uninterrupted)))
    assert (run / "policy.safetensors").read_bytes() == (uninterrupted / "policy.safetensors").read_bytes()
    assert curves(run) == curves(uninterrupted)
    assert stored_evaluations(folder) == expected["evaluations"]["distinct"] >= paid


def telling(line: dict[str, Any]) -> str:
    """An answer without its wall time."""
    return json.dumps({key: value for key, value in line.items() if key != "seconds"})


def curves(run: Path) -> dict[str, list[tuple[int, float]]]:
    """All but SB3's own wall times."""
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    tags = [tag for tag in events.Tags()["scalars"] if not tag.startswith("time/")]
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}


def stored_evaluations(folder: Path) -> int:
    with closing(sqlite3.connect(folder / "runs" / "evaluations.sqlite")) as database:
        (count,) = database.execute("SELECT count(*) FROM evaluations").fetchone()
    return int(count)


def wait_for_answers(folder: Path, count: int) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        files = [run / "evaluations.jsonl" for run in run_folders(folder)]
        # Not read as JSON: the last line may be half written.
        if any(file.is_file() and file.read_bytes().count(b"\n") >= count for file in files):
            return
        time.sleep(0.02)
    raise TimeoutError(f"no {count} answers below {folder}")
