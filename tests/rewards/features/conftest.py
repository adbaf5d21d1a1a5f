"""What several embeddings' tests need."""

from __future__ import annotations

import os
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn


class Malicious:
    """Unpickled, creates a file."""

    def __init__(self, creates: Path) -> None:
        self.creates = creates

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.creates}",)


@pytest.fixture
def malicious(tmp_path: Path) -> tuple[Malicious, Path]:
    """An object whose unpickling creates a file, and that file; checked to be dangerous."""
    created = tmp_path / "created"
    pickle.loads(pickle.dumps(Malicious(created)))
    assert created.exists()
    created.unlink()
    return Malicious(created), created


@pytest.fixture(scope="session")
def random_images() -> Callable[..., Tensor]:
    def draw(n: int, size: int = 64, seed: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, generator=generator)

    return draw


@pytest.fixture(scope="session")
def save_script() -> Callable[..., Path]:
    """Saves a network as TorchScript, traced or, if asked for, compiled."""

    def save(network: nn.Module, path: Path, *, compiled: bool = False, size: int = 32, batch: int = 2) -> Path:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that TorchScript is deprecated, and what a trace leaves out
            example = torch.zeros(batch, 3, size, size)
            script = torch.jit.script(network) if compiled else torch.jit.trace(network, example, check_trace=False)
            torch.jit.save(script, path)
        return path

    return save
