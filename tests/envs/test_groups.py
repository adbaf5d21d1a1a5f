from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from torch import nn

from envs.backbones.latent import LatentBackbone
from envs.backbones.pretrain.denoiser import build_denoiser
from envs.groups import GROUP_FEATURES, KINDS, SCHEMES, LayerGroup, feature_matrix, find_groups
from rewards.errors import InputError

SMALL: dict[str, Any] = {"sample_size": 8, "block_out_channels": (8, 16, 16), "norm_num_groups": 4}
UNCONDITIONAL = {
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
}

UNETS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "embedded": (build_denoiser, 8),
    "Stable Diffusion 1.5": (
        lambda: UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8),
        10,
    ),
    "unconditional": (lambda: UNet2DModel(**SMALL, **UNCONDITIONAL), 8),
    "with classes": (lambda: UNet2DModel(**SMALL, **UNCONDITIONAL, num_class_embeds=3), 8),
    "with a parameter in its time projection": (
        lambda: UNet2DModel(**SMALL, **UNCONDITIONAL, time_embedding_type="fourier"),
        8,
    ),
    "with embeddings of text and size": (
        lambda: UNet2DConditionModel(
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=64,
            encoder_hid_dim=32,
            cross_attention_dim=16,
        ),
        10,
    ),
    "without a mid block": (lambda: UNet2DConditionModel(mid_block_type=None, cross_attention_dim=16), 9),
}


def on_meta(name: str) -> nn.Module:
    """Shapes without numbers: even the largest takes no memory."""
    with torch.device("meta"):
        return UNETS[name][0]()


@pytest.mark.parametrize("name", UNETS)
def test_blocks_are_a_partition(name: str) -> None:
    denoiser = on_meta(name)
    groups = find_groups(denoiser, "blocks")
    assert len(groups) == UNETS[name][1]
    assert len({group.name for group in groups}) == len(groups)
    covered = [entry for group in groups for entry in group.parameters_in(denoiser)]
    assert sorted(n for n, _ in covered) == sorted(n for n, _ in denoiser.named_parameters())
    assert all(denoiser.get_parameter(n) is parameter for n, parameter in covered)
    for group in groups:
        assert group.parameters == sum(p.numel() for _, p in group.parameters_in(denoiser)) > 0


def test_stable_diffusion_has_the_published_number_of_parameters() -> None:
    assert sum(group.parameters for group in find_groups(on_meta("Stable Diffusion 1.5"), "blocks")) == 859_520_964


def test_groups_of_the_embedded_backbone() -> None:
    groups = find_groups(on_meta("embedded"), "blocks")
    assert [(g.name, g.kind, g.resolution, g.channels) for g in groups] == [
        ("input", "input", 1.0, 32),
        ("down_blocks.0", "down", 1.0, 32),
        ("down_blocks.1", "down", 0.5, 64),
        ("down_blocks.2", "down", 0.25, 64),
        ("mid_block", "mid", 0.25, 64),
        ("up_blocks.0", "up", 0.25, 64),
        ("up_blocks.1", "up", 0.5, 64),
        ("up_blocks.2", "up", 1.0, 32),
    ]
    assert [g.depth for g in groups] == [i / 7 for i in range(8)]


def test_order_and_resolution_are_those_of_a_forward_pass(backbone: LatentBackbone) -> None:
    denoiser = backbone.denoiser
    groups = find_groups(denoiser, "blocks")
    owner = {name: i for i, group in enumerate(groups) for name, _ in group.parameters_in(denoiser)}
    met: list[int] = []
    heights: dict[int, set[int]] = {}

    def watch(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            met.append(owner[name])
            if isinstance(module, nn.GroupNorm) and output.ndim == 4:
                heights.setdefault(owner[name], set()).add(output.shape[-2])

        return hook

    handles = [
        module.register_forward_hook(watch(f"{prefix}.{next(iter(dict(module.named_parameters())))}"))
        for prefix, module in denoiser.named_modules()
        if isinstance(module, (nn.Conv2d, nn.Linear, nn.GroupNorm, nn.LayerNorm))
    ]
    backbone.predict(torch.zeros(1, *backbone.latent_shape), 0, backbone.encode_captions([""]))
    for handle in handles:
        handle.remove()
    assert met == sorted(met)
    assert set(met) == set(range(len(groups)))
    size = backbone.latent_shape[-1]
    assert heights == {i: {int(g.resolution * size)} for i, g in enumerate(groups) if g.kind != "input"}


@pytest.mark.parametrize("name", UNETS)
def test_features_of_groups(name: str) -> None:
    groups = find_groups(on_meta(name), "blocks")
    matrix = feature_matrix(groups)
    assert matrix.shape == (len(groups), len(GROUP_FEATURES))
    assert matrix.dtype == np.float32
    assert matrix.min() >= 0
    assert matrix.max() <= 1
    column = dict(zip(GROUP_FEATURES, matrix.T, strict=True))
    assert column["share"].sum() == pytest.approx(1)
    for kind in KINDS:
        assert column[f"kind_{kind}"].tolist() == [group.kind == kind for group in groups]
    channels = 10 ** (4 * column["log_channels"].astype(float))
    np.testing.assert_allclose(channels, [g.channels for g in groups], rtol=1e-4)
    parameters = 10 ** (9 * column["log_parameters"].astype(float))
    np.testing.assert_allclose(parameters, [g.parameters for g in groups], rtol=1e-4)


def test_unknown_scheme_and_no_unet() -> None:
    with pytest.raises(InputError, match="groups=layers is no group scheme — choose among blocks"):
        find_groups(on_meta("embedded"), "layers")
    with pytest.raises(InputError, match="a Linear has no UNet blocks"):
        find_groups(nn.Linear(1, 1), "blocks")


def test_a_scheme_that_leaves_parameters_out_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def without_mid(denoiser: nn.Module) -> tuple[LayerGroup, ...]:
        return tuple(group for group in blocks(denoiser) if group.kind != "mid")

    blocks = SCHEMES["blocks"]
    monkeypatch.setitem(SCHEMES, "broken", without_mid)
    with pytest.raises(ValueError, match="scheme broken covers"):
        find_groups(on_meta("embedded"), "broken")
