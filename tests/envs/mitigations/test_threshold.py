from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from envs.hooks import Batch
from envs.mitigations import find_mitigations
from envs.mitigations.base import Situation
from envs.mitigations.threshold import FILE, Gate, NoiseThreshold, calibrated, read_thresholds, region_of
from rewards.errors import InputError
from tests.envs.mitigations.conftest import Ward, same
from tests.envs.mitigations.test_caption_noise import situation

FEW = NoiseThreshold(regions=2, draws=8)


def batch_of(case: Situation, *t: int, dropped: tuple[int, ...] = ()) -> Batch:
    n = len(t)
    states = case.data.states[:n].clone()
    states[list(dropped)] = case.data.empty_state
    noise = torch.randn(case.data.latents[:n].shape, generator=torch.Generator().manual_seed(0))
    return Batch(case.data.latents[:n], states, noise, torch.tensor(t), torch.arange(n))


def test_samples_above_their_regions_limit_leave_the_batch_and_dropped_captions_stay(ward: Ward) -> None:
    case = situation(ward)
    empty = case.data.empty_state
    batch = batch_of(case, 10, 900, 10, 900, dropped=(2, 3))
    late_closed = Gate(ward.backbone, empty, [1e6, 0.0])
    kept = late_closed.admitted(batch)
    assert kept is not None
    assert kept.tolist() == [True, False, True, True]
    assert late_closed.figures() == {"threshold.left_out_share": 0.25}
    assert Gate(ward.backbone, empty, [1e6]).admitted(batch) is None
    nothing = Gate(ward.backbone, empty, [0.0])
    assert nothing.admitted(batch_of(case, 10, 900, dropped=(0, 1))) is None
    assert nothing.figures() == {"threshold.left_out_share": 0.0}


@pytest.mark.parametrize("timesteps", [10, 1000])
@pytest.mark.parametrize("regions", [1, 3, 8])
def test_regions_are_of_equal_length(timesteps: int, regions: int) -> None:
    counts = torch.bincount(region_of(torch.arange(timesteps), regions, timesteps))
    assert len(counts) == regions
    assert counts.max() - counts.min() <= 1


def test_calibration_is_the_same_every_time_and_follows_its_seed_and_quantile(ward: Ward) -> None:
    limits = calibrated(FEW, situation(ward))
    assert len(limits) == 2
    assert min(limits) > 0
    assert calibrated(FEW, situation(ward)) == limits
    assert calibrated(FEW, situation(ward, seed=1)) != limits
    lower = calibrated(dataclasses.replace(FEW, quantile=0.2), situation(ward))
    assert all(low < high for low, high in zip(lower, limits, strict=True))


def test_a_threshold_that_nothing_exceeds_is_plain_training(ward: Ward) -> None:
    assert same(ward.after({"threshold": {"value": 1e6}}), ward.after({})), "bit by bit"


def test_a_threshold_that_everything_exceeds_leaves_the_model_as_it_was(ward: Ward) -> None:
    base = ward.weights()
    trained = ward.of(caption_dropout=0.0).treat({"threshold": {"value": 0.0}})
    assert trained.steps == 0
    assert trained.figures == {"threshold.left_out_share": 1.0}
    assert same(ward.weights(), base)


def kept(path: Path, case: Situation) -> list[float]:
    """Writes what a run calibrates."""
    record = FEW.treatment(case).records[FILE]
    path.write_text(json.dumps(record), encoding="utf-8")
    limits: list[float] = record["limits"]
    return limits


def test_thresholds_are_kept_in_a_file_and_come_back(ward: Ward, tmp_path: Path) -> None:
    case, path = situation(ward), tmp_path / FILE
    limits = kept(path, case)
    assert limits == calibrated(FEW, case)
    assert read_thresholds(path, case) == limits
    judged = dataclasses.replace(ward.budget, images=99, sampling_steps=2)
    assert read_thresholds(path, dataclasses.replace(case, budget=judged)) == limits, "how it is judged is no matter"
    (found,) = find_mitigations({"threshold": {"file": str(path)}})
    assert len(found.settings["file_sha256"]) == 64
    (again,) = find_mitigations({"threshold": found.settings})
    assert again == found
    fresh = {"regions": FEW.regions, "draws": FEW.draws}
    assert same(ward.after({"threshold": {"file": str(path)}}), ward.after({"threshold": fresh}))
    path.write_text(path.read_text() + " ")
    with pytest.raises(InputError, match=r"mitigation\.threshold\.file_sha256=.* has changed since"):
        find_mitigations({"threshold": found.settings})


def test_files_of_another_task_damaged_ones_and_unknown_schemas_are_refused(ward: Ward, tmp_path: Path) -> None:
    case, path = situation(ward), tmp_path / FILE
    kept(path, case)
    text = path.read_text()
    others = {
        "inner": dataclasses.replace(case, budget=dataclasses.replace(ward.budget, steps=9)),
        "heldout_sha256": dataclasses.replace(case, heldout=case.images),
        "train_sha256": dataclasses.replace(case, images=case.heldout),
    }
    for name, other in others.items():
        with pytest.raises(InputError, match=f"is of another task: it differs in {name} — calibrate again"):
            read_thresholds(path, other)
    for damaged in (text[: len(text) // 2], "", "[]", "{}", json.dumps(json.loads(text) | {"limits": [None]})):
        path.write_text(damaged)
        with pytest.raises(InputError, match="is damaged"):
            read_thresholds(path, case)
    path.write_text(json.dumps(json.loads(text) | {"schema": 7}))
    with pytest.raises(InputError, match="has schema 7, this version reads 1"):
        read_thresholds(path, case)
    with pytest.raises(InputError, match=r"none\.json cannot be read: No such file"):
        find_mitigations({"threshold": {"file": str(tmp_path / "none.json")}})


@pytest.mark.parametrize(
    "settings",
    [
        {"quantile": 1.0},
        {"regions": 0},
        {"draws": 1.5},
        {"value": -1.0},
        {"value": True},
        {"file_sha256": "00"},
    ],
)
def test_settings_out_of_range(settings: dict[str, object]) -> None:
    (name,) = settings
    with pytest.raises(InputError, match=rf"mitigation\.threshold\.{name}="):
        find_mitigations({"threshold": settings})


def test_a_value_and_a_file(tmp_path: Path) -> None:
    path = tmp_path / "limits.json"
    path.write_text("{}")
    with pytest.raises(InputError, match="give either a value or a file"):
        find_mitigations({"threshold": {"value": 1.0, "file": str(path)}})


def test_heldout_images_without_captions(ward: Ward) -> None:
    heldout = dataclasses.replace(ward.dataset.heldout, captions=("",) * 6)
    ward = dataclasses.replace(ward, dataset=dataclasses.replace(ward.dataset, heldout=heldout))
    with pytest.raises(InputError, match="threshold calibrates on held-out captions, and there is none"):
        ward.regimen({"threshold": {}})
    assert ward.regimen({"threshold": {"value": 1.0}}).treatment.hooks
