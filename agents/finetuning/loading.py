"""Puts a saved adapter, of any method, back into the backbone that it was made for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import SafetensorError
from safetensors.torch import load_file

from agents.finetuning.saving import ADAPTER_CARD, ADAPTER_SCHEMA, ADAPTER_WEIGHTS
from envs.backbones.base import Backbone
from envs.groups import find_groups
from envs.methods import find_method
from rewards.errors import InputError


def load_finetuned(run: str | Path, backbone: Backbone) -> None:
    """Attaches the adapter of a fine-tune to a backbone's denoiser, in place.

    Runs of methods that have no adapter need none: their ``pipeline`` is a backbone of its own.

    Args:
        run: The run folder.
        backbone: In its base state, without a method.

    Raises:
        InputError: If there is no adapter, it cannot be read, or it was saved for another backbone.
    """
    folder = Path(run) / "adapter"
    try:
        card: dict[str, Any] = json.loads((folder / ADAPTER_CARD).read_text(encoding="utf-8"))
        schema, made_for, method, groups = (card[key] for key in ("schema", "backbone_sha256", "method", "groups"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{folder} holds no adapter: {str(error).splitlines()[0]}",
            "name a run of a method with an adapter, or load its pipeline folder as it is",
        ) from error
    if schema != ADAPTER_SCHEMA:
        raise InputError(f"{folder / ADAPTER_CARD} is of schema {schema}", f"this version reads {ADAPTER_SCHEMA}")
    if made_for != backbone.sha256:
        raise InputError(
            f"{folder} is an adapter saved for another backbone: {card['backbone']} ({made_for[:12]}), "
            f"not {backbone.name} ({backbone.sha256[:12]})",
            "load the pipeline that it was tuned from",
        )
    try:
        if (folder / "adapter_config.json").is_file():
            PeftModel.from_pretrained(backbone.denoiser, str(folder))
            return
        found = find_groups(backbone.denoiser, method["scheme"])
        attachment = find_method(method["name"], method["options"])(backbone.denoiser, found)
        named = attachment.selected((True,) * len(groups))
        with torch.no_grad():
            for name, tensor in load_file(folder / ADAPTER_WEIGHTS).items():
                named[name].copy_(tensor)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise InputError(f"{folder} does not load: {' '.join(str(error).split())}", "save it anew") from error
