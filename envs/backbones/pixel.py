"""An unconditional diffusion pipeline in pixel space."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import DDPMPipeline, UNet2DModel
from numpy.typing import NDArray
from torch import Tensor, nn

from envs.backbones.base import Backbone
from envs.backbones.execution import Execution
from envs.backbones.folder import check_parts, folder_sha256, load_whole, loading, part_folder
from rewards.errors import InputError

_LUMINANCE = (0.299, 0.587, 0.114)
"""Of red, green and blue, ITU-R BT.601: what Pillow's mode L is."""


class PixelBackbone(Backbone):
    """A `DDPMPipeline`: images are their own latents, in [-1, 1], and captions mean nothing.

    A denoiser of one channel gets the luminance of RGB images, and its images come back as grey RGB.

    Args:
        pipeline: Loaded.
        name: For people.
        sha256: Of its files, see `folder_sha256`.
        device: Where it runs.
        execution: How it computes.

    Raises:
        InputError: If its denoiser takes class labels, is not square, or is not one of grey or RGB images.
    """

    conditional: ClassVar[bool] = False

    def __init__(
        self,
        pipeline: DDPMPipeline,
        name: str,
        sha256: str,
        device: torch.device,
        execution: Execution | None = None,
    ) -> None:
        config = pipeline.unet.config
        if pipeline.unet.class_embedding is not None:
            raise InputError(f"backbone={name}: its denoiser asks for class labels", "give one without")
        if config.in_channels not in (1, 3) or config.out_channels != config.in_channels:
            raise InputError(
                f"backbone={name}: its denoiser has {config.in_channels} channels in and {config.out_channels} out",
                "give one of grey or RGB images that learns no variance",
            )
        if not isinstance(config.sample_size, int):
            raise InputError(f"backbone={name}: its denoiser is of size {config.sample_size}", "give a square one")
        super().__init__(
            pipeline.unet,
            pipeline.scheduler,
            name=name,
            sha256=sha256,
            device=device,
            execution=execution or Execution(),
        )

    @property
    def image_size(self) -> int:
        """See `Backbone`."""
        return int(self.denoiser.config.sample_size)

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """See `Backbone`."""
        return (self.denoiser,)

    def encode_images(self, images: NDArray[np.uint8]) -> Tensor:
        """Pixels in [-1, 1], float32 ``(n, 1 or 3, h, w)``, of uint8 RGB ``(n, h, w, 3)``."""
        pixels = torch.from_numpy(images).to(self.device).permute(0, 3, 1, 2).float() / 127.5 - 1
        if self.latent_shape[0] == 1:
            weights = torch.tensor(_LUMINANCE, device=self.device).view(1, 3, 1, 1)
            return (pixels * weights).sum(1, keepdim=True)
        return pixels.contiguous()

    @torch.inference_mode()
    def decode_latents(self, latents: Tensor) -> NDArray[np.uint8]:
        """uint8 RGB ``(n, h, w, 3)`` of pixels in [-1, 1]; what is beyond is cut."""
        pixels = ((latents.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        pixels = pixels.expand(-1, 3, -1, -1)
        return np.ascontiguousarray(pixels.permute(0, 2, 3, 1).cpu().numpy())

    def encode_captions(self, captions: Sequence[str]) -> Tensor:
        """States ``(n, 0, 0)``: there is nothing in them."""
        return torch.zeros(len(captions), 0, 0, device=self.device)

    def _output(self, network: Any, noisy: Tensor, t: Tensor | int, states: Tensor) -> Tensor:
        output: Tensor = network(noisy, t, return_dict=False)[0]
        return output


def load_pixel_backbone(
    path: str | Path, *, name: str, device: torch.device, execution: Execution | None = None
) -> PixelBackbone:
    """Loads a pipeline folder in the DDPM layout, with or without folders for its parts, from safetensors.

    Raises:
        InputError: If it is not such a folder, or a part is missing, incomplete, not safetensors, or of another shape.
    """
    folder = Path(path)
    check_parts(folder, path, ("unet",))
    with loading(path):
        unet = load_whole(UNet2DModel, part_folder(folder, "unet"))
        pipeline = DDPMPipeline.from_pretrained(folder, local_files_only=True, unet=unet)
    return PixelBackbone(pipeline, name, folder_sha256(folder), device, execution)
