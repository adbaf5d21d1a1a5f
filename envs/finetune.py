"""The inner loop: a short fine-tune of exactly the parameters that a schedule of masks selects."""

from __future__ import annotations

import collections
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from envs.backbones.base import Backbone
from envs.datasets.base import ImageSet
from envs.methods import Attachment
from envs.seeding import torch_generator
from envs.task import InnerBudget, Schedule

_CHECK_EVERY = 10


class DivergedError(FloatingPointError):
    """The loss stopped being a finite number: the same happens again with the same key, so no retry helps."""


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


class Batch(NamedTuple):
    """What one forward pass of a fine-tune looks at.

    Attributes:
        latents: ``(n, c, h, w)``.
        states: Text states, some of them the empty caption's, ``(n, tokens, width)``.
        noise: ``(n, c, h, w)``.
        t: Timesteps, ``(n,)``.
    """

    latents: Tensor
    states: Tensor
    noise: Tensor
    t: Tensor


def encode(backbone: Backbone, images: ImageSet) -> TrainingSet:
    """Images and their captions as the denoiser sees them."""
    states = backbone.encode_captions(images.captions)
    return TrainingSet(backbone.encode_images(images.images), states, backbone.encode_captions([""]))


def draw_batch(
    data: TrainingSet, rows: Tensor, generator: torch.Generator, *, caption_dropout: float, timesteps: int
) -> Batch:
    """These rows with captions left out at random, noise and timesteps, drawn on the CPU on any device."""
    device = data.latents.device
    latents = data.latents[rows.to(device)]
    dropped = torch.rand(len(rows), generator=generator) < caption_dropout
    states = torch.where(dropped[:, None, None].to(device), data.empty_state, data.states[rows.to(device)])
    noise = torch.randn(latents.shape, generator=generator).to(device)
    t = torch.randint(timesteps, (len(rows),), generator=generator).to(device)
    return Batch(latents, states, noise, t)


def training_loss(backbone: Backbone, batch: Batch) -> Tensor:
    """The mean squared error of what the denoiser predicts (Ho et al., arXiv 2006.11239, eq. 14)."""
    noisy, target = backbone.noised(batch.latents, batch.noise, batch.t)
    return F.mse_loss(backbone.predict(noisy, batch.t, batch.states), target)


def finetune(
    backbone: Backbone,
    attachment: Attachment,
    schedule: Schedule,
    data: TrainingSet,
    budget: InnerBudget,
    seed: int,
) -> int:
    """Trains in place and returns the number of optimizer steps taken; in fp16 the first few may overflow and be none.

    Batches, noise and timesteps depend on ``seed`` alone, never on the masks (common random numbers). Each phase of the
    schedule gets an equal share of the steps and an AdamW of its own; a phase with nothing on takes no steps. Every
    parameter is frozen again on return, also after an error.

    Raises:
        DivergedError: If the loss is not finite, or in fp16 no step's gradients were.
    """
    steps = 0
    draws = _draws(data, budget, backbone.timesteps, seed)
    bounds = [round(i * budget.steps / len(schedule.phases)) for i in range(len(schedule.phases) + 1)]
    try:
        for mask, start, stop in zip(schedule.phases, bounds, bounds[1:], strict=False):
            chosen = attachment.selected(mask)
            if chosen:
                steps += _train_phase(backbone, list(chosen.values()), draws, start, stop, budget)
            else:
                collections.deque(itertools.islice(draws, stop - start), maxlen=0)  # later phases draw what they would
    finally:
        backbone.denoiser.requires_grad_(False)
        backbone.denoiser.zero_grad(set_to_none=True)
    return steps


def one_pass(backbone: Backbone, data: TrainingSet, batch_size: int, seed: int) -> Iterator[Tensor]:
    """The training losses of one pass over the images in order, each the mean over a batch times the batch's share.

    So their sum is the mean over all images, and so is that of their gradients.
    """
    generator = torch_generator(seed, "one pass")
    n, device = len(data.latents), data.latents.device
    for start in range(0, n, batch_size):
        latents, states = data.latents[start : start + batch_size], data.states[start : start + batch_size]
        noise = torch.randn(latents.shape, generator=generator).to(device)
        t = torch.randint(backbone.timesteps, (len(latents),), generator=generator).to(device)
        yield training_loss(backbone, Batch(latents, states, noise, t)) * (len(latents) / n)


def _train_phase(
    backbone: Backbone,
    parameters: list[nn.Parameter],
    draws: Iterator[Batch],
    start: int,
    stop: int,
    budget: InnerBudget,
) -> int:
    # The mask is applied before the optimizer is built: a parameter that it does not know cannot move.
    backbone.denoiser.requires_grad_(False)
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(parameters, lr=budget.learning_rate, weight_decay=budget.weight_decay)
    # Small gradients are zero in fp16 unless the loss is scaled up; the scaler leaves out steps that overflow then.
    scaler = torch.amp.GradScaler(backbone.device.type, enabled=backbone.execution.precision == "fp16")
    taken = 0
    with backbone.compiled():
        for step in range(start, stop):
            batch = next(draws)
            optimizer.param_groups[0]["lr"] = budget.learning_rate_at(step)
            loss = training_loss(backbone, batch)
            scaler.scale(loss).backward()
            scale = scaler.get_scale()
            scaler.step(optimizer)
            scaler.update()
            taken += scaler.get_scale() >= scale
            optimizer.zero_grad(set_to_none=True)
            # Asking for the loss waits for the device, so not every step asks.
            if (step % _CHECK_EVERY == 0 or step == stop - 1) and not torch.isfinite(loss):
                raise DivergedError(f"the loss is {loss.item()} at step {step + 1}")
    if not taken and stop > start:
        raise DivergedError(f"the gradients of all {stop - start} steps overflow in fp16")
    return taken


def _draws(data: TrainingSet, budget: InnerBudget, timesteps: int, seed: int) -> Iterator[Batch]:
    """Endless batches in shuffled passes over the images."""
    generator = torch_generator(seed, "finetune")
    n = len(data.latents)
    order = torch.empty(0, dtype=torch.long)
    while True:
        while len(order) < budget.batch_size:
            order = torch.cat([order, torch.randperm(n, generator=generator)])
        rows, order = order[: budget.batch_size], order[budget.batch_size :]
        yield draw_batch(data, rows, generator, caption_dropout=budget.caption_dropout, timesteps=timesteps)
