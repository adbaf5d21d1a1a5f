"""The exact search for nearest neighbours against the matrix product that it cannot do without."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor

import psutil
import torch
from torch import Tensor

from agents.benchmarks.base import Finding, Goal, paired
from agents.settings import TrainSettings
from agents.workbench import Workbench
from rewards.neighbors import nearest_neighbors

QUERIES, MEMBERS, DIMENSIONS = 10_000, 50_000, 1280


def bench_neighbors(settings: TrainSettings, bench: Workbench, runs: int) -> Finding:
    """The search for the nearest, and the 8 nearest, of random features / all products in single precision.

    At this size one run of the two takes long, and each is preceded by a warm-up: whatever ``runs`` says, there is one.
    The memory is the growth of the resident set during the search of a fifth of the queries in a process of its own,
    where nothing that was freed before can be used again; a search's memory depends on the setting ``max_bytes``, not
    on how many queries follow one another.
    """
    queries, gallery = _features(QUERIES)

    def products() -> None:
        for chunk in queries.split(1024):
            chunk @ gallery.T

    figures: dict[str, float] = {}
    for k in (1, 8):
        ours, floor, ratio = paired(
            lambda k=k: nearest_neighbors(queries, gallery, k=k),  # type: ignore[misc]
            products,
            min(runs, 1),
        )
        figures |= {f"nearest_{k}_s": ours, f"product_{k}_s": floor, f"ratio_{k}": ratio}
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        figures["extra_gb"] = pool.submit(_search_growth).result() / 2**30
    return Finding(
        figures,
        (Goal("ratio_1", 1.5), Goal("ratio_8", 1.5), Goal("extra_gb", 2)),
        min(runs, 1),
        {"queries": QUERIES, "members": MEMBERS, "dimensions": DIMENSIONS, "threads": torch.get_num_threads()},
    )


def _features(queries: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    gallery = torch.randn(MEMBERS, DIMENSIONS, generator=generator)
    return torch.randn(queries, DIMENSIONS, generator=generator), gallery


def _search_growth() -> int:
    queries, gallery = _features(QUERIES // 5)
    nearest_neighbors(queries[:1], gallery[:16])  # whatever a first call loads
    return _growth(lambda: nearest_neighbors(queries, gallery, k=8))


def _growth(action: Callable[[], object]) -> int:
    """The most bytes by which the resident set exceeds that before, looked at every few milliseconds."""
    process, done = psutil.Process(), threading.Event()
    before = peak = process.memory_info().rss

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.005):
            peak = max(peak, process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        action()
    finally:
        done.set()
        watcher.join()
    return peak - before
