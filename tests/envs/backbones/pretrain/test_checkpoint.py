from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from envs.backbones.pretrain.checkpoint import Checkpoint


def parts(seed: int) -> dict[str, Any]:
    torch.manual_seed(seed)
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    train(model, optimizer)
    return {"model": model, "optimizer": optimizer}


def train(model: nn.Linear, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model(torch.ones(3)).square().sum().backward()
    optimizer.step()


def test_nothing_to_load(tmp_path: Path) -> None:
    assert Checkpoint(tmp_path / "a.pt", **parts(0)).load() == (0, 0.0)


def test_every_part_comes_back(tmp_path: Path) -> None:
    saved, other = parts(0), parts(1)
    Checkpoint(tmp_path / "new" / "a.pt", **saved).save(7, 1.5)
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["a.pt"]
    assert Checkpoint(tmp_path / "new" / "a.pt", **other).load() == (7, 1.5)
    for each in (saved, other):
        train(**each)
    assert torch.equal(saved["model"].weight, other["model"].weight), "the optimizer's moments too"


def test_an_interrupted_save_leaves_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.pt"
    Checkpoint(path, **parts(0)).save(7, 1.5)
    before = path.read_bytes()

    def killed(state: Any, file: Path) -> None:
        file.write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            Checkpoint(path, **parts(1)).save(8, 2.0)
    assert path.read_bytes() == before
    Checkpoint(path, **parts(1)).save(9, 3.0)
    assert Checkpoint(path, **parts(2)).load() == (9, 3.0)
