"""Everything that looks for a good mask: searchers by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module

from agents.search.base import Experience, Searcher
from rewards.errors import InputError

Factory = Callable[[Sequence[Experience]], Searcher]
"""Makes a searcher of what is known of other tasks."""


def _blind(module: str, kind: str) -> Factory:
    """A searcher with its default settings, which knows nothing of other tasks."""

    def make(experiences: Sequence[Experience]) -> Searcher:
        searcher: Searcher = _find(module, kind)()
        return searcher

    return make


def _informed(module: str, kind: str) -> Factory:
    """A searcher whose one argument is what is known of other tasks."""

    def make(experiences: Sequence[Experience]) -> Searcher:
        searcher: Searcher = _find(module, kind)(tuple(experiences))
        return searcher

    return make


def _variant(name: str) -> Factory:
    """The policy without one of its parts."""

    def make(experiences: Sequence[Experience]) -> Searcher:
        searcher: Searcher = _find("policy", "variant_of")(name, tuple(experiences))
        return searcher

    return make


def _find(module: str, kind: str) -> Callable[..., Searcher]:
    # Imported at first use: Optuna and torch take longer to import than most searches run.
    found: Callable[..., Searcher] = getattr(import_module(f"{__name__}.{module}"), kind)
    return found


SEARCHERS: Mapping[str, Factory] = {
    "random": _blind("random_search", "RandomSearch"),
    "all_on": _blind("all_on", "AllOn"),
    "all_off": _blind("all_off", "AllOff"),
    "single_best": _blind("single_best", "SingleBest"),
    "gradient_ranking": _blind("gradient_ranking", "GradientRanking"),
    "tpe": _blind("optuna_samplers", "TPE"),
    "nsga2": _blind("optuna_samplers", "NSGA2"),
    "nsga2_reference": _blind("optuna_samplers", "NSGA2Reference"),
    "gp": _blind("optuna_samplers", "GP"),
    "evolution": _blind("evolution", "RegularizedEvolution"),
    "local_search": _blind("local_search", "LocalSearch"),
    "predictor": _blind("predictor", "NeuralPredictor"),
    "ppo": _blind("plain_ppo", "PlainPPO"),
    "dyna_ppo": _blind("dyna_ppo", "DynaPPO"),
    "policy": _informed("policy", "policy_of"),
    "copy_mask": _informed("copying", "CopyMask"),
    "copy_mean_mask": _informed("copying", "CopyMeanMask"),
}
"""Every searcher by the name that users write."""

VARIANTS: Mapping[str, Factory] = {
    name: _variant(name)
    for name in (
        "policy_with_ppo",
        "policy_half_ascent",
        "policy_without_ascent",
        "policy_cloned",
        "policy_without_blur",
        "policy_without_smoothing",
        "policy_without_task",
        "policy_without_others",
        "policy_without_doubt",
    )
}
"""The policy with one of its parts changed each, for ablations."""


def find_searcher(name: str, experiences: Sequence[Experience] = ()) -> Searcher:
    """The searcher of that name, with its default settings.

    Args:
        name: A name in `SEARCHERS` or `VARIANTS`.
        experiences: What is known of other tasks; searchers that begin from nothing do not look at it.

    Raises:
        InputError: If there is no such searcher, or it copies masks and there is nothing to copy from.
    """
    known = {**SEARCHERS, **VARIANTS}
    if name not in known:
        raise InputError(f"searcher={name} is unknown", f"choose among {', '.join(SEARCHERS)}")
    return known[name](experiences)
