from __future__ import annotations

import json
import logging
import math
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

from agents.run_folder import RunFolder
from envs.datasets.base import DatasetCard, ImageSet, Reject, SplitDataset
from envs.evaluators.base import Evaluation
from envs.evaluators.cached import Served
from envs.task import Schedule
from rewards.errors import InputError

CONFIG = OmegaConf.create({"seed": 3, "run_dir": "runs", "store": {"path": "${run_dir}/store"}})


def create(run_dir: Path) -> RunFolder:
    return RunFolder.create(run_dir, "train", "task", CONFIG, ["seed=3"])


def test_a_new_folder_keeps_the_configuration_and_can_be_opened_again(tmp_path: Path) -> None:
    folder = create(tmp_path)
    assert folder.path.parent == tmp_path / "train" / "task"
    opened, config = RunFolder.open(folder.path, "train")
    assert opened.id == folder.id
    assert config == {"seed": 3, "run_dir": "runs", "store": {"path": "runs/store"}}
    assert OmegaConf.load(folder.path / ".hydra" / "overrides.yaml") == ["seed=3"]
    with pytest.raises(InputError, match="is no transfer run"):
        RunFolder.open(folder.path, "transfer")


def test_a_folder_can_be_opened_from_within(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = create(tmp_path)
    monkeypatch.chdir(folder.path)
    assert RunFolder.open(".", "train")[0].id == folder.id


def test_two_runs_of_one_moment_are_two_folders(tmp_path: Path) -> None:
    assert len({create(tmp_path).path for _ in range(20)}) == 20


def test_what_was_left_out_is_counted_by_reason(tmp_path: Path) -> None:
    part = ImageSet(np.zeros((1, 8, 8, 3), dtype=np.uint8), ("a",), ("p",), ("",), np.array([-1]))
    rejects = (Reject("b", "small"), Reject("c", "all black"), Reject("d", "all black"))
    card = DatasetCard("here", "none", notes=("3 marks ___ removed",))
    folder = create(tmp_path)
    folder.write_data_check(SplitDataset("some", card, part, part, part, "", rejects, (("b", "c"),)))
    assert json.loads((folder.path / "data.json").read_text()) == {
        "rejected": {"all black": 2, "small": 1},
        "rejects": [{"id": r.id, "reason": r.reason} for r in rejects],
        "near_duplicates": [["b", "c"]],
        "notes": ["3 marks ___ removed"],
    }


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    folder = create(tmp_path)
    with folder:
        with pytest.raises(InputError, match="is being written by another process"), RunFolder(folder.path):
            pass
        folder.record(Served(0, Evaluation(Schedule.from_key("01")), hit=False))
    with RunFolder(folder.path):
        assert not (folder.path / "evaluations.jsonl").exists(), "a resumed run tells it all again"


def test_answers_are_lines_as_soon_as_they_are_recorded(tmp_path: Path) -> None:
    with create(tmp_path) as folder:
        for key, hit in (("01", False), ("11", True)):
            folder.record(Served(0, Evaluation(Schedule.from_key(key), seconds=2.0), hit))
        lines = [json.loads(line) for line in (folder.path / "evaluations.jsonl").read_text().splitlines()]
    assert [(line["schedule"], line["hit"]) for line in lines] == [("01", False), ("11", True)]
    assert Evaluation.from_json({k: v for k, v in lines[0].items() if k != "hit"}).seconds == 2.0


def test_a_resumed_run_begins_its_curves_anew(tmp_path: Path) -> None:
    with create(tmp_path) as folder:
        (folder.path / "tensorboard").mkdir()
        (folder.path / "tensorboard" / "events").touch()
    with RunFolder(folder.path):
        assert not (folder.path / "tensorboard").exists()


def test_the_log_keeps_warnings_and_how_it_ended(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder, log = create(tmp_path), logging.getLogger("envs.anything")

    def work() -> None:
        with folder:
            log.warning("axis %s may be noise", "kid")
            raise KeyError("a bug")

    with caplog.at_level(logging.INFO), pytest.raises(KeyError):
        work()
    log.warning("after it")
    kept = (folder.path / "log.txt").read_text()
    assert "WARNING envs.anything: axis kid may be noise" in kept
    assert "KeyError: 'a bug'" in kept
    assert "after it" not in kept


def test_json_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    folder = create(tmp_path)
    folder.write_json("result.json", {"utility": 0.5})
    with pytest.raises(ValueError, match="not JSON compliant"):
        folder.write_json("result.json", {"utility": math.nan})
    assert json.loads((folder.path / "result.json").read_text()) == {"utility": 0.5}
    assert [path.name for path in folder.path.iterdir() if "partial" in path.name] == []
