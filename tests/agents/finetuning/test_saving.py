from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor

from agents.finetuning.loading import load_finetuned
from agents.finetuning.saving import can_fold, fold, save_adapter, save_pipeline, takes_captions
from envs.backbones.latent import LatentBackbone, load_latent_backbone
from envs.batches import TrainingSet
from envs.finetune import finetune
from envs.groups import LayerGroup, find_groups
from envs.methods import METHODS, Attachment, find_method
from envs.task import InnerBudget, Schedule
from rewards.errors import InputError

BUDGET = InnerBudget(steps=4, batch_size=4, learning_rate=1e-2, images=1, sampling_steps=1)
SCHEDULE = Schedule.from_key("01100000/00000110")
ON = ("down_blocks.0", "down_blocks.1", "up_blocks.0", "up_blocks.1")
OF_PEFT = ("lora", "dora", "svdiff", "difffit")
WITH_ADAPTER = (*OF_PEFT, "adapter")


@torch.no_grad()
def output(backbone: LatentBackbone, data: TrainingSet) -> Tensor:
    return backbone.predict(data.latents, torch.arange(5) * 100, data.states)


def tuned(
    backbone: LatentBackbone, data: TrainingSet, method: str
) -> tuple[Attachment, tuple[LayerGroup, ...], frozenset[str]]:
    names = frozenset(backbone.denoiser.state_dict())
    groups = find_groups(backbone.denoiser, "blocks")
    attachment = find_method(method)(backbone.denoiser, groups, calibration=lambda: ())
    assert finetune(backbone, attachment, SCHEDULE, data, BUDGET, 0).steps == 4
    return attachment, groups, names


def save(backbone: LatentBackbone, data: TrainingSet, method: str, run: Path) -> Attachment:
    attachment, groups, _ = tuned(backbone, data, method)
    names = {"name": method, "options": dict(find_method(method).settings), "scheme": "blocks"}
    save_adapter(run / "adapter", attachment, backbone, [group.name for group in groups], SCHEDULE, names)
    return attachment


def untouched(backbone: LatentBackbone) -> LatentBackbone:
    other = copy.copy(backbone)
    other.denoiser = copy.deepcopy(backbone.denoiser)
    return other


@pytest.mark.parametrize("method", METHODS)
def test_a_folded_pipeline_is_plain(
    backbone: LatentBackbone, data: TrainingSet, pipeline_folder: Path, tmp_path: Path, method: str
) -> None:
    attachment, _, names = tuned(backbone, data, method)
    expected = output(backbone, data)
    assert can_fold(backbone.denoiser, attachment, names) == (method != "adapter")
    assert fold(backbone.denoiser, attachment, names) == (method != "adapter")
    if method == "adapter":
        return
    for _ in range(2):  # the second time it replaces what is there
        save_pipeline(pipeline_folder, backbone.denoiser, tmp_path / "pipeline")
    assert [path.name for path in tmp_path.iterdir()] == ["pipeline"]
    assert not any(str(pipeline_folder) in file.read_text() for file in tmp_path.rglob("*.json"))
    assert not list(tmp_path.rglob("*.bin"))
    unet = DiffusionPipeline.from_pretrained(tmp_path / "pipeline").unet
    found = unet(data.latents, torch.arange(5) * 100, data.states).sample
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)
    again = load_latent_backbone(tmp_path / "pipeline", name="tuned", device=torch.device("cpu"))
    assert torch.equal(again.encode_captions(["a"]), backbone.encode_captions(["a"]))


@pytest.mark.parametrize("method", OF_PEFT)
def test_plain_peft_loads_the_groups_that_are_on(
    backbone: LatentBackbone, data: TrainingSet, tmp_path: Path, method: str
) -> None:
    base = untouched(backbone)
    save(backbone, data, method, tmp_path)
    before = {id(module) for module in base.denoiser.modules()}
    PeftModel.from_pretrained(base.denoiser, str(tmp_path / "adapter"))
    wrapped = {n for n, m in base.denoiser.named_modules() if isinstance(m, BaseTunerLayer) and id(m) not in before}
    assert wrapped
    assert all(name.startswith(ON) for name in wrapped)
    every = {n for n, m in backbone.denoiser.named_modules() if isinstance(m, BaseTunerLayer) and n.startswith(ON)}
    assert wrapped == every
    assert torch.equal(output(base, data), output(backbone, data))


@pytest.mark.parametrize("method", WITH_ADAPTER)
def test_our_loader_loads_every_adapter(
    backbone: LatentBackbone, data: TrainingSet, tmp_path: Path, method: str
) -> None:
    base = untouched(backbone)
    save(backbone, data, method, tmp_path)
    load_finetuned(tmp_path, base)
    assert torch.equal(output(base, data), output(backbone, data))
    assert not base.denoiser.training


@pytest.mark.parametrize("method", ["lora", "adapter"])
def test_an_adapter_for_another_backbone(
    backbone: LatentBackbone, data: TrainingSet, tmp_path: Path, method: str
) -> None:
    other = untouched(backbone)
    other.sha256 = "f" * 64
    save(backbone, data, method, tmp_path)
    before = output(other, data)
    with pytest.raises(InputError, match=r"an adapter saved for another backbone: tiny .* — load the pipeline"):
        load_finetuned(tmp_path, other)
    assert torch.equal(output(other, data), before)


def test_what_is_no_adapter(backbone: LatentBackbone, data: TrainingSet, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no adapter"):
        load_finetuned(tmp_path, backbone)
    base = untouched(backbone)
    save(backbone, data, "lora", tmp_path)
    card = tmp_path / "adapter" / "memcontrol.json"
    weights = tmp_path / "adapter" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(InputError, match="does not load"):
        load_finetuned(tmp_path, base)
    card.write_text(json.dumps(json.loads(card.read_text()) | {"schema": 2}))
    with pytest.raises(InputError, match="of schema 2"):
        load_finetuned(tmp_path, base)
    card.write_text("[]")
    with pytest.raises(InputError, match="holds no adapter"):
        load_finetuned(tmp_path, base)


def test_a_pipeline_says_whether_it_takes_captions(pipeline_folder: Path) -> None:
    assert takes_captions(pipeline_folder)
