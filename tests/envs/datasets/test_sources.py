from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from envs.datasets import load_dataset
from envs.datasets.phantom import FINDINGS, render
from rewards.errors import InputError


def noise(n: int) -> NDArray[np.uint8]:
    return np.random.default_rng(n).integers(0, 256, (n, 64, 64), dtype=np.uint8)


def write_columns(path: Path, n: int) -> None:
    np.savez(path, images=noise(n), source=np.array([path.as_posix()] * n), licence=np.array(["CC0"] * n))


def write_medmnist(path: Path, n: int) -> None:
    parts = ("train", "val", "test")
    columns: dict[str, Any] = {f"{part}_images": noise(n) for part in parts}
    columns |= {f"{part}_labels": np.ones((n, 1), dtype=np.uint8) for part in parts}
    np.savez(path, **columns)


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """The three folders that are searched, empty, and a machine without the package medmnist."""
    folders = {name: tmp_path / name for name in ("root", "shared", "home/.medmnist")}
    for folder in folders.values():
        folder.mkdir(parents=True)
    monkeypatch.setenv("MEMCONTROL_DATA", str(folders["shared"]))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setitem(sys.modules, "medmnist", None)
    return {"root": folders["root"], "shared": folders["shared"], "cache": folders["home/.medmnist"]}


def load(name: str = "chest_xray", root: Path | None = None, size: int = 64, **options: Any) -> tuple[int, str]:
    images, card, _ = load_dataset(name, root=root, size=size, options=options)
    return len(images), card.source


def test_places_are_searched_in_the_promised_order(places: dict[str, Path]) -> None:
    write_medmnist(places["cache"] / "pneumoniamnist_64.npz", 4)
    assert load(root=places["root"]) == (12, "PneumoniaMNIST, MedMNIST+ (Yang et al. 2023), from Kermany et al. 2018")
    for n, place in ((3, "shared"), (2, "root")):
        write_columns(places[place] / "chest_xray_64.npz", n)
        assert load(root=places["root"]) == (n, (places[place] / "chest_xray_64.npz").as_posix())
    assert load()[0] == 3  # without data.root
    assert load(root=places["shared"] / "chest_xray_64.npz")[0] == 3


def test_the_licence_and_captions_of_dermamnist(places: dict[str, Path]) -> None:
    write_medmnist(places["root"] / "dermamnist_64.npz", 2)
    images, card, _ = load_dataset("isic", root=places["root"], size=64, options={})
    assert card.licence == "CC BY-NC 4.0"
    assert not card.synthetic
    assert set(images.captions) == {"dermoscopy image, basal cell carcinoma"}


@pytest.mark.parametrize("where", ["", "isic"])
def test_a_folder_with_a_table_is_one_of_the_ways(places: dict[str, Path], where: str) -> None:
    folder = places["root"] / where
    folder.mkdir(exist_ok=True)
    Image.fromarray(noise(1)[0]).save(folder / "a.png")
    (folder / "metadata.csv").write_text("file_name,text\na.png,a nevus\n")
    images, card, _ = load_dataset("isic", root=places["root"], size=64, options={})
    assert images.captions == ("a nevus",)
    assert card.licence == "as the folder's owner says"


def test_smaller_images_come_from_the_64_pixel_file(places: dict[str, Path]) -> None:
    write_columns(places["root"] / "chest_xray_64.npz", 3)
    images, _, _ = load_dataset("chest_xray", root=places["root"], size=32, options={})
    assert images.images.shape == (3, 32, 32, 3)


@pytest.mark.parametrize(
    ("name", "file", "licence"), [("chest_xray", "pneumoniamnist", "CC BY 4.0"), ("isic", "dermamnist", "CC BY-NC 4.0")]
)
def test_nothing_found_is_one_line_with_every_way_and_the_licence(
    places: dict[str, Path], name: str, file: str, licence: str
) -> None:
    with pytest.raises(InputError) as caught:
        load(name, root=places["root"])
    line = str(caught.value)
    assert "\n" not in line
    for part in (
        f"data.root={places['root']}",
        f"MEMCONTROL_DATA={places['shared']}",
        "~/.medmnist",
        f"{name}_64.npz",
        f"{file}_64.npz",
        "metadata.csv",
        "metadata.jsonl",
        "install medmnist",
        licence,
    ):
        assert part in line


class Network:
    """Stands for the package medmnist, whose classes download when they are made; this one may be offline."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, cache: Path, *, offline: bool) -> None:
        module = ModuleType("medmnist")

        def make(split: str, download: bool, size: int) -> None:
            assert (split, download) == ("train", True)
            if offline:
                raise RuntimeError("Automatic download failed!\n 1. check your network")
            write_medmnist(cache / f"pneumoniamnist_{size}.npz", 5)

        module.PneumoniaMNIST = make  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "medmnist", module)


def test_the_last_way_is_medmnists_download_and_its_licence_is_printed(
    places: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Network(monkeypatch, places["cache"], offline=False)
    assert load()[0] == 15
    printed = capsys.readouterr().err
    assert "PneumoniaMNIST" in printed
    assert "CC BY 4.0" in printed
    assert load()[0] == 15
    assert capsys.readouterr().err == ""


def test_a_failed_download_is_one_line(places: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    Network(monkeypatch, places["cache"], offline=True)
    with pytest.raises(InputError, match="download failed") as caught:
        load()
    assert "\n" not in str(caught.value)


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(
        InputError, match="no data set 'mnist' — choose among phantom, chest_xray, isic, mimic, dicom, "
    ):
        load("mnist")


def test_a_folder_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    for name in ("chest_xray", "imagefolder", "phantom"):
        with pytest.raises(InputError, match="gone does not exist"):
            load(name, root=tmp_path / "gone")
    with pytest.raises(InputError, match=r"imagefolder with data\.root=None"):
        load("imagefolder")


def test_phantoms_are_those_that_render_draws() -> None:
    images, card, rejects = load_dataset(
        "phantom", root=None, size=32, options={"identities": 5, "views": 2, "seed": 3, "kinds": ["lesion"]}
    )
    for view in (0, 1):
        drawn = render("lesion", range(5), seed=3, views=[view] * 5, size=32)
        rows = [row for row, name in enumerate(images.ids) if name.endswith(f"view{view}")]
        np.testing.assert_array_equal(images.images[rows], drawn.images)
        assert tuple(images.groups[row] for row in rows) == drawn.groups
        assert tuple(images.captions[row] for row in rows) == drawn.captions
        np.testing.assert_array_equal(images.labels[rows] - len(FINDINGS["radiograph"]), drawn.labels)
    assert (len(images), len(set(images.ids)), len(set(images.groups))) == (10, 10, 5)
    assert card.synthetic
    assert rejects == ()


def test_phantoms_of_both_kinds_share_the_identities() -> None:
    images, _, _ = load_dataset("phantom", root=None, size=16, options={"identities": 301})
    kinds = [name.split("-")[0] for name in images.groups]
    assert (kinds.count("radiograph"), kinds.count("lesion")) == (151, 150)
    assert {name.split("-")[1] for name in images.groups} == {"clinic"}
    assert len(set(images.groups)) == 301
    assert set(images.labels[np.array(kinds) == "lesion"]) == {4, 5, 6}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"identity": 3}, "phantom has no option identity — it has identities, kinds, seed, views"),
        ({"identities": 0}, "identities=0"),
        ({"identities": "many"}, "identities='many'"),
        ({"views": 3}, "views=3"),
        ({"seed": -1}, "seed=-1"),
        ({"kinds": ["brain"]}, r"kinds=\['brain'\]"),
        ({"kinds": []}, r"kinds=\[\]"),
    ],
)
def test_options_that_mean_nothing_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load("phantom", **options)


@pytest.mark.parametrize(("name", "n", "patients"), [("chest_xray", 2000, 1695), ("isic", 1097, 1097)])
def test_the_real_sets(real_data: Path, name: str, n: int, patients: int) -> None:
    images, card, rejects = load_dataset(name, root=real_data, size=64, options={})
    assert (len(images), len(set(images.groups)), rejects) == (n, patients, ())
    with np.load(real_data / f"{name}_64.npz", allow_pickle=False) as file:
        stored = file["images"]
        assert images.captions == tuple(file["text"].tolist())
    np.testing.assert_array_equal(images.images, stored if stored.ndim == 4 else np.stack([stored] * 3, axis=-1))
    assert card.licence in ("CC BY 4.0", "CC0-1.0")
