from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from envs.backbones.pretrain.autoencoder import build_autoencoder, update_average
from envs.backbones.pretrain.denoiser import (
    Denoiser,
    DenoiserSettings,
    build_denoiser,
    build_scheduler,
    latent_pool,
    tokenize,
    train_denoiser,
)
from envs.backbones.pretrain.stream import PublicImages, Stream
from envs.backbones.pretrain.text import build_tokenizer, phantom_captions

SETTINGS = DenoiserSettings(steps=4, batch_size=2, warmup=2, block=3, pool=4, save_every=2)
TOKENIZER = build_tokenizer(phantom_captions())


@pytest.fixture(scope="module")
def autoencoder() -> AutoencoderKL:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build_autoencoder().eval()
    model.register_to_config(scaling_factor=3.0)
    return model


def trained(public: PublicImages, autoencoder: AutoencoderKL, folder: Path, **changes: Any) -> dict[str, Tensor]:
    settings = dataclasses.replace(SETTINGS, **changes)
    found = train_denoiser(Stream(public), autoencoder, TOKENIZER, settings, folder)
    for model in (found.unet, found.text_encoder):
        assert not model.training
        assert not any(parameter.requires_grad for parameter in model.parameters())
    return weights(found)


def weights(denoiser: Denoiser) -> dict[str, Tensor]:
    parts = {"unet": denoiser.unet, "text_encoder": denoiser.text_encoder}
    return {f"{part}.{name}": tensor for part, model in parts.items() for name, tensor in model.state_dict().items()}


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.mark.parametrize("stop", [1, 3])
def test_an_interrupted_training_equals_an_uninterrupted_one(
    public: PublicImages,
    autoencoder: AutoencoderKL,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stop: int,
) -> None:
    """Before the first checkpoint, and after it in the middle of a block."""
    expected = trained(public, autoencoder, tmp_path / "whole")
    steps = itertools.count(1)

    def interrupted(*args: Any) -> None:
        if next(steps) == stop:
            raise KeyboardInterrupt
        update_average(*args)

    with monkeypatch.context() as patch:
        patch.setattr("envs.backbones.pretrain.denoiser.update_average", interrupted)
        with pytest.raises(KeyboardInterrupt):
            trained(public, autoencoder, tmp_path / "parts")
    torch.manual_seed(99)
    assert equal(trained(public, autoencoder, tmp_path / "parts"), expected)
    moved = trained(public, autoencoder, tmp_path / "longer", steps=5)
    assert {name.split(".")[0] for name in moved if not torch.equal(moved[name], expected[name])} == {
        "unet",
        "text_encoder",
    }


def test_a_pool_is_a_block_of_the_stream(public: PublicImages, autoencoder: AutoencoderKL) -> None:
    stream = Stream(public)
    latents, tokens = latent_pool(stream, autoencoder, TOKENIZER, block=2, size=105)
    assert latents.shape == (105, 4, 16, 16)
    assert latents.dtype == torch.half
    for chunk, rows in ((0, slice(0, 100)), (100, slice(100, 105))):
        images, captions = stream.batch(2_000_000 + chunk, rows.stop - rows.start)
        with torch.no_grad():
            expected = 3.0 * autoencoder.encode(images).latent_dist.mode()
        torch.testing.assert_close(latents[rows], expected.half())
        assert torch.equal(tokens[rows], tokenize(TOKENIZER, captions))
    assert not torch.equal(latent_pool(stream, autoencoder, TOKENIZER, block=3, size=5)[0], latents[:5])


def test_the_scheduler_ends_in_pure_noise() -> None:
    scheduler = build_scheduler()
    assert scheduler.alphas_cumprod[-1] == 0
    scheduler.set_timesteps(5)
    assert scheduler.timesteps.tolist() == [999, 799, 599, 399, 199]


def test_the_denoiser_has_three_levels() -> None:
    with torch.device("meta"):
        unet = build_denoiser()
        output = unet(torch.zeros(1, 4, 16, 16), torch.zeros(1), torch.zeros(1, 32, 64)).sample
    assert output.shape == (1, 4, 16, 16)
    assert sum(parameter.numel() for parameter in unet.parameters()) == pytest.approx(1.7e6, rel=0.05)
