"""The diffusion model under a selection as everything else sees it, in latents or pixels, with text or without."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import DDPMScheduler
from numpy.typing import NDArray
from torch import Tensor, nn

from envs.backbones.execution import Execution
from envs.backbones.norms import guard_group_norms
from rewards.errors import InputError

_COMPILER = "inductor"
_AT_ONCE = 64
_POSITIONS = 2**20


class Backbone(ABC):
    """A pretrained diffusion model: images <-> latents, captions -> states, and the denoiser that a selection is about.

    Whatever is not the denoiser never learns. A backbone whose images are diffused as they are has pixels in [-1, 1]
    for latents; one without text has states that carry nothing.

    Args:
        denoiser: A UNet of diffusers; it is moved, frozen and put in evaluation mode.
        scheduler: Of diffusers: its noise schedule, what the denoiser predicts, and how images are sampled.
        name: For people.
        sha256: Of the pipeline's files.
        device: Where it runs.
        execution: How it computes.

    Attributes:
        conditional: Whether captions mean anything to it.
        timesteps: Of the noise schedule.
    """

    conditional: ClassVar[bool]

    def __init__(
        self, denoiser: Any, scheduler: Any, *, name: str, sha256: str, device: torch.device, execution: Execution
    ) -> None:
        self.name, self.sha256, self.device, self.execution = name, sha256, device, execution
        self.denoiser = denoiser.to(device).eval().requires_grad_(False)
        self.scheduler = scheduler
        self.timesteps = int(scheduler.config.num_train_timesteps)
        # Samplers scale noise each their own way (Euler, DPM-Solver); a denoiser learns from DDPM's forward process.
        self._forward_process = DDPMScheduler.from_config(scheduler.config)
        self._compiled: Any = None
        guard_group_norms(self.denoiser)
        if execution.gradient_checkpointing:
            self.denoiser.enable_gradient_checkpointing()

    @property
    @abstractmethod
    def image_size(self) -> int:
        """Height and width in pixels of the images that the denoiser was made for."""

    @property
    @abstractmethod
    def modules(self) -> tuple[nn.Module, ...]:
        """The denoiser and everything frozen beside it."""

    @abstractmethod
    def encode_images(self, images: NDArray[np.uint8]) -> Tensor:
        """Latents, float32 ``(n, c, h, w)``, of uint8 RGB ``(n, height, width, 3)``."""

    @abstractmethod
    def decode_latents(self, latents: Tensor) -> NDArray[np.uint8]:
        """uint8 RGB ``(n, height, width, 3)`` of latents ``(n, c, h, w)``."""

    @abstractmethod
    def encode_captions(self, captions: Sequence[str]) -> Tensor:
        """States ``(n, tokens, width)``; of no tokens and no width if the backbone is unconditional."""

    @abstractmethod
    def _output(self, network: Any, noisy: Tensor, t: Tensor | int, states: Tensor) -> Tensor:
        """What the network, the denoiser or its compiled form, puts out."""

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of a latent."""
        size = int(self.denoiser.config.sample_size)
        return int(self.denoiser.config.in_channels), size, size

    def noised(self, latents: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """``(noisy latents, what the denoiser should predict)`` at timesteps ``t`` of shape ``(n,)``."""
        noisy = self._forward_process.add_noise(latents, noise, t)
        kind = self.scheduler.config.prediction_type
        if kind == "epsilon":
            return noisy, noise
        if kind == "v_prediction":
            return noisy, self._forward_process.get_velocity(latents, noise, t)
        return noisy, latents

    def predict(self, noisy: Tensor, t: Tensor | int, states: Tensor) -> Tensor:
        """The denoiser's output, of the shape and type of ``noisy`` whatever the precision within."""
        network = self.denoiser if self._compiled is None else self._compiled
        with self.execution.autocast(self.device):
            output = self._output(network, noisy, t, states)
        return output.to(noisy.dtype)

    @contextmanager
    def compiled(self) -> Iterator[None]:
        """Within, the denoiser is compiled if its execution says so; enter it after what may learn has been chosen.

        What was compiled for another choice is forgotten: torch reuses its frames though requires_grad has changed
        since, and parameters would silently get no gradient (pytorch#139476). Only for training, which repeats one
        shape often enough to pay for it.
        """
        if not self.execution.compile:
            yield
            return
        torch.compiler.reset()
        self._compiled = torch.compile(self.denoiser, backend=_COMPILER)
        try:
            yield
        finally:
            self._compiled = None

    @contextmanager
    def eager(self) -> Iterator[None]:
        """Within, the denoiser is not compiled: for a look at the model in the midst of a compiled training."""
        compiled, self._compiled = self._compiled, None
        try:
            yield
        finally:
            self._compiled = compiled


def rows_at_once(size: int) -> int:
    """How many images or latents of ``size`` x ``size`` go through a network at a time outside training."""
    return max(1, min(_AT_ONCE, _POSITIONS // size**2))


def check_guidance(backbone: Backbone, guidance_scale: float, name: str) -> None:
    """Raises InputError if a backbone without captions is asked to be guided by them; ``name`` is the setting's."""
    if guidance_scale > 1 and not backbone.conditional:
        raise InputError(
            f"{name}={guidance_scale} with {backbone.name}, which takes no captions to be guided by", f"set {name}=1"
        )
