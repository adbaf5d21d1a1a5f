"""From metrics to what a search maximises: two axes between measured anchors, and one number for a preference."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Literal, NamedTuple, get_args

from rewards.errors import InputError
from rewards.measurement import Measurement

Scalarization = Literal["chebyshev", "weighted_sum"]


class NotMeasuredError(RuntimeError):
    """A metric that the objective needs has no value: a failed evaluation. The message says which metric and why."""


class Axes(NamedTuple):
    """Where an evaluation stands; both in [0, 1], and more is better.

    Attributes:
        quality: 0 = the base model, 1 = full fine-tuning.
        privacy: 0 = full fine-tuning, 1 = no more memorized than held-out images.
    """

    quality: float
    privacy: float


class Scale(NamedTuple):
    """The values of a metric that count as 0 and as 1."""

    zero: float
    one: float


@dataclass(frozen=True)
class Objective:
    """What makes an evaluation good.

    Attributes:
        quality: Names of metrics; the axis is the mean over them.
        privacy: Names of metrics that have a null; the axis is the mean over them.
        scalarization: ``chebyshev`` (augmented), for which some weight finds every trade-off that is not dominated, or
            ``weighted_sum``, which finds those on the convex hull only.
        rho: The weight of the sum beside the maximum in the augmented Chebyshev scalarisation, 0 or more.

    Raises:
        InputError: If one of them is none of these.
    """

    quality: tuple[str, ...] = ("kid",)
    privacy: tuple[str, ...] = ("membership",)
    scalarization: Scalarization = "chebyshev"
    rho: float = 0.05

    def __post_init__(self) -> None:
        if not self.quality or not self.privacy:
            raise InputError(f"quality={self.quality} privacy={self.privacy}", "name at least one metric for each axis")
        if self.scalarization not in get_args(Scalarization):
            known = ", ".join(get_args(Scalarization))
            raise InputError(f"scalarization={self.scalarization!r} is unknown", f"choose among {known}")
        if not self.rho >= 0:
            raise InputError(f"rho={self.rho}", "set it to 0 or more")

    def anchor(self, base: Mapping[str, Measurement], full: Mapping[str, Measurement]) -> AnchoredObjective:
        """Fixes what counts as 0 and as 1 on both axes.

        Args:
            base: Metrics of the untouched base model.
            full: Metrics of full fine-tuning.

        Raises:
            InputError: If an anchor has no value, or the anchors of a metric coincide or are the wrong way round: full
                fine-tuning is then no better than the base model, or no more memorized than held-out images are, and
                an axis between them would be noise.
        """
        try:
            quality = {name: Scale(_value(base, name), _value(full, name)) for name in self.quality}
            privacy = {name: Scale(_value(full, name), _null(full, name)) for name in self.privacy}
        except NotMeasuredError as error:
            raise InputError(f"no anchor: {error}", "give the metric what it needs, or reward another one") from error
        for name, scale in quality.items():
            if not _rises(scale, full[name]):
                raise InputError(
                    f"full fine-tuning is no better than the base model: {name} {scale.one:.4g}, base {scale.zero:.4g}",
                    "raise inner.steps or inner.images, change inner.learning_rate, or reward another quality metric",
                )
        for name, scale in privacy.items():
            if not _rises(scale, full[name]):
                raise InputError(
                    f"full fine-tuning memorizes nothing: {name} {scale.zero:.4g}, held-out images {scale.one:.4g}",
                    "raise inner.steps or inner.images, use fewer training images, or reward another privacy metric",
                )
        scales = [(name, other) for name, (other, _) in quality.items()] + [(n, one) for n, (_, one) in privacy.items()]
        uncertain = tuple(name for name, other in scales if _within_interval(other, full[name]))
        return AnchoredObjective(self, quality, privacy, uncertain)


@dataclass(frozen=True)
class AnchoredObjective:
    """An objective whose axes mean something: build it with `Objective.anchor`.

    Attributes:
        objective: What is rewarded.
        quality: The scale of each quality metric.
        privacy: The scale of each privacy metric.
        uncertain: Metrics of which full fine-tuning's 95 % interval covers the other anchor as well: their axis may be
            mostly noise, which is worth a warning.
    """

    objective: Objective
    quality: Mapping[str, Scale]
    privacy: Mapping[str, Scale]
    uncertain: tuple[str, ...]

    def axes(self, metrics: Mapping[str, Measurement]) -> Axes:
        """Where these metrics stand.

        Raises:
            NotMeasuredError: If one that is needed has no value.
        """
        return Axes(
            *(fmean(_position(_value(metrics, n), s) for n, s in axis.items()) for axis in (self.quality, self.privacy))
        )

    def utility(self, axes: Axes, preference: float) -> float:
        """One number in [0, 1]: 0 at axes (0, 0) and 1 at (1, 1).

        The augmented Chebyshev scalarisation (Steuer & Choo 1983) of the distances 1 - quality and 1 - privacy to the
        ideal point, scaled to [0, 1], or the weighted sum of the axes.

        Args:
            axes: Where an evaluation stands.
            preference: The weight w of privacy, in [0, 1]; quality has 1 - w.

        Raises:
            InputError: If ``preference`` is outside [0, 1].
        """
        if not 0 <= preference <= 1:
            raise InputError(f"preference={preference}", "set the weight of privacy in [0, 1]")
        weights = (1 - preference, preference)
        losses = [weight * (1 - axis) for weight, axis in zip(weights, axes, strict=True)]
        if self.objective.scalarization == "weighted_sum":
            return 1 - sum(losses)
        rho = self.objective.rho
        return 1 - (max(losses) + rho * sum(losses)) / (max(weights) + rho)


def hypervolume(points: Iterable[tuple[float, float]]) -> float:
    """The area that the points dominate, both coordinates maximised, above the reference point (0, 0)."""
    area = height = 0.0
    for x, y in sorted(points, reverse=True):
        area += max(x, 0.0) * max(y - height, 0.0)
        height = max(height, y)
    return area


def _value(metrics: Mapping[str, Measurement], name: str) -> float:
    if name not in metrics:
        raise NotMeasuredError(f"{name} is not among the metrics {', '.join(metrics)}")
    value = metrics[name].value
    if value is None:
        raise NotMeasuredError(f"{name} was not measured: {metrics[name].note}")
    return value


def _null(metrics: Mapping[str, Measurement], name: str) -> float:
    null = metrics[name].null
    if null is None:
        raise NotMeasuredError(f"{name} has no null")
    return null


def _rises(scale: Scale, measurement: Measurement) -> bool:
    return scale.one > scale.zero if measurement.higher_is_better else scale.one < scale.zero


def _position(value: float, scale: Scale) -> float:
    return min(max((value - scale.zero) / (scale.one - scale.zero), 0.0), 1.0)


def _within_interval(value: float, measurement: Measurement) -> bool:
    return measurement.low is not None and measurement.high is not None and measurement.low <= value <= measurement.high
