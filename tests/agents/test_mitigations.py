"""The command that compares mitigations, with invented measurements: real ones take hours."""

from __future__ import annotations

import json
import re
import sqlite3
from pathlib import Path

import pytest

from envs.evaluators.base import Evaluation
from envs.evaluators.finetune import FineTuneEvaluator
from envs.task import Schedule
from rewards.measurement import Measurement
from tests.agents.command import Command, Outcome
from tests.agents.test_bad_input import refused_in_one_line

SMALL = (
    "envs=[phantom]",
    "mitigations=[deduplicate,agc,'iet,agc']",
    "+mitigation_options.iet.shards=1",
    "copies=[difffit]",
    "+masks.phantom='input,mid_block'",
    "split.train=4",
    "split.heldout=8",
    "split.test=8",
    "early_stops=[3]",
    "seeds=[0,1]",
    "inner.steps=6",
    "inner.warmup=2",
    "inner.inversions=2",
    "workers=1",
)


def invented() -> None:
    """Quality and memorization grow with what learns and with the steps; a mitigation halves the memorization.

    Only `deduplicate` does nothing, as where there are no duplicates.
    """

    def evaluate(self: FineTuneEvaluator, schedule: Schedule) -> Evaluation:
        learns = sum(schedule.phases[0]) / len(schedule.phases[0]) * self.task.inner.steps / 6
        halved = 0.5 ** len(self.task.mitigations.keys() - {"deduplicate"})
        values = {
            "kid": (10 - learns - 0.01 * self.task.seed, False),
            "membership": (0.5 + (0.4 + 0.01 * self.task.seed) * learns * halved, False),
            "copy_rate": (0.1 * learns, False),
            "average_minimum_distance": (0.1, True),
            "inversion": (None, True),
            "inversion_success": (0.5 * learns * halved, False),
        }
        metrics = {
            name: Measurement(value, 0.5, value, value, 8, higher_is_better, note="" if value else "beyond the budget")
            for name, (value, higher_is_better) in values.items()
            if name in self.task.metrics
        }
        reported = {"iet": {"iet.sequential_steps": 6.0}, "agc": {"agc.skipped_share": 0.25}}
        figures = {k: v for name, each in reported.items() if name in self.task.mitigations for k, v in each.items()}
        trainable = round(self.total_parameters * sum(schedule.phases[0]) / len(schedule.phases[0]))
        return Evaluation(schedule, metrics, trainable, self.total_parameters, steps=6, seconds=1.0, figures=figures)

    FineTuneEvaluator.evaluate = evaluate  # type: ignore[method-assign]


def mitigations(*arguments: str, folder: Path) -> Outcome:
    return Command([*SMALL, *arguments], folder, invented, name="mitigations").wait()


def paid_for(folder: Path) -> int:
    with sqlite3.connect(folder / "runs" / "evaluations.sqlite") as store:
        return int(store.execute("SELECT count(*) FROM evaluations").fetchone()[0])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mitigations")
    outcome = mitigations(folder=folder)
    assert outcome.code == 0, outcome.err
    return folder


def test_everything_is_paid_for_once(folder: Path) -> None:
    """Two seeds of base, early stop, and three subjects four ways; one seed of base and those subjects inverted.

    Without duplicates `deduplicate` leaves the weights as they are, and inversion asks nothing else.
    """
    assert paid_for(folder) == 2 * (1 + 1 + 3 * 4) + (1 + 3 * 3)
    page = (folder / "docs" / "mitigations.md").read_text()
    assert mitigations(folder=folder).code == 0
    assert paid_for(folder) == 2 * (1 + 1 + 3 * 4) + (1 + 3 * 3)
    assert (folder / "docs" / "mitigations.md").read_text() == page


def test_evaluations_that_were_given_away_make_the_same_page(folder: Path, tmp_path: Path) -> None:
    away = tmp_path / "evaluations.jsonl.gz"
    for place, argument in ((folder, f"export={away}"), (tmp_path, f"sources=[{away}]")):
        outcome = Command([argument], place, name="merge").wait()
        assert outcome.code == 0, outcome.err
    outcome = mitigations(folder=tmp_path)
    assert outcome.code == 0, outcome.err
    assert paid_for(tmp_path) == paid_for(folder)
    one, other = ((place / "docs" / "mitigations.md").read_text() for place in (folder, tmp_path))
    assert _without_origin(one) == _without_origin(other)
    assert "| full, all, iet,agc | agc.skipped_share 0.25, iet.sequential_steps 6 |" in other


def _without_origin(page: str) -> str:
    """What was measured, without when and how long that took."""
    measured, origin = page.rsplit("phantom-choice (", 1)
    assert "numpy" in origin
    return measured


def test_the_page_says_what_was_measured(folder: Path) -> None:
    page = (folder / "docs" / "mitigations.md").read_text()
    assert "The chosen mask, given in the call: input, mid_block." in page
    # Halving the excess of membership is half of the privacy axis, and no quality.
    row = next(line for line in page.splitlines() if line.startswith("| full | all | agc |"))
    cells = [cell.strip() for cell in row.split("|")]
    assert cells[7].startswith("0.00 [0.00, 0.00]")
    assert cells[8].startswith("0.50 [")
    words = " ".join(page.split())
    assert "At equal steps, agc, iet+agc raise the privacy of full fine-tuning beyond the seeds' interval." in words
    assert "Of deduplicate every number is that of full fine-tuning alone" in words
    assert "full, chosen, agc | agc.skipped_share 0.25" in page
    by_method = page.split("### The mask by other methods")[1].split("##")[0]
    found = [line.split(" | ")[:2] for line in by_method.splitlines() if line.startswith("| ")]
    assert found[2:] == [["| full", "all"], ["| full", "chosen"], ["| difffit", "chosen"]]
    for mitigation in ("none", "deduplicate"):
        assert f"| full | all | {mitigation} | 0.500 [0.500, 0.500] | 0.500 | beyond the budget |" in page
    assert "| full | all | agc | 0.250 [0.250, 0.250] | 0.500 | beyond the budget |" in page
    assert "| difffit | chosen | iet,agc | 0." in page.split("### phantom: named images")[1]
    assert (folder / "docs" / "mitigations-phantom.png").stat().st_size > 10_000


def test_copies_may_be_left_out_of_the_inversions(tmp_path: Path) -> None:
    outcome = mitigations("inversion_copies=false", folder=tmp_path)
    assert outcome.code == 0, outcome.err
    assert paid_for(tmp_path) == 2 * (1 + 1 + 3 * 4) + (1 + 2 * 3)
    page = (tmp_path / "docs" / "mitigations.md").read_text()
    assert "| difffit" not in page.split("### phantom: named images")[1]


def test_what_does_not_go_together_is_said_and_left_out(tmp_path: Path) -> None:
    outcome = mitigations("mitigation_options.iet.shards=3", folder=tmp_path)
    assert outcome.code == 0, outcome.err
    page = (tmp_path / "docs" / "mitigations.md").read_text()
    assert "### phantom: what does not go together" in page
    assert "| full | iet,agc | mitigation.iet.shards=3" in page
    assert not any(line.startswith("| full | all | iet,agc") for line in page.splitlines())
    counts = re.findall(r"phantom(?: inverted)? .* (\d+)/(\d+) ", outcome.out)
    assert counts == [(str(2 * (2 + 3 * 3)),) * 2, (str(1 + 3 * 2),) * 2], "what is left out is not waited for"


def test_a_method_without_a_parameter_in_the_mask_is_said_and_left_out(tmp_path: Path) -> None:
    outcome = mitigations("copies=[attention]", "masks.phantom=input", folder=tmp_path)
    assert outcome.code == 0, outcome.err
    page = (tmp_path / "docs" / "mitigations.md").read_text()
    assert "| attention | any | the method has no parameter in these groups |" in page
    assert not any(line.startswith("| attention | chosen") for line in page.splitlines())
    assert paid_for(tmp_path) == 2 * (1 + 1 + 2 * 4) + (1 + 2 * 3)


def test_a_policy_that_learned_elsewhere_finds_the_mask(tmp_path: Path) -> None:
    own = tuple(each for each in SMALL if "masks.phantom" not in each)
    arguments = [*own, "copies=[]", "choice_evaluations=6"]
    outcome = Command(arguments, tmp_path, invented, name="mitigations").wait()
    assert outcome.code == 0, outcome.err
    (part,) = (tmp_path / "runs" / "mitigations").glob("phantom-choice-*.json")
    found = json.loads(part.read_text())["result"]
    with sqlite3.connect(tmp_path / "runs" / "evaluations.sqlite") as store:
        rows = store.execute("SELECT identity, schedule FROM evaluations JOIN tasks ON tasks.id = task").fetchall()
    searched = [(json.loads(identity), mask) for identity, mask in rows if '"judge": "heldout"' in identity]
    # Seeds of the comparison are 0 and 1: none of its fine-tunes was one of the search.
    assert {task["seed"] for task, _ in searched} == {2}
    tried = [mask.count("1") for _, mask in searched if 0 < mask.count("1") < 8]
    assert len(tried) == 6
    # Both axes are lines in how much learns: at equal weights, half of the groups are best.
    assert abs(len(found["groups"]) - 4) == min(abs(count - 4) for count in tried)
    assert found["best"]["utility"] >= found["first"]["utility"]
    page = " ".join((tmp_path / "docs" / "mitigations.md").read_text().split())
    assert f"that learned on tables of chest_xray, isic: {', '.join(found['groups'])}." in page
    assert "It is the best of 6 fine-tunes with a seed of their own" in page


def test_what_is_wrong_with_the_last_data_set_is_said_before_the_first_is_paid_for(tmp_path: Path) -> None:
    outcome = mitigations("envs=[phantom,isic]", "+masks.isic=none", folder=tmp_path)
    refused_in_one_line(outcome.code, outcome.err, "isic")
    assert not (tmp_path / "runs" / "evaluations.sqlite").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["mitigations=[hope]"], "mitigation=hope is none"),
        (["mitigations=[]"], "mitigations=[]"),
        (["mitigations=['augment,dp_sgd']"], "mitigation=[augment,dp_sgd]"),
        (["~learning_rates.difffit"], "learning_rates has none of difffit"),
        (["seeds=[0]"], "seeds=[0]"),
        (["masks.phantom=nowhere"], "nowhere"),
        (["masks.phantom=none"], "trains nothing"),
        (["+masks.isic=input"], "masks names isic"),
        (["early_stops=[6]"], "early_stops=[6]"),
        (["metrics=[kid]"], "metrics= lacks membership"),
        (["preference=2"], "preference=2"),
        (["choice_evaluations=0"], "choice_evaluations"),
    ],
)
def test_wrong_calls(arguments: list[str], said: str, tmp_path: Path) -> None:
    outcome = mitigations(*arguments, folder=tmp_path)
    refused_in_one_line(outcome.code, outcome.err, said)
