"""Pipelines on disk in the layouts that are found in the world, untrained and small."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from transformers import CLIPTokenizer

from envs.backbones.pixel import PixelBackbone, load_pixel_backbone

_SPECIAL = {"__type": "AddedToken", "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
# As the tokenizer of Stable Diffusion 1.5 has it.
_TOKENIZER = {
    "add_prefix_space": False,
    "bos_token": {**_SPECIAL, "content": "<|startoftext|>"},
    "do_lower_case": True,
    "eos_token": {**_SPECIAL, "content": "<|endoftext|>"},
    "errors": "replace",
    "model_max_length": 32,
    "pad_token": "<|endoftext|>",
    "tokenizer_class": "CLIPTokenizer",
    "unk_token": {**_SPECIAL, "content": "<|endoftext|>"},
}


@pytest.fixture(scope="session")
def stable_diffusion_folder(pipeline_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The layout of Stable Diffusion 1.5: byte-pair merges in files of their own, a safety checker in the index."""
    folder = tmp_path_factory.mktemp("layouts") / "stable-diffusion"
    shutil.copytree(pipeline_folder, folder)
    learned = json.loads((folder / "tokenizer" / "tokenizer.json").read_text())["model"]
    shutil.rmtree(folder / "tokenizer")
    (folder / "tokenizer").mkdir()
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in learned["merges"]]
    (folder / "tokenizer" / "vocab.json").write_text(json.dumps(learned["vocab"]))
    (folder / "tokenizer" / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    (folder / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(_TOKENIZER))
    index = json.loads((folder / "model_index.json").read_text())
    index["tokenizer"] = ["transformers", CLIPTokenizer.__name__]
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    index["feature_extractor"] = ["transformers", "CLIPImageProcessor"]
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def save_ddpm(folder: Path, channels: int = 3, **config: object) -> Path:
    """A `DDPMPipeline` of 16 px with attention, 8 groups."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = UNet2DModel(
            **{
                "sample_size": 16,
                "in_channels": channels,
                "out_channels": channels,
                "block_out_channels": (8, 16, 16),
                "layers_per_block": 1,
                "norm_num_groups": 4,
                "attention_head_dim": 8,
                "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
                "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
                **config,
            }
        )
        # Attention and time would hardly matter in a fresh network of this size.
        for parameter in unet.parameters():
            parameter.data += 0.02 * torch.randn_like(parameter)
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def ddpm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """RGB."""
    return save_ddpm(tmp_path_factory.mktemp("layouts") / "ddpm")


@pytest.fixture(scope="session")
def grey_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One channel."""
    return save_ddpm(tmp_path_factory.mktemp("layouts") / "grey", channels=1)


@pytest.fixture
def pixels(ddpm_folder: Path) -> PixelBackbone:
    return load_pixel_backbone(ddpm_folder, name="ddpm", device=torch.device("cpu"))


@pytest.fixture
def make_ddpm(tmp_path: Path) -> Callable[..., Path]:
    """Saves one with other settings of its UNet."""
    return lambda **config: save_ddpm(tmp_path / "ddpm", **config)
