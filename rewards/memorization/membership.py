"""Membership: can the images a model was trained on be told from others by how well it denoises them?"""

from __future__ import annotations

from abc import abstractmethod

import torch
from scipy.stats import rankdata
from torch import Tensor
from torchmetrics.utilities import dim_zero_cat

from rewards.calibration import normal, threshold, wilson
from rewards.estimate import Estimate
from rewards.evidence import DenoisingLosses
from rewards.metric import RewardMetric, check_setting
from rewards.reference import Reference
from rewards.sample import Sample


def membership_auc(train: Tensor, heldout: Tensor) -> Estimate:
    """Area under the ROC curve of "a lower score means a member", ties counted half, with DeLong's interval.

    It is the Mann-Whitney statistic: the probability that a training image's score is below a held-out image's. The
    interval is that of DeLong et al. 1988 (Biometrics 44:837), cut to [0, 1]; it has no width where the two are apart.

    Args:
        train: Float ``(n,)``, n > 1: fine-tuned minus base model's denoising loss, on training images.
        heldout: Float ``(m,)``, m > 1: the same on held-out images.
    """
    n, m = len(train), len(heldout)
    ranks = torch.from_numpy(rankdata(torch.cat([train, heldout]).double().numpy()))
    above = (ranks[:n] - torch.from_numpy(rankdata(train.double().numpy()))) / m
    below = (ranks[n:] - torch.from_numpy(rankdata(heldout.double().numpy()))) / n
    return normal(float(1 - above.mean()), float(above.var() / n + below.var() / m), n + m, least=0, most=1)


def membership_tpr(train: Tensor, heldout: Tensor, rate: float = 0.01) -> Estimate:
    """The share of training images recognised when at most ``rate`` of held-out images are taken for members.

    The threshold is `calibration.threshold` of the held-out scores; Wilson's interval. Carlini et al. 2022
    (arXiv:2112.03570) argue for this number: a mean over images hides the few that are surely recognised.

    Args:
        train: Float ``(n,)``: fine-tuned minus base model's denoising loss, on training images.
        heldout: Float ``(m,)``: the same on held-out images.
        rate: False-positive rate, above 0 and below 1.
    """
    flagged = train.double() < threshold(heldout, rate).value
    return wilson(int(flagged.sum()), len(flagged))


class _LossChangeMetric(RewardMetric):
    """What the two metrics share: loss changes (fine-tuned minus base) given in pieces."""

    higher_is_better = False
    needs = frozenset({"losses"})
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    members: list[Tensor]
    others: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("members", default=[], dist_reduce_fx="cat")
        self.add_state("others", default=[], dist_reduce_fx="cat")

    def update(self, changes: Tensor, heldout: bool) -> None:
        """Adds changes of the denoising loss ``(n,)``, of held-out or of training images."""
        (self.others if heldout else self.members).append(changes)

    def shortfall(self, sample: Sample) -> str:
        """See `RewardMetric`."""
        losses = _losses(sample)
        sizes = len(losses.train), len(losses.heldout)
        return (
            f"needs the losses of 2 training and 2 held-out images, got {sizes[0]} and {sizes[1]}"
            if min(sizes) < 2
            else ""
        )

    def estimate(self, sample: Sample) -> Estimate:
        """See `RewardMetric`."""
        losses = _losses(sample)
        return self._estimate(losses.train_change, losses.heldout_change)

    @abstractmethod
    def _estimate(self, members: Tensor, others: Tensor) -> Estimate: ...

    def compute(self) -> Tensor:
        """The value so far."""
        return torch.tensor(self._estimate(dim_zero_cat(self.members), dim_zero_cat(self.others)).value)


def _losses(sample: Sample) -> DenoisingLosses:
    losses = sample.evidence.losses
    assert losses is not None
    return losses


class Membership(_LossChangeMetric):
    """`membership_auc`; needs denoising losses and no generated image. Its null is 1/2.

    Example:
        >>> import torch
        >>> metric = Membership()
        >>> metric.update(torch.tensor([-0.3, -0.1]), heldout=False)
        >>> metric.update(torch.tensor([-0.2, 0.0]), heldout=True)
        >>> metric.compute()
        tensor(0.7500)
    """

    name = "membership"

    def null(self, reference: Reference) -> float:
        """See `RewardMetric`."""
        return 0.5

    def _estimate(self, members: Tensor, others: Tensor) -> Estimate:
        return membership_auc(members, others)


class MembershipTPR(_LossChangeMetric):
    """`membership_tpr`; needs denoising losses and no generated image.

    Its null is ``rate``; with fewer than 1 / rate - 1 held-out images the threshold lets 1 in m + 1 through.

    Args:
        rate: False-positive rate, above 0 and below 1.
    """

    name = "membership_tpr"

    def __init__(self, rate: float = 0.01) -> None:
        super().__init__()
        check_setting("membership_tpr.rate", rate, 0, 1)
        self.rate = rate

    def null(self, reference: Reference) -> float:
        """See `RewardMetric`."""
        return self.rate

    def _estimate(self, members: Tensor, others: Tensor) -> Estimate:
        return membership_tpr(members, others, self.rate)
