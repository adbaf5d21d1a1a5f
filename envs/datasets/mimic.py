"""MIMIC-CXR-JPG: chest radiographs of Beth Israel Deaconess with their reports (Johnson et al. 2019)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from envs.datasets.base import DatasetCard, Reject
from envs.datasets.checks import CheckedImages
from envs.datasets.entries import Entry, decode_square, draw_entries, read_entries
from envs.datasets.options import draw_options, text, words
from envs.datasets.places import find_tree, tried
from envs.datasets.reports import SECTIONS, report_caption
from envs.datasets.tables import read_table
from rewards.errors import InputError

MIMIC_OPTIONS = frozenset({"views", "section", "mark", "reports", "limit", "seed", "use_split"})

_LICENCE = "PhysioNet Credentialed Health Data License 1.5.0"
_CARD = DatasetCard("MIMIC-CXR-JPG (Johnson et al. 2019, doi:10.13026/jsn5-t979)", _LICENCE)
_CHOICES = (*SECTIONS, "both", "labels")
_FRONTAL = ("PA", "AP")
_REPORT_FOLDERS = (".", "mimic-cxr-reports", "reports")
_CHEXPERT = (
    "Atelectasis,Cardiomegaly,Consolidation,Edema,Enlarged Cardiomediastinum,Fracture,Lung Lesion,Lung Opacity,"
    "No Finding,Pleural Effusion,Pleural Other,Pneumonia,Pneumothorax,Support Devices"
)
_FINDINGS = tuple(_CHEXPERT.split(","))


def read_mimic(root: Path | None, size: int, options: Mapping[str, Any]) -> tuple[CheckedImages, DatasetCard]:
    """Reads a draw of patients from the tree that PhysioNet gives out, or from a part of it.

    The tree: ``files/p10/p10000032/s50414267/<dicom_id>.jpg``, ``mimic-cxr-2.0.0-metadata.csv``, ``-split.csv`` (for
    ``use_split`` only) and ``-chexpert.csv`` (for labels: the first positive finding in the table's order), each plain
    or ``.gz``, and the reports of MIMIC-CXR, ``files/p10/p10000032/s50414267.txt``, in the same folder, in
    ``mimic-cxr-reports`` or ``reports`` in it, or in the folder that the option ``reports`` names. Patients are chosen
    from the tables and reports are read before any image is decoded.

    Args:
        root: ``data.root``: that folder, or the one in which it is called ``mimic``; None for ``$MEMCONTROL_DATA``.
        size: Height and width wanted.
        options: ``views`` (default ``[PA, AP]``); ``section``: the caption is the report's ``impression`` (default),
            its ``findings``, ``both``, or ``labels``, a sentence of CheXpert's labels that needs no report; ``mark``:
            what each ``___`` becomes (default nothing); ``reports``; ``limit``: images drawn before those without a
            caption are left out (default 4000, null for all); ``seed`` of the draw (default 0); ``use_split``.

    Raises:
        InputError: If the tree is nowhere to be found, a table or the reports are missing or malformed, an option is
            wrong, or no image can be used.
    """
    limit, seed = draw_options(options)
    views, section = words(options, "views", _FRONTAL), text(options, "section", "impression")
    if section not in _CHOICES:
        raise InputError(f"section={section!r}", f"choose {', '.join(_CHOICES)}")
    use_split = options.get("use_split") is True
    tree = find_tree(("mimic",), root, lambda place: (place / "files").is_dir())
    if tree is None:
        raise InputError(
            f"no MIMIC-CXR-JPG in {tried(root)}",
            "get it from https://physionet.org/content/mimic-cxr-jpg (credentialed access) and point data.root at the "
            f"folder that has files/ and the mimic-cxr-2.0.0-*.csv.gz; licence: {_LICENCE}",
        )
    entries, notes = _entries(tree, views, use_split=use_split)
    drawn = draw_entries(entries, limit, seed, by_split=use_split)
    notes.append(f"{len(drawn)} of {len(entries)} images drawn (limit={limit}, seed={seed})")
    findings = _findings(tree, {_study(entry) for entry in drawn}, needed=section == "labels")
    drawn = [replace(entry, label=_label(findings.get(_study(entry), ()))) for entry in drawn]
    if section == "labels":
        captioned, rejects = _label_captions(drawn, findings)
    else:
        captioned, rejects, note = _report_captions(tree, drawn, section, options)
        notes.append(note)
    checked = read_entries(
        captioned, lambda entry: decode_square(tree / entry.file, size), size, source=tree, rejects=rejects
    )
    return checked, replace(_CARD, notes=tuple(notes))


def _entries(tree: Path, views: Sequence[str], *, use_split: bool) -> tuple[list[Entry], list[str]]:
    """Every image of the wanted views whose patient's folder is there: a part of the tree will do."""
    there = {patient.name for shelf in (tree / "files").iterdir() if shelf.is_dir() for patient in shelf.iterdir()}
    splits: dict[str, str] = {}
    if use_split:
        for row in read_table(_table(tree, "split"), ("dicom_id", "split")):
            # Only here the held-out split is called so.
            splits[row["dicom_id"]] = "validation" if row["split"] == "validate" else row["split"]
    entries: list[Entry] = []
    seen: set[str] = set()
    elsewhere = 0
    path = _table(tree, "metadata")
    for row in read_table(path, ("dicom_id", "subject_id", "study_id", "ViewPosition")):
        seen.add(row["ViewPosition"])
        if row["ViewPosition"] not in views:
            continue
        patient, name = f"p{row['subject_id']}", row["dicom_id"]
        if patient not in there:
            elsewhere += 1
            continue
        file = f"files/{patient[:3]}/{patient}/s{row['study_id']}/{name}.jpg"
        entries.append(Entry(name, file, group=patient, split=splits.get(name, "")))
    if unknown := sorted(set(views) - seen - set(_FRONTAL)):
        raise InputError(f"{path} has no view {', '.join(unknown)}", f"choose among {', '.join(sorted(seen - {''}))}")
    if not entries:
        raise InputError(
            f"{tree / 'files'} has none of the patients that {path.name} gives the views {', '.join(views)}",
            "download images of some, or ask for other views",
        )
    return entries, [f"{elsewhere} images left out whose patient has no folder"] if elsewhere else []


def _table(tree: Path, name: str) -> Path:
    # Version 2.1.0 calls its tables 2.0.0 too; whatever the next does, this finds them.
    if found := sorted(tree.glob(f"mimic-cxr-*-{name}.csv")) or sorted(tree.glob(f"mimic-cxr-*-{name}.csv.gz")):
        return found[-1]
    raise InputError(
        f"{tree} has no mimic-cxr-2.0.0-{name}.csv or .csv.gz",
        "put it there, from https://physionet.org/content/mimic-cxr-jpg",
    )


def _study(entry: Entry) -> str:
    return Path(entry.file).parent.name


def _findings(tree: Path, studies: set[str], *, needed: bool) -> dict[str, tuple[str, ...]]:
    """CheXpert's positive findings of each study that it has."""
    if not needed and not any(tree.glob("mimic-cxr-*-chexpert.csv*")):
        return {}
    rows = read_table(_table(tree, "chexpert"), ("study_id", *_FINDINGS))
    return {
        study: tuple(name for name in _FINDINGS if row[name] in ("1", "1.0"))
        for row in rows
        if (study := f"s{row['study_id']}") in studies
    }


def _label(findings: Sequence[str]) -> str:
    return str(_FINDINGS.index(findings[0])) if findings else ""


def _label_captions(
    entries: Sequence[Entry], findings: Mapping[str, Sequence[str]]
) -> tuple[list[Entry], list[Reject]]:
    captioned = [
        replace(entry, text=", ".join(["chest X-ray", *map(str.lower, findings[_study(entry)])]))
        for entry in entries
        if _study(entry) in findings
    ]
    reason = "CheXpert's table does not have its study"
    return captioned, [Reject(entry.id, reason) for entry in entries if _study(entry) not in findings]


def _report_captions(
    tree: Path, entries: Sequence[Entry], section: str, options: Mapping[str, Any]
) -> tuple[list[Entry], list[Reject], str]:
    """Those with a caption, those without, and a note on the marks."""
    named, mark = text(options, "reports", ""), text(options, "mark", "")
    folders = [Path(named)] if named else [tree / folder for folder in _REPORT_FOLDERS]
    captions: dict[str, tuple[str, int]] = {}
    captioned, rejects = [], []
    for entry in entries:
        study = Path(entry.file).parent.with_suffix(".txt")
        if study.name not in captions:
            # A reports folder is named with or without the `files` in it.
            places = [folder / part for folder in folders for part in (study, study.relative_to("files"))]
            if (place := next(filter(Path.is_file, places), None)) is None:
                rejects.append(Reject(entry.id, "its study has no report"))
                continue
            report = place.read_text(encoding="utf-8", errors="replace")
            captions[study.name] = report_caption(report, section, mark)
        caption, _ = captions[study.name]
        if caption:
            captioned.append(replace(entry, text=caption))
        else:
            rejects.append(Reject(entry.id, f"its report has no section: {section}"))
    if not captions:
        raise InputError(
            f"no report of the {len(entries)} images drawn is in {', '.join(map(str, folders))}",
            "unpack mimic-cxr-reports.zip of https://physionet.org/content/mimic-cxr there, name its folder with "
            "env.options.reports, or set env.options.section=labels",
        )
    marks = [count for caption, count in captions.values() if caption and count]
    became = f"replaced by {mark!r}" if mark else "removed"
    return captioned, rejects, f"{sum(marks)} marks ___ in {len(marks)} of {len(captions)} reports {became}"
