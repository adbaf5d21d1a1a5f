from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from envs.datasets.arrays import MedMNIST, read_npz
from envs.datasets.base import DatasetCard
from rewards.errors import InputError

CARD = DatasetCard("SkinMNIST", "CC BY-NC 4.0")
SKIN = MedMNIST("skinmnist", "SkinMNIST", "dermoscopy image", ("nevus", "melanoma"), CARD)


def noise(n: int, channels: tuple[int, ...] = ()) -> NDArray[np.uint8]:
    return np.random.default_rng(n).integers(0, 256, (n, 16, 16, *channels), dtype=np.uint8)


def write(path: Path, **columns: Any) -> Path:
    np.savez(path, **columns)
    return path


def medmnist_columns(channels: tuple[int, ...] = ()) -> dict[str, NDArray[np.uint8]]:
    columns: dict[str, NDArray[np.uint8]] = {}
    for part, n in (("train", 4), ("val", 2), ("test", 3)):
        columns[f"{part}_images"] = noise(n, channels)
        columns[f"{part}_labels"] = (np.arange(n) % 2).astype(np.uint8)[:, None]
    return columns


def test_every_column_arrives(tmp_path: Path) -> None:
    path = write(
        tmp_path / "x.npz",
        images=noise(3),
        id=np.array(["a", "b", "c"]),
        group=np.array(["p", "p", "q"]),
        text=np.array(["one", "two", "three"]),
        label=np.array([2, 0, 1]),
        split=np.array(["train", "train", "heldout"]),
        licence=np.array(["CC0", "CC0", "CC BY"]),
        source=np.array(["here"] * 3),
    )
    checked, card = read_npz(path, SKIN, 16)
    images = checked.images
    np.testing.assert_array_equal(images.images[..., 1], noise(3))
    assert (images.ids, images.groups, images.captions) == (("a", "b", "c"), ("p", "p", "q"), ("one", "two", "three"))
    assert images.labels.tolist() == [2, 0, 1]
    assert checked.declared == ("train", "train", "heldout")
    assert card == DatasetCard("here", "CC BY; CC0")


def test_images_alone_suffice(tmp_path: Path) -> None:
    checked, card = read_npz(write(tmp_path / "x.npz", images=noise(2, (3,))), SKIN, 16)
    images = checked.images
    assert (images.ids, images.groups, images.captions) == (("0", "1"), ("0", "1"), ("", ""))
    assert images.labels.tolist() == [-1, -1]
    assert card == DatasetCard("not stated", "not stated")


@pytest.mark.parametrize("channels", [(), (3,)])
def test_medmnist_files_are_read_whole(tmp_path: Path, channels: tuple[int, ...]) -> None:
    columns = medmnist_columns(channels)
    checked, card = read_npz(write(tmp_path / "x.npz", **columns), SKIN, 16)
    images = checked.images
    assert card == CARD
    assert images.images.shape == (9, 16, 16, 3)
    stored = np.concatenate([columns[f"{part}_images"] for part in ("train", "val", "test")])
    np.testing.assert_array_equal(images.images[..., 2], stored if not channels else stored[..., 2])
    assert images.ids[3:6] == ("skinmnist-train-3", "skinmnist-val-0", "skinmnist-val-1")
    assert len(set(images.groups)) == 9
    assert images.labels.tolist() == [0, 1, 0, 1, 0, 1, 0, 1, 0]
    assert images.captions[:2] == ("dermoscopy image, nevus", "dermoscopy image, melanoma")
    assert checked.declared == ("train",) * 4 + ("val",) * 2 + ("test",) * 3


def test_bad_files_are_refused_in_one_line(tmp_path: Path) -> None:
    text = tmp_path / "text.npz"
    text.write_text("not a zip")
    truncated = write(tmp_path / "truncated.npz", images=noise(30))
    truncated.write_bytes(truncated.read_bytes()[:-3000])
    corrupt = tmp_path / "corrupt.npz"
    np.savez_compressed(corrupt, images=noise(30))
    content = bytearray(corrupt.read_bytes())
    content[2000:2400] = bytes(400)
    corrupt.write_bytes(content)
    single = tmp_path / "single.npz"
    with single.open("wb") as file:
        np.save(file, noise(3))
    pickled = write(tmp_path / "pickled.npz", images=noise(2), text=np.array(["a", None], dtype=object))
    lacking = medmnist_columns()
    del lacking["val_labels"]
    label = medmnist_columns()
    label["test_labels"] = np.full((3, 1), 2, dtype=np.uint8)
    for path, message in [
        (text, "cannot be read"),
        (truncated, "cannot be read"),
        (corrupt, "cannot be read"),
        (single, "has the columns none"),
        (pickled, "cannot be read"),
        (tmp_path, "cannot be read"),
        (write(tmp_path / "other.npz", pixels=noise(2)), "has the columns pixels"),
        (write(tmp_path / "short.npz", images=noise(3), group=np.array(["p"])), "3 images have 1 values of group"),
        (
            write(tmp_path / "names.npz", images=noise(2), label=np.array(["a", "b"])),
            "names.npz: labels are of type <U1",
        ),
        (write(tmp_path / "scalar.npz", images=np.uint8(3)), "shape"),
        (write(tmp_path / "lacking.npz", **lacking), "lacking.npz: it lacks val_labels"),
        (write(tmp_path / "label.npz", **label), "labels from 0 to 2"),
    ]:
        with pytest.raises(InputError, match=message) as caught:
            read_npz(path, SKIN, 16)
        assert "\n" not in str(caught.value)
