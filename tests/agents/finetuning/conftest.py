"""The untrained backbone and the clinic of the environments' tests, images, and the settings of a short training."""

from __future__ import annotations

import pytest
import torch
from accelerate import Accelerator

from agents.finetuning.settings import EMASettings, TrainingSettings
from envs.backbones.latent import LatentBackbone
from envs.batches import TrainingSet
from envs.seeding import torch_generator
from tests.envs.conftest import backbone, cache_folder, loaded_backbone, pipeline_folder
from tests.envs.mitigations.conftest import clinic

__all__ = ["backbone", "cache_folder", "clinic", "loaded_backbone", "pipeline_folder"]

FEW = 8
"""Timesteps, so that a few steps meet each of them again."""


@pytest.fixture
def data(backbone: LatentBackbone) -> TrainingSet:
    """Five images."""
    latents = torch.randn(5, *backbone.latent_shape, generator=torch_generator(0, "latents"))
    states = backbone.encode_captions([f"image {i}" for i in range(5)])
    return TrainingSet(latents, states, backbone.encode_captions([""]))


@pytest.fixture
def training() -> TrainingSettings:
    """Six steps of four images."""
    return TrainingSettings(
        steps=6,
        batch_size=4,
        learning_rate=1e-2,
        warmup=1,
        decay="linear",
        weight_decay=0.1,
        caption_dropout=0.4,
        clip=1.0,
        accumulation=1,
        checkpoint_every=None,
        validate_every=None,
        keep=2,
    )


@pytest.fixture
def ema() -> EMASettings:
    """An average that differs from the last step."""
    return EMASettings(decay=0.9, power=0.75)


@pytest.fixture
def accelerator() -> Accelerator:
    """One process on the CPU."""
    return Accelerator(cpu=True)


@pytest.fixture
def few(backbone: LatentBackbone) -> LatentBackbone:
    """With so few timesteps that a few steps meet each of them again."""
    backbone.timesteps = FEW
    return backbone
