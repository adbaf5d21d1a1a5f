"""Early stopping: the fine-tune ends with the weights that denoise held-out images best."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from envs.backbones.base import Backbone, rows_at_once
from envs.batches import TrainingSet
from envs.hooks import Batch
from envs.losses import sample_losses
from envs.mitigations.base import Mitigation, Situation, Stage, Treatment
from envs.seeding import torch_generator


@dataclass(frozen=True)
class EarlyStopping(Mitigation):
    """Every few steps the loss of held-out images is looked at; after some looks in a row without a lower one it ends.

    Prechelt 1998 (Early stopping - but when?), criterion UP with strips of ``every`` steps, but counting looks above
    the lowest so far and not rises in a row. Bonnaire et al., arXiv 2505.17638, show why it helps here: the step at
    which a denoiser generates well does not depend on how many images it has, and the step at which it memorizes does.
    The result is the state at the look with the lowest loss, as it would have been delivered: under ``ema`` the
    average, under ``iet`` the mean after a round, where there is a look after each round whatever ``every`` says. The
    base model itself is no candidate.

    A look is ``passes`` forward passes of single samples without gradients, always of the same held-out images at the
    same timesteps with the same noises, so losses of two looks differ by the model alone; nothing is smoothed. Against
    the training steps' own forward passes that is ``passes / (every * batch_size)`` of them: a tenth at the embedded
    backbone's batch of 8, and about a thirtieth of the time, since training also goes backward. The learning rate
    falls as if training went on to its end.

    The held-out images that it looks at are also what a search judges by; the final table's are others.

    Figures: ``early_stop.step`` after which the result was taken, ``early_stop.looks``, and ``early_stop.loss``, the
    held-out loss of the result.

    Attributes:
        every: Steps between two looks; there is one at the end too. From the fine-tune's steps on it is the only one,
            which is plain training.
        patience: Looks without a new lowest loss after which the fine-tune ends.
        passes: Of a look.
    """

    every: int = 20
    patience: int = 2
    passes: int = 16
    name: ClassVar[str] = "early_stop"
    stage: ClassVar[Stage] = Stage.STEP
    source: ClassVar[str] = "Prechelt 1998; Bonnaire et al., NeurIPS 2025, arXiv 2505.17638"

    def __post_init__(self) -> None:
        for setting in ("every", "patience", "passes"):
            value = getattr(self, setting)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise self.refused(setting, "set it to a whole number of 1 or more")

    def treatment(self, situation: Situation) -> Treatment:
        """See `Mitigation.treatment`."""
        backbone = situation.backbone
        probe = probe_of(situation.heldout_data, self.passes, backbone.timesteps, situation.seed)
        return Treatment(watcher=lambda: LossWatcher(backbone, probe, self.every, self.patience))


def probe_of(data: TrainingSet, passes: int, timesteps: int, seed: int) -> Batch:
    """What a look denoises: images in a random order, again from the start if there are few, each at its own timestep.

    Args:
        data: Held-out images.
        passes: Samples.
        timesteps: Of the noise schedule; the samples' are the midpoints of ``passes`` equal parts of it.
        seed: Of the order and the noises.
    """
    generator = torch_generator(seed, "early stop")
    rows = torch.randperm(len(data.latents), generator=generator).repeat(-(-passes // len(data.latents)))[:passes]
    device = data.latents.device
    latents = data.latents[rows.to(device)]
    noise = torch.randn(latents.shape, generator=generator).to(device)
    t = ((torch.arange(passes) + 0.5) * timesteps / passes).long().to(device)
    return Batch(latents, data.states[rows.to(device)], noise, t, rows)


class LossWatcher:
    """See `EarlyStopping`.

    Args:
        backbone: Whose denoiser learns.
        probe: What a look denoises.
        every: Steps between two looks.
        patience: Looks without a new lowest loss.

    Attributes:
        losses: Of the looks so far.
        steps: At which they were.
    """

    def __init__(self, backbone: Backbone, probe: Batch, every: int, patience: int) -> None:
        self.losses: list[float] = []
        self.steps: list[int] = []
        self._backbone, self._probe, self._every, self._patience = backbone, probe, every, patience

    @property
    def every(self) -> int:
        """See `Watcher`."""
        return self._every

    def look(self, step: int) -> bool:
        """See `Watcher`."""
        self.steps.append(step)
        self.losses.append(self._loss())
        return len(self.losses) - 1 - self.choice() >= self._patience

    def choice(self) -> int:
        """See `Watcher`; of equal losses the first, and a loss that is no number is never chosen over one that is."""
        return min(range(len(self.losses)), key=lambda i: (self.losses[i] != self.losses[i], self.losses[i]))

    def figures(self) -> dict[str, float]:
        """See `Watcher`."""
        chosen = self.choice()
        return {
            "early_stop.step": float(self.steps[chosen]),
            "early_stop.looks": float(len(self.losses)),
            "early_stop.loss": self.losses[chosen],
        }

    @torch.inference_mode()
    def _loss(self) -> float:
        """Mean over the probe."""
        probe, total = self._probe, 0.0
        rows = rows_at_once(probe.latents.shape[-1])
        for start in range(0, len(probe.t), rows):
            part = Batch(*(tensor[start : start + rows] for tensor in probe))
            total += sample_losses(self._backbone, part).double().sum().item()
        return total / len(probe.t)
