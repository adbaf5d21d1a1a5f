from __future__ import annotations

import gzip
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from envs.datasets import prepare_dataset
from envs.datasets.base import DatasetCard
from envs.datasets.checks import CheckedImages
from envs.datasets.sources import read_source
from rewards.errors import InputError

CHEXPERT = (
    "subject_id,study_id,Atelectasis,Cardiomegaly,Consolidation,Edema,Enlarged Cardiomediastinum,Fracture,Lung Lesion,"
    "Lung Opacity,No Finding,Pleural Effusion,Pleural Other,Pneumonia,Pneumothorax,Support Devices"
)


@dataclass(frozen=True)
class Row:
    patient: int
    study: int
    dicom: str
    view: str = "PA"
    split: str = "train"

    @property
    def folder(self) -> str:
        return f"files/p{str(self.patient)[:2]}/p{self.patient}/s{self.study}"


ROWS = [
    Row(10000032, 50000001, "aa-01"),
    Row(10000032, 50000001, "aa-02", "LATERAL"),
    Row(10000032, 50000002, "aa-03", "AP"),
    Row(10000099, 50000003, "bb-01", "AP", "validate"),
    Row(11000007, 50000004, "cc-01", "PA", "test"),
]


def write(root: Path, rows: list[Row] = ROWS, *, compress: bool = True, reports: str = ".") -> Path:
    """The tree as PhysioNet lays it out."""
    tables = {
        "metadata": ["dicom_id,subject_id,study_id,PerformedProcedureStepDescription,ViewPosition,Rows,Columns"]
        + [f'{r.dicom},{r.patient},{r.study},"CHEST (PA, LAT)",{r.view},40,48' for r in rows],
        "split": ["dicom_id,study_id,subject_id,split"] + [f"{r.dicom},{r.study},{r.patient},{r.split}" for r in rows],
        "chexpert": [CHEXPERT] + [f"{r.patient},{r.study},,1.0,-1.0,1.0,,,,,0.0,,,,," for r in rows],
    }
    for name, lines in tables.items():
        content = ("\n".join(dict.fromkeys(lines)) + "\n").encode()
        path = root / f"mimic-cxr-2.0.0-{name}.csv"
        if compress:
            path.with_name(path.name + ".gz").write_bytes(gzip.compress(content))
        else:
            path.write_bytes(content)
    for k, row in enumerate(rows):
        (root / row.folder).mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(k).integers(0, 256, (5, 6), dtype=np.uint8)
        Image.fromarray(pixels).resize((48, 40), Image.Resampling.BICUBIC).save(root / row.folder / f"{row.dicom}.jpg")
        report = root / reports / row.folder
        report.parent.mkdir(parents=True, exist_ok=True)
        report.with_suffix(".txt").write_text(
            f"  FINAL REPORT\n FINDINGS:\n Seen since ___ in {row.study}.\n\n IMPRESSION:  Stable\n since ___, ___.\n"
        )
    (root / "files" / "index.html").touch()
    return root


def read(root: Path | None, size: int = 32, **options: Any) -> tuple[CheckedImages, DatasetCard]:
    return read_source("mimic", root=root, size=size, options=options)


@pytest.mark.parametrize("compress", [True, False])
def test_the_tree_as_physionet_gives_it(tmp_path: Path, compress: bool) -> None:
    checked, card = read(write(tmp_path, compress=compress))
    images = checked.images
    assert set(zip(images.ids, images.groups, strict=True)) == {
        ("aa-01", "p10000032"),
        ("aa-03", "p10000032"),
        ("bb-01", "p10000099"),
        ("cc-01", "p11000007"),
    }
    assert set(images.captions) == {"Stable since,."}
    assert images.labels.tolist() == [1] * 4
    assert images.images.shape == (4, 32, 32, 3)
    assert checked.rejects == ()
    assert "PhysioNet" in card.licence
    assert card.notes == ("4 of 4 images drawn (limit=4000, seed=0)", "8 marks ___ in 4 of 4 reports removed")


def test_sections_marks_and_views(tmp_path: Path) -> None:
    write(tmp_path)
    checked, card = read(tmp_path, views=["LATERAL"], section="findings", mark="then")
    assert checked.images.ids == ("aa-02",)
    assert checked.images.captions == ("Seen since then in 50000001.",)
    assert card.notes[-1] == "1 marks ___ in 1 of 1 reports replaced by 'then'"
    assert read(tmp_path, views=["LATERAL"], section="both")[0].images.captions == (
        "Seen since in 50000001. Stable since,.",
    )


@pytest.mark.parametrize("where", ["mimic-cxr-reports", "reports"])
def test_reports_beside_the_images(tmp_path: Path, where: str) -> None:
    assert len(read(write(tmp_path, reports=where))[0].images) == 4


@pytest.mark.parametrize("named", ["elsewhere", "elsewhere/files"])
def test_reports_in_a_folder_that_is_named(tmp_path: Path, named: str) -> None:
    (tmp_path / "jpg").mkdir()
    write(tmp_path / "jpg", reports="../elsewhere")
    assert len(read(tmp_path / "jpg", reports=str(tmp_path / named))[0].images) == 4
    with pytest.raises(InputError, match="no report of the 4 images") as caught:
        read(tmp_path / "jpg")
    assert "env.options.section=labels" in str(caught.value)


def test_labels_need_no_reports(tmp_path: Path) -> None:
    write(tmp_path)
    for report in tmp_path.rglob("*.txt"):
        report.unlink()
    checked, _ = read(tmp_path, section="labels")
    assert set(checked.images.captions) == {"chest X-ray, cardiomegaly, edema"}


def test_what_cannot_be_used_is_a_reject(tmp_path: Path) -> None:
    write(tmp_path, [*ROWS, Row(12000000, 50000005, "dd-01"), Row(12000000, 50000006, "dd-02")])
    (tmp_path / ROWS[3].folder / "bb-01.jpg").write_bytes(b"\xff\xd8 cut short")
    (tmp_path / ROWS[4].folder / "cc-01.jpg").unlink()
    study = tmp_path / "files/p12/p12000000/s50000005.txt"
    study.write_text("FINDINGS: Clear.\n")
    study.with_name("s50000006.txt").unlink()
    checked, _ = read(tmp_path)
    assert set(checked.images.ids) == {"aa-01", "aa-03"}
    reasons = {reject.id: reject.reason for reject in checked.rejects}
    assert reasons == {
        "bb-01": "does not decode: no image of a known format",
        "cc-01": "there is no such file",
        "dd-01": "its report has no section: impression",
        "dd-02": "its study has no report",
    }


def test_a_part_of_the_tree_will_do(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "files/p11").rename(tmp_path / "gone")
    checked, card = read(tmp_path)
    assert set(checked.images.groups) == {"p10000032", "p10000099"}
    assert checked.rejects == ()
    assert card.notes[0] == "1 images left out whose patient has no folder"


def test_only_what_is_drawn_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [Row(10000000 + k, 50000000 + k, f"d{k}") for k in range(40)]
    write(tmp_path, rows)
    opened: list[str] = []
    original = Image.open

    def watched(file: Any) -> Image.Image:
        opened.append(str(file))
        return original(file)

    monkeypatch.setattr(Image, "open", watched)
    ids = read(tmp_path, limit=5)[0].images.ids
    assert len(opened) == len(ids) == 5
    assert read(tmp_path, limit=5)[0].images.ids == ids
    assert read(tmp_path, limit=5, seed=1)[0].images.ids != ids


def test_physionets_own_splits(tmp_path: Path) -> None:
    names = ["train"] * 30 + ["validate"] * 3 + ["test"] * 3
    rows = [Row(10000000 + k, 50000000 + k, f"d{k}", split=name) for k, name in enumerate(names)]
    write(tmp_path, rows)

    def prepare(**options: Any) -> list[set[str]]:
        dataset = prepare_dataset(
            "mimic", root=tmp_path, size=32, train=3, heldout=3, test=3, seed=0, radius=0.0, options=options
        )
        split = {f"d{k}": name for k, name in enumerate(names)}
        return [{split[name] for name in part.ids} for part in (dataset.train, dataset.heldout, dataset.test)]

    assert prepare(use_split=True, limit=9) == [{"train"}, {"validate"}, {"test"}]


@pytest.mark.parametrize("where", ["root", "root/mimic", "shared", "shared/mimic"])
def test_the_places_that_are_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    (tmp_path / where).mkdir(parents=True)
    write(tmp_path / where)
    monkeypatch.setenv("MEMCONTROL_DATA", str(tmp_path / "shared"))
    assert len(read(tmp_path / "root" if where.startswith("root") else None)[0].images) == 4


def test_nothing_there_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMCONTROL_DATA", str(tmp_path / "shared"))
    with pytest.raises(InputError) as caught:
        read(tmp_path)
    line = str(caught.value)
    assert "\n" not in line
    for part in (
        "data.root",
        "https://physionet.org/content/mimic-cxr-jpg",
        "credentialed access",
        "Licen",
        "licence:",
    ):
        assert part.lower() in line.lower()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("metadata", b"dicom_id,subject_id\n", "lacks the column study_id, ViewPosition"),
        ("metadata", b"dicom_id,subject_id,study_id,ViewPosition\n", "has none of the patients"),
        ("metadata", b"dicom_id,subject_id,study_id,ViewPosition\na,13,5,PA\nb,13,5,AP\n", "gives the views PA, AP"),
        ("metadata", None, "has no mimic-cxr-2.0.0-metadata.csv"),
        ("split", None, "has no mimic-cxr-2.0.0-split.csv"),
        ("split", b"dicom_id,set\n", "lacks the column split"),
        ("chexpert", b"study_id,No Finding\n", "lacks the column Atelectasis"),
    ],
)
def test_a_table_that_is_wrong_is_one_line(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    path = write(tmp_path, compress=False) / f"mimic-cxr-2.0.0-{name}.csv"
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read(tmp_path, use_split=True)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"section": "history"}, "choose findings, impression, both, labels"),
        ({"views": ["PA", "XX"]}, "has no view XX — choose among AP, LATERAL, PA"),
        ({"limit": 0}, "limit=0"),
        ({"frontal": True}, "mimic has no option frontal"),
    ],
)
def test_options_that_mean_nothing_are_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read(write(tmp_path), **options)
