"""A folder of image files, with or without a table of what is known about them."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from envs.datasets.checks import CheckedImages, square_rgb
from envs.datasets.entries import Entry, read_entries
from envs.datasets.tables import csv_rows
from rewards.errors import InputError

METADATA = ("metadata.csv", "metadata.jsonl")

_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".pgm", ".ppm"})
_CAPTION = ("text", "caption")
_GROUP = ("group", "patient_id", "patient")
_LABEL = ("label", "label_name")


def read_folder(root: Path, size: int) -> CheckedImages:
    """Reads the folder by the convention of Hugging Face's ``imagefolder``.

    ``metadata.csv`` or ``metadata.jsonl`` has a row for each image: ``file_name`` (relative to the folder) and, where
    known, ``text`` or ``caption``, ``group``, ``patient_id`` or ``patient``, ``label`` (a number or a name; names are
    numbered in alphabetical order) and ``split``. Images it does not name are not read. A folder without it is read
    whole, subfolders included, in the order of names: no captions, each file its own group.

    Args:
        root: The folder.
        size: Height and width wanted; see `square_rgb` for how images are brought to it.

    Raises:
        InputError: If there are no images, or the table is malformed. An image that cannot be read is a reject.
    """
    entries = [
        Entry(row["id"], row["id"], row["group"], row["text"], row["label"], row["split"]) for row in folder_rows(root)
    ]

    def read(entry: Entry) -> NDArray[np.uint8]:
        with Image.open(root / entry.file) as image:
            return square_rgb(image, size)

    return read_entries(entries, read, size, source=root)


def folder_rows(root: Path) -> list[dict[str, str]]:
    """What the folder says of each image: ``id`` (its path in the folder), ``group``, ``text``, ``label``, ``split``.

    Raises:
        InputError: See `read_folder`.
    """
    rows = _read_metadata(root)
    if not rows:
        files = sorted(
            path.relative_to(root).as_posix() for path in root.rglob("*") if path.suffix.lower() in _SUFFIXES
        )
        rows = [{"file_name": name} for name in files]
    if not rows:
        raise InputError(f"{root} has no images", f"put image files there ({', '.join(sorted(_SUFFIXES))})")
    return [
        {
            "id": row["file_name"],
            "group": _first(row, _GROUP),
            "text": _first(row, _CAPTION),
            "label": _first(row, _LABEL),
            "split": row.get("split", ""),
        }
        for row in rows
    ]


def _read_metadata(root: Path) -> list[dict[str, str]]:
    """The table's rows with every value as text; nothing if there is no table."""
    present = [root / name for name in METADATA if (root / name).is_file()]
    if not present:
        return []
    if len(present) > 1:
        raise InputError(f"{root} has both {' and '.join(METADATA)}", "remove one of them")
    path = present[0]
    try:
        content = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read ({error})", "save it as UTF-8") from error
    if path.suffix == ".csv":
        (_, header), *rows = list(csv_rows(io.StringIO(content, newline=""), path)) or [(0, [])]
        numbered = [(number, dict(zip(header, values, strict=True))) for number, values in rows]
    else:
        numbered = list(_jsonl_rows(content, path))
    for number, row in numbered:
        if not row.get("file_name"):
            raise InputError(f"{path} line {number} has no file_name", "name an image file in every row")
    if not numbered:
        raise InputError(f"{path} has no rows", "give it one for each image, or remove it")
    return [row for _, row in numbered]


def _jsonl_rows(content: str, path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    for number, line in enumerate(content.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise InputError(f"{path} line {number} is not JSON ({error})", "mend the line") from error
        if not isinstance(row, dict):
            raise InputError(f"{path} line {number} is not a JSON object", "write one object a line")
        yield number, {name: "" if value is None else str(value).strip() for name, value in row.items()}


def _first(row: Mapping[str, str], names: Sequence[str]) -> str:
    return next((row[name] for name in names if row.get(name)), "")
