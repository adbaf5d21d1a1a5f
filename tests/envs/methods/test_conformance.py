"""What every adaptation method promises."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTuner
from torch import Tensor, nn

from envs.backbones.latent import LatentBackbone
from envs.batches import TrainingSet
from envs.finetune import finetune, one_pass
from envs.groups import find_groups
from envs.methods import METHODS, Attachment, find_method
from envs.seeding import torch_generator
from envs.task import InnerBudget, Schedule

BUDGET = InnerBudget(steps=3, batch_size=4, learning_rate=1e-2, images=1, sampling_steps=1, weight_decay=0.01)
IMAGES = 6
GROUPS = 8
OFF, ON = (False,) * GROUPS, (True,) * GROUPS
SINGLE = [tuple(i == j for j in range(GROUPS)) for i in range(GROUPS)]
OF_PEFT = ("difffit", "svdiff", "lora", "dora")
ADDING = (*OF_PEFT, "adapter", "importance")
every_method = pytest.mark.parametrize("method", METHODS)


@pytest.fixture
def data(backbone: LatentBackbone) -> TrainingSet:
    latents = torch.randn(IMAGES, *backbone.latent_shape, generator=torch_generator(0, "latents"))
    states = backbone.encode_captions([f"image {i}" for i in range(IMAGES)])
    return TrainingSet(latents, states, backbone.encode_captions([""]))


def attach(
    backbone: LatentBackbone, data: TrainingSet, method: str, seed: int = 0, scheme: str = "blocks"
) -> Attachment:
    groups = find_groups(backbone.denoiser, scheme)
    return find_method(method)(
        backbone.denoiser, groups, calibration=lambda: one_pass(backbone, data, 4, seed), seed=seed
    )


def train(backbone: LatentBackbone, attachment: Attachment, mask: tuple[bool, ...], data: TrainingSet) -> int:
    return finetune(backbone, attachment, Schedule.constant(mask), data, BUDGET, 0).steps


@torch.no_grad()
def output(backbone: LatentBackbone, data: TrainingSet) -> Tensor:
    return backbone.predict(data.latents, torch.arange(IMAGES) * 100, data.states)


def state(denoiser: nn.Module) -> dict[str, Tensor]:
    tensors = [*denoiser.named_parameters(), *denoiser.named_buffers()]
    return {name: tensor.detach().clone() for name, tensor in tensors}


def moved(before: dict[str, Tensor], denoiser: nn.Module) -> set[str]:
    after = state(denoiser)
    assert after.keys() == before.keys()
    return {name for name in after if not torch.equal(after[name], before[name])}


@torch.no_grad()
def restore(before: dict[str, Tensor], denoiser: nn.Module) -> None:
    """As the evaluator does."""
    for name, tensor in [*denoiser.named_parameters(), *denoiser.named_buffers()]:
        tensor.copy_(before[name])


@every_method
def test_attaching_changes_no_output(backbone: LatentBackbone, data: TrainingSet, method: str) -> None:
    base = output(backbone, data)
    attachment = attach(backbone, data, method)
    torch.testing.assert_close(output(backbone, data), base, rtol=0, atol=1e-6)
    assert attachment.selected(OFF) == {}
    assert not any(p.requires_grad for p in backbone.denoiser.parameters())
    assert all(p.grad is None for p in backbone.denoiser.parameters())
    assert not any(module.training for module in backbone.denoiser.modules())


@every_method
def test_all_off_is_the_base_model_to_the_bit(backbone: LatentBackbone, data: TrainingSet, method: str) -> None:
    attachment = attach(backbone, data, method)
    before, at_first = state(backbone.denoiser), output(backbone, data)
    assert train(backbone, attachment, OFF, data) == 0
    assert not moved(before, backbone.denoiser)
    assert torch.equal(output(backbone, data), at_first)


@every_method
def test_exactly_the_masked_parameters_move_and_come_back(
    backbone: LatentBackbone, data: TrainingSet, method: str
) -> None:
    attachment = attach(backbone, data, method)
    before, at_first = state(backbone.denoiser), output(backbone, data)
    for mask in [*SINGLE, ON, tuple(i % 2 == 0 for i in range(GROUPS))]:
        selected = attachment.selected(mask)
        assert train(backbone, attachment, mask, data) == (BUDGET.steps if selected else 0)
        assert moved(before, backbone.denoiser) == selected.keys()
        assert torch.equal(output(backbone, data), at_first) == (not selected)
        restore(before, backbone.denoiser)
        assert torch.equal(output(backbone, data), at_first), "a restored denoiser gives what it gave"


@every_method
def test_kinds_of_layers_move_apart(
    backbone: LatentBackbone, loaded_backbone: LatentBackbone, data: TrainingSet, method: str
) -> None:
    names = [group.name for group in find_groups(backbone.denoiser, "block_kinds")]
    attachment = attach(backbone, data, method, scheme="block_kinds")
    before = state(backbone.denoiser)
    for kind in ("input", "attention", "feed-forward", "resnet", "norm"):
        mask = tuple(name.endswith(kind) for name in names)
        assert 1 <= sum(mask) < len(mask)
        selected = attachment.selected(mask)
        assert train(backbone, attachment, mask, data) == (BUDGET.steps if selected else 0)
        assert moved(before, backbone.denoiser) == selected.keys()
        restore(before, backbone.denoiser)
    if method != "importance":  # which chooses within each group
        kinds = attachment.selected((True,) * len(names))
        backbone.denoiser = copy.deepcopy(loaded_backbone.denoiser)
        assert kinds.keys() == attach(backbone, data, method).selected(ON).keys()


@every_method
def test_every_masked_parameter_gets_a_gradient(backbone: LatentBackbone, data: TrainingSet, method: str) -> None:
    attachment = attach(backbone, data, method)
    train(backbone, attachment, ON, data)  # the first factor of a product gets none while the second is zero
    selected = attachment.selected(ON)
    for parameter in selected.values():
        parameter.requires_grad_(True)
    for loss in one_pass(backbone, data, IMAGES, 0):
        loss.backward()
    for name, parameter in backbone.denoiser.named_parameters():
        assert (parameter.grad is not None) == (name in selected), name
        assert parameter.grad is None or parameter.grad.any(), name


@every_method
def test_attaching_and_training_are_deterministic(backbone: LatentBackbone, data: TrainingSet, method: str) -> None:
    denoiser, results = backbone.denoiser, []
    for _ in range(2):
        torch.manual_seed(torch.seed())  # nothing may depend on it
        backbone.denoiser = copy.deepcopy(denoiser)
        random_state = torch.random.get_rng_state()
        attachment = attach(backbone, data, method)
        assert torch.equal(torch.random.get_rng_state(), random_state)
        train(backbone, attachment, ON, data)
        results.append((state(backbone.denoiser), output(backbone, data)))
    (first, image), (second, again) = results
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert torch.equal(image, again)


@every_method
def test_a_copy_is_a_model_of_its_own(backbone: LatentBackbone, data: TrainingSet, method: str) -> None:
    attachment = attach(backbone, data, method)
    train(backbone, attachment, ON, data)
    learned, original = output(backbone, data), backbone.denoiser
    backbone.denoiser = copy.deepcopy(original)
    assert torch.equal(output(backbone, data), learned)
    with torch.no_grad():
        for parameter in attachment.selected(ON).values():
            parameter.add_(1)
    assert torch.equal(output(backbone, data), learned)
    backbone.denoiser = original
    assert not torch.equal(output(backbone, data), learned)


@pytest.mark.parametrize("method", ADDING)
def test_what_was_there_is_never_trained(backbone: LatentBackbone, data: TrainingSet, method: str) -> None:
    base = {p.data_ptr(): p.clone() for p in backbone.denoiser.parameters()}
    attachment = attach(backbone, data, method)
    added = {id(p) for p in attachment.selected(ON).values()}
    train(backbone, attachment, ON, data)
    left = [p for p in backbone.denoiser.parameters() if id(p) not in added]
    assert {p.data_ptr() for p in left} == base.keys()
    assert all(torch.equal(p, base[p.data_ptr()]) for p in left)


@pytest.mark.parametrize("method", ADDING)
def test_inference_between_two_fine_tunes(backbone: LatentBackbone, data: TrainingSet, method: str) -> None:
    """What inference mode leaves behind must not reach a later backward pass."""
    attachment = attach(backbone, data, method)
    with torch.inference_mode():
        backbone.predict(data.latents, 5, data.states)
    train(backbone, attachment, ON, data)
    with torch.inference_mode():
        backbone.predict(data.latents, 5, data.states)
    assert train(backbone, attachment, SINGLE[0], data) == BUDGET.steps


@pytest.fixture(params=OF_PEFT)
def learned(request: pytest.FixtureRequest, backbone: LatentBackbone, data: TrainingSet) -> PeftModel:
    attachment = attach(backbone, data, request.param)
    train(backbone, attachment, ON, data)
    assert attachment.peft is not None
    return attachment.peft


def test_saved_and_loaded_it_computes_the_same(
    loaded_backbone: LatentBackbone, backbone: LatentBackbone, data: TrainingSet, learned: PeftModel, tmp_path: Path
) -> None:
    learned.save_pretrained(str(tmp_path))
    expected = output(backbone, data)
    backbone.denoiser = copy.deepcopy(loaded_backbone.denoiser)
    assert not torch.equal(output(backbone, data), expected)
    PeftModel.from_pretrained(backbone.denoiser, str(tmp_path))
    assert torch.equal(output(backbone, data), expected)


def test_merged_it_computes_the_same(
    backbone: LatentBackbone, loaded_backbone: LatentBackbone, data: TrainingSet, learned: PeftModel
) -> None:
    expected = output(backbone, data)
    learned.merge_adapter()
    torch.testing.assert_close(output(backbone, data), expected, rtol=0, atol=1e-5)
    learned.unmerge_adapter()
    torch.testing.assert_close(output(backbone, data), expected, rtol=0, atol=1e-5)
    backbone.denoiser = learned.merge_and_unload(safe_merge=True)
    torch.testing.assert_close(output(backbone, data), expected, rtol=0, atol=1e-5)
    assert state(backbone.denoiser).keys() == state(loaded_backbone.denoiser).keys()


def test_disabled_it_is_the_base_model(
    backbone: LatentBackbone, loaded_backbone: LatentBackbone, data: TrainingSet, learned: PeftModel
) -> None:
    base = output(loaded_backbone, data)
    expected = output(backbone, data)
    assert not torch.equal(expected, base)
    with learned.disable_adapter():
        assert torch.equal(output(backbone, data), base)
    assert torch.equal(output(backbone, data), expected)


def test_two_adapters_at_once(
    backbone: LatentBackbone, loaded_backbone: LatentBackbone, data: TrainingSet, learned: PeftModel
) -> None:
    one, tuner = output(backbone, data), learned.base_model
    assert isinstance(tuner, BaseTuner)
    learned.add_adapter("second", copy.deepcopy(learned.peft_config["default"]))
    assert torch.equal(output(backbone, data), one), "it is not active yet"
    tuner.set_adapter(["default", "second"])
    torch.testing.assert_close(output(backbone, data), one, rtol=0, atol=1e-6)
    with torch.no_grad():
        for name, parameter in backbone.denoiser.named_parameters():
            if "second" in name:
                parameter.add_(0.01)
    both = output(backbone, data)
    assert not torch.allclose(both, one)
    tuner.set_adapter("second")
    alone = output(backbone, data)
    assert not torch.allclose(alone, one)
    assert not torch.allclose(alone, both)
    assert not torch.allclose(alone, output(loaded_backbone, data))
    tuner.set_adapter(["default", "second"])
    assert torch.equal(output(backbone, data), both)
    learned.merge_adapter(adapter_names=["default", "second"])
    torch.testing.assert_close(output(backbone, data), both, rtol=0, atol=2e-5)
