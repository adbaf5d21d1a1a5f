"""How a policy practises."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from agents.ranges import Count, Rate, Weight


@dataclass(frozen=True)
class PracticeSettings:
    """How a policy practises.

    Attributes:
        environments: Side by side, spread evenly over the tasks.
        episodes: In each, between two updates.
        updates: How many.
        epochs: Passes over the episodes of an update.
        learning_rate: Adam's, falling linearly to 0.
        clip_range: PPO's epsilon.
        entropy: Coefficient of the entropy bonus at the start, falling linearly to 0.
        value: Coefficient of the value loss.
        width: Of the hidden layers.
        cloning: Gradient steps of behaviour cloning before the first update.
        blur: Standard deviation of the noise on features, in units of the standard deviation that each has over tasks
            and groups; drawn anew for each environment, which keeps its own. A policy that has seen few tasks would
            otherwise read a task's identity off the last digits of its features.
    """

    environments: Count = 64
    episodes: Count = 4
    updates: Annotated[int, Field(ge=0)] = 600
    epochs: Count = 4
    learning_rate: Rate = 2e-3
    clip_range: Rate = 0.2
    entropy: Weight = 0.03
    value: Weight = 0.5
    width: Count = 64
    cloning: Annotated[int, Field(ge=0)] = 300
    blur: Weight = 0.1
