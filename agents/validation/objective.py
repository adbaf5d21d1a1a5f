"""The objective: neither a copycat nor the untouched base model may beat a generator that resamples the source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from agents.parts import Parts, Record
from agents.validation.identity import backbone_path, identity_of
from agents.validation.images import as_tensor, draw
from agents.validation.settings import ValidateSettings
from envs.backbones.latent import load_latent_backbone
from envs.datasets.base import ImageSet
from envs.generate import generate
from envs.task import content_hash
from rewards.errors import InputError
from rewards.features import cached_embedding
from rewards.measurement import Measurement
from rewards.objective import AnchoredObjective, NotMeasuredError, Objective
from rewards.suite import Suite

_Metrics = Mapping[str, Measurement]
RESAMPLED, COPYCAT, BASE, FULL, BRIEF = "held-out resample", "copycat", "base model", "full fine-tuning", "brief"
_MUST_LOSE = (COPYCAT, BASE)


def objective(settings: ValidateSettings, results: Parts) -> dict[str, Any]:
    """Utilities with images alone, and with the real models if they are there."""
    tables = [_images_only(settings, env) for env in settings.envs]
    models = results.read("models", identity_of("models", settings))
    if models is not None:
        tables.append(_with_models(settings, models["result"]))
    return {"tables": tables, "goals": [goal for table in tables for goal in _goals(table)]}


def depends_on(settings: ValidateSettings, results: Parts) -> dict[str, Any]:
    """What decides the result beside the settings: the models, if they were there."""
    identity = identity_of("models", settings)
    return {"models": None if results.read("models", identity) is None else content_hash(identity)}


def _images_only(settings: ValidateSettings, env: str) -> dict[str, Any]:
    own, reward = settings.objective, settings.reward
    dataset = draw(settings, env, train=own.train, heldout=own.judge, test=own.generated + own.train)
    train, judge, more = (as_tensor(s.images) for s in (dataset.train, dataset.heldout, dataset.test))
    resampled, others = more[: own.generated], more[own.generated :]
    suite = Suite(list(dict.fromkeys([*reward.quality, *own.privacy])), embed=cached_embedding)
    lacking = suite.needs - {"images"}
    if lacking:
        raise InputError(
            f"objective.privacy={own.privacy} with reward.quality={reward.quality} needs {', '.join(sorted(lacking))}",
            "name metrics that need images alone",
        )
    reference = suite.reference(train, judge)
    generators = {
        RESAMPLED: resampled,
        COPYCAT: _cycled(train, own.generated),
        BASE: _base_images(settings, dataset.train),
        FULL: torch.cat([train, others]),
    }
    metrics = {name: suite.measure(reference, images) for name, images in generators.items()}
    anchored = Objective(tuple(reward.quality), tuple(own.privacy), reward.scalarization, reward.rho)
    note = f"{FULL} is one half copies and one half further held-out images"
    return _table(settings, env, anchored.anchor(metrics[BASE], metrics[FULL]), metrics, note)


def _with_models(settings: ValidateSettings, models: Record) -> dict[str, Any]:
    """Quality of copycat and resample is measured; their membership is what it would be, as there is no model."""
    own, reward = settings.models, settings.reward
    dataset = draw(settings, own.env, train=own.train, heldout=own.heldout, test=own.resampled)
    train, judge, more = (as_tensor(s.images) for s in (dataset.train, dataset.heldout, dataset.test))
    suite = Suite(reward.quality, embed=cached_embedding)
    reference = suite.reference(train, judge)
    measured = {
        BASE: _read(models["base"]),
        FULL: _read(models["overfitted"][0]),
        BRIEF: _read(models["brief"][0]),
    }
    as_null = {name: replace(measured[FULL][name], value=measured[FULL][name].null) for name in reward.privacy}
    as_full = {name: measured[FULL][name] for name in reward.privacy}
    measured |= {
        RESAMPLED: {**suite.measure(reference, more), **as_null},
        COPYCAT: {**suite.measure(reference, _cycled(train, len(more))), **as_full},
    }
    anchored = Objective(tuple(reward.quality), tuple(reward.privacy), reward.scalarization, reward.rho)
    note = (
        f"{FULL} is the overfitted model; {COPYCAT} has its {', '.join(reward.privacy)}, {RESAMPLED} that of the null"
    )
    return _table(settings, f"{own.env}, real models", anchored.anchor(measured[BASE], measured[FULL]), measured, note)


def _table(
    settings: ValidateSettings, title: str, anchored: AnchoredObjective, metrics: Mapping[str, _Metrics], note: str
) -> dict[str, Any]:
    rows = {}
    for name in dict.fromkeys([RESAMPLED, COPYCAT, BASE, FULL, *metrics]):
        try:
            axes = anchored.axes(metrics[name])
        except NotMeasuredError as error:
            raise InputError(f"{title}, {name}: {error}", "give it more images") from error
        rows[name] = {
            "quality": axes.quality,
            "privacy": axes.privacy,
            "utility": [anchored.utility(axes, preference) for preference in settings.objective.preferences],
        }
    return {
        "title": title,
        "note": note,
        "quality": list(anchored.objective.quality),
        "privacy": list(anchored.objective.privacy),
        "preferences": settings.objective.preferences,
        "generators": rows,
    }


def _goals(table: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows = table["generators"]
    return [
        {
            "goal": f"{table['title']}: {name} scores below the {RESAMPLED}",
            "found": ", ".join(
                f"{mine:.2f} < {best:.2f}" if mine < best else f"{mine:.2f} not below {best:.2f}"
                for mine, best in zip(rows[name]["utility"], rows[RESAMPLED]["utility"], strict=True)
            ),
            "met": all(m < b for m, b in zip(rows[name]["utility"], rows[RESAMPLED]["utility"], strict=True)),
        }
        for name in _MUST_LOSE
    ]


def _base_images(settings: ValidateSettings, train: ImageSet) -> Tensor:
    own = settings.objective
    backbone = load_latent_backbone(backbone_path(settings), name=settings.backbone.name, device=torch.device("cpu"))
    if backbone.image_size != settings.size:
        raise InputError(f"size={settings.size}", f"set it to the backbone's {backbone.image_size}")
    captions = [train.captions[i % len(train)] for i in range(own.generated)]
    images = generate(
        backbone,
        backbone.encode_captions(captions),
        backbone.encode_captions([""]),
        steps=own.sampling_steps,
        guidance_scale=1.0,
        seed=settings.seed,
    )
    return as_tensor(images)


def _cycled(images: Tensor, n: int) -> Tensor:
    return images[torch.arange(n) % len(images)]


def _read(model: Record) -> dict[str, Measurement]:
    return {name: Measurement.from_json(fields) for name, fields in model["metrics"].items()}
