"""Exhaustively measured masks of one task, in a Parquet file that says where its numbers come from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from envs.evaluators.base import Evaluation
from envs.task import InnerBudget, Schedule, SelectionTask, mitigation_versions
from rewards.errors import InputError
from rewards.measurement import Measurement

SCHEMA = 1
_KEY = b"memcontrol"
_PARTS = ("value", "null", "low", "high", "n", "note")
_REMEDY = "make it with python -m agents.tabulate"


@dataclass(frozen=True)
class EvaluationTable:
    """Every mask of a task, and some of them with further seeds.

    Attributes:
        task: What was evaluated; its seed is the one that every mask has.
        evaluations: By seed, then by schedule.
        group_feature_names: Columns of ``group_features``.
        group_features: What a policy may know about each toggle, ``(g, f)``.
        task_feature_names: Entries of ``task_features``.
        task_features: What it may know about the task, ``(t,)``.
        card: The data, and when, where and by what the table was made; JSON values.
    """

    task: SelectionTask
    evaluations: Mapping[int, Mapping[Schedule, Evaluation]]
    group_feature_names: tuple[str, ...]
    group_features: NDArray[np.float32]
    task_feature_names: tuple[str, ...]
    task_features: NDArray[np.float32]
    card: Mapping[str, Any]

    def __post_init__(self) -> None:
        masks = 2 ** len(self.task.groups)
        found = len(self.evaluations.get(self.task.seed, ()))
        if found != masks:
            raise ValueError(f"a table of {len(self.task.groups)} toggles has {masks} masks, not {found}")

    @property
    def repeated(self) -> list[Schedule]:
        """The schedules that every seed has, in order."""
        return sorted(set.intersection(*(set(of_seed) for of_seed in self.evaluations.values())))

    def write(self, path: Path) -> None:
        """Writes the file in one rename.

        Raises:
            InputError: If it cannot be written.
        """
        rows = [(seed, e) for seed, of_seed in sorted(self.evaluations.items()) for _, e in sorted(of_seed.items())]
        metrics = {name: m for _, e in rows for name, m in e.metrics.items()}
        columns: dict[str, list[Any]] = {
            "mask": [e.schedule.key for _, e in rows],
            "seed": [seed for seed, _ in rows],
            "trainable_parameters": [e.trainable_parameters for _, e in rows],
            "total_parameters": [e.total_parameters for _, e in rows],
            "steps": [e.steps for _, e in rows],
            "seconds": [e.seconds for _, e in rows],
            "failure": [e.failure for _, e in rows],
        }
        for name in metrics:
            for part in _PARTS:
                columns[f"{name}.{part}"] = [
                    getattr(e.metrics[name], part) if name in e.metrics else None for _, e in rows
                ]
        about = {
            "schema": SCHEMA,
            "task": self.task.identity() | {"backbone": self.task.backbone},
            "metrics": {name: m.higher_is_better for name, m in metrics.items()},
            "group_features": {"names": self.group_feature_names, "values": self.group_features.tolist()},
            "task_features": {"names": self.task_feature_names, "values": self.task_features.tolist()},
            "card": self.card,
        }
        table = pa.table({name: _column(name, values) for name, values in columns.items()})
        table = table.replace_schema_metadata({_KEY: json.dumps(about, allow_nan=False).encode()})
        partial = path.with_name(f".{path.name}.partial")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(table, partial, compression="zstd")
            partial.replace(path)
        except OSError as error:
            raise InputError(f"{path} cannot be written: {error}", "name another folder") from error

    @classmethod
    def read(cls, path: str | Path) -> EvaluationTable:
        """The inverse of `write`.

        Raises:
            InputError: If there is no such file, it is damaged or no table, or its schema is unknown.
        """
        try:
            table = pq.read_table(path)
        except (OSError, pa.ArrowException) as error:
            reason = " ".join(str(error).split())
            raise InputError(f"table {path} cannot be read: {reason}", _REMEDY) from error
        metadata = (table.schema.metadata or {}).get(_KEY)
        if metadata is None:
            raise InputError(f"{path} is a Parquet file, but no table of evaluations", _REMEDY)
        about = json.loads(metadata)
        if about["schema"] != SCHEMA:
            raise InputError(f"table {path} has schema {about['schema']}, this version reads {SCHEMA}", _REMEDY)
        evaluations: dict[int, dict[Schedule, Evaluation]] = {}
        for row in table.to_pylist():
            evaluation = _evaluation(row, about["metrics"])
            evaluations.setdefault(row["seed"], {})[evaluation.schedule] = evaluation
        fields = about["task"]
        code, mitigation_code = fields.pop("code"), fields.pop("mitigation_code", {})
        task = SelectionTask(
            **fields
            | {name: tuple(fields[name]) for name in ("groups", "metrics")}
            | {"inner": InnerBudget(**fields["inner"])}
        )
        if task.identity()["code"] != code:
            raise InputError(
                f"table {path} was measured by code version {code}, this is {task.identity()['code']}", _REMEDY
            )
        if (now := mitigation_versions(task.mitigations)) != mitigation_code:
            raise InputError(
                f"table {path} was measured by versions {mitigation_code} of its mitigations, these are {now}", _REMEDY
            )
        groups, whole = about["group_features"], about["task_features"]
        return cls(
            task,
            evaluations,
            tuple(groups["names"]),
            np.asarray(groups["values"], dtype=np.float32),
            tuple(whole["names"]),
            np.asarray(whole["values"], dtype=np.float32),
            about["card"],
        )


def _column(name: str, values: Sequence[Any]) -> pa.Array:
    kind = {
        "mask": pa.string(),
        "failure": pa.string(),
        "note": pa.string(),
        "seed": pa.int64(),
        "trainable_parameters": pa.int64(),
        "total_parameters": pa.int64(),
        "steps": pa.int64(),
        "n": pa.int64(),
    }.get(name.rpartition(".")[2], pa.float64())
    return pa.array(values, kind)


def _evaluation(row: Mapping[str, Any], metrics: Mapping[str, bool]) -> Evaluation:
    measured = {
        name: Measurement(**{part: row[f"{name}.{part}"] for part in _PARTS}, higher_is_better=higher_is_better)
        for name, higher_is_better in metrics.items()
        if row[f"{name}.n"] is not None
    }
    return Evaluation(
        Schedule.from_key(row["mask"]),
        measured,
        row["trainable_parameters"],
        row["total_parameters"],
        row["steps"],
        row["seconds"],
        row["failure"],
    )
