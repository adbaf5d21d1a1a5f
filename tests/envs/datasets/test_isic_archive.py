from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from envs.datasets.base import DatasetCard
from envs.datasets.checks import CheckedImages
from envs.datasets.sources import read_source
from rewards.errors import InputError

HEADER = (
    "isic_id,attribution,copyright_license,age_approx,diagnosis_1,diagnosis_2,diagnosis_3,image_type,lesion_id,"
    "patient_id"
)
ROWS = """\
ISIC_0000001,"Hospital A, Vienna",CC-BY-NC,55,Benign,Melanocytic,Nevus,dermoscopic,IL_1,IP_1
ISIC_0000002,"Hospital A, Vienna",CC-BY-NC,55,Benign,Melanocytic,,clinical: close-up,IL_1,
ISIC_0000003,Hospital B,CC-0,40,Malignant,,,dermoscopic,IL_2,
ISIC_0000004,Hospital B,CC-0,40,,,,,,
ISIC_0000005,Hospital C,CC-BY,40,Malignant,Melanoma,,TBP tile: close-up,,IP_1
"""


def write(root: Path, rows: str = ROWS, header: str = HEADER, below: str = ".") -> Path:
    """A folder as ``isic image download`` fills it."""
    (root / below).mkdir(parents=True, exist_ok=True)
    for k in range(1, 6):
        pixels = np.random.default_rng(k).integers(0, 256, (5, 6, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((60, 50)).save(root / below / f"ISIC_{k:07}.jpg")
    (root / "metadata.csv").write_text(f"{header}\n{rows}")
    (root / "attribution.txt").write_text("Hospital A\n")
    return root


def read(root: Path, **options: Any) -> tuple[CheckedImages, DatasetCard]:
    return read_source("isic", root=root, size=32, options=options)


@pytest.mark.parametrize("below", [".", "images"])
def test_the_folder_as_the_archive_gives_it(tmp_path: Path, below: str) -> None:
    checked, card = read(write(tmp_path, below=below))
    images = checked.images
    by_id = dict(zip(images.ids, zip(images.groups, images.captions, strict=True), strict=True))
    assert by_id == {
        "ISIC_0000001": ("IP_1", "dermoscopy image, nevus"),
        "ISIC_0000002": ("IP_1", "clinical image of skin, melanocytic"),
        "ISIC_0000003": ("IL_2", "dermoscopy image, malignant"),
        "ISIC_0000004": ("ISIC_0000004", "skin image"),
        "ISIC_0000005": ("IP_1", "total body photograph, melanoma"),
    }
    labels = dict(zip(images.ids, images.labels.tolist(), strict=True))
    assert labels == {f"ISIC_000000{k}": label for k, label in zip(range(1, 6), (3, 1, 0, -1, 2), strict=True)}
    assert (card.source, card.licence) == ("ISIC Archive", "CC-0; CC-BY; CC-BY-NC")
    assert card.notes == (
        "5 of 5 images drawn (limit=4000, seed=0)",
        "attribution: Hospital A, Vienna",
        "attribution: Hospital B",
        "attribution: Hospital C",
    )


def test_the_older_column_of_diagnoses(tmp_path: Path) -> None:
    write(tmp_path, "ISIC_0000001,melanoma,dermoscopic\n", "isic_id,diagnosis,image_type")
    images = read(tmp_path)[0].images
    assert (images.captions, images.groups) == (("dermoscopy image, melanoma",), ("ISIC_0000001",))


def test_a_draw_and_what_it_finds(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "ISIC_0000004.jpg").write_bytes(b"not an image")
    (tmp_path / "ISIC_0000003.jpg").unlink()
    checked, card = read(tmp_path)
    assert set(checked.images.ids) == {"ISIC_0000001", "ISIC_0000002", "ISIC_0000005"}
    assert [(r.id, r.reason[:15]) for r in checked.rejects] == [("ISIC_0000004", "does not decode")]
    assert card.notes[1] == "1 images of metadata.csv have no file"
    assert card.licence == "CC-BY; CC-BY-NC"
    assert len(read(tmp_path, limit=2, seed=3)[0].images) + len(read(tmp_path, limit=2, seed=3)[0].rejects) == 2


def test_a_table_that_is_wrong_and_images_that_are_gone(tmp_path: Path) -> None:
    write(tmp_path, ROWS + "ISIC_0000006,short\n")
    with pytest.raises(InputError, match="line 7 has not as many values"):
        read(tmp_path)
    write(tmp_path)
    for image in tmp_path.glob("*.jpg"):
        image.unlink()
    with pytest.raises(InputError, match=r"none of 5 images can be used, the first: .*: there is no such file"):
        read(tmp_path)
