"""A table's masks on both axes, as arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from agents.search.experience import anchored_at, measured_axes, repeats_of
from envs.evaluators.table import EvaluationTable
from envs.task import Schedule
from rewards.calibration import noise_floor
from rewards.estimate import Estimate
from rewards.objective import AnchoredObjective, Axes, Objective

Vector = NDArray[np.float64]

AXES = Axes._fields


@dataclass(frozen=True)
class Surface:
    """Every measured mask of a table on both axes.

    Attributes:
        name: Of the table.
        table: Where it comes from.
        objective: Anchored there.
        masks: ``(m, g)``, those that did not fail, in the order of binary numbers.
        axes: ``(m, 2)``, quality and privacy.
        share: ``(m,)``, trainable parameters as a share of the base model's.
        repeated: ``(r,)``, rows of ``masks`` that were measured with every seed of ``repeats``; without the anchors,
            whose axes are what they are by definition.
        repeats: ``(r, s, 2)``, their axes with each seed, the table's own first, each between its own seed's anchors.
        unusable: Seeds whose anchors leave no axes.
    """

    name: str
    table: EvaluationTable
    objective: AnchoredObjective
    masks: NDArray[np.bool_]
    axes: Vector
    share: Vector
    repeated: NDArray[np.intp]
    repeats: Vector
    unusable: tuple[int, ...]

    @classmethod
    def of(cls, name: str, table: EvaluationTable, objective: Objective) -> Surface:
        """Reads a table.

        Raises:
            InputError: If the table's own seed leaves no axes between its anchors.
        """
        own = table.task.seed
        anchored = anchored_at(table, objective)
        measured = measured_axes(table, anchored)
        repeats = repeats_of(table, objective)
        masks = list(measured)
        row = {mask: i for i, mask in enumerate(masks)}
        return cls(
            name,
            table,
            anchored,
            np.asarray(masks, dtype=np.bool_),
            np.asarray(list(measured.values()), dtype=np.float64),
            np.asarray([table.evaluations[own][Schedule.constant(mask)].trainable_share for mask in masks]),
            np.asarray([row[mask] for mask in repeats.masks], dtype=np.intp),
            repeats.axes,
            repeats.unusable,
        )

    @property
    def toggles(self) -> tuple[str, ...]:
        """Their names."""
        return self.table.task.groups

    def utilities(self, preference: float) -> Vector:
        """``(m,)``, of every mask at a weight of privacy."""
        return self._utilities(self.axes, preference)

    def repeated_utilities(self, preference: float) -> Vector:
        """``(r, s)``, of the repeated masks with each seed."""
        return self._utilities(self.repeats, preference)

    def noise(self) -> dict[str, Estimate]:
        """How far an axis differs between seeds of one mask, by its name; nothing without repeats."""
        if not self.repeats.size or self.repeats.shape[1] < 2:
            return {}
        return {name: noise_floor(list(torch.from_numpy(self.repeats[..., i]))) for i, name in enumerate(AXES)}

    def front(self) -> NDArray[np.intp]:
        """Rows of masks that nothing dominates, by falling privacy; of equals the first."""
        order = np.lexsort((-self.axes[:, 0], -self.axes[:, 1]))
        best, rows = -np.inf, []
        for row in order:
            if self.axes[row, 0] > best:
                best = self.axes[row, 0]
                rows.append(row)
        return np.asarray(rows, dtype=np.intp)

    def named(self, row: int) -> str:
        """The toggles that a mask has on."""
        on = [name for name, bit in zip(self.toggles, self.masks[row], strict=True) if bit]
        return "all" if len(on) == len(self.toggles) else ", ".join(on) or "none"

    def _utilities(self, axes: Vector, preference: float) -> Vector:
        points = axes.reshape(-1, 2).tolist()
        return np.asarray([self.objective.utility(Axes(*point), preference) for point in points]).reshape(
            axes.shape[:-1]
        )
