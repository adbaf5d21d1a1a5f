from __future__ import annotations

from pathlib import Path

import pytest
import torch

from envs.methods import svd
from envs.methods.svd import cache_folder, decomposed


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MEMCONTROL_CACHE", str(tmp_path))
    return tmp_path / "svd"


@pytest.fixture
def matrix() -> torch.Tensor:
    return torch.randn(64, 96, generator=torch.Generator().manual_seed(0))


def never(matrix: torch.Tensor) -> None:
    raise AssertionError("computed again")


def test_it_gives_the_matrix_back(matrix: torch.Tensor) -> None:
    for given in (matrix, matrix.T, matrix[:1], matrix[:5, :3]):
        u, s, vh = decomposed(given)
        torch.testing.assert_close((u * s) @ vh, given, rtol=0, atol=1e-4)
        assert len(s) == min(given.shape)


def test_it_is_computed_once(matrix: torch.Tensor, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = decomposed(matrix)
    assert [file.suffix for file in folder.iterdir()] == [".safetensors"]
    monkeypatch.setattr(svd, "_computed", never)
    assert all(torch.equal(one, other) for one, other in zip(first, decomposed(matrix.clone()), strict=True))
    with pytest.raises(AssertionError, match="computed again"):
        decomposed(matrix + 1)


@pytest.mark.parametrize("damage", ["empty", "cut", "flipped", "foreign"])
def test_a_damaged_file_is_computed_anew(matrix: torch.Tensor, folder: Path, damage: str) -> None:
    first = decomposed(matrix)
    (file,) = folder.iterdir()
    content = bytearray(file.read_bytes())
    content[-1000] ^= 64
    file.write_bytes(
        {"empty": b"", "cut": file.read_bytes()[:-9], "flipped": bytes(content), "foreign": b"x" * 99}[damage]
    )
    again = decomposed(matrix)
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    assert svd._read(file, (64, 96)) is not None, "and mended"


def test_a_folder_that_cannot_be_written_is_no_failure(
    matrix: torch.Tensor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("MEMCONTROL_CACHE", str(tmp_path / "file"))
    u, s, vh = decomposed(matrix)
    torch.testing.assert_close((u * s) @ vh, matrix, rtol=0, atol=1e-4)


def test_the_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MEMCONTROL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_folder() == Path("/somewhere/memcontrol")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "memcontrol"
