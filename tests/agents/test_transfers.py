"""The command that puts transfers on one page, on run folders of invented results."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from agents.transferred.runs import TransfersSettings, finished_runs
from rewards.errors import InputError
from tests.agents.command import Command, Outcome


def transfers(*arguments: str, folder: Path) -> Outcome:
    return Command(arguments, folder, name="transfers").wait()


def measured(value: float, null: float = 0.5) -> dict[str, Any]:
    return {"membership": {"value": value, "null": null, "low": None, "high": None, "n": 8, "higher_is_better": False}}


def result_of(seed: int, zero_shot: float, at_random: float) -> dict[str, Any]:
    return {
        "schema": 1,
        "job": "transfer",
        "seed": seed,
        "data": {"split_sha256": "5" * 64},
        "task": {"id": f"{seed:016x}", "env": "isic", "groups": ["in", "down", "up"]},
        "selected": {"groups": ["in", "up"], "trainable_share": 0.25},
        "metrics": measured(0.6 + seed / 10),
        "axes": {"quality": 0.5, "privacy": 0.75, "utility": 0.625},
        "axes_note": "",
        "judged_by": "256 test images",
        "anchors": {"base": {"metrics": measured(0.5)}, "full": {"metrics": measured(0.9)}},
        "transfer": {
            "sources": ["chest_xray"],
            "zero_shot_utility": zero_shot,
            # The second evaluation of random search failed.
            "curves": {"transfer": [[1, zero_shot], [2, 0.9]], "random": [[1, 0.1], [3, at_random]]},
        },
        "evaluations": {"distinct": 10, "seconds": 120.0},
        "git": {"commit": "f" * 40, "dirty": False},
        "versions": {"torch": "2.13.0"},
        "hardware": "2 cores",
    }


def run_of(folder: Path, result: dict[str, Any], overrides: Sequence[str] = ("src=['chest_xray']", "env=isic")) -> Path:
    path = folder / "runs" / "transfer" / "isic-full-01234567" / f"{len(list(folder.glob('runs/*/*/*')))}"
    (path / ".hydra").mkdir(parents=True)
    seeded = [*overrides, f"seed={result['seed']}", "run_dir=runs"]
    (path / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(seeded))
    (path / "result.json").write_text(json.dumps(result))
    return path


def test_the_page_has_means_and_every_seed(tmp_path: Path) -> None:
    run_of(tmp_path, result_of(1, 0.75, 0.25))
    run_of(tmp_path, result_of(0, 0.25, 0.5))
    outcome = transfers(folder=tmp_path)
    assert (outcome.code, outcome.err, outcome.out) == (0, "", "wrote docs/transfers.md\n")
    text = (tmp_path / "docs" / "transfers.md").read_text(encoding="utf-8")
    assert "## chest_xray to isic, 3 toggles" in text
    assert "python -m agents.transfer -m src=chest_xray dst=isic seed=0,1\n" in text
    assert "| transfer | 0.500 (0.250, 0.750) | 0.900 |" in text
    assert "| random | 0.100 | 0.100 |" in text
    words = " ".join(text.split())
    assert "minus random's best of 3: +0.125 (-0.250, +0.500); above it in 1 of 2 runs." in words
    assert "| `membership` | 0.5 | 0.65 (0.6, 0.7) | 0.9 | 0.5 |" in text
    assert "0: `in`, `up` (25.0%); 1: `in`, `up` (25.0%)." in words
    assert "quality 0.500, privacy 0.750 and utility 0.625" in words
    assert "20 distinct evaluations; 2 minutes a run for what was not stored." in words


def test_what_was_not_measurable_is_left_out(tmp_path: Path) -> None:
    result = result_of(0, 0.5, 0.5)
    result["transfer"] |= {"zero_shot_utility": None, "curves": {"transfer": [[2, 0.5]], "random": []}}
    result["metrics"]["membership"]["value"] = None
    result |= {"axes": dict.fromkeys(("quality", "privacy", "utility")), "axes_note": "it is no better"}
    run_of(tmp_path, result)
    transfers(folder=tmp_path)
    text = (tmp_path / "docs" / "transfers.md").read_text(encoding="utf-8")
    assert "| transfer |  | 0.500 |" in text
    assert "Random search did not run beside it." in text
    assert "| `membership` | 0.5 |  | 0.9 | 0.5 |" in text
    assert "There are no axes for some seeds: it is no better." in " ".join(text.split())
    assert "None" not in text


def test_a_metric_without_a_value_anywhere_is_told_with_its_reason(tmp_path: Path) -> None:
    result, nothing = result_of(0, 0.5, 0.5), {"value": None, "null": None, "note": "inverted 0 of 8"}
    for metrics in (result["metrics"], *(each["metrics"] for each in result["anchors"].values())):
        metrics["inversion"] = dict(nothing)
        metrics["kid"] = {**nothing, "note": "too few"}
    result["anchors"]["full"]["metrics"]["kid"]["value"] = 0.125
    run_of(tmp_path, result)
    assert transfers(folder=tmp_path).code == 0
    text = (tmp_path / "docs" / "transfers.md").read_text(encoding="utf-8")
    assert "`inversion` has no value: inverted 0 of 8.\n" in text
    assert "| `kid` |  |  | 0.125 |  |" in text


def test_runs_of_other_commands_or_images_stand_apart(tmp_path: Path) -> None:
    first = run_of(tmp_path, result_of(0, 0.5, 0.5))
    run_of(tmp_path, result_of(1, 0.5, 0.5), ["src=['chest_xray']", "env=isic", "preference=0.9"])
    run_of(tmp_path, result_of(2, 0.5, 0.5) | {"data": {"split_sha256": "6" * 64}})
    found = finished_runs(TransfersSettings("docs", str(tmp_path / "runs")))
    assert [[run.seed for run in runs] for runs in found] == [[0], [1], [2]]
    (only,) = finished_runs(TransfersSettings("docs", "nowhere", [str(first)]))
    assert only[0].command == ("src=chest_xray", "dst=isic")


def test_the_same_transfer_twice_is_refused(tmp_path: Path) -> None:
    for _ in range(2):
        run_of(tmp_path, result_of(0, 0.5, 0.5))
    with pytest.raises(InputError, match=r"two transfers are the same: .* seed=0"):
        finished_runs(TransfersSettings("docs", str(tmp_path / "runs")))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "no finished transfer under runs"),
        (["runs=[nowhere]"], "runs=nowhere cannot be read"),
        (["runs=[broken]"], "runs=broken cannot be read"),
        (["runs=[trained]"], "runs=trained is no transfer"),
        (["runs=[new]"], "runs=new is no transfer of schema 1"),
        (["runs=[good]", "docs=good/result.json"], "cannot be written"),
    ],
)
def test_a_wrong_call_is_one_line(tmp_path: Path, arguments: list[str], named: str) -> None:
    good = result_of(0, 0.5, 0.5)
    for name, content in (
        ("good", json.dumps(good)),
        ("broken", json.dumps(good)[:-9]),
        ("trained", json.dumps(good | {"job": "train"})),
        ("new", json.dumps(good | {"schema": 2})),
    ):
        (tmp_path / name / ".hydra").mkdir(parents=True)
        (tmp_path / name / ".hydra" / "overrides.yaml").write_text("[]")
        (tmp_path / name / "result.json").write_text(content)
    outcome = transfers(*arguments, folder=tmp_path)
    assert outcome.code == 2
    assert outcome.err.startswith("error: ")
    assert outcome.err.count("\n") == 1
    assert named in outcome.err
