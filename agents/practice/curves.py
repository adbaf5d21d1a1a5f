"""TensorBoard curves of a policy that practises on many tasks at once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from stable_baselines3.common.logger import Image, Logger, TensorBoardOutputFormat

from agents.heat_map import heat_map
from agents.policy import SelectionNetwork, selection_probabilities
from agents.practice.landscape import Landscape, unit_objective, utilities_at

PREFERENCES = (0.25, 0.5, 0.75)

_EVERY = 20


class PracticeCurves:
    """Writes, every 20 updates, how good the policy's own choices are on each of the tasks.

    Use it as a context manager.

    ``<task>/utility`` and ``<task>/regret`` are means over the preferences 0.25, 0.5 and 0.75, the regret against the
    best mask of the landscape; ``<task>/over time`` is an image of the selection probabilities at 0.5: a row a group,
    a column a record. PPO's own diagnostics, if it practises, stand under ``train/``.

    Args:
        landscapes: What is practised on.
        names: Of these tasks.
        folder: Where the curves go; this is its only writer.

    Attributes:
        logger: Takes PPO's diagnostics.
    """

    def __init__(self, landscapes: Sequence[Landscape], names: Sequence[str], folder: Path) -> None:
        self._landscapes, self._names = landscapes, names
        self.logger = Logger(str(folder), [TensorBoardOutputFormat(str(folder))])
        self._updates = 0
        self._history: list[list[Any]] = [[] for _ in names]
        self._best = [[_utility(each, each.best(w), w) for w in PREFERENCES] for each in landscapes]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.logger.close()

    def show(self, network: SelectionNetwork) -> None:
        """Before an update."""
        if self._updates % _EVERY == 0:
            self._record(network)
        self._updates += 1

    def end(self, network: SelectionNetwork) -> None:
        """With the policy that comes out."""
        self._record(network)

    def _record(self, network: SelectionNetwork) -> None:
        for landscape, name, best, history in zip(
            self._landscapes, self._names, self._best, self._history, strict=True
        ):
            found = []
            for w in PREFERENCES:
                seen = landscape.group_features, landscape.task_features
                probabilities = selection_probabilities(network, *seen, w)
                found.append(_utility(landscape, tuple(bool(p > 0.5) for p in probabilities), w))
                if w == 0.5:
                    history.append(probabilities)
            self.logger.record(f"{name}/utility", float(np.mean(found)))
            self.logger.record(f"{name}/regret", float(np.mean(np.subtract(best, found))))
            self.logger.record(f"{name}/over time", Image(heat_map(np.stack(history, axis=1)), "HWC"))
        self.logger.dump(self._updates)


def _utility(landscape: Landscape, mask: Sequence[bool], preference: float) -> float:
    quality, privacy = landscape.axes(np.asarray([mask])).T
    return float(utilities_at(unit_objective(landscape.objective), quality, privacy, preference)[0])
