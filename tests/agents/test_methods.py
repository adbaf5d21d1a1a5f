"""The command that compares adaptation methods, with invented measurements: real ones take minutes."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from envs.evaluators.base import Evaluation
from envs.evaluators.finetune import FineTuneEvaluator
from envs.task import Schedule
from rewards.measurement import Measurement
from tests.agents.command import Command, Outcome

SMALL = (
    "envs=[phantom]",
    "methods=[full,bias_norm]",
    "split.train=4",
    "split.heldout=8",
    "split.test=8",
    "early_stops=[3]",
    "seeds=[0,1]",
    "tuning.env=phantom",
    "tuning.learning_rates=[1e-4,1e-2]",
    "inner.steps=6",
    "inner.warmup=4",  # more than the early stop and the timing have steps
    "timing.steps=1",
    "timing.repeats=1",
    "workers=1",
)


def invented() -> None:
    """Quality and memorization grow with what learns and with the steps; 1e-4 is the better learning rate."""

    def evaluate(self: FineTuneEvaluator, schedule: Schedule) -> Evaluation:
        learns = sum(schedule.phases[0]) / len(schedule.phases[0]) * self.task.inner.steps / 6
        values = {
            "kid": (10 - learns + self.task.inner.learning_rate, False),
            "membership": (0.5 + 0.4 * learns + 0.01 * self.task.seed * learns, False),
            "copy_rate": (0.0, False),
            "average_minimum_distance": (0.1, True),
        }
        metrics = {
            name: Measurement(value, 0.5, None, None, 8, higher_is_better)
            for name, (value, higher_is_better) in values.items()
        }
        trainable = round(self.total_parameters * sum(schedule.phases[0]) / len(schedule.phases[0]))
        return Evaluation(schedule, metrics, trainable, self.total_parameters, steps=6, seconds=1.0)

    FineTuneEvaluator.evaluate = evaluate  # type: ignore[method-assign]


def methods(*arguments: str, folder: Path) -> Outcome:
    return Command([*SMALL, *arguments], folder, invented, name="methods").wait()


def paid_for(folder: Path) -> int:
    with sqlite3.connect(folder / "runs" / "evaluations.sqlite") as store:
        return int(store.execute("SELECT count(*) FROM evaluations").fetchone()[0])


def test_every_method_and_mask_is_measured_once(tmp_path: Path) -> None:
    first = methods(folder=tmp_path)
    assert (first.code, first.err) == (0, "")
    # 2 methods x 2 learning rates, then for each of 2 seeds 2 methods x 5 masks and an early stop
    assert paid_for(tmp_path) == 4 + 2 * (2 * 5 + 1)
    page = (tmp_path / "docs" / "methods.md").read_text(encoding="utf-8")
    assert "| bias_norm | **9** | 9.01 |" in page
    assert (tmp_path / "docs" / "methods-phantom.png").is_file()

    (part,) = (tmp_path / "runs" / "methods").glob("table-phantom-*.json")
    part.unlink()
    again = methods(folder=tmp_path)
    assert (again.code, again.err) == (0, "")
    assert paid_for(tmp_path) == 4 + 2 * (2 * 5 + 1)
    assert part.is_file()


def test_a_mask_that_names_no_group(tmp_path: Path) -> None:
    outcome = methods("masks.encoder='input,down_blocks.7'", folder=tmp_path)
    assert outcome.code == 2
    assert outcome.err.startswith("error: mask='input,down_blocks.7' names no layer group ['down_blocks.7']")
    assert not (tmp_path / "runs").exists()
