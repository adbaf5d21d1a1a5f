"""PPO on landscapes: many tasks, all preferences, one policy."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sb3_contrib import MaskablePPO
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.logger import Logger
from torch import Tensor

from agents.chance import chance_of_its_own
from agents.policy import GroupTokenPolicy, MaskableGroupTokenPolicy, SelectionNetwork, TokenLayout, tokens
from agents.practice.blurred import BlurredSelectionEnv, Floats
from agents.practice.landscape import Landscape, LandscapeEvaluator, unit_objective, utilities_at
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
        network: Where to start; it is left as it is. None for new weights, and an ascent or behaviour cloning.
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
        elif settings.ascent and landscapes[0].enumerated:
            _ascend(learned, landscapes, settings, seed, preference, frozen)
        elif settings.cloning:
            _clone(learned, landscapes, settings, seed, preference, frozen)
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
    evaluators = [LandscapeEvaluator(landscape) for landscape in landscapes]
    make = partial(BlurredSelectionEnv, *_noise(landscapes, settings)) if settings.blur else ParameterSelectionEnv
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


def _noise(landscapes: Sequence[Landscape], settings: PracticeSettings) -> tuple[Floats, Floats]:
    """Standard deviations of the noise on group features, ``(f,)``, and on task features, ``(t,)``."""
    groups = np.concatenate([each.group_features for each in landscapes]).std(axis=0)
    task = np.stack([each.task_features for each in landscapes]).std(axis=0)
    return settings.blur * groups, settings.blur * task


def _seen(landscapes: Sequence[Landscape], settings: PracticeSettings, rng: np.random.Generator) -> dict[str, Tensor]:
    """First observations of episodes, one an environment, with features blurred anew; but for the preference."""
    tasks = [landscapes[i % len(landscapes)] for i in range(settings.environments)]
    group_noise, task_noise = _noise(landscapes, settings)
    groups = np.stack([each.group_features for each in tasks])
    task = np.stack([each.task_features for each in tasks])
    number = len(tasks)
    return {
        "groups": torch.from_numpy(groups + group_noise * rng.standard_normal(groups.shape)).float(),
        "task": torch.from_numpy(task + task_noise * rng.standard_normal(task.shape)).float(),
        "progress": torch.zeros(number, 1),
        "chosen": torch.zeros(number, 1, groups.shape[1]),
    }


def _ascend(
    network: SelectionNetwork,
    landscapes: Sequence[Landscape],
    settings: PracticeSettings,
    seed: int,
    preference: float | None,
    frozen: Sequence[bool],
) -> None:
    """Ascends the expected share of the best utility, by its exact gradient.

    In a landscape of which every mask is known, the expectation over what a policy may choose is a sum, and its
    gradient needs no sampling (the all-actions policy gradient; Sutton, Singh & McAllester 2001; Allen et al., arXiv
    1709.00503). The entropy bonus is worth what PPO's is, whose advantages have unit spread.
    """
    rng = np.random.default_rng(derive_seed(seed, "ascent"))
    free = ~np.asarray(frozen if len(frozen) else [False] * landscapes[0].toggles, dtype=bool)
    masks = np.unique(landscapes[0].masks & free, axis=0)
    bits, counts = torch.from_numpy(masks).float(), torch.from_numpy(free).float()
    axes = [landscape.axes(masks).T for landscape in landscapes]
    unit = unit_objective(landscapes[0].objective)
    optimizer = torch.optim.Adam(network.parameters(), lr=settings.learning_rate)
    for step in range(settings.ascent):
        left = 1 - step / settings.ascent
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * left
        batch = _seen(landscapes, settings, rng)
        number = settings.environments
        wanted = rng.uniform(size=number) if preference is None else np.full(number, preference)
        batch["preference"] = torch.from_numpy(wanted).float()[:, None]
        standing = [(*axes[i % len(axes)], float(w)) for i, w in enumerate(wanted)]
        utilities = np.stack([utilities_at(unit, quality, privacy, w) for quality, privacy, w in standing])
        shares = torch.from_numpy(utilities / np.maximum(utilities.max(axis=1, keepdims=True), 1e-6)).float()
        logits = network.logit(network.actor_latent(tokens(batch)))[:, None]
        each = bits * F.logsigmoid(logits) + (1 - bits) * F.logsigmoid(-logits)
        log_p = (each * counts).sum(dim=-1)
        p = log_p.exp()
        entropy = -(p * log_p).sum(dim=1).mean()
        bonus = settings.entropy * left * shares.std(dim=1).mean()
        loss = -((p * shares).sum(dim=1).mean() + bonus * entropy)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def _clone(
    network: SelectionNetwork,
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
    optimizer = torch.optim.Adam(network.parameters(), lr=settings.learning_rate)
    for _ in range(settings.cloning):
        batch = _seen(landscapes, settings, rng)
        drawn = rng.integers(len(grid), size=settings.environments)
        batch["preference"] = torch.from_numpy(grid[drawn].astype(np.float32))[:, None]
        target = torch.from_numpy(best[np.arange(settings.environments) % len(landscapes), drawn])
        loss = F.binary_cross_entropy_with_logits(network.logit(network.actor_latent(tokens(batch))), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
