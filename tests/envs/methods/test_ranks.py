"""Ranks of LoRA as toggles, and what becomes of them in a file."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn

from envs.backbones.latent import LatentBackbone
from envs.batches import TrainingSet
from envs.finetune import finetune
from envs.groups import find_groups
from envs.methods import Attachment, find_method
from envs.methods.lora import fold_adapters
from envs.seeding import torch_generator
from envs.task import InnerBudget, Mask, Schedule, parse_mask
from rewards.errors import InputError

BUDGET = InnerBudget(steps=3, batch_size=4, learning_rate=1e-2, images=1, sampling_steps=1)


def attach(backbone: LatentBackbone, **settings: Any) -> Attachment:
    return find_method("lora", settings)(backbone.denoiser, find_groups(backbone.denoiser, "blocks"))


def names(backbone: LatentBackbone, *ranks: int) -> list[str]:
    groups = find_groups(backbone.denoiser, "blocks")
    return [toggle.name for toggle in find_method("lora", {"ranks": ranks}).toggles(groups)]


def count(attachment: Attachment, mask: Mask | None = None) -> int:
    chosen = attachment.selected(mask or (True,) * len(attachment.parameters))
    return sum(parameter.numel() for parameter in chosen.values())


@pytest.fixture
def data(backbone: LatentBackbone) -> TrainingSet:
    latents = torch.randn(4, *backbone.latent_shape, generator=torch_generator(0, "latents"))
    states = backbone.encode_captions([f"image {i}" for i in range(4)])
    return TrainingSet(latents, states, backbone.encode_captions([""]))


@torch.no_grad()
def output(backbone: LatentBackbone, data: TrainingSet) -> Tensor:
    return backbone.predict(data.latents, torch.arange(4) * 200, data.states)


def train(backbone: LatentBackbone, attachment: Attachment, data: TrainingSet, chosen: str) -> Mask:
    mask = parse_mask(chosen, names(backbone, 1, 2, 4))
    assert finetune(backbone, attachment, Schedule.constant(mask), data, BUDGET, 0).steps == BUDGET.steps
    return mask


def test_toggles_have_names(backbone: LatentBackbone) -> None:
    assert names(backbone, 2, 4)[:4] == ["input rank 2", "input rank 4", "down_blocks.0 rank 2", "down_blocks.0 rank 4"]
    assert names(backbone, 2, 1, 2)[:3] == ["input rank 2", "input rank 1", "input rank 2 no 2"]
    groups = find_groups(backbone.denoiser, "blocks")
    assert find_method("lora").toggles(groups) == find_method("svdiff").toggles(groups) == groups


def test_settings_tell_what_decides() -> None:
    assert find_method("lora", {"rank": 8, "ranks": None}).settings == {"rank": 8}
    assert find_method("lora", {"rank": 8, "ranks": [1, 2]}).settings == {"ranks": [1, 2]}


def test_ranks_add_up(backbone: LatentBackbone, loaded_backbone: LatentBackbone) -> None:
    split = attach(backbone, ranks=[2, 2])
    backbone.denoiser = copy.deepcopy(loaded_backbone.denoiser)
    whole = attach(backbone, rank=4)
    assert len(split.parameters) == 2 * len(whole.parameters)
    assert count(split) == count(whole)
    for i, group in enumerate(whole.parameters):
        each = [sum(p.numel() for p in split.parameters[2 * i + j].values()) for j in (0, 1)]
        assert each[0] == each[1] == sum(p.numel() for p in group.values()) / 2


def test_exactly_what_is_on_moves(backbone: LatentBackbone, data: TrainingSet) -> None:
    base = output(backbone, data)
    attachment = attach(backbone, ranks=[1, 2, 4])
    torch.testing.assert_close(output(backbone, data), base, rtol=0, atol=1e-6)
    before = {name: p.clone() for name, p in backbone.denoiser.named_parameters()}
    mask = train(backbone, attachment, data, "input rank 4, mid_block rank 1, mid_block rank 4")
    after = dict(backbone.denoiser.named_parameters())
    assert {name for name in after if not torch.equal(after[name], before[name])} == attachment.selected(mask).keys()
    assert not torch.equal(output(backbone, data), base)


@torch.no_grad()
def updated(denoiser: nn.Module, attachment: Attachment) -> None:
    """Adds every B A to a base denoiser's weights, as one would by hand."""
    factors: dict[tuple[str, str], dict[str, Tensor]] = {}
    for name, parameter in attachment.selected((True,) * len(attachment.parameters)).items():
        layer, factor, adapter = name.removesuffix(".weight").rsplit(".", 2)
        factors.setdefault((layer, adapter), {})[factor] = parameter
    for (layer, _), pair in factors.items():
        weight = denoiser.get_parameter(f"{layer}.weight")
        weight.add_((pair["lora_B"].flatten(1) @ pair["lora_A"].flatten(1)).view_as(weight))


def test_what_ranks_learned_is_their_sum(
    backbone: LatentBackbone, loaded_backbone: LatentBackbone, data: TrainingSet, tmp_path: Path
) -> None:
    attachment = attach(backbone, ranks=[1, 2, 4])
    mask = train(backbone, attachment, data, "input rank 4, up_blocks.1 rank 1, up_blocks.1 rank 4, up_blocks.2 rank 2")
    learned, trained, adapters = output(backbone, data), count(attachment, mask), attachment.peft
    assert adapters is not None
    by_hand = copy.copy(backbone)
    by_hand.denoiser = copy.deepcopy(loaded_backbone.denoiser)
    assert not torch.equal(output(by_hand, data), learned)
    updated(by_hand.denoiser, attachment)
    torch.testing.assert_close(output(by_hand, data), learned, rtol=0, atol=1e-5)

    fold_adapters(adapters)
    assert list(adapters.peft_config) == adapters.active_adapters == ["default"]
    folded = output(backbone, data)
    torch.testing.assert_close(folded, learned, rtol=0, atol=1e-5)
    adapters.save_pretrained(str(tmp_path))
    backbone.denoiser = copy.deepcopy(loaded_backbone.denoiser)
    fresh = PeftModel.from_pretrained(backbone.denoiser, str(tmp_path))
    assert torch.equal(output(backbone, data), folded)
    assert sum(p.numel() for n, p in fresh.named_parameters() if "lora_" in n) == trained
    fold_adapters(fresh)
    assert torch.equal(output(backbone, data), folded), "a single adapter stays what it is"


def test_merged_ranks_compute_the_same(backbone: LatentBackbone, data: TrainingSet) -> None:
    attachment = attach(backbone, ranks=[1, 2, 4])
    train(backbone, attachment, data, "all")
    learned, adapters = output(backbone, data), attachment.peft
    assert adapters is not None
    adapters.merge_adapter()
    torch.testing.assert_close(output(backbone, data), learned, rtol=0, atol=1e-5)
    adapters.unmerge_adapter()
    torch.testing.assert_close(output(backbone, data), learned, rtol=0, atol=1e-5)


def test_nothing_learned_is_nothing_to_fold(backbone: LatentBackbone) -> None:
    adapters = attach(backbone, ranks=[1, 2]).peft
    assert adapters is not None
    with pytest.raises(ValueError, match="has learned anything"):
        fold_adapters(adapters)


@pytest.mark.parametrize(
    ("ranks", "what"),
    [
        ([], "method.options.ranks=[] — list one rank or more"),
        (4, "method.options.ranks=4 — list one rank or more"),
        ("124", "method.options.ranks=124 — list one rank or more"),
        ([2, 0], "method.options.ranks[1]=0 — set it to a whole number of 1 or more"),
        ([2.5], "method.options.ranks[0]=2.5 — set it to a whole number"),
        ([2, 400], "method.options.ranks[1]=400 is more than any matrix of the denoiser has — set it to"),
    ],
)
def test_wrong_ranks(backbone: LatentBackbone, ranks: Any, what: str) -> None:
    with pytest.raises(InputError) as caught:
        attach(backbone, ranks=ranks)
    assert str(caught.value).startswith(what)


def test_dora_has_no_ranks() -> None:
    with pytest.raises(InputError, match="method=dora has no setting ranks — its settings are rank"):
        find_method("dora", {"ranks": [1, 2]})
