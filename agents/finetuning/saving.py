"""A fine-tuned denoiser as files that others load: a pipeline with everything folded in, and the adapter alone."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils import parametrize

from envs.backbones.base import Backbone
from envs.methods import Attachment
from envs.methods.lora import fold_adapters
from envs.task import Schedule

ADAPTER_CARD, ADAPTER_WEIGHTS = "memcontrol.json", "adapter_model.safetensors"
ADAPTER_SCHEMA = 1

_UNUSED = ("safety_checker", "feature_extractor", "image_encoder")
"""Parts that a pipeline can do without and a backbone leaves out."""
_PEFT_PREFIX = "base_model.model."


def fold(denoiser: nn.Module, attachment: Attachment, base_names: frozenset[str]) -> bool:
    """Writes what a method learned into the denoiser's own weights, in place.

    Args:
        denoiser: With the method attached.
        attachment: Of the method.
        base_names: Names in the state of the denoiser before the method was attached.

    Returns:
        False if modules are left that the denoiser's class does not know: it cannot be saved as it was loaded.
    """
    if attachment.peft is not None:
        attachment.peft.merge_and_unload(safe_merge=True)
    for module in list(denoiser.modules()):
        if parametrize.is_parametrized(module):
            for name in list(module.parametrizations):  # type: ignore[arg-type]
                parametrize.remove_parametrizations(module, name)
    denoiser.requires_grad_(False)
    return denoiser.state_dict().keys() == base_names


def can_fold(denoiser: nn.Module, attachment: Attachment, base_names: frozenset[str]) -> bool:
    """What `fold` will return, known before anything is trained; nothing is changed."""
    # peft puts its layers around the denoiser's own and takes them away again; parametrizations lie beside a weight.
    added = [name for name in denoiser.state_dict() if ".parametrizations." not in name and name not in base_names]
    return attachment.peft is not None or not added


def save_pipeline(base: str | Path, denoiser: nn.Module, folder: Path) -> None:
    """Writes the base pipeline with this denoiser in its place, in safetensors, in one rename.

    Args:
        base: The pipeline that was fine-tuned.
        denoiser: After `fold`.
        folder: Replaced if it is there.
    """
    index = DiffusionPipeline.load_config(base, local_files_only=True)
    left_out: dict[str, Any] = {part: None for part in _UNUSED if part in index}
    if "requires_safety_checker" in index:
        left_out["requires_safety_checker"] = False
    pipeline = DiffusionPipeline.from_pretrained(
        base, local_files_only=True, use_safetensors=True, unet=denoiser, **left_out
    )
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    pipeline.save_pretrained(partial, safe_serialization=True)
    for file in partial.rglob("*.json"):
        _forget_where_it_came_from(file)
    shutil.rmtree(folder, ignore_errors=True)
    partial.replace(folder)


def save_adapter(
    folder: Path,
    attachment: Attachment,
    backbone: Backbone,
    toggles: Sequence[str],
    schedule: Schedule,
    method: Mapping[str, Any],
) -> None:
    """Writes what a method added, of the groups that are on in some phase.

    Methods of peft are written in peft's format; `agents.finetuning.loading.load_finetuned` reads all of them.
    It is for methods that leave the denoiser's own weights as they are.

    Args:
        folder: Made here.
        attachment: Of the method, before `fold`.
        backbone: That it is attached to.
        toggles: Names of what the schedule's masks switch.
        schedule: What learned.
        method: What names the method: ``name``, ``options`` and ``scheme``.
    """
    learned = dict(_learned(attachment, schedule))
    if attachment.peft is not None:
        several = len(attachment.peft.peft_config) > 1
        if several:
            try:
                fold_adapters(attachment.peft)
            except ValueError:
                return  # nothing has been learned: the pipeline is the base model
        config: Any = copy.deepcopy(attachment.peft.peft_config["default"])
        ids = {id(parameter) for parameter in learned.values()}
        layers = [
            name
            for name, module in backbone.denoiser.named_modules()
            if isinstance(module, BaseTunerLayer)
            and (several or not ids.isdisjoint(map(id, backbone.denoiser.get_submodule(name).parameters())))
        ]
        config.target_modules = layers
        config.inference_mode = True
        config.base_model_name_or_path = backbone.name
        for pattern in ("rank_pattern", "alpha_pattern"):
            if hasattr(config, pattern):
                kept = {name: value for name, value in getattr(config, pattern).items() if name in layers}
                setattr(config, pattern, kept)
        inside = tuple(f"{_PEFT_PREFIX}{layer}." for layer in layers)
        state = get_peft_model_state_dict(attachment.peft)
        weights = {name: tensor for name, tensor in state.items() if name.startswith(inside)}
    else:
        weights = learned
    folder.mkdir(exist_ok=True)
    if attachment.peft is not None:
        config.save_pretrained(str(folder))
    save_file(
        {n: t.detach().cpu().contiguous() for n, t in weights.items()}, folder / ADAPTER_WEIGHTS, {"format": "pt"}
    )
    card = {
        "schema": ADAPTER_SCHEMA,
        "backbone": backbone.name,
        "backbone_sha256": backbone.sha256,
        "method": dict(method),
        "groups": list(toggles),
        "schedule": schedule.key,
    }
    (folder / ADAPTER_CARD).write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")


def takes_captions(base: str | Path) -> bool:
    """Whether a pipeline is conditional."""
    return "text_encoder" in DiffusionPipeline.load_config(base, local_files_only=True)


def _learned(attachment: Attachment, schedule: Schedule) -> Iterator[tuple[str, Tensor]]:
    for mask in schedule.phases:
        yield from attachment.selected(mask).items()


def _forget_where_it_came_from(file: Path) -> None:
    """Libraries note the path that a part was loaded from: it means nothing elsewhere, and may name a person."""
    content = json.loads(file.read_text(encoding="utf-8"))
    if isinstance(content, dict) and "_name_or_path" in content:
        del content["_name_or_path"]
        file.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
