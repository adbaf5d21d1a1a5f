"""A text-conditional latent diffusion pipeline, loaded once, frozen, with the operations that an evaluation needs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import CLIPTextModel

from envs.backbones.base import Backbone, rows_at_once
from envs.backbones.execution import Execution
from envs.backbones.folder import check_parts, folder_sha256, load_whole, loading

_CHUNK = 64
_MODELS: dict[str, Any] = {"vae": AutoencoderKL, "text_encoder": CLIPTextModel, "unet": UNet2DConditionModel}
# A tokenizer without vocabulary would load and spell nothing.
_VOCABULARY = ("tokenizer/tokenizer.json",), ("tokenizer/vocab.json", "tokenizer/merges.txt")


class LatentBackbone(Backbone):
    """A `StableDiffusionPipeline`, embedded or real.

    Args:
        pipeline: Loaded, without a safety checker.
        name: For people.
        sha256: Of its files, see `folder_sha256`.
        device: Where it runs.
        execution: How it computes.
    """

    conditional: ClassVar[bool] = True

    def __init__(
        self,
        pipeline: StableDiffusionPipeline,
        name: str,
        sha256: str,
        device: torch.device,
        execution: Execution | None = None,
    ) -> None:
        super().__init__(
            pipeline.unet,
            pipeline.scheduler,
            name=name,
            sha256=sha256,
            device=device,
            execution=execution or Execution(),
        )
        self.autoencoder = pipeline.vae.to(device).eval().requires_grad_(False)
        self.text_encoder = pipeline.text_encoder.to(device).eval().requires_grad_(False)
        self.tokenizer = pipeline.tokenizer
        self.scaling_factor = float(self.autoencoder.config.scaling_factor)

    @property
    def image_size(self) -> int:
        """See `Backbone`."""
        return int(self.denoiser.config.sample_size * 2 ** (len(self.autoencoder.config.block_out_channels) - 1))

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """See `Backbone`."""
        return self.denoiser, self.text_encoder, self.autoencoder

    @torch.no_grad()  # not inference_mode: a fine-tune needs what is returned in its backward pass
    def encode_images(self, images: NDArray[np.uint8]) -> Tensor:
        """Scaled latents, float32 ``(n, c, h, w)``, of uint8 RGB ``(n, height, width, 3)``: the posterior's mode."""
        latents, rows = [], min(_CHUNK, rows_at_once(self.image_size))
        for start in range(0, len(images), rows):
            chunk = torch.from_numpy(images[start : start + rows]).to(self.device)
            scaled = chunk.permute(0, 3, 1, 2).float() / 127.5 - 1
            latents.append(self.autoencoder.encode(scaled).latent_dist.mode() * self.scaling_factor)
        return torch.cat(latents)

    @torch.inference_mode()
    def decode_latents(self, latents: Tensor) -> NDArray[np.uint8]:
        """uint8 RGB ``(n, height, width, 3)`` of scaled latents ``(n, c, h, w)``."""
        images, rows = [], min(_CHUNK, rows_at_once(self.image_size))
        for start in range(0, len(latents), rows):
            decoded = self.autoencoder.decode(latents[start : start + rows] / self.scaling_factor).sample
            pixels = ((decoded.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
            images.append(pixels.permute(0, 2, 3, 1).cpu().numpy())
        return np.ascontiguousarray(np.concatenate(images))

    @torch.no_grad()
    def encode_captions(self, captions: Sequence[str]) -> Tensor:
        """Text states ``(n, tokens, width)``; each distinct caption is encoded once."""
        distinct = sorted(set(captions))
        encoded = self.tokenizer(distinct, padding="max_length", truncation=True, return_tensors="pt")
        states: Tensor = self.text_encoder(encoded.input_ids.to(self.device)).last_hidden_state
        rows = {caption: i for i, caption in enumerate(distinct)}
        return states[[rows[c] for c in captions]]

    def _output(self, network: Any, noisy: Tensor, t: Tensor | int, states: Tensor) -> Tensor:
        output: Tensor = network(noisy, t, states, return_dict=False)[0]
        return output


def load_latent_backbone(
    path: str | Path, *, name: str, device: torch.device, execution: Execution | None = None
) -> LatentBackbone:
    """Loads a pipeline folder in the Stable Diffusion layout from safetensors.

    Raises:
        InputError: If it is not such a folder, or a part is missing, incomplete or not safetensors.
    """
    folder = Path(path)
    check_parts(folder, path, tuple(_MODELS), also=_VOCABULARY)
    with loading(path):
        pipeline = StableDiffusionPipeline.from_pretrained(
            folder,
            local_files_only=True,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
            **{part: load_whole(kind, folder / part) for part, kind in _MODELS.items()},
        )
    return LatentBackbone(pipeline, name, folder_sha256(folder), device, execution)
