"""What is wrong with a call is one line on stderr, exit code 2, and no run folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.agents.command import SMALL, run_folders, train

TINY_PHANTOMS = ("env.train=2", "env.heldout=2", "env.test=2", "+env.options.identities=12")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["env=nope"], "env/nope"),
        (["env.name=nope", "evaluator=finetune"], "'nope'"),
        (["method=nope"], "method/nope"),
        (["method.name=nope"], "method=nope"),
        (["method=lora", "method.options.rank=0"], "method.options.rank=0"),
        (["method=importance", "method.options.share=2"], "method.options.share=2"),
        (["+method.options.rank=4"], "method=full has no setting rank"),
        (["evaluator.name=nope"], "evaluator=nope"),
        (["budget.evalutions=9"], "evalutions"),
        (["+budget.patience=9"], "budget.patience"),
        (["seed=abc"], "seed='abc'"),
        (["budget.evaluations=-3"], "budget.evaluations=-3"),
        (["budget.evaluations=3", "agent.rollout=4"], "fills no rollout"),
        (["inner.learning_rate=-1"], "inner.learning_rate=-1"),
        (["reward.metrics=[kid,membership,nope]"], "nope"),
        (["reward.final_metrics=[nope]"], "nope"),
        (["reward.quality=[fid]", "reward.metrics=[fid,membership]"], "fid"),
        (["reward.privacy=[]"], "privacy"),
        (["env=chest_xray", "evaluator=finetune", "data.root=nowhere"], "data.root=nowhere"),
        (["evaluator=finetune", "+env.options.identities=12"], "phantom"),
        (["evaluator=finetune", "+env.options.colour=red"], "colour"),
        (["evaluator=finetune", *TINY_PHANTOMS, "backbone.path=nowhere"], "backbone.path=nowhere"),
        (["evaluator=finetune", *TINY_PHANTOMS, "backbone=ddpm"], "backbone.path"),
        (["evaluator=finetune", *TINY_PHANTOMS, "backbone=ddpm", "backbone.path=some/one"], "local_files_only=false"),
        (["backbone.precision=int8"], "backbone.precision='int8'"),
        (["resume=nowhere"], "resume="),
        (["--nope"], "unrecognized arguments: --nope"),
        (["seed=[1"], "'[1'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_call_is_one_line(tmp_path: Path, arguments: list[str], named: str) -> None:
    alone = arguments[0].startswith("resume=")
    outcome = train(*([] if alone else SMALL), *arguments, folder=tmp_path)
    refused_in_one_line(outcome.code, outcome.err, named)
    assert run_folders(tmp_path) == []


def test_resume_takes_nothing_else(tmp_path: Path) -> None:
    outcome = train("resume=somewhere", "seed=3", folder=tmp_path)
    refused_in_one_line(outcome.code, outcome.err, "resume= together with seed=3")


def test_a_run_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    outcome = train(*SMALL, "run_dir=file/runs", folder=tmp_path)
    refused_in_one_line(outcome.code, outcome.err, "file/runs")
    outcome = train(*SMALL, "run_dir=file/runs", "store.path=store.sqlite", folder=tmp_path)
    refused_in_one_line(outcome.code, outcome.err, "run_dir=file/runs cannot be written")


@pytest.mark.parametrize("content", [b"this is no database, and longer than a header of SQLite's" * 9, b""])
def test_a_malformed_store(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "store.sqlite").write_bytes(content)
    outcome = train(*SMALL, "store.path=store.sqlite", folder=tmp_path)
    if content:
        refused_in_one_line(outcome.code, outcome.err, "store.sqlite")
        assert run_folders(tmp_path) == []
        assert (tmp_path / "store.sqlite").read_bytes() == content
    else:
        assert outcome.code == 0, "an empty file is an empty store"


@pytest.mark.parametrize("content", ["a: [", "- a list", "a: 1", b"\xff\xfe\x00"])
def test_a_malformed_run_is_not_resumed(tmp_path: Path, content: str | bytes) -> None:
    run = tmp_path / "runs" / "train" / "task" / "run"
    (run / ".hydra").mkdir(parents=True)
    (run / ".hydra" / "config.yaml").write_bytes(content.encode() if isinstance(content, str) else content)
    outcome = train(f"resume={run}", folder=tmp_path)
    refused_in_one_line(outcome.code, outcome.err, "")
    assert [path.name for path in run.iterdir()] == [".hydra"]


def refused_in_one_line(code: int, err: str, named: str) -> None:
    assert code == 2, err
    line, end = err[:-1], err[-1:]
    assert end == "\n"
    assert "\n" not in line
    assert line.startswith("error: ")
    assert " — " in line
    assert named in line


def test_captions_are_missed_before_anything_is_paid_for(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (12, 64, 64, 3), dtype=np.uint8)
    for i, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    sizes = ("env.train=4", "env.heldout=4", "env.test=4", "inner.warmup=0", "inner.steps=1")
    arguments = ("evaluator=finetune", "env=imagefolder", f"data.root={tmp_path}", *sizes)
    outcome = train(*SMALL, *arguments, folder=tmp_path)
    refused_in_one_line(outcome.code, outcome.err, "+env.options.caption=<text>")
    assert run_folders(tmp_path) == []
    said = train(*SMALL, *arguments, "+env.options.caption=''", "inner.sampling_steps=2000", folder=tmp_path)
    refused_in_one_line(said.code, said.err, "inner.sampling_steps=2000")
