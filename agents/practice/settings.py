"""How a policy practises."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from agents.ranges import Count, Rate, Weight


@dataclass(frozen=True)
class PracticeSettings:
    """How a policy practises; the defaults are for one that will choose for data sets that it has never seen.

    Attributes:
        environments: Side by side, spread evenly over the tasks.
        episodes: In each, between two updates.
        updates: How many.
        updates_after_ascent: How many in place of these after an ascent, of which more steps are worth more than PPO
            after it (``python -m agents.compare --config-name ablation`` compares them).
        epochs: Passes over the episodes of an update.
        learning_rate: Adam's, falling linearly to 0.
        clip_range: PPO's epsilon.
        entropy: Coefficient of the entropy bonus at the start, falling linearly to 0.
        value: Coefficient of the value loss.
        width: Of the hidden layers.
        ascent: Steps along the exact gradient before the first update, where every mask can be listed.
        cloning: Steps of behaviour cloning before the first update, where they cannot, or with no ascent.
        blur: Standard deviation of the noise on features, in units of the standard deviation that each has over tasks
            and groups; see `BlurredSelectionEnv`.
    """

    environments: Count = 512
    episodes: Count = 1
    updates: Annotated[int, Field(ge=0)] = 100
    updates_after_ascent: Annotated[int, Field(ge=0)] = 0
    epochs: Count = 4
    learning_rate: Rate = 2e-3
    clip_range: Rate = 0.2
    entropy: Weight = 0.03
    value: Weight = 0.5
    width: Count = 64
    ascent: Annotated[int, Field(ge=0)] = 800
    cloning: Annotated[int, Field(ge=0)] = 300
    blur: Weight = 2.0
