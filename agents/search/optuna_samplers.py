"""Optuna's samplers, asked for one mask after another."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import optuna
from optuna.distributions import CategoricalDistribution
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, TPESampler
from optuna.trial import Trial, TrialState

from agents.search.base import SearchProblem
from agents.search.history import History
from envs.task import Mask
from rewards.errors import InputError
from rewards.objective import Axes


@dataclass(frozen=True)
class _OptunaSearch(ABC):
    """Maximises the utility, or without a preference both axes, with a sampler of Optuna.

    A budget counts distinct masks, and on a few toggles samplers soon repeat themselves. A repeat is replaced by the
    new mask nearest to it: telling the sampler the known answer again found no more, and took several times as long.
    That it knows the anchors before it starts was no help either.

    Attributes:
        startup: Random masks at the start, at least 1.

    Raises:
        InputError: If there are fewer.
    """

    startup: int = 10

    def __post_init__(self) -> None:
        _at_least("startup", self.startup, 1)

    @abstractmethod
    def sampler(self, seed: int) -> BaseSampler:
        """A new one of Optuna's samplers."""

    def search(self, problem: SearchProblem, seed: int) -> None:
        """See `Searcher.search`."""
        history, rng = History(problem), np.random.default_rng(seed)
        study = _Study(problem, self.sampler(seed))
        while not history.exhausted:
            trials: list[tuple[Trial, Mask]] = []
            while len(trials) < problem.parallel and not history.exhausted:
                trial, mask = study.ask()
                if not history.is_new(mask):
                    study.tell(trial, None)
                    near = history.near(mask, rng)
                    assert near is not None, "the history is not exhausted"
                    trial, mask = study.enqueue(near), near
                trials.append((trial, history.take(mask)))
            history.ask([mask for _, mask in trials])
            for trial, mask in trials:
                study.tell(trial, history.answer(mask))


@dataclass(frozen=True)
class TPE(_OptunaSearch):
    """Tree-structured Parzen estimators (Bergstra et al. 2011), multivariate (Falkner et al., arXiv 1807.01774)."""

    name: ClassVar[str] = "tpe"

    def sampler(self, seed: int) -> BaseSampler:
        """A new one of Optuna's samplers."""
        return TPESampler(n_startup_trials=self.startup, multivariate=True, seed=seed)


@dataclass(frozen=True)
class NSGA2:
    """NSGA-II (Deb et al. 2002) with a population that budgets of tens of evaluations turn over several times.

    A repeat is answered from what is known: selection goes on for nothing, which found more than replacing the repeat.
    A search that has only repeated itself for as long as ``patience`` is over.

    Attributes:
        population: How many masks survive a generation, at least 2.
        patience: Known masks in a row, at least 1.

    Raises:
        InputError: If one of them is smaller.
    """

    name: ClassVar[str] = "nsga2"
    population: int = 8
    patience: int = 100

    def __post_init__(self) -> None:
        _at_least("population", self.population, 2)
        _at_least("patience", self.patience, 1)

    def search(self, problem: SearchProblem, seed: int) -> None:
        """See `Searcher.search`."""
        history = History(problem)
        study = _Study(problem, NSGAIISampler(population_size=self.population, seed=seed))
        repeats = 0
        while repeats < self.patience and not history.exhausted:
            trials: list[tuple[Trial, Mask]] = []
            new: list[Mask] = []
            while len(new) < problem.parallel and repeats < self.patience:
                trial, mask = study.ask()
                if history.is_new(mask):
                    new.append(history.take(mask))
                    repeats = 0
                else:
                    repeats += 1
                trials.append((trial, mask))
            history.ask(new)
            for trial, mask in trials:
                study.tell(trial, history.answer(mask))


@dataclass(frozen=True)
class NSGA2Reference(NSGA2):
    """`NSGA2` as MemControl (arXiv 2405.19458) runs it: Optuna's default population, so 50 random masks first."""

    name: ClassVar[str] = "nsga2_reference"
    population: int = 50


@dataclass(frozen=True)
class GP(_OptunaSearch):
    """A Gaussian process with log expected improvement, without a preference of the hypervolume (arXiv 2310.20708).

    Seconds for each mask once tens of them are known.
    """

    name: ClassVar[str] = "gp"

    def sampler(self, seed: int) -> BaseSampler:
        """A new one of Optuna's samplers."""
        with warnings.catch_warnings():
            # A mask has one answer, which the sampler can be told; Optuna calls the argument experimental.
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return GPSampler(
                n_startup_trials=self.startup, deterministic_objective=True, warn_independent_sampling=False, seed=seed
            )


class _Study:
    """A study of one problem in masks and axes."""

    def __init__(self, problem: SearchProblem, sampler: BaseSampler) -> None:
        self._problem = problem
        self._toggles = {str(toggle): CategoricalDistribution((False, True)) for toggle in problem.free}
        with _quiet():
            self._study = optuna.create_study(
                directions=["maximize"] * (2 if problem.preference is None else 1), sampler=sampler
            )

    def ask(self) -> tuple[Trial, Mask]:
        """What the sampler wants to know next."""
        trial = self._study.ask(dict(self._toggles))
        return trial, self._problem.mask([int(name) for name, on in trial.params.items() if on])

    def enqueue(self, mask: Mask) -> Trial:
        """A trial of this mask, which counts as running until it is told."""
        self._study.enqueue_trial({name: mask[int(name)] for name in self._toggles})
        trial, asked = self.ask()
        assert asked == mask
        return trial

    def tell(self, trial: Trial, axes: Axes | None) -> None:
        """Where its mask stands; None if the evaluation failed."""
        with _quiet():
            if axes is None:
                self._study.tell(trial, state=TrialState.FAIL)
            elif self._problem.preference is None:
                self._study.tell(trial, list(axes))
            else:
                self._study.tell(trial, self._problem.utility(axes))


@contextmanager
def _quiet() -> Iterator[None]:
    """Optuna announces every study; its level is put back, since others may want to read it."""
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(level)


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise InputError(f"{name}={value}", f"set it to {least} or more")
