from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, EulerDiscreteScheduler, PNDMScheduler
from numpy.typing import NDArray
from torch import Tensor

from envs.backbones import EMBEDDED
from envs.backbones.latent import LatentBackbone, load_latent_backbone
from envs.generate import sample_latents, starting_noise
from envs.probes import LatentDenoiser, frozen, invert_images, noise_magnitudes, reproduction_similarity
from rewards.errors import InputError
from rewards.inversion import InversionSettings, Similarity, pixel_similarity

# diffusers' sigma schedulers hand tensors to numpy in a way that numpy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

KINDS = ("epsilon", "v_prediction", "sample")
CAPTIONS = ["a lesion", "chest radiograph phantom, nodule", "brown nevus"]
QUICK = InversionSettings(steps=4, check_every=2, batch=2, samples=3, sampling_steps=3)
ALWAYS, NEVER = Similarity(pixel_similarity, -math.inf), Similarity(pixel_similarity, 1)


@pytest.fixture
def images() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)


def predicts(backbone: LatentBackbone, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The backbone with its output understood otherwise; only then is a schedule without zero terminal signal used."""
    config = backbone.scheduler.config
    if kind != config.prediction_type:
        other = DDIMScheduler.from_config(config, prediction_type=kind, rescale_betas_zero_snr=False)
        monkeypatch.setattr(backbone, "scheduler", other)
        monkeypatch.setattr(backbone, "_forward_process", DDPMScheduler.from_config(other.config))


@pytest.mark.parametrize("kind", KINDS)
def test_a_perfect_prediction_gives_the_image_back(
    backbone: LatentBackbone, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    predicts(backbone, kind, monkeypatch)
    denoiser = LatentDenoiser(backbone)
    t = torch.arange(0, len(denoiser.signal), 70)
    latents, noise = torch.randn((2, len(t), *backbone.latent_shape), generator=torch.Generator().manual_seed(0))
    noisy, output = backbone.noised(latents, noise, t)
    by_hand = denoiser.signal[t].sqrt().view(-1, 1, 1, 1) * latents
    by_hand += (1 - denoiser.signal[t]).sqrt().view(-1, 1, 1, 1) * noise
    torch.testing.assert_close(by_hand, noisy)
    monkeypatch.setattr(backbone, "predict", lambda noisy, t, states: output)
    found = denoiser.clean(noisy, t, torch.zeros(len(t), 1, 1))
    torch.testing.assert_close(found, latents, rtol=1e-3, atol=1e-4)


def test_only_a_model_of_noise_leaves_timesteps_out(backbone: LatentBackbone, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(LatentDenoiser(backbone).signal) == backbone.timesteps
    predicts(backbone, "epsilon", monkeypatch)
    signal = LatentDenoiser(backbone).signal
    assert 0.5 * backbone.timesteps < len(signal) < backbone.timesteps
    assert signal.min() >= 0.01


def test_samples_are_those_of_the_backbones_ddim(backbone: LatentBackbone) -> None:
    states, empty = backbone.encode_captions(CAPTIONS), backbone.encode_captions([""])
    expected = sample_latents(backbone, states, empty, steps=4, guidance_scale=1.0, seed=5)
    noise, _ = starting_noise(backbone, len(CAPTIONS), 5)
    torch.testing.assert_close(LatentDenoiser(backbone).sample(noise, states, 4), expected)


@pytest.mark.parametrize("scheduler", [DDPMScheduler, EulerDiscreteScheduler, PNDMScheduler])
def test_whatever_the_backbones_sampler_this_one_draws_nothing(
    backbone: LatentBackbone, monkeypatch: pytest.MonkeyPatch, scheduler: Any
) -> None:
    config = dict(backbone.scheduler.config) | {"rescale_betas_zero_snr": False}
    monkeypatch.setattr(backbone, "scheduler", scheduler.from_config(config))
    states, noise = backbone.encode_captions(CAPTIONS), starting_noise(backbone, 3, 0)[0]
    first = LatentDenoiser(backbone).sample(noise, states, 4)
    assert first.isfinite().all()
    torch.manual_seed(99)
    assert torch.equal(LatentDenoiser(backbone).sample(noise, states, 4), first)


def test_a_prompt_of_single_words_is_the_caption_of_these_words(backbone: LatentBackbone) -> None:
    denoiser = LatentDenoiser(backbone)
    words, vocabulary = denoiser.prompt_shape
    ids = backbone.tokenizer(CAPTIONS[1], padding="max_length", return_tensors="pt").input_ids[0]
    assert words == len(ids) - 2
    sure = torch.nn.functional.one_hot(ids[1:-1], vocabulary).float().requires_grad_()
    states = denoiser.encode_prompt(sure)
    torch.testing.assert_close(states, backbone.encode_captions(CAPTIONS[1:2]))
    (gradient,) = torch.autograd.grad(states.square().sum(), sure)
    assert (gradient.abs().sum(1) > 0).all()
    torch.testing.assert_close(backbone.encode_captions(CAPTIONS[1:2]), states.detach())  # nothing is left behind


def everything(backbone: LatentBackbone) -> dict[str, Any]:
    parts = {"unet": backbone.denoiser, "text": backbone.text_encoder, "vae": backbone.autoencoder}
    found: dict[str, Any] = {}
    for name, part in parts.items():
        found |= {f"{name}.{key}": tensor.clone() for key, tensor in part.state_dict().items()}
        found |= {f"{name}.{key}?": (p.requires_grad, p.grad) for key, p in part.named_parameters()}
        found |= {f"{name}.{key}!": (m.training, len(m._forward_hooks)) for key, m in part.named_modules()}
    return found


def assert_same(found: dict[str, Any], before: dict[str, Any]) -> None:
    assert found.keys() == before.keys()
    for name, value in found.items():
        assert torch.equal(value, before[name]) if isinstance(value, Tensor) else value == before[name], name


@pytest.mark.parametrize("prompt", ["caption", "soft"])
def test_the_backbone_is_as_before_also_after_an_error(
    backbone: LatentBackbone, images: NDArray[np.uint8], prompt: Any
) -> None:
    backbone.denoiser.conv_in.weight.requires_grad_(True)
    backbone.denoiser.mid_block.train()
    learning: list[bool] = []

    def broken(target: Tensor, samples: Tensor) -> Tensor:
        learning.extend(p.requires_grad for p in backbone.denoiser.parameters())
        learning.extend(m.training for m in backbone.denoiser.modules())
        raise RuntimeError("the similarity broke")

    before = everything(backbone)
    try:
        settings = replace(QUICK, prompt=prompt)
        invert_images(backbone, images[:1], CAPTIONS[:1], NEVER, settings)
        assert_same(everything(backbone), before)
        with pytest.raises(RuntimeError, match="similarity broke"):
            invert_images(backbone, images[:1], CAPTIONS[:1], Similarity(broken, 0), settings)
        assert learning
        assert not any(learning)
        assert_same(everything(backbone), before)
        noise_magnitudes(backbone, CAPTIONS[:1], steps=2, guidance_scale=1.0, seed=0)
        assert_same(everything(backbone), before)
    finally:
        backbone.denoiser.eval()


def test_inversions_are_reproducible_in_any_order(backbone: LatentBackbone, images: NDArray[np.uint8]) -> None:
    first = invert_images(backbone, images, CAPTIONS, ALWAYS, QUICK)
    assert all(r.success and r.steps == 2 and 0 < r.value < math.inf for r in first)
    torch.manual_seed(99)
    assert invert_images(backbone, images, CAPTIONS, ALWAYS, QUICK) == first
    back = invert_images(backbone, images[::-1], CAPTIONS[::-1], ALWAYS, replace(QUICK, together=2))
    assert [r.value for r in back[::-1]] == pytest.approx([r.value for r in first], rel=1e-3)
    assert len({round(r.value, 6) for r in first}) == 3
    missed = invert_images(backbone, images, CAPTIONS, NEVER, QUICK)
    assert {(r.value, r.success, r.steps) for r in missed} == {(math.inf, False, 4)}


def test_captions_matter_unless_the_prompt_is_learnt(backbone: LatentBackbone, images: NDArray[np.uint8]) -> None:
    learnt = replace(QUICK, prompt="soft")
    for settings, same in ((QUICK, False), (learnt, True)):
        one, other = (invert_images(backbone, images[:1], [c], ALWAYS, settings)[0].value for c in CAPTIONS[:2])
        assert (one == other) == same


@pytest.mark.parametrize("prompt", ["caption", "soft"])
def test_the_embedded_backbone_can_be_inverted(prompt: Any) -> None:
    embedded = load_latent_backbone(EMBEDDED, name="embedded", device=torch.device("cpu"))
    grey = np.full((1, embedded.image_size, embedded.image_size, 3), 128, dtype=np.uint8)
    settings = replace(QUICK, steps=2, prompt=prompt)
    found = invert_images(embedded, grey, ["chest radiograph"], ALWAYS, settings)[0]
    assert found.success
    assert 0 < found.value < 0.1
    assert -1 <= found.similarity < 0


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_model_can_be_inverted(
    backbone: LatentBackbone, images: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    predicts(backbone, kind, monkeypatch)
    assert 0 < invert_images(backbone, images[:1], [""], ALWAYS, QUICK)[0].value < 1


def test_nothing_to_ask_and_bad_input(backbone: LatentBackbone, images: NDArray[np.uint8]) -> None:
    assert invert_images(backbone, images[:0], [], ALWAYS, QUICK) == []
    assert noise_magnitudes(backbone, [], steps=2, guidance_scale=1.0, seed=0).shape == (0,)
    with pytest.raises(InputError, match="3 images and 1 captions"):
        invert_images(backbone, images, [""], ALWAYS, QUICK)
    with pytest.raises(InputError, match=r"inversion.sampling_steps=1001"):
        invert_images(backbone, images[:1], [""], ALWAYS, replace(QUICK, sampling_steps=1001))
    with pytest.raises(InputError, match=r"noise_magnitude.steps=0"):
        noise_magnitudes(backbone, [""], steps=0, guidance_scale=1.0, seed=0)


def test_reproduction_is_judged_as_the_autoencoder_returns_images(
    backbone: LatentBackbone, images: NDArray[np.uint8]
) -> None:
    similarity = reproduction_similarity(backbone, images[:2], images[2:])
    returned = backbone.decode_latents(backbone.encode_images(images)).astype(float) / 255
    nearest = min(float(np.sqrt(((returned[2] - returned[i]) ** 2).mean())) for i in (0, 1))
    assert similarity.threshold == pytest.approx(-nearest)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("kind", KINDS)
def test_noise_magnitudes_equal_a_loop_that_turns_outputs_into_noise(
    backbone: LatentBackbone, monkeypatch: pytest.MonkeyPatch, kind: str, guidance: float
) -> None:
    predicts(backbone, kind, monkeypatch)
    found = noise_magnitudes(backbone, CAPTIONS, steps=4, guidance_scale=guidance, seed=7)
    scheduler, empty = copy.deepcopy(backbone.scheduler), backbone.encode_captions([""])

    def noise_of(output: Tensor, x: Tensor, t: int) -> Tensor:
        signal: Tensor = scheduler.alphas_cumprod[t]
        if kind == "v_prediction":
            return signal.sqrt() * output + (1 - signal).sqrt() * x
        return output if kind == "epsilon" else (x - signal.sqrt() * output) / (1 - signal).sqrt()

    for i, caption in enumerate(CAPTIONS):
        states, x, norms = backbone.encode_captions([caption]), starting_noise(backbone, 3, 7)[0][i : i + 1], []
        scheduler.set_timesteps(4)
        for t in scheduler.timesteps:
            with torch.no_grad():
                with_caption, without = backbone.predict(x, t, states), backbone.predict(x, t, empty)
            norms.append(float((noise_of(with_caption, x, int(t)) - noise_of(without, x, int(t))).norm()))
            x = scheduler.step(without + guidance * (with_caption - without), t, x).prev_sample
        assert float(found[i]) == pytest.approx(np.mean(norms) / x.numel() ** 0.5, rel=2e-3)


def test_noise_magnitudes_of_captions(backbone: LatentBackbone, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, int]] = []
    first = noise_magnitudes(
        backbone, [*CAPTIONS, ""], steps=3, guidance_scale=2.0, seed=0, progress=lambda *now: told.append(now)
    )
    assert told == [(4, 4)]
    assert first.shape == (4,)
    assert (first[:3] > 1e-4).all()
    assert first[3] == pytest.approx(0, abs=1e-6), "the empty caption pulls at nothing"
    torch.manual_seed(99)
    assert torch.equal(noise_magnitudes(backbone, [*CAPTIONS, ""], steps=3, guidance_scale=2.0, seed=0), first)
    monkeypatch.setattr("envs.probes._CHUNK", 3)
    monkeypatch.setattr("envs.generate._CHUNK", 2)
    torch.testing.assert_close(
        noise_magnitudes(backbone, [*CAPTIONS, ""], steps=3, guidance_scale=2.0, seed=0), first, rtol=1e-3, atol=1e-5
    )


def test_frozen_restores_what_it_found() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.Linear(1, 1))
    module[0].weight.requires_grad_(False)
    module[1].eval()
    with frozen(module):
        assert not any(p.requires_grad for p in module.parameters())
        assert not any(m.training for m in module.modules())
    assert [p.requires_grad for p in module.parameters()] == [False, True, True, True]
    assert [m.training for m in module.modules()] == [True, True, False]
