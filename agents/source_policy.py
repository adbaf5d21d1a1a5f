"""What was learned on other tasks, ready for the next one: a policy, and a prior of what masks lead to."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from agents.policy import SelectionNetwork
from agents.practice.curves import PracticeCurves
from agents.practice.landscape import Landscape
from agents.practice.learner import practise
from agents.practice.settings import PracticeSettings
from agents.search.base import Experience
from agents.surrogate.belief import NOTHING_KNOWN, Prior, belief_of, learn_prior
from agents.surrogate.set_ensemble import SetEnsembleSettings


@dataclass(frozen=True)
class SourcePolicy:
    """Learns from sources when it is first asked, once for each seed.

    Attributes:
        sources: All with the same features; none only for a policy that is given.
        practice: Of the policy, on all of them at once.
        ensemble: Of the prior's mean.
        smooth: Whether the policy practises on what a model makes of each source, rather than on the bare
            measurements. A source of which not every mask was measured is always modelled.
        blind: Whether the policy sees nothing of the task as a whole, for an ablation.
        given: A policy that was learned from them before; None to learn one.
    """

    sources: tuple[Experience, ...] = field(repr=False)
    practice: PracticeSettings = field(default_factory=PracticeSettings)
    ensemble: SetEnsembleSettings = field(default_factory=SetEnsembleSettings)
    smooth: bool = True
    blind: bool = False
    given: SelectionNetwork | None = None
    _networks: dict[int, SelectionNetwork] = field(default_factory=dict, compare=False, repr=False)
    _priors: dict[int, Prior] = field(default_factory=dict, compare=False, repr=False)

    def network(self, seed: int, curves: Path | None = None) -> SelectionNetwork:
        """The policy, at every preference.

        Args:
            seed: Of everything that is drawn.
            curves: Folder for `PracticeCurves`, if the policy has to be learned now.
        """
        if self.given is not None:
            return self.given
        if seed not in self._networks:
            landscapes = [self._seen(self._landscape(source)) for source in self.sources]
            names = [f"{source.env}-{source.task[:8]}" for source in self.sources]
            if curves is None:
                self._networks[seed] = practise(landscapes, self.practice, seed=seed)
            else:
                with PracticeCurves(landscapes, names, curves) as shown:
                    network = practise(landscapes, self.practice, seed=seed, watch=shown.show, logger=shown.logger)
                    shown.end(network)
                self._networks[seed] = network
        return self._networks[seed]

    def prior(self, seed: int) -> Prior:
        """What to believe of the next task."""
        if seed not in self._priors:
            self._priors[seed] = learn_prior(self.sources, self.ensemble, seed) if self.sources else NOTHING_KNOWN
        return self._priors[seed]

    def task_seen(self, task_features: NDArray[np.float32]) -> NDArray[np.float32]:
        """What the policy sees of a task as a whole, ``(t,)``."""
        return np.zeros_like(task_features) if self.blind else task_features

    def _seen(self, landscape: Landscape) -> Landscape:
        return replace(landscape, task_features=self.task_seen(landscape.task_features))

    def _landscape(self, source: Experience) -> Landscape:
        complete = len(source.outcomes) == 2 ** len(source.group_features)
        return Landscape.of_table(source) if complete and not self.smooth else modelled(source)


def modelled(source: Experience) -> Landscape:
    """What a Gaussian process makes of a source's measurements: their luck is smoothed away, their gaps are filled."""
    return Landscape(source.group_features, source.task_features, belief_of(source).axes, source.objective.objective)
