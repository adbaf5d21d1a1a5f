"""PPO from real evaluations alone, among the searchers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from stable_baselines3.common.callbacks import BaseCallback

from agents.search.base import SearchProblem
from agents.search.ppo import environment_of, learn
from agents.settings import PPOSettings
from envs.evaluators.budget import BudgetedEvaluator
from envs.seeding import derive_seed

_BUDGET = 128


@dataclass(frozen=True)
class PlainPPO:
    """PPO (Schulman et al., arXiv 1707.06347) over group tokens, as ``agent=ppo`` trains it.

    Without a preference each episode draws its own. It ends when the budget is spent, or after ``max_episodes`` times
    the budget if the policy keeps asking for masks that it knows.

    Attributes:
        settings: Those of ``conf/agent/ppo.yaml`` by default.
    """

    name: ClassVar[str] = "ppo"

    settings: PPOSettings = field(
        default_factory=lambda: PPOSettings(
            name="ppo",
            rollout=8,
            learning_rate=6e-3,
            epochs=20,
            clip_range=0.2,
            entropy=0.01,
            value=0.5,
            max_episodes=4,
            width=64,
        )
    )

    def search(self, problem: SearchProblem, seed: int) -> None:
        """See `Searcher.search`."""
        evaluator = problem.evaluator
        budget = evaluator.remaining if isinstance(evaluator, BudgetedEvaluator) else _BUDGET
        env = environment_of(problem, self.settings.rollout, seed=derive_seed(seed, self.name) % 2**31)
        learn(env, self.settings, budget=budget, seed=seed, tensorboard=None, callback=_Nothing())


class _Nothing(BaseCallback):
    def _on_step(self) -> bool:
        return True
