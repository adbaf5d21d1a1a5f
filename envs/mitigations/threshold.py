"""A threshold on noise magnitude: samples whose caption pulls like a memorized one leave the batch."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from envs.backbones.base import Backbone
from envs.datasets.base import ImageSet
from envs.hooks import Batch, Hooks
from envs.mitigations.base import Mitigation, Situation, Stage, Treatment, within
from envs.mitigations.caption_pull import caption_pulls, check_captions, heldout_rows, usual_limit
from envs.seeding import torch_generator
from rewards.errors import InputError

FILE = "caption_thresholds.json"
"""Where a run keeps what it calibrated."""
SCHEMA = 1
"""Of threshold files: raise it when the meaning of a field changes."""

_NOT_TRAINING = ("images", "sampling_steps", "guidance_scale", "loss_draws", "inversions")
"""What of an inner budget is about judging: the last table judges by more images than the search."""


@dataclass(frozen=True)
class NoiseThreshold(Mitigation):
    """Samples whose caption changes the denoiser's output by more than a threshold leave the batch.

    Wen et al., ICLR 2024, section 4.3: beside the forward pass with the caption there is one without it, and where the
    two differ by a norm of more than 2 (of Stable Diffusion's 4 x 64 x 64 latents: 2 / 128 per dimension) the sample
    is not learned from. See `caption_pull` for what is compared where a model does not predict noise. Captions that
    were dropped to the empty one pull at nothing, so they stay, and cost nothing.

    The published code takes a loss from the forward pass that it also compares. Here both passes come before it and
    without gradients, and only what stays goes through the third: up to two passes more a sample, against one there,
    less what samples that leave save.

    One number for all timesteps cannot serve, since the same caption pulls harder at some than at others. By default
    the threshold is calibrated on the base model: the noise schedule is cut into ``regions`` of equal length, in each
    ``draws`` held-out images with captions are noised at random timesteps, and the region's threshold is a high
    ``quantile`` of what their captions pull. What a fine-tune learns of a domain makes captions pull harder, those of
    held-out images too: the figure ``threshold.left_out_share`` tells how much of the training is left.

    Attributes:
        quantile: In (0, 1).
        regions: Of the noise schedule, 1 or more.
        draws: In each region; with fewer than 1 / (1 - quantile) the threshold is the largest of them.
        value: One threshold for all timesteps, per dimension, instead of calibrated ones; None for those.
        file: The ``caption_thresholds.json`` of a fine-tune of the same task, instead of calibrating again; None to
            calibrate.
        file_sha256: Of the file's content, part of a task's identity; None to take it as it is.
    """

    quantile: float = 0.95
    regions: int = 8
    draws: int = 64
    value: float | None = None
    file: str | None = None
    file_sha256: str | None = None
    name: ClassVar[str] = "threshold"
    stage: ClassVar[Stage] = Stage.BATCH
    source: ClassVar[str] = "Wen et al., ICLR 2024, openreview 84n3UwkH7b"
    needs_text: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not within(self.quantile, 0.0, 1.0) or self.quantile in (0, 1):
            raise self.refused("quantile", "set it above 0 and below 1")
        for setting in ("regions", "draws"):
            count = getattr(self, setting)
            if isinstance(count, bool) or not isinstance(count, int) or count < 1:
                raise self.refused(setting, "set it to a whole number of 1 or more")
        if self.value is not None and not within(self.value, 0.0, 1e6):
            raise self.refused("value", "set it to 0 or more, per dimension, or to null to calibrate it")
        if self.file is None:
            if self.file_sha256 is not None:
                raise self.refused("file_sha256", "name its file too")
            return
        if self.value is not None:
            raise self.refused("value", "give either a value or a file")
        found = hashlib.sha256(_read(self.file)).hexdigest()
        if self.file_sha256 not in (None, found):
            raise self.refused("file_sha256", f"{self.file} has changed since: it has {found} now")
        # So that a task is known by what the file says and not only by where it lies.
        object.__setattr__(self, "file_sha256", found)

    def check(self, backbone: Backbone, images: ImageSet, method: str) -> None:
        """See `Mitigation.check`."""
        super().check(backbone, images, method)
        check_captions(self.name, images)
        if self.regions > backbone.timesteps:
            raise self.refused("regions", f"set it to {backbone.timesteps} or less, the backbone's timesteps")

    def treatment(self, situation: Situation) -> Treatment:
        """See `Mitigation.treatment`."""
        records = {}
        if self.value is not None:
            limits = [float(self.value)]
        elif self.file is not None:
            limits = read_thresholds(self.file, situation)
        else:
            limits = calibrated(self, situation)
            records[FILE] = record_of(limits, self, situation)
        backbone, empty = situation.backbone, situation.data.empty_state
        return Treatment(hooks=(lambda number: Gate(backbone, empty, limits),), records=records)


class Gate(Hooks):
    """See `NoiseThreshold`.

    Args:
        backbone: With the denoiser as it is being trained.
        empty_state: ``(1, tokens, width)``.
        limits: One for each region of the noise schedule, from little noise to much.
    """

    def __init__(self, backbone: Backbone, empty_state: Tensor, limits: Sequence[float]) -> None:
        self._backbone, self._empty = backbone, empty_state
        self._limits = torch.tensor(limits, dtype=torch.float32, device=empty_state.device)
        self._seen = self._left_out = 0

    def admitted(self, batch: Batch) -> Tensor | None:
        """See `Hooks.admitted`."""
        self._seen += len(batch.t)
        kept = torch.ones(len(batch.t), dtype=torch.bool, device=batch.t.device)
        captioned = torch.nonzero((batch.states != self._empty).flatten(1).any(1)).flatten()
        if not len(captioned):
            return None
        t = batch.t[captioned]
        noisy, _ = self._backbone.noised(batch.latents[captioned], batch.noise[captioned], t)
        pulls = caption_pulls(self._backbone, noisy, t, batch.states[captioned], self._empty)
        kept[captioned] = pulls <= self._limits[region_of(t, len(self._limits), self._backbone.timesteps)]
        left_out = int((~kept).sum())
        self._left_out += left_out
        return kept if left_out else None

    def figures(self) -> dict[str, float]:
        """See `Hooks.figures`."""
        return {"threshold.left_out_share": self._left_out / max(self._seen, 1)}

    def state(self) -> dict[str, Tensor]:
        """See `Hooks.state`."""
        return {"counts": torch.tensor([self._seen, self._left_out])}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """See `Hooks.load`."""
        self._seen, self._left_out = state["counts"].tolist()


def region_of(t: Tensor, regions: int, timesteps: int) -> Tensor:
    """In which of ``regions`` equal parts of the noise schedule timesteps lie, int64 of the shape of ``t``."""
    return t * regions // timesteps


def calibrated(settings: NoiseThreshold, situation: Situation) -> list[float]:
    """A limit for each region, from little noise to much, see `NoiseThreshold`.

    Timesteps, noises and the order of the images depend on the seed and on the region's number alone.

    Args:
        settings: Quantile, regions and draws.
        situation: With the denoiser in its base state; its held-out images are asked about.

    Raises:
        InputError: If no held-out image has a caption.
    """
    backbone, data, limits = situation.backbone, situation.heldout_data, list[float]()
    device = data.latents.device
    for region in range(settings.regions):
        generator = torch_generator(situation.seed, settings.name, region)
        rows = heldout_rows(settings.name, situation, settings.draws, generator).to(device)
        # The timesteps of which `region_of` is this one.
        first, stop = (-(-i * backbone.timesteps // settings.regions) for i in (region, region + 1))
        t = torch.randint(first, stop, (len(rows),), generator=generator).to(device)
        noise = torch.randn((len(rows), *data.latents.shape[1:]), generator=generator).to(device)
        noisy, _ = backbone.noised(data.latents[rows], noise, t)
        limits.append(
            usual_limit(caption_pulls(backbone, noisy, t, data.states[rows], data.empty_state), settings.quantile)
        )
    return limits


def record_of(limits: Sequence[float], settings: NoiseThreshold, situation: Situation) -> dict[str, Any]:
    """Calibrated limits as the JSON values of a threshold file, for runs that shall not calibrate again."""
    return {
        "schema": SCHEMA,
        "task": calibrated_on(situation),
        "quantile": settings.quantile,
        "draws": settings.draws,
        "seed": situation.seed,
        "limits": list(limits),
    }


def read_thresholds(path: str | Path, situation: Situation) -> list[float]:
    """The limits of a threshold file.

    Raises:
        InputError: If there is no such file, it is damaged, of an unknown schema, or of another task.
    """
    remedy = "calibrate again: set mitigation.threshold.file=null"
    try:
        content = json.loads(_read(path))
        schema, task, limits = (content[name] for name in ("schema", "task", "limits"))
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"threshold file {path} is damaged or none", remedy) from error
    if schema != SCHEMA:
        raise InputError(f"threshold file {path} has schema {schema}, this version reads {SCHEMA}", remedy)
    here = calibrated_on(situation)
    if task != here:
        known: Mapping[str, Any] = task if isinstance(task, dict) else {}
        other = ", ".join(name for name, value in here.items() if known.get(name) != value) or "more than is known here"
        raise InputError(f"threshold file {path} is of another task: it differs in {other}", remedy)
    valid = isinstance(limits, list) and limits and all(within(limit, 0.0, math.inf) for limit in limits)
    if not valid or len(limits) > situation.backbone.timesteps:
        raise InputError(f"threshold file {path} is damaged: its limits are {limits}", remedy)
    return [float(limit) for limit in limits]


def calibrated_on(situation: Situation) -> dict[str, Any]:
    """What thresholds belong to, as JSON values: the weights, both sets of images, and how is trained."""
    budget = {name: value for name, value in asdict(situation.budget).items() if name not in _NOT_TRAINING}
    return {
        "backbone_sha256": situation.backbone.sha256,
        "train_sha256": _content_of(situation.images),
        "heldout_sha256": _content_of(situation.heldout),
        "inner": budget,
    }


def _content_of(images: ImageSet) -> str:
    """Of pixels and captions in their order."""
    digest = hashlib.sha256(json.dumps([images.images.shape, images.captions]).encode())
    digest.update(images.images.tobytes())
    return digest.hexdigest()


def _read(path: str | Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InputError(
            f"threshold file {path} cannot be read: {error.strerror}", "name a file that exists"
        ) from error
