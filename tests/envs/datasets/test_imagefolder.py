from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from envs.datasets.imagefolder import read_folder
from rewards.errors import InputError

HEADER = "file_name,text,patient_id,label,split\n"


def noise(seed: int, size: int = 16) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three images in the layout that Hugging Face's ``imagefolder`` reads, one of them in a subfolder."""
    (tmp_path / "more").mkdir()
    for seed, name in enumerate(("a.png", "b.png", "more/c.png")):
        Image.fromarray(noise(seed)).save(tmp_path / name)
    return tmp_path


def test_csv(folder: Path) -> None:
    rows = 'more/c.png,"a nevus, 60 year old",p1,nevus,train\na.png,a melanoma,p2,melanoma,validation\n'
    (folder / "metadata.csv").write_text(HEADER + rows)
    checked = read_folder(folder, 16)
    images = checked.images
    np.testing.assert_array_equal(images.images, [noise(2), noise(0)])
    assert images.ids == ("more/c.png", "a.png")
    assert images.captions == ("a nevus, 60 year old", "a melanoma")
    assert images.groups == ("p1", "p2")
    assert images.labels.tolist() == [1, 0]
    assert checked.declared == ("train", "validation")


def test_jsonl_with_the_other_names_and_gaps(folder: Path) -> None:
    rows = [
        {"file_name": "a.png", "caption": "one", "group": 7, "label": 4},
        {"file_name": "b.png", "caption": None, "label": -1},
        {"file_name": "more/c.png", "group": 7},
    ]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    checked = read_folder(folder, 16)
    images = checked.images
    assert images.captions == ("one", "", "")
    assert images.groups == ("7", "b.png", "7")
    assert images.labels.tolist() == [4, -1, -1]
    assert checked.declared == ("", "", "")


def test_without_a_table_every_image_is_read_in_order(folder: Path) -> None:
    (folder / "notes.txt").write_text("not an image")
    images = read_folder(folder, 16).images
    assert images.ids == images.groups == ("a.png", "b.png", "more/c.png")
    assert images.captions == ("", "", "")
    np.testing.assert_array_equal(images.images, [noise(0), noise(1), noise(2)])


def test_what_does_not_decode_is_left_out_with_its_reason(folder: Path) -> None:
    whole = (folder / "a.png").read_bytes()
    (folder / "truncated.png").write_bytes(whole[: len(whole) // 2])
    (folder / "text.jpg").write_text("not an image")
    (folder / "empty.png").touch()
    Image.new("RGB", (16, 16), "red").save(folder / "constant.png")
    Image.fromarray(noise(9, 12)).save(folder / "small.png")
    frames = [Image.fromarray(noise(k)) for k in range(3)]
    frames[0].save(folder / "film.gif", save_all=True, append_images=frames[1:])
    checked = read_folder(folder, 16)
    assert checked.images.ids == ("a.png", "b.png", "more/c.png")
    reasons = {reject.id: reject.reason for reject in checked.rejects}
    assert set(reasons) == {"truncated.png", "text.jpg", "empty.png", "constant.png", "small.png", "film.gif"}
    for name in ("truncated.png", "text.jpg", "empty.png"):
        assert reasons[name].startswith("does not decode: ")
        assert "\n" not in reasons[name]
    assert reasons["constant.png"] == "constant: every pixel is the same"
    assert reasons["small.png"] == "wrong shape: 12x12 pixels, smaller than 16"
    assert reasons["film.gif"] == "wrong shape: 3 frames, not 1"


def test_a_missing_file_and_one_named_twice_are_rejects(folder: Path) -> None:
    (folder / "metadata.csv").write_text("file_name\na.png\ngone.png\na.png\n")
    checked = read_folder(folder, 16)
    assert checked.images.ids == ("a.png",)
    assert [(reject.id, reject.reason) for reject in checked.rejects] == [
        ("gone.png", "there is no such file"),
        ("a.png", "an earlier image has the same id"),
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("metadata.csv", "name,text\na.png,x\n", "line 2 has no file_name"),
        ("metadata.csv", "file_name,text\na.png,x\n,y\n", "line 3 has no file_name"),
        ("metadata.csv", "file_name,text\na.png,one, two\n", "line 2 has not as many values"),
        ("metadata.csv", "file_name,text\na.png\n", "line 2 has not as many values"),
        ("metadata.csv", 'file_name,text\na.png,"open\n', "is not CSV"),
        ("metadata.csv", "file_name,text\n", "has no rows"),
        ("metadata.jsonl", "", "has no rows"),
        ("metadata.jsonl", '{"file_name": "a.png"}\n{"file_name": \n', "line 2 is not JSON"),
        ("metadata.jsonl", '["a.png"]\n', "line 1 is not a JSON object"),
        ("metadata.jsonl", '{"text": "x"}\n', "line 1 has no file_name"),
    ],
)
def test_a_malformed_table_is_refused_with_its_line(folder: Path, name: str, content: str, message: str) -> None:
    (folder / name).write_text(content)
    with pytest.raises(InputError, match=message) as caught:
        read_folder(folder, 16)
    assert "\n" not in str(caught.value)


def test_other_encodings_two_tables_and_empty_folders_are_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "metadata.csv").write_bytes("file_name,text\na.png,Läsion\n".encode("latin-1"))
    with pytest.raises(InputError, match="save it as UTF-8"):
        read_folder(folder, 16)
    (folder / "metadata.jsonl").touch()
    with pytest.raises(InputError, match="has both"):
        read_folder(folder, 16)
    (tmp_path / "nothing").mkdir()
    with pytest.raises(InputError, match="has no images"):
        read_folder(tmp_path / "nothing", 16)


def test_a_folder_of_which_nothing_decodes_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("not an image")
    (tmp_path / "b.png").write_text("nor this")
    with pytest.raises(InputError, match=r"none of 2 images can be used, the first: a.png: does not decode"):
        read_folder(tmp_path, 16)
