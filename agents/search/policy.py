"""The reusable policy among the searchers: `DynaPPO` with everything that is known of other tasks."""

from __future__ import annotations

from collections.abc import Sequence

from agents.search.base import Experience
from agents.search.dyna_ppo import DynaPPO
from agents.source_policy import SourcePolicy
from rewards.errors import InputError


def policy_of(experiences: Sequence[Experience]) -> DynaPPO:
    """A searcher whose policy and belief were learned on these tasks.

    Raises:
        InputError: If there are none.
    """
    if not experiences:
        raise InputError("searcher=policy has nothing to learn from", "name sources, or choose dyna_ppo")
    return DynaPPO(source=SourcePolicy(tuple(experiences)), name="policy")
