"""A whole run in earnest, small: the backbone that ships, phantoms, a worker."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from agents.export import load_policy
from envs.datasets import NEAR_DUPLICATE_RADIUS, SplitDataset, prepare_dataset
from envs.features import GROUP_FEATURES
from rewards.suite import METRICS
from tests.agents.command import Command, answers, read_json, run_folders, train

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

FINAL = ["kid", "precision", "recall", "membership", "copy_rate", "average_minimum_distance"]
ARGUMENTS = (
    "env.train=4",
    "env.heldout=24",
    "env.test=20",
    "+env.options.identities=70",
    "env.options.kinds=[radiograph,lesion]",
    "evaluator.workers=1",
    "inner.steps=40",
    "inner.learning_rate=2e-3",
    "inner.images=16",
    "inner.sampling_steps=4",
    f"reward.final_metrics=[{','.join(FINAL)}]",
    "final.images=16",
    "budget.evaluations=2",
    "agent=ppo",
    "agent.rollout=2",
)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("earnest")


@pytest.fixture(scope="module")
def run(workplace: Path) -> Path:
    outcome = Command([*ARGUMENTS, "report.images=true"], workplace).wait(timeout=500)
    assert outcome.code == 0, outcome.err
    (folder,) = run_folders(workplace)
    return folder


@pytest.fixture(scope="module")
def dataset() -> SplitDataset:
    return prepare_dataset(
        "phantom",
        root=None,
        size=64,
        train=4,
        heldout=24,
        test=20,
        seed=0,
        radius=NEAR_DUPLICATE_RADIUS,
        options={"identities": 70},
    )


def test_the_result_tells_what_was_measured(run: Path, dataset: SplitDataset) -> None:
    result = read_json(run / "result.json")
    data = result["data"]
    assert (data["train"], data["heldout"], data["test"], data["synthetic"]) == (4, 24, 20, True)
    assert data["split_sha256"] == dataset.split_sha256
    assert list(result["metrics"]) == FINAL
    for where in (result["metrics"], *(anchor["metrics"] for anchor in result["anchors"].values())):
        assert all(m["value"] is not None and m["null"] is not None for m in where.values())
        assert all(m["higher_is_better"] == METRICS[name].higher_is_better for name, m in where.items())
    base, full = result["anchors"]["base"]["metrics"], result["anchors"]["full"]["metrics"]
    assert base["membership"]["value"] == 0.5, "the untouched model knows nobody"
    assert full["membership"]["value"] > 0.8, "four images in forty steps are remembered"
    lines = answers(run)
    assert [line["steps"] for line in lines[:2]] == [0, 40]
    assert lines[1]["trainable_parameters"] == lines[1]["total_parameters"]
    assert 0 < result["selected"]["trainable_share"] < 1
    assert load_policy(run).group_features == GROUP_FEATURES


def test_images_are_shown_only_when_asked_for(run: Path, workplace: Path, dataset: SplitDataset) -> None:
    """The second run finds everything in the store, so it costs nothing."""
    assert sorted(path.name for path in (run / "figures").iterdir()) == ["closest_pairs.png", "search.png"]
    events = EventAccumulator(str(run / "tensorboard" / "images"))
    events.Reload()
    (tag,) = events.Tags()["images"]
    grid = np.asarray(Image.open(io.BytesIO(events.Images(tag)[0].encoded_image_string)))
    assert grid.shape == (2 * 64, 16 * 64, 3)
    train_images = {image.tobytes() for image in dataset.train.images}
    pairs = [(grid[:64, 64 * i : 64 * (i + 1)], grid[64:, 64 * i : 64 * (i + 1)]) for i in range(16)]
    assert all(nearest.tobytes() in train_images for _, nearest in pairs)
    distances = [
        min(float(np.sqrt(np.mean((generated / 255.0 - shown / 255.0) ** 2))) for shown in (nearest, nearest[:, ::-1]))
        for generated, nearest in pairs
    ]
    assert distances == sorted(distances), "the closest first"

    outcome = train(*ARGUMENTS, folder=workplace)
    assert outcome.code == 0, outcome.err
    (second,) = set(run_folders(workplace)) - {run}
    assert all(line["hit"] for line in answers(second))
    assert [path.name for path in (second / "figures").iterdir()] == ["search.png"]
    assert not (second / "tensorboard" / "images").exists()
    quiet = EventAccumulator(str(second / "tensorboard"))
    quiet.Reload()
    assert quiet.Tags()["images"] == []
