from __future__ import annotations

from pathlib import Path

import pytest
import torch

from agents.finetuning.checkpoints import Checkpoints
from agents.finetuning.trainer import State
from rewards.errors import InputError


def state(step: int) -> State:
    return State({"parameters/a": torch.full((3, 2), float(step))}, {"step": step, "history": [[1, None, "x"]]})


def saved(folder: Path, *steps: int) -> list[Path]:
    checkpoints = Checkpoints(folder, 2)
    for step in steps:
        checkpoints.save(state(step))
    return sorted(folder.iterdir())


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    assert Checkpoints(folder, 2).last() is None
    saved(folder, 9, 10)
    found = Checkpoints(folder, 2).last()
    assert found is not None
    assert found.numbers == state(10).numbers
    assert torch.equal(found.tensors["parameters/a"], torch.full((3, 2), 10.0))


def test_the_last_ones_are_kept(tmp_path: Path) -> None:
    names = [path.name for path in saved(tmp_path / "checkpoints", 1, 2, 3, 100)]
    assert names == ["step-00000003.safetensors", "step-00000100.safetensors"]


@pytest.mark.parametrize("kept", [0, 7, 60, -1])
def test_a_torn_one_gives_way_to_the_one_before(tmp_path: Path, caplog: pytest.LogCaptureFixture, kept: int) -> None:
    first, second = saved(tmp_path / "checkpoints", 1, 2)
    second.write_bytes(second.read_bytes()[:kept])
    found = Checkpoints(tmp_path / "checkpoints", 2).last()
    assert found is not None
    assert found.numbers["step"] == 1
    assert "step-00000002.safetensors cannot be read" in caplog.text
    first.write_bytes(b"")
    with pytest.raises(InputError, match="none of the checkpoints"):
        Checkpoints(tmp_path / "checkpoints", 2).last()


def test_a_partial_file_is_no_checkpoint(tmp_path: Path) -> None:
    saved(tmp_path / "checkpoints", 1)
    (tmp_path / "checkpoints" / "step-00000002.partial").write_bytes(b"half")
    found = Checkpoints(tmp_path / "checkpoints", 2).last()
    assert found is not None
    assert found.numbers["step"] == 1
