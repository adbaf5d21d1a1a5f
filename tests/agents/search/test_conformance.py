from __future__ import annotations

import subprocess
import sys

import optuna
import pytest
import torch

from agents.practice.settings import PracticeSettings
from agents.search import SEARCHERS, find_searcher
from agents.search.base import Searcher
from agents.search.dyna_ppo import DynaPPO
from agents.source_policy import SourcePolicy
from agents.surrogate.set_ensemble import SetEnsembleSettings
from rewards.errors import InputError
from tests.agents.search.conformance import TOGGLES, check_searcher
from tests.agents.search.problems import Invented

WITHOUT_CHANCE = {"all_on", "all_off", "single_best", "gradient_ranking", "copy_mask", "copy_mean_mask"}
IMPATIENT = {"nsga2", "nsga2_reference", "ppo"}
EXPERIENCES = [Invented(TOGGLES, seed).experience(f"task {seed}") for seed in (5, 6)]


def made(name: str) -> Searcher:
    """By its name; the policy, which learns for a minute, in a second."""
    if name != "policy":
        return find_searcher(name, EXPERIENCES)
    practice = PracticeSettings(environments=8, episodes=2, updates=2, cloning=20)
    source = SourcePolicy(tuple(EXPERIENCES), practice, SetEnsembleSettings(members=1, steps=5))
    return DynaPPO(source=source, name=name)


@pytest.mark.parametrize("parallel", [1, 4])
@pytest.mark.parametrize("preference", [0.5, None])
@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n == "gp" else n for n in SEARCHERS])
def test_conformance(name: str, preference: float | None, parallel: int) -> None:
    verbosity, threads = optuna.logging.get_verbosity(), torch.get_num_threads()
    check_searcher(
        lambda: made(name),
        preference=preference,
        parallel=parallel,
        chance=name not in WITHOUT_CHANCE,
        thorough=name not in WITHOUT_CHANCE | IMPATIENT,
    )
    assert (optuna.logging.get_verbosity(), torch.get_num_threads()) == (verbosity, threads), "leaves others alone"


@pytest.mark.parametrize("name", SEARCHERS)
def test_a_searcher_has_the_name_that_it_is_found_by(name: str) -> None:
    assert find_searcher(name, EXPERIENCES).name == name


def test_an_unknown_name_is_one_line() -> None:
    with pytest.raises(InputError, match=r"^searcher=tps is unknown — choose among random, all_on, .*copy_mean_mask"):
        find_searcher("tps")


def test_names_are_known_without_importing_what_is_heavy() -> None:
    code = "import agents.search, sys; sys.exit(bool({'optuna', 'torch', 'stable_baselines3'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
