"""``python -m agents.train`` as a child of a process that has imported it once: a call takes a second, not ten."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import agents.train
from agents.run_folder import RunFolder
from agents.settings import TrainSettings
from agents.workbench import Workbench
from envs.evaluators.base import Evaluation
from envs.evaluators.synthetic import SyntheticEvaluator
from envs.store import EvaluationStore, StoredEvaluation
from envs.task import Schedule

SMALL = ("evaluator=synthetic", "agent=ppo", "budget.evaluations=12", "agent.rollout=4", "agent.epochs=2")
"""A search of a second: 12 masks, 2 anchors, a final table of 3."""

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["agents.train", "agents.bench", "agents.finetune", __name__])

Double = Callable[[], None]
"""Changes the command's process before it starts; picklable."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a command ended; a code below 0 is the signal that ended it."""

    code: int
    out: str
    err: str


class Command:
    """A running ``python -m agents.<name>``.

    Args:
        arguments: Of the command line.
        folder: Its working directory, where ``run_dir`` is by default.
        double: What is replaced in its process.
        name: Of the command.
    """

    def __init__(
        self, arguments: Sequence[str], folder: Path, double: Double | None = None, name: str = "train"
    ) -> None:
        self._files = folder / f".out-{time.monotonic_ns()}", folder / f".err-{time.monotonic_ns()}"
        self.process: ForkServerProcess = _CONTEXT.Process(
            target=_run, args=(name, list(arguments), folder, *self._files, double)
        )
        self.process.start()

    def send(self, number: signal.Signals) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def wait(self, timeout: float = 250) -> Outcome:
        self.process.join(timeout)
        code = self.process.exitcode
        if code is None:
            self.process.kill()
            self.process.join()
        self.process.close()
        assert code is not None, f"still running after {timeout} s"
        out, err = (file.read_text(encoding="utf-8") for file in self._files)
        return Outcome(code, out, err)


def train(*arguments: str, folder: Path, double: Double | None = None) -> Outcome:
    """Runs the command to its end."""
    return Command(arguments, folder, double).wait()


def run_folders(folder: Path) -> list[Path]:
    """Every run folder below a working directory."""
    return sorted((folder / "runs" / "train").glob("*/*"))


def trained(*arguments: str, folder: Path, double: Double | None = None) -> Path:
    """Runs the command, which must succeed, and returns the folder of the one run that is there then."""
    outcome = train(*arguments, folder=folder, double=double)
    assert outcome.code == 0, outcome.err
    (run,) = run_folders(folder)
    return run


def read_json(path: Path) -> Any:
    """Reads JSON in which every number is finite."""
    return json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse)


def without_times(result: Mapping[str, Any]) -> dict[str, Any]:
    """A ``result.json`` without what differs between two equal runs: wall times, and the state of the source tree."""
    rest = {key: value for key, value in result.items() if key not in ("seconds", "git")}
    return rest | {"evaluations": {k: v for k, v in result["evaluations"].items() if k != "seconds"}}


def answers(run: Path) -> list[dict[str, Any]]:
    """The lines of ``evaluations.jsonl``."""
    lines = (run / "evaluations.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line, parse_constant=_refuse) for line in lines]


def slow(seconds: float) -> Double:
    """Every evaluation takes a while."""
    return functools.partial(_slow, seconds)


def slow_store(seconds: float) -> Double:
    """Every look into the store takes a while."""
    return functools.partial(_slow_store, seconds)


def failing(keys: Sequence[str], reason: str) -> Double:
    """The schedules of these keys fail."""
    return functools.partial(_failing, tuple(keys), reason)


def useless_final_table() -> None:
    """In the final table everything is as good as the base model."""
    train: Any = agents.train
    prepare = train.prepare

    class AsBase(SyntheticEvaluator):
        def evaluate(self, schedule: Schedule) -> Evaluation:
            base = super().evaluate(Schedule.constant([False] * len(self.groups)))
            return dataclasses.replace(base, schedule=schedule)

    def prepared(settings: TrainSettings) -> Workbench:
        bench: Workbench = prepare(settings)
        make = bench.make_evaluator
        return dataclasses.replace(
            bench, make_evaluator=lambda task: make(task) if task == bench.search else AsBase(task.groups)
        )

    train.prepare = prepared


def killed(where: str, count: int = 1) -> Double:
    """``kill -9`` from within, the ``count``-th time that a place is reached: a key of `_PLACES`."""
    return functools.partial(_killed, where, count)


_PLACES: Mapping[str, tuple[Any, str]] = {
    "evaluate": (SyntheticEvaluator, "evaluate"),
    "store": (EvaluationStore, "put"),
    "record": (RunFolder, "record"),
    "save policy": (agents.train, "save_policy"),
    "report": (agents.train, "write_report"),
    "write": (RunFolder, "write_json"),
}
"""By name, the function after which the process is killed."""


def _killed(where: str, count: int) -> None:
    owner, name = _PLACES[where]
    function, calls = getattr(owner, name), 0

    @functools.wraps(function)
    def last(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if where == "write" and calls == count:  # in the middle of it
            args[0].path.joinpath(f".{args[1]}.partial").write_text('{"schema": 1, "jo')
            os.kill(os.getpid(), signal.SIGKILL)
        result = function(*args, **kwargs)
        if calls == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, last)


def _slow(seconds: float) -> None:
    evaluate = SyntheticEvaluator.evaluate

    def slowly(self: SyntheticEvaluator, schedule: Schedule) -> Evaluation:
        time.sleep(seconds)
        return evaluate(self, schedule)

    SyntheticEvaluator.evaluate = slowly  # type: ignore[method-assign]


def _slow_store(seconds: float) -> None:
    get = EvaluationStore.get

    def slowly(self: EvaluationStore, key: str, run: str = "") -> StoredEvaluation | None:
        time.sleep(seconds)
        return get(self, key, run)

    EvaluationStore.get = slowly  # type: ignore[method-assign]


def _failing(keys: Sequence[str], reason: str) -> None:
    failures = {Schedule.from_key(key): reason for key in keys}
    evaluate = SyntheticEvaluator.evaluate

    def sometimes(self: SyntheticEvaluator, schedule: Schedule) -> Evaluation:
        if schedule in failures:
            return Evaluation(schedule, failure=failures[schedule])
        return evaluate(self, schedule)

    SyntheticEvaluator.evaluate = sometimes  # type: ignore[method-assign]


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} in a JSON file")


def _run(name: str, arguments: list[str], folder: Path, out: Path, err: Path, double: Double | None) -> None:
    for path, stream in ((out, sys.stdout), (err, sys.stderr)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), stream.fileno())
    os.chdir(folder)
    sys.argv = [f"{name}.py", *arguments]
    if double is not None:
        double()
    importlib.import_module(f"agents.{name}").main()
