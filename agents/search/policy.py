"""The reusable policy among the searchers, whole and with one part changed at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from agents.search.base import Experience
from agents.search.dyna_ppo import DynaPPO
from agents.source_policy import SourcePolicy
from rewards.errors import InputError

Change = Callable[[SourcePolicy], SourcePolicy]


def policy_of(experiences: Sequence[Experience]) -> DynaPPO:
    """A searcher whose policy and belief were learned on these tasks.

    Raises:
        InputError: If there are none.
    """
    return _policy(experiences, "policy", lambda whole: whole)


def variant_of(name: str, experiences: Sequence[Experience]) -> DynaPPO:
    """The same with the part changed that the name says, see `VARIANTS`.

    Raises:
        InputError: As `policy_of`.
    """
    return _policy(experiences, name, VARIANTS[name])


def _policy(experiences: Sequence[Experience], name: str, change: Change) -> DynaPPO:
    if not experiences:
        raise InputError(f"searcher={name} has nothing to learn from", "name sources, or choose dyna_ppo")
    return DynaPPO(source=change(SourcePolicy(tuple(experiences))), name=name)


def _practice(**settings: float) -> Change:
    def change(whole: SourcePolicy) -> SourcePolicy:
        return dataclasses.replace(whole, practice=dataclasses.replace(whole.practice, **settings))  # type: ignore[arg-type]

    return change


VARIANTS: Mapping[str, Change] = {
    "policy_with_ppo": _practice(ascent=400, updates_after_ascent=100),
    "policy_half_ascent": _practice(ascent=400),
    "policy_without_ascent": _practice(ascent=0, cloning=0),
    "policy_cloned": _practice(ascent=0),
    "policy_without_blur": _practice(blur=0.0),
    "policy_without_smoothing": lambda whole: dataclasses.replace(whole, smooth=False),
    "policy_without_task": lambda whole: dataclasses.replace(whole, blind=True),
}
"""What an ablation changes: half of the ascent with PPO after it; half of the ascent; PPO alone; behaviour cloning with
PPO after it. And what it leaves out: noise on features; the model of each source, whose bare measurements are then
practised on; the description of the task."""
