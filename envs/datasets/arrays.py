"""Images from ``.npz`` files: this project's own columns, and MedMNIST+."""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.npyio import NpzFile
from numpy.typing import NDArray

from envs.datasets.base import DatasetCard
from envs.datasets.checks import CheckedImages, check_images
from rewards.errors import InputError


@dataclass(frozen=True)
class MedMNIST:
    """One of the MedMNIST+ sets (Yang et al. 2023, doi:10.1038/s41597-022-01721-8).

    Attributes:
        flag: Its name in file names.
        python_class: The class of the ``medmnist`` package that downloads it.
        caption: What every caption begins with; the label's name follows.
        labels: The names of labels 0, 1, ...
        card: Source and licence.
    """

    flag: str
    python_class: str
    caption: str
    labels: tuple[str, ...]
    card: DatasetCard


def read_npz(path: Path, medmnist: MedMNIST, size: int) -> tuple[CheckedImages, DatasetCard]:
    """Reads either layout; which one it is shows in the file.

    - Columns, one row an image: ``images``, and where known ``id``, ``group`` (the patient), ``text`` (a caption),
      ``label``, ``split``, ``licence``, ``source``.
    - MedMNIST+: ``train_images``, ``train_labels`` and the same of ``val`` and ``test``. It names no patients, so each
      image is its own group.

    Args:
        path: The file. It is never unpickled.
        medmnist: What the file is if its layout is MedMNIST's.
        size: Height and width wanted.

    Raises:
        InputError: If the file cannot be read or has neither layout, or its columns do not fit together.
    """
    columns = load_columns(path)
    try:
        if "images" in columns:
            return _read_columns(columns, size)
        if "train_images" in columns:
            return _read_medmnist(columns, medmnist, size), medmnist.card
    except InputError as error:
        raise InputError(f"{path}: {error.what}", error.remedy) from error
    raise InputError(
        f"{path} has the columns {', '.join(columns) or 'none'}", "it needs `images`, or MedMNIST's `train_images`"
    )


def load_columns(path: Path) -> dict[str, NDArray[Any]]:
    """Every array of an ``.npz`` file, none of them unpickled; nothing if it holds a single ``.npy`` array.

    Raises:
        InputError: If it cannot be read.
    """
    try:
        # Opened here: numpy leaves a file open that turns out not to be a zip.
        with path.open("rb") as handle:
            file = np.load(handle, allow_pickle=False)
            return {key: file[key] for key in file.files} if isinstance(file, NpzFile) else {}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(
            f"{path} cannot be read ({_line(error)})", "write it again with numpy.savez, or remove it"
        ) from error


def _read_columns(columns: dict[str, NDArray[Any]], size: int) -> tuple[CheckedImages, DatasetCard]:
    images = columns["images"]
    n = len(images) if images.ndim else 0

    def texts(name: str) -> list[str]:
        return [str(value) for value in columns[name].tolist()] if name in columns else [""] * n

    labels = columns.get("label", np.full(n, -1))
    if not np.issubdtype(labels.dtype, np.integer):
        raise InputError(f"labels are of type {labels.dtype}", "give integers")
    checked = check_images(
        images,
        ids=texts("id") if "id" in columns else [str(row) for row in range(n)],
        groups=texts("group"),
        captions=texts("text"),
        labels=labels,
        declared=texts("split"),
        size=size,
    )
    source, licence = ("; ".join(sorted(set(texts(name)) - {""})) or "not stated" for name in ("source", "licence"))
    return checked, DatasetCard(source, licence)


def _read_medmnist(columns: dict[str, NDArray[Any]], medmnist: MedMNIST, size: int) -> CheckedImages:
    parts = ("train", "val", "test")
    missing = [f"{p}_{what}" for p in parts for what in ("images", "labels") if f"{p}_{what}" not in columns]
    if missing:
        raise InputError(f"it lacks {', '.join(missing)}", "download it again")
    ids = [f"{medmnist.flag}-{part}-{row}" for part in parts for row in range(len(columns[f"{part}_images"]))]
    labels = np.concatenate([columns[f"{part}_labels"].reshape(-1) for part in parts]).astype(np.int64)
    if labels.size and not 0 <= labels.min() <= labels.max() < len(medmnist.labels):
        raise InputError(
            f"labels from {labels.min()} to {labels.max()}",
            f"{medmnist.python_class} has 0 to {len(medmnist.labels) - 1}: download it again",
        )
    return check_images(
        np.concatenate([columns[f"{part}_images"] for part in parts]),
        ids=ids,
        groups=[""] * len(ids),
        captions=[f"{medmnist.caption}, {medmnist.labels[label]}" for label in labels],
        labels=labels,
        declared=[part for part in parts for _ in columns[f"{part}_images"]],
        size=size,
    )


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
