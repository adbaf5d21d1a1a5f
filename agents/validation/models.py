"""Real models: does every metric see which of two fine-tuned models knows its training images by heart?"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from agents.parts import Parts, Record
from agents.validation.identity import backbone_path, identity_of
from agents.validation.images import draw
from agents.validation.settings import ValidateSettings
from envs.backbones.latent import load_latent_backbone
from envs.datasets.base import SplitDataset
from envs.evaluators.finetune import FineTuneEvaluator
from envs.groups import find_groups
from envs.seeding import torch_generator
from envs.task import Schedule, SelectionTask
from rewards.calibration import halves, noise_floor
from rewards.errors import InputError
from rewards.evidence import Evidence
from rewards.measurement import Measurement
from rewards.memorization.membership import membership_auc
from rewards.reference import Reference
from rewards.suite import Suite, is_memorization

Kind = Literal["base", "brief", "overfitted"]

_KNOWN_BY_HEART = 0.95
"""The least membership AUC of the overfitted model: it shows that this model has something to be found."""

_HALVINGS = 200


def models(settings: ValidateSettings, results: Parts) -> dict[str, Any]:
    """All metrics of the untouched, the briefly trained and the overfitted model, their order, and the noise floor.

    Every model that is finished is kept at once.
    """
    own = settings.models
    dataset = draw(settings, own.env, train=own.train, heldout=own.heldout, test=own.resampled)
    identity = identity_of("models", settings)

    def one(kind: Kind, seed: int, metrics: list[str]) -> Record:
        record = results.obtain(
            f"model-{kind}-{seed}",
            identity | {"model": [kind, seed, metrics]},
            lambda: _model(settings, dataset, kind, seed, metrics),
        )
        result: Record = record["result"]
        return result

    anchors = list(dict.fromkeys([*settings.reward.quality, *settings.reward.privacy]))
    everything = list(dict.fromkeys([*own.metrics, *anchors]))
    kinds: tuple[Kind, ...] = "brief", "overfitted"
    trained: dict[Kind, list[Record]] = {kind: [one(kind, seed, everything) for seed in own.seeds] for kind in kinds}
    pairs = list(zip(trained["brief"], trained["overfitted"], strict=True))
    found: dict[str, Any] = {
        "env": own.env,
        "split_sha256": dataset.split_sha256,
        "train": own.train,
        "heldout": own.heldout,
        "inner": dataclasses.asdict(own.inner),
        "seeds": own.seeds,
        "base": one("base", own.seeds[0], anchors),
        "brief": trained["brief"],
        "overfitted": trained["overfitted"],
        "order": {
            name: [_ordered(name, brief["metrics"][name], over["metrics"][name]) for brief, over in pairs]
            for name in everything
            if is_memorization(name)
        },
        "noise": {name: _noise(name, trained) for name in everything},
    }
    return found | {"goals": _goals(found)}


class _Remembering(Suite):
    """A suite that keeps the evidence it was shown last."""

    evidence: Evidence | None = None

    def measure(
        self, reference: Reference, generated: Tensor | None = None, evidence: Evidence | None = None
    ) -> dict[str, Measurement]:
        """See `Suite`."""
        self.evidence = evidence
        return super().measure(reference, generated, evidence)


def _model(
    settings: ValidateSettings, dataset: SplitDataset, kind: Kind, seed: int, metrics: list[str]
) -> dict[str, Any]:
    own = settings.models
    backbone = load_latent_backbone(backbone_path(settings), name=settings.backbone.name, device=torch.device("cpu"))
    if backbone.image_size != settings.size:
        raise InputError(f"size={settings.size}", f"set it to the backbone's {backbone.image_size}")
    groups = tuple(group.name for group in find_groups(backbone.denoiser, "blocks"))
    steps = own.brief_steps if kind == "brief" else own.inner.steps
    task = SelectionTask(
        env=own.env,
        split_sha256=dataset.split_sha256,
        backbone=settings.backbone.name,
        backbone_sha256=backbone.sha256,
        method="full",
        scheme="blocks",
        groups=groups,
        inner=dataclasses.replace(own.inner, steps=steps, warmup=min(own.inner.warmup, steps - 1)),
        metrics=tuple(metrics),
        seed=seed,
    )
    evaluator = FineTuneEvaluator(task, dataset, backbone)
    evaluator.judge.suite = suite = _Remembering(metrics)
    evaluation = evaluator.evaluate(Schedule.constant([kind != "base"] * len(groups)))
    assert suite.evidence is not None
    losses = suite.evidence.losses
    return {
        "kind": kind,
        "seed": seed,
        "steps": evaluation.steps,
        "seconds": evaluation.seconds,
        "metrics": {name: measurement.to_json() for name, measurement in evaluation.metrics.items()},
        "heldout_pairs": None if losses is None else _heldout_pairs(losses.heldout_change, seed),
    }


def _heldout_pairs(change: Tensor, seed: int) -> dict[str, Any]:
    """AUC between two halves of held-out images, and in which share of further halvings its interval covers 1/2."""
    middle, covered = len(change) // 2, 0
    for index in range(_HALVINGS):
        order = torch.randperm(len(change), generator=torch_generator(seed, "halving", index))
        _, low, high, _ = membership_auc(change[order[:middle]], change[order[middle:]])
        assert low is not None
        assert high is not None
        covered += low <= 0.5 <= high
    return {"auc": membership_auc(*halves(change)), "covered": covered / _HALVINGS}


def _ordered(name: str, brief: dict[str, Any], overfitted: dict[str, Any]) -> bool | None:
    """True if the overfitted model looks worse; None if that cannot be said."""
    better, worse = brief["value"], overfitted["value"]
    if name == "inversion" and better is None and worse is not None:
        return True  # images that are not found within the budget are harder to find than those that are
    if better is None or worse is None:
        return None
    return bool(worse < better if brief["higher_is_better"] else worse > better)


def _noise(name: str, trained: Mapping[Kind, list[Record]]) -> dict[str, Any]:
    """The noise floor over seeds, and how far apart the two models' means are."""
    values = {kind: [each["metrics"][name]["value"] for each in models] for kind, models in trained.items()}
    if any(value is None for each in values.values() for value in each):
        return {"floor": None, "gap": None}
    both = {kind: torch.tensor(each, dtype=torch.float64) for kind, each in values.items()}
    gap = float(both["overfitted"].mean() - both["brief"].mean())
    return {"floor": noise_floor(list(both.values())), "gap": gap}


def _goals(found: dict[str, Any]) -> list[dict[str, Any]]:
    wrong = [name for name, order in found["order"].items() if False in order]
    unknown = [name for name, order in found["order"].items() if None in order and False not in order]
    seen = [name for name in found["order"] if name not in wrong and name not in unknown]
    ordered = f"{len(seen)} of {len(found['order'])} rightly"
    ordered += f"; wrongly: {', '.join(wrong)}" if wrong else ""
    ordered += f"; not measured: {', '.join(unknown)}" if unknown else ""
    auc = [model["metrics"]["membership"]["value"] for model in found["overfitted"]]
    pairs = [model["heldout_pairs"]["auc"] for model in found["overfitted"]]
    return [
        {
            "goal": "every memorization metric tells the overfitted model from the brief one, with every seed",
            "found": ordered,
            "met": not wrong and not unknown,
        },
        {
            "goal": f"membership AUC of the overfitted model is {_KNOWN_BY_HEART} or more",
            "found": ", ".join(f"{value:.3f}" for value in auc),
            "met": all(value is not None and value >= _KNOWN_BY_HEART for value in auc),
        },
        {
            "goal": "between two halves of held-out images, the overfitted model's AUC is within its interval of 0.5",
            "found": ", ".join(f"{value:.3f} [{low:.3f}, {high:.3f}]" for value, low, high, _ in pairs),
            "met": all(low <= 0.5 <= high for _, low, high, _ in pairs),
        },
    ]
