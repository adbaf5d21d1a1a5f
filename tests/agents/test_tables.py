"""The command that draws tables."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.agents.command import Command, Outcome
from tests.agents.noisy import noisy_table


def tables(*arguments: str, folder: Path) -> Outcome:
    return Command(arguments, folder, name="tables").wait()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tables")
    noisy_table("env=isic").write(folder / "isic-full.parquet")
    noisy_table("env=phantom", seed=1).write(folder / "phantom-full.parquet")
    return folder


def test_the_page_comes_from_the_tables_alone(folder: Path) -> None:
    arguments = ("tables=[isic-full.parquet,phantom-full.parquet]", "preferences=[0.5]")
    outcome = tables(*arguments, folder=folder)
    assert (outcome.code, outcome.err) == (0, "")
    page = folder / "docs" / "tables.md"
    text = page.read_text(encoding="utf-8")
    for name in ("isic-full", "phantom-full"):
        assert f"\n## {name}\n" in text
        for figure in ("axes", "effects"):
            assert f"(tables/{name}-{figure}.png)" in text
            assert (page.parent / "tables" / f"{name}-{figure}.png").stat().st_size < 150_000
    assert (page.parent / "tables" / "likeness.png").is_file()
    assert "nan" not in text.lower().replace("provenance", "")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["tables=[]"], "tables= is empty"),
        (["tables=[nowhere.parquet]"], "nowhere.parquet cannot be read"),
        (["tables=[isic-full.parquet,./isic-full.parquet]"], "names isic-full twice"),
        (["tables=[isic-full.parquet]", "preferences=[2]"], "preferences.0=2"),
        (["tables=[isic-full.parquet]", "preferences=[]"], "preferences= is empty"),
        (["tables=[isic-full.parquet]", "reward.quality=[fid]"], "fid is not among the metrics"),
        (["tables=[isic-full.parquet]", "docs=isic-full.parquet/docs"], "cannot be written"),
    ],
)
def test_a_wrong_call_is_one_line(folder: Path, arguments: list[str], named: str) -> None:
    outcome = tables(*arguments, folder=folder)
    assert outcome.code == 2
    assert outcome.err.startswith("error: ")
    assert outcome.err.count("\n") == 1
    assert named in outcome.err
