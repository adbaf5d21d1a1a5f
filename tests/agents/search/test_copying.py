from __future__ import annotations

import dataclasses
from statistics import fmean

import pytest

from agents.search import find_searcher
from agents.search.copying import CopyMask, CopyMeanMask
from rewards.errors import InputError
from tests.agents.search.problems import Invented

TARGET, OTHER = Invented(6, seed=0), Invented(5, seed=0).experience("other")
SOURCES = tuple(Invented(6, seed).experience(f"task {seed}") for seed in (1, 2, 3))


def test_copy_mask_asks_for_the_best_of_each_source_in_order() -> None:
    assert TARGET.asked(CopyMask(SOURCES[:1]), budget=9) == [SOURCES[0].best(0.5)]
    best = list(dict.fromkeys(source.best(0.8) for source in SOURCES))
    assert len(best) > 1
    assert TARGET.asked(CopyMask(SOURCES), budget=9, preference=0.8) == best


def test_copy_mean_mask_asks_for_the_best_on_average() -> None:
    means = {mask: fmean(source.utilities(0.5)[mask] for source in SOURCES) for mask in TARGET.axes}
    assert TARGET.asked(CopyMeanMask(SOURCES), budget=9) == [max(means, key=lambda mask: means[mask])]
    assert TARGET.asked(CopyMeanMask((OTHER, *SOURCES)), budget=9) == TARGET.asked(CopyMeanMask(SOURCES), budget=9)


def test_a_mask_that_one_source_alone_measured_is_not_the_mean() -> None:
    best = SOURCES[0].best(0.5)
    rest = {mask: axes for mask, axes in SOURCES[1].outcomes.items() if mask != best}
    sources = (SOURCES[0], dataclasses.replace(SOURCES[1], outcomes=rest))
    (asked,) = TARGET.asked(CopyMeanMask(sources), budget=9)
    assert asked == max(rest, key=lambda mask: sum(source.utilities(0.5)[mask] for source in sources))


@pytest.mark.parametrize("kind", [CopyMask, CopyMeanMask])
def test_of_a_source_masks_that_turn_a_frozen_toggle_on_do_not_count(kind: type[CopyMask | CopyMeanMask]) -> None:
    toggle = SOURCES[0].best(0.5).index(True)
    frozen = tuple(i == toggle for i in range(6))
    utilities = {mask: u for mask, u in SOURCES[0].utilities(0.5).items() if not mask[toggle]}
    asked = TARGET.asked(kind(SOURCES[:1]), budget=9, frozen=frozen)
    assert asked == [max(utilities, key=lambda mask: utilities[mask])]


@pytest.mark.parametrize("kind", [CopyMask, CopyMeanMask])
def test_without_a_preference_the_best_of_several_are_copied(kind: type[CopyMask | CopyMeanMask]) -> None:
    asked = TARGET.asked(kind(SOURCES[:1]), budget=99, preference=None)
    assert asked == list(dict.fromkeys(SOURCES[0].best(i / 10) for i in range(11)))
    assert len(asked) > 2


def test_another_number_of_toggles_is_one_line_that_names_the_source() -> None:
    with pytest.raises(InputError, match="phantom/other has 5 toggles and the problem 6"):
        TARGET.asked(CopyMask((*SOURCES, OTHER)), budget=9)
    with pytest.raises(InputError, match="none of phantom/other has 6 toggles"):
        TARGET.asked(CopyMeanMask((OTHER,)), budget=9)


@pytest.mark.parametrize("name", ["copy_mask", "copy_mean_mask"])
def test_no_source_is_one_line(name: str) -> None:
    with pytest.raises(InputError, match=f"searcher {name} has no source"):
        find_searcher(name)
