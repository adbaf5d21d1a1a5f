"""Adaptation methods by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

from envs.methods.adapter import Adapter
from envs.methods.attention import Attention
from envs.methods.base import Attachment, Calibration, Method
from envs.methods.bias_norm import BiasNorm
from envs.methods.difffit import DiffFit
from envs.methods.dora import DoRA
from envs.methods.full import Full
from envs.methods.importance import Importance
from envs.methods.lora import LoRA
from envs.methods.svdiff import SVDiff
from rewards.errors import InputError

METHODS: dict[str, Callable[..., Method]] = {
    "full": Full,
    "attention": Attention,
    "bias_norm": BiasNorm,
    "difffit": DiffFit,
    "svdiff": SVDiff,
    "lora": LoRA,
    "dora": DoRA,
    "adapter": Adapter,
    "importance": Importance,
}
"""Every method by name: frozen dataclasses whose fields are its settings."""

__all__ = ["METHODS", "Attachment", "Calibration", "Method", "find_method"]


def find_method(name: str, settings: Mapping[str, Any] | None = None) -> Method:
    """The method of that name.

    Args:
        name: A name in `METHODS`.
        settings: Of the method, as ``method.options`` gives them; what is missing has its default.

    Raises:
        InputError: If there is no such method or setting, or a setting's value is wrong.
    """
    if name not in METHODS:
        raise InputError(f"method={name} is no adaptation method", f"choose among {', '.join(sorted(METHODS))}")
    kind, given = METHODS[name], dict(settings or {})
    known = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise InputError(
            f"method={name} has no setting {', '.join(unknown)}",
            f"its settings are {', '.join(known)}" if known else "it has none",
        )
    return kind(**given)
