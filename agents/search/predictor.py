"""A neural predictor of both axes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from agents.search.base import SearchProblem
from agents.search.history import History, flipped
from agents.threads import one_thread
from envs.task import Mask
from rewards.errors import InputError
from rewards.objective import Axes

_FLIPS = 2.0
"""Toggles that a mutation flips on average."""


@dataclass(frozen=True)
class NeuralPredictor:
    """Bayesian optimization with an ensemble of small networks, after BANANAS (White et al., arXiv 1910.11858).

    The first masks are random. Then the ensemble learns both axes from the bits of all known masks, and new mutations
    of the best known masks compete by independent Thompson sampling: the axes of each are drawn from a normal
    distribution with the ensemble's mean and deviation, and the draw's utility counts. Axes are learned rather than
    utilities because they have no kink. Without a preference every choice has a weight of its own.

    Attributes:
        founders: Random masks before the first fit.
        fit_every: Choices from one fit, or as many as the evaluator works on side by side if that is more.
        members: Networks in the ensemble.
        width: Of their two hidden layers.
        epochs: Full-batch steps of AdamW for each fit, from new weights.
        learning_rate: AdamW's at the first step; it falls linearly to 0.
        weight_decay: AdamW's.
        parents: How many of the best known masks are mutated.
        candidates: Mutations for each fit.

    Raises:
        InputError: If one of them makes no sense.
    """

    name: ClassVar[str] = "predictor"
    founders: int = 8
    fit_every: int = 4
    members: int = 5
    width: int = 16
    epochs: int = 80
    learning_rate: float = 0.02
    weight_decay: float = 1e-4
    parents: int = 8
    candidates: int = 200

    def __post_init__(self) -> None:
        for name in ("founders", "fit_every", "width", "epochs", "parents", "candidates"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)}", "set it to 1 or more")
        if self.members < 2:
            raise InputError(f"members={self.members} do not disagree", "set it to 2 or more")
        if not (self.learning_rate > 0 and self.weight_decay >= 0):
            raise InputError(
                f"learning_rate={self.learning_rate} weight_decay={self.weight_decay}",
                "set them above 0 and to 0 or more",
            )

    def search(self, problem: SearchProblem, seed: int) -> None:
        """See `Searcher.search`."""
        history, rng = History(problem), np.random.default_rng(seed)
        history.ask_all(history.batch(lambda: history.draw(rng), self.founders))
        while not history.exhausted:
            history.ask_all(self._choose(history, rng))

    def _choose(self, history: History, rng: np.random.Generator) -> list[Mask]:
        """Takes masks that are worth asking for, at least one."""
        problem = history.problem
        weights = [history.weight(rng) for _ in range(max(self.fit_every, problem.parallel))]
        candidates = self._mutations(history, weights, rng)
        if not candidates:
            # Every mutation is known; some mask is not.
            return history.batch(lambda: history.draw(rng), 1)
        with one_thread():
            ensemble = _Ensemble(self, len(problem.free), rng)
            ensemble.fit(_bits(problem, list(history.known)), np.asarray(list(history.known.values())))
            predicted = ensemble.predict(_bits(problem, candidates))
        drawn = rng.normal(predicted.mean(0), predicted.std(0)).clip(0, 1).tolist()
        left = dict(zip(candidates, (Axes(*axes) for axes in drawn), strict=True))
        chosen: list[Mask] = []
        for weight in weights[: len(left)]:
            chosen.append(history.take(max(left, key=lambda mask: problem.utility(left[mask], weight))))
            del left[chosen[-1]]
        return chosen

    def _mutations(self, history: History, weights: Sequence[float], rng: np.random.Generator) -> list[Mask]:
        """New masks near the best known ones for these weights."""
        known, problem, free = history.known, history.problem, np.asarray(history.problem.free, dtype=int)
        parents = [
            parent
            for weight in dict.fromkeys(weights)
            for parent in sorted(known, key=lambda mask: -problem.utility(known[mask], weight))[: self.parents]
        ]
        found: dict[Mask, None] = {}
        for index in rng.integers(len(parents), size=self.candidates).tolist():
            flips = free[rng.random(len(free)) < _FLIPS / len(free)].tolist()
            found[flipped(parents[index], flips)] = None
        return [mask for mask in found if history.is_new(mask)]


class _Ensemble:
    """Perceptrons with two hidden layers, all trained on the same data, as batches of matrices."""

    def __init__(self, settings: NeuralPredictor, inputs: int, rng: np.random.Generator) -> None:
        self._settings = settings
        sizes = (inputs, settings.width, settings.width, len(Axes._fields))
        self._layers = [
            (
                _parameter(rng.normal(0, (2 / fan_in) ** 0.5, (settings.members, fan_in, fan_out))),
                _parameter(rng.uniform(-0.5, 0.5, (settings.members, 1, fan_out))),
            )
            for fan_in, fan_out in pairwise(sizes)
        ]

    def fit(self, bits: Tensor, axes: NDArray[np.float64]) -> None:
        """Learns ``axes`` (n, 2) of ``bits`` (n, free toggles)."""
        self._mean, self._scale = axes.mean(0), axes.std(0) + 1e-6
        wanted = torch.from_numpy((axes - self._mean) / self._scale).float()
        settings = self._settings
        adam = torch.optim.AdamW(
            [parameter for layer in self._layers for parameter in layer],
            lr=settings.learning_rate,
            weight_decay=settings.weight_decay,
        )
        for epoch in range(settings.epochs):
            adam.param_groups[0]["lr"] = settings.learning_rate * (1 - epoch / settings.epochs)
            adam.zero_grad()
            # Summed over members: none of them feels the others.
            (self._forward(bits) - wanted).square().mean((1, 2)).sum().backward()
            adam.step()

    @torch.no_grad()
    def predict(self, bits: Tensor) -> NDArray[np.float64]:
        """What each member says, ``(members, n, 2)``."""
        predicted: NDArray[np.float64] = self._forward(bits).double().numpy() * self._scale + self._mean
        return predicted

    def _forward(self, bits: Tensor) -> Tensor:
        values = bits.expand(self._settings.members, -1, -1)
        for depth, (weight, bias) in enumerate(self._layers):
            values = torch.baddbmm(bias, values if not depth else functional.silu(values), weight)
        return values


def _parameter(values: NDArray[np.float64]) -> Tensor:
    return torch.from_numpy(values).float().requires_grad_()


def _bits(problem: SearchProblem, masks: Sequence[Mask]) -> Tensor:
    """-1 and 1, of the free toggles only."""
    return 2 * torch.tensor(masks)[:, list(problem.free)].float() - 1
