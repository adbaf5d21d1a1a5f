"""A model of evaluations that is learned on many tasks: an ensemble of networks over sets of group tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from agents.search.base import Experience
from agents.threads import one_thread
from envs.seeding import derive_seed

Floats = NDArray[np.float64]
Bits = NDArray[np.bool_]


@dataclass(frozen=True)
class SetEnsembleSettings:
    """How it is learned.

    Attributes:
        members: Networks, which differ in their first weights and in their noise.
        width: Of the hidden layers.
        steps: Of Adam, each on all rows of all tasks.
        learning_rate: Adam's, falling linearly to 0.
        weight_decay: AdamW's.
        blur: See `PracticeSettings.blur`; drawn anew in each step.
    """

    members: int = 5
    width: int = 48
    steps: int = 400
    learning_rate: float = 5e-3
    weight_decay: float = 1e-2
    blur: float = 1.0


@dataclass(frozen=True)
class SetEnsemble:
    """Both axes of any mask of any task, from what a policy sees there. Build it with `learn_ensemble`.

    Attributes:
        members: In eval mode.
    """

    members: tuple[_SetNetwork, ...]

    @torch.inference_mode()
    def axes(self, group_features: NDArray[np.float32], task_features: NDArray[np.float32], masks: Bits) -> Floats:
        """Mean over the members: quality and privacy of masks ``(n, g)``, as ``(n, 2)``, not confined to [0, 1]."""
        groups, task = torch.from_numpy(group_features), torch.from_numpy(task_features)
        bits = torch.as_tensor(np.asarray(masks, dtype=np.float32))
        with one_thread():
            found = [member(groups, task, bits) for member in self.members]
        return np.asarray(torch.stack(found).mean(0).double().numpy())


def learn_ensemble(sources: Sequence[Experience], settings: SetEnsembleSettings, seed: int) -> SetEnsemble:
    """Learns on every measured mask of all sources; the same seed gives the same ensemble.

    Args:
        sources: At least one; they may differ in their number of groups, not in their features.
        settings: Of the learning.
        seed: Of everything that is drawn.
    """
    tasks = [_rows(source) for source in sources]
    scale_groups = torch.cat([groups for groups, *_ in tasks]).std(0, correction=0)
    scale_task = torch.stack([task for _, task, *_ in tasks]).std(0, correction=0)
    members = []
    for number in range(settings.members):
        with torch.random.fork_rng(devices=[]), one_thread():
            torch.manual_seed(derive_seed(seed, "set ensemble", number) % 2**63)
            member = _SetNetwork(len(scale_groups), len(scale_task), settings.width)
            optimizer = torch.optim.AdamW(
                member.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
            )
            for step in range(settings.steps):
                loss = torch.zeros(())
                for groups, task, bits, axes in tasks:
                    predicted = member(
                        groups + settings.blur * scale_groups * torch.randn_like(groups),
                        task + settings.blur * scale_task * torch.randn_like(task),
                        bits,
                    )
                    loss = loss + (predicted - axes).square().mean() / len(tasks)
                optimizer.param_groups[0]["lr"] = settings.learning_rate * (1 - step / settings.steps)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        members.append(member.eval())
    return SetEnsemble(tuple(members))


class _SetNetwork(nn.Module):
    """Deep sets over the groups that are on and over those that are off: shared weights, no positions."""

    def __init__(self, group_features: int, task_features: int, width: int) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(group_features + task_features, width), nn.SiLU(), nn.Linear(width, width))
        self.head = nn.Sequential(
            nn.Linear(2 * width + task_features, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()
        )
        self.axes = nn.Linear(width, 2)

    def forward(self, groups: Tensor, task: Tensor, bits: Tensor) -> Tensor:
        """Of one task's ``groups`` (g, f), ``task`` (t,) and masks (n, g): (n, 2)."""
        embedded = self.embed(torch.cat([groups, task.expand(len(groups), -1)], dim=1))
        whole = embedded.sum(0) / len(groups)
        on = bits @ embedded / len(groups)
        pooled = torch.cat([on, whole - on, task.expand(len(bits), -1)], dim=1)
        axes: Tensor = self.axes(self.head(pooled))
        return axes


def _rows(source: Experience) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    masks, axes = list(source.outcomes), list(source.outcomes.values())
    return (
        torch.from_numpy(source.group_features),
        torch.from_numpy(source.task_features),
        torch.tensor(masks, dtype=torch.float32),
        torch.tensor(axes, dtype=torch.float32),
    )
