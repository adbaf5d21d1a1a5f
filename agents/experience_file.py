"""What a run learned about its task, for policies that learn from several: ``experience.json`` beside the policy."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from agents.search.base import Experience
from envs.task import Mask, Schedule
from rewards.errors import InputError
from rewards.objective import AnchoredObjective, Axes, Objective, Scale

SCHEMA = 1
_NAME = "experience.json"


def save_experience(folder: Path, experience: Experience) -> None:
    """Writes the file in one rename."""
    objective = experience.objective
    fields: dict[str, Any] = {
        "schema": SCHEMA,
        "env": experience.env,
        "task": experience.task,
        "objective": dataclasses.asdict(objective.objective),
        "quality": {name: list(scale) for name, scale in objective.quality.items()},
        "privacy": {name: list(scale) for name, scale in objective.privacy.items()},
        "group_features": {
            "names": experience.group_feature_names,
            "values": experience.group_features.tolist(),
        },
        "task_features": {"names": experience.task_feature_names, "values": experience.task_features.tolist()},
        "outcomes": {Schedule.constant(mask).key: list(axes) for mask, axes in experience.outcomes.items()},
    }
    partial = folder / f".{_NAME}.partial"
    partial.write_text(json.dumps(fields, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    partial.replace(folder / _NAME)


def load_experience(folder: str | Path) -> Experience:
    """The inverse of `save_experience`.

    Raises:
        InputError: If there is no such file, or it is damaged or of another schema.
    """
    path = Path(folder) / _NAME
    remedy = "name the folder of a finished train or transfer run"
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(fields, dict) or fields.get("schema") != SCHEMA:
            schema = fields.get("schema") if isinstance(fields, dict) else None
            raise ValueError(f"it has schema {schema}, this version reads {SCHEMA}")
        about, groups, task = (fields[name] for name in ("objective", "group_features", "task_features"))
        objective = Objective(tuple(about["quality"]), tuple(about["privacy"]), about["scalarization"], about["rho"])
        quality, privacy = (
            {name: Scale(*scale) for name, scale in fields[axis].items()} for axis in ("quality", "privacy")
        )
        experience = Experience(
            env=fields["env"],
            task=fields["task"],
            objective=AnchoredObjective(objective, quality, privacy, ()),
            group_features=np.asarray(groups["values"], dtype=np.float32),
            group_feature_names=tuple(groups["names"]),
            task_features=np.asarray(task["values"], dtype=np.float32),
            task_feature_names=tuple(task["names"]),
            outcomes={_mask(key): Axes(*map(float, axes)) for key, axes in fields["outcomes"].items()},
        )
        _check(experience)
        return experience
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        said = error.what if isinstance(error, InputError) else str(error) or type(error).__name__
        raise InputError(f"{path} cannot be read: {said.splitlines()[0]}", remedy) from error


def _mask(key: str) -> Mask:
    phases = Schedule.from_key(key).phases
    if len(phases) != 1:
        raise ValueError(f"a schedule of {len(phases)} phases")
    return phases[0]


def _check(experience: Experience) -> None:
    """Raises ValueError if its parts do not fit together: what learns from it takes that for granted."""
    groups = len(experience.group_features)
    shapes = experience.group_features.shape, experience.task_features.shape
    if not groups or shapes != ((groups, len(experience.group_feature_names)), (len(experience.task_feature_names),)):
        raise ValueError("other features than their names say")
    if any(len(mask) != groups for mask in experience.outcomes):
        raise ValueError(f"a mask of another length than its {groups} groups")
    if not {(False,) * groups, (True,) * groups} <= experience.outcomes.keys():
        raise ValueError("an anchor is missing")
    if not all(0 <= axis <= 1 for axes in experience.outcomes.values() for axis in axes):
        raise ValueError("axes outside [0, 1]")
