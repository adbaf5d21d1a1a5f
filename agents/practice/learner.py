"""PPO on landscapes: many tasks, all preferences, one policy."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from sb3_contrib import MaskablePPO
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger

from agents.chance import chance_of_its_own
from agents.policy import GroupTokenPolicy, MaskableGroupTokenPolicy, SelectionNetwork, TokenLayout
from agents.practice.blurred import BlurredSelectionEnv
from agents.practice.landscape import Landscape, LandscapeEvaluator
from agents.practice.settings import PracticeSettings
from agents.practice.warm_start import Watch, ascend, clone, feature_noise
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
    watch: Watch = lambda network: None,
    logger: Logger | None = None,
) -> SelectionNetwork:
    """A policy for these tasks; the same seed gives the same one.

    Args:
        landscapes: At least one, all with equally many toggles and features.
        settings: Of the practice.
        seed: Of everything that is drawn.
        network: Where to start; it is left as it is. None for new weights, and an ascent or behaviour cloning.
        preference: To practise at; None for all of [0, 1], uniformly.
        frozen: Toggles that stay off, as in `ParameterSelectionEnv`.
        watch: Shown the network before each update, of whatever kind.
        logger: Takes PPO's diagnostics, without writing them down; None drops them.
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
        updates = settings.updates
        if network is not None:
            learned.load_state_dict(network.state_dict())
        elif settings.ascent and landscapes[0].enumerated:
            ascend(learned, landscapes, settings, seed, preference, frozen, watch)
            updates = settings.updates_after_ascent
        elif settings.cloning:
            clone(learned, landscapes, settings, seed, preference, frozen, watch)
        steps = updates * settings.episodes * settings.environments
        if steps:
            model.learn(steps, callback=_EachUpdate(settings.entropy, watch), log_interval=None)
    return learned.eval()


def new_network(landscape: Landscape, width: int, seed: int) -> SelectionNetwork:
    """One that has learned nothing: near a fair coin for every group."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "new network") % 2**63)
        return SelectionNetwork(TokenLayout(landscape.group_features.shape[1], len(landscape.task_features), width))


class _EachUpdate(BaseCallback):
    """Lets the entropy bonus fade, and shows the network."""

    def __init__(self, entropy: float, watch: Watch) -> None:
        super().__init__()
        self._entropy, self._watch = entropy, watch

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        model: Any = self.model
        model.ent_coef = self._entropy * model._current_progress_remaining
        self._watch(model.policy.network)


def _environment(
    landscapes: Sequence[Landscape],
    settings: PracticeSettings,
    seed: int,
    preference: float | None,
    frozen: Sequence[bool],
) -> SelectionVecEnv:
    evaluators = [LandscapeEvaluator(landscape) for landscape in landscapes]
    make = (
        partial(BlurredSelectionEnv, *feature_noise(landscapes, settings)) if settings.blur else ParameterSelectionEnv
    )
    envs = [
        make(
            evaluator=evaluators[i % len(landscapes)],
            objective=landscapes[i % len(landscapes)].regret,
            group_features=landscapes[i % len(landscapes)].group_features,
            group_feature_names=tuple(map(str, range(landscapes[0].group_features.shape[1]))),
            task_features=landscapes[i % len(landscapes)].task_features,
            preference=preference,
            frozen=frozen,
        )
        for i in range(settings.environments)
    ]
    env = SelectionVecEnv(envs)
    env.seed(derive_seed(seed, "practice environments") % 2**31)
    return env
