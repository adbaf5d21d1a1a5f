from __future__ import annotations

import pytest
import torch

from envs.backbones.latent import LatentBackbone
from envs.losses import denoising_losses
from envs.seeding import torch_generator

N = 5


@pytest.fixture
def batch(backbone: LatentBackbone) -> tuple[torch.Tensor, torch.Tensor]:
    latents = torch.randn(N, *backbone.latent_shape, generator=torch_generator(0, "latents"))
    return latents, backbone.encode_captions([f"image {i}" for i in range(N)])


Batch = tuple[torch.Tensor, torch.Tensor]


@pytest.mark.parametrize(("draws", "grid"), [(1, [450]), (4, [150, 350, 550, 750]), (8, list(range(100, 850, 100)))])
def test_the_grid_halves_equal_intervals(backbone: LatentBackbone, batch: Batch, draws: int, grid: list[int]) -> None:
    seen: list[int] = []
    with backbone.denoiser.register_forward_pre_hook(lambda module, inputs: seen.extend(set(inputs[1].tolist()))):
        denoising_losses(backbone, *batch, draws=draws, seed=0)
    assert seen == grid


def test_equals_a_loop_over_images_and_pairs(backbone: LatentBackbone, batch: Batch) -> None:
    latents, states = batch
    found = denoising_losses(backbone, latents, states, draws=3, seed=7)
    assert found.shape == (N,)
    assert found.dtype == torch.float32
    noises = torch.randn(3, *latents.shape[1:], generator=torch_generator(7, "losses"))
    alphas = backbone.scheduler.alphas_cumprod
    for i in range(N):
        losses = []
        for t, noise in zip((183, 450, 716), noises, strict=True):
            signal, sigma = alphas[t].sqrt(), (1 - alphas[t]).sqrt()
            predicted = backbone.predict((signal * latents[i] + sigma * noise)[None], t, states[i : i + 1])[0]
            losses.append(float(((predicted - (signal * noise - sigma * latents[i])) ** 2).mean()))
        assert float(found[i]) == pytest.approx(sum(losses) / 3, rel=1e-4)


def test_losses_depend_on_seed_image_caption_and_weights_alone(backbone: LatentBackbone, batch: Batch) -> None:
    latents, states = batch
    first = denoising_losses(backbone, latents, states, draws=2, seed=0)
    torch.manual_seed(99)
    assert torch.equal(denoising_losses(backbone, latents, states, draws=2, seed=0), first)
    assert not torch.allclose(denoising_losses(backbone, latents, states, draws=2, seed=1), first)
    assert not torch.allclose(denoising_losses(backbone, latents, states.flip(0), draws=2, seed=0), first)
    backbone.denoiser.conv_out.weight.data.mul_(2)
    assert not torch.allclose(denoising_losses(backbone, latents, states, draws=2, seed=0), first)


def test_order_and_company_do_not_matter(
    backbone: LatentBackbone, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    latents, states = batch
    first = denoising_losses(backbone, latents, states, draws=2, seed=0)
    backwards = denoising_losses(backbone, latents.flip(0), states.flip(0), draws=2, seed=0)
    torch.testing.assert_close(backwards.flip(0), first)
    torch.testing.assert_close(denoising_losses(backbone, latents[2:3], states[2:3], draws=2, seed=0), first[2:3])
    monkeypatch.setattr("envs.losses._CHUNK", 2)
    torch.testing.assert_close(denoising_losses(backbone, latents, states, draws=2, seed=0), first)
