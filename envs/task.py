"""What stays fixed in an episode (`SelectionTask`) and what an episode decides (`Schedule`)."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from rewards.errors import InputError

Mask = tuple[bool, ...]
"""One toggle for each layer group, in the task's order: True means that the group may learn."""

CODE_VERSION = 2
"""Part of every task's id: raise it when a change moves the numbers of an evaluation, so that no old one is reused."""

MITIGATION_VERSIONS: Mapping[str, int] = {"ema": 2, "threshold_sampling": 2}
"""Of mitigations whose numbers have moved alone: raise one, from 1, and only evaluations with it are paid for again."""


@dataclass(frozen=True, order=True)
class Schedule:
    """One mask for each equal phase of the inner fine-tune; a single phase is the usual case."""

    phases: tuple[Mask, ...]

    def __post_init__(self) -> None:
        if not self.phases or not self.phases[0] or len({len(mask) for mask in self.phases}) != 1:
            raise ValueError(f"a schedule needs at least one phase, all of one length above 0, got {self.phases}")

    @classmethod
    def constant(cls, mask: Iterable[bool | int]) -> Schedule:
        """One mask for the whole fine-tune."""
        return cls((tuple(bool(bit) for bit in mask),))

    @classmethod
    def from_key(cls, key: str) -> Schedule:
        """The inverse of `key`; ValueError if the text is no key."""
        if set(key) - set("01/"):
            raise ValueError(f"the key of a schedule is made of 0, 1 and /, got {key!r}")
        return cls(tuple(tuple(bit == "1" for bit in mask) for mask in key.split("/")))

    @property
    def key(self) -> str:
        """Phases of 0 and 1 joined by a slash: ``"0101/1111"``."""
        return "/".join("".join("01"[bit] for bit in mask) for mask in self.phases)

    @property
    def learns(self) -> bool:
        """True if some group is on in some phase."""
        return any(any(mask) for mask in self.phases)


@dataclass(frozen=True)
class InnerBudget:
    """The inner fine-tune and the sample that it is judged by.

    Attributes:
        steps: Optimizer steps.
        batch_size: Images a step.
        learning_rate: AdamW's peak.
        warmup: Steps of linear warm-up.
        decay: ``linear`` to 0 after the last step, or ``none``. Without decay the last few batches decide where the
            weights end, and two seeds tell less about a mask.
        weight_decay: AdamW's.
        caption_dropout: Probability that a caption is replaced by the empty one (for guidance).
        images: Generated for each evaluation.
        sampling_steps: Of the backbone's own scheduler.
        guidance_scale: Classifier-free guidance; 1 is none and costs one forward pass a step instead of two.
        loss_draws: Size of the fixed (t, noise) grid at which denoising losses are compared.
        inversions: Training images that are inverted if that is measured, and as many held-out ones.
    """

    steps: int
    batch_size: int
    learning_rate: float
    images: int
    sampling_steps: int
    warmup: int = 0
    decay: Literal["linear", "none"] = "linear"
    weight_decay: float = 0.0
    caption_dropout: float = 0.1
    guidance_scale: float = 1.0
    loss_draws: int = 8
    inversions: int = 8

    def learning_rate_at(self, step: int) -> float:
        """The learning rate of step 0 to ``steps - 1``."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / (self.warmup + 1)
        if self.decay == "none":
            return self.learning_rate
        return self.learning_rate * (self.steps - step) / (self.steps - self.warmup)

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "images", "sampling_steps", "loss_draws", "inversions"):
            if getattr(self, name) < 1:
                raise InputError(f"inner.{name}={getattr(self, name)}", "set it to 1 or more")
        if not 0 < self.learning_rate < math.inf:
            raise InputError(f"inner.learning_rate={self.learning_rate}", "set it above 0 and finite")
        in_range = (
            0 <= self.warmup < self.steps
            and 0 <= self.weight_decay < math.inf
            and 0 <= self.caption_dropout < 1
            and 1 <= self.guidance_scale < math.inf
        )
        if not in_range:
            raise InputError(
                f"inner.warmup={self.warmup} weight_decay={self.weight_decay} caption_dropout={self.caption_dropout} "
                f"guidance_scale={self.guidance_scale}",
                "warmup is 0 to steps - 1, weight_decay 0 or more, caption_dropout in [0, 1), guidance_scale 1 or more",
            )


def mitigation_versions(names: Iterable[str]) -> dict[str, int]:
    """Of those of these mitigations whose version is not 1: part of the identity of what they decide."""
    return {name: MITIGATION_VERSIONS[name] for name in sorted(names) if name in MITIGATION_VERSIONS}


@dataclass(frozen=True)
class SelectionTask:
    """Everything an evaluation depends on but the schedule: backbone, data, method, groups, inner budget and seed.

    Attributes:
        env: The data set's name.
        split_sha256: Hash of the images in each split, so of the data and of the way it was split.
        backbone: Name or path, for people.
        backbone_sha256: Hash of the weights, for the id.
        method: The adaptation method, e.g. ``full``.
        scheme: The group scheme, e.g. ``blocks``.
        groups: The toggles' names in order.
        inner: The inner budget.
        metrics: Names of what is measured, in order.
        judge: The real images that quality and nulls are measured on: ``heldout`` in a search, ``test`` in the end.
        seed: Of batches, noise and sampling: the same for every mask (common random numbers).
        options: Settings of the method (under ``method``, if it has any), of mitigations (under ``mitigations``, by
            name; under ``mitigation_toggles`` the names of those that a mask switches), and others that change numbers;
            JSON values.
    """

    env: str
    split_sha256: str
    backbone: str
    backbone_sha256: str
    method: str
    scheme: str
    groups: tuple[str, ...]
    inner: InnerBudget
    metrics: tuple[str, ...]
    judge: Literal["heldout", "test"] = "heldout"
    seed: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)

    def identity(self) -> dict[str, Any]:
        """What decides an evaluation's numbers, as JSON values; of the backbone its weights, not its path."""
        fields = asdict(self) | {"options": dict(self.options), "code": CODE_VERSION}
        del fields["backbone"]
        versions = mitigation_versions(self.mitigations)
        return fields | ({"mitigation_code": versions} if versions else {})

    @property
    def id(self) -> str:
        """The first 16 hex digits of the SHA-256 of `identity`."""
        return content_hash(self.identity())[:16]

    @property
    def method_settings(self) -> Mapping[str, Any]:
        """The settings of the method; empty for the defaults."""
        settings: Mapping[str, Any] = self.options.get("method", {})
        return settings

    @property
    def mitigations(self) -> Mapping[str, Mapping[str, Any]]:
        """The settings of each mitigation, by name."""
        chosen: Mapping[str, Mapping[str, Any]] = self.options.get("mitigations", {})
        return chosen

    @property
    def mitigation_toggles(self) -> tuple[str, ...]:
        """Names of the mitigations that the last toggles of a mask leave out."""
        return tuple(self.options.get("mitigation_toggles", ()))

    def split(self, mask: Mask) -> tuple[Mask, frozenset[str]]:
        """See `split_mask`."""
        return split_mask(mask, self.mitigation_toggles)

    def evaluation_key(self, schedule: Schedule) -> str:
        """What the store files this schedule's evaluation under."""
        return content_hash({"task": self.identity(), "schedule": schedule.key})

    def parse_mask(self, text: str) -> Mask:
        """Reads ``all``, ``none``, one 0 or 1 a group, or comma-separated group names.

        Raises:
            InputError: If the text is none of these for this task's groups.
        """
        return parse_mask(text, self.groups)


def split_mask(mask: Mask, toggled: Sequence[str]) -> tuple[Mask, frozenset[str]]:
    """The toggles of a mask that are layers, and the names of the mitigations that it leaves out.

    A mitigation's toggle is on where it is left out, so that all on stays plain full fine-tuning.

    Args:
        mask: Of layers first.
        toggled: Names of the mitigations that its last toggles leave out.
    """
    layers = len(mask) - len(toggled)
    return mask[:layers], frozenset(name for name, out in zip(toggled, mask[layers:], strict=True) if out)


def parse_mask(text: str, groups: Sequence[str]) -> Mask:
    """See `SelectionTask.parse_mask`."""
    text = text.strip()
    if text in ("all", "none"):
        return (text == "all",) * len(groups)
    if text and not text.strip("01"):
        if len(text) != len(groups):
            raise InputError(
                f"mask={text} has {len(text)} toggles", f"give {len(groups)}, one each for {', '.join(groups)}"
            )
        return tuple(bit == "1" for bit in text)
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in groups]
    if unknown or not names:
        raise InputError(
            f"mask={text!r} names no layer group {unknown}", f"choose among {', '.join(groups)}, all or none"
        )
    return tuple(group in names for group in groups)


def content_hash(value: Any) -> str:
    """SHA-256 of canonical JSON: sorted keys, no spaces, no NaN."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()
