from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import (
    HTJ2K,
    MPEG2MPML,
    CTImageStorage,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
    generate_uid,
)

from envs.datasets.base import DatasetCard
from envs.datasets.checks import CheckedImages
from envs.datasets.sources import read_source
from rewards.errors import InputError

NAME, PATIENT = "Doe^Jane", "MRN-4711"


def ramp(low: int = 0, high: int = 4095, size: int = 32) -> NDArray[np.uint16]:
    return np.rint(np.linspace(low, high, size * size)).reshape(size, size).astype(np.uint16)


def write(path: Path, pixels: NDArray[Any] | None, *, patient: str = PATIENT, syntax: str = "", **tags: Any) -> Dataset:
    """A file as a hospital's archive exports it; a `syntax` other than the plain one is only claimed."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
    data.PatientName, data.PatientID = NAME, patient
    data.Modality, data.BodyPartExamined = "DX", "CHEST"
    if pixels is not None:
        colour = pixels.ndim == 3 and pixels.shape[-1] == 3
        data.Rows, data.Columns = pixels.shape[:2] if colour else pixels.shape[-2:]
        data.SamplesPerPixel = 3 if colour else 1
        data.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
        if colour:
            data.PlanarConfiguration = 0
        data.BitsAllocated = 8 * pixels.dtype.itemsize
        data.BitsStored = min(12, data.BitsAllocated)
        data.HighBit = data.BitsStored - 1
        data.PixelRepresentation = int(np.issubdtype(pixels.dtype, np.signedinteger))
        data.PixelData = pixels.tobytes()
    for name, value in tags.items():
        setattr(data, name, value)
    if syntax:
        meta.TransferSyntaxUID = type(meta.TransferSyntaxUID)(syntax)
        data.PixelData = encapsulate([data.PixelData])
        data["PixelData"].is_undefined_length = True
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)
    return data


def read(root: Path | None, size: int = 32, **options: Any) -> tuple[CheckedImages, DatasetCard]:
    return read_source("dicom", root=root, size=size, options=options)


def pixels_of(root: Path) -> NDArray[np.int64]:
    """The only image's gray levels."""
    images = read(root)[0].images.images
    assert len(images) == 1
    assert (images[..., 0] == images[..., 2]).all()
    return images[0, ..., 0].astype(np.int64)


def expected(values: NDArray[Any], black: float, white: float) -> NDArray[np.float64]:
    return np.clip((values.astype(np.float64) - black) / (white - black), 0, 1) * 255


def test_without_a_window_percentiles_are_black_and_white(tmp_path: Path) -> None:
    image = ramp(100, 900)
    write(tmp_path / "a", image)
    assert np.abs(pixels_of(tmp_path) - expected(image, *np.percentile(image, (0.5, 99.5)))).max() <= 1


def test_sixteen_bits_signed_with_padding(tmp_path: Path) -> None:
    image = ramp(0, 2000).astype(np.int16) - 1000
    image[:8] = -2000
    write(tmp_path / "a", image, PixelPaddingValue=-2000, BitsStored=16, HighBit=15)
    shown = pixels_of(tmp_path)
    assert (shown[:8] == 0).all()
    assert np.abs(shown[8:] - expected(image[8:], *np.percentile(image[8:], (0.5, 99.5)))).max() <= 1


def test_monochrome1_is_inverted(tmp_path: Path) -> None:
    write(tmp_path / "one" / "a", ramp(), PhotometricInterpretation="MONOCHROME1")
    write(tmp_path / "two" / "a", ramp())
    assert np.abs(pixels_of(tmp_path / "one") - (255 - pixels_of(tmp_path / "two"))).max() <= 1
    assert pixels_of(tmp_path / "one")[0, 0] > 250


@pytest.mark.parametrize("slope", [1, 2])
@pytest.mark.parametrize("inverted", [False, True])
def test_a_window_after_the_rescale(tmp_path: Path, slope: int, inverted: bool) -> None:
    image = ramp(0, 1000)  # the window reaches beyond what the image has, which must not stretch it
    write(
        tmp_path / "a",
        image,
        RescaleSlope=slope,
        RescaleIntercept=-500,
        WindowCenter=[500, 40],
        WindowWidth=[2000, 10],
        PhotometricInterpretation="MONOCHROME1" if inverted else "MONOCHROME2",
    )
    wanted = expected(image * float(slope) - 500, -500, 1500)
    assert np.abs(pixels_of(tmp_path) - (255 - wanted if inverted else wanted)).max() <= 1


@pytest.mark.parametrize("function", ["LINEAR_EXACT", "SIGMOID"])
def test_other_windows(tmp_path: Path, function: str) -> None:
    image = ramp()
    write(tmp_path / "a", image, WindowCenter=2000, WindowWidth=1000, VOILUTFunction=function)
    wanted = 255 / (1 + np.exp(-4 * (image.astype(float) - 2000) / 1000))
    assert np.abs(pixels_of(tmp_path) - (wanted if function == "SIGMOID" else expected(image, 1500, 2500))).max() <= 1


def test_a_falling_slope_with_a_window_is_no_inversion_of_its_own(tmp_path: Path) -> None:
    image = ramp()
    write(tmp_path / "a", image, RescaleSlope=-1, RescaleIntercept=4095, WindowCenter=2048, WindowWidth=4096)
    assert np.abs(pixels_of(tmp_path) - expected(4095 - image.astype(float), 0, 4095)).max() <= 1


def test_a_voi_lut_may_invert(tmp_path: Path) -> None:
    table = Dataset()
    table.LUTDescriptor = [4096, 0, 12]
    table.LUTData = np.arange(4095, -1, -1, dtype=np.uint16).tobytes()
    image = ramp()
    write(tmp_path / "a", image, VOILUTSequence=Sequence([table]))
    assert np.abs(pixels_of(tmp_path) - expected(4095 - image.astype(float), 0, 4095)).max() <= 1


@pytest.mark.parametrize("tags", [{"WindowWidth": 0}, {"WindowCenter": None}, {"WindowWidth": None}])
def test_a_window_that_is_none_gives_way_to_percentiles(tmp_path: Path, tags: dict[str, Any]) -> None:
    image = ramp(100, 900)
    write(tmp_path / "a", image, **({"WindowCenter": 40, "WindowWidth": 10} | tags))
    assert np.abs(pixels_of(tmp_path) - expected(image, *np.percentile(image, (0.5, 99.5)))).max() <= 1


def test_colours(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    write(tmp_path / "a", pixels, BitsStored=8, HighBit=7)
    np.testing.assert_array_equal(read(tmp_path)[0].images.images[0], pixels)
    write(tmp_path / "a", pixels.astype(np.uint16) * 16)
    assert np.abs(read(tmp_path)[0].images.images[0].astype(int) - pixels).max() <= 1


def test_run_lengths_need_no_package(tmp_path: Path) -> None:
    data = write(tmp_path / "a", ramp())
    plain = pixels_of(tmp_path)
    data.compress(RLELossless)
    data.save_as(tmp_path / "a")
    np.testing.assert_array_equal(pixels_of(tmp_path), plain)


def test_what_cannot_be_used_is_a_reject_with_its_reason(tmp_path: Path) -> None:
    """One good file, one of each fault; the forged syntaxes have no decoder without further packages."""
    noise = ramp()
    faults: dict[str, tuple[dict[str, Any], str]] = {
        "film": ({"pixels": np.stack([noise] * 3), "NumberOfFrames": 3}, "multi-frame: 3 frames, not 1"),
        "black": ({"pixels": np.zeros_like(noise)}, "all black: every decoded pixel is 0"),
        "black1": (
            {"pixels": np.zeros_like(noise), "PhotometricInterpretation": "MONOCHROME1"},
            "all black: every decoded pixel is 0",
        ),
        "flat": ({"pixels": np.full_like(noise, 7)}, "constant: every decoded pixel is 7"),
        "dark": ({"pixels": noise, "WindowCenter": 60000, "WindowWidth": 10}, "all black: its window shows nothing"),
        "report": ({"pixels": None}, "no pixel data"),
        "ll": (
            {"pixels": noise, "syntax": JPEGLosslessSV1},
            "no decoder for JPEG Lossless, Non-Hierarchical, First-Order Prediction (Process 14 [Selection Value 1]): "
            "install pylibjpeg and pylibjpeg-libjpeg",
        ),
        "ls": (
            {"pixels": noise, "syntax": JPEGLSLossless},
            "no decoder for JPEG-LS Lossless Image Compression: install pylibjpeg and pylibjpeg-libjpeg",
        ),
        "htj2k": (
            {"pixels": noise, "syntax": HTJ2K},
            f"no decoder for {HTJ2K.name}: install pylibjpeg and pylibjpeg-openjpeg",
        ),
        "film2": ({"pixels": noise, "syntax": MPEG2MPML}, f"its transfer syntax cannot be decoded: {MPEG2MPML.name}"),
        "broken": ({"pixels": noise, "syntax": JPEG2000Lossless}, "does not decode: "),
        "short": ({"pixels": noise, "Rows": 64}, "does not decode: "),
        "small": ({"pixels": noise[:16, :16]}, "wrong shape: 16x16 pixels, smaller than 32"),
    }
    write(tmp_path / "good", noise)
    reasons = ["no pixel data"]  # of the file that ends within its header
    for name, (arguments, reason) in faults.items():
        write(tmp_path / name, **arguments)
        reasons.append(reason)
    (tmp_path / "notes.txt").write_text("not DICOM")
    (tmp_path / "empty.dcm").touch()
    good = (tmp_path / "good").read_bytes()
    (tmp_path / "cut.dcm").write_bytes(good[:140])
    (tmp_path / ".hidden").write_text("not looked at")
    checked, card = read(tmp_path)
    assert len(checked.images) == 1
    found = sorted(reject.reason for reject in checked.rejects)
    files = [reason for reason in found if "DICOM file" in reason]
    assert files == ["not a DICOM file"] * 2
    others = [reason for reason in found if reason not in files]
    for reason, wanted in zip(others, sorted(reasons), strict=True):
        assert reason.startswith(wanted)
    assert card.notes == (f"{len(faults) + 4} of {len(faults) + 4} files drawn (limit=4000, seed=0)",)


def test_a_folder_of_which_nothing_can_be_used_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("not DICOM")
    with pytest.raises(InputError, match=r"none of 1 images .*: not a DICOM file") as caught:
        read(tmp_path)
    assert "notes" not in str(caught.value)


def test_no_identity_leaves_the_headers(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / NAME
    rng = np.random.default_rng(0)
    for k in range(4):
        pixels = rng.integers(0, 4096, (32, 32), dtype=np.uint16)
        write(folder / f"{PATIENT}-{k}.dcm", pixels, patient=PATIENT if k < 3 else "", BodyPartExamined="DOE JANE")
    write(folder / "film.dcm", np.stack([pixels] * 2), NumberOfFrames=2)
    (folder / f"{PATIENT}.txt").write_text("x")
    with caplog.at_level(logging.DEBUG):
        checked, card = read(tmp_path)
    images = checked.images
    everything = repr((images.ids, images.groups, images.captions, checked.rejects, card)) + caplog.text
    for secret in (PATIENT, "4711", "Doe", "DOE", "doe", "Jane", "JANE", "1.2.826"):
        assert secret not in everything
    assert set(images.captions) == {"X-ray"}
    assert len(images) == len(set(images.ids)) == 4
    assert len(set(images.groups)) == 2
    assert len(checked.rejects) == 2


def test_patients_are_groups_and_two_issuers_may_share_a_number(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for k, (patient, issuer) in enumerate([("1", "A"), ("1", "A"), ("1", "B"), ("2", "A")]):
        pixels = rng.integers(0, 4096, (32, 32), dtype=np.uint16)
        write(tmp_path / f"{k}", pixels, patient=patient, IssuerOfPatientID=issuer, Modality="MR")
    images = read(tmp_path)[0].images
    assert sorted(images.groups.count(group) for group in set(images.groups)) == [1, 1, 2]
    assert set(images.captions) == {"chest MRI"}


def test_values_that_break_the_standard_warn_nobody(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="Invalid value for VR"):
        write(tmp_path / "a", ramp(), StudyInstanceUID="not a uid", BodyPartExamined="chest")
    assert read(tmp_path)[0].images.captions == ("chest X-ray",)
    assert not logging.getLogger("pydicom").disabled


def test_a_draw_of_files(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for k in range(12):
        write(tmp_path / f"{k}", rng.integers(0, 4096, (32, 32), dtype=np.uint16), patient=str(k))
    drawn = read(tmp_path, limit=4)[0].images.ids
    assert len(drawn) == 4
    assert read(tmp_path, limit=4)[0].images.ids == drawn
    assert read(tmp_path, limit=4, seed=1)[0].images.ids != drawn


def test_nothing_there_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMCONTROL_DATA", str(tmp_path))
    with pytest.raises(InputError, match=r"no folder of DICOM files in data\.root=None.*point data\.root at one"):
        read(None)
    (tmp_path / "dicom").mkdir()
    with pytest.raises(InputError, match="dicom has no files"):
        read(None)
