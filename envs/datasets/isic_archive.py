"""Folders as the ISIC Archive gives them out: images and a `metadata.csv` with a column `isic_id`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from envs.datasets.base import DatasetCard
from envs.datasets.checks import CheckedImages
from envs.datasets.entries import Entry, decode_square, draw_entries, read_entries
from envs.datasets.options import draw_options
from envs.datasets.tables import read_table

_TABLE = "metadata.csv"
_DIAGNOSES = ("diagnosis", *(f"diagnosis_{level}" for level in range(5, 0, -1)))
_OPTIONAL = ("patient_id", "lesion_id", "image_type", "copyright_license", "attribution", *_DIAGNOSES)
_SUFFIXES = (".jpg", ".jpeg", ".png")
# By the beginning of `image_type`.
_KINDS = {"dermoscopic": "dermoscopy image", "clinical": "clinical image of skin", "TBP": "total body photograph"}


def is_isic_archive(folder: Path) -> bool:
    """Whether its `metadata.csv` is the archive's."""
    try:
        with (folder / _TABLE).open(encoding="utf-8-sig", errors="replace") as lines:
            header = [name.strip().strip('"') for name in lines.readline().split(",")]
    except OSError:
        return False
    return "isic_id" in header and "file_name" not in header


def read_isic_archive(root: Path, size: int, options: Mapping[str, Any]) -> tuple[CheckedImages, DatasetCard]:
    """Reads a draw of patients; images lie as ``<isic_id>.jpg`` in the folder or below it.

    A group is a ``patient_id``, where there is none a ``lesion_id`` (the patient's, if another row of the lesion names
    one), and where there is neither, the image alone. The caption says the kind of image and the finest diagnosis that
    is given (``diagnosis``, or else the last of ``diagnosis_1`` to ``diagnosis_5``), which is also the label.

    Args:
        root: The folder.
        size: Height and width wanted.
        options: ``limit`` (default 4000, null for all) and ``seed`` (default 0) of the draw.

    Returns:
        The images, and a card with the licences of those that were drawn and whom to attribute them to.

    Raises:
        InputError: If the table is malformed, an option is wrong, or no image can be used.
    """
    limit, seed = draw_options(options)
    rows = list(read_table(root / _TABLE, ("isic_id",), _OPTIONAL))
    patients = {row["lesion_id"]: row["patient_id"] for row in rows if row["lesion_id"] and row["patient_id"]}
    files = {
        path.stem: path.relative_to(root).as_posix()
        for path in sorted(root.rglob("*"), reverse=True)
        if path.suffix.lower() in _SUFFIXES
    }
    entries = [
        Entry(
            id=row["isic_id"],
            file=files.get(row["isic_id"], f"{row['isic_id']}.jpg"),
            group=row["patient_id"] or patients.get(row["lesion_id"], row["lesion_id"]),
            text=", ".join(filter(None, (_kind(row["image_type"]), _diagnosis(row)))),
            label=_diagnosis(row),
        )
        for row in rows
    ]
    # A download of some images has rows for these only, but a folder from which some were removed has rows for more.
    there = [entry for entry in entries if entry.id in files] or entries
    drawn = draw_entries(there, limit, seed)
    checked = read_entries(drawn, lambda entry: decode_square(root / entry.file, size), size, source=root)
    of = {row["isic_id"]: row for row in rows}
    used = [of[name] for name in checked.images.ids]
    licences = sorted({row["copyright_license"] for row in used} - {""})
    notes = [f"{len(drawn)} of {len(entries)} images drawn (limit={limit}, seed={seed})"]
    if len(there) < len(entries):
        notes.append(f"{len(entries) - len(there)} images of {_TABLE} have no file")
    notes += [f"attribution: {who}" for who in sorted({row["attribution"] for row in used} - {""})]
    return checked, DatasetCard("ISIC Archive", "; ".join(licences) or "not stated", notes=tuple(notes))


def _kind(image_type: str) -> str:
    return next((kind for start, kind in _KINDS.items() if image_type.startswith(start)), "skin image")


def _diagnosis(row: Mapping[str, str]) -> str:
    return next((row[name].lower() for name in _DIAGNOSES if row[name]), "")
