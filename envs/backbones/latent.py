"""A text-conditional latent diffusion pipeline, loaded once, frozen, with the operations that an evaluation needs."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.utils import logging as diffusers_logging
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import CLIPTextModel
from transformers.utils import logging as transformers_logging

from rewards.errors import InputError

# Loading a pipeline draws three bars of its own through the progress of a run.
diffusers_logging.disable_progress_bar()
transformers_logging.disable_progress_bar()

_CHUNK = 64
_MODELS: dict[str, Any] = {"vae": AutoencoderKL, "text_encoder": CLIPTextModel, "unet": UNet2DConditionModel}
_PARTS = (*_MODELS, "tokenizer", "scheduler")
# One of each line has to be there: a tokenizer without vocabulary, for one, would load and spell nothing.
_NEEDED = (
    ("model_index.json",),
    *((f"{part}/config.json",) for part in _MODELS),
    *((f"{part}/*.safetensors",) for part in _MODELS),
    ("tokenizer/tokenizer.json", "tokenizer/vocab.json"),
    ("scheduler/scheduler_config.json",),
)


class LatentBackbone:
    """A `StableDiffusionPipeline`, embedded or real, seen as: images <-> latents, captions -> states, denoiser.

    The autoencoder and the text encoder never learn. The denoiser is what a selection is about.

    Args:
        pipeline: Loaded, without a safety checker.
        name: For people.
        sha256: Of its files, see `folder_sha256`.
        device: Where it runs.
    """

    def __init__(self, pipeline: StableDiffusionPipeline, name: str, sha256: str, device: torch.device) -> None:
        self.name, self.sha256, self.device = name, sha256, device
        self.autoencoder = pipeline.vae.to(device).eval().requires_grad_(False)
        self.text_encoder = pipeline.text_encoder.to(device).eval().requires_grad_(False)
        self.denoiser = pipeline.unet.to(device).eval().requires_grad_(False)
        self.tokenizer, self.scheduler = pipeline.tokenizer, pipeline.scheduler
        self.scaling_factor = float(self.autoencoder.config.scaling_factor)
        self.timesteps = int(self.scheduler.config.num_train_timesteps)
        # Samplers scale noise each their own way (Euler, DPM-Solver); a denoiser learns from DDPM's forward process.
        self._forward_process = DDPMScheduler.from_config(self.scheduler.config)
        guard_group_norms(self.denoiser)

    @property
    def image_size(self) -> int:
        """Height and width in pixels of the images that the denoiser was made for."""
        return int(self.denoiser.config.sample_size * 2 ** (len(self.autoencoder.config.block_out_channels) - 1))

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of a latent."""
        size = int(self.denoiser.config.sample_size)
        return int(self.denoiser.config.in_channels), size, size

    @torch.no_grad()  # not inference_mode: a fine-tune needs what is returned in its backward pass
    def encode_images(self, images: NDArray[np.uint8]) -> Tensor:
        """Scaled latents, float32 ``(n, c, h, w)``, of uint8 RGB ``(n, height, width, 3)``: the posterior's mode."""
        latents = []
        for start in range(0, len(images), _CHUNK):
            chunk = torch.from_numpy(images[start : start + _CHUNK]).to(self.device)
            scaled = chunk.permute(0, 3, 1, 2).float() / 127.5 - 1
            latents.append(self.autoencoder.encode(scaled).latent_dist.mode() * self.scaling_factor)
        return torch.cat(latents)

    @torch.inference_mode()
    def decode_latents(self, latents: Tensor) -> NDArray[np.uint8]:
        """uint8 RGB ``(n, height, width, 3)`` of scaled latents ``(n, c, h, w)``."""
        images = []
        for start in range(0, len(latents), _CHUNK):
            decoded = self.autoencoder.decode(latents[start : start + _CHUNK] / self.scaling_factor).sample
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
        """The denoiser's output, the shape of ``noisy``."""
        output: Tensor = self.denoiser(noisy, t, states, return_dict=False)[0]
        return output


def load_latent_backbone(path: str | Path, *, name: str, device: torch.device) -> LatentBackbone:
    """Loads a pipeline folder in the Stable Diffusion layout from safetensors.

    Raises:
        InputError: If it is not such a folder, or a part is missing, incomplete or not safetensors.
    """
    folder = Path(path)
    for choice in _NEEDED:
        if not any(any(folder.glob(pattern)) for pattern in choice):
            raise InputError(
                f"backbone.path={path} holds no {' or '.join(choice)}",
                "point it at a diffusers pipeline folder in safetensors",
            )
    try:
        pipeline = StableDiffusionPipeline.from_pretrained(
            folder,
            local_files_only=True,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
            **{part: _load_whole(kind, folder / part) for part, kind in _MODELS.items()},
        )
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"backbone.path={path} does not load: {reason}", "check its parts") from error
    return LatentBackbone(pipeline, name, folder_sha256(folder), device)


def _load_whole(kind: Any, folder: Path) -> nn.Module:
    """A model with every weight from its file: one missing there would be drawn at random, with a warning at most."""
    model: nn.Module
    model, report = kind.from_pretrained(folder, use_safetensors=True, local_files_only=True, output_loading_info=True)
    if report["missing_keys"]:
        raise ValueError(f"{folder.name} lacks the weights {', '.join(sorted(report['missing_keys']))}")
    return model


def folder_sha256(folder: Path) -> str:
    """Hash of everything in a pipeline folder that decides what it computes: configs, vocabularies and weights."""
    digest = hashlib.sha256()
    inside = (file for part in _PARTS for file in (folder / part).rglob("*"))
    for file in sorted((folder / "model_index.json", *inside)):
        if file.suffix in (".json", ".txt", ".safetensors"):
            digest.update(file.relative_to(folder).as_posix().encode() + b"\0")
            with file.open("rb") as content:
                digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()


def guard_group_norms(module: nn.Module) -> None:
    """Makes the input of every GroupNorm contiguous.

    The CPU backward of GroupNorm in torch 2.13.0 segfaults when its input is channels_last and needs no gradient while
    its weight or bias does: what a mask search meets whenever a group in the middle of the network learns alone.
    """
    for layer in module.modules():
        if isinstance(layer, nn.GroupNorm):
            layer.register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(), *inputs[1:]))
