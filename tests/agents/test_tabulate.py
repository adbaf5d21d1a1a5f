"""The command that measures every mask, with invented measurements: real ones take hours."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from agents.tabulate import all_masks, noise, repeated_masks, warn_of_noise
from envs.evaluators.base import Evaluation
from envs.evaluators.finetune import FineTuneEvaluator
from envs.evaluators.table import EvaluationTable
from envs.task import InnerBudget, Schedule, SelectionTask
from rewards.measurement import Measurement
from rewards.objective import Objective
from tests.agents.command import Command, Outcome

SMALL = (
    "env=phantom",
    "env.train=4",
    "env.heldout=8",
    "env.test=8",
    "evaluator.workers=0",
    "repeat.share=0.02",
    "repeat.seeds=1",
)


def kid(schedule: Schedule, seed: int) -> Measurement:
    return Measurement(10.0 - int(schedule.key, 2) / 100 + 0.25 * seed, 0.1, None, None, 8, higher_is_better=False)


def membership(schedule: Schedule) -> Measurement:
    return Measurement(0.5 + int(schedule.key, 2) / 1000, 0.5, None, None, 8, higher_is_better=False)


def invented() -> None:
    def evaluate(self: FineTuneEvaluator, schedule: Schedule) -> Evaluation:
        metrics = {"kid": kid(schedule, self.task.seed), "membership": membership(schedule)}
        return Evaluation(schedule, metrics, 1, 2, steps=3, seconds=1.0)

    FineTuneEvaluator.evaluate = evaluate  # type: ignore[method-assign]


def tabulate(*arguments: str, folder: Path) -> Outcome:
    return Command([*SMALL, *arguments], folder, invented, name="tabulate").wait()


def test_every_mask_once_and_some_again(tmp_path: Path) -> None:
    outcome = tabulate(folder=tmp_path)
    assert (outcome.code, outcome.err) == (0, "")
    (path,) = (tmp_path / "runs" / "tables").glob("phantom-full-*.parquet")
    table = EvaluationTable.read(path)
    assert sorted(schedule.key for schedule in table.evaluations[0]) == [f"{i:08b}" for i in range(256)]
    assert len(table.repeated) == round(0.02 * 256)
    assert {"00000000", "11111111"} <= {schedule.key for schedule in table.repeated}
    for seed, of_seed in table.evaluations.items():
        assert all(e.metrics["kid"] == kid(schedule, seed) for schedule, e in of_seed.items())
    assert len(table.group_features) == 8
    assert table.card["data"]["source"]
    # Two seeds that differ by a quarter everywhere: a standard deviation of a quarter over the root of two.
    assert table.card["noise_floor"]["kid"][0] == pytest.approx(0.25 / 2**0.5)

    path.unlink()
    assert tabulate("table=again.parquet", folder=tmp_path).code == 0
    assert EvaluationTable.read(tmp_path / "again.parquet").evaluations == table.evaluations
    with sqlite3.connect(tmp_path / "runs" / "evaluations.sqlite") as store:
        assert store.execute("SELECT count(*) FROM evaluations").fetchone() == (256 + 5,)


def test_bad_input(tmp_path: Path) -> None:
    outcome = tabulate("evaluator=synthetic", "~evaluator.workers", folder=tmp_path)
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err == "error: evaluator=synthetic — tables are measured: set evaluator=finetune\n"


def test_repeats_are_drawn_by_the_seed_and_hold_the_anchors() -> None:
    masks = all_masks(6)
    drawn = repeated_masks(masks, 0.25, seed=0)
    assert len(drawn) == len(set(drawn)) == 16
    assert (drawn[0], drawn[-1]) == (masks[0], masks[-1])
    assert drawn == repeated_masks(masks, 0.25, seed=0) != repeated_masks(masks, 0.25, seed=1)
    assert repeated_masks(masks, 0, seed=0) == [masks[0], masks[-1]]


def test_a_failed_repeat_is_left_out_of_the_noise() -> None:
    schedules = [Schedule.from_key(key) for key in ("00", "01", "11")]
    inner = InnerBudget(steps=1, batch_size=1, learning_rate=1e-3, images=1, sampling_steps=1)
    task = SelectionTask("phantom", "", "embedded", "", "full", "blocks", ("a", "b"), inner, ("kid", "fid"))
    found = {seed: {s: Evaluation(s, {"kid": kid(s, seed)}) for s in schedules} for seed in (0, 2)}
    whole = noise(task, found)
    assert whole["kid"][0] == pytest.approx(0.5 / 2**0.5)
    found[2][schedules[1]] = Evaluation(schedules[1], failure="diverged")
    assert noise(task, found)["kid"][0] == pytest.approx(0.5 / 2**0.5)
    assert noise(task, found)["kid"] != whole["kid"], "fewer masks, a wider interval"
    assert "fid" not in whole
    assert noise(task, {0: found[0]}) == {}


def measured(quality: float, privacy: float) -> dict[str, Measurement]:
    """KID falls from 10 to 0 as quality rises; AUC from 0.9 to its null of 0.5 as privacy does."""
    auc = 0.9 - 0.4 * privacy
    return {
        "kid": Measurement(10 * (1 - quality), 0.1, None, None, 8, higher_is_better=False),
        "membership": Measurement(auc, 0.5, None, None, 8, higher_is_better=False),
    }


def evaluations(quality_luck: float, privacy_luck: float) -> dict[int, dict[Schedule, Evaluation]]:
    ends = {"00": (0.0, 1.0), "11": (1.0, 0.0)}

    def of_seed(luck: int) -> dict[Schedule, Evaluation]:
        inner = dict.fromkeys(("01", "10"), (0.5 + luck * quality_luck, 0.5 + luck * privacy_luck))
        return {
            Schedule.from_key(key): Evaluation(Schedule.from_key(key), measured(*axes))
            for key, axes in {**ends, **inner}.items()
        }

    return {0: of_seed(-1), 1: of_seed(1)}


@pytest.mark.parametrize(
    ("quality_luck", "privacy_luck", "noisy"), [(0.1, 0.1, []), (0.3, 0.1, ["quality"]), (0.1, 0.3, ["privacy"])]
)
def test_an_axis_that_is_mostly_noise_is_warned_of(
    quality_luck: float, privacy_luck: float, noisy: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    warn_of_noise(evaluations(quality_luck, privacy_luck), 0, Objective(("kid",), ("membership",)))
    assert [record.getMessage().split(":")[0] for record in caplog.records] == noisy
    # Two seeds that are twice the luck apart.
    assert all(f"differ by {0.3 * 2**0.5:.2f}" in record.getMessage() for record in caplog.records)


def test_a_table_without_axes_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    found = evaluations(0.1, 0.1)
    key = Schedule.from_key("11")
    found[0][key] = Evaluation(key, measured(0.0, 0.0))
    warn_of_noise(found, 0, Objective(("kid",), ("membership",)))
    assert "full fine-tuning is no better than the base model" in caplog.text
    assert "raise inner.steps" in caplog.text


def noisy_then_dead() -> None:
    """Masks change places from seed to seed, and the machine goes down in the long part."""
    evaluated: list[str] = []

    def evaluate(self: FineTuneEvaluator, schedule: Schedule) -> Evaluation:
        evaluated.append(schedule.key)
        if len(evaluated) > 20:
            raise KeyboardInterrupt
        turned = self.task.seed % 2 and len(set(schedule.key)) > 1
        number = 255 - int(schedule.key, 2) if turned else int(schedule.key, 2)
        as_if = Schedule.from_key(f"{number:08b}")
        return Evaluation(schedule, {"kid": kid(as_if, 0), "membership": membership(schedule)}, 1, 2, 3, seconds=1.0)

    FineTuneEvaluator.evaluate = evaluate  # type: ignore[method-assign]


def test_noise_is_warned_of_before_the_long_part(tmp_path: Path) -> None:
    outcome = Command([*SMALL, "repeat.share=0.03"], tmp_path, noisy_then_dead, name="tabulate").wait()
    assert outcome.code != 0
    assert outcome.err.count("WARNING quality: seeds of one mask differ") == 1
    assert "WARNING privacy" not in outcome.err
