from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from envs.datasets.loose import read_image_set
from rewards.errors import InputError


def noise(n: int, height: int = 8, width: int = 8, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (n, height, width, 3), dtype=np.uint8)


def save(folder: Path, images: NDArray[np.uint8]) -> Path:
    folder.mkdir(exist_ok=True)
    for row, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{row:03}.png")
    return folder


def npz(path: Path, **columns: Any) -> Path:
    np.savez(path, **columns)
    return path


def test_a_folder_is_read_as_it_is(tmp_path: Path) -> None:
    images = noise(3, 8, 12)
    found = read_image_set(str(save(tmp_path / "set", images)))
    np.testing.assert_array_equal(found.images, images)
    assert found.ids == ("000.png", "001.png", "002.png")
    assert found.groups == found.captions == ("", "", "")


def test_a_constant_image_is_an_image(tmp_path: Path) -> None:
    images = np.zeros((2, 8, 8, 3), dtype=np.uint8)
    assert len(read_image_set(str(save(tmp_path / "set", images)))) == 2


def test_a_table_names_patients_captions_and_splits(tmp_path: Path) -> None:
    folder = save(tmp_path / "set", noise(3))
    (folder / "metadata.csv").write_text(
        "file_name,text,patient_id,split\n000.png,a nevus,p1,train\n001.png,a mole,p2,heldout\n002.png,mole,p1,train\n"
    )
    found = read_image_set(f"{folder}@train")
    assert found.ids == ("000.png", "002.png")
    assert found.groups == ("p1", "p1")
    assert found.captions == ("a nevus", "mole")


@pytest.mark.parametrize("gray", [False, True])
@pytest.mark.parametrize("floats", [False, True])
def test_an_array_is_read_as_it_is(tmp_path: Path, gray: bool, floats: bool) -> None:
    images = noise(3)[..., 0] if gray else noise(3)
    path = npz(tmp_path / "set.npz", images=images / 255 if floats else images, text=["a", "b", "c"])
    found = read_image_set(str(path))
    np.testing.assert_array_equal(found.images, images if not gray else np.repeat(images[..., None], 3, -1))
    assert found.captions == ("a", "b", "c")
    assert found.ids == ("0", "1", "2")


def test_rows_of_one_split_of_an_array(tmp_path: Path) -> None:
    path = npz(tmp_path / "set.npz", images=noise(3), split=["train", "heldout", "train"], group=["p", "q", "r"])
    found = read_image_set(f"{path}@train")
    np.testing.assert_array_equal(found.images, noise(3)[[0, 2]])
    assert found.groups == ("p", "r")


def test_an_array_on_its_own_may_have_any_name(tmp_path: Path) -> None:
    assert len(read_image_set(str(npz(tmp_path / "set.npz", samples=noise(3))))) == 3


def test_a_size_crops_and_resizes_all(tmp_path: Path) -> None:
    folder = save(tmp_path / "set", noise(2, 20, 16))
    Image.fromarray(noise(1, 9, 9)[0]).save(folder / "small.png")
    assert read_image_set(str(folder), 8).images.shape == (3, 8, 8, 3)
    assert read_image_set(str(npz(tmp_path / "set.npz", images=noise(2, 20, 16))), 8).images.shape == (2, 8, 8, 3)


def write_truncated(folder: Path) -> None:
    whole = (folder / "000.png").read_bytes()
    (folder / "001.png").write_bytes(whole[: len(whole) // 2])


def write_text(folder: Path) -> None:
    (folder / "001.png").write_text("no image")


def write_larger(folder: Path) -> None:
    Image.fromarray(noise(1, 9, 9)[0]).save(folder / "001.png")


def write_deep(folder: Path) -> None:
    Image.fromarray(np.full((9, 8), 7, dtype=np.uint16)).save(folder / "001.png")


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (write_truncated, r"001\.png does not decode"),
        (write_text, r"001\.png does not decode"),
        (write_larger, r"001\.png has 9x9 pixels and .*000\.png 8x8 — set size=<pixels>"),
        (write_deep, r"001\.png: an oblong image of mode I"),
    ],
)
def test_an_image_that_cannot_be_read_is_named(tmp_path: Path, write: Any, message: str) -> None:
    folder = save(tmp_path / "set", noise(1))
    write(folder)
    with pytest.raises(InputError, match=message):
        read_image_set(str(folder))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"images": np.zeros((2, 8))}, r"shape \(2, 8\)"),
        ({"images": np.zeros((2, 3, 8, 8))}, r"shape \(2, 3, 8, 8\)"),
        ({"images": np.zeros((2, 8, 8), dtype=np.int64)}, "type int64"),
        ({"images": np.full((2, 8, 8), 255.0)}, "values outside 0 and 1"),
        ({"images": np.full((2, 8, 8), np.nan)}, "values outside 0 and 1"),
        ({"images": np.zeros((0, 8, 8), dtype=np.uint8)}, "has no images"),
        ({"a": np.zeros(3), "b": np.zeros(3)}, "has the columns a, b"),
    ],
)
def test_an_array_that_is_none_of_images(tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_image_set(str(npz(tmp_path / "set.npz", **columns)))


def test_what_is_no_set_of_images(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("no images")
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04nothing")
    np.savez(tmp_path / "pickled.npz", images=np.array([{"a": 1}], dtype=object))
    path = npz(tmp_path / "set.npz", images=noise(2))
    for source, message in (
        ("nowhere", "nowhere does not exist"),
        ("notes.txt", "neither a folder nor an .npz"),
        ("empty", "has no images"),
        ("broken.npz", "cannot be read"),
        ("pickled.npz", "cannot be read"),
        (f"{path.name}@train", "has no column `split`"),
    ):
        with pytest.raises(InputError, match=message):
            read_image_set(str(tmp_path / source))


def test_a_split_that_nobody_is_in(tmp_path: Path) -> None:
    path = npz(tmp_path / "set.npz", images=noise(2), split=["train", "train"])
    with pytest.raises(InputError, match="no images of split 'test'"):
        read_image_set(f"{path}@test")
