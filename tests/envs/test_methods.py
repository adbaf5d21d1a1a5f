from __future__ import annotations

import pytest
import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from torch import nn

from envs.backbones.pretrain.denoiser import build_denoiser
from envs.groups import find_groups
from envs.methods import METHODS, Attachment, Calibration, find_method
from rewards.errors import InputError


def unconditional(attention: bool) -> UNet2DModel:
    return UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        add_attention=attention,
        down_block_types=("DownBlock2D", "AttnDownBlock2D" if attention else "DownBlock2D"),
        up_block_types=("AttnUpBlock2D" if attention else "UpBlock2D", "UpBlock2D"),
    )


@pytest.fixture(params=["conditional", "unconditional"])
def denoiser(request: pytest.FixtureRequest) -> nn.Module:
    model: nn.Module = build_denoiser() if request.param == "conditional" else unconditional(True)
    return model.requires_grad_(False)


def attached(denoiser: nn.Module, method: str, calibration: Calibration = lambda: ()) -> Attachment:
    return find_method(method)(denoiser, find_groups(denoiser, "blocks"), calibration=calibration)


def names(attachment: Attachment, mask: tuple[bool, ...]) -> list[str]:
    return sorted(attachment.selected(mask))


@pytest.mark.parametrize("method", METHODS)
def test_a_mask_selects_the_sum_of_its_groups(denoiser: nn.Module, method: str) -> None:
    attachment = attached(denoiser, method)
    n = len(attachment.parameters)
    assert attachment.selected((False,) * n) == {}
    alone = [attachment.selected(tuple(i == j for j in range(n))) for i in range(n)]
    every = attachment.selected((True,) * n)
    assert sorted(name for selected in alone for name in selected) == sorted(every)
    assert all(denoiser.get_parameter(name) is parameter for name, parameter in every.items())
    some = attachment.selected(tuple(i % 2 == 0 for i in range(n)))
    assert some.keys() == {name for selected in alone[::2] for name in selected}
    assert not any(parameter.requires_grad for parameter in denoiser.parameters()), "attaching trains nothing yet"
    for group, selected in zip(find_groups(denoiser, "blocks"), alone, strict=True):
        assert selected.keys() <= dict(group.parameters_in(denoiser)).keys()


def test_full_is_everything(denoiser: nn.Module) -> None:
    attachment = attached(denoiser, "full")
    assert names(attachment, (True,) * len(attachment.parameters)) == sorted(n for n, _ in denoiser.named_parameters())


def test_attention_is_what_lies_in_attention_layers(denoiser: nn.Module) -> None:
    attachment = attached(denoiser, "attention")
    # `attentions` are the layers themselves; in a conditional UNet, transformers with attn1 (self) and attn2 (cross).
    conditional = isinstance(denoiser, UNet2DConditionModel)
    inside = (".attn1.", ".attn2.") if conditional else (".attentions.",)
    expected = sorted(n for n, _ in denoiser.named_parameters() if any(part in n for part in inside))
    assert len(expected) > 10
    assert names(attachment, (True,) * len(attachment.parameters)) == expected


def test_bias_norm_is_every_vector(denoiser: nn.Module) -> None:
    # The weights of convolutions and projections have 2 or 4 dimensions; biases, scales and shifts have 1.
    attachment = attached(denoiser, "bias_norm")
    expected = sorted(n for n, parameter in denoiser.named_parameters() if parameter.ndim == 1)
    assert names(attachment, (True,) * len(attachment.parameters)) == expected


def test_a_method_with_nothing_to_train_is_refused() -> None:
    with torch.device("meta"):
        convolutions = unconditional(False)
    with pytest.raises(InputError, match="method=attention finds nothing to train in a UNet2DModel"):
        attached(convolutions, "attention")


def test_unknown_method() -> None:
    with pytest.raises(
        InputError, match="method=lorra is no adaptation method — choose among adapter, attention, bias_norm"
    ):
        find_method("lorra")


def test_a_mask_of_another_length_is_refused(denoiser: nn.Module) -> None:
    with pytest.raises(ValueError, match="a mask of 2 toggles for"):
        attached(denoiser, "full").selected((True, False))
