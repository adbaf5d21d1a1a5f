"""How a new policy starts, before PPO: along the exact gradient, or by imitating the best masks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from agents.policy import SelectionNetwork, tokens
from agents.practice.blurred import Floats
from agents.practice.landscape import Bits, Landscape, unit_objective, utilities_at
from agents.practice.settings import PracticeSettings
from envs.seeding import derive_seed

Watch = Callable[[SelectionNetwork], None]
"""Shown a network that learns, before each step; changes nothing."""

_BATCH = 128
"""Episodes that a step learns from."""


def feature_noise(landscapes: Sequence[Landscape], settings: PracticeSettings) -> tuple[Floats, Floats]:
    """Standard deviations of the noise on group features, ``(f,)``, and on task features, ``(t,)``."""
    groups = np.concatenate([each.group_features for each in landscapes]).std(axis=0)
    task = np.stack([each.task_features for each in landscapes]).std(axis=0)
    return settings.blur * groups, settings.blur * task


def _seen(landscapes: Sequence[Landscape], settings: PracticeSettings, rng: np.random.Generator) -> dict[str, Tensor]:
    """First observations of 128 episodes, with features blurred anew; but for the preference."""
    tasks = [landscapes[i % len(landscapes)] for i in range(_BATCH)]
    group_noise, task_noise = feature_noise(landscapes, settings)
    groups = np.stack([each.group_features for each in tasks])
    task = np.stack([each.task_features for each in tasks])
    return {
        "groups": torch.from_numpy(groups + group_noise * rng.standard_normal(groups.shape)).float(),
        "task": torch.from_numpy(task + task_noise * rng.standard_normal(task.shape)).float(),
        "progress": torch.zeros(_BATCH, 1),
        "chosen": torch.zeros(_BATCH, 1, groups.shape[1]),
    }


def ascend(
    network: SelectionNetwork,
    landscapes: Sequence[Landscape],
    settings: PracticeSettings,
    seed: int,
    preference: float | None,
    frozen: Sequence[bool],
    watch: Watch,
) -> None:
    """Ascends the expected share of the best utility, by its exact gradient.

    In a landscape of which every mask is known, the expectation over what a policy may choose is a sum, and its
    gradient needs no sampling (the all-actions policy gradient; Sutton, Singh & McAllester 2001; Allen et al., arXiv
    1709.00503). The entropy bonus is worth what PPO's is, whose advantages have unit spread.

    Args:
        network: What learns.
        landscapes: Of which every mask can be listed.
        settings: Of the practice.
        seed: Of everything that is drawn.
        preference: To learn at; None for all of [0, 1], uniformly.
        frozen: Toggles that stay off.
        watch: Shown the network before each step.
    """
    rng = np.random.default_rng(derive_seed(seed, "ascent"))
    free = ~np.asarray(frozen if len(frozen) else [False] * landscapes[0].toggles, dtype=bool)
    masks = np.unique(landscapes[0].masks & free, axis=0)
    bits, counts = torch.from_numpy(masks).float(), torch.from_numpy(free).float()
    share_at = [_shares(landscape, masks) for landscape in landscapes]
    optimizer = torch.optim.Adam(network.parameters(), lr=settings.learning_rate)
    for step in range(settings.ascent):
        watch(network)
        left = 1 - step / settings.ascent
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * left
        batch = _seen(landscapes, settings, rng)
        wanted = rng.uniform(size=_BATCH) if preference is None else np.full(_BATCH, preference)
        batch["preference"] = torch.from_numpy(wanted).float()[:, None]
        shares = torch.from_numpy(np.stack([share_at[i % len(share_at)](w) for i, w in enumerate(wanted)])).float()
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


def _shares(landscape: Landscape, masks: Bits) -> Callable[[float], NDArray[np.float64]]:
    """Of a preference: the utility of each mask as a share of the best's, ``(n,)``."""
    quality, privacy = landscape.axes(masks).T
    unit = unit_objective(landscape.objective)

    def at(preference: float) -> NDArray[np.float64]:
        utilities = utilities_at(unit, quality, privacy, preference)
        return np.asarray(utilities / max(float(utilities.max()), 1e-6))

    return at


def clone(
    network: SelectionNetwork,
    landscapes: Sequence[Landscape],
    settings: PracticeSettings,
    seed: int,
    preference: float | None,
    frozen: Sequence[bool],
    watch: Watch,
) -> None:
    """Behaviour cloning of each task's best masks over a grid of preferences; see `ascend`."""
    rng = np.random.default_rng(derive_seed(seed, "cloning"))
    grid = np.linspace(0, 1, 21) if preference is None else np.asarray([preference])
    best = np.asarray([[landscape.best(w, frozen) for w in grid] for landscape in landscapes], dtype=np.float32)
    optimizer = torch.optim.Adam(network.parameters(), lr=settings.learning_rate)
    for _ in range(settings.cloning):
        watch(network)
        batch = _seen(landscapes, settings, rng)
        drawn = rng.integers(len(grid), size=_BATCH)
        batch["preference"] = torch.from_numpy(grid[drawn].astype(np.float32))[:, None]
        target = torch.from_numpy(best[np.arange(_BATCH) % len(landscapes), drawn])
        loss = F.binary_cross_entropy_with_logits(network.logit(network.actor_latent(tokens(batch))), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
