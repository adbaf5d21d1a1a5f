"""Finds the table that was measured for the task that is asked for."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from agents.settings import BackboneSettings, TrainSettings
from envs.backbones import EMBEDDED
from envs.backbones.folder import folder_sha256
from envs.backbones.load import find_pipeline
from envs.evaluators.table import EvaluationTable
from envs.methods import find_method
from envs.mitigations import find_mitigations
from envs.tables import SHIPPED
from rewards.errors import InputError

_REMEDY = "set these keys as the table has them, or measure one with python -m agents.tabulate"


def known_tables(run_dir: str | Path) -> list[Path]:
    """Files of the tables that ship and of those under ``run_dir``, in a fixed order."""
    return [*sorted(SHIPPED.glob("*.parquet")), *sorted((Path(run_dir) / "tables").glob("*.parquet"))]


def find_table(settings: TrainSettings) -> EvaluationTable:
    """The table that ``evaluator.table`` names, or the first known one that was measured for this task.

    Seeds are no part of the comparison: a table's seed is that of its fine-tunes, a run's is that of its search.

    Raises:
        InputError: If the named one cannot be read or was measured for another task, or no known one was measured for
            this; the line names what differs, of several tables in the one that differs least.
    """
    if settings.evaluator.table is not None:
        table = EvaluationTable.read(settings.evaluator.table)
        if differing := list(_differences(table, settings)):
            raise InputError(f"{settings.evaluator.table} was measured for another task: {_listed(differing)}", _REMEDY)
        return table
    nearest: tuple[Path, list[str]] | None = None
    for path in known_tables(settings.run_dir):
        table = read_table(path)
        differing = list(_differences(table, settings))
        if not differing:
            return table
        if nearest is None or len(differing) < len(nearest[1]):
            nearest = path, differing
    if nearest is None:
        raise InputError("there is no table of evaluations", "measure one with python -m agents.tabulate")
    raise InputError(f"no table was measured for this task; {nearest[0].name} differs: {_listed(nearest[1])}", _REMEDY)


@cache
def read_table(path: Path) -> EvaluationTable:
    """`EvaluationTable.read`, once for each file."""
    return EvaluationTable.read(path)


def provenance(table: EvaluationTable) -> dict[str, Any]:
    """What a table was measured for, under the configuration's keys."""
    task, env = table.task, table.card.get("env", {})
    return {
        **{f"env.{name}": value for name, value in env.items()},
        "env.name": task.env,
        "backbone.name": task.backbone,
        "backbone's files": task.backbone_sha256,
        "method.name": task.method,
        **{f"method.options.{name}": value for name, value in sorted(task.method_settings.items())},
        **_mitigation_keys(task.mitigations, task.mitigation_toggles),
        "groups": task.scheme,
        **{f"inner.{name}": value for name, value in dataclasses.asdict(task.inner).items()},
    }


def _differences(table: EvaluationTable, settings: TrainSettings) -> Iterator[str]:
    known, asked = provenance(table), _asked(settings)
    for key in sorted(known.keys() | asked.keys()):
        if known.get(key) != asked.get(key):
            yield f"{key}={known.get(key)} instead of {asked.get(key)}"
    wanted = dict.fromkeys([*settings.reward.quality, *settings.reward.privacy])
    yield from (f"it has no {name}" for name in wanted if name not in table.task.metrics)


def _asked(settings: TrainSettings) -> Mapping[str, Any]:
    method = find_method(settings.method.name, settings.method.options)
    mitigations = find_mitigations(settings.mitigation)
    chosen = {each.name: each.settings for each in mitigations}
    return {
        **{f"env.{name}": value for name, value in dataclasses.asdict(settings.env).items()},
        "backbone.name": settings.backbone.name,
        "backbone's files": _files_sha256(settings.backbone),
        "method.name": settings.method.name,
        **{f"method.options.{name}": value for name, value in sorted(method.settings.items())},
        **_mitigation_keys(chosen, settings.mitigation_toggles),
        "groups": settings.groups.name,
        **{f"inner.{name}": value for name, value in dataclasses.asdict(settings.inner).items()},
    }


def _mitigation_keys(chosen: Mapping[str, Mapping[str, Any]], toggled: Sequence[str]) -> dict[str, Any]:
    """Nothing without mitigations: tables are older than they."""
    if not chosen:
        return {}
    return {
        "mitigation": ", ".join(sorted(chosen)),
        **{f"mitigation.{name}.{key}": value for name, own in chosen.items() for key, value in own.items()},
        "mitigation_toggles": ", ".join(toggled),
    }


def _files_sha256(backbone: BackboneSettings) -> str:
    if not backbone.path:
        return folder_sha256(EMBEDDED)
    local_only, revision = backbone.local_files_only, backbone.revision
    return folder_sha256(find_pipeline(backbone.path, local_files_only=local_only, revision=revision))


def _listed(differences: list[str]) -> str:
    return ", ".join(differences)
