"""Cost: how long does everything take that images alone can tell, and how does it grow?"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agents.parts import Parts
from agents.validation.images import as_tensor, draw
from agents.validation.settings import ValidateSettings
from envs.datasets.phantom import render
from rewards.alignment import ALIGNED_PIXELS, ALIGNMENT_CANDIDATES, CANDIDATES, aligned_neighbors
from rewards.duplicates import duplicate_labels
from rewards.features import cached_embedding
from rewards.neighbors import nearest_neighbors
from rewards.suite import METRICS, Suite

IMAGE_ONLY = tuple(name for name, metric in METRICS.items() if metric.needs == {"images"})
"""Metrics that look at images and nothing else."""

_CHUNK = 64


def cost(settings: ValidateSettings, results: Parts) -> dict[str, Any]:
    """Seconds of one thread at each size, in all and by step.

    Processor time is quoted: it is what a thread takes that nobody interrupts. Wall time stands beside it.
    """
    own = settings.cost
    real = min(own.real, own.sizes[-1])
    dataset = draw(settings, own.env, train=real, heldout=real, test=real)
    sets = [as_tensor(part.images) for part in (dataset.train, dataset.heldout, dataset.test)]
    missing = own.sizes[-1] - real
    if missing:
        drawn = [
            render("radiograph", range(start, min(start + _CHUNK, 3 * missing)), seed=settings.seed, size=settings.size)
            for start in range(0, 3 * missing, _CHUNK)
        ]
        phantoms = as_tensor(np.concatenate([some.images for some in drawn]))
        sets = [torch.cat([images, some]) for images, some in zip(sets, phantoms.split(missing), strict=True)]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rows = [_at([images[:n] for images in sets], own.repeats if n < own.sizes[-1] else 1) for n in own.sizes]
    finally:
        torch.set_num_threads(threads)
    last = rows[-1]
    return {
        "env": own.env,
        "split_sha256": dataset.split_sha256,
        "real": real,
        "metrics": IMAGE_ONLY,
        "sizes": rows,
        "goals": [
            {
                "goal": f"{last['n']} generated, training and held-out images within {own.goal_s:g} s on one thread",
                "found": f"{last['seconds']:.1f} s of processor time, {last['wall']:.1f} s by the clock",
                "met": last["seconds"] <= own.goal_s,
            }
        ],
    }


class _Clock:
    """Processor seconds by step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, step: str) -> Iterator[None]:
        started = time.process_time()
        yield
        self.seconds[step] = self.seconds.get(step, 0.0) + time.process_time() - started


def _at(sets: list[Tensor], repeats: int) -> dict[str, Any]:
    train, judge, generated = sets
    suite = Suite(IMAGE_ONLY, embed=cached_embedding)
    for name in ALIGNMENT_CANDIDATES:  # features are given: what is measured is what the metrics do with them
        for images in (train, train.flip(-1), judge, generated):
            cached_embedding(name)(images)
    runs = [_run(suite, train, judge, generated) for _ in range(repeats)]
    chosen = sorted(runs, key=lambda run: float(run["seconds"]))[(repeats - 1) // 2]
    return {"n": len(train), "runs": repeats, **chosen}


def _run(suite: Suite, train: Tensor, judge: Tensor, generated: Tensor) -> dict[str, Any]:
    """The whole, and then each step once more by itself."""
    whole, steps, wall = _Clock(), _Clock(), time.perf_counter()
    with whole("all"):
        reference = suite.reference(train, judge)
        sample = suite.sample(reference, generated)
        for metric in suite.metrics.values():
            metric.measure(sample)
    wall = time.perf_counter() - wall
    with steps("near-duplicates in the training set"):
        duplicate_labels(train.permute(0, 2, 3, 1).numpy())
    with steps("looking features up"):
        for name in ALIGNMENT_CANDIDATES:
            for images in (train, train.flip(-1), judge, generated):
                cached_embedding(name)(images)
    for name, known in sample.neighbors.items():
        if name != ALIGNED_PIXELS:
            gallery, flipped, k = reference.train[name], reference.flipped_train[name], known.indices.shape[1]
            with steps(f"neighbours in {name}"):
                for queries in (reference.judge[name], sample.features[name]):
                    nearest_neighbors(queries, gallery, flipped_gallery=flipped, k=k, labels=reference.labels)
    with steps("alignment"):
        for images, found in ((judge, reference.judge_neighbors), (generated, sample.neighbors)):
            candidates = [found[name].indices[:, :CANDIDATES] for name in ALIGNMENT_CANDIDATES]
            aligned_neighbors(images, train, torch.cat(candidates, dim=1))
    metrics = {}
    for name, metric in suite.metrics.items():
        own = _Clock()
        with own("null"):
            metric.null(reference)
        with own("value"):
            metric.measure(sample)
        metrics[name] = own.seconds
    counted = sum(steps.seconds.values()) + sum(sum(each.values()) for each in metrics.values())
    steps.seconds["the rest"] = max(whole.seconds["all"] - counted, 0.0)
    return {"seconds": whole.seconds["all"], "wall": wall, "steps": steps.seconds, "metrics": metrics}
