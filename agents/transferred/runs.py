"""Finished transfers, and which of them are one transfer with several seeds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from agents.result import SCHEMA
from rewards.errors import InputError

_REMEDY = "name folders like runs/transfer/<task>/<time>-<id> that hold result.json"
_OF_A_RUN = ("seed", "run_dir", "store.path", "data.root", "evaluator.workers")
"""What a command may say without being another experiment."""


@dataclass(frozen=True)
class TransfersSettings:
    """What ``python -m agents.transfers`` is told.

    Attributes:
        docs: Folder of the page.
        run_dir: Where runs are.
        runs: Their folders; None for every finished one under ``run_dir``.
    """

    docs: str
    run_dir: str
    runs: list[str] | None = None


@dataclass(frozen=True)
class TransferRun:
    """A finished transfer.

    Attributes:
        command: Its arguments, without those that do not make it another experiment.
        result: Its ``result.json``.
    """

    command: tuple[str, ...]
    result: dict[str, Any]

    @property
    def seed(self) -> int:
        """Of the run."""
        return int(self.result["seed"])


def finished_runs(settings: TransfersSettings) -> list[list[TransferRun]]:
    """Runs of the same command, which differ in their seeds, in the order of these.

    Raises:
        InputError: If there is none, one is no finished transfer, or a seed is there twice.
    """
    named = settings.runs
    if named is None:
        named = sorted(str(path.parent) for path in Path(settings.run_dir).glob("transfer/*/*/result.json"))
    if not named:
        raise InputError(f"no finished transfer under {settings.run_dir}", "make transfer SRC=<run or env> DST=<env>")
    found: dict[tuple[str, ...], list[TransferRun]] = {}
    for name in named:
        run = _read(Path(name))
        # Not the task's id, which has the seed in it.
        found.setdefault((run.result["data"]["split_sha256"], *run.command), []).append(run)
    for runs in found.values():
        runs.sort(key=lambda run: run.seed)
        _refuse_twins(runs)
    return list(found.values())


def _read(folder: Path) -> TransferRun:
    try:
        result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        overrides = yaml.safe_load((folder / ".hydra" / "overrides.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"runs={folder} cannot be read: {str(error).splitlines()[0]}", _REMEDY) from error
    if not isinstance(result, dict) or result.get("job") != "transfer" or result.get("schema") != SCHEMA:
        raise InputError(f"runs={folder} is no transfer of schema {SCHEMA}", _REMEDY)
    command = tuple(_typed(each) for each in overrides if each.partition("=")[0].lstrip("+") not in _OF_A_RUN)
    return TransferRun(command, result)


def _typed(override: str) -> str:
    """As it stands on a command line, where ``dst=`` is the target's ``env=``, and ``src=`` takes commas."""
    key, _, value = override.partition("=")
    if key == "src":
        return f"src={','.join(yaml.safe_load(value))}"
    return f"dst={value}" if key == "env" else override


def _refuse_twins(runs: Sequence[TransferRun]) -> None:
    seeds = [run.seed for run in runs]
    for seed in seeds:
        if seeds.count(seed) > 1:
            raise InputError(
                f"two transfers are the same: {' '.join(runs[0].command)} seed={seed}", "name one of them with runs="
            )
