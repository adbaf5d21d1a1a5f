"""PPO on landscapes: many tasks, all preferences, one policy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sb3_contrib import MaskablePPO
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.logger import Logger

from agents.chance import chance_of_its_own
from agents.policy import GroupTokenPolicy, MaskableGroupTokenPolicy, SelectionNetwork, TokenLayout, tokens
from agents.practice.landscape import Landscape, LandscapeEvaluator
from agents.practice.settings import PracticeSettings
from agents.threads import one_thread
from envs.seeding import derive_seed
from envs.selection import ParameterSelectionEnv
from envs.vector import SelectionVecEnv


def practise(
    landscapes: Sequence[Landscape],
    settings: PracticeSettings,
    *,
    seed: int,
    network: SelectionNetwork | None = None,
    preference: float | None = None,
    frozen: Sequence[bool] = (),
    callback: BaseCallback | None = None,
    logger: Logger | None = None,
) -> SelectionNetwork:
    """A policy for these tasks; the same seed gives the same one.

    Args:
        landscapes: At least one, all with equally many toggles and features.
        settings: Of the practice.
        seed: Of everything that is drawn.
        network: Where to start; it is left as it is. None for new weights and behaviour cloning.
        preference: To practise at; None for all of [0, 1], uniformly.
        frozen: Toggles that stay off, as in `ParameterSelectionEnv`.
        callback: Called by stable-baselines3.
        logger: Takes its diagnostics, without writing them down; None drops them.
    """
    with chance_of_its_own(), one_thread():
        env = _environment(landscapes, settings, seed, preference, frozen)
        masked = any(frozen)
        algorithm: type[Any] = MaskablePPO if masked else PPO
        model = algorithm(
            MaskableGroupTokenPolicy if masked else GroupTokenPolicy,
            env,
            learning_rate=lambda left: settings.learning_rate * left,
            n_steps=settings.episodes,
            batch_size=settings.episodes * settings.environments,
            n_epochs=settings.epochs,
            gamma=1.0,
            gae_lambda=1.0,
            clip_range=settings.clip_range,
            ent_coef=settings.entropy,
            vf_coef=settings.value,
            policy_kwargs={"width": settings.width if network is None else network.layout.width},
            seed=derive_seed(seed, "practice") % 2**31,
            device="cpu",
        )
        model.set_logger(logger or Logger(None, []))
        learned: SelectionNetwork = model.policy.network
        if network is not None:
            learned.load_state_dict(network.state_dict())
        elif settings.cloning:
            _clone(learned, env, landscapes, settings, seed, preference, frozen)
        steps = settings.updates * settings.episodes * settings.environments
        callbacks = [_FadingEntropy(settings.entropy), *([callback] if callback else [])]
        if steps:
            model.learn(steps, callback=CallbackList(callbacks), log_interval=None)
    return learned.eval()


def new_network(landscape: Landscape, width: int, seed: int) -> SelectionNetwork:
    """One that has learned nothing: near a fair coin for every group."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "new network") % 2**63)
        return SelectionNetwork(TokenLayout(landscape.group_features.shape[1], len(landscape.task_features), width))


class _FadingEntropy(BaseCallback):
    def __init__(self, start: float) -> None:
        super().__init__()
        self._start = start

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        model: Any = self.model
        model.ent_coef = self._start * model._current_progress_remaining


def _environment(
    landscapes: Sequence[Landscape],
    settings: PracticeSettings,
    seed: int,
    preference: float | None,
    frozen: Sequence[bool],
) -> SelectionVecEnv:
    rng = np.random.default_rng(derive_seed(seed, "blur"))
    evaluators = [LandscapeEvaluator(landscape) for landscape in landscapes]
    scale_groups = np.concatenate([each.group_features for each in landscapes]).std(axis=0)
    scale_task = np.stack([each.task_features for each in landscapes]).std(axis=0)

    def blurred(features: NDArray[np.float32], scale: NDArray[np.float32]) -> NDArray[np.float32]:
        noise = settings.blur * scale * rng.standard_normal(features.shape)
        return (features + noise).astype(np.float32)

    envs = []
    for i in range(settings.environments):
        landscape = landscapes[i % len(landscapes)]
        envs.append(
            ParameterSelectionEnv(
                evaluator=evaluators[i % len(landscapes)],
                objective=landscape.regret,
                group_features=blurred(landscape.group_features, scale_groups),
                group_feature_names=tuple(map(str, range(landscape.group_features.shape[1]))),
                task_features=blurred(landscape.task_features, scale_task),
                preference=preference,
                frozen=frozen,
            )
        )
    env = SelectionVecEnv(envs)
    env.seed(derive_seed(seed, "practice environments") % 2**31)
    return env


def _clone(
    network: SelectionNetwork,
    env: SelectionVecEnv,
    landscapes: Sequence[Landscape],
    settings: PracticeSettings,
    seed: int,
    preference: float | None,
    frozen: Sequence[bool],
) -> None:
    """Behaviour cloning of each task's best masks over a grid of preferences."""
    rng = np.random.default_rng(derive_seed(seed, "cloning"))
    grid = np.linspace(0, 1, 21) if preference is None else np.asarray([preference])
    best = np.asarray([[landscape.best(w, frozen) for w in grid] for landscape in landscapes], dtype=np.float32)
    observations = [each.observation() for each in env.envs]
    optimizer = torch.optim.Adam(network.parameters(), lr=settings.learning_rate)
    for _ in range(settings.cloning):
        drawn = rng.integers(len(grid), size=len(observations))
        batch = {key: torch.from_numpy(np.stack([each[key] for each in observations])) for key in observations[0]}
        batch["preference"] = torch.from_numpy(grid[drawn].astype(np.float32))[:, None]
        target = torch.from_numpy(best[np.arange(len(observations)) % len(landscapes), drawn])
        loss = F.binary_cross_entropy_with_logits(network.logit(network.actor_latent(tokens(batch))), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
