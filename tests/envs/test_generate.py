from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
)
from numpy.typing import NDArray
from torch import Tensor

from envs.backbones.latent import LatentBackbone
from envs.generate import generate, sample_latents
from envs.seeding import torch_generator

# diffusers' sigma schedulers hand tensors to numpy in a way that numpy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

CAPTIONS = ["a lesion", "chest radiograph phantom, nodule", "", "brown nevus", "x"]
# `skip_prk_steps` is how Stable Diffusion 1.5 uses PNDM.
SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "ddim": DDIMScheduler.from_config,
    "dpm-solver++": DPMSolverMultistepScheduler.from_config,
    "euler": lambda config: EulerDiscreteScheduler.from_config(config, rescale_betas_zero_snr=False),
    "pndm": lambda config: PNDMScheduler.from_config(config, skip_prk_steps=True, rescale_betas_zero_snr=False),
}
STOCHASTIC: dict[str, Callable[[Any], Any]] = {
    "ddpm": DDPMScheduler.from_config,
    "euler ancestral": lambda config: EulerAncestralDiscreteScheduler.from_config(config, rescale_betas_zero_snr=False),
}


def latents(
    backbone: LatentBackbone, captions: list[str] = CAPTIONS, *, guidance: float = 1.0, seed: int = 3
) -> Tensor:
    states, empty = backbone.encode_captions(captions), backbone.encode_captions([""])
    return sample_latents(backbone, states, empty, steps=4, guidance_scale=guidance, seed=seed)


def images(backbone: LatentBackbone, captions: list[str] = CAPTIONS, *, guidance: float = 1.0) -> NDArray[np.uint8]:
    states, empty = backbone.encode_captions(captions), backbone.encode_captions([""])
    return generate(backbone, states, empty, steps=4, guidance_scale=guidance, seed=3)


def apart(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> int:
    """The largest difference, in 255ths."""
    assert one.shape == other.shape
    return int(np.abs(one.astype(int) - other).max())


def test_shape_and_contrast(backbone: LatentBackbone) -> None:
    found = images(backbone)
    assert found.shape == (5, 32, 32, 3)
    assert found.dtype == np.uint8
    assert found.std() > 5, "else the comparisons below say nothing"
    assert min(apart(found[i : i + 1], found[j : j + 1]) for i in range(5) for j in range(i)) > 20
    assert np.array_equal(found, backbone.decode_latents(latents(backbone)))
    assert backbone.scheduler.num_inference_steps is None, "the backbone's own scheduler is as it was loaded"


@pytest.mark.parametrize("scheduler", [*SCHEDULERS, *STOCHASTIC])
def test_the_same_seed_gives_the_same_images(
    backbone: LatentBackbone, monkeypatch: pytest.MonkeyPatch, scheduler: str
) -> None:
    """Whatever is drawn, at the start or on the way, comes from the seed and the image's number alone."""
    monkeypatch.setattr(backbone, "scheduler", (SCHEDULERS | STOCHASTIC)[scheduler](backbone.scheduler.config))
    first = latents(backbone)
    assert first.std() > 0.1
    torch.manual_seed(99)
    assert torch.equal(latents(backbone), first)
    assert not torch.allclose(latents(backbone, seed=4), first, atol=0.1)
    close = partial(torch.testing.assert_close, rtol=1e-3, atol=1e-3)
    close(latents(backbone, CAPTIONS[:2]), first[:2])  # image i does not depend on how many there are
    for chunk in (1, 3):
        monkeypatch.setattr("envs.generate._CHUNK", chunk)
        close(latents(backbone), first)
        assert apart(images(backbone), backbone.decode_latents(first)) <= 1


def test_captions_and_weights_matter(backbone: LatentBackbone) -> None:
    first = images(backbone)
    assert apart(images(backbone, CAPTIONS[::-1]), first) > 1
    with torch.no_grad():
        backbone.denoiser.conv_in.weight.mul_(2)
    assert apart(images(backbone), first) > 5


def test_guidance_of_one_is_none(backbone: LatentBackbone) -> None:
    calls: list[int] = []
    handle = backbone.denoiser.register_forward_pre_hook(lambda module, inputs: calls.append(len(inputs[0])))
    first = images(backbone)
    assert calls == [5] * 4
    # conditional + (1 + tiny - 1) * (conditional - unconditional) is what guidance tends to.
    assert apart(images(backbone, guidance=1 + 1e-6), first) <= 1
    assert calls[4:] == [10] * 4
    handle.remove()
    assert apart(images(backbone, guidance=20.0), first) > 1
    assert apart(images(backbone, [""], guidance=20.0), images(backbone, [""])) <= 1, "nothing to be guided to"


@pytest.mark.parametrize("guidance", [1.0, 7.5])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_equals_the_pipeline_of_diffusers(
    backbone: LatentBackbone, monkeypatch: pytest.MonkeyPatch, scheduler: str, guidance: float
) -> None:
    monkeypatch.setattr(backbone, "scheduler", SCHEDULERS[scheduler](backbone.scheduler.config))
    parts = {"vae": backbone.autoencoder, "text_encoder": backbone.text_encoder, "unet": backbone.denoiser}
    pipeline = StableDiffusionPipeline(
        **parts,
        tokenizer=backbone.tokenizer,
        scheduler=SCHEDULERS[scheduler](backbone.scheduler.config),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    noise = [torch.randn(4, 8, 8, generator=torch_generator(3, "generate", i)) for i in range(len(CAPTIONS))]
    expected = pipeline(
        CAPTIONS,
        latents=torch.stack(noise),
        num_inference_steps=4,
        guidance_scale=guidance,
        height=32,
        width=32,
        output_type="np",
    ).images
    found = images(backbone, guidance=guidance)
    assert np.abs(found / 255 - expected).max() <= 1.5 / 255


def test_sampling_starts_from_the_schedulers_own_scale(
    backbone: LatentBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backbone, "scheduler", SCHEDULERS["euler"](backbone.scheduler.config))
    seen: list[Tensor] = []

    def predict(x: Tensor, t: Tensor, states: Tensor) -> Tensor:
        seen.append(x)
        return torch.zeros_like(x)

    monkeypatch.setattr(backbone, "predict", predict)
    images(backbone, [""])
    assert seen[0].std() == pytest.approx(1, abs=0.2), "scaled up to sigma, then down for the denoiser"
