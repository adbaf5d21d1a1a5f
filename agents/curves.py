"""TensorBoard curves of a search that practises in a model."""

from __future__ import annotations

from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.logger import Image, Logger, TensorBoardOutputFormat

from agents.heat_map import heat_map
from agents.policy import SelectionNetwork, observed, selection_probabilities, tokens
from agents.session import Session, frozen_mask
from agents.surrogate.mixture import TaskBelief
from rewards.objective import hypervolume

PREFERENCES = (0.1, 0.5, 0.9)
"""At which the policy is shown besides the run's own."""


class SearchCurves:
    """Writes after each round of measurements. Use it as a context manager.

    - ``policy/probability/<group>`` at the run's preference, ``policy/at <w>/<group>`` at others,
      ``policy/entropy_bits``, ``policy/value``, and ``policy/over time``: an image, a row a group and a column a round.
    - ``search/best_utility``, ``search/hypervolume``, ``search/regret`` where the best is known, and what the belief
      expects of the policy's own choice.
    - ``evaluations/distinct``, ``cached`` and ``failed``; PPO's own diagnostics under ``train/``.

    Args:
        session: Whose search is followed.
        folder: Where the curves go; this is its only writer.

    Attributes:
        logger: Takes PPO's diagnostics.
    """

    def __init__(self, session: Session, folder: Path) -> None:
        self.session = session
        self.logger = Logger(str(folder), [TensorBoardOutputFormat(str(folder))])
        self._history: list[NDArray[np.float32]] = []
        self._frozen = frozen_mask(session.settings.frozen, session.bench.search.groups)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.logger.close()

    def show(self, network: SelectionNetwork, belief: TaskBelief) -> None:
        """After a round of measurements, on which the policy has practised."""
        self._policy(network)
        bench, preference = self.session.bench, self.session.settings.preference
        chosen = self._history[-1] > 0.5
        expected = belief.axes(chosen[None])[0]
        for name, value in zip(("quality", "privacy"), expected, strict=True):
            self.logger.record(f"policy/expected_{name}", float(value))
        observation = observed(bench.group_features, bench.task_features, preference)
        with torch.inference_mode():
            value = network.value(network.critic_latent(tokens(observation)))
        self.logger.record("policy/value", float(value))
        p = np.clip(self._history[-1], 1e-7, 1 - 1e-7)
        self.logger.record("policy/entropy_bits", float(-(p * np.log2(p) + (1 - p) * np.log2(1 - p)).sum()))
        self._search()

    def end(self, network: SelectionNetwork) -> None:
        """With the policy that comes out: ``policy/final/<group>`` at the run's preference."""
        bench, preference = self.session.bench, self.session.settings.preference
        seen = bench.group_features, bench.task_features
        probabilities = selection_probabilities(network, *seen, preference, self._frozen)
        for group, p in zip(bench.search.groups, probabilities, strict=True):
            self.logger.record(f"policy/final/{group}", float(p))
        self.logger.dump(self.session.evaluator.distinct)

    def _policy(self, network: SelectionNetwork) -> None:
        bench, settings = self.session.bench, self.session.settings
        for w in dict.fromkeys((settings.preference, *PREFERENCES)):
            probabilities = selection_probabilities(network, bench.group_features, bench.task_features, w, self._frozen)
            where = "probability" if w == settings.preference else f"at {w:g}"
            for group, p in zip(bench.search.groups, probabilities, strict=True):
                self.logger.record(f"policy/{where}/{group}", float(p))
            if w == settings.preference:
                self._history.append(probabilities)
        self.logger.record("policy/over time", Image(heat_map(np.stack(self._history, axis=1)), "HWC"))

    def _search(self) -> None:
        session = self.session
        scored = session.scored()
        if scored:
            best = max(each.utility for each in scored)
            self.logger.record("search/best_utility", best)
            self.logger.record("search/hypervolume", hypervolume(each.axes for each in scored))
            limit = session.best_of_table()
            if limit is not None:
                self.logger.record("search/regret", limit - best)
        for name in ("distinct", "cached", "failed"):
            self.logger.record(f"evaluations/{name}", getattr(session.evaluator, name))
        self.logger.dump(session.evaluator.distinct)
