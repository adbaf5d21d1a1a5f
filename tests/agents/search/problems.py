"""Problems of invented numbers, for tests of searchers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import product

from agents.probing import invented_probes
from agents.search.base import Experience, Searcher, SearchProblem
from envs.evaluators.base import Evaluation
from envs.evaluators.budget import BudgetedEvaluator, BudgetSpent
from envs.evaluators.synthetic import SyntheticEvaluator
from envs.features import GROUP_FEATURES, TASK_FEATURES, feature_matrix, task_vector
from envs.groups import LayerGroup
from envs.task import InnerBudget, Mask, Schedule
from rewards.objective import Objective, hypervolume

INNER = InnerBudget(steps=10, batch_size=4, learning_rate=1e-3, images=8, sampling_steps=5)


class Invented:
    """A landscape of the synthetic evaluator, and everything that may be known before a search.

    Args:
        toggles: How many.
        seed: Of the invented numbers.
        failures: Masks whose evaluation fails.
    """

    def __init__(self, toggles: int, seed: int = 0, failures: Iterable[Mask] = ()) -> None:
        names = tuple(f"group {i}" for i in range(toggles))
        sound = SyntheticEvaluator(names, seed=seed)
        counts = sound.parameters
        groups = [LayerGroup(n, (), "down", 0.5, 0.5, 64, count) for n, count in zip(names, counts, strict=True)]
        probes, of_task = invented_probes(counts, seed)
        self.group_features = feature_matrix(groups, probes, counts, sum(counts))
        self.task_features = task_vector(64, INNER, of_task, 1.0)
        none, everything = (sound.evaluate(Schedule.constant([on] * toggles)).metrics for on in (False, True))
        self.objective = Objective().anchor(none, everything)
        self.axes = {
            mask: self.objective.axes(sound.evaluate(Schedule.constant(mask)).metrics)
            for mask in product((False, True), repeat=toggles)
        }
        failing = {Schedule.constant(mask): "diverged: loss is nan" for mask in failures}
        self.evaluator = SyntheticEvaluator(names, seed=seed, failures=failing)

    def asked(
        self,
        searcher: Searcher,
        seed: int = 0,
        *,
        budget: int,
        preference: float | None = 0.5,
        frozen: Mask = (),
        parallel: int = 1,
    ) -> list[Mask]:
        """The distinct masks that a search was answered, in order."""
        listening = _Listening(self.evaluator)
        with suppress(BudgetSpent):
            searcher.search(
                SearchProblem(
                    evaluator=BudgetedEvaluator(listening, budget),
                    objective=self.objective,
                    group_features=self.group_features,
                    group_feature_names=GROUP_FEATURES,
                    task_features=self.task_features,
                    task_feature_names=TASK_FEATURES,
                    preference=preference,
                    frozen=frozen,
                    parallel=parallel,
                ),
                seed,
            )
        return list(dict.fromkeys(listening.heard))

    def value(self, masks: Sequence[Mask], preference: float | None) -> float:
        """The best utility of some masks, or without a preference the hypervolume."""
        axes = [self.axes[mask] for mask in masks]
        if preference is None:
            return hypervolume(axes)
        return max(self.objective.utility(each, preference) for each in axes)

    def experience(self, task: str) -> Experience:
        """Everything about this landscape, as another task sees it."""
        return Experience(
            env="phantom",
            task=task,
            objective=self.objective,
            group_features=self.group_features,
            group_feature_names=GROUP_FEATURES,
            task_features=self.task_features,
            task_feature_names=TASK_FEATURES,
            outcomes=self.axes,
        )


class _Listening:
    def __init__(self, inner: SyntheticEvaluator) -> None:
        self.inner = inner
        self.heard: list[Mask] = []

    @property
    def groups(self) -> tuple[str, ...]:
        return self.inner.groups

    def evaluate_iter(self, schedules: Sequence[Schedule]) -> Iterator[tuple[int, Evaluation]]:
        self.heard += [schedule.phases[0] for schedule in schedules]
        yield from self.inner.evaluate_iter(schedules)

    def close(self) -> None:
        self.inner.close()
