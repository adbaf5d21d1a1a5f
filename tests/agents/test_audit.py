"""``python -m agents.audit`` as its users meet it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from envs.backbones import EMBEDDED
from envs.datasets.phantom import render
from tests.agents.command import Command, Outcome
from tests.agents.test_bad_input import refused_in_one_line

PHANTOMS = render("radiograph", range(260), seed=0)
TRAIN, HELDOUT, OTHERS = slice(0, 40), slice(40, 140), slice(140, 260)


def save(folder: Path, images: NDArray[np.uint8]) -> Path:
    folder.mkdir()
    for row, image in enumerate(images):
        Image.fromarray(image).save(folder / f"patient-{row:03}.png")
    return folder


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real images as folders and as one array, and two sets of generated ones."""
    root = tmp_path_factory.mktemp("sets")
    images = PHANTOMS.images
    save(root / "train", images[TRAIN])
    save(root / "heldout", images[HELDOUT])
    save(root / "honest", images[OTHERS])
    copies = (images[:12].astype(int) + 5).clip(0, 255).astype(np.uint8)
    save(root / "leaking", np.concatenate([images[OTHERS][:60], copies]))
    split = np.array(["train"] * 40 + ["heldout"] * 100 + [""] * 120)
    np.savez(root / "all.npz", images=images, split=split, text=np.array(PHANTOMS.captions))
    return root


def audit(*arguments: str, sets: Path, folder: Path) -> Outcome:
    return Command([*arguments, f"run_dir={folder / 'runs'}"], sets, name="audit").wait()


def result(folder: Path) -> dict[str, Any]:
    (path,) = (folder / "runs" / "audit").glob("*/*/result.json")

    def refuse(constant: str) -> None:
        raise ValueError(constant)

    found: dict[str, Any] = json.loads(path.read_text(), parse_constant=refuse)
    return found


FOLDERS = ("train=train", "heldout=heldout")


def test_images_that_leak_do_not_pass(sets: Path, tmp_path: Path) -> None:
    outcome = audit("generated=leaking", *FOLDERS, sets=sets, folder=tmp_path)
    assert outcome.code == 3, outcome.err
    assert "not met: copy_rate at most 0.03" in outcome.out
    found = result(tmp_path)
    assert found["verdict"]["passed"] is False
    assert found["copied"] == {"generated": 12, "train": 12, "patients": None, "most_often": 1}
    assert found["metrics"]["copy_rate"]["value"] == pytest.approx(12 / 72)
    assert found["not_measured"]["membership"] == "there are no denoising losses"
    assert [pair["flagged"] for pair in found["closest"][:13]] == [True] * 12 + [False]


def test_images_that_do_not_leak_pass(sets: Path, tmp_path: Path) -> None:
    outcome = audit("generated=honest", *FOLDERS, sets=sets, folder=tmp_path)
    assert outcome.code == 0, outcome.out + outcome.err
    assert outcome.err == ""
    assert "passed" in outcome.out
    assert result(tmp_path)["verdict"]["passed"] is True


def test_an_array_with_splits_gives_the_numbers_of_folders(sets: Path, tmp_path: Path) -> None:
    array = audit("generated=leaking", "train=all.npz@train", "heldout=all.npz@heldout", sets=sets, folder=tmp_path)
    assert array.code == 3, array.err
    audit("generated=leaking", *FOLDERS, sets=sets, folder=tmp_path / "folders")
    one, other = result(tmp_path), result(tmp_path / "folders")
    assert one["metrics"] == other["metrics"]
    assert one["closest"] == other["closest"]
    assert one["task"]["id"] == other["task"]["id"]


def test_files_name_no_image_and_show_none_unless_asked(sets: Path, tmp_path: Path) -> None:
    audit("generated=leaking", *FOLDERS, sets=sets, folder=tmp_path)
    audit("generated=leaking", *FOLDERS, "report.images=true", sets=sets, folder=tmp_path / "shown")
    (hidden,), (shown,) = ((root / "runs" / "audit").glob("*/*") for root in (tmp_path, tmp_path / "shown"))
    for folder in (hidden, shown):
        for file in (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".png"):
            assert "patient-0" not in file.read_text()
    assert (shown / "report.html").stat().st_size > (hidden / "report.html").stat().st_size + 24 * 2000
    assert {p.name for p in (hidden / "figures").iterdir()} == {p.name for p in (shown / "figures").iterdir()}


def test_a_pipeline_is_sampled_and_asked(sets: Path, tmp_path: Path) -> None:
    pipeline = shutil.copytree(EMBEDDED, tmp_path / "model")
    small = ("sampling.images=12", "sampling.per_prompt=4", "sampling.steps=4", "loss_draws=2", "inversion.images=2")
    search = ("+inversion.search.steps=2", "+inversion.search.check_every=1", "+inversion.search.sampling_steps=3")
    sources = ("train=all.npz@train", "heldout=all.npz@heldout")
    outcome = audit(f"generated={pipeline}", "base=embedded", *sources, *small, *search, sets=sets, folder=tmp_path)
    assert outcome.code in (0, 3), outcome.err
    found = result(tmp_path)
    assert found["task"]["backbone"] == "model"
    assert found["data"]["generated"] == 12
    # The same weights before and after: nothing changed, so nobody can be told from anybody.
    assert found["metrics"]["membership"]["value"] == 0.5
    assert found["metrics"]["inversion_success"]["n"] == 2
    assert found["metrics"]["noise_magnitude"]["value"] > 0
    assert len(found["inversions"]) == 2
    (note,) = found["notes"]
    assert note.startswith("images were generated from 3 of ")
    assert found["not_measured"]["extraction"].startswith("needs")


def test_without_the_base_model_the_result_says_what_membership_rests_on(sets: Path, tmp_path: Path) -> None:
    metrics = ("metrics=[membership]", "sampling.images=2", "sampling.steps=1", "loss_draws=1")
    sources = ("train=all.npz@train", "heldout=all.npz@heldout")
    outcome = audit(f"generated={EMBEDDED}", *sources, *metrics, sets=sets, folder=tmp_path)
    assert outcome.code == 3  # copy_rate is required by the thresholds that ship, and was not asked for
    sampled, membership = result(tmp_path)["notes"]
    assert sampled.startswith("images were generated from 1 of ")
    assert "base=" in membership


def without_weights(pipeline: Path) -> None:
    (pipeline / "unet" / "diffusion_pytorch_model.safetensors").unlink()


def with_a_pickle_instead(pipeline: Path) -> None:
    without_weights(pipeline)
    (pipeline / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")


@pytest.mark.parametrize("damage", [without_weights, with_a_pickle_instead])
def test_a_pipeline_that_lacks_a_part(sets: Path, tmp_path: Path, damage: Any) -> None:
    pipeline = shutil.copytree(EMBEDDED, tmp_path / "model")
    damage(pipeline)
    outcome = audit(f"generated={pipeline}", *FOLDERS, sets=sets, folder=tmp_path)
    refused_in_one_line(outcome.code, outcome.err, "unet")
    assert not (sets / "pwned").exists()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["generated=honest", "train=train"], "heldout"),
        (["generated=nowhere", *FOLDERS], "nowhere does not exist"),
        (["generated=honest", "train=train", "heldout=train"], "more are in the training set too"),
        (["generated=honest", *FOLDERS, "policy=nowhere.yaml"], "policy=nowhere.yaml"),
        (["generated=honest", *FOLDERS, "metrics=[kid,beauty]"], "beauty"),
        (["generated=honest", *FOLDERS, "settings.copy_rate.rate=2"], "copy_rate.rate=2"),
        (["generated=honest", *FOLDERS, "+settings.kid.embedding=nowhere.ts"], "nowhere.ts"),
        (["generated=honest", *FOLDERS, "size=0"], "size=0"),
        (["generated=honest", *FOLDERS, "size=100"], "smaller than 100"),
        (["generated=honest", "train=all.npz@nobody", "heldout=heldout"], "no images of split 'nobody'"),
        (["generated=honest", *FOLDERS, "cache=all.npz/cache"], "cache"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_call_is_one_line(sets: Path, tmp_path: Path, arguments: Sequence[str], named: str) -> None:
    prefixed = [f"+{a}" if a.startswith("settings.") else a for a in arguments]
    outcome = audit(*prefixed, sets=sets, folder=tmp_path)
    refused_in_one_line(outcome.code, outcome.err, named)
    assert not (tmp_path / "runs").exists()


def test_a_named_image_that_is_not_there(sets: Path, tmp_path: Path) -> None:
    sources = ("train=all.npz@train", "heldout=all.npz@heldout")
    outcome = audit(f"generated={EMBEDDED}", *sources, "inversion.named=[nobody]", sets=sets, folder=tmp_path)
    refused_in_one_line(outcome.code, outcome.err, "'nobody'")


def test_a_cache_changes_no_number(sets: Path, tmp_path: Path) -> None:
    for _ in range(2):
        audit("generated=leaking", *FOLDERS, f"cache={tmp_path / 'cache'}", sets=sets, folder=tmp_path)
    first, second = (json.loads(p.read_text()) for p in (tmp_path / "runs" / "audit").glob("*/*/result.json"))
    assert first["metrics"] == second["metrics"]
    assert any((tmp_path / "cache").iterdir())
