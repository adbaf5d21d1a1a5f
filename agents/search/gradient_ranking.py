"""Layer groups ranked by a look at the base model's gradients, before anything is measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import numpy as np

from agents.search.base import SearchProblem
from agents.search.history import History
from rewards.errors import InputError

Criterion = Literal["relative_gradient", "gradient", "fisher"]

_COLUMNS: dict[Criterion, dict[str, float]] = {
    "relative_gradient": {"gradient_train": 1.0, "weight_norm": -1.0},
    "gradient": {"gradient_train": 1.0},
    "fisher": {"fisher_train": 1.0},
}


@dataclass(frozen=True)
class GradientRanking:
    """Asks for the first k toggles of a ranking, for every k.

    The nested sets are asked for from the middle outwards, each next one in the middle of the widest gap: after few
    evaluations the whole way from none to all is covered.

    Attributes:
        criterion: What ranks, highest first. ``relative_gradient`` is the norm of the gradient on training images over
            that of the weights, which Auto-RGN tunes layers by (Lee et al., "Surgical fine-tuning", arXiv 2210.11466);
            ``gradient`` leaves out the weights; ``fisher`` is the trace of the empirical Fisher matrix per parameter.

    Raises:
        InputError: If the criterion is none of these; by `search`, if the problem's features have not what it needs.
    """

    name: ClassVar[str] = "gradient_ranking"
    criterion: Criterion = "relative_gradient"

    def __post_init__(self) -> None:
        if self.criterion not in get_args(Criterion):
            known = ", ".join(get_args(Criterion))
            raise InputError(f"criterion={self.criterion!r} ranks no groups", f"choose among {known}")

    def search(self, problem: SearchProblem, seed: int) -> None:
        """See `Searcher.search`."""
        ranking = self.ranking(problem)
        nested = [problem.mask(ranking[:k]) for k in _middle_first(len(ranking))]
        History(problem).ask_all(nested or [problem.mask(())])

    def ranking(self, problem: SearchProblem) -> list[int]:
        """The free toggles, best first; of equals, the first."""
        names = problem.group_feature_names
        if missing := [name for name in _COLUMNS[self.criterion] if name not in names]:
            raise InputError(
                f"groups cannot be ranked by {self.criterion}: {', '.join(missing)} is not among their features",
                "choose another searcher, or probe the base model",
            )
        score = np.zeros(problem.toggles)
        # Columns are logarithms of squares per parameter: in a difference the number of parameters cancels.
        for name, sign in _COLUMNS[self.criterion].items():
            score += sign * problem.group_features[:, names.index(name)]
        return sorted(problem.free, key=lambda toggle: (-score[toggle], toggle))


def _middle_first(count: int) -> list[int]:
    """1 to ``count``, each next number the one farthest from 0, ``count + 1`` and those before it."""
    taken, rest = {0, count + 1}, list(range(1, count + 1))
    order: list[int] = []
    while rest:
        k = max(rest, key=lambda k: (min(abs(k - other) for other in taken), -abs(2 * k - count - 1), -k))
        order.append(k)
        taken.add(k)
        rest.remove(k)
    return order
