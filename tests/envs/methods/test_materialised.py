"""Layers that train on one weight, against peft's own."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraModel
from peft.tuners.lora.layer import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from envs.methods import materialised
from envs.methods.materialised import MaterialisedConv2d, MaterialisedLinear, train_materialised
from envs.seeding import torch_generator


def network(width: int = 8) -> nn.Module:
    """Every kind of layer that a UNet has, in a row."""
    layers = (
        nn.Conv2d(3, width, 3, padding=1),
        nn.Conv2d(width, width, 3, stride=2, padding=1, bias=False),
        nn.Conv2d(width, 6, 1),
        nn.Flatten(2),
        nn.Linear(16, 10),
        nn.Linear(10, 4, bias=False),
    )
    return nn.Sequential(*layers)


def pair(dora: bool, **settings: object) -> tuple[PeftModel, PeftModel]:
    """The same network and adapters, drawn away from their start, in our layers and in peft's."""
    models = []
    for change in (train_materialised, lambda config: config):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            config = LoraConfig(
                r=2, lora_alpha=3, use_dora=dora, target_modules=["0", "1", "2", "4", "5"], init_lora_weights=False
            )
            for name, value in settings.items():
                setattr(config, name, value)
            model = get_peft_model(network(), change(config))
        generator = torch_generator(0, "adapter")
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "magnitude" in name:
                    parameter.mul_(0.5 + torch.rand(parameter.shape, generator=generator))
        models.append(model)
    ours, plain = models
    return ours, plain


def outcome(model: PeftModel) -> tuple[Tensor, dict[str, Tensor]]:
    """The output and the gradients of what learns and of the input."""
    x = torch.randn(2, 3, 8, 8, generator=torch_generator(0, "x")).requires_grad_(True)
    learns = {name: p for name, p in model.named_parameters() if p.requires_grad}
    output = model(x)
    slope = torch.randn(output.shape, generator=torch_generator(0, "slope"))
    slopes = torch.autograd.grad(output, [x, *learns.values()], slope)
    return output.detach(), dict(zip(["x", *learns], slopes, strict=True))


def is_ours(model: PeftModel) -> bool:
    layers = [module for module in model.modules() if isinstance(module, (MaterialisedLinear, MaterialisedConv2d))]
    return len(layers) == 5


def assert_same(ours: PeftModel, plain: PeftModel) -> None:
    (output, slopes), (expected, expected_slopes) = outcome(ours), outcome(plain)
    assert is_ours(ours)
    assert not is_ours(plain)
    assert slopes.keys() == expected_slopes.keys()
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)
    for name, slope in slopes.items():
        torch.testing.assert_close(slope, expected_slopes[name], rtol=1e-4, atol=1e-5, msg=name)


def add_second(model: PeftModel, **settings: object) -> LoraModel:
    second, tuner = copy.deepcopy(model.peft_config["default"]), model.base_model
    for name, value in settings.items():
        setattr(second, name, value)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model.add_adapter("second", second)
    assert isinstance(tuner, LoraModel)
    return tuner


@pytest.mark.parametrize("dora", [False, True])
def test_outputs_and_gradients_are_pefts(dora: bool) -> None:
    assert_same(*pair(dora))


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("other", [False, True])
@pytest.mark.parametrize("order", [["default", "second"], ["second", "default"]])
def test_two_adapters_on_the_same_layers(dora: bool, other: bool, order: list[str]) -> None:
    ours, plain = pair(dora)
    for model in (ours, plain):
        add_second(model, lora_alpha=5, use_dora=other).set_adapter(order)
    assert_same(ours, plain)


@pytest.mark.parametrize("dora", [False, True])
def test_without_a_gradient_the_output_is_pefts_to_the_bit(dora: bool) -> None:
    ours, plain = pair(dora)
    x = torch.randn(2, 3, 8, 8, generator=torch_generator(0, "x"))
    with torch.no_grad():
        assert torch.equal(ours(x), plain(x))
    for model in (ours, plain):
        model.requires_grad_(False)
    assert torch.equal(ours(x), plain(x))


def frozen_pair(dora: bool) -> tuple[PeftModel, PeftModel]:
    """The same two as they are made, with nothing that learns: of layers whose group is off."""
    models = []
    for change in (train_materialised, lambda config: config):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            config = LoraConfig(r=2, use_dora=dora, target_modules=["0", "1", "2", "4", "5"])
            models.append(get_peft_model(network(), change(config)).requires_grad_(False))
    ours, plain = models
    return ours, plain


def adapters_that_act(model: PeftModel) -> int:
    """In how many layers something is computed besides the base layer."""
    seen: set[int] = set()
    parts = [down for layer in model.modules() if isinstance(layer, LoraLayer) for down in layer.lora_A.values()]
    watched = [part.register_forward_pre_hook(lambda part, _: seen.add(id(part))) for part in parts]
    with torch.no_grad():
        model(torch.randn(2, 3, 8, 8, generator=torch_generator(0, "x")))
    for hook in watched:
        hook.remove()
    return len(seen)


@pytest.mark.parametrize("dora", [False, True])
def test_a_frozen_adapter_as_it_was_made_costs_nothing_and_changes_no_bit(dora: bool) -> None:
    ours, plain = frozen_pair(dora)
    assert (adapters_that_act(ours), adapters_that_act(plain)) == (0, 5)
    (output, slopes), (expected, expected_slopes) = outcome(ours), outcome(plain)
    assert torch.equal(output, expected)
    assert torch.equal(slopes["x"], expected_slopes["x"])


@pytest.mark.parametrize("dora", [False, True])
def test_an_adapter_that_was_moved_acts_until_it_is_put_back(dora: bool) -> None:
    ours, plain = frozen_pair(dora)
    adapters_that_act(ours)  # looks at all
    x = torch.randn(2, 3, 8, 8, generator=torch_generator(0, "x"))
    for part in ("lora_B", "lora_magnitude_vector", "base_layer")[: 3 if dora else 1]:
        name = next(name for name, _ in ours.named_parameters() if f"4.{part}" in name and name.endswith("weight"))
        start = ours.get_parameter(name).clone()
        for model in (ours, plain):
            with torch.no_grad():
                model.get_parameter(name).add_(0.5)
        assert adapters_that_act(ours) == 1, part
        assert torch.equal(ours(x), plain(x))
        for model in (ours, plain):
            model.load_state_dict({name: start}, strict=False)
        assert adapters_that_act(ours) == 0, part


def test_an_adapter_that_is_replaced_is_looked_at_again() -> None:
    ours, _ = frozen_pair(dora=False)
    assert adapters_that_act(ours) == 0
    layer = next(module for module in ours.modules() if isinstance(module, MaterialisedLinear))
    up: Any = layer.lora_B["default"]
    up.weight = nn.Parameter(torch.ones_like(up.weight), requires_grad=False)
    assert adapters_that_act(ours) == 1


def test_a_compiled_graph_sees_what_is_learned_later() -> None:
    ours, plain = frozen_pair(dora=False)
    compiled = torch.compile(ours, backend="eager", fullgraph=True)
    x = torch.randn(2, 3, 8, 8, generator=torch_generator(0, "x"))
    before = compiled(x)
    for model in (ours, plain):
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.add_(0.5)
    assert not torch.equal(compiled(x), before)
    assert torch.equal(compiled(x), plain(x))


@pytest.mark.parametrize("dora", [False, True])
def test_an_adapter_that_learns_acts_from_its_start(dora: bool) -> None:
    ours, _ = frozen_pair(dora)
    for name, parameter in ours.named_parameters():
        parameter.requires_grad_("4.lora" in name)
    assert adapters_that_act(ours) == 1
    assert all(slope.isfinite().all() for slope in outcome(ours)[1].values())


@pytest.mark.parametrize("setting", [{"lora_dropout": 0.5}, {"lora_bias": True, "target_modules": ["0", "4"]}])
def test_other_kinds_of_adapters_are_left_to_peft(setting: dict[str, object]) -> None:
    ours, plain = pair(dora=False, **setting)
    results = []
    for model in (ours, plain):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(2)
            results.append(outcome(model.train()))
    (output, slopes), (expected, expected_slopes) = results
    assert torch.equal(output, expected)
    assert all(torch.equal(slope, expected_slopes[name]) for name, slope in slopes.items())


def test_grouped_convolutions_are_left_to_peft() -> None:
    outcomes = []
    for change in (train_materialised, lambda config: config):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            layers = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3, groups=2))
            config = change(LoraConfig(r=2, target_modules=["1"], init_lora_weights=False))
            with pytest.warns(UserWarning, match="groups > 1"):
                model = get_peft_model(layers, config)
        outcomes.append(outcome(model)[0])
    assert torch.equal(*outcomes)


def test_adapters_of_another_precision_are_left_to_peft() -> None:
    outcomes = []
    for model in pair(dora=False):
        for module in model.modules():
            if isinstance(module, BaseTunerLayer):
                module.get_base_layer().bfloat16()
        outcomes.append(model(torch.ones(2, 3, 8, 8, dtype=torch.bfloat16)))
    assert torch.equal(*outcomes)


def test_wide_layers_are_left_to_peft(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, plain = pair(dora=True)
    assert not torch.equal(outcome(ours)[0], outcome(plain)[0]), "narrow ones round otherwise"
    monkeypatch.setattr(materialised, "_NARROW", 1)
    assert torch.equal(outcome(ours)[0], outcome(plain)[0])


def test_a_saved_adapter_knows_nothing_of_our_layers(tmp_path: Path) -> None:
    for model, folder in zip(pair(dora=True), (tmp_path / "ours", tmp_path / "plain"), strict=True):
        model.save_pretrained(str(folder))
    ours, plain = (
        {file.name: file.read_bytes() for file in (tmp_path / name).iterdir() if file.suffix == ".safetensors"}
        for name in ("ours", "plain")
    )
    assert ours == plain
    ours_config, plain_config = (
        json.loads((tmp_path / name / "adapter_config.json").read_text()) for name in ("ours", "plain")
    )
    assert ours_config == plain_config
