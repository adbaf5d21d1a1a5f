"""Numbers of parameters on the denoiser of Stable Diffusion 1.5, which nobody needs to download to count."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import nn

from envs.groups import find_groups
from envs.methods import find_method

TOTAL = 859_520_964


@pytest.fixture
def stable_diffusion() -> nn.Module:
    with torch.device("meta"):
        unet: nn.Module = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
    return unet.requires_grad_(False)


@pytest.mark.parametrize("scheme", ["blocks", "block_kinds", "transformers", "memcontrol13"])
@pytest.mark.parametrize(
    ("method", "settings", "expected"),
    [
        ("full", {}, TOTAL),
        ("svdiff", {}, 222_805),
        ("attention", {"scope": "transformers"}, 267_239_360),
    ],
)
def test_published_counts(
    stable_diffusion: nn.Module, scheme: str, method: str, settings: dict[str, str], expected: int
) -> None:
    assert sum(p.numel() for p in stable_diffusion.parameters()) == TOTAL
    groups = find_groups(stable_diffusion, scheme)
    assert sum(group.parameters for group in groups) == TOTAL
    attachment = find_method(method, settings)(stable_diffusion, groups)
    n = len(groups)
    assert sum(p.numel() for p in attachment.selected((True,) * n).values()) == expected
    assert sum(p.numel() for p in attachment.selected((False,) * n).values()) == 0


@pytest.mark.parametrize(("scheme", "toggles"), [("transformers", 17), ("memcontrol13", 14)])
def test_toggles_of_transformers(stable_diffusion: nn.Module, scheme: str, toggles: int) -> None:
    groups = find_groups(stable_diffusion, scheme)
    assert len(groups) == toggles
    assert groups[0].name == "rest"
    parts = [group.part for group in groups[1:]]
    assert parts == sorted(parts, key=("down", "mid", "up").index)
    modules = [name for group in groups for name in group.modules]
    assert len(set(modules)) == len(modules)


def test_kinds_of_layers(stable_diffusion: nn.Module) -> None:
    groups = find_groups(stable_diffusion, "block_kinds")
    assert len(groups) == 33
    counts = Counter[str]()
    for group in groups:
        counts[group.name.rpartition(" ")[2]] += group.parameters
    # Told by their names in Stable Diffusion, independently of classes.
    expected = Counter[str]()
    for name, parameter in stable_diffusion.named_parameters():
        if any(name.startswith(stem) for stem in ("conv_in", "time_embedding")):
            kind = "input"
        elif "norm" in name.split(".")[-2]:
            kind = "norm"
        elif ".ff." in name:
            kind = "feed-forward"
        else:
            kind = "attention" if ".attentions." in name else "resnet"
        expected[kind] += parameter.numel()
    assert counts == expected
    assert dict(counts) == {
        "input": 2_062_400,
        "attention": 118_342_400,
        "feed-forward": 148_797_120,
        "resnet": 590_118_724,
        "norm": 200_320,
    }


def test_the_gated_part_of_the_published_spectral_shifts(stable_diffusion: nn.Module) -> None:
    """97,319 of its shifts are gated by 13 toggles; the others, 125,486, always train there and are ``rest`` here."""
    attachment = find_method("svdiff")(stable_diffusion, find_groups(stable_diffusion, "memcontrol13"))
    rest, *gated = [sum(p.numel() for p in group.values()) for group in attachment.parameters]
    assert (rest, sum(gated)) == (125_486, 97_319)
