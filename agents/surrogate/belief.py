"""What is believed about one task: a prior mean, two Gaussian processes, and what was measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agents.search.base import Experience
from agents.surrogate.gaussian_process import GaussianProcess, Kernel, fit_kernel
from agents.surrogate.set_ensemble import SetEnsembleSettings, learn_ensemble
from envs.task import Mask
from rewards.errors import InputError
from rewards.objective import Axes

Floats = NDArray[np.float64]
Bits = NDArray[np.bool_]
MeanOf = Callable[[NDArray[np.float32], NDArray[np.float32], Bits], Floats]
"""Of a task's group features, its task features and masks ``(n, g)``: expected axes ``(n, 2)``."""


@dataclass(frozen=True)
class Prior:
    """What is believed about a task before anything is measured there.

    Attributes:
        mean: Of both axes.
        kernels: Of the deviations of quality and of privacy.
    """

    mean: MeanOf
    kernels: tuple[Kernel, Kernel]


def uninformed(group_features: NDArray[np.float32], task_features: NDArray[np.float32], masks: Bits) -> Floats:
    """From anchor to anchor: quality saturates in the share of toggles that are on, and privacy falls in proportion.

    That few parameters give most of what fine-tuning gives is why parameter-efficient methods work at all. How soon
    quality saturates differs between tasks; an expectation that is too high is corrected by the first measurements of
    few toggles, one that is too low keeps them from being made.
    """
    on = masks.mean(axis=1)
    return np.stack([1 - (1 - on) ** 6, 1 - on], axis=1)


NOTHING_KNOWN = Prior(uninformed, (Kernel(0.35, (2.0,), 0.2, 0.05), Kernel(0.2, (2.0,), 0.35, 0.05)))
"""Where a search from scratch starts: quality is a matter of combinations, privacy nearly a sum."""


def learn_prior(sources: Sequence[Experience], settings: SetEnsembleSettings, seed: int) -> Prior:
    """A prior from other tasks: as mean what a model of all of them expects, as kernels how far such a model is off.

    How far is measured where the model was not learned: on each data set (with a single one, on each task), by a model
    of the others. With a single task that cannot be measured, and the kernels are those of `NOTHING_KNOWN`.

    Raises:
        InputError: If sources have different features.
    """
    _check_features(sources)
    envs = list(dict.fromkeys(source.env for source in sources))
    folds = (
        [[s for s in sources if s.env == env] for env in envs] if len(envs) > 1 else [[source] for source in sources]
    )
    kernels = NOTHING_KNOWN.kernels
    if len(folds) > 1:
        deviations: tuple[list[tuple[Bits, Floats]], ...] = ([], [])
        for number, fold in enumerate(folds):
            others = [source for source in sources if source not in fold]
            ensemble = learn_ensemble(others, settings, seed * len(folds) + number)
            for source in fold:
                masks, axes = as_arrays(source.outcomes)
                residuals = axes - ensemble.axes(source.group_features, source.task_features, masks)
                for axis in range(2):
                    deviations[axis].append((masks, residuals[:, axis]))
        quality, privacy = (fit_kernel(sets, kernel) for sets, kernel in zip(deviations, kernels, strict=True))
        kernels = (quality, privacy)
    return Prior(learn_ensemble(sources, settings, seed).axes, kernels)


class Belief:
    """A prior for one task, and what was measured there.

    The axes of the anchors are known by definition. With few measurements the prior's kernel stands; ``adapt`` fits it
    to what was measured, which a search from scratch needs and one with a learned prior does not.

    Args:
        prior: Before any measurement.
        group_features: ``(g, f)``.
        task_features: ``(t,)``.
        adapt: Whether kernels are fitted to the measurements.
        noise: Standard deviation of one measurement on both axes, if it is known and kernels are fitted.

    Attributes:
        known: Masks whose axes are known.
    """

    def __init__(
        self,
        prior: Prior,
        group_features: NDArray[np.float32],
        task_features: NDArray[np.float32],
        *,
        adapt: bool,
        noise: Axes | None = None,
    ) -> None:
        self._prior, self._adapt, self._noise = prior, adapt, noise
        self._seen = group_features, task_features
        toggles = len(group_features)
        self.known: dict[Mask, Axes] = {(False,) * toggles: Axes(0.0, 1.0), (True,) * toggles: Axes(1.0, 0.0)}
        self._processes: tuple[GaussianProcess, GaussianProcess] | None = None

    def observe(self, outcomes: Mapping[Mask, Axes]) -> None:
        """Adds measurements."""
        self.known |= outcomes
        self._processes = None

    @property
    def processes(self) -> tuple[GaussianProcess, GaussianProcess]:
        """The posteriors of the deviations of quality and of privacy from the prior mean."""
        if self._processes is None:
            masks, axes = as_arrays(self.known)
            residuals = axes - self._prior.mean(*self._seen, masks)
            kernels: Sequence[Kernel] = self._prior.kernels
            if self._adapt:
                noise = self._noise or (None, None)
                kernels = [
                    fit_kernel([(masks, residuals[:, i])], kernel, nugget=noise[i]) for i, kernel in enumerate(kernels)
                ]
            quality, privacy = (
                GaussianProcess.condition(kernel, masks, residuals[:, i]) for i, kernel in enumerate(kernels)
            )
            self._processes = quality, privacy
        return self._processes

    def log_evidence(self) -> float:
        """Log density of everything that is known, the anchors among it, under the prior."""
        masks, axes = as_arrays(self.known)
        residuals = axes - self._prior.mean(*self._seen, masks)
        return sum(process.log_evidence(residuals[:, i]) for i, process in enumerate(self.processes))

    def axes(self, masks: Bits) -> Floats:
        """What is expected of masks ``(n, g)``: quality and privacy in [0, 1], ``(n, 2)``."""
        deviations = np.stack([process.mean(masks) for process in self.processes], axis=1)
        return np.clip(self._prior.mean(*self._seen, masks) + deviations, 0, 1)

    def foretold(self) -> dict[Mask, Axes]:
        """What would be expected of each known mask if that one were not known; the anchors are what they are."""
        masks, axes = as_arrays(self.known)
        mean = self._prior.mean(*self._seen, masks)
        residuals = axes - mean
        deviations = [process.leave_one_out(residuals[:, i]) for i, process in enumerate(self.processes)]
        found = np.clip(mean + np.stack(deviations, axis=1), 0, 1)
        anchors = {mask for mask in self.known if len(set(mask)) == 1}
        return {
            mask: self.known[mask] if mask in anchors else Axes(*expected)
            for mask, expected in zip(self.known, found.tolist(), strict=True)
        }

    def draws(self, masks: Bits, count: int, rng: np.random.Generator) -> Floats:
        """What masks ``(n, g)`` may turn out to be: ``(count, n, 2)``, in [0, 1].

        Joint over the masks, each with its own luck; a mask that is known is what it is in every draw.
        """
        mean = self._prior.mean(*self._seen, masks)
        drawn = []
        for axis, process in enumerate(self.processes):
            covariance = process.covariance(masks) + process.kernel.nugget**2 * np.eye(len(masks))
            lower = np.linalg.cholesky(covariance + 1e-10 * np.eye(len(masks)))
            noise = rng.standard_normal((count, len(masks)))
            drawn.append(mean[:, axis] + process.mean(masks) + noise @ lower.T)
        found = np.clip(np.stack(drawn, axis=-1), 0, 1)
        for i, mask in enumerate(map(tuple, masks.tolist())):
            if mask in self.known:
                found[:, i] = self.known[mask]
        return found


def belief_of(source: Experience) -> Belief:
    """What a Gaussian process makes of everything that was measured in a task, knowing how noisy that is."""
    belief = Belief(NOTHING_KNOWN, source.group_features, source.task_features, adapt=True, noise=source.noise)
    belief.observe(source.outcomes)
    return belief


def as_arrays(outcomes: Mapping[Mask, Axes]) -> tuple[Bits, Floats]:
    """Masks ``(n, g)`` and axes ``(n, 2)``."""
    return np.asarray(list(outcomes), dtype=bool), np.asarray(list(outcomes.values()), dtype=np.float64)


def _check_features(sources: Sequence[Experience]) -> None:
    first = sources[0]
    for source in sources:
        if (source.group_feature_names, source.task_feature_names) != (
            first.group_feature_names,
            first.task_feature_names,
        ):
            raise InputError(f"{source.env} and {first.env} have different features", "measure them with one version")
