from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from agents.export import ExportedPolicy, save_policy
from agents.finetuning.choice import Choice, adopt_run, choose
from agents.finetuning.settings import FinetuneSettings
from agents.policy import SelectionNetwork, TokenLayout
from agents.probing import seen_by_policy, trainable_counts
from agents.settings import read_settings
from envs.backbones.latent import LatentBackbone
from envs.datasets import SplitDataset, prepare_dataset
from envs.features import GROUP_FEATURES, TASK_FEATURES
from envs.groups import LayerGroup, find_groups
from envs.methods import find_method
from rewards.errors import InputError
from tests.agents.test_settings import compose


@pytest.fixture(scope="module")
def dataset() -> SplitDataset:
    return prepare_dataset(
        "phantom", root=None, size=32, train=2, heldout=2, test=2, seed=0, radius=0.02, options={"identities": 12}
    )


@pytest.fixture
def groups(backbone: LatentBackbone) -> tuple[LayerGroup, ...]:
    return find_groups(backbone.denoiser, "blocks")


def settings(*overrides: str) -> FinetuneSettings:
    return read_settings(compose("finetune", *overrides), FinetuneSettings)


def chosen(
    found: FinetuneSettings, groups: tuple[LayerGroup, ...], dataset: SplitDataset, backbone: LatentBackbone
) -> Choice:
    return choose(found, find_method(found.method.name, found.method.options), groups, dataset, backbone)


def written_run(
    folder: Path, dataset: SplitDataset, groups: tuple[LayerGroup, ...], overrides: Sequence[str] = (), **changes: Any
) -> Path:
    """A finished training as `agents.train` leaves it, of a LoRA of rank 2."""
    result = {
        "job": "train",
        "status": "done",
        "task": {"groups": [group.name for group in groups]},
        "data": {"split_sha256": dataset.split_sha256},
        "selected": {"schedule": "01000000/00000011"},
    }
    (folder / ".hydra").mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps(result | changes))
    own = ("env.train=2", "method=lora", "method.options.rank=2", "inner.images=9", "groups=blocks")
    config = compose("train", *own, *overrides)
    OmegaConf.save(config, folder / ".hydra" / "config.yaml", resolve=True)
    return folder


def adopted(run: Path, *overrides: str) -> DictConfig:
    config = compose("finetune", f"run={run}", *overrides)
    adopt_run(config, str(run), overrides)
    return config


@pytest.mark.parametrize(
    ("mask", "key"),
    [
        ("all", "11111111"),
        ("01000001", "01000001"),
        ("10000000", "10000000"),
        ("[input,mid_block]", "10001000"),
        ("input", "10000000"),
    ],
)
def test_a_mask_is_read(
    backbone: LatentBackbone, dataset: SplitDataset, groups: tuple[LayerGroup, ...], mask: str, key: str
) -> None:
    assert chosen(settings(f"mask={mask}"), groups, dataset, backbone).schedule.key == key


@pytest.mark.parametrize(
    ("mask", "named"),
    [("none", "nothing would be trained"), ("00000000", "nothing"), ("0101", "4 toggles"), ("nope", "nope")],
)
def test_a_mask_that_cannot_be_trained(
    backbone: LatentBackbone, dataset: SplitDataset, groups: tuple[LayerGroup, ...], mask: str, named: str
) -> None:
    with pytest.raises(InputError, match=named):
        chosen(settings(f"mask={mask}"), groups, dataset, backbone)


@pytest.mark.parametrize(
    ("given", "named"),
    [([], "nothing says which"), (["mask=all", "policy=x"], "policy=x and mask=all"), (["run=a", "policy=b"], "run=a")],
)
def test_one_of_three_says_what_learns(given: list[str], named: str) -> None:
    with pytest.raises(InputError, match=named):
        settings(*given)


def test_a_policy_chooses_for_this_task(
    backbone: LatentBackbone, dataset: SplitDataset, groups: tuple[LayerGroup, ...], tmp_path: Path
) -> None:
    found = settings(f"policy={tmp_path}", "preference=0.25")
    trainable = trainable_counts(find_method("full")(copy.deepcopy(backbone.denoiser), groups))
    seen = seen_by_policy(backbone, dataset, groups, trainable, found.inner, threads=1, seed=found.seed)
    # An untrained policy is undecided: take the first that, exaggerated, tells the groups apart.
    for seed in range(100):
        torch.manual_seed(seed)
        network = SelectionNetwork(TokenLayout(len(GROUP_FEATURES), len(TASK_FEATURES), 8)).eval()
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.mul_(20)
        policy = ExportedPolicy(network, GROUP_FEATURES, TASK_FEATURES)
        expected = policy.choose(*seen, 0.25)
        if any(expected) and not all(expected):
            break
    save_policy(tmp_path, policy)
    assert any(expected), "the case is worth looking at"
    choice = chosen(found, groups, dataset, backbone)
    assert choice.schedule.phases == (expected,)
    assert "preference 0.25" in choice.source


@pytest.mark.parametrize("kind", ["group", "task"])
def test_a_policy_of_other_features(
    backbone: LatentBackbone, dataset: SplitDataset, groups: tuple[LayerGroup, ...], tmp_path: Path, kind: str
) -> None:
    features = {"group": GROUP_FEATURES, "task": TASK_FEATURES}
    features[kind] = (*features[kind][1:], "colour")
    network = SelectionNetwork(TokenLayout(len(GROUP_FEATURES), len(TASK_FEATURES), 8)).eval()
    save_policy(tmp_path, ExportedPolicy(network, features["group"], features["task"]))
    with pytest.raises(InputError, match=rf"other {kind} features: \['colour'"):
        chosen(settings(f"policy={tmp_path}"), groups, dataset, backbone)
    with pytest.raises(InputError, match="no policy can be read"):
        chosen(settings(f"policy={tmp_path / 'nowhere'}"), groups, dataset, backbone)


def test_a_run_brings_what_it_was_about(
    backbone: LatentBackbone, dataset: SplitDataset, groups: tuple[LayerGroup, ...], tmp_path: Path
) -> None:
    run = written_run(tmp_path / "run", dataset, groups)
    found = read_settings(adopted(run, "inner.sampling_steps=3", "training.steps=70"), FinetuneSettings)
    assert (found.env.train, found.method.name, found.method.options) == (2, "lora", {"rank": 2, "ranks": None})
    assert (found.inner.images, found.inner.sampling_steps, found.training.steps) == (9, 3, 70)
    assert found.training.batch_size == found.inner.batch_size
    assert chosen(found, groups, dataset, backbone).schedule.key == "01000000/00000011"
    same = adopted(run, "method=lora", "env.train=2", "env=phantom")
    assert same.method == adopted(run).method


def mitigated_run(folder: Path, dataset: SplitDataset, groups: tuple[LayerGroup, ...], bits: str) -> Path:
    """Of a search whose masks end with toggles that leave iet and agc out."""
    names = [*(group.name for group in groups), "without iet", "without agc"]
    overrides = ("mitigation=[agc,iet]", "mitigation.agc.mem_ratio=3", "mitigation_toggles=[iet,agc]")
    task, selected = {"groups": names}, {"schedule": f"01000001{bits}"}
    return written_run(folder, dataset, groups, overrides, task=task, selected=selected)


@pytest.mark.parametrize(
    ("bits", "left"),
    [("00", {"agc", "iet"}), ("10", {"agc"}), ("01", {"iet"}), ("11", set())],
    ids=["both", "agc", "iet", "neither"],
)
def test_a_run_brings_the_mitigations_that_its_mask_did_not_leave_out(
    backbone: LatentBackbone,
    dataset: SplitDataset,
    groups: tuple[LayerGroup, ...],
    tmp_path: Path,
    bits: str,
    left: set[str],
) -> None:
    found = read_settings(adopted(mitigated_run(tmp_path / "run", dataset, groups, bits)), FinetuneSettings)
    assert found.mitigation.keys() == left
    if "agc" in left:
        assert found.mitigation["agc"] == {"mem_ratio": 3.0, "decay": 0.8, "regions": 50}
    choice = chosen(found, groups, dataset, backbone)
    assert choice.schedule.key == "01000001", "the toggles of layers alone"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("mitigation=none", {}),
        ("mitigation=iet", {"iet": {"shards": 4, "rounds": 5}}),
        ("+mitigation.agc.decay=0.5", {"agc": {"mem_ratio": 3.0, "decay": 0.5, "regions": 50}}),
    ],
)
def test_the_call_may_say_otherwise_about_mitigations(
    dataset: SplitDataset, groups: tuple[LayerGroup, ...], tmp_path: Path, override: str, expected: dict[str, Any]
) -> None:
    run = mitigated_run(tmp_path / "run", dataset, groups, "10")
    assert read_settings(adopted(run, override), FinetuneSettings).mitigation == expected


def test_a_run_from_before_there_were_mitigations(
    dataset: SplitDataset, groups: tuple[LayerGroup, ...], tmp_path: Path
) -> None:
    run = written_run(tmp_path / "run", dataset, groups)
    file = run / ".hydra" / "config.yaml"
    config = OmegaConf.load(file)
    assert isinstance(config, DictConfig)
    del config["mitigation"], config["mitigation_toggles"]
    OmegaConf.save(config, file)
    assert read_settings(adopted(run), FinetuneSettings).mitigation == {}


@pytest.mark.parametrize(
    "override", ["method=full", "method.options.rank=4", "env.train=3", "env=isic", "groups=transformers"]
)
def test_what_contradicts_the_run(
    dataset: SplitDataset, groups: tuple[LayerGroup, ...], tmp_path: Path, override: str
) -> None:
    run = written_run(tmp_path / "run", dataset, groups)
    method = ["method=lora"] if override.startswith("method.") else []
    with pytest.raises(InputError, match=f"{override} contradicts run="):
        adopted(run, *method, override)


@pytest.mark.parametrize("change", [{"status": "running"}, {"job": "audit"}])
def test_what_is_no_finished_training(
    dataset: SplitDataset, groups: tuple[LayerGroup, ...], tmp_path: Path, change: dict[str, Any]
) -> None:
    run = written_run(tmp_path / "run", dataset, groups, **change)
    for path in (run, tmp_path / "nowhere"):
        with pytest.raises(InputError, match=f"run={path} is no finished training"):
            adopted(path)


def test_a_run_about_other_groups_or_images(
    backbone: LatentBackbone, dataset: SplitDataset, groups: tuple[LayerGroup, ...], tmp_path: Path
) -> None:
    run = written_run(tmp_path / "run", dataset, groups)
    found = read_settings(adopted(run), FinetuneSettings)
    with pytest.raises(InputError, match="chose among input"):
        chosen(found, groups[1:], dataset, backbone)
    with pytest.raises(InputError, match="about other images"):
        chosen(found, groups, dataclasses.replace(dataset, split_sha256="0" * 64), backbone)
