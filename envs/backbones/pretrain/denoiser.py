"""Pretrains the embedded backbone's denoiser and text encoder on latents of public images."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from envs.backbones.pretrain.autoencoder import schedule, update_average
from envs.backbones.pretrain.checkpoint import Checkpoint
from envs.backbones.pretrain.stream import Stream
from envs.backbones.pretrain.text import WIDTH, build_text_encoder


@dataclass(frozen=True)
class DenoiserSettings:
    """Everything that decides the result; the defaults are those of the shipped weights.

    Attributes:
        block: Steps that share one pool of latents; the next block draws new phantoms.
        pool: Images in a pool.
    """

    steps: int = 6500
    batch_size: int = 32
    learning_rate: float = 1e-3
    warmup: int = 200
    caption_dropout: float = 0.1
    ema: float = 0.999
    block: int = 1000
    pool: int = 8000
    seed: int = 1
    save_every: int = 200


def build_denoiser() -> UNet2DConditionModel:
    """Untrained, 1.7 M parameters: levels of 16x16 (convolutions only), 8x8 and 4x4 (with cross-attention)."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        block_out_channels=(32, 64, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DCrossAttn",
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        norm_num_groups=8,
    )


def build_scheduler() -> DDIMScheduler:
    """v-prediction on a zero-terminal-SNR schedule with trailing steps (Lin et al., arXiv 2305.08891)."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=True,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        steps_offset=1,  # trailing steps do not look at it; diffusers warns of any other value
    )


@dataclass(frozen=True)
class Denoiser:
    """The trained pair, averaged weights."""

    unet: UNet2DConditionModel
    text_encoder: CLIPTextModel


def train_denoiser(
    stream: Stream, autoencoder: AutoencoderKL, tokenizer: CLIPTokenizer, settings: DenoiserSettings, folder: Path
) -> Denoiser:
    """Trains, or goes on from ``folder``'s checkpoint. ``autoencoder`` must carry its ``scaling_factor``."""
    torch.manual_seed(settings.seed)
    pairs = [torch.nn.ModuleList([build_denoiser(), build_text_encoder(tokenizer)]) for _ in range(2)]
    model, average = pairs
    average.load_state_dict(model.state_dict())
    scheduler = build_scheduler()
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, betas=(0.9, 0.99), weight_decay=0.01)
    saved = Checkpoint(folder / "denoiser.pt", model=model, average=average, optimizer=optimizer)
    step, seconds = saved.load()
    started = time.monotonic() - seconds
    losses: list[float] = []
    pool: tuple[Tensor, Tensor] | None = None
    empty = tokenize(tokenizer, [""])
    while step < settings.steps:
        if pool is None or step % settings.block == 0:
            pool = latent_pool(stream, autoencoder, tokenizer, step // settings.block, settings.pool)
        latents, tokens = pool
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * schedule(step, settings.warmup, settings.steps)
        rng = torch.Generator().manual_seed(settings.seed * 1_000_003 + step)
        rows = torch.randint(len(latents), (settings.batch_size,), generator=rng)
        dropped = torch.rand(settings.batch_size, 1, generator=rng) < settings.caption_dropout
        batch, ids = latents[rows].float(), torch.where(dropped, empty, tokens[rows])
        noise = torch.randn(batch.shape, generator=rng)
        t = torch.randint(scheduler.config.num_train_timesteps, (len(batch),), generator=rng)
        noisy, target = scheduler.add_noise(batch, noise, t), scheduler.get_velocity(batch, noise, t)
        predicted = model[0](noisy, t, model[1](ids).last_hidden_state).sample
        loss = F.mse_loss(predicted, target)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        step += 1
        update_average(average, model, min(settings.ema, step / (step + 10)))
        if step % settings.save_every == 0 or step == settings.steps:
            saved.save(step, time.monotonic() - started)
            mean, losses = float(np.mean(losses)), []
            print(
                f"denoiser step {step}/{settings.steps} {time.monotonic() - started:.0f} s loss {mean:.4f}", flush=True
            )
    average.eval().requires_grad_(False)
    unet, text_encoder = average
    assert isinstance(unet, UNet2DConditionModel)
    assert isinstance(text_encoder, CLIPTextModel)
    return Denoiser(unet, text_encoder)


@torch.inference_mode()
def latent_pool(
    stream: Stream, autoencoder: AutoencoderKL, tokenizer: CLIPTokenizer, block: int, size: int
) -> tuple[Tensor, Tensor]:
    """Scaled latents ``(size, c, h, w)``, half precision, and token ids ``(size, tokens)`` of a block of the stream."""
    latents, tokens = [], []
    for chunk in range(0, size, 100):
        images, captions = stream.batch(block * 1_000_000 + chunk, min(100, size - chunk))
        posterior = autoencoder.encode(images).latent_dist
        latents.append((posterior.mode() * autoencoder.config.scaling_factor).half())
        tokens.append(tokenize(tokenizer, captions))
    return torch.cat(latents).clone(), torch.cat(tokens).clone()


def tokenize(tokenizer: CLIPTokenizer, captions: list[str] | tuple[str, ...]) -> Tensor:
    """Token ids, padded and cut to the model's length: int64 ``(n, tokens)``."""
    encoded = tokenizer(list(captions), padding="max_length", truncation=True, return_tensors="pt")
    ids: Tensor = encoded.input_ids
    return ids
