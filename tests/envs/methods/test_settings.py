"""Settings of methods, right and wrong."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import UNet2DModel
from torch import nn

from envs.groups import LayerGroup, find_groups
from envs.methods import METHODS, find_method
from rewards.errors import InputError


@pytest.fixture
def denoiser() -> nn.Module:
    unet: nn.Module = UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        add_attention=False,
    )
    return unet.requires_grad_(False)


@pytest.mark.parametrize(
    ("method", "settings", "what"),
    [
        ("lora", {"rank": 0}, "method.options.rank=0"),
        ("lora", {"rank": 2.5}, "method.options.rank=2.5"),
        ("lora", {"rank": "many"}, "method.options.rank=many"),
        ("dora", {"rank": True}, "method.options.rank=True"),
        ("lora", {"rnk": 4}, "method=lora has no setting rnk — its settings are rank, ranks"),
        ("full", {"rank": 4}, "method=full has no setting rank — it has none"),
        ("adapter", {"width": -1}, "method.options.width=-1"),
        ("importance", {"share": 0}, "method.options.share=0"),
        ("importance", {"share": 1.5}, "method.options.share=1.5"),
        ("importance", {"share": float("nan")}, "method.options.share=nan"),
        ("importance", {"share": "all"}, "method.options.share=all"),
        ("attention", {"scope": "all"}, "method.options.scope=all"),
    ],
)
def test_wrong_settings(method: str, settings: dict[str, Any], what: str) -> None:
    with pytest.raises(InputError) as caught:
        find_method(method, settings)
    assert str(caught.value).startswith(what)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("method", "settings", "what"),
    [
        ("lora", {"rank": 65}, "method.options.rank=65 is more than any matrix of the denoiser has — set it to 32"),
        ("dora", {"rank": 65}, "method.options.rank=65 is more than any matrix of the denoiser has — set it to 32"),
        ("adapter", {"width": 9}, "method.options.width=9 is wider than the denoiser's 8 channels — set it to 8"),
    ],
)
def test_settings_that_do_not_fit(denoiser: nn.Module, method: str, settings: dict[str, Any], what: str) -> None:
    with pytest.raises(InputError) as caught:
        find_method(method, settings)(denoiser, find_groups(denoiser, "blocks"))
    assert str(caught.value).startswith(what)


@pytest.mark.parametrize("method", ["difffit", "svdiff", "lora", "dora", "adapter"])
def test_a_denoiser_without_a_fitting_layer(method: str) -> None:
    model = nn.Sequential(nn.Embedding(3, 3))
    group = LayerGroup("all", ("0",), "input", 0.0, 1.0, 1, 9)
    with pytest.raises(InputError, match=f"method={method} finds nothing to train in a Sequential"):
        find_method(method)(model, [group])


def test_a_second_method_is_refused(denoiser: nn.Module) -> None:
    groups = find_groups(denoiser, "blocks")
    find_method("svdiff")(denoiser, groups)
    with pytest.raises(ValueError, match="has a method already"):
        find_method("lora")(denoiser, groups)


def test_a_small_matrix_gets_a_small_update(denoiser: nn.Module) -> None:
    attachment = find_method("lora", {"rank": 12})(denoiser, find_groups(denoiser, "blocks"))
    every = attachment.selected((True,) * len(attachment.parameters))
    ranks = {name: p.shape[0] for name, p in every.items() if "lora_A" in name}
    assert ranks["conv_out.lora_A.default.weight"] == 3
    assert max(ranks.values()) == 12


def test_importance_needs_gradients(denoiser: nn.Module) -> None:
    with pytest.raises(ValueError, match="needs a calibration"):
        find_method("importance")(denoiser, find_groups(denoiser, "blocks"))


@pytest.mark.parametrize("share", [0.001, 0.1, 1])
def test_importance_trains_its_share_of_each_group(denoiser: nn.Module, share: float) -> None:
    groups = find_groups(denoiser, "blocks")
    attachment = find_method("importance", {"share": share})(denoiser, groups, calibration=lambda: ())
    for group, parameters in zip(groups, attachment.parameters, strict=True):
        assert sum(p.numel() for p in parameters.values()) == max(1, round(share * group.parameters))


def test_importance_chooses_by_size_and_by_gradient() -> None:
    layer = nn.Linear(4, 1, bias=False)
    model = nn.Sequential(layer).requires_grad_(False)
    layer.weight.copy_(torch.tensor([[0.1, 4.0, -3.0, 2.0]]))  # ranks 0 3 2 1
    x = torch.tensor([[9.0, 0.0, 5.0, 1.0]])  # |w g|: 0.9, 0, 15, 2; ranks 1 0 3 2
    group = LayerGroup("all", ("0",), "input", 0.0, 1.0, 1, 4)
    attachment = find_method("importance", {"share": 0.25})(model, [group], calibration=lambda: [model(x).sum()])
    (parameter,) = attachment.selected((True,)).values()
    with torch.no_grad():
        parameter.fill_(1)
    assert layer.weight.tolist() == [[pytest.approx(0.1), 4.0, -2.0, 2.0]]


def test_only_settings_that_change_numbers_are_told() -> None:
    told = {name: dict(find_method(name).settings) for name in METHODS}
    assert {name: settings for name, settings in told.items() if settings} == {
        "lora": {"rank": 4},
        "dora": {"rank": 4},
        "adapter": {"width": 8},
        "importance": {"share": 0.01},
    }
    assert find_method("attention", {"scope": "transformers"}).settings == {"scope": "transformers"}
