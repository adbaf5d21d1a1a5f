"""Sampling images from the denoiser as it stands."""

from __future__ import annotations

import copy
import inspect

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from envs.backbones.latent import LatentBackbone
from envs.seeding import torch_generator

_CHUNK = 64


def generate(
    backbone: LatentBackbone,
    states: Tensor,
    empty_state: Tensor,
    *,
    steps: int,
    guidance_scale: float,
    seed: int,
) -> NDArray[np.uint8]:
    """The decoded images of `sample_latents`, uint8 RGB ``(n, height, width, 3)``; see there for the arguments."""
    latents = sample_latents(backbone, states, empty_state, steps=steps, guidance_scale=guidance_scale, seed=seed)
    return backbone.decode_latents(latents)


@torch.inference_mode()
def sample_latents(
    backbone: LatentBackbone,
    states: Tensor,
    empty_state: Tensor,
    *,
    steps: int,
    guidance_scale: float,
    seed: int,
) -> Tensor:
    """One scaled latent for each row of ``states``, ``(n, c, h, w)``.

    All noise of image i depends on ``seed`` and i alone, so every mask is sampled from the same noise.

    Args:
        backbone: With the denoiser in the state to sample from.
        states: Text states ``(n, tokens, width)``.
        empty_state: ``(1, tokens, width)``, for guidance.
        steps: Of the backbone's scheduler.
        guidance_scale: 1 for none; above 1, classifier-free guidance (Ho & Salimans, arXiv 2207.12598).
        seed: Names the noise.
    """
    generators = [torch_generator(seed, "generate", i) for i in range(len(states))]
    noise = torch.stack([torch.randn(backbone.latent_shape, generator=g) for g in generators]).to(backbone.device)
    latents = []
    for start in range(0, len(states), _CHUNK):
        # A scheduler keeps a step counter and, some of them, past outputs: every chunk needs its own.
        scheduler = copy.deepcopy(backbone.scheduler)
        scheduler.set_timesteps(steps, device=backbone.device)
        takes_noise = "generator" in inspect.signature(scheduler.step).parameters
        drawn = {"generator": generators[start : start + _CHUNK]} if takes_noise else {}
        x = noise[start : start + _CHUNK] * scheduler.init_noise_sigma
        condition = states[start : start + _CHUNK]
        if guidance_scale > 1:
            condition = torch.cat([empty_state.expand_as(condition), condition])
        for t in scheduler.timesteps:
            scaled = scheduler.scale_model_input(x, t)
            if guidance_scale > 1:
                unconditional, conditional = backbone.predict(torch.cat([scaled, scaled]), t, condition).chunk(2)
                prediction = unconditional + guidance_scale * (conditional - unconditional)
            else:
                prediction = backbone.predict(scaled, t, condition)
            x = scheduler.step(prediction, t, x, return_dict=False, **drawn)[0]
        latents.append(x)
    return torch.cat(latents)
