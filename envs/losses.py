"""Denoising losses: of a batch to learn from, and of single images on a fixed grid of timesteps and noises."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from envs.backbones.base import Backbone, rows_at_once
from envs.hooks import Batch
from envs.seeding import torch_generator

_CHUNK = 64
_RANGE = (0.05, 0.85)
"""Shares of the noise schedule between which the grid lies: outside, the loss hardly depends on the image."""


def training_loss(backbone: Backbone, batch: Batch) -> Tensor:
    """The mean squared error of what the denoiser predicts (Ho et al., arXiv 2006.11239, eq. 14)."""
    noisy, target = backbone.noised(batch.latents, batch.noise, batch.t)
    return F.mse_loss(backbone.predict(noisy, batch.t, batch.states), target)


def sample_losses(backbone: Backbone, batch: Batch) -> Tensor:
    """The same of each sample, ``(n,)``; their mean is `training_loss` but for rounding."""
    noisy, target = backbone.noised(batch.latents, batch.noise, batch.t)
    errors = F.mse_loss(backbone.predict(noisy, batch.t, batch.states), target, reduction="none")
    return errors.flatten(1).mean(dim=1)


@torch.inference_mode()
def denoising_losses(backbone: Backbone, latents: Tensor, states: Tensor, *, draws: int, seed: int) -> Tensor:
    """Mean loss of each image over ``draws`` fixed (t, noise) pairs: float32 ``(n,)`` on the CPU.

    What membership inference looks at.

    The same pairs serve every image, every mask and the base model, so that what differs is the model alone.

    Args:
        backbone: With the denoiser in the state to measure.
        latents: ``(n, c, h, w)``.
        states: Text states of the images' captions, ``(n, tokens, width)``.
        draws: Size of the grid, at least 1.
        seed: Names the noises.
    """
    low, high = (round(share * backbone.timesteps) for share in _RANGE)
    # Midpoints of equal intervals: a grid of one lies in the middle, not at an end.
    grid = (low + (torch.arange(draws) + 0.5) * (high - low) / draws).long()
    noises = torch.randn((draws, *latents.shape[1:]), generator=torch_generator(seed, "losses")).to(latents.device)
    total, rows = torch.zeros(len(latents)), min(_CHUNK, rows_at_once(latents.shape[-1]))
    for t, noise in zip(grid.tolist(), noises, strict=True):
        for start in range(0, len(latents), rows):
            batch = latents[start : start + rows]
            steps = torch.full((len(batch),), t, dtype=torch.long, device=latents.device)
            noisy, target = backbone.noised(batch, noise.expand_as(batch), steps)
            predicted = backbone.predict(noisy, steps, states[start : start + rows])
            total[start : start + rows] += (predicted - target).square().mean((1, 2, 3)).cpu() / draws
    return total
