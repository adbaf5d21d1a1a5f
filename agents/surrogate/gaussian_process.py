"""A Gaussian process over masks, for one axis of one task."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve
from scipy.optimize import minimize

Floats = NDArray[np.float64]
Bits = NDArray[np.bool_]

# Repeats that agree exactly do not say that there is no luck, and a kernel without any cannot be inverted.
LEAST_NUGGET = 1e-3


@dataclass(frozen=True)
class Kernel:
    """``amplitude^2 exp(-sum_i rates[i] [x_i != x'_i] / g) + linear^2 (x . x') / g`` for masks of g toggles.

    The first part is COMBO's diffusion kernel on the hypercube (Oh et al., arXiv 1902.00448, with
    ``rates / g = -log tanh(beta)``): smooth along bit flips. The second makes a sum over toggles cheap to learn, where
    ``x`` is -1 for off and 1 for on. Both mean the same for any g. Each mask deviates by itself too, with standard
    deviation ``nugget``: the part of a measurement that no neighbour tells anything about, the luck of one seed.

    Attributes:
        amplitude: Of the smooth part, above 0.
        rates: One a toggle, or one for all, above 0.
        linear: Of the linear part, 0 or more.
        nugget: Above 0.
    """

    amplitude: float
    rates: tuple[float, ...]
    linear: float
    nugget: float

    def between(self, left: Bits, right: Bits) -> Floats:
        """Covariances of the smooth and the linear part, ``(n, m)``."""
        x, y = (np.asarray(masks, dtype=np.float64) for masks in (left, right))
        toggles = x.shape[1]
        rates = np.broadcast_to(self.rates, toggles)
        apart = (x * rates).sum(axis=1)[:, None] + (y * rates).sum(axis=1) - 2 * (x * rates) @ y.T
        apart /= toggles
        together = (2 * x - 1) @ (2 * y - 1).T / toggles
        return np.asarray(self.amplitude**2 * np.exp(-apart) + self.linear**2 * together)


@dataclass(frozen=True)
class GaussianProcess:
    """A posterior. Build it with `condition`.

    Attributes:
        kernel: Its prior's.
        masks: What was observed, ``(n, g)``.
        weights: ``(n,)``, the posterior mean's coefficients.
        whitening: ``(n, n)``, the inverse of the lower Cholesky factor of the observations' covariance.
    """

    kernel: Kernel
    masks: Bits
    weights: Floats
    whitening: Floats

    @classmethod
    def condition(cls, kernel: Kernel, masks: Bits, residuals: Floats) -> GaussianProcess:
        """On deviations from the prior mean, ``(n,)``, n possibly 0."""
        covariance = kernel.between(masks, masks) + kernel.nugget**2 * np.eye(len(masks))
        lower = np.linalg.cholesky(covariance)
        whitening = np.asarray(np.linalg.inv(lower), dtype=np.float64)
        return cls(kernel, masks, whitening.T @ (whitening @ residuals), whitening)

    def mean(self, masks: Bits) -> Floats:
        """Expected deviation from the prior mean, ``(m,)``."""
        return np.asarray(self.kernel.between(masks, self.masks) @ self.weights)

    def log_evidence(self, residuals: Floats) -> float:
        """Log density of the observations, ``(n,)``, under the prior: equation 2.30 of Rasmussen & Williams."""
        half_log_determinant = -float(np.log(np.diagonal(self.whitening)).sum())
        return -float(residuals @ self.weights) / 2 - half_log_determinant - len(residuals) / 2 * math.log(2 * math.pi)

    def leave_one_out(self, residuals: Floats) -> Floats:
        """What would be expected of each observation from all the others, ``(n,)``.

        In closed form: Sundararajan & Keerthi, Neural Computation 13 (2001), as equation 5.12 of Rasmussen & Williams.

        Args:
            residuals: The observations, ``(n,)``.
        """
        return np.asarray(residuals - self.weights / (self.whitening**2).sum(axis=0))

    def covariance(self, masks: Bits) -> Floats:
        """Of the deviations without the masks' own luck, ``(m, m)``."""
        cross = self.whitening @ self.kernel.between(self.masks, masks)
        return np.asarray(self.kernel.between(masks, masks) - cross.T @ cross)


def fit_kernel(
    sets: list[tuple[Bits, Floats]], start: Kernel, *, strength: float = 4.0, nugget: float | None = None
) -> Kernel:
    """Maximum a posteriori kernel of several sets of observations that share one.

    One set is a task in which something was measured. Several are tasks that are alike: their kernel is a prior for the
    next one (HyperBO: Wang et al., arXiv 2109.08215). The logarithms of all numbers have Gaussian priors around
    ``start`` with a standard deviation of one half for ``strength`` = 4, so that few observations change little.

    Args:
        sets: Masks ``(n, g)`` and deviations from the prior mean ``(n,)``; sets may differ in g if ``start`` has one
            rate for all.
        start: The prior's centre.
        strength: Precision of the priors.
        nugget: If it is known, for example from repeated measurements; taken as `LEAST_NUGGET` if below. None to find
            it.
    """
    if nugget is not None:
        start = replace(start, nugget=max(nugget, LEAST_NUGGET))
    prepared = [_Pairs.of(masks, residuals) for masks, residuals in sets if len(masks)]
    if not prepared:
        return start
    centre = np.log([start.amplitude, max(start.linear, 1e-6), start.nugget, *start.rates])

    def loss(parameters: Floats) -> tuple[float, Floats]:
        value, gradient = strength / 2 * float(((parameters - centre) ** 2).sum()), strength * (parameters - centre)
        for pairs in prepared:
            more, slope = pairs.loss(np.exp(parameters))
            value, gradient = value + more, gradient + slope
        return value, gradient

    room = np.full(len(centre), 4.0)
    room[2] = 0.0 if nugget is not None else 4.0
    bounds = list(zip(centre - room, centre + room, strict=True))
    found = minimize(loss, centre, jac=True, method="L-BFGS-B", bounds=bounds)
    amplitude, linear, nugget, *rates = np.exp(found.x).tolist()
    return Kernel(amplitude, tuple(rates), linear, nugget)


@dataclass(frozen=True)
class _Pairs:
    """One set of observations, with what does not depend on the kernel.

    Attributes:
        apart: 1 / g where two masks differ, ``(g, n, n)``.
        together: x . x' / g, ``(n, n)``.
        residuals: ``(n,)``.
    """

    apart: Floats
    together: Floats
    residuals: Floats

    @classmethod
    def of(cls, masks: Bits, residuals: Floats) -> _Pairs:
        apart = (masks[:, None, :] != masks[None, :, :]).transpose(2, 0, 1) / masks.shape[1]
        return cls(apart, 1 - 2 * apart.sum(axis=0), np.asarray(residuals, dtype=np.float64))

    def loss(self, parameters: Floats) -> tuple[float, Floats]:
        """The negative log likelihood and its gradient with respect to the logarithms of the parameters."""
        amplitude, linear, nugget, *rates = parameters
        every = np.broadcast_to(rates, len(self.apart))
        smooth = amplitude**2 * np.exp(-np.tensordot(every, self.apart, axes=1))
        identity = np.eye(len(self.residuals))
        factor = cho_factor(smooth + linear**2 * self.together + nugget**2 * identity, lower=True)
        inverse = cho_solve(factor, identity)
        weights = inverse @ self.residuals
        value = self.residuals @ weights / 2 + np.log(np.diagonal(factor[0])).sum()
        # d loss / d K, symmetric; the chain rule through K gives the rest.
        slope = (inverse - np.outer(weights, weights)) / 2
        by_rate = -np.tensordot(self.apart, slope * smooth, axes=2) * every
        return float(value), np.asarray(
            [
                2 * (slope * smooth).sum(),
                2 * linear**2 * (slope * self.together).sum(),
                2 * nugget**2 * np.trace(slope),
                *(by_rate if len(rates) > 1 else [by_rate.sum()]),
            ]
        )
