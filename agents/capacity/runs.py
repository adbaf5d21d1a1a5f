"""Which fine-tunes the comparison of methods consists of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from agents.capacity.settings import MethodsSettings
from agents.study.laboratory import Cell
from envs.evaluators.base import Evaluation
from rewards.suite import METRICS

_FULL = "full"


def tuning_cells(settings: MethodsSettings) -> list[Cell]:
    """Every method with everything on, at every learning rate."""
    everything = next(name for name, text in settings.masks.items() if text == "all")
    return [
        Cell(method, everything, settings.inner.steps, rate, settings.tuning.seed)
        for rate in settings.tuning.learning_rates
        for method in settings.methods
    ]


def best_rates(settings: MethodsSettings, found: Mapping[Cell, Evaluation]) -> dict[str, float]:
    """The learning rate of each method at which the first quality metric is best; of equals, the lowest."""
    metric = settings.reward.quality[0]
    sign = 1 if METRICS[metric].higher_is_better else -1

    def merit(cell: Cell) -> tuple[float, float]:
        value = found[cell].metrics[metric].value
        return (-float("inf") if value is None else sign * value), -cell.learning_rate

    return {
        method: max((cell for cell in found if cell.method == method), key=merit).learning_rate
        for method in settings.methods
    }


def table_cells(settings: MethodsSettings, rates: Mapping[str, float]) -> Iterator[Cell]:
    """Every method with every mask and seed at its learning rate, and full fine-tuning stopped early."""
    everything = next(name for name, text in settings.masks.items() if text == "all")
    steps, rate = settings.inner.steps, rates[_FULL]
    for seed in settings.seeds:
        for method in settings.methods:
            for mask in settings.masks:
                yield Cell(method, mask, steps, rates[method], seed)
        # The whole schedule in fewer steps, decay included: what a user who stops early would run.
        yield from (Cell(_FULL, everything, early, rate, seed) for early in settings.early_stops)
