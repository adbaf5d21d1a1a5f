"""The command that compares searchers, with plain ones: real ones have tests of their own."""

from __future__ import annotations

import functools
import os
import signal
from pathlib import Path

import pytest

from agents.comparison.results import ResultFile
from agents.search.base import SearchProblem
from tests.agents.command import Command, Outcome
from tests.agents.comparison import searchers
from tests.agents.comparison.searchers import registered
from tests.agents.noisy import noisy_table

SMALL = (
    "tables=[isic-full.parquet,phantom-full.parquet]",
    "seeds=2",
    "preferences=[0.5,null]",
    "budget=8",
    "workers=1",
    "resamples=50",
    "~budgets.gp",  # none of these is registered here
    "~budgets.policy",
    "~budgets.dyna_ppo",
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    noisy_table("env=isic").write(tmp_path / "isic-full.parquet")
    noisy_table("env=phantom", seed=1).write(tmp_path / "phantom-full.parquet")
    return tmp_path


def compare(*arguments: str, folder: Path, double: object = registered) -> Outcome:
    assert callable(double)
    return Command([*SMALL, *arguments], folder, double, name="compare").wait()


def nothing_to_do() -> None:
    """No searcher may search."""
    registered()

    def search(self: object, problem: SearchProblem, seed: int) -> None:
        raise AssertionError("this run was known")

    for kind in (searchers.Random, searchers.AllOn, searchers.CopyMask):
        kind.search = search  # type: ignore[method-assign]


def killed(count: int) -> None:
    """While a file of runs is written for the ``count``-th time."""
    registered()
    append, calls = ResultFile.append, 0

    @functools.wraps(append)
    def last(self: ResultFile, *args: object) -> None:
        nonlocal calls
        calls += 1
        append(self, *args)  # type: ignore[arg-type]
        if calls == count:
            self.path.write_bytes(self.path.read_bytes()[:-100])
            os.kill(os.getpid(), signal.SIGKILL)

    ResultFile.append = last  # type: ignore[method-assign, assignment]


def test_a_killed_comparison_goes_on_and_a_finished_one_costs_nothing(folder: Path) -> None:
    assert compare(folder=folder, double=functools.partial(killed, 9)).code == -signal.SIGKILL
    assert not (folder / "docs").exists()
    outcome = compare(folder=folder)
    assert (outcome.code, outcome.err) == (0, "")
    page = folder / "docs" / "comparison.md"
    text = page.read_text(encoding="utf-8")
    assert "4 searchers on 2 tables, with 2 seeds" in text
    assert "| Zero-shot: above the interval of copy-mask |" in text
    figures = {file.stem for file in (folder / "docs" / "comparison").glob("*.png")}
    assert figures == {"evaluations", "intervals", "seconds", "improvement-1"}
    for name in figures:
        assert f"(comparison/{name}.png)" in text
    assert len(list((folder / "runs" / "compare").glob("*.jsonl"))) == 4 * 2

    again = compare(folder=folder, double=nothing_to_do)
    assert (again.code, again.err) == (0, "")
    assert page.read_text(encoding="utf-8") == text


def test_a_part_of_it(folder: Path) -> None:
    outcome = compare(
        "env=isic",
        "searchers=[random,copy_mask]",
        "preferences=[null]",
        "+budgets.random=3",
        "docs=part",
        folder=folder,
    )
    assert (outcome.code, outcome.err) == (0, "")
    text = (folder / "part" / "comparison.md").read_text(encoding="utf-8")
    assert "2 searchers on 1 table, with 2 seeds" in text
    assert "### Utility" not in text
    assert "(random: 3)" in text
    assert len(list((folder / "runs" / "compare").glob("*-isic-full-*.jsonl"))) == 2


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["searchers=[random,nope]"], "searchers= names nope — choose among random, all_on, copy_mask, policy"),
        (["searchers=[]"], "searchers=[]"),
        (["searchers=[random,random]"], "each once"),
        (["+budgets.nope=3"], "budgets= names nope"),
        (["budget=0"], "budget=0"),
        (["seeds=0"], "seeds=0"),
        (["preferences=[]"], "preferences=[]"),
        (["preferences=[1.5]"], "1.5"),
        (["env=mimic"], "env=mimic has no table"),
        (["tables=[nowhere.parquet]"], "nowhere.parquet"),
        (["tables=[isic-full.parquet]", "searchers=[copy_mask]"], "copy_mask has nothing to learn from"),
        (["reward.scalarization=nope"], "scalarization"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_call_is_one_line(folder: Path, arguments: list[str], named: str) -> None:
    outcome = compare(*arguments, folder=folder)
    assert outcome.code == 2, outcome.err
    assert outcome.err.startswith("error: ")
    assert outcome.err.count("\n") == 1
    assert named in outcome.err
    assert not (folder / "runs").exists()


def test_without_another_source_the_others_are_compared_and_it_is_said(folder: Path) -> None:
    outcome = compare("tables=[isic-full.parquet]", "seeds=1", "budget=2", folder=folder)
    assert (outcome.code, outcome.err) == (0, "")
    assert "without copy_mask, policy: there is no other data source to learn from" in outcome.out.replace("\n", " ")
    text = (folder / "docs" / "comparison.md").read_text(encoding="utf-8")
    assert "| random |" in text
    assert "| copy_mask |" not in text
