"""The one seam where scale enters: `Evaluator` turns schedules into `Evaluation`s."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from envs.task import Schedule
from rewards.measurement import Measurement


@dataclass(frozen=True)
class Evaluation:
    """What one schedule of masks led to. Holds no tensors.

    Attributes:
        schedule: What was evaluated.
        metrics: By name; empty if the run failed.
        trainable_parameters: Numbers that some phase of the schedule may change.
        total_parameters: Numbers in the base model's denoiser, without what a method adds.
        steps: Optimizer steps taken.
        figures: What became of what was done besides plain training, by name; empty for plain training.
        seconds: Wall time of the evaluation. Not part of its identity: see `same_numbers`.
        failure: Why there are no metrics (NaN loss, out of memory, a killed worker); empty if there are.
    """

    schedule: Schedule
    metrics: Mapping[str, Measurement] = field(default_factory=dict)
    trainable_parameters: int = 0
    total_parameters: int = 0
    steps: int = 0
    seconds: float = 0.0
    failure: str = ""
    figures: Mapping[str, float] = field(default_factory=dict)

    @property
    def trainable_share(self) -> float:
        """Trainable parameters as a share of the base model's, in [0, 1] for methods that add none."""
        return self.trainable_parameters / self.total_parameters if self.total_parameters else 0.0

    def to_json(self) -> dict[str, Any]:
        """JSON values; see `from_json`."""
        return {
            "schedule": self.schedule.key,
            "metrics": {name: m.to_json() for name, m in self.metrics.items()},
            "trainable_parameters": self.trainable_parameters,
            "total_parameters": self.total_parameters,
            "steps": self.steps,
            "seconds": self.seconds,
            "failure": self.failure,
            **({"figures": dict(self.figures)} if self.figures else {}),
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Evaluation:
        """The inverse of `to_json`."""
        return cls(
            schedule=Schedule.from_key(fields["schedule"]),
            metrics={name: Measurement.from_json(m) for name, m in fields["metrics"].items()},
            trainable_parameters=fields["trainable_parameters"],
            total_parameters=fields["total_parameters"],
            steps=fields["steps"],
            seconds=fields["seconds"],
            failure=fields["failure"],
            figures=fields.get("figures", {}),
        )

    def same_numbers(self, other: Evaluation) -> bool:
        """Equal in everything but wall time: what determinism promises."""
        return self.to_json() | {"seconds": 0} == other.to_json() | {"seconds": 0}


class Evaluator(Protocol):
    """Measures schedules of masks. Sequential, a process pool, a table, a closed form: all behind this.

    An evaluation is a pure function of its schedule: independent of the other schedules, their order and the past.
    """

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of the toggles, in the order of a mask's bits."""
        ...

    def evaluate_iter(self, schedules: Sequence[Schedule]) -> Iterator[tuple[int, Evaluation]]:
        """Yields ``(index into schedules, evaluation)`` as each one is finished, in any order, each index once.

        A schedule whose run fails is yielded with `Evaluation.failure`; it raises nothing.
        """
        ...

    def close(self) -> None:
        """Gives back processes and memory; safe to call twice."""
        ...


def evaluate_many(evaluator: Evaluator, schedules: Sequence[Schedule]) -> list[Evaluation]:
    """All evaluations in the order of ``schedules``."""
    done = dict(evaluator.evaluate_iter(schedules))
    return [done[i] for i in range(len(schedules))]
