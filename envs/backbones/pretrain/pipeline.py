"""Puts the trained parts into a Stable Diffusion folder."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from transformers import CLIPTokenizer

from envs.backbones.pretrain.denoiser import Denoiser, build_scheduler
from envs.backbones.pretrain.stream import Stream


def scale_latents(autoencoder: AutoencoderKL, stream: Stream, batches: int = 10) -> None:
    """Sets the autoencoder's ``scaling_factor`` so that latents of the stream have a standard deviation of 1."""
    with torch.inference_mode():
        modes = [autoencoder.encode(stream.batch(i, 50)[0]).latent_dist.mode() for i in range(batches)]
    autoencoder.register_to_config(scaling_factor=1 / float(torch.cat(modes).std()))


def save_pipeline(autoencoder: AutoencoderKL, tokenizer: CLIPTokenizer, denoiser: Denoiser, folder: Path) -> None:
    """Writes the pipeline as safetensors and JSON."""
    pipeline = StableDiffusionPipeline(
        vae=autoencoder,
        text_encoder=denoiser.text_encoder,
        tokenizer=tokenizer,
        unet=denoiser.unet,
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
