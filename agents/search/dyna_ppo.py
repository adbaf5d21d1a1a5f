"""The policy as a searcher: PPO practises in a learned model; what that is unsure or hopeful of is measured."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.logger import Logger

from agents.policy import SelectionNetwork, selection_probabilities
from agents.practice.landscape import Landscape, unit_objective, utilities_at
from agents.practice.learner import practise
from agents.practice.settings import PracticeSettings
from agents.search.base import SearchProblem
from agents.source_policy import SourcePolicy
from agents.surrogate.acquisition import expected_hypervolume_improvement, expected_improvement
from agents.surrogate.belief import NOTHING_KNOWN, Belief
from agents.surrogate.mixture import BeliefMixture, TaskBelief
from envs.evaluators.budget import BudgetSpent
from envs.seeding import derive_seed
from envs.task import Mask
from rewards.objective import Axes

Bits = NDArray[np.bool_]
Watch = Callable[[SelectionNetwork, TaskBelief], None]
"""Told after every round of measurements, with the policy, which has practised on them or has more to ask for first."""

_ENUMERATED = 10
_ON_ONE_TASK = PracticeSettings(environments=64, episodes=4, ascent=0, blur=0.0)


@dataclass(frozen=True)
class DynaPPO:
    """Model-based PPO (Dyna: Sutton 1991; DyNA-PPO: Angermueller et al., ICLR 2020), for tens of real evaluations.

    A belief about the task, see `Belief`, says what every mask may turn out to be. PPO learns in it, at no cost; what
    is measured next is, among what the policy proposes, the mask of which the most improvement is expected over the
    draws of the belief: a mask is worth measuring if it is expected to be good, or if little is known of it.

    From scratch, where toggles are few, each is measured alone before any other mask, the most promising first: what is
    hoped of a mask with many of them is worth little before it was seen what each does.

    With sources the policy comes from other tasks, and the first mask it asks for is the policy's own choice, made
    before anything was measured here. What it would choose at other preferences comes next: where the trade-off is
    elsewhere than on the tasks before, the mask that is wanted may be the one chosen for another preference, far from
    the first. The belief is then of two minds, see `BeliefMixture`: this task is like those others, or nothing is known
    of it. Now one of them decides on what is measured next, now the other.

    Attributes:
        source: What was learned elsewhere; None to start from scratch.
        rounds: How the policy practises after each round of measurements.
        final: How it practises after the last.
        draws: Of the belief, for each decision.
        proposals: Masks that the policy proposes in each round, where there are too many to list them all.
        others: Preferences at which the policy's choice is asked for besides the one that is searched for.
        doubts: Whether the belief holds, besides what the sources tell, that nothing is known.
        name: ``policy`` for one with a source, in comparisons.
        logger: Takes PPO's own diagnostics; whoever watches writes them down.
    """

    source: SourcePolicy | None = None
    rounds: PracticeSettings = field(default_factory=lambda: dataclasses.replace(_ON_ONE_TASK, updates=20, cloning=100))
    final: PracticeSettings = field(default_factory=lambda: dataclasses.replace(_ON_ONE_TASK, updates=150))
    draws: int = 128
    proposals: int = 256
    others: tuple[float, ...] = (0.5, 0.25, 0.75)
    doubts: bool = True
    logger: Logger | None = None
    name: str = "dyna_ppo"

    def search(self, problem: SearchProblem, seed: int) -> None:
        """See `Searcher.search`."""
        if self.source is not None:
            seen = self.source.task_seen(problem.task_features)
            problem = dataclasses.replace(problem, task_features=seen)
        self._measure(problem, seed, None)

    def learn(self, problem: SearchProblem, seed: int, watch: Watch | None = None) -> SelectionNetwork:
        """Searches until the budget is spent; returns the policy, which has then practised on all that is known.

        Args:
            problem: What to search.
            seed: Of everything that is drawn.
            watch: See `Watch`.
        """
        belief = self.belief(problem, seed)
        with suppress(BudgetSpent):
            self._measure(problem, seed, watch, belief)
        # From the sources' policy again: what it learned on the way, from less, is not in the way. And at every
        # preference, whatever the search was for.
        return self._practised(belief, problem, self.final, seed, self._start(problem, seed), None)

    def belief(self, problem: SearchProblem, seed: int) -> TaskBelief:
        """What is believed before anything is measured."""
        seen = problem.group_features, problem.task_features
        ignorant = Belief(NOTHING_KNOWN, *seen, adapt=True)
        if self.source is None or not self.source.sources:
            return ignorant
        told = Belief(self.source.prior(seed), *seen, adapt=False)
        return BeliefMixture([told, ignorant]) if self.doubts else told

    def _measure(
        self, problem: SearchProblem, seed: int, watch: Watch | None, belief: TaskBelief | None = None
    ) -> None:
        belief = belief or self.belief(problem, seed)
        network = self._start(problem, seed)
        rng = np.random.default_rng(derive_seed(seed, self.name))
        asked: set[Mask] = set()

        def ask(masks: Sequence[Mask]) -> None:
            asked.update(masks)
            try:
                belief.observe(_measured(problem, masks))
            except BudgetSpent:
                # Some of them may have been answered all the same, and a repeat is free.
                for mask in masks:
                    with suppress(BudgetSpent):
                        belief.observe(_measured(problem, [mask]))
                raise

        if self.source is not None and network is not None:
            wanted = self.others if problem.preference is None else (problem.preference, *self.others)
            choices = list(dict.fromkeys(_choice(network, problem, w) for w in wanted))
            for start in range(0, len(choices), problem.parallel):
                if start and watch is not None:
                    watch(network, belief)
                ask(choices[start : start + problem.parallel])
        number = 0
        while True:
            if len(problem.free) > _ENUMERATED or watch is not None:
                settings, preference = self.rounds, problem.preference
                network = self._practised(belief, problem, settings, seed + number, network, preference)
            if watch is not None and network is not None:
                watch(network, belief)
            masks = self._candidates(problem, network, belief, asked, rng)
            if not len(masks):
                return
            found = [belief.known[mask] for mask in asked if mask in belief.known]
            ask(self._most_promising(problem, belief, masks, found, rng))
            number += 1

    def _start(self, problem: SearchProblem, seed: int) -> SelectionNetwork | None:
        return None if self.source is None else self.source.network(seed)

    def _practised(
        self,
        belief: TaskBelief,
        problem: SearchProblem,
        settings: PracticeSettings,
        seed: int,
        network: SelectionNetwork | None,
        preference: float | None,
    ) -> SelectionNetwork:
        landscape = Landscape(problem.group_features, problem.task_features, belief.axes, problem.objective.objective)
        return practise(
            [landscape],
            settings,
            seed=seed,
            network=network,
            preference=preference,
            frozen=problem.frozen,
            logger=self.logger,
        )

    def _candidates(
        self,
        problem: SearchProblem,
        network: SelectionNetwork | None,
        belief: TaskBelief,
        asked: set[Mask],
        rng: np.random.Generator,
    ) -> Bits:
        """Masks worth a thought that were not measured yet, ``(n, g)``; none if there are no others."""
        free = np.asarray(problem.free, dtype=np.intp)
        if len(free) <= _ENUMERATED:
            alone = np.eye(problem.toggles, dtype=bool)[free].tolist()
            unscreened = [mask for mask in map(tuple, alone) if mask not in asked]
            if self.source is None and unscreened:
                return np.asarray(unscreened, dtype=bool)
            bits = (np.arange(2 ** len(free))[:, None] >> np.arange(len(free))) & 1
        else:
            assert network is not None
            preferences = rng.uniform(size=self.proposals) if problem.preference is None else [problem.preference]
            each = self.proposals // len(preferences)
            sampled = np.concatenate([_sampled(network, problem, w, each, rng) for w in preferences])
            good = np.asarray(list(belief.known))
            flipped = good[rng.integers(len(good), size=self.proposals)].copy()
            flipped[np.arange(self.proposals), rng.choice(free, size=self.proposals)] ^= True
            bits = np.concatenate([sampled, flipped])[:, free]
        masks = np.zeros((len(bits), problem.toggles), dtype=bool)
        masks[:, free] = bits
        new = dict.fromkeys(mask for mask in map(tuple, masks.tolist()) if mask not in asked)
        return np.asarray(list(new), dtype=bool)

    def _most_promising(
        self, problem: SearchProblem, belief: TaskBelief, masks: Bits, found: Sequence[Axes], rng: np.random.Generator
    ) -> list[Mask]:
        """As many as are measured side by side: each is the best beside those before it, draw by draw.

        What is known of the anchors counts as found only once it was asked for, as with every other searcher.
        """
        draws = belief.draws(masks, self.draws, rng)
        unit = unit_objective(problem.objective.objective)
        chosen: list[int] = []
        if problem.preference is not None:
            utilities = utilities_at(unit, draws[..., 0], draws[..., 1], problem.preference)
            best = np.full(self.draws, max((unit.utility(axes, problem.preference) for axes in found), default=0.0))
        while len(chosen) < min(problem.parallel, len(masks)):
            if problem.preference is None:
                expected = draws[:, chosen].mean(axis=0) if chosen else ()
                gain = expected_hypervolume_improvement(draws, [*found, *(Axes(*point) for point in expected)])
            else:
                gain = expected_improvement(utilities, best)
            gain[chosen] = -1
            chosen.append(int(np.argmax(gain)))
            if problem.preference is not None:
                best = np.maximum(best, utilities[:, chosen[-1]])
        return [tuple(mask) for mask in masks[chosen].tolist()]


def _measured(problem: SearchProblem, masks: Sequence[Mask]) -> dict[Mask, Axes]:
    """Asks, and leaves failures out."""
    return {outcome.mask: outcome.axes for outcome in problem.ask(masks) if outcome.axes is not None}


def _choice(network: SelectionNetwork, problem: SearchProblem, preference: float) -> Mask:
    """The likeliest mask, with what is frozen off."""
    return tuple(bool(p > 0.5) for p in _probabilities(network, problem, preference))


def _sampled(
    network: SelectionNetwork, problem: SearchProblem, preference: float, count: int, rng: np.random.Generator
) -> Bits:
    p = _probabilities(network, problem, preference)
    return np.asarray(rng.uniform(size=(count, len(p))) < p)


def _probabilities(network: SelectionNetwork, problem: SearchProblem, preference: float) -> NDArray[np.float32]:
    return selection_probabilities(
        network, problem.group_features, problem.task_features, preference, frozen=problem.frozen
    )
