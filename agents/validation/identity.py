"""What decides the content of a part of the proof."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

from agents.validation.settings import Part, ValidateSettings
from envs.backbones import EMBEDDED
from envs.task import CODE_VERSION

_FORMAT = 1
"""Raise it when a part computes something else from the same settings."""


def identity_of(part: Part, settings: ValidateSettings) -> dict[str, Any]:
    """What decides a part's result, as JSON values."""
    own = asdict(getattr(settings, part))
    fields: dict[str, Any] = {
        part: own,
        "size": settings.size,
        "seed": settings.seed,
        "options": settings.options,
        "code": CODE_VERSION,
        "format": _FORMAT,
    }
    if part in ("planted", "false_positives", "objective"):
        fields["envs"] = settings.envs
    if part in ("models", "objective"):
        fields["backbone"] = _weights_sha256(backbone_path(settings))
        fields["reward"] = asdict(settings.reward)
    return fields


def backbone_path(settings: ValidateSettings) -> Path:
    """The pipeline's folder."""
    return Path(settings.backbone.path) if settings.backbone.path else EMBEDDED


def _weights_sha256(folder: Path) -> str:
    """Without loading them. A folder that is none is refused when it is loaded."""
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*.safetensors")):
        digest.update(f"{file.relative_to(folder).as_posix()}\0".encode())
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()
