"""Everything that images alone can tell, at the size of a careful audit."""

from __future__ import annotations

from statistics import median

import torch

from agents.benchmarks.base import Finding, Goal, seconds
from agents.settings import TrainSettings
from agents.workbench import Workbench
from envs.datasets.phantom import render
from rewards.features import cached_embedding
from rewards.suite import METRICS, Suite

IMAGES = 1000


def bench_metrics(settings: TrainSettings, bench: Workbench, runs: int) -> Finding:
    """Seconds for all metrics of images on 1000 generated, training and held-out phantoms, features being known."""
    drawn = torch.from_numpy(render("radiograph", range(3 * IMAGES), seed=settings.seed).images)
    train, judge, generated = drawn.permute(0, 3, 1, 2).contiguous().split(IMAGES)
    suite = Suite([name for name, metric in METRICS.items() if metric.needs == {"images"}], embed=cached_embedding)

    def measure() -> None:
        suite.measure(suite.reference(train, judge), generated)

    measure()  # embeds
    taken = [seconds(measure) for _ in range(runs)]
    return Finding(
        {"metrics_s": median(taken)},
        (Goal("metrics_s", 20),),
        runs,
        {"images": IMAGES, "metrics": list(suite.metrics), "threads": torch.get_num_threads()},
    )
