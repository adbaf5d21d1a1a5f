"""The reusable policy among the searchers, whole and with one part changed at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from agents.search.base import Experience
from agents.search.dyna_ppo import DynaPPO
from agents.source_policy import SourcePolicy
from rewards.errors import InputError

Change = Callable[[DynaPPO], DynaPPO]


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
    return change(DynaPPO(source=SourcePolicy(tuple(experiences)), name=name))


def _source(change: Callable[[SourcePolicy], SourcePolicy]) -> Change:
    def changed(whole: DynaPPO) -> DynaPPO:
        assert whole.source is not None
        return dataclasses.replace(whole, source=change(whole.source))

    return changed


def _practice(**settings: float) -> Change:
    return _source(
        lambda source: dataclasses.replace(source, practice=dataclasses.replace(source.practice, **settings))  # type: ignore[arg-type]
    )


VARIANTS: Mapping[str, Change] = {
    "policy_with_ppo": _practice(ascent=400, updates_after_ascent=100),
    "policy_half_ascent": _practice(ascent=400),
    "policy_without_ascent": _practice(ascent=0, cloning=0),
    "policy_cloned": _practice(ascent=0),
    "policy_without_blur": _practice(blur=0.0),
    "policy_without_smoothing": _source(lambda source: dataclasses.replace(source, smooth=False)),
    "policy_without_task": _source(lambda source: dataclasses.replace(source, blind=True)),
    "policy_without_others": lambda whole: dataclasses.replace(whole, others=()),
    "policy_without_doubt": lambda whole: dataclasses.replace(whole, doubts=False),
}
"""What an ablation changes: half of the ascent with PPO after it; half of the ascent; PPO alone; behaviour cloning with
PPO after it. And what it leaves out: noise on features; the model of each source, whose bare measurements are then
practised on; the description of the task; asking for what the policy chooses at other preferences; the belief that
nothing is known of the task."""
