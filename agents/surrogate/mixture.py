"""Several beliefs about one task, each as credible as it foretold what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from agents.surrogate.belief import Belief, Bits, Floats
from envs.task import Mask
from rewards.objective import Axes


class TaskBelief(Protocol):
    """What a search needs of a belief; see `Belief`."""

    @property
    def known(self) -> Mapping[Mask, Axes]:
        """Masks whose axes are known."""
        ...

    def observe(self, outcomes: Mapping[Mask, Axes]) -> None:
        """Adds measurements."""
        ...

    def axes(self, masks: Bits) -> Floats:
        """What is expected of masks ``(n, g)``, ``(n, 2)``."""
        ...

    def draws(self, masks: Bits, count: int, rng: np.random.Generator) -> Floats:
        """What masks ``(n, g)`` may turn out to be, ``(count, n, 2)``."""
        ...


class BeliefMixture:
    """Bayesian model averaging (Hoeting et al., Statistical Science 14, 1999) of beliefs about one task.

    A task may be like those that were seen before, or like none of them. A belief that was learned elsewhere is sure of
    itself and, where it is wrong, stays wrong for many measurements; one that knows nothing needs some, but follows
    what it sees. Both are held at once, in proportion to how likely each made the measurements.

    What to measure next is decided by one of them at a time, as in Thompson's sampling (Biometrika 25, 1933), and with
    more doubt than their credibilities say, see `draws`.

    Args:
        beliefs: At least one, about the same task, with the same masks known; equally credible at first. The last one
            doubts the others.
    """

    def __init__(self, beliefs: Sequence[Belief]) -> None:
        self._beliefs = tuple(beliefs)
        # What all know by definition, the anchors, speaks for none.
        self._before = np.asarray([belief.log_evidence() for belief in beliefs])

    @property
    def known(self) -> Mapping[Mask, Axes]:
        """See `Belief`."""
        return self._beliefs[0].known

    @property
    def credibilities(self) -> NDArray[np.float64]:
        """Posterior probability of each belief, ``(b,)``."""
        gained = np.asarray([belief.log_evidence() for belief in self._beliefs]) - self._before
        likelihoods = np.exp(gained - gained.max())
        return np.asarray(likelihoods / likelihoods.sum())

    def observe(self, outcomes: Mapping[Mask, Axes]) -> None:
        """See `Belief.observe`."""
        for belief in self._beliefs:
            belief.observe(outcomes)

    def axes(self, masks: Bits) -> Floats:
        """The mean over the beliefs; see `Belief.axes`."""
        expected = np.stack([belief.axes(masks) for belief in self._beliefs])
        return np.asarray(np.tensordot(self.credibilities, expected, axes=1))

    def draws(self, masks: Bits, count: int, rng: np.random.Generator) -> Floats:
        """See `Belief.draws`; all of them of one belief, which is drawn by the beliefs' credibilities.

        Each decision is made as if one belief were true. Draws of several at once would water down what one hopes for
        with another's certainty that there is nothing to gain. The last belief is drawn no more seldom than at first:
        where another sees nothing to gain, nothing is measured, so measurements elsewhere, however well they were
        foretold, do not speak for it there.
        """
        shares = self.credibilities
        least = 1 / len(shares)
        if shares[-1] < least:
            shares[:-1] *= (1 - least) / shares[:-1].sum()
            shares[-1] = least
        drawn = rng.choice(len(shares), p=shares)
        return self._beliefs[drawn].draws(masks, count, rng)
