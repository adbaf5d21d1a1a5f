"""Pretrains the embedded backbone's autoencoder: 64x64 RGB to 4x16x16 latents.

What it has to be good at is not beauty but identity: a private image that it never saw must still be the same patient
after encoding and decoding, or the decoder would hide memorization from every measurement made on images. 16x16 latents
learn much faster than 8x8x16 ones of the same size: a third nearest-neighbour upsampling cannot place what lies
between two latent positions.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor

from envs.backbones.pretrain.checkpoint import Checkpoint
from envs.backbones.pretrain.stream import Stream


@dataclass(frozen=True)
class AutoencoderSettings:
    """Everything that decides the result; the defaults are those of the shipped weights."""

    steps: int = 1800
    batch_size: int = 16
    learning_rate: float = 2e-3
    warmup: int = 100
    kl_weight: float = 1e-4
    edge_weight: float = 0.5
    ema: float = 0.995
    seed: int = 0
    save_every: int = 100


def build_autoencoder() -> AutoencoderKL:
    """Untrained, 0.7 M parameters, 4 channels at 16x16.

    No attention: it would tie the code to where things lie. One normalisation group: with more, an image's exposure and
    colour cast, which the normalisation takes away, are slow to be learned again. Residual branches start at zero, so
    that training starts from a linear code.
    """
    model = AutoencoderKL(
        sample_size=64,
        latent_channels=4,
        block_out_channels=(16, 32, 64),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        norm_num_groups=1,
        mid_block_add_attention=False,
    )
    for block in model.modules():
        if isinstance(block, ResnetBlock2D):
            torch.nn.init.zeros_(block.conv2.weight)
            torch.nn.init.zeros_(block.conv2.bias)
    return model


def train_autoencoder(stream: Stream, settings: AutoencoderSettings, folder: Path) -> AutoencoderKL:
    """Trains, or goes on from ``folder``'s checkpoint, and returns the averaged weights."""
    torch.manual_seed(settings.seed)
    model = build_autoencoder()
    average = build_autoencoder()
    average.load_state_dict(model.state_dict())
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, betas=(0.9, 0.99), weight_decay=1e-4)
    saved = Checkpoint(folder / "autoencoder.pt", model=model, average=average, optimizer=optimizer)
    step, seconds = saved.load()
    started = time.monotonic() - seconds
    while step < settings.steps:
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * schedule(step, settings.warmup, settings.steps)
        images, _ = stream.batch(step, settings.batch_size)
        generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + step)
        posterior = model.encode(images).latent_dist
        decoded = model.decode(posterior.sample(generator)).sample
        loss, parts = autoencoder_loss(decoded, images, posterior.kl(), settings)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        update_average(average, model, min(settings.ema, step / (step + 10)))
        if step % settings.save_every == 0 or step == settings.steps:
            saved.save(step, time.monotonic() - started)
            print(f"autoencoder step {step}/{settings.steps} {time.monotonic() - started:.0f} s {parts}", flush=True)
    return average.eval()


def autoencoder_loss(decoded: Tensor, images: Tensor, kl: Tensor, settings: AutoencoderSettings) -> tuple[Tensor, str]:
    """L1 on pixels and on their differences (ribs and lesion borders), and the KL to N(0, I) per latent number.

    Args:
        decoded: ``(n, 3, h, w)`` in [-1, 1].
        images: The same shape.
        kl: Sum over the latent numbers, ``(n,)``.
        settings: The weights of the parts.
    """
    pixels = F.l1_loss(decoded, images)
    error = decoded - images
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    rate = kl.mean() / (images.shape[-1] * images.shape[-2] // 4)
    mse = F.mse_loss(decoded.detach().clamp(-1, 1), images)
    psnr = -10 * torch.log10(mse / 4).item()
    total = pixels + settings.edge_weight * edges + settings.kl_weight * rate
    return total, f"psnr {psnr:.2f} l1 {pixels.item():.4f} kl {rate.item():.2f}"


def schedule(step: int, warmup: int, steps: int) -> float:
    """Linear warm-up, then a half cosine to 2 % of the peak."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


@torch.no_grad()
def update_average(average: torch.nn.Module, model: torch.nn.Module, decay: float) -> None:
    """Exponential moving average of the parameters, in place."""
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
