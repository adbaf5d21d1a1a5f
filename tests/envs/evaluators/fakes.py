"""A task, schedules and misbehaving evaluators, in a module that worker processes can import."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from envs.evaluators.base import Evaluation
from envs.evaluators.synthetic import SyntheticEvaluator
from envs.task import InnerBudget, Schedule, SelectionTask
from rewards.errors import InputError

GROUPS = ("in", "down", "mid", "up")

TASK = SelectionTask(
    env="phantom",
    split_sha256="0" * 64,
    backbone="embedded",
    backbone_sha256="1" * 64,
    method="full",
    scheme="blocks",
    groups=GROUPS,
    inner=InnerBudget(steps=10, batch_size=4, learning_rate=1e-3, images=8, sampling_steps=5),
    metrics=("kid", "membership"),
)


def schedules(count: int) -> list[Schedule]:
    """The first ``count`` of the 16 single-phase schedules of `GROUPS`."""
    return [Schedule.from_key(f"{number:04b}") for number in range(count)]


def synthetic(worker: int) -> SyntheticEvaluator:
    return SyntheticEvaluator(GROUPS, seed=7)


class Counting:
    """A synthetic evaluator that remembers what it was asked, and yields last things first."""

    def __init__(self, failures: Mapping[Schedule, str] | None = None) -> None:
        self.inner = SyntheticEvaluator(GROUPS, seed=7, failures=failures)
        self.asked: list[Schedule] = []
        self.closed = 0

    @property
    def groups(self) -> tuple[str, ...]:
        return GROUPS

    def evaluate_iter(self, schedules: Sequence[Schedule]) -> Iterator[tuple[int, Evaluation]]:
        for index in reversed(range(len(schedules))):
            self.asked.append(schedules[index])
            yield index, self.inner.evaluate(schedules[index])

    def close(self) -> None:
        self.closed += 1


class Misbehaving:
    """Does to each attempt at a schedule what a plan says, and leaves ``<schedule>.<attempt>`` with its process's id.

    Args:
        folder: Where attempts are recorded, across processes.
        plan: By schedule key, what each attempt does in turn (the last entry for all later ones); nothing if not named.
        worker: The slot.
    """

    def __init__(self, folder: Path, plan: Mapping[str, Sequence[str]], worker: int) -> None:
        self.folder, self.plan, self.worker = folder, plan, worker
        self.inner = synthetic(worker)

    def evaluate(self, schedule: Schedule) -> Evaluation:
        attempt = len(attempts(self.folder, schedule.key))
        acts = self.plan.get(schedule.key, ["work"])
        draft = self.folder / f"draft-{os.getpid()}"
        draft.write_text(f"{os.getpid()} {self.worker} {os.environ['OMP_NUM_THREADS']}")
        draft.rename(self.folder / f"{schedule.key}.{attempt}")
        act = acts[min(attempt, len(acts) - 1)]
        if act == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif act == "exit":
            sys.exit(3)
        elif act == "sleep":
            time.sleep(60)
        elif act == "memory":
            raise MemoryError("no room for activations")
        elif act == "bug":
            raise KeyError("a bug")
        elif act == "diverge":
            raise FloatingPointError("loss is nan\nat step 3")
        elif act == "reject":
            raise InputError("inner.steps=10 is too few", "set it higher")
        return self.inner.evaluate(schedule)


def attempts(folder: Path, key: str) -> list[tuple[int, int, int]]:
    """(process id, slot, threads) of each attempt at a schedule so far."""
    texts = [path.read_text().split() for path in sorted(folder.glob(f"{key}.*"))]
    return [(int(pid), int(slot), int(threads)) for pid, slot, threads in texts]


def rejecting_factory(worker: int) -> SyntheticEvaluator:
    raise InputError("backbone.path=/nowhere", "name a folder that is there")


def broken_factory(worker: int) -> SyntheticEvaluator:
    raise AttributeError("a bug in the factory")
