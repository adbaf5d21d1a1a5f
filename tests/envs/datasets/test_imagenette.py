from __future__ import annotations

import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from envs.datasets.base import DatasetCard
from envs.datasets.checks import CheckedImages
from envs.datasets.sources import read_source
from rewards.errors import InputError

TENCH, CHURCH, SPRINGER = "n01440764", "n03028079", "n02102040"


def write(root: Path, name: str = "imagenette2-160") -> Path:
    """The folder that fast.ai's archive unpacks to."""
    folder = root / name
    for k, (part, wnid) in enumerate((p, w) for p in ("train", "val") for w in (TENCH, CHURCH, SPRINGER)):
        (folder / part / wnid).mkdir(parents=True)
        for n in range(2):
            pixels = np.random.default_rng(9 * k + n).integers(0, 256, (5, 6, 3), dtype=np.uint8)
            image = Image.fromarray(pixels).resize((60, 50))
            image.save(folder / part / wnid / f"ILSVRC2012_{part}_{k}{n}.JPEG", quality=95)
    (folder / "noisy_imagenette.csv").write_text("path,noisy_labels_0\n")
    return folder


def archive(folder: Path) -> Path:
    path = folder.parent / f"{folder.name}.tgz"
    with tarfile.open(path, "w:gz") as tar:
        tar.add(folder, arcname=folder.name)
    return path


def read(root: Path | None, **options: Any) -> tuple[CheckedImages, DatasetCard]:
    return read_source("imagenette", root=root, size=32, options=options)


def test_the_folder(tmp_path: Path) -> None:
    checked, card = read(write(tmp_path))
    images = checked.images
    assert (len(images), len(set(images.groups)), checked.rejects) == (12, 12, ())
    words = {TENCH: ("a photo of a tench", 0), SPRINGER: ("a photo of an English springer", 1)}
    for name, caption, label in zip(images.ids, images.captions, images.labels, strict=True):
        assert (caption, label) == words.get(name.split("/")[1], ("a photo of a church", 4))
    assert card.notes == ("12 of 12 images drawn (limit=4000, seed=0)",)


def test_folder_and_archive_hold_the_same(tmp_path: Path) -> None:
    folder = write(tmp_path)
    for options in ({}, {"limit": 5, "seed": 2}):
        one, other = read(folder, **options)[0].images, read(archive(folder), **options)[0].images
        order = [other.ids.index(name) for name in one.ids]
        assert one.ids == other.take(order).ids
        np.testing.assert_array_equal(one.images, other.take(order).images)
    assert len(one) == 5


@pytest.mark.parametrize("as_archive", [True, False])
@pytest.mark.parametrize("name", ["imagenette2-160", "imagenette2-320", "imagenette2"])
def test_the_places_that_are_searched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, as_archive: bool
) -> None:
    folder = write(tmp_path, name)
    if as_archive:
        archive(folder)
        folder.rename(tmp_path / "unpacked")
    assert len(read(tmp_path)[0].images) == 12
    monkeypatch.setenv("MEMCONTROL_DATA", str(tmp_path))
    assert len(read(None)[0].images) == 12


def test_a_broken_image_is_a_reject(tmp_path: Path) -> None:
    folder = write(tmp_path)
    broken = next((folder / "val" / TENCH).iterdir())
    broken.write_bytes(broken.read_bytes()[:300])
    for root in (folder, archive(folder)):
        checked, _ = read(root)
        assert [(r.id, r.reason[:15]) for r in checked.rejects] == [(f"val/{TENCH}/{broken.name}", "does not decode")]


def test_what_is_wrong_as_a_whole_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMCONTROL_DATA", str(tmp_path / "shared"))
    with pytest.raises(InputError, match=r"imagenette2-160\.tgz and point data\.root .*licence: ImageNet"):
        read(tmp_path)
    folder = write(tmp_path)
    cut = archive(folder)
    cut.write_bytes(cut.read_bytes()[:-2000])
    text = tmp_path / "text.tgz"
    text.write_text("not an archive")
    empty = tmp_path / "empty"
    (empty / "train").mkdir(parents=True)
    for path, message in ((cut, "cannot be read"), (text, "cannot be read"), (empty, "has no train/<wnid>")):
        with pytest.raises(InputError, match=message) as caught:
            read(path)
        assert "\n" not in str(caught.value)
    (folder / "train" / TENCH).rename(folder / "train" / "n99999999")
    with pytest.raises(InputError, match="train/n99999999 is no class of Imagenette"):
        read(folder)
