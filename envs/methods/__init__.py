"""Adaptation methods by name."""

from __future__ import annotations

from envs.methods.attention import attention
from envs.methods.base import Attachment, Method
from envs.methods.bias_norm import bias_norm
from envs.methods.full import full
from rewards.errors import InputError

METHODS: dict[str, Method] = {"full": full, "attention": attention, "bias_norm": bias_norm}
"""Every method by name."""

__all__ = ["METHODS", "Attachment", "Method", "find_method"]


def find_method(name: str) -> Method:
    """The method of that name; `InputError` if there is none."""
    if name not in METHODS:
        raise InputError(f"method={name} is no adaptation method", f"choose among {', '.join(sorted(METHODS))}")
    return METHODS[name]
