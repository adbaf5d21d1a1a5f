"""What a policy that is worth reusing has to reach, as measurements on a comparison."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from agents.comparison.scores import REACHED, Scores
from agents.comparison.statistics import interval, iqm, iqm_estimate, median_estimate, resampled_iqm
from rewards.estimate import Estimate

POLICY = "policy"
"""The searcher that learned from other data sources."""
SCRATCH = "dyna_ppo"
"""The same searcher without anything to learn from."""
COPY_MASK = "copy_mask"
TPE = "tpe"
RIVALS = ("random", "tpe", "nsga2", "evolution")
"""Searchers of which the best one is the measure of learning within a task."""


@dataclass(frozen=True)
class Verdict:
    """How a goal stands.

    Attributes:
        goal: What has to be reached.
        measured: What was reached, in words with numbers.
        met: None if it was not measured.
    """

    goal: str
    measured: str
    met: bool | None


def verdicts(scores: Scores) -> list[Verdict]:
    """Every goal, measured where the searchers that it speaks of are among the results."""
    return [_verdict(scores, goal) for goal in GOALS]


@dataclass(frozen=True)
class Goal:
    """Something to reach.

    Attributes:
        text: In words.
        searchers: That it speaks of, and the evaluations that each of them needs to be judged.
        judge: Says what was measured, and whether that is enough; None if it is measured elsewhere.
        utilities: It needs searches with preferences.
        fronts: It needs searches for the whole front.
        elsewhere: Where, if not here.
    """

    text: str
    searchers: Mapping[str, int] = field(default_factory=dict)
    judge: Callable[[Scores], tuple[str, bool]] | None = None
    utilities: bool = True
    fronts: bool = False
    elsewhere: str = ""


def _verdict(scores: Scores, goal: Goal) -> Verdict:
    if goal.judge is None:
        return Verdict(goal.text, f"not measured here: {goal.elsewhere}", None)
    missing = [name for name in goal.searchers if name not in scores.searchers]
    short = [f"{n} evaluations of {name}" for name, n in goal.searchers.items() if _short(scores, name, n)]
    if missing:
        return Verdict(goal.text, f"not measured: {', '.join(missing)} did not run", None)
    if short:
        return Verdict(goal.text, f"not measured: the budgets have no {', '.join(short)}", None)
    if (goal.utilities and not scores.weights) or (goal.fronts and not scores.has_fronts):
        return Verdict(goal.text, "not measured: these preferences did not run", None)
    return Verdict(goal.text, *goal.judge(scores))


def _short(scores: Scores, name: str, evaluations: int) -> bool:
    return name in scores.searchers and scores.budget(name) < evaluations


def _zero_shot(scores: Scores) -> tuple[str, bool]:
    first = _utility(scores, POLICY, 1)
    foreseeable = float(iqm(scores.foreseeable().reshape(-1)))
    return f"{_text(first)} of the best utility, of which {foreseeable:.3f} is foreseeable", first.value >= 0.95


def _above_copy_mask(scores: Scores) -> tuple[str, bool]:
    first, copied = _utility(scores, POLICY, 1), _utility(scores, COPY_MASK, 1)
    assert copied.high is not None
    return f"{_text(first)}, {COPY_MASK} {_text(copied)}", first.value > copied.high


def _at_least_tpe(zero_shot_or_few: int, tpe: int) -> Callable[[Scores], tuple[str, bool]]:
    def judge(scores: Scores) -> tuple[str, bool]:
        ours, theirs = _utility(scores, POLICY, zero_shot_or_few), _utility(scores, TPE, tpe)
        return f"{_text(ours)}, {TPE} {_text(theirs)}", ours.value >= theirs.value

    return judge


def _quarter(scores: Scores) -> tuple[str, bool]:
    medians = {name: median_estimate(scores.evaluations_to(name), scores.draws) for name in (SCRATCH, *RIVALS)}
    ours = medians.pop(SCRATCH)
    best = min(medians, key=lambda name: medians[name].value)
    theirs = medians[best]
    if np.isinf(ours.value):
        return f"not reached by most runs of {SCRATCH}; {best} needs {_count(theirs)}", False
    if np.isinf(theirs.value):
        words = f"{_count(ours)}; most runs of every rival do not reach it within {scores.budget(best)}"
        return words, ours.value <= scores.budget(best) / 4
    return f"{_count(ours)}, {best} {_count(theirs)}: a share of {ours.value / theirs.value:.2f}", (
        ours.value <= theirs.value / 4
    )


def _never_below(scores: Scores) -> tuple[str, bool]:
    counts = [n for n in (1, 2, 4, 8, 16, 32, 64, 128) if n <= scores.budget(POLICY)]
    runs = [scores.utility(POLICY, n) for n in counts]
    worst = min(float((after - runs[0]).min()) for after in runs)
    values = [float(iqm(after.reshape(-1))) for after in runs]
    gains = resampled_iqm(runs[-1], scores.draws) - resampled_iqm(runs[0], scores.draws)
    gain = interval(values[-1] - values[0], gains, runs[0].size)
    return (
        f"the worst run changes by {worst:+.3f} (the best of what was asked for counts, so no run can fall); after "
        f"{counts[-1]} evaluations the gain is {_text(gain)}",
        worst >= 0,
    )


def _utility(scores: Scores, searcher: str, evaluations: int) -> Estimate:
    return iqm_estimate(scores.utility(searcher, evaluations), scores.draws)


def _text(estimate: Estimate) -> str:
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"


def _count(estimate: Estimate) -> str:
    value, low, high = ("more" if each is None or np.isinf(each) else f"{each:g}" for each in estimate[:3])
    return f"{value} [{low}, {high}] evaluations"


GOALS = (
    Goal("Zero-shot on an unseen source: at least 95 % of the table's best utility", {POLICY: 1}, _zero_shot),
    Goal("Zero-shot: above the interval of copy-mask", {POLICY: 1, COPY_MASK: 1}, _above_copy_mask),
    Goal("Zero-shot: at least what TPE reaches with 64 evaluations", {POLICY: 1, TPE: 64}, _at_least_tpe(1, 64)),
    Goal(
        f"From scratch: {REACHED:.0%} of the best hypervolume with a quarter of the evaluations that the best of "
        f"{', '.join(RIVALS)} needs (medians)",
        dict.fromkeys((SCRATCH, *RIVALS), 1),
        _quarter,
        utilities=False,
        fronts=True,
    ),
    Goal("Few-shot: never below zero-shot", {POLICY: 2}, _never_below),
    Goal("Few-shot: after 16 evaluations at least TPE's value at 128", {POLICY: 16, TPE: 128}, _at_least_tpe(16, 128)),
    Goal(
        "Across group counts: trained on `blocks`, better on `block_kinds` than random's best of 16",
        elsewhere="tables of `blocks` alone are compared",
    ),
    Goal(
        "Outside the tables: chest_xray to isic with real fine-tunes, 3 seeds",
        elsewhere="python -m agents.transfer measures it",
    ),
)
