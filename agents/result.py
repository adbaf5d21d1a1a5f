"""``result.json``: everything that a script needs to know about a run."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from agents.session import FinalTable, Session
from agents.settings import TrainSettings
from agents.workbench import Workbench
from envs.task import Mask
from rewards.measurement import Measurement

SCHEMA = 1
_PACKAGES = (
    "memcontrol",
    "torch",
    "diffusers",
    "transformers",
    "stable-baselines3",
    "gymnasium",
    "torchmetrics",
    "numpy",
)


def summarize(
    settings: TrainSettings,
    bench: Workbench,
    session: Session,
    table: FinalTable,
    policy_mask: Mask,
    seconds: float,
    job: str = "train",
) -> dict[str, Any]:
    """What ``result.json`` holds after a training or a transfer; every number is finite or null.

    Args:
        settings: Of the run.
        bench: Its task.
        session: After the search.
        table: The choice and the anchors on the test split. Of a schedule of several phases, the last mask is named.
        policy_mask: What the trained policy would choose by itself.
        seconds: Wall time of the run.
        job: ``train`` or ``transfer``.
    """
    task, counts = bench.search, session.counts()
    mask = table.selected.schedule.phases[-1]
    found = session.evaluations[table.selected.schedule]
    return {
        "schema": SCHEMA,
        "job": job,
        "status": "done",
        "task": {
            "id": task.id,
            "env": task.env,
            "backbone": task.backbone,
            "method": task.method,
            "method_options": dict(task.method_settings),
            "groups": list(task.groups),
        },
        "data": bench.data,
        "selected": {
            "mask": [int(on) for on in mask],
            "schedule": table.selected.schedule.key,
            "groups": named(mask, task.groups),
            "trainable_parameters": table.selected.trainable_parameters,
            "trainable_share": table.selected.trainable_share,
            "search": {"axes": session.axes(found), "metrics": _metrics(found.metrics)},
        },
        "policy": {"mask": [int(on) for on in policy_mask], "groups": named(policy_mask, task.groups)},
        "metrics": _metrics(table.selected.metrics),
        "axes": table.axes(table.selected, settings.preference),
        "axes_note": table.note,
        "judged_by": bench.judged_by,
        "anchors": {
            name: {
                "metrics": _metrics(evaluation.metrics),
                "axes": table.axes(evaluation, settings.preference),
            }
            for name, evaluation in (("base", table.base), ("full", table.full))
        },
        "preference": settings.preference,
        "seed": settings.seed,
        "evaluations": {
            "distinct": counts.distinct,
            "cached": counts.cached,
            "failed": counts.failed,
            "seconds": counts.seconds,
        },
        "seconds": seconds,
        "versions": versions(),
        "git": git_state(),
        "hardware": hardware(),
    }


def versions() -> dict[str, str]:
    """Of Python and of the packages that move numbers."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def git_state() -> dict[str, Any]:
    """Commit and dirty flag of the source tree; nulls outside one, for example in an installed wheel."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return {"commit": None, "dirty": None}
    try:
        commit = _git(root, "rev-parse", "HEAD")
        return {"commit": commit, "dirty": bool(_git(root, "status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return {"commit": None, "dirty": None}


def hardware() -> str:
    """Processor, cores that may be used, and GPUs."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return ", ".join([f"{platform.machine()} {platform.system()}, {cores} cores", *gpus])


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()


def _metrics(metrics: Mapping[str, Measurement]) -> dict[str, Any]:
    return {name: measurement.to_json() for name, measurement in metrics.items()}


def named(mask: Mask, groups: Sequence[str]) -> list[str]:
    """Names of the groups that are on."""
    return [group for group, on in zip(groups, mask, strict=True) if on]
