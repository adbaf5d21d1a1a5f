from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from torch import Tensor

from envs.generate import denoise, sample_latents, starting_noise
from envs.mitigations import find_mitigations
from envs.mitigations.guidance import (
    AntiMemorizationGuidance,
    Repulsion,
    clean_of,
    distinct,
    per_clean,
    signal_at,
    where_to,
)
from envs.seeding import torch_generator
from rewards.errors import InputError
from rewards.memorization.normalized_l2 import normalized_distances
from tests.envs.mitigations.conftest import Ward
from tests.envs.mitigations.test_caption_noise import situation

# diffusers' sigma schedulers hand tensors to numpy in a way that numpy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SHAPE = (2, 4, 4)
SAMPLERS = (
    "DDIMScheduler",
    "DDPMScheduler",
    "PNDMScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "LMSDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "UniPCMultistepScheduler",
)
KINDS = ("epsilon", "v_prediction", "sample")
PREDICT_NO_SAMPLE = (
    "PNDMScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "LMSDiscreteScheduler",
)
"""Diffusers has not written these for models that predict the clean image."""
PRIVATE = torch.randn((9, *SHAPE), generator=torch.Generator().manual_seed(0))
"""Latents of training images: nine, so three neighbours."""


def sampler(name: str, kind: str, **more: Any) -> Any:
    clip = {"clip_sample": False} if name in ("DDIMScheduler", "DDPMScheduler", "HeunDiscreteScheduler") else {}
    return getattr(diffusers, name)(prediction_type=kind, beta_schedule="scaled_linear", **clip, **more)


def memorizer(scheduler: Any, kind: str) -> Callable[[Tensor, Tensor, slice], Tensor]:
    """The denoiser that is best for the training images and for nothing else, but for a twentieth of their mean.

    Its clean image is the mean of the training images weighted by how likely each is the noisy one's source. The
    twentieth keeps it beside the training image, from which a way leads off then.
    """

    def predict(noisy: Tensor, t: Tensor, rows: slice) -> Tensor:
        signal = min(max(signal_at(scheduler, t), 1e-6), 1 - 1e-6)
        squares = torch.cdist(noisy.flatten(1), math.sqrt(signal) * PRIVATE.flatten(1)).square()
        weights = (-squares / (2 * (1 - signal))).softmax(1)
        clean = 0.95 * (weights @ PRIVATE.flatten(1)).view_as(noisy) + 0.05 * PRIVATE.mean(0)
        if kind == "sample":
            return clean
        a, b = math.sqrt(signal), math.sqrt(1 - signal)
        noise = (noisy - a * clean) / b
        return noise if kind == "epsilon" else a * noise - b * clean

    return predict


def sampled(scheduler: Any, kind: str, *steerings: Repulsion, rows: int = 6) -> Tensor:
    generators = [torch_generator(0, "test", i) for i in range(rows)]
    noise = torch.stack([torch.randn(SHAPE, generator=generator) for generator in generators])
    predict = memorizer(scheduler, kind)
    return denoise(scheduler, noise, predict, steps=16, generators=generators, steerings=steerings)


def nearness(latents: Tensor) -> Tensor:
    nearest = torch.cdist(latents.flatten(1), PRIVATE.flatten(1)).sort(1).values[:, :3]
    return normalized_distances(nearest)


def repulsion(scale: float = 1.0) -> Repulsion:
    return Repulsion(AntiMemorizationGuidance(scale=scale), PRIVATE)


@pytest.mark.parametrize(
    ("name", "kind"),
    [(name, kind) for name in SAMPLERS for kind in KINDS if kind != "sample" or name not in PREDICT_NO_SAMPLE],
)
def test_a_model_that_knows_the_training_images_by_heart_gives_none_of_them_back(name: str, kind: str) -> None:
    """Whatever samples from it and whatever it predicts; and each image for itself."""
    scheduler = sampler(name, kind)
    plain, half, whole = (nearness(sampled(scheduler, kind, *more)) for more in ((), (repulsion(0.5),), (repulsion(),)))
    assert plain.max() < 0.5
    assert whole.min() > 1.2
    assert plain.mean() < half.mean() < whole.mean()
    alone = sampled(scheduler, kind, repulsion(), rows=2)
    torch.testing.assert_close(alone, sampled(scheduler, kind, repulsion())[:2], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["DDIMScheduler", "DDPMScheduler", "EulerDiscreteScheduler"])
def test_what_is_added_to_an_output_moves_the_clean_image_of_the_scheduler_by_the_push(name: str, kind: str) -> None:
    scheduler = sampler(name, kind)
    scheduler.set_timesteps(7)
    generator = torch.Generator().manual_seed(1)
    steering = repulsion()
    for step, t in enumerate(scheduler.timesteps):
        signal = signal_at(scheduler, t)
        # As a scheduler of noise ratios has it, where one is used.
        scale = signal**0.5 if "Euler" in name else 1
        clean = PRIVATE[:2] + 0.1 * torch.randn((2, *SHAPE), generator=generator)
        noise = torch.randn((2, *SHAPE), generator=generator)
        seen = signal**0.5 * clean + (1 - signal) ** 0.5 * noise
        x = seen / scale
        torch.testing.assert_close(scheduler.scale_model_input(x, t), seen, rtol=1e-3, atol=1e-3)
        v = signal**0.5 * noise - (1 - signal) ** 0.5 * clean
        output = {"epsilon": noise, "v_prediction": v, "sample": clean}[kind]
        torch.testing.assert_close(clean_of(kind, signal, seen, output), clean, rtol=1e-3, atol=1e-3)
        steered = steering.output(scheduler, x, t, output)
        push = steering.push(clean, *where_to(scheduler, t))
        moved = scheduler.step(steered, t, x).pred_original_sample - clean
        expected = torch.zeros_like(clean) if push is None else push
        torch.testing.assert_close(moved, expected, rtol=1e-2, atol=2e-2 * float(expected.abs().max()) + 1e-3)
        if step == len(scheduler.timesteps) - 1:
            assert push is not None


def test_the_whole_of_what_is_missing_leads_to_the_threshold() -> None:
    """Where there is no noise: 1.5 times half the mean distance to the neighbours, as that was before."""
    clean = PRIVATE[:4] + 0.05 * torch.ones(SHAPE)
    push = repulsion().push(clean, 1.0, 0.0)
    assert push is not None
    before = torch.cdist(clean.flatten(1), PRIVATE.flatten(1)).sort(1).values[:, :3]
    after = (clean + push - PRIVATE[:4]).flatten(1).norm(dim=1)
    torch.testing.assert_close(after, 1.5 * 0.5 * before.mean(1), rtol=1e-4, atol=1e-4)
    half = repulsion(0.5).push(clean, 1.0, 0.0)
    torch.testing.assert_close(half, push / 2)


def test_the_push_is_along_the_gradient_of_the_normalized_distance() -> None:
    """Of which the mean distance counts as a constant, as in the published code."""
    clean = (PRIVATE[:3] + 0.1).requires_grad_(True)
    nearest = torch.cdist(clean.flatten(1), PRIVATE.flatten(1)).sort(1).values[:, :3]
    (nearest[:, 0] / (0.5 * nearest.mean(1).detach())).sum().backward()
    assert clean.grad is not None
    push = repulsion().push(clean.detach(), 0.9, 0.1)
    assert push is not None
    cosine = torch.nn.functional.cosine_similarity(push.flatten(1), clean.grad.flatten(1))
    torch.testing.assert_close(cosine, torch.ones(3), rtol=1e-4, atol=1e-4)


def test_what_is_far_from_all_training_images_is_left_alone() -> None:
    far = torch.full((2, *SHAPE), 20.0)
    assert repulsion().push(far, 1.0, 0.0) is None
    both = torch.cat([far[:1], PRIVATE[:1] + 0.1])
    push = repulsion().push(both, 1.0, 0.0)
    assert push is not None
    assert not push[0].any()
    assert push[1].any()
    on_top = repulsion().push(PRIVATE[:1], 1.0, 0.0)
    assert on_top is not None
    assert not on_top.any(), "no way leads away from it, and no number is lost"


def test_where_there_is_almost_only_noise_nothing_is_near() -> None:
    assert repulsion().push(PRIVATE + 0.1, 1e-3, 1.0) is None


def test_the_signal_between_timesteps() -> None:
    scheduler = sampler("EulerDiscreteScheduler", "epsilon", use_karras_sigmas=True)
    scheduler.set_timesteps(10)
    assert any(float(t) != int(t) for t in scheduler.timesteps)
    for t, sigma in zip(scheduler.timesteps, scheduler.sigmas, strict=False):
        assert signal_at(scheduler, t) == pytest.approx(1 / (1 + float(sigma) ** 2), rel=1e-3)
    assert signal_at(scheduler, 10) == pytest.approx(float(scheduler.alphas_cumprod[10]))


def test_where_a_step_leads() -> None:
    scheduler = sampler("DDIMScheduler", "epsilon")
    scheduler.set_timesteps(4)
    assert scheduler.timesteps.tolist() == [750, 500, 250, 0]
    assert where_to(scheduler, 750) == (float(scheduler.alphas_cumprod[500]), 0.5)
    assert where_to(scheduler, 0) == (1.0, 0.0)


@pytest.mark.parametrize("kind", KINDS)
def test_how_much_an_output_changes_with_the_clean_image(kind: str) -> None:
    noisy, clean = torch.randn(2, 1, *SHAPE, generator=torch.Generator().manual_seed(0)).double()
    change = clean_of(kind, 0.3, noisy, clean + 0.5 * per_clean(kind, 0.3)) - clean_of(kind, 0.3, noisy, clean)
    torch.testing.assert_close(change, torch.full_like(change, 0.5))


def test_at_scale_0_it_is_plain_sampling(ward: Ward) -> None:
    assert not ward.regimen({"guidance": {"scale": 0}}).treatment.steerings
    scheduler = sampler("DDIMScheduler", "epsilon")
    assert torch.equal(sampled(scheduler, "epsilon", repulsion(0.0)), sampled(scheduler, "epsilon")), "bit by bit"


def test_it_steers_the_sampler_of_a_backbone_away_from_its_training_images(ward: Ward) -> None:
    case = situation(ward)
    (steering,) = ward.regimen({"guidance": {"late": 2.0, "early": 2.0}}).treatment.steerings
    noise, _ = starting_noise(ward.backbone, 6, 0)

    def nearest(*steerings: Any) -> Tensor:
        found = sample_latents(
            ward.backbone,
            case.data.states,
            case.data.empty_state,
            steps=3,
            guidance_scale=1.0,
            seed=0,
            steerings=steerings,
        )
        assert found.shape == noise.shape
        return torch.cdist(found.flatten(1), case.data.latents.flatten(1)).amin(1)

    assert (nearest(steering) > nearest()).all()


def test_near_duplicates_count_as_one(ward: Ward) -> None:
    train = ward.dataset.train
    assert distinct(train.take([0, 1, 0, 2, 1])).tolist() == [0, 1, 3]
    ward = dataclasses.replace(ward, dataset=dataclasses.replace(ward.dataset, train=train.take(np.zeros(3, int))))
    with pytest.raises(InputError, match="guidance with 3 training images, all copies of one"):
        ward.regimen({"guidance": {}})


@pytest.mark.parametrize("settings", [{"scale": 1.5}, {"scale": -0.1}, {"early": 0.0}, {"late": 2.5}, {"rate": "1"}])
def test_settings_out_of_range(settings: dict[str, object]) -> None:
    (name,) = settings
    with pytest.raises(InputError, match=rf"mitigation\.guidance\.{name}="):
        find_mitigations({"guidance": settings})
