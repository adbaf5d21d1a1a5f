"""Private images as the denoiser sees them, and the batches of a fine-tune."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from envs.backbones.base import Backbone
from envs.datasets.base import ImageSet
from envs.hooks import Batch, Hooks
from envs.seeding import torch_generator
from envs.task import InnerBudget


@dataclass(frozen=True)
class TrainingSet:
    """Private images as the denoiser sees them, encoded once a task.

    Attributes:
        latents: ``(n, c, h, w)``.
        states: Text states of the captions, ``(n, tokens, width)``.
        empty_state: Of the empty caption, ``(1, tokens, width)``.
    """

    latents: Tensor
    states: Tensor
    empty_state: Tensor


def encode(backbone: Backbone, images: ImageSet) -> TrainingSet:
    """Images and their captions as the denoiser sees them."""
    states = backbone.encode_captions(images.captions)
    return TrainingSet(backbone.encode_images(images.images), states, backbone.encode_captions([""]))


def draw_batch(
    data: TrainingSet,
    rows: Tensor,
    generator: torch.Generator,
    *,
    caption_dropout: float,
    timesteps: int,
    hooks: Sequence[Hooks] = (),
) -> Batch:
    """These rows with captions left out at random, noise and timesteps, drawn on the CPU on any device."""
    device = data.latents.device
    latents, states = data.latents[rows.to(device)], data.states[rows.to(device)]
    for hook in hooks:
        states = hook.states(states, rows)
    dropped = torch.rand(len(rows), generator=generator) < caption_dropout
    states = torch.where(dropped[:, None, None].to(device), data.empty_state, states)
    noise = torch.randn(latents.shape, generator=generator).to(device)
    t = torch.randint(timesteps, (len(rows),), generator=generator).to(device)
    return Batch(latents, states, noise, t, rows)


def endless_batches(
    data: TrainingSet,
    budget: InnerBudget,
    timesteps: int,
    seed: int,
    *,
    rows: Tensor | None = None,
    hooks: Sequence[Hooks] = (),
) -> Iterator[Batch]:
    """Endless batches in shuffled passes over the images, unless a hook draws them.

    Args:
        data: The images.
        budget: Batch size and caption dropout.
        timesteps: Of the noise schedule.
        seed: Names everything drawn.
        rows: The images to draw from, ``(n,)``; None for all.
        hooks: Of the learner that sees the batches.
    """
    generator = torch_generator(seed, "finetune")
    n = len(data.latents) if rows is None else len(rows)
    order = torch.empty(0, dtype=torch.long)
    while True:
        drawn = (hook.drawn(n, generator) for hook in hooks)
        chosen = next((found for found in drawn if found is not None), None)
        if chosen is None:
            while len(order) < budget.batch_size:
                order = torch.cat([order, torch.randperm(n, generator=generator)])
            chosen, order = order[: budget.batch_size], order[budget.batch_size :]
        yield draw_batch(
            data,
            chosen if rows is None else rows[chosen],
            generator,
            caption_dropout=budget.caption_dropout,
            timesteps=timesteps,
            hooks=hooks,
        )
