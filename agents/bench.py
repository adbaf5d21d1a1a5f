"""``python -m agents.bench`` (``make bench``): the promises on speed, as ratios, into ``runs/bench/<name>.json``."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from agents.benchmarks.base import Finding
from agents.benchmarks.inner import bench_evaluation, bench_finetune, bench_generate
from agents.benchmarks.methods import bench_methods
from agents.benchmarks.metrics import bench_metrics
from agents.benchmarks.mitigations import bench_mitigations
from agents.benchmarks.neighbors import bench_neighbors
from agents.benchmarks.outer import bench_environment, bench_memory, bench_store, bench_workers
from agents.benchmarks.policy import bench_policy
from agents.entry import entry_point
from agents.result import git_state, hardware, versions
from agents.settings import TrainSettings, read_settings
from agents.workbench import Workbench, prepare
from rewards.errors import InputError

BENCHMARKS: dict[str, Callable[[TrainSettings, Workbench, int], Finding]] = {
    "store": bench_store,
    "environment": bench_environment,
    "policy": bench_policy,
    "finetune": bench_finetune,
    "generate": bench_generate,
    "evaluation": bench_evaluation,
    "memory": bench_memory,
    "workers": bench_workers,
    "methods": bench_methods,
    "mitigations": bench_mitigations,
    "metrics": bench_metrics,
    "neighbors": bench_neighbors,
}
"""Every benchmark by name."""


@dataclass(frozen=True)
class BenchSettings(TrainSettings):
    """What a training is told, and what to measure of it.

    Attributes:
        only: Names of benchmarks; all if None.
        runs: Repetitions, of which the median is quoted.
    """

    only: list[str] | None = None
    runs: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        unknown = [name for name in self.only or () if name not in BENCHMARKS]
        if unknown:
            raise InputError(f"only={','.join(unknown)} names no benchmark", f"choose among {', '.join(BENCHMARKS)}")
        if self.runs < 1:
            raise InputError(f"runs={self.runs}", "set it to 1 or more")


@entry_point("bench")
def main(config: DictConfig) -> None:
    """Runs the benchmarks that ``only=`` names, all by default, on phantoms and the embedded backbone."""
    settings = read_settings(config, BenchSettings)
    bench = prepare(settings)
    if bench.make_factory is None:
        raise InputError("evaluator=synthetic", "the benchmarks measure evaluator=finetune")
    folder = Path(settings.run_dir) / "bench"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"run_dir={settings.run_dir} cannot be written: {error}", "name another run_dir") from error
    table = Table("benchmark", "figure", "median", "goal", "")
    for name in settings.only or BENCHMARKS:
        finding = BENCHMARKS[name](settings, bench, settings.runs)
        record = asdict(finding) | {"versions": versions(), "git": git_state(), "hardware": hardware()}
        (folder / f"{name}.json").write_text(json.dumps(record, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        goals = {goal.figure: goal for goal in finding.goals}
        for figure, value in finding.figures.items():
            goal = goals.get(figure)
            sign = "" if goal is None else f"{'>=' if goal.at_least else '<='} {goal.limit:g}"
            verdict = "" if goal is None else ("met" if goal.met(finding.figures) else "missed")
            table.add_row(name, figure, f"{value:.4g}", sign, verdict)
        print(f"{name}: {', '.join(f'{k} {v:.4g}' for k, v in finding.figures.items())}", flush=True)
    Console().print(table)


if __name__ == "__main__":
    main()
