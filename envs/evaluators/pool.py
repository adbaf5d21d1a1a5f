"""Evaluations in worker processes, any of which may die at any moment.

Neither ``concurrent.futures`` nor ``pebble`` survives the death of a worker that is between two tasks, and neither
gives a worker a number of its own; hence one pipe a worker here, and `multiprocessing.connection.wait` over them all.
"""

from __future__ import annotations

import itertools
import logging
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import connection, resource_tracker
from multiprocessing.process import BaseProcess
from typing import Any, Protocol

from envs.evaluators.base import Evaluation
from envs.evaluators.failure import ERROR, KILLED, describe, worth_retrying
from envs.task import Schedule
from rewards.errors import InputError

_log = logging.getLogger(__name__)


class ScheduleEvaluator(Protocol):
    """What does the work inside a worker."""

    def evaluate(self, schedule: Schedule) -> Evaluation:
        """The evaluation of one schedule; an exception is a failed evaluation (see `describe`)."""
        ...


Factory = Callable[[int], ScheduleEvaluator]
"""Builds a worker's evaluator from the worker's number, 0 to workers - 1, e.g. to choose a GPU."""


class PoolEvaluator:
    """Evaluates in ``workers`` processes and yields as they finish.

    A worker starts when there is a schedule for it, and builds its evaluator once. One that is killed or runs out of
    memory is replaced and its schedule tried again; what fails for good, or by any other exception, is yielded as a
    failed evaluation. Ctrl-C is the parent's to handle: workers do not see it, and end with their parent however that
    ends.

    Args:
        factory: See `Factory`; picklable unless ``workers`` is 0.
        workers: Processes, which share the cores between them; 0 evaluates in this process.
        groups: Names of the toggles.
        retries: Further attempts after a killed worker or too little memory.

    Raises:
        InputError: If ``workers`` is negative; and by `evaluate_iter`, if the factory or the evaluator raises it.
        RuntimeError: By `evaluate_iter`, if the factory raises anything else: every schedule would meet it.
    """

    def __init__(self, factory: Factory, workers: int, groups: Sequence[str], retries: int = 1) -> None:
        if workers < 0:
            raise InputError(f"evaluator.workers={workers}", "set it to 0 (evaluate in this process) or more")
        self.factory, self.retries = factory, retries
        self._groups = tuple(groups)
        self._bench = _Bench(factory, 0)
        self._workers: list[_Worker | None] = [None] * workers

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of the toggles."""
        return self._groups

    def evaluate_iter(self, schedules: Sequence[Schedule]) -> Iterator[tuple[int, Evaluation]]:
        """See `Evaluator.evaluate_iter`. Closing the iterator early ends the workers that are still busy."""
        return self._in_workers(schedules) if self._workers else self._inline(schedules)

    def close(self) -> None:
        """Ends the workers and forgets the evaluator of this process; safe to call twice."""
        self._bench = _Bench(self.factory, 0)
        for slot in range(len(self._workers)):
            self._discard(slot)

    def _inline(self, schedules: Sequence[Schedule]) -> Iterator[tuple[int, Evaluation]]:
        for index, schedule in enumerate(schedules):
            for attempt in itertools.count(1):
                evaluation = self._bench.attempt(schedule)
                if worth_retrying(evaluation.failure):
                    self._bench = _Bench(self.factory, 0)
                if not self._try_again(evaluation, attempt):
                    yield index, evaluation
                    break

    def _in_workers(self, schedules: Sequence[Schedule]) -> Iterator[tuple[int, Evaluation]]:
        waiting = deque(_Job(index, schedule) for index, schedule in enumerate(schedules))
        finished: list[tuple[int, Evaluation]] = []
        try:
            while True:
                busy = self._hand_out(waiting)
                yield from finished
                if not busy:
                    return
                finished = []
                handles = [handle for worker in busy.values() for handle in (worker.pipe, worker.process.sentinel)]
                ready = connection.wait(handles)
                for slot, worker in busy.items():
                    if worker.pipe in ready or worker.process.sentinel in ready:
                        job, evaluation = worker.collect()
                        if worth_retrying(evaluation.failure):
                            self._discard(slot)
                        if self._try_again(evaluation, job.attempt):
                            waiting.appendleft(_Job(job.index, job.schedule, job.attempt + 1))
                        else:
                            finished.append((job.index, evaluation))
        finally:
            for slot, started in enumerate(self._workers):
                if started is not None and started.job is not None:
                    self._discard(slot)

    def _try_again(self, evaluation: Evaluation, attempt: int) -> bool:
        if not evaluation.failure:
            return False
        again = attempt <= self.retries and worth_retrying(evaluation.failure)
        outcome = "will be tried again" if again else "counts as a failed evaluation"
        key, failure = evaluation.schedule.key, evaluation.failure
        _log.warning("schedule %s, attempt %d: %s; it %s", key, attempt, failure, outcome)
        return again

    def _hand_out(self, waiting: deque[_Job]) -> dict[int, _Worker]:
        """Gives each idle worker a job, starting those that are missing; returns the busy ones by slot."""
        busy = {}
        for slot in range(len(self._workers)):
            worker = self._workers[slot]
            if waiting and (worker is None or worker.job is None):
                if worker is not None and not worker.process.is_alive():
                    self._discard(slot)
                    worker = None
                if worker is None:
                    worker = self._workers[slot] = _Worker(self.factory, slot, cores() // len(self._workers))
                worker.give(waiting.popleft())
            if worker is not None and worker.job is not None:
                busy[slot] = worker
        return busy

    def _discard(self, slot: int) -> None:
        worker, self._workers[slot] = self._workers[slot], None
        if worker is not None:
            worker.end()


@dataclass(frozen=True)
class _Job:
    index: int
    schedule: Schedule
    attempt: int = 1


class _Bench:
    """One evaluator, built when the first schedule comes, whose exceptions become failed evaluations."""

    def __init__(self, factory: Factory, slot: int) -> None:
        self._factory, self._slot = factory, slot
        self._evaluator: ScheduleEvaluator | None = None

    def attempt(self, schedule: Schedule) -> Evaluation:
        """Raises InputError, and whatever else the factory raises that a second attempt would meet again."""
        started = time.perf_counter()
        try:
            if self._evaluator is None:
                self._evaluator = self._factory(self._slot)
            return self._evaluator.evaluate(schedule)
        except InputError:
            raise
        except Exception as error:
            failure = describe(error)
            if self._evaluator is None and not worth_retrying(failure):
                raise
            if failure.startswith(ERROR):  # unforeseen: perhaps a bug, which its place in the code finds
                _log.warning("schedule %s", schedule.key, exc_info=True)
            return Evaluation(schedule, seconds=time.perf_counter() - started, failure=failure)


class _Worker:
    """A process and its pipe, seen from the parent."""

    def __init__(self, factory: Factory, slot: int, threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process: BaseProcess = context.Process(
            target=_work, args=(factory, slot, theirs), name=f"evaluator-{slot}", daemon=True
        )
        with _child_inherits(max(1, threads)):
            self.process.start()
        theirs.close()
        self.job: _Job | None = None
        self.started = 0.0

    def give(self, job: _Job) -> None:
        self.job, self.started = job, time.perf_counter()
        with suppress(OSError):  # it has died since: its sentinel will tell
            self.pipe.send(job.schedule)

    def collect(self) -> tuple[_Job, Evaluation]:
        """The job and what it led to. Call it when the pipe or the sentinel is ready."""
        assert self.job is not None
        job, self.job = self.job, None
        try:
            reply = self.pipe.recv() if self.pipe.poll() else None
        except (EOFError, OSError):
            reply = None
        if isinstance(reply, Exception):
            raise reply
        return job, reply if isinstance(reply, Evaluation) else self._obituary(job)

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.process.close()
        self.pipe.close()

    def _obituary(self, job: _Job) -> Evaluation:
        self.process.join(timeout=5)
        code = self.process.exitcode
        how = signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"
        return Evaluation(job.schedule, seconds=time.perf_counter() - self.started, failure=f"{KILLED} by {how}")


def _work(factory: Factory, slot: int, pipe: connection.Connection[Any, Any]) -> None:
    """A worker's life: schedules in, evaluations (or an exception to raise in the parent) out."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    bench = _Bench(factory, slot)
    with suppress(EOFError, OSError):  # the parent is gone
        while True:
            schedule = pipe.recv()
            reply: Evaluation | Exception
            try:
                reply = bench.attempt(schedule)
            except InputError as error:
                reply = error
            except Exception:
                reply = RuntimeError(f"worker {slot} could not build its evaluator\n{traceback.format_exc()}")
            pipe.send(reply)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


@contextmanager
def _child_inherits(threads: int) -> Iterator[None]:
    """What must be in place before a child's first instruction: its number of threads, and no Ctrl-C."""
    resource_tracker.ensure_running()  # else it starts with the child, and unblocks SIGINT when it does
    before = os.environ.get("OMP_NUM_THREADS")
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    os.environ["OMP_NUM_THREADS"] = str(threads)
    try:
        yield
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
