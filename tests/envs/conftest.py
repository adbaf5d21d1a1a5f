"""A Stable Diffusion pipeline of the embedded backbone's layout, untrained and small enough for unit tests."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel

from envs.backbones.latent import LatentBackbone, load_latent_backbone
from envs.backbones.pretrain.autoencoder import build_autoencoder
from envs.backbones.pretrain.denoiser import Denoiser, build_denoiser
from envs.backbones.pretrain.pipeline import save_pipeline
from envs.backbones.pretrain.text import build_text_encoder, build_tokenizer, phantom_captions

CPU = torch.device("cpu")


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where tests keep decompositions, instead of the user's own cache."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEMCONTROL_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def pipeline_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pipeline's folder; nobody writes into it. Its images have 32 pixels, its denoiser 8 groups."""
    folder = tmp_path_factory.mktemp("pipeline")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tokenizer = build_tokenizer(phantom_captions())
        small = {"sample_size": 8, "block_out_channels": (8, 16, 16), "norm_num_groups": 4}
        unet = UNet2DConditionModel.from_config(build_denoiser().config, **small)
        save_pipeline(build_autoencoder(), tokenizer, Denoiser(unet, build_text_encoder(tokenizer)), folder)
    return folder


@pytest.fixture(scope="session")
def loaded_backbone(pipeline_folder: Path) -> LatentBackbone:
    """Loaded once a session; tests take `backbone`."""
    return load_latent_backbone(pipeline_folder, name="tiny", device=CPU)


@pytest.fixture
def backbone(loaded_backbone: LatentBackbone) -> LatentBackbone:
    """The pipeline, frozen and as it was saved, with a denoiser of its own: methods add modules to it."""
    own = copy.copy(loaded_backbone)
    own.denoiser = copy.deepcopy(loaded_backbone.denoiser)
    return own
