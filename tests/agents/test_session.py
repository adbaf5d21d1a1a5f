from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import hydra
import numpy as np
import pytest
from omegaconf import DictConfig

from agents.run_folder import RunFolder
from agents.search.base import SearchProblem
from agents.session import Session, frozen_mask
from agents.settings import TrainSettings, read_settings
from agents.workbench import prepare
from envs.evaluators.base import Evaluation, Evaluator, evaluate_many
from envs.evaluators.synthetic import SyntheticEvaluator
from envs.store import EvaluationStore
from envs.task import Schedule, SelectionTask
from rewards.errors import InputError


class Flat(SyntheticEvaluator):
    """Every mask but the anchors is as good as every other; closings are counted."""

    closed = 0

    def evaluate(self, schedule: Schedule) -> Evaluation:
        evaluation = super().evaluate(schedule)
        if len(set(schedule.phases[0])) == 1:
            return evaluation
        same = super().evaluate(Schedule.from_key("10101010"))
        return dataclasses.replace(evaluation, metrics=same.metrics)

    def close(self) -> None:
        type(self).closed += 1


def flat(task: SelectionTask) -> Evaluator:
    return Flat(task.groups)


class Chosen:
    """Asks for given masks, two at a time."""

    name = "chosen"

    def __init__(self, *keys: str) -> None:
        self.masks = [schedule.phases[0] for schedule in schedules(*keys)]

    def search(self, problem: SearchProblem, seed: int) -> None:
        for start in range(0, len(self.masks), 2):
            problem.ask(self.masks[start : start + 2])


class Backwards(SyntheticEvaluator):
    """The last of a batch is answered first."""

    def evaluate_iter(self, schedules: Sequence[Schedule]) -> Iterator[tuple[int, Evaluation]]:
        yield from reversed(list(super().evaluate_iter(schedules)))


@contextmanager
def session(
    folder: Path, *overrides: str, evaluator: Callable[[SelectionTask], Evaluator] = flat
) -> Iterator[tuple[Session, list[tuple[str, int]]]]:
    with hydra.initialize_config_module("conf", version_base="1.3"):
        config: DictConfig = hydra.compose("train", overrides=["evaluator=synthetic", *overrides])
    settings = read_settings(config, TrainSettings)
    bench = dataclasses.replace(prepare(settings), make_evaluator=evaluator)
    shown: list[tuple[str, int]] = []
    with (
        closing(EvaluationStore(folder / "store.sqlite")) as store,
        RunFolder.create(folder, "train", "task", config, []) as run,
        closing(Session(settings, bench, store, run, lambda what, done: shown.append((what, done)))) as opened,
    ):
        yield opened, shown


def schedules(*keys: str) -> list[Schedule]:
    return [Schedule.from_key(key) for key in keys]


def test_of_equals_the_one_that_trains_least_is_best(tmp_path: Path) -> None:
    with session(tmp_path) as (opened, _):
        found = evaluate_many(opened.budgeted, schedules("11111110", "00011000", "11000000", "01111111"))
        least = min(found, key=lambda evaluation: evaluation.trainable_parameters)
        assert opened.best() == least


def test_anchors_are_no_finds_unless_the_search_asks_for_them(tmp_path: Path) -> None:
    with session(tmp_path) as (opened, _):
        assert opened.scored() == []
        with pytest.raises(InputError, match="all 0 evaluations failed"):
            opened.best()
        evaluate_many(opened.budgeted, schedules("11111111"))
        assert opened.best().schedule.key == "11111111"
        assert opened.counts().distinct == 2
        assert opened.counts().cached == 1


def test_the_budget_is_the_searchs_alone(tmp_path: Path) -> None:
    with session(tmp_path, "budget.evaluations=9") as (opened, _):
        assert opened.budgeted.remaining == 9
        (chosen,) = schedules("10000000")
        evaluate_many(opened.budgeted, [chosen])
        opened.final_table(chosen)
        assert opened.budgeted.remaining == 8
        assert opened.counts().distinct == 2 + 1 + 3


def test_progress_is_told_by_what_is_measured(tmp_path: Path) -> None:
    with session(tmp_path) as (opened, shown):
        evaluate_many(opened.budgeted, schedules("10000000", "10000000", "01000000"))
        opened.final_table(Schedule.from_key("10000000"))
    assert shown == [("search", n) for n in (1, 2, 3, 3, 4)] + [("final table", n) for n in (1, 2, 3)]


def test_evaluators_are_closed_also_when_the_anchors_are_useless(tmp_path: Path) -> None:
    Flat.closed = 0
    with session(tmp_path) as (opened, _):
        opened.final_table(Schedule.from_key("10000000"))
        assert Flat.closed == 1
    assert Flat.closed == 2
    wrong = "reward.quality=[membership]"
    with pytest.raises(InputError, match="no better than the base model"), session(tmp_path, wrong):
        pass
    assert Flat.closed == 3


def test_environments_share_the_budget_and_have_seeds_of_their_own(tmp_path: Path) -> None:
    with session(tmp_path, "agent=ppo", "preference=0.25", "horizon=2") as (opened, _):
        env = opened.environment(3)
        assert env.num_envs == 3
        assert all(each.evaluator is opened.budgeted for each in env.envs)
        observation = env.reset()
        assert isinstance(observation, dict)
        assert observation["preference"].tolist() == [[0.25]] * 3
        assert observation["chosen"].shape == (3, 2, 8)


def test_a_rival_has_a_budget_of_its_own_and_its_finds_are_its_own(tmp_path: Path) -> None:
    with session(tmp_path, "budget.evaluations=3") as (opened, shown):
        asked = schedules("10000000", "01000000")
        opened.problem().ask([schedule.phases[0] for schedule in asked])
        before = opened.curve()
        curve = opened.rival(Chosen("11111111", "01000000", "01000000", "00110000", "00001111"), seed=0)
        evaluator = SyntheticEvaluator(opened.bench.search.groups)
        flat_utility = opened.objective.utility(
            opened.objective.axes(evaluator.evaluate(Schedule.from_key("10101010")).metrics), 0.5
        )
        assert [number for number, _ in curve] == [1, 2, 3]
        assert [best for _, best in curve] == pytest.approx([1 / 22, flat_utility, flat_utility])
        assert opened.curve() == before
        assert np.asarray(before) == pytest.approx(np.asarray([[1, flat_utility], [2, flat_utility]]))
        assert set(opened.evaluations) == set(asked), "a rival's finds are no finds of the run"
        assert opened.budgeted.remaining == 1
        assert opened.counts().distinct == 2 + 2 + 3, "each searcher counts its own"
        assert opened.counts().cached == 3, "an anchor, a find of the search and a repeat were paid for before"
        assert opened.best_of_table() is None
        assert opened.zero_shot_utility() == pytest.approx(flat_utility)
        assert ("chosen", 3) in shown


def test_finds_are_in_the_order_of_asking_whichever_is_answered_first(tmp_path: Path) -> None:
    keys = ("00001111", "10000000", "11110000", "01000000")
    with (
        session(tmp_path / "a", evaluator=lambda task: SyntheticEvaluator(task.groups)) as (one, _),
        session(tmp_path / "b", evaluator=lambda task: Backwards(task.groups)) as (other, _),
    ):
        for opened in (one, other):
            Chosen(*keys).search(opened.problem(), 0)
        assert list(other.evaluations) != list(one.evaluations)
        assert [each.evaluation.schedule.key for each in other.scored()] == list(keys)
        assert other.curve() == one.curve()
        assert len(dict(one.curve())) == 4
        assert other.zero_shot_utility() == one.zero_shot_utility() == one.curve()[0][1]
        rivals = [opened.rival(Chosen(*keys[::-1]), seed=0) for opened in (one, other)]
        assert rivals[0] == rivals[1] != one.curve()


def test_frozen_names_are_looked_up(tmp_path: Path) -> None:
    groups = ("a", "b", "c")
    assert frozen_mask([], groups) == (False, False, False)
    assert frozen_mask(["c", "a"], groups) == (True, False, True)
    with pytest.raises(InputError, match=r"frozen=\['d'\]: no such group — choose among a, b, c"):
        frozen_mask(["a", "d"], groups)
    with pytest.raises(InputError, match="every group is frozen"):
        frozen_mask(["a", "b", "c"], groups)
    with session(tmp_path, "frozen=['down 0']") as (opened, _):
        assert opened.problem().frozen == tuple(name == "down 0" for name in opened.bench.search.groups)
