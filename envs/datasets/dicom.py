"""Folders of DICOM files, as an archive exports them, without what they say about whom they show."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom import Dataset, dcmread
from pydicom.errors import InvalidDicomError
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut, apply_voi_lut
from pydicom.pixels.utils import pixel_array

from envs.datasets.base import DatasetCard, Reject
from envs.datasets.checks import CheckedImages, UnusableImageError, square_rgb
from envs.datasets.entries import Entry, draw_entries, read_entries
from envs.datasets.options import draw_options
from envs.datasets.places import find_tree, tried
from rewards.errors import InputError

DICOM_OPTIONS = frozenset({"limit", "seed"})

_CARD = DatasetCard("a folder of the user's own DICOM files", "as the folder's owner says")
# Captions are put together from these two lists only: whatever else a header holds may have been typed by hand.
_MODALITIES = {
    "CR": "X-ray",
    "CT": "CT",
    "DX": "X-ray",
    "MG": "mammogram",
    "MR": "MRI",
    "NM": "scintigram",
    "OP": "fundus photograph",
    "PT": "PET",
    "RF": "fluoroscopy",
    "US": "ultrasound",
    "XA": "angiogram",
}
_BODY_PARTS = (
    "ABDOMEN ANKLE ARM BRAIN BREAST CHEST ELBOW EXTREMITY EYE FINGER FOOT HAND HEAD HEART HIP KIDNEY KNEE LEG LIVER "
    "LUNG NECK PELVIS PROSTATE SHOULDER SKIN SKULL SPINE THYROID TOE UTERUS WRIST"
)
_PACKAGES = {"JPEG 2000": "pylibjpeg and pylibjpeg-openjpeg", "JPEG": "pylibjpeg and pylibjpeg-libjpeg"}
_HASH = 16
# Farther than any pixel value: what a window makes of these is its darkest and brightest.
_BEYOND = 1e9


def read_dicom(root: Path | None, size: int, options: Mapping[str, Any]) -> tuple[CheckedImages, DatasetCard]:
    """Reads a draw of a folder's files, subfolders included, whatever they are called.

    Gray images go through the modality LUT or rescale and the first VOI window or LUT (without a usable one,
    percentiles 0.5 to 99.5 become black and white), and ``MONOCHROME1`` is inverted; colours are converted to RGB. What
    is no single image that shows something becomes a reject: other files, several frames, no decoder for the
    compression (the reason names the package to install), a decode that is black or of one value throughout.

    No identity leaves the headers. An image's id is a hash of its SOPInstanceUID, or, of a file that has none, of its
    name; a group is called by its first image and made of what shares PatientID and its issuer; captions are put
    together from closed lists of modalities and body parts.

    Args:
        root: ``data.root``: the folder; None for ``$MEMCONTROL_DATA/dicom``.
        size: Height and width wanted.
        options: ``limit``: files drawn, of whatever kind (default 4000, null for all); ``seed`` of the draw (default
            0).

    Raises:
        InputError: If there is no folder or no file in it, an option is wrong, or no image can be used.
    """
    limit, seed = draw_options(options)
    folder = root if root is not None and root.is_dir() else find_tree(("dicom",), None, _is_dicom_folder)
    if folder is None:
        raise InputError(
            f"no folder of DICOM files in {tried(root)}",
            "point data.root at one: an export of your archive, or a set of https://www.cancerimagingarchive.net; "
            "licence: its owner's",
        )
    files = [
        Entry(path.relative_to(folder).as_posix(), path.relative_to(folder).as_posix())
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(".")
    ]
    if not files:
        raise InputError(f"{folder} has no files", "put DICOM files there")
    drawn = draw_entries(files, limit, seed)
    with _silence():
        entries, rejects = _read_headers(folder, [entry.file for entry in drawn])
        checked = read_entries(
            entries, lambda entry: _decode(folder / entry.file, size), size, source=folder, rejects=rejects
        )
    return checked, replace(_CARD, notes=(f"{len(drawn)} of {len(files)} files drawn (limit={limit}, seed={seed})",))


def _is_dicom_folder(place: Path) -> bool:
    return place.name == "dicom" and place.is_dir()


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Nothing of pydicom's: its warnings and log lines quote values of the header, names among them."""
    logger = logging.getLogger("pydicom")
    before = logger.disabled
    logger.disabled = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.disabled = before


def _read_headers(folder: Path, files: list[str]) -> tuple[list[Entry], list[Reject]]:
    rejects: list[Reject] = []
    entries: list[Entry] = []
    patients: list[tuple[str, str]] = []
    for file in files:
        try:
            header = dcmread(folder / file, stop_before_pixels=True)
            uid = str(header.get("SOPInstanceUID", ""))
            patient = (str(header.get("PatientID", "")).strip(), str(header.get("IssuerOfPatientID", "")).strip())
            entries.append(Entry(_hashed(uid or file), file, text=_caption(header)))
            patients.append(patient)
        except InvalidDicomError:
            rejects.append(Reject(_hashed(file), "not a DICOM file"))
        except Exception as error:
            # The message may quote the header; the type says enough.
            rejects.append(Reject(_hashed(file), f"not a readable DICOM file ({type(error).__name__})"))
    # Named by an image rather than by a hash of PatientID: whoever has a list of patients could hash that too.
    name: dict[tuple[str, str], str] = {}
    for entry, patient in sorted(zip(entries, patients, strict=True), key=lambda pair: pair[0].id):
        if patient[0]:
            name.setdefault(patient, f"patient of {entry.id}")
    return [
        replace(entry, group=name.get(patient, "")) for entry, patient in zip(entries, patients, strict=True)
    ], rejects


def _hashed(identity: str) -> str:
    return hashlib.sha256(identity.encode()).hexdigest()[:_HASH]


def _caption(header: Dataset) -> str:
    modality = _MODALITIES.get(str(header.get("Modality", "")), "medical image")
    part = str(header.get("BodyPartExamined", "")).strip().upper()
    return f"{part.lower()} {modality}" if part in _BODY_PARTS.split() else modality


def _decode(path: Path, size: int) -> NDArray[np.uint8]:
    data = dcmread(path)
    if "PixelData" not in data:
        raise UnusableImageError("no pixel data")
    frames = int(data.get("NumberOfFrames", None) or 1)
    if frames != 1:
        raise UnusableImageError(f"multi-frame: {frames} frames, not 1")
    _refuse_undecodable(data)
    stored = pixel_array(data)
    if stored.min() == stored.max():
        # What a decoder that does not know the compression's variant gives.
        what = "all black" if not stored.any() else "constant"
        raise UnusableImageError(f"{what}: every decoded pixel is {stored.flat[0]}")
    photometric = str(data.PhotometricInterpretation)
    if photometric == "PALETTE COLOR":
        stored = apply_color_lut(stored, data)
        return square_rgb(Image.fromarray(_as_bytes(stored, float(np.iinfo(stored.dtype).max))), size)
    if stored.ndim == 3:
        return square_rgb(Image.fromarray(_as_bytes(stored, float(2 ** int(data.BitsStored) - 1))), size)
    levels = _levels(stored, data)
    if photometric == "MONOCHROME1":
        levels = 1 - levels
    if levels.max() * 255 < 0.5:
        raise UnusableImageError("all black: its window shows nothing")
    return square_rgb(Image.fromarray(levels.astype(np.float32)), size)


def _refuse_undecodable(data: Dataset) -> None:
    syntax = data.file_meta.TransferSyntaxUID
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        raise UnusableImageError(f"its transfer syntax cannot be decoded: {syntax.name}") from None
    if not decoder.is_available:
        remedy = next((f": install {_PACKAGES[kind]}" for kind in _PACKAGES if kind in syntax.name), "")
        raise UnusableImageError(f"no decoder for {syntax.name}{remedy}")


def _levels(stored: NDArray[Any], data: Dataset) -> NDArray[np.float64]:
    """Black is 0 and white 1."""
    values = np.asarray(apply_modality_lut(stored, data))
    try:
        shown = np.asarray(apply_voi_lut(values, data), dtype=np.float64)
        black, white = _window_ends(data)
    except (ValueError, TypeError, AttributeError, LookupError, NotImplementedError):
        # No window, or one that is no window: a width of 0, an empty LUT.
        shown = values.astype(np.float64)
        padding = data.get("PixelPaddingValue", None)
        seen = shown[stored != padding] if padding is not None and (stored != padding).any() else shown
        black, white = np.percentile(seen, (0.5, 99.5))
        if black == white:
            black, white = seen.min(), seen.max()
    if black == white:
        return np.zeros_like(shown)
    return np.clip((shown - black) / (white - black), 0, 1)


def _window_ends(data: Dataset) -> tuple[float, float]:
    """The darkest and the brightest that the window can give, whether or not the image reaches them."""
    if table := data.get("VOILUTSequence"):
        entries, first, _ = table[0].LUTDescriptor
        ends = apply_voi_lut(np.array([first, first + (entries or 2**16) - 1]), data)
        return float(ends.min()), float(ends.max())
    if data.get("WindowCenter") is None or data.get("WindowWidth") is None:
        raise LookupError("no window")
    with np.errstate(over="ignore"):
        black, white = apply_voi_lut(np.array([-_BEYOND, _BEYOND]), data)
    return float(black), float(white)


def _as_bytes(colours: NDArray[Any], white: float) -> NDArray[np.uint8]:
    if colours.dtype == np.uint8 and white == 255:
        return colours
    return np.rint(np.clip(colours / white, 0, 1) * 255).astype(np.uint8)
