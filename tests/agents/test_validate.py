"""The command that puts the measurements to the proof, on phantoms and an untrained pipeline: small enough to run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from agents.validation.images import PERTURBATIONS, one_each
from agents.validation.settings import PARTS
from envs.datasets.base import ImageSet
from envs.datasets.phantom import render
from rewards.suite import METRICS, is_memorization
from tests.agents.command import Command, Outcome, read_json

CHEAP = (
    "envs=[phantom]",
    "size=32",
    "+options.identities=120",
    "planted.images=20",
    "planted.calibration=24",
    "planted.shares=[0,0.5,1]",
    "false_positives.images=40",
    "false_positives.train=8",
    "false_positives.calibration=19",
    "false_positives.resplits=4",
    "false_positives.long_run=3",
    "false_positives.rate=0.1",
    "models.env=phantom",
    "models.train=2",
    "models.heldout=8",
    "models.resampled=8",
    "models.brief_steps=1",
    "models.seeds=[0,1]",
    "models.metrics=[copy_rate,membership,inversion,fid]",
    "models.inner.steps=40",
    "models.inner.warmup=0",
    "models.inner.learning_rate=3e-3",
    "models.inner.images=8",
    "models.inner.sampling_steps=2",
    "models.inner.inversions=1",
    "objective.train=8",
    "objective.judge=12",
    "objective.generated=12",
    "objective.sampling_steps=2",
    "cost.env=phantom",
    "cost.real=12",
    "cost.sizes=[8,16]",
    "cost.repeats=1",
)


def validate(*arguments: str, folder: Path) -> Outcome:
    return Command([*CHEAP, *arguments], folder, name="validate").wait()


def results(folder: Path) -> dict[str, Path]:
    """Every result file by its name without the hash."""
    return {path.name.rpartition("-")[0]: path for path in (folder / "runs" / "validate").iterdir()}


@pytest.fixture(scope="module")
def cheap_parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory in which everything that needs no pipeline was computed."""
    folder = tmp_path_factory.mktemp("validate")
    outcome = validate("only=[planted,false_positives,cost]", folder=folder)
    assert outcome.code == 0, outcome.err
    return folder


def test_planted_copies_are_counted(cheap_parts: Path) -> None:
    found = read_json(results(cheap_parts)["planted"])["result"]["envs"]["phantom"]
    assert list(found["perturbations"]) == list(PERTURBATIONS)
    assert {"copy_rate", "pixels", "efficientnet_lite0", "aligned_pixels"} < set(found["false_positives"])
    untouched = found["perturbations"]["untouched"]
    assert all(estimate[0] == 1 for name, estimate in untouched["sensitivity"].items())
    assert found["perturbations"]["flipped"]["sensitivity"]["copy_rate"][0] == 1
    none, half, everything = untouched["recovered"]
    assert [each["copies"] for each in untouched["recovered"]] == [0, 10, 20]
    assert none["copy_rate"] == found["false_positives"]["copy_rate"]
    assert everything["copy_rate"][0] == 1
    assert half["copy_rate"][0] >= 0.5
    for each in untouched["recovered"]:
        value, low, high, n = each["pixels"]
        assert 0 <= low <= value <= high <= 1
        assert n == 20


def test_every_resplit_is_counted(cheap_parts: Path) -> None:
    found = read_json(results(cheap_parts)["false_positives"])["result"]["envs"]["phantom"]
    assert found["stated"] == pytest.approx(2 / 20)
    assert found["train"] + found["calibration"] + found["judged"] == found["images"] == 40
    assert sum(found["expected"]) == pytest.approx(1)
    for each in found["detectors"].values():
        assert len(each["flagged"]) == 4
        assert each["long_run"][3] == 3
        assert each["mean"][0] == pytest.approx(sum(each["flagged"]) / 4 / found["judged"])


def test_cost_is_split_into_steps(cheap_parts: Path) -> None:
    result = read_json(results(cheap_parts)["cost"])["result"]
    assert [row["n"] for row in result["sizes"]] == [8, 16]
    assert set(result["metrics"]) == {name for name, metric in METRICS.items() if metric.needs == {"images"}}
    for row in result["sizes"]:
        assert set(row["metrics"]) == set(result["metrics"])
        assert row["seconds"] > 0
        assert "alignment" in row["steps"]


def test_a_second_run_computes_nothing_and_writes_the_same_document(cheap_parts: Path) -> None:
    """No data set either: the document is made from result files alone."""
    document = cheap_parts / "docs" / "measurements.md"
    before = document.read_bytes()
    times = {path: path.stat().st_mtime_ns for path in results(cheap_parts).values()}
    for path in document.parent.iterdir():
        path.unlink()
    outcome = validate("only=[planted,false_positives,cost]", "data.root=/nowhere", folder=cheap_parts)
    assert outcome.code == 0, outcome.err
    assert outcome.out.count(": known, ") == 3
    assert {path: path.stat().st_mtime_ns for path in results(cheap_parts).values()} == times
    assert document.read_bytes() == before
    assert sorted(path.name for path in document.parent.iterdir()) == [
        "measurements-cost.png",
        "measurements-false-positives.png",
        "measurements-planted.png",
        "measurements.md",
    ]


def test_the_document_says_what_is_missing(cheap_parts: Path) -> None:
    text = (cheap_parts / "docs" / "measurements.md").read_text(encoding="utf-8")
    assert "Not computed with these settings: models, objective." in text
    assert "## Planted copies" in text
    assert "## Real models" not in text
    assert str(cheap_parts) not in text


def test_other_settings_are_another_result(cheap_parts: Path) -> None:
    before = set((cheap_parts / "runs" / "validate").iterdir())
    outcome = validate("only=[false_positives]", "seed=1", "docs=other", folder=cheap_parts)
    assert outcome.code == 0, outcome.err
    (new,) = set((cheap_parts / "runs" / "validate").iterdir()) - before
    try:
        assert new.name.startswith("false_positives-")
        assert "Not computed with these settings: planted" in (cheap_parts / "other" / "measurements.md").read_text()
    finally:
        new.unlink()


def test_a_damaged_result_is_one_line(cheap_parts: Path, tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "validate"
    folder.mkdir(parents=True)
    (folder / results(cheap_parts)["cost"].name).write_text('{"resu')
    outcome = validate("only=[cost]", folder=tmp_path)
    assert outcome.code == 2
    assert "delete it" in outcome.err
    assert outcome.err.count("\n") == 1


@pytest.mark.slow
def test_models_are_ordered_and_kept_one_by_one(tmp_path: Path, pipeline_folder: Path) -> None:
    arguments = ("only=[models,objective]", f"backbone.path={pipeline_folder}")
    outcome = validate(*arguments, folder=tmp_path)
    assert outcome.code == 0, outcome.err
    kept = results(tmp_path)
    runs = {f"model-{kind}-{seed}" for kind in ("brief", "overfitted") for seed in (0, 1)}
    assert set(kept) == runs | {"model-base-0", "models", "objective"}
    found = read_json(kept["models"])["result"]
    assert [model["steps"] for model in found["overfitted"]] == [40, 40]
    assert [model["steps"] for model in found["brief"]] == [1, 1]
    assert set(found["brief"][0]["metrics"]) == {"copy_rate", "membership", "inversion", "fid", "kid"}
    assert set(found["brief"][1]["metrics"]) == set(found["brief"][0]["metrics"])
    assert found["base"]["metrics"]["membership"]["value"] == 0.5
    assert set(found["order"]) == {"copy_rate", "membership", "inversion"}
    assert all(len(order) == 2 for order in found["order"].values())
    pairs = found["overfitted"][0]["heldout_pairs"]
    assert 0 <= pairs["auc"][1] <= pairs["auc"][2] <= 1
    assert 0 <= pairs["covered"] <= 1
    assert found["noise"]["membership"]["floor"] is not None
    assert found["noise"]["fid"] == {"floor": None, "gap": None}

    kept["models"].unlink()
    kept["model-brief-1"].unlink()
    outcome = validate(*arguments, folder=tmp_path)
    assert outcome.code == 0, outcome.err
    assert outcome.out.count("known, ") == 5, "four models and the objective, which knows no other models"
    again = read_json(results(tmp_path)["models"])["result"]
    for kind in ("brief", "overfitted"):
        assert [model["metrics"] for model in again[kind]] == [model["metrics"] for model in found[kind]]
    text = (tmp_path / "docs" / "measurements.md").read_text(encoding="utf-8")
    assert "phantom, real models" in text
    outcome = validate("only=[objective]", arguments[1], "models.brief_steps=2", folder=tmp_path)
    assert outcome.code == 0, outcome.err
    assert "known, " not in outcome.out, "other models, or none, are another objective"
    assert "needs 1281 generated" in text


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("only=[speed]", "only=speed names no part — choose among planted, false_positives, models, objective, cost"),
        ("envs=[]", "envs=[] — name at least one data set"),
        ("planted.images=100", "phantom has 120 images"),
        ("planted.calibration=1", "planted.calibration=1"),
        ("planted.shares=[2]", "planted.shares.0=2"),
        ("false_positives.images=27", "false_positives.images=27 leaves none to judge"),
        ("models.brief_steps=40", "models.brief_steps=40 of 40"),
        ("models.seeds=[0,0]", "models.seeds=[0, 0]"),
        ("models.metrics=[beauty]", "models.metrics beauty are unknown"),
        ("cost.sizes=[16,8]", "cost.sizes=[16, 8]"),
        ("data.root=/nowhere", "data.root=/nowhere does not exist"),
        ("nonsense=1", "Could not override 'nonsense'"),
    ],
)
def test_a_wrong_call_is_one_line(tmp_path: Path, argument: str, message: str) -> None:
    real = ["envs=[chest_xray]", "~options.identities"] if argument.startswith("data.root") else []
    outcome = validate("only=[planted]", *real, argument, folder=tmp_path)
    assert outcome.code == 2
    assert outcome.err.startswith(f"error: {message}")
    assert outcome.err.count("\n") == 1
    assert not (tmp_path / "docs").exists()


def test_missing_data_are_one_line(tmp_path: Path) -> None:
    """The same line as of a training."""
    arguments = ["data.root=/nowhere"]
    ours = Command(["only=[planted]", "envs=[chest_xray]", *arguments], tmp_path, name="validate").wait()
    training = Command(["env=chest_xray", *arguments], tmp_path).wait()
    assert ours.code == training.code == 2
    assert ours.err == training.err
    assert ours.err.count("\n") == 1


def test_unwritable_folders_are_one_line(cheap_parts: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for argument, folder in (("docs=file", cheap_parts), ("run_dir=file", tmp_path)):
        (folder / "file").write_text("")
        outcome = validate("only=[cost]", argument, folder=folder)
        assert outcome.code == 2
        assert outcome.err.count("\n") == 1


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.from_numpy(render("lesion", range(6), seed=0).images).permute(0, 3, 1, 2).contiguous()


@pytest.mark.parametrize("name", PERTURBATIONS)
def test_a_perturbation_is_repeatable_and_moderate(name: str, images: Tensor) -> None:
    change = PERTURBATIONS[name]
    changed = change(images, 0)
    assert changed.dtype == torch.uint8
    assert changed.shape == images.shape
    assert torch.equal(changed, change(images, 0))
    assert torch.equal(changed, images) == (name == "untouched")
    if name.startswith("noise"):
        assert (changed.float() - images).std() == pytest.approx(float(name.split()[-1]), rel=0.1)
        assert not torch.equal(changed, change(images, 1))
    if name.startswith("shifted"):
        down = 2 * name.endswith("down")
        assert torch.equal(changed[..., down:, 2:], images[..., : 64 - down, :62])


def test_one_image_a_patient_and_of_near_duplicates_is_kept() -> None:
    pictures = torch.arange(5, dtype=torch.uint8)[:, None, None, None].expand(5, 2, 2, 3).numpy()
    images = ImageSet(
        pictures, ("a", "b", "c", "d", "e"), ("1", "1", "2", "3", "4"), ("",) * 5, torch.zeros(5).long().numpy()
    )
    kept = one_each(images, (("a", "d"),))
    assert kept[:, 0, 0, 0].tolist() == [0, 2, 4]


def test_memorization_and_quality_are_told_apart() -> None:
    assert is_memorization("inversion_success")
    assert not is_memorization("kid")
    assert set(map(is_memorization, METRICS)) == {True, False}


def test_the_defaults_name_every_part_and_metric() -> None:
    text = (Path(__file__).parents[2] / "conf" / "validate.yaml").read_text(encoding="utf-8")
    assert all(part in text for part in PARTS)
    left_out = {name for name in METRICS if f"- {name}\n" not in text}
    assert left_out == {"fid", "text_image_alignment"}, "one needs more images, the other a model of images and texts"
