"""PPO over masks, sized by distinct evaluations instead of environment steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sb3_contrib import MaskablePPO
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger, TensorBoardOutputFormat

from agents.policy import GroupTokenPolicy, MaskableGroupTokenPolicy, SelectionNetwork
from agents.search.base import SearchProblem
from agents.settings import PPOSettings
from agents.threads import one_thread
from envs.evaluators.budget import BudgetSpent
from envs.selection import ParameterSelectionEnv
from envs.vector import SelectionVecEnv


def learn(
    env: SelectionVecEnv,
    settings: PPOSettings,
    *,
    budget: int,
    seed: int,
    tensorboard: Path | None,
    callback: BaseCallback,
) -> SelectionNetwork:
    """Learns until the evaluator's budget is spent, or the policy keeps asking for masks that it knows.

    One rollout is one episode in each sub-environment: SB3's default of 2048 steps would never update within the tens
    of fine-tunes that a search can pay for (stable-baselines3#1846). What a last, incomplete rollout asked for is
    measured but not learned from.

    Args:
        env: ``settings.rollout`` sub-environments around a `BudgetedEvaluator`.
        settings: PPO's.
        budget: Distinct evaluations.
        seed: Of the weights, the actions and the minibatches.
        tensorboard: Folder for the curves, of which this is the only writer; None for none.
        callback: Called by SB3.
    """
    horizon = env.envs[0].horizon
    masked = any(each.frozen.any() for each in env.envs)
    algorithm: type[Any] = _OneThreadMaskablePPO if masked else _OneThreadPPO
    model = algorithm(
        MaskableGroupTokenPolicy if masked else GroupTokenPolicy,
        env,
        learning_rate=settings.learning_rate,
        n_steps=horizon,
        batch_size=horizon * env.num_envs,
        n_epochs=settings.epochs,
        gamma=1.0,
        gae_lambda=1.0,
        clip_range=settings.clip_range,
        ent_coef=settings.entropy,
        vf_coef=settings.value,
        policy_kwargs={"width": settings.width},
        seed=seed,
        device="cpu",
    )
    folder = None if tensorboard is None else str(tensorboard)
    model.set_logger(Logger(folder, [TensorBoardOutputFormat(folder)] if folder else []))
    try:
        model.learn(budget * settings.max_episodes * horizon, callback=callback, log_interval=1)
    except BudgetSpent:
        # The rollout that was under way ends here, for the curves too.
        callback.on_training_end()
        model.logger.dump(model.num_timesteps + env.num_envs)
    finally:
        model.logger.close()
    network: SelectionNetwork = model.policy.network
    return network


def environment_of(
    problem: SearchProblem, count: int, *, seed: int, horizon: int = 1, failure_penalty: float = -1.0
) -> SelectionVecEnv:
    """``count`` sub-environments that ask the problem's evaluator; see `ParameterSelectionEnv` for the rest."""
    env = SelectionVecEnv(
        [
            ParameterSelectionEnv(
                evaluator=problem.evaluator,
                objective=problem.objective,
                group_features=problem.group_features,
                group_feature_names=problem.group_feature_names,
                task_features=problem.task_features,
                preference=problem.preference,
                horizon=horizon,
                failure_penalty=failure_penalty,
                frozen=problem.frozen,
            )
            for _ in range(count)
        ]
    )
    env.seed(seed)
    return env


class _OneThreadPPO(PPO):
    def train(self) -> None:
        with one_thread():
            super().train()


class _OneThreadMaskablePPO(MaskablePPO):
    def train(self) -> None:
        with one_thread():
            super().train()
