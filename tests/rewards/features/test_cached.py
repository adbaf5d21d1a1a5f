from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from rewards.errors import InputError
from rewards.features import CachedEmbedding, PixelEmbedding, cached_embedding, embedding


class Counted(PixelEmbedding):
    """Pixels at 8 x 8 that count the images they were computed for."""

    def __init__(self, fingerprint: str = "0" * 64) -> None:
        super().__init__(8)
        self.fingerprint = fingerprint
        self.computed = 0

    def __call__(self, images: Tensor) -> Tensor:
        self.computed += len(images)
        return super().__call__(images)


POOL = torch.randint(0, 256, (12, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(5))


@settings(max_examples=50, deadline=None)
@given(calls=st.lists(st.lists(st.integers(0, 11), max_size=15), max_size=6), room=st.integers(1, 14))
def test_with_and_without_a_cache_the_features_are_the_same(calls: list[list[int]], room: int) -> None:
    cached, plain = CachedEmbedding(Counted(), max_images=room), Counted()
    for picked in calls:
        assert torch.equal(cached(POOL[picked]), plain(POOL[picked]))
        assert len(cached._memory) <= room


def test_only_images_not_seen_are_computed() -> None:
    counted = Counted()
    cached = CachedEmbedding(counted)
    cached(POOL[:4])
    assert counted.computed == 4
    cached(POOL[[2, 5, 3, 5, 0]])
    assert counted.computed == 5
    assert cached(POOL[:0]).shape == (0, cached.dimensions)
    assert (cached.name, cached.dimensions, cached.fingerprint) == ("pixels_8", 192, "0" * 64)


def test_memory_is_bounded_and_forgets_what_was_used_longest_ago() -> None:
    counted = Counted()
    cached = CachedEmbedding(counted, max_images=2)
    for index in (0, 1, 0, 2, 0):
        cached(POOL[[index]])
    assert counted.computed == 3
    cached(POOL[[1]])
    assert counted.computed == 4
    with pytest.raises(InputError, match="max_images=0"):
        CachedEmbedding(counted, max_images=0)


def test_a_caller_who_changes_features_changes_no_others() -> None:
    cached = CachedEmbedding(Counted())
    first = cached(POOL)
    expected = first.clone()
    first.zero_()
    assert torch.equal(cached(POOL), expected)


def test_the_shape_is_part_of_what_an_image_is() -> None:
    counted = Counted()
    cached = CachedEmbedding(counted)
    wide = POOL[:1].reshape(1, 3, 8, 32)
    assert torch.equal(cached(POOL[:1]), Counted()(POOL[:1]))
    assert torch.equal(cached(wide), Counted()(wide))
    assert counted.computed == 2


@pytest.mark.parametrize("images", [POOL.float(), POOL[:, :1], POOL[0]])
def test_other_shapes_and_types_are_refused(images: Tensor) -> None:
    with pytest.raises(ValueError, match="uint8"):
        CachedEmbedding(Counted())(images)


def test_a_folder_outlives_the_process_and_is_private(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "features"
    expected = CachedEmbedding(Counted(), folder)(POOL)
    again = Counted()
    assert torch.equal(CachedEmbedding(again, folder)(POOL), expected)
    assert again.computed == 0
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert len(files) == 12
    assert {file.suffix for file in files} == {".safetensors"}
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    assert {stat.S_IMODE(entry.stat().st_mode) for entry in (folder, *folder.iterdir())} == {0o700}


def test_without_a_folder_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cached_embedding("pixels")(POOL)
    assert list(tmp_path.iterdir()) == []


def test_another_fingerprint_shares_nothing(tmp_path: Path) -> None:
    CachedEmbedding(Counted("a"), tmp_path)(POOL)
    other = Counted("b")
    CachedEmbedding(other, tmp_path)(POOL)
    assert other.computed == 12


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-3])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-40] ^= 1
    file.write_bytes(content)


def pickled(file: Path) -> None:
    torch.save({"features": torch.zeros(192)}, file)


def another_shape(file: Path) -> None:
    save_file({**load_file(file), "features": torch.zeros(3)}, file)


def without_checksum(file: Path) -> None:
    save_file({"features": load_file(file)["features"]}, file)


def another_images(file: Path) -> None:
    other = next(found for found in sorted(file.parent.parent.rglob("*.safetensors")) if found != file)
    file.write_bytes(other.read_bytes())


@pytest.mark.parametrize(
    "damage", [truncate, empty, flip_a_bit, pickled, another_shape, without_checksum, another_images]
)
def test_a_damaged_file_is_computed_again_and_mended(damage: Callable[[Path], None], tmp_path: Path) -> None:
    expected = CachedEmbedding(Counted(), tmp_path)(POOL)
    file = sorted(tmp_path.rglob("*.safetensors"))[4]
    intact = file.read_bytes()
    damage(file)
    assert file.read_bytes() != intact
    counted = Counted()
    assert torch.equal(CachedEmbedding(counted, tmp_path)(POOL), expected)
    assert counted.computed == 1
    assert file.read_bytes() == intact


def test_a_folder_that_cannot_be_used_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"features cannot be kept in .* — name a writable folder"):
        CachedEmbedding(Counted(), tmp_path / "file")

    def full(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    cached = CachedEmbedding(Counted(), tmp_path / "full")
    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(InputError, match="No space left on device"):
        cached(POOL)
    assert not [file for file in (tmp_path / "full").rglob("*") if file.is_file()]


def test_by_name_it_is_shared_and_agrees_with_the_embedding(tmp_path: Path) -> None:
    cached = cached_embedding("efficientnet_lite0", tmp_path)
    assert cached is cached_embedding("efficientnet_lite0", tmp_path)
    assert cached is not cached_embedding("efficientnet_lite0")
    expected = embedding("efficientnet_lite0")(POOL)
    assert torch.equal(cached(POOL[:5]), expected[:5])
    assert torch.equal(cached(POOL.flip(0)), expected.flip(0))
