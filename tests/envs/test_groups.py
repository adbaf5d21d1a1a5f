from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from torch import nn

from envs.backbones.latent import LatentBackbone
from envs.backbones.pretrain.denoiser import build_denoiser
from envs.groups import KINDS, NORMS, SCHEMES, LayerGroup, find_groups
from envs.task import parse_mask
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
@pytest.mark.parametrize("scheme", ["blocks", "block_kinds"])
def test_groups_are_a_partition(name: str, scheme: str) -> None:
    denoiser = on_meta(name)
    groups = find_groups(denoiser, scheme)
    assert scheme != "blocks" or len(groups) == UNETS[name][1]
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
    assert [(g.name, g.part, g.resolution, g.channels) for g in groups] == [
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
    assert heights == {i: {int(g.resolution * size)} for i, g in enumerate(groups) if g.part != "input"}


@pytest.mark.parametrize("name", UNETS)
def test_kinds_are_shares_of_the_parameters(name: str) -> None:
    denoiser = on_meta(name)
    for scheme in ("blocks", "block_kinds"):
        groups = find_groups(denoiser, scheme)
        for group in groups:
            assert sum(group.kinds) == pytest.approx(1)
            if scheme == "block_kinds" and group.part != "input":
                kind = KINDS[group.kinds.index(1)]
                assert group.name.endswith(" " + kind.replace("_", "-"))
        norms = sum(group.parameters * group.kinds[KINDS.index("norm")] for group in groups)
        assert norms == pytest.approx(
            sum(p.numel() for m in denoiser.modules() if isinstance(m, NORMS) for p in m.parameters())
        )


def test_kinds_of_the_embedded_backbone() -> None:
    groups = find_groups(on_meta("embedded"), "block_kinds")
    every = ["attention", "feed-forward", "resnet", "norm"]
    blocks = {
        "down_blocks.0": ["resnet", "norm"],
        "down_blocks.1": every,
        "down_blocks.2": every,
        "mid_block": every,
        "up_blocks.0": every,
        "up_blocks.1": every,
        "up_blocks.2": ["resnet", "norm"],
    }
    names = [f"{block} {kind}" for block, kinds in blocks.items() for kind in kinds]
    assert [group.name for group in groups] == ["input", *names]
    blocks_by_name = {group.name: group for group in find_groups(on_meta("embedded"), "blocks")}
    for group in groups:
        block = blocks_by_name[group.name.partition(" ")[0]]
        assert (group.part, group.depth, group.resolution, group.channels) == (
            block.part,
            block.depth,
            block.resolution,
            block.channels,
        )


def test_where_layers_go_in_an_unconditional_unet() -> None:
    denoiser = on_meta("unconditional")
    groups = find_groups(denoiser, "block_kinds")
    owner = {name: group.name for group in groups for name, _ in group.parameters_in(denoiser)}
    assert owner["down_blocks.0.downsamplers.0.conv.weight"] == "down_blocks.0 resnet"
    assert owner["down_blocks.0.resnets.0.time_emb_proj.weight"] == "down_blocks.0 resnet"
    assert owner["down_blocks.0.resnets.0.norm1.weight"] == "down_blocks.0 norm"
    assert owner["down_blocks.1.attentions.0.to_q.weight"] == "down_blocks.1 attention"
    assert owner["down_blocks.1.attentions.0.group_norm.weight"] == "down_blocks.1 norm"
    assert owner["conv_norm_out.weight"] == "up_blocks.2 norm"
    assert owner["conv_out.weight"] == "up_blocks.2 resnet"
    assert owner["time_embedding.linear_1.weight"] == owner["conv_in.bias"] == "input"
    assert not any(name.endswith("feed-forward") for name in owner.values())


def test_modules_inside_an_excluded_one_can_belong_to_the_group_again() -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(1, 1), nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))))
    group = LayerGroup("some", ("0", "0.1.1"), "down", 0, 1, 1, 4, excluded=("0.1",))
    assert [name for name, _ in group.parameters_in(model)] == ["0.0.weight", "0.0.bias", "0.1.1.weight", "0.1.1.bias"]


def test_toggles_of_kinds_go_by_name() -> None:
    names = [group.name for group in find_groups(on_meta("embedded"), "block_kinds")]
    mask = parse_mask("down_blocks.1 attention, mid_block norm", names)
    assert [name for name, on in zip(names, mask, strict=True) if on] == ["down_blocks.1 attention", "mid_block norm"]


def test_unknown_scheme_and_no_unet() -> None:
    with pytest.raises(InputError, match="groups=layers is no group scheme — choose among block_kinds, blocks"):
        find_groups(on_meta("embedded"), "layers")
    with pytest.raises(InputError, match="a Linear has no UNet blocks"):
        find_groups(nn.Linear(1, 1), "blocks")


def test_a_scheme_that_leaves_parameters_out_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def without_mid(denoiser: nn.Module) -> tuple[LayerGroup, ...]:
        return tuple(group for group in blocks(denoiser) if group.part != "mid")

    blocks = SCHEMES["blocks"]
    monkeypatch.setitem(SCHEMES, "broken", without_mid)
    with pytest.raises(ValueError, match="scheme broken covers"):
        find_groups(on_meta("embedded"), "broken")
