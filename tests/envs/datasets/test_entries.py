from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from envs.datasets.checks import square_rgb
from envs.datasets.entries import Entry, decode_square, draw_entries, read_entries
from envs.datasets.options import draw_options, text, whole, words
from rewards.errors import InputError


def entries(patients: int, images: int, split: str = "") -> list[Entry]:
    return [Entry(f"{split}p{p}i{i}", "", f"{split}p{p}", split=split) for p in range(patients) for i in range(images)]


def test_a_draw_takes_whole_patients_and_does_not_depend_on_the_order() -> None:
    everything = entries(30, 3)
    drawn = draw_entries(everything, 10, seed=1)
    assert len(drawn) == len(set(drawn)) == 10
    assert [len([e for e in drawn if e.group == g]) for g in dict.fromkeys(e.group for e in drawn)] == [3, 3, 3, 1]
    assert draw_entries(everything[::-1], 10, seed=1) == drawn
    assert draw_entries(everything, 10, seed=2) != drawn
    assert set(draw_entries(everything, 1000, seed=1)) == set(draw_entries(everything, None, 0)) == set(everything)


def test_images_without_a_patient_are_drawn_one_by_one() -> None:
    drawn = draw_entries([Entry(str(k), "") for k in range(20)], 5, seed=0)
    assert len({entry.id for entry in drawn}) == 5


def test_small_splits_get_an_equal_share() -> None:
    everything = entries(900, 1, "train") + entries(20, 1, "test") + entries(10, 1, "validation") + entries(9, 1)
    drawn = draw_entries(everything, 30, seed=0, by_split=True)
    assert [sum(e.split == name for e in drawn) for name in ("train", "test", "validation", "")] == [10, 10, 10, 0]


def test_a_large_jpeg_decoded_small_looks_as_if_it_were_decoded_whole(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 10), dtype=np.uint8)
    image = Image.fromarray(pixels).resize((2000, 2400), Image.Resampling.BICUBIC)
    image.save(tmp_path / "large.jpg", quality=95)
    with Image.open(tmp_path / "large.jpg") as opened:
        whole_image = square_rgb(opened, 64)
    assert np.abs(decode_square(tmp_path / "large.jpg", 64).astype(int) - whole_image).max() <= 3


def test_a_reason_names_no_path(tmp_path: Path) -> None:
    (tmp_path / "Doe").mkdir()
    (tmp_path / "text.png").write_text("not an image")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 9), dtype=np.uint8)).save(tmp_path / "good.png")
    entries = [Entry(str(k), name) for k, name in enumerate(("good.png", "text.png", "Doe", "gone.png"))]
    checked = read_entries(entries, lambda entry: decode_square(tmp_path / entry.file, 8), 8, source=tmp_path)
    assert [reject.reason for reject in checked.rejects] == [
        "does not decode: no image of a known format",
        "does not decode: Is a directory",
        "there is no such file",
    ]


def test_options_are_checked() -> None:
    assert draw_options({}) == (4000, 0)
    assert draw_options({"limit": None, "seed": 3}) == (None, 3)
    assert words({"views": "PA"}, "views", ()) == ("PA",)
    for bad in (
        lambda: draw_options({"limit": 0}),
        lambda: draw_options({"limit": True}),
        lambda: draw_options({"seed": -1}),
        lambda: whole({"n": "many"}, "n", 1),
        lambda: text({"mark": 3}, "mark", ""),
        lambda: words({"views": []}, "views", ()),
        lambda: words({"views": 3}, "views", ()),
        lambda: words({"views": [1]}, "views", ()),
    ):
        with pytest.raises(InputError):
            bad()
