from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import psutil
import pytest

from envs.evaluators.base import evaluate_many
from envs.evaluators.pool import Factory, PoolEvaluator
from rewards.errors import InputError
from tests.envs.evaluators.fakes import (
    GROUPS,
    Misbehaving,
    attempts,
    broken_factory,
    rejecting_factory,
    schedules,
    synthetic,
)

ROOT = Path(__file__).parents[3]
A, B, C, D, E, F, G, H = schedules(8)
Make = Callable[..., PoolEvaluator]


@pytest.fixture
def make() -> Iterator[Make]:
    """Builds pools and closes them; no worker may be left after that."""
    pools: list[PoolEvaluator] = []

    def make(factory: Factory, workers: int) -> PoolEvaluator:
        pools.append(PoolEvaluator(factory, workers, GROUPS))
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()
    assert not workers_of(os.getpid())


def workers_of(pid: int) -> list[psutil.Process]:
    """Living evaluation workers that a process has started (the resource tracker is none)."""
    return [child for child in psutil.Process(pid).children() if alive(child) and "spawn_main" in str(child.cmdline())]


def alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_for(condition: Callable[[], object], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def test_every_way_to_fail_is_an_outcome_and_the_rest_goes_on(tmp_path: Path, make: Make) -> None:
    plan = {
        A.key: ["kill"],
        B.key: ["kill", "work"],
        C.key: ["memory"],
        D.key: ["memory", "work"],
        E.key: ["bug", "work"],
        F.key: ["diverge", "work"],
        G.key: ["exit"],
    }
    pool = make(partial(Misbehaving, tmp_path, plan), 2)
    done = evaluate_many(pool, [A, B, C, D, E, F, G, H])
    assert [evaluation.failure for evaluation in done] == [
        "killed by SIGKILL",
        "",
        "out of memory: no room for activations",
        "",
        "error: KeyError: 'a bug'",
        "diverged: loss is nan at step 3",
        "killed by exit code 3",
        "",
    ]
    assert [evaluation.schedule for evaluation in done] == [A, B, C, D, E, F, G, H]
    assert all(e.seconds > 0 and not e.metrics for e in done if e.failure)
    tries = {schedule: [pid for pid, _, _ in attempts(tmp_path, schedule.key)] for schedule in (A, B, C, D, E, F, G, H)}
    assert [len(pids) for pids in tries.values()] == [2, 2, 2, 2, 1, 1, 2, 1]
    for pids in tries.values():
        assert len(set(pids)) == len(pids), "a second attempt has a process of its own"
    again = evaluate_many(make(synthetic, 0), [B, D, H])
    assert all(one.same_numbers(other) for one, other in zip(again, (done[1], done[3], done[7]), strict=True))


def test_without_workers_failures_are_the_same(tmp_path: Path, make: Make) -> None:
    plan = {C.key: ["memory"], D.key: ["memory", "work"], E.key: ["bug", "work"], F.key: ["diverge"]}
    built = []

    def factory(worker: int) -> Misbehaving:
        built.append(worker)
        return Misbehaving(tmp_path, plan, worker)

    done = evaluate_many(make(factory, 0), [C, D, E, F, H])
    assert [evaluation.failure for evaluation in done] == [
        "out of memory: no room for activations",
        "",
        "error: KeyError: 'a bug'",
        "diverged: loss is nan at step 3",
        "",
    ]
    assert [len(attempts(tmp_path, s.key)) for s in (C, D, E, F, H)] == [2, 2, 1, 1, 1]
    assert {pid for s in (C, D, E, F, H) for pid, _, _ in attempts(tmp_path, s.key)} == {os.getpid()}
    assert built == [0] * 4, "a new one after each lack of memory"


def test_workers_are_numbered_share_the_cores_and_are_kept(
    tmp_path: Path, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setattr("envs.evaluators.pool.cores", lambda: 6)
    pool = make(partial(Misbehaving, tmp_path, {}), 2)
    evaluate_many(pool, schedules(8))
    evaluate_many(pool, schedules(16)[8:])
    seen = [attempt for s in schedules(16) for attempt in attempts(tmp_path, s.key)]
    assert len(seen) == 16
    assert len(set(seen)) == 2, "two processes in all, each with one slot"
    assert {slot for _, slot, _ in seen} == {0, 1}
    assert {threads for _, _, threads in seen} == {3}
    assert os.environ["OMP_NUM_THREADS"] == "7"


def threads_of_torch(worker: int) -> Misbehaving:
    import torch

    raise InputError(f"threads={torch.get_num_threads()}", "none")


def test_torch_in_a_worker_uses_its_share_of_the_cores(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setattr("envs.evaluators.pool.cores", lambda: 1)
    with pytest.raises(InputError, match="threads=1 "):
        evaluate_many(make(threads_of_torch, 1), [A])


def test_a_worker_killed_from_outside_is_replaced_busy_or_idle(tmp_path: Path, make: Make) -> None:
    pool = make(partial(Misbehaving, tmp_path, {A.key: ["sleep", "work"]}), 2)

    def kill_the_sleeper() -> None:
        wait_for(lambda: attempts(tmp_path, A.key))
        os.kill(attempts(tmp_path, A.key)[0][0], signal.SIGKILL)

    killer = threading.Thread(target=kill_the_sleeper)
    killer.start()
    assert not any(e.failure for e in evaluate_many(pool, [A, B, C, D]))
    killer.join()
    assert len(attempts(tmp_path, A.key)) == 2
    idle = workers_of(os.getpid())
    assert len(idle) == 2
    for process in idle:
        process.kill()
    # A dying process loses its command line, and shows as a zombie, before it can be waited for; the pool sees it dead
    # only once it can be.
    killed = {process.pid for process in idle}
    wait_for(lambda: killed.isdisjoint(child.pid for child in multiprocessing.active_children()))
    pool.retries = 0
    assert not any(e.failure for e in evaluate_many(pool, [E, F]))


def test_results_come_as_they_are_finished_and_closing_early_ends_the_busy(tmp_path: Path, make: Make) -> None:
    pool = make(partial(Misbehaving, tmp_path, {A.key: ["sleep", "work"]}), 2)
    results = pool.evaluate_iter([A, B, C])
    assert sorted(index for index, _ in (next(results), next(results))) == [1, 2]
    wait_for(lambda: attempts(tmp_path, A.key))
    sleeper = psutil.Process(attempts(tmp_path, A.key)[0][0])
    results.close()  # type: ignore[attr-defined]
    assert not alive(sleeper)
    assert [e.failure for e in evaluate_many(pool, [A, D])] == ["", ""]


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_configuration_in_a_worker_is_the_parents_input_error(make: Make, workers: int) -> None:
    with pytest.raises(InputError) as raised:
        evaluate_many(make(rejecting_factory, workers), [A, B, C])
    assert (raised.value.what, raised.value.remedy) == ("backbone.path=/nowhere", "name a folder that is there")


@pytest.mark.parametrize("workers", [0, 1])
def test_an_input_error_in_an_evaluation_is_no_outcome(tmp_path: Path, make: Make, workers: int) -> None:
    with pytest.raises(InputError, match=r"inner\.steps=10 is too few"):
        evaluate_many(make(partial(Misbehaving, tmp_path, {A.key: ["reject"]}), workers), [A])


def test_a_bug_in_the_factory_is_raised_with_its_place(make: Make) -> None:
    with pytest.raises(RuntimeError, match=r"(?s)worker 0 .*broken_factory.*a bug in the factory"):
        evaluate_many(make(broken_factory, 1), [A, B])
    with pytest.raises(AttributeError, match="a bug in the factory"):
        evaluate_many(make(broken_factory, 0), [A, B])


def test_what_fails_is_logged(tmp_path: Path, make: Make, caplog: pytest.LogCaptureFixture) -> None:
    pool = make(partial(Misbehaving, tmp_path, {A.key: ["memory"], B.key: ["bug"]}), 0)
    with caplog.at_level(logging.WARNING):
        evaluate_many(pool, [A, B])
    lines = [record.getMessage() for record in caplog.records]
    assert lines[0] == f"schedule {A.key}, attempt 1: out of memory: no room for activations; it will be tried again"
    assert lines[1].endswith("it counts as a failed evaluation")
    assert "KeyError" in caplog.text
    assert "in evaluate" in caplog.text, "a bug is logged with its traceback"


def test_a_negative_number_of_workers_is_refused() -> None:
    with pytest.raises(InputError, match=r"evaluator\.workers=-1 "):
        PoolEvaluator(synthetic, -1, GROUPS)


PARENT = """
import functools, pathlib, sys
from envs.evaluators.base import evaluate_many
from envs.evaluators.pool import PoolEvaluator
from tests.envs.evaluators.fakes import GROUPS, Misbehaving, schedules

plan = {schedule.key: ["sleep"] for schedule in schedules(2)}
evaluate_many(PoolEvaluator(functools.partial(Misbehaving, pathlib.Path(sys.argv[1]), plan), 2, GROUPS), schedules(4))
"""


@pytest.fixture
def parent(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process, first of its group, that evaluates in two workers and does not clean up after itself."""
    command = [sys.executable, "-c", PARENT, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        yield process
        process.kill()


def test_ctrl_c_ends_parent_and_workers_and_only_the_parent_speaks(
    tmp_path: Path, parent: subprocess.Popen[str]
) -> None:
    """As a terminal sends it, to the whole group: first while the workers start, where they must not even notice."""
    wait_for(lambda: workers_of(parent.pid))
    started = workers_of(parent.pid)[0]
    started.send_signal(signal.SIGINT)
    wait_for(lambda: attempts(tmp_path, A.key) and attempts(tmp_path, B.key))
    workers = workers_of(parent.pid)
    assert len(workers) == 2
    assert started in workers
    os.killpg(parent.pid, signal.SIGINT)
    _, stderr = parent.communicate(timeout=30)
    assert parent.returncode == -signal.SIGINT
    assert stderr.count("Traceback") == 1
    assert stderr.rstrip().endswith("KeyboardInterrupt")
    wait_for(lambda: not any(alive(worker) for worker in workers))


def test_workers_end_with_a_parent_that_is_killed(tmp_path: Path, parent: subprocess.Popen[str]) -> None:
    wait_for(lambda: attempts(tmp_path, A.key) and attempts(tmp_path, B.key))
    workers = workers_of(parent.pid)
    assert len(workers) == 2
    parent.kill()
    parent.wait()
    wait_for(lambda: not any(alive(worker) for worker in workers), seconds=10)
