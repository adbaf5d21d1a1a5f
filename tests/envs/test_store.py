from __future__ import annotations

import json
import os
import signal
import sqlite3
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from envs.evaluators.base import Evaluation
from envs.store import EvaluationStore
from envs.task import Schedule
from rewards.errors import InputError
from rewards.measurement import Measurement
from tests.envs.evaluators.fakes import TASK, schedules, synthetic

ROOT = Path(__file__).parents[2]
A, B, C = schedules(3)
KEY = TASK.evaluation_key


def evaluated(schedule: Schedule, seconds: float = 1.5) -> Evaluation:
    return replace(synthetic(0).evaluate(schedule), seconds=seconds)


def failed(schedule: Schedule, reason: str) -> Evaluation:
    return Evaluation(schedule, seconds=0.5, failure=reason)


def test_what_was_put_is_there_after_reopening(tmp_path: Path) -> None:
    odd = Evaluation(A, {"kid": Measurement(0.1 + 0.2, None, -1e-17, 1e300, 3, False, "é")}, 3, 7, 11, 0.1)
    with EvaluationStore(tmp_path / "new folder" / "store.sqlite") as store:
        assert store.get(KEY(A)) is None
        assert store.put(TASK, odd, "run").evaluation == odd
    with EvaluationStore(tmp_path / "new folder" / "store.sqlite") as store:
        stored = store.get(KEY(A))
        assert stored is not None
        assert stored.evaluation == odd
        assert stored.run == "run"
        assert store.get(KEY(B)) is None


def test_rows_say_which_task_and_when(tmp_path: Path) -> None:
    with EvaluationStore(tmp_path / "store.sqlite") as store:
        store.put(TASK, evaluated(A), "run")
        store.put(TASK, evaluated(B), "run")
    database = sqlite3.connect(tmp_path / "store.sqlite")
    assert database.execute("SELECT id, identity FROM tasks").fetchall() == [
        (TASK.id, json.dumps(TASK.identity(), sort_keys=True))
    ]
    rows = database.execute("SELECT key, task, schedule, run, created FROM evaluations ORDER BY id").fetchall()
    assert [row[:4] for row in rows] == [(KEY(s), TASK.id, s.key, "run") for s in (A, B)]
    assert all(row[4].endswith("+00:00") for row in rows)
    database.close()


def test_the_first_write_wins(tmp_path: Path) -> None:
    with EvaluationStore(tmp_path / "store.sqlite") as store:
        first = store.put(TASK, evaluated(A, 1.0), "one")
        assert store.put(TASK, evaluated(A, 2.0), "two") == first
        assert store.put(TASK, failed(A, "killed by SIGKILL"), "one") == first
        assert store.get(KEY(A)) == first
        assert [s.evaluation.seconds for s in store.evaluations(TASK.id)] == [1.0]


def test_a_final_failure_stands_and_any_other_gives_way_to_success(tmp_path: Path) -> None:
    with EvaluationStore(tmp_path / "store.sqlite") as store:
        store.put(TASK, failed(A, "diverged: loss is nan"), "one")
        assert store.put(TASK, evaluated(A), "two").evaluation.failure == "diverged: loss is nan"
        for schedule, reason in ((B, "killed by SIGSEGV"), (C, "out of memory: 3 GiB")):
            store.put(TASK, failed(schedule, reason), "one")
            stored = store.get(KEY(schedule))
            assert stored is not None
            assert stored.evaluation.failure == reason
            assert store.put(TASK, evaluated(schedule), "two").run == "two"
            stored = store.get(KEY(schedule))
            assert stored is not None
            assert not stored.evaluation.failure
            own = store.get(KEY(schedule), "one")
            assert own is not None
            assert own.evaluation.failure == reason, "a resumed run meets its own past"


def test_evaluations_lists_one_a_key_of_one_task_in_order(tmp_path: Path) -> None:
    with EvaluationStore(tmp_path / "store.sqlite") as store:
        store.put(TASK, failed(C, "killed by SIGKILL"), "one")
        store.put(TASK, failed(B, "killed by SIGKILL"), "one")
        store.put(TASK, evaluated(A), "one")
        store.put(replace(TASK, seed=1), evaluated(B), "one")
        store.put(TASK, evaluated(C), "two")
        found = [(s.evaluation.schedule, s.evaluation.failure, s.run) for s in store.evaluations(TASK.id)]
        assert found == [(B, "killed by SIGKILL", "one"), (A, "", "one"), (C, "", "two")]
        assert list(store.evaluations("no such task")) == []


def test_threads_share_a_store(tmp_path: Path) -> None:
    with EvaluationStore(tmp_path / "store.sqlite") as store:
        winners: list[list[str]] = [[] for _ in range(4)]

        def write(number: int) -> None:
            for schedule in schedules(16):
                winners[number].append(store.put(TASK, evaluated(schedule, float(number)), f"run {number}").run)

        threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert all(names == winners[0] for names in winners)
        assert len(winners[0]) == 16
        assert [s.run for s in store.evaluations(TASK.id)] == winners[0]


def test_a_hit_costs_at_most_five_milliseconds(tmp_path: Path) -> None:
    many = [Schedule.from_key(f"{number:012b}/{number:012b}") for number in range(1000)]
    with EvaluationStore(tmp_path / "store.sqlite") as store:
        store._database.execute("PRAGMA synchronous = OFF")  # this test is about reading
        for schedule in many:
            store.put(TASK, replace(evaluated(A), schedule=schedule), "run")
        times = []
        for schedule in many[::5]:
            started = time.perf_counter()
            assert store.get(KEY(schedule), "run") is not None
            times.append(time.perf_counter() - started)
    assert statistics.median(times) < 5e-3


WRITER = """
import dataclasses, itertools, sys
from envs.store import EvaluationStore
from tests.envs.evaluators.fakes import TASK, schedules, synthetic

path, run, tasks = sys.argv[1], sys.argv[2], int(sys.argv[3])
store = EvaluationStore(path)
for seed in range(tasks):
    task = dataclasses.replace(TASK, seed=seed)
    for schedule in schedules(16):
        stored = store.put(task, synthetic(0).evaluate(schedule), run)
        print(task.id, schedule.key, stored.run, flush=True)
"""


def start_writer(path: Path, run: str, tasks: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, str(path), run, str(tasks)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def test_processes_that_create_and_fill_one_store_agree_on_who_was_first(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    writers = [start_writer(path, f"run {number}", tasks=1) for number in range(3)]
    outputs = [writer.communicate(timeout=60)[0].splitlines() for writer in writers]
    assert [writer.returncode for writer in writers] == [0, 0, 0]
    with EvaluationStore(path) as store:
        stood = [f"{TASK.id} {s.evaluation.schedule.key} {s.run}" for s in store.evaluations(TASK.id)]
    assert len(stood) == 16
    assert all(sorted(output) == sorted(stood) for output in outputs)


@pytest.mark.parametrize("moment", [0, 1, 7, 40])
def test_kill_9_loses_nothing_that_put_returned(tmp_path: Path, moment: int) -> None:
    """Killed as the file appears (0), or once so many puts have returned: wherever it then is in the next ones."""
    path = tmp_path / "store.sqlite"
    with start_writer(path, "run", tasks=10_000) as writer:
        assert writer.stdout is not None
        lines = [writer.stdout.readline() for _ in range(moment)]
        while not path.exists():
            time.sleep(0.001)
        os.kill(writer.pid, signal.SIGKILL)
        lines += writer.stdout.read().splitlines(keepends=True)
    told = [line.split() for line in lines if line.endswith("\n")]
    with EvaluationStore(path) as store:
        for task_id in {task_id for task_id, _, _ in told}:
            kept = [(s.evaluation.schedule.key, s.evaluation) for s in store.evaluations(task_id)]
            assert {key for task, key, _ in told if task == task_id} <= {key for key, _ in kept}
            assert all(e == synthetic(0).evaluate(Schedule.from_key(key)) for key, e in kept)
        assert store.put(replace(TASK, seed=-1), evaluated(A), "after").run == "after"
    database = sqlite3.connect(path)
    assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    database.close()


def test_a_store_that_is_none_is_refused_and_left_alone(tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("These are notes, and no database. " * 100)
    other = sqlite3.connect(tmp_path / "other.sqlite")
    other.execute("CREATE TABLE people (name TEXT)")
    other.execute("PRAGMA user_version = 1")
    other.commit()
    other.close()
    EvaluationStore(tmp_path / "newer.sqlite").close()
    newer = sqlite3.connect(tmp_path / "newer.sqlite")
    newer.execute("PRAGMA user_version = 99")
    newer.close()
    for name in ("notes.txt", "other.sqlite", "newer.sqlite"):
        before = (tmp_path / name).read_bytes()
        with pytest.raises(InputError, match=name) as refused:
            EvaluationStore(tmp_path / name)
        assert "\n" not in str(refused.value)
        assert (tmp_path / name).read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["newer.sqlite", "notes.txt", "other.sqlite"]


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "file" / "store.sqlite", Path("/proc/store.sqlite")):
        with pytest.raises(InputError, match=str(path)):
            EvaluationStore(path)


def test_a_read_only_store_is_refused(tmp_path: Path) -> None:
    EvaluationStore(tmp_path / "store.sqlite").close()
    (tmp_path / "store.sqlite").chmod(0o444)
    with _as_nobody(tmp_path), pytest.raises(InputError, match=r"store\.sqlite"):
        EvaluationStore(tmp_path / "store.sqlite")


@contextmanager
def _as_nobody(folder: Path) -> Iterator[None]:
    """Root may write anywhere, so root becomes somebody else who can reach the folder."""
    if os.geteuid() != 0:
        yield
        return
    for parent in (folder, *folder.parents[:2]):
        parent.chmod(0o755)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_damage_found_later_is_an_input_error(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    with EvaluationStore(path) as store:
        for schedule in (A, B):
            store.put(TASK, evaluated(schedule), "run")
    database = sqlite3.connect(path)
    database.execute("UPDATE evaluations SET evaluation = '{}' WHERE schedule = ?", (A.key,))
    database.execute("UPDATE evaluations SET evaluation = '[' WHERE schedule = ?", (B.key,))
    database.commit()
    database.close()
    with EvaluationStore(path) as store:
        for schedule in (A, B):
            with pytest.raises(InputError, match="an entry is no evaluation"):
                store.get(KEY(schedule))
        with pytest.raises(InputError, match="an entry is no evaluation"):
            list(store.evaluations(TASK.id))

    torn = tmp_path / "torn.sqlite"
    torn.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(InputError, match=r"torn\.sqlite"), EvaluationStore(torn) as store:
        store.put(TASK, evaluated(C), "run")
