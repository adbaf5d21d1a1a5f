from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from envs.backbones.pretrain.autoencoder import (
    AutoencoderSettings,
    autoencoder_loss,
    build_autoencoder,
    schedule,
    train_autoencoder,
    update_average,
)
from envs.backbones.pretrain.stream import PublicImages, Stream

SETTINGS = AutoencoderSettings(steps=4, batch_size=2, warmup=2, save_every=2)


def trained(public: PublicImages, folder: Path, **changes: Any) -> dict[str, Tensor]:
    stream = Stream(public, colour=0.5, zoom=1.2)
    state: dict[str, Tensor] = train_autoencoder(stream, dataclasses.replace(SETTINGS, **changes), folder).state_dict()
    return state


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.mark.parametrize("stop", [1, 3])
def test_an_interrupted_training_equals_an_uninterrupted_one(
    public: PublicImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    """Before the first checkpoint, and after it."""
    expected = trained(public, tmp_path / "whole")
    steps = itertools.count(1)

    def interrupted(*args: Any) -> None:
        if next(steps) == stop:
            raise KeyboardInterrupt
        update_average(*args)

    with monkeypatch.context() as patch:
        patch.setattr("envs.backbones.pretrain.autoencoder.update_average", interrupted)
        with pytest.raises(KeyboardInterrupt):
            trained(public, tmp_path / "parts")
    torch.manual_seed(99)
    torch.rand(1)
    assert equal(trained(public, tmp_path / "parts"), expected)
    assert equal(trained(public, tmp_path / "parts"), expected), "a finished training is taken from its checkpoint"
    assert not equal(trained(public, tmp_path / "another seed", seed=1), expected)


def test_the_latents_are_a_quarter_of_the_image(public: PublicImages) -> None:
    model = build_autoencoder()
    images, _ = Stream(public).batch(0, 2)
    latents = model.encode(images).latent_dist.mode()
    assert latents.shape == (2, 4, 16, 16)
    assert model.decode(latents).sample.shape == images.shape
    assert sum(parameter.numel() for parameter in model.parameters()) == pytest.approx(0.7e6, rel=0.1)


def test_the_loss_adds_pixels_edges_and_rate() -> None:
    settings = AutoencoderSettings(edge_weight=0.5, kl_weight=0.1)
    images = torch.zeros(1, 3, 4, 4)
    decoded = images.clone()
    decoded[0, 0, 1, 1] = 0.4  # one number of 48, four edges: 2 of 36 in each direction
    total, _ = autoencoder_loss(decoded, images, torch.tensor([8.0]), settings)
    pixels, edges, rate = 0.4 / 48, 2 * 0.8 / 36, 8.0 / 4
    assert total.item() == pytest.approx(pixels + 0.5 * edges + 0.1 * rate)
    _, text = autoencoder_loss(torch.full_like(images, 0.2), images, torch.tensor([0.0]), settings)
    assert text.startswith("psnr 20.00 "), "0.2 of a range of 2 is a tenth"


def test_the_learning_rate_rises_and_falls() -> None:
    rates = [schedule(step, 10, 110) for step in range(111)]
    assert rates[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert rates[10] == 1
    assert rates[60] == pytest.approx(0.51)
    assert rates[110] == pytest.approx(0.02)
    assert sorted(rates[10:], reverse=True) == rates[10:]


def test_the_average_moves_towards_the_model() -> None:
    average, model = nn.Linear(1, 1), nn.Linear(1, 1)
    with torch.no_grad():
        for parameter, value in ((average.weight, 1.0), (average.bias, 2.0), (model.weight, 3.0), (model.bias, 4.0)):
            parameter.fill_(value)
    update_average(average, model, 0.75)
    assert (average.weight.item(), average.bias.item()) == (1.5, 2.5)
    assert (model.weight.item(), model.bias.item()) == (3, 4)
