"""Which layer groups a long fine-tune trains: what a search selected, what a policy chooses, or what the call says."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from omegaconf import DictConfig, OmegaConf, open_dict

from agents.export import load_policy
from agents.finetuning.settings import FinetuneSettings
from agents.probing import seen_by_policy, trainable_counts
from envs.backbones.base import Backbone
from envs.datasets.base import SplitDataset
from envs.features import GROUP_FEATURES, TASK_FEATURES
from envs.groups import LayerGroup
from envs.methods import Method
from envs.task import Schedule, parse_mask, split_mask
from rewards.errors import InputError

_DECIDED = ("env", "method", "groups", "backbone")
"""What a run's choice was made for."""
_BROUGHT = ("inner", "reward", "data", "mitigation")
"""What a run knows too, and the command line may say otherwise."""
_IDENTITY = ("name", "path")


@dataclass(frozen=True)
class Choice:
    """What learns.

    Attributes:
        schedule: A mask for each phase; phases share the steps equally.
        source: Where it comes from, in words.
    """

    schedule: Schedule
    source: str


def adopt_run(config: DictConfig, path: str, overrides: Sequence[str]) -> None:
    """Takes what a finished training was about into the configuration.

    Args:
        config: As composed; changed in place.
        path: The training's run folder.
        overrides: Of the command line, such as ``"method=lora"``.

    Raises:
        InputError: If the folder holds no finished training, or an override contradicts what its choice was made for.
    """
    result, ran = _read_run(path)
    _, left_out = _split(result, ran)
    ran.mitigation = {name: own for name, own in (ran.get("mitigation") or {}).items() if name not in left_out}
    given = config.copy()
    with open_dict(config):
        for key in (*_DECIDED, *_BROUGHT):
            config[key] = ran[key]
        for override in overrides:
            key = override.lstrip("+~").partition("=")[0]
            root, _, leaf = key.partition(".")
            if root in _BROUGHT or (root == "backbone" and leaf and leaf not in _IDENTITY):
                OmegaConf.update(config, key, OmegaConf.select(given, key), merge=False)
            elif root in _DECIDED:
                place = key if leaf else f"{key}.name"
                value = OmegaConf.select(ran, place)
                if OmegaConf.select(given, place) != value:
                    raise InputError(
                        f"{override} contradicts run={path}, which has {place}={value}", "drop one of them"
                    )


def choose(
    settings: FinetuneSettings, method: Method, groups: Sequence[LayerGroup], dataset: SplitDataset, backbone: Backbone
) -> Choice:
    """The schedule of ``run=``, ``policy=`` or ``mask=``.

    Args:
        settings: Of the fine-tune.
        method: Of adaptation.
        groups: A partition of the denoiser's modules, of which the method makes toggles.
        dataset: The images.
        backbone: In its pretrained state, without a method.

    Raises:
        InputError: If it is made for other groups, features or images, or nothing would learn.
    """
    toggles = method.toggles(groups)
    names = [toggle.name for toggle in toggles]
    if settings.run is not None:
        choice = _of_run(settings.run, names, dataset)
    elif settings.policy is not None:
        choice = _of_policy(settings, method, groups, dataset, backbone)
    else:
        given = settings.mask
        text = ",".join(given) if isinstance(given, list) else str(given)
        choice = Choice(Schedule.constant(parse_mask(text, names)), "given in the call")
    if not choice.schedule.learns:
        raise InputError(
            f"no layer group is on in the choice {choice.source}: nothing would be trained",
            f"switch one on among {', '.join(names)}, or lower preference",
        )
    return choice


def _of_run(path: str, names: list[str], dataset: SplitDataset) -> Choice:
    result, ran = _read_run(path)
    schedule, _ = _split(result, ran)
    layers = result["task"]["groups"][: len(schedule.phases[0])]
    if layers != names:
        raise InputError(
            f"run={path} chose among {', '.join(layers)}, the backbone has {', '.join(names)}",
            "give the backbone that the run was about, or mask=",
        )
    if result["data"]["split_sha256"] != dataset.split_sha256:
        raise InputError(
            f"run={path} was about other images: its split is {result['data']['split_sha256'][:12]}, this one "
            f"{dataset.split_sha256[:12]}",
            "point data.root at the images of the run, or choose with policy= or mask=",
        )
    return Choice(schedule, "selected by a search on this split")


def _split(result: Mapping[str, Any], ran: DictConfig) -> tuple[Schedule, frozenset[str]]:
    """The layers' part of what a run selected, and the names of the mitigations that this leaves out."""
    schedule = Schedule.from_key(result["selected"]["schedule"])
    toggled = tuple(ran.get("mitigation_toggles") or ())
    split = [split_mask(mask, toggled) for mask in schedule.phases]
    return Schedule(tuple(layers for layers, _ in split)), split[0][1]


def _of_policy(
    settings: FinetuneSettings, method: Method, groups: Sequence[LayerGroup], dataset: SplitDataset, backbone: Backbone
) -> Choice:
    policy = load_policy(str(settings.policy))
    for kind, wanted, known in (
        ("group", policy.group_features, GROUP_FEATURES),
        ("task", policy.task_features, TASK_FEATURES),
    ):
        if wanted != known:
            differ = sorted(set(wanted) ^ set(known)) or "the same in another order"
            raise InputError(
                f"policy={settings.policy} looks at other {kind} features: {differ}",
                f"give a policy trained on {', '.join(known)}",
            )
    # Counted on a copy: what a policy sees is measured on the untouched base model.
    counted = method(copy.deepcopy(backbone.denoiser), groups, calibration=lambda: ())
    group_features, task_features = seen_by_policy(
        backbone,
        dataset,
        method.toggles(groups),
        trainable_counts(counted),
        settings.inner,
        threads=torch.get_num_threads(),
        seed=settings.seed,
    )
    mask = policy.choose(group_features, task_features, settings.preference)
    return Choice(Schedule.constant(mask), f"of the policy at preference {settings.preference:g}")


def _read_run(path: str) -> tuple[dict[str, Any], DictConfig]:
    folder = Path(path)
    try:
        result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        config = OmegaConf.load(folder / ".hydra" / "config.yaml")
        if not isinstance(config, DictConfig) or (result["job"], result["status"]) != ("train", "done"):
            raise ValueError("it is of another command")
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"run={path} is no finished training: {reason}", "name a folder like runs/train/<task>/<time>-<id>"
        ) from error
    return result, config
