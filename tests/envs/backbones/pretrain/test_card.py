from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio

from envs.backbones.latent import LatentBackbone
from envs.backbones.pretrain.card import draw_samples, fidelity, measure, sample, write_card
from envs.backbones.pretrain.stream import PublicImages
from envs.datasets.phantom import render
from rewards.features import embedding
from rewards.quality.kid import kid

TRAINING = {
    "photographs": 12,
    "autoencoder": {"steps": 1234, "batch_size": 16, "seconds": 11.0},
    "denoiser": {"steps": 5678, "batch_size": 32, "seconds": 22.0},
}


def decoding_to(images: NDArray[np.uint8]) -> Any:
    return SimpleNamespace(encode_images=lambda originals: None, decode_latents=lambda latents: images)


@pytest.fixture
def small(public: PublicImages) -> PublicImages:
    """At the tiny pipeline's 32 pixels."""
    return PublicImages(public.train[:, ::2, ::2], public.train_captions, public.heldout[:, ::2, ::2])


def test_fidelity_of_noisy_copies() -> None:
    images = render("radiograph", range(8), seed=0).images
    noise = np.random.default_rng(0).integers(-12, 13, images.shape)
    noisy = np.clip(images + noise * np.linspace(0.2, 1, 8)[:, None, None, None], 0, 255).astype(np.uint8)
    found = fidelity(decoding_to(noisy), images)
    psnr = [peak_signal_noise_ratio(one, other) for one, other in zip(images, noisy, strict=True)]
    assert found.images == 8
    assert found.psnr == pytest.approx(np.mean(psnr))
    assert found.psnr_worst == pytest.approx(np.quantile(psnr, 0.01))
    assert found.reidentified == 1


def test_fidelity_of_perfect_copies_is_finite() -> None:
    images = render("lesion", range(3), seed=0).images
    assert fidelity(decoding_to(images), images).psnr == pytest.approx(120)


def test_images_taken_for_another_are_not_reidentified() -> None:
    images = render("radiograph", range(4), seed=0).images
    decoded = images[[0, 1, 3, 2]]
    assert fidelity(decoding_to(decoded), images).reidentified == 0.5


def test_the_card_states_what_was_measured(
    backbone: LatentBackbone, small: PublicImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("envs.backbones.pretrain.card._STEPS", 2)
    measured = measure(backbone, small, {"some set": small.heldout})
    assert measured["autoencoder"] == {"some set": vars(fidelity(backbone, small.heldout))}
    lite0 = embedding("efficientnet_lite0")
    generated = sample(backbone, list(small.train_captions))
    for name, images in (("samples", generated), ("training X-rays", small.train[[0, 2, 5, 8, 11]])):
        features = [
            lite0(torch.from_numpy(np.ascontiguousarray(some.transpose(0, 3, 1, 2))))
            for some in (images, small.heldout)
        ]
        assert measured["kid"][name] == pytest.approx(kid(*features).value), name
    assert measured["kid"]["images"] == 12
    assert measured["parameters"]["denoiser"] == sum(p.numel() for p in backbone.denoiser.parameters())

    write_card(tmp_path, measured, TRAINING)
    assert json.loads((tmp_path / "card.json").read_text()) == {"training": TRAINING, "measured": measured}
    text = (tmp_path / "README.md").read_text()
    kept = measured["autoencoder"]["some set"]
    share = f"{100 * kept['reidentified']:.1f} %"
    assert f"| some set | 5 | {kept['psnr']:.1f} | {kept['psnr_worst']:.1f} | {share} |" in text
    assert "| autoencoder | 1234 | 16 | 11 |" in text
    assert "| denoiser and text encoder | 5678 | 32 | 22 |" in text
    assert f"{measured['kid']['samples']:.3f}" in text


def test_samples_are_drawn_in_four_rows_of_twelve(
    backbone: LatentBackbone, small: PublicImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("envs.backbones.pretrain.card._STEPS", 2)
    draw_samples(backbone, small, tmp_path / "samples.png")
    with Image.open(tmp_path / "samples.png") as picture:
        assert picture.size == (12 * 128, 4 * 128)
        pixels = np.asarray(picture)
    tiles = pixels.reshape(4, 128, 12, 128, 3).swapaxes(1, 2).reshape(48, -1)
    assert len(np.unique(tiles, axis=0)) == 48
