"""A few searchers as plain as can be, in the form of `agents.search`'s registry."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import agents.search
from agents.search.base import Experience, Searcher, SearchProblem
from envs.task import Mask
from rewards.errors import InputError


def every_mask(toggles: int) -> list[Mask]:
    return [tuple(bit == "1" for bit in f"{number:0{toggles}b}") for number in range(2**toggles)]


@dataclass(frozen=True)
class Random:
    """All masks in random order."""

    name: ClassVar[str] = "random"

    def search(self, problem: SearchProblem, seed: int) -> None:
        masks = every_mask(problem.toggles)
        random.Random(seed).shuffle(masks)
        for mask in masks:
            problem.ask([mask])


@dataclass(frozen=True)
class AllOn:
    """Everything on, and no more."""

    name: ClassVar[str] = "all_on"

    def search(self, problem: SearchProblem, seed: int) -> None:
        problem.ask([(True,) * problem.toggles] * 3)


@dataclass(frozen=True)
class CopyMask:
    """The best mask of the first source, and then, if asked to, a random search."""

    name: ClassVar[str] = "copy_mask"
    experiences: Sequence[Experience]
    goes_on: bool = False

    def search(self, problem: SearchProblem, seed: int) -> None:
        preference = 0.5 if problem.preference is None else problem.preference
        problem.ask([self.experiences[0].best(preference)])
        if self.goes_on:
            Random().search(problem, seed)


SEARCHERS = ("random", "all_on", "copy_mask", "policy")


def find_searcher(name: str, experiences: Sequence[Experience] = ()) -> Searcher:
    if name in ("copy_mask", "policy"):
        if not experiences:
            raise InputError(f"{name} has nothing to learn from", "give tables of another data source")
        return CopyMask(experiences, goes_on=name == "policy")
    return Random() if name == "random" else AllOn()


def registered() -> None:
    """In a command's process these are all the searchers there are."""
    search: Any = agents.search
    search.SEARCHERS, search.find_searcher = SEARCHERS, find_searcher
