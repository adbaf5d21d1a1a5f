from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.spatial.distance import cdist

from envs.datasets import NEAR_DUPLICATE_RADIUS, SplitDataset, prepare_dataset
from rewards.errors import InputError


def prepare(name: str, root: Path | None, sizes: tuple[int, int, int], size: int = 64, **options: Any) -> SplitDataset:
    train, heldout, test = sizes
    return prepare_dataset(
        name,
        root=root,
        size=size,
        train=train,
        heldout=heldout,
        test=test,
        seed=0,
        radius=NEAR_DUPLICATE_RADIUS,
        options=options,
    )


@pytest.mark.parametrize("name", ["chest_xray", "isic"])
def test_real_splits_share_no_patient_and_no_picture(real_data: Path, name: str) -> None:
    dataset = prepare(name, real_data, (64, 400, 400))
    parts = (dataset.train, dataset.heldout, dataset.test)
    assert [len(part) for part in parts] == [64, 400, 400]
    assert not dataset.card.synthetic
    for one, other in itertools.combinations(parts, 2):
        assert not set(one.groups) & set(other.groups)
        flat = [part.images.reshape(len(part), 16, 4, 16, 4, 3).mean((2, 4)) / 255 for part in (one, other)]
        centred = [x - x.mean((1, 2, 3), keepdims=True) for x in flat]
        for view in (centred[1], centred[1][:, :, ::-1]):
            distance = cdist(centred[0].reshape(len(one), -1), view.reshape(len(other), -1)) / np.sqrt(768)
            assert distance.min() > NEAR_DUPLICATE_RADIUS


def test_planted_copies_of_real_images_stay_together(real_data: Path, tmp_path: Path) -> None:
    with np.load(real_data / "chest_xray_64.npz", allow_pickle=False) as file:
        images = file["images"][:120]
    copies = np.clip(images[:60] + np.random.default_rng(0).normal(8, 6, images[:60].shape), 0, 255).astype(np.uint8)
    np.savez(tmp_path / "chest_xray_64.npz", images=np.concatenate([images, copies]))
    dataset = prepare("chest_xray", tmp_path, (60, 60, 60))
    assert dataset.near_duplicates == tuple(sorted(tuple(sorted((str(k), str(120 + k)))) for k in range(60)))
    where = {int(i): k for k, p in enumerate((dataset.train, dataset.heldout, dataset.test)) for i in p.ids}
    assert all(where[k] == where[120 + k] for k in range(60))


def test_phantoms_need_nothing() -> None:
    dataset = prepare("phantom", None, (20, 10, 10), size=32, identities=30, views=2)
    assert [len(part) for part in (dataset.train, dataset.heldout, dataset.test)] == [20, 10, 10]
    assert dataset.card.synthetic
    assert prepare("phantom", None, (20, 10, 10), 32, identities=30, views=2).split_sha256 == dataset.split_sha256
    assert (
        prepare("phantom", None, (20, 10, 10), 32, identities=30, views=2, seed=1).split_sha256 != dataset.split_sha256
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    lines = ["file_name,text,patient_id,split"]
    for k, declared in enumerate(("train", "train", "heldout", "test", "test")):
        pixels = np.random.default_rng(k).integers(0, 256, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{k}.png")
        lines.append(f"{k}.png,caption {k},patient {k},{declared}")
    (tmp_path / "metadata.csv").write_text("\n".join(lines))
    return tmp_path


def test_a_folders_own_splits_are_used_when_asked(folder: Path) -> None:
    dataset = prepare("imagefolder", folder, (2, 1, 2), 20, use_split=True)
    assert set(dataset.train.ids) == {"0.png", "1.png"}
    assert dataset.heldout.ids == ("2.png",)
    with pytest.raises(InputError, match="cannot fill train=3"):
        prepare("imagefolder", folder, (3, 1, 1), 20, use_split=True)
    assert len(prepare("imagefolder", folder, (3, 1, 1), 20).train) == 3


def test_a_patient_in_two_of_a_folders_splits_is_refused_by_name(folder: Path) -> None:
    table = folder / "metadata.csv"
    table.write_text(table.read_text().replace("patient 3", "patient 0"))
    with pytest.raises(InputError, match="patient patient 0 is in the splits train and test"):
        prepare("imagefolder", folder, (2, 1, 2), 20, use_split=True)


def test_rejects_reach_the_result(folder: Path) -> None:
    (folder / "1.png").write_bytes(b"")
    dataset = prepare("imagefolder", folder, (2, 1, 1), 20)
    assert [reject.id for reject in dataset.rejects] == ["1.png"]
    with pytest.raises(InputError, match="4 images of 4 patients"):
        prepare("imagefolder", folder, (3, 1, 1), 20)


def test_use_split_is_true_or_false(folder: Path) -> None:
    with pytest.raises(InputError, match="use_split='yes'"):
        prepare("imagefolder", folder, (2, 1, 1), 20, use_split="yes")


def test_a_caption_for_images_that_have_none(folder: Path) -> None:
    table = folder / "metadata.csv"
    table.write_text(table.read_text().replace("caption 3", ""))
    given, filled, empty = (
        prepare("imagefolder", folder, (3, 1, 1), 20, **said) for said in ({}, {"caption": "a scan"}, {"caption": ""})
    )
    assert "" in given.train.captions
    assert filled.train.captions == tuple(caption or "a scan" for caption in given.train.captions)
    assert filled.split_sha256 != given.split_sha256 == empty.split_sha256
    with pytest.raises(InputError, match="caption=3"):
        prepare("imagefolder", folder, (3, 1, 1), 20, caption=3)
