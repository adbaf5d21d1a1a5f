"""Differentially private SGD: no image's gradient counts for more than a bound, and noise hides what it counts for."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from envs.backbones.base import Backbone
from envs.datasets.base import ImageSet
from envs.hooks import Hooks
from envs.mitigations.base import Mitigation, Situation, Stage, Treatment, within
from envs.mitigations.opacus_parts import DPOptimizer, RDPAccountant, get_noise_multiplier
from envs.mitigations.sample_gradients import check_sample_gradients, sample_gradients
from envs.seeding import torch_generator
from rewards.errors import InputError

_ORDERS = [1 + i / 10 for i in range(1, 100)] + list(range(11, 64)) + [2**i for i in range(6, 14)]
"""Of Renyi divergences, the best of which gives epsilon: opacus' own, and larger ones for small epsilon."""
_TOLERANCE = 0.01


@dataclass(frozen=True)
class DifferentiallyPrivateSGD(Mitigation):
    """Every image's gradient is cut to a norm, noise is added to their sum, and the cost in privacy is accounted for.

    Abadi et al., CCS 2016, arXiv 1607.00133, algorithm 1, through opacus, with AdamW taking the steps. Each image is
    in a batch with probability batch size / n, independently (Poisson sampling, which the accountant assumes); the
    noise's standard deviation is ``noise_multiplier`` times the norm. The figure ``dp_sgd.epsilon`` is the Renyi
    accountant's bound (Mironov, arXiv 1702.07476) at ``dp_sgd.delta``, for adding or taking away one image.

    What the figure does not cover. It is about one model: choosing among many by measurements on the private images
    costs more. It is about one image: of a patient with k images the bound is weaker. And all noise follows from the
    task's seed, so that a run can be repeated: there is no guarantee against someone who knows the seed, or who gets
    two models of it.

    After training, every selected parameter must have moved and no frozen one may have: with adapters, opacus has
    been reported to train something else than what was asked for, without an error (opacus issues 820 and 827).

    Attributes:
        noise_multiplier: Above 0; None if ``epsilon`` is given.
        epsilon: To end with, in (0, 1000]: the noise follows from it, the steps and the batch size. None if
            ``noise_multiplier`` is given.
        max_grad_norm: Above 0: the norm that each image's gradient over all selected parameters is cut to.
        delta: In (0, 1 / n); None for 1 / (10 n), n training images.
    """

    noise_multiplier: float | None = 1.0
    epsilon: float | None = None
    max_grad_norm: float = 1.0
    delta: float | None = None
    name: ClassVar[str] = "dp_sgd"
    stage: ClassVar[Stage] = Stage.STEP
    source: ClassVar[str] = "Abadi et al., CCS 2016, arXiv 1607.00133"
    excludes: ClassVar[Mapping[str, str]] = {
        "agc": "whether an image is learned from depends on the losses of others, which the guarantee does not cover",
        "threshold": "its threshold is calibrated on private images, which the guarantee does not cover",
        "deduplicate": "one image decides whether another stays, which the guarantee does not cover",
        "iet": "the accountant knows one learner on all images, not several on shards",
        "early_stop": "it chooses a state by looking at private images, which the guarantee does not cover",
        "prune_subspace": "it chooses weights by looking at private images, which the guarantee does not cover",
        "guidance": "it compares with private images while sampling, which the guarantee does not cover",
    }

    def __post_init__(self) -> None:
        if (self.noise_multiplier is None) == (self.epsilon is None):
            both = f"mitigation.dp_sgd.noise_multiplier={self.noise_multiplier} and epsilon={self.epsilon}"
            raise InputError(both, "set exactly one of them, and the other to null: either follows from the other")
        if self.noise_multiplier is not None and not within(self.noise_multiplier, 1e-2, 1e6):
            raise self.refused(
                "noise_multiplier", "set it to 0.01 or more: 1 is usual, and without noise use no dp_sgd"
            )
        if self.epsilon is not None and not within(self.epsilon, 1e-3, 1e3):
            raise self.refused("epsilon", "set it from 0.001 to 1000: below 10 it means something")
        if not within(self.max_grad_norm, 1e-9, 1e9):
            raise self.refused("max_grad_norm", "set it above 0: 1 is usual")
        if self.delta is not None and not within(self.delta, 1e-300, 1.0):
            raise self.refused("delta", "set it above 0 and below 1 / n, or to null for 1 / (10 n)")

    def check(self, backbone: Backbone, images: ImageSet, method: str) -> None:
        """See `Mitigation.check`."""
        super().check(backbone, images, method)
        if method == "importance":
            raise InputError(
                "mitigation=dp_sgd with method=importance, which chooses parameters by the private images",
                "choose another method: the guarantee would not cover that choice",
            )
        if backbone.execution.options:
            (name, value), *_ = backbone.execution.options.items()
            raise InputError(
                f"mitigation=dp_sgd with backbone.{name}={value}: opacus takes gradients of single images "
                "in plain single precision only",
                f"leave backbone.{name} out",
            )
        if self.delta is not None and self.delta * len(images) >= 1:
            raise self.refused(
                "delta", f"set it below 1 / {len(images)}: giving one of {len(images)} images away would be allowed"
            )

    def treatment(self, situation: Situation) -> Treatment:
        """See `Mitigation.treatment`; it tries opacus on the method, with held-out images."""
        check_sample_gradients(situation.backbone, situation.attachment, situation.method, situation.heldout_data)
        images, budget = len(situation.images), situation.budget
        rate, delta = min(1.0, budget.batch_size / images), self.delta_of(images)
        multiplier = self._multiplier(rate, budget.steps, delta)

        def hooks(number: int) -> PrivateSteps:
            generator = torch_generator(situation.seed, self.name, number)
            return PrivateSteps(
                situation.backbone.denoiser, multiplier, self.max_grad_norm, rate, images, delta, generator
            )

        return Treatment(hooks=(hooks,))

    def delta_of(self, images: int) -> float:
        """The one to account at, of this number of training images."""
        return 1 / (10 * images) if self.delta is None else self.delta

    def _multiplier(self, rate: float, steps: int, delta: float) -> float:
        if self.noise_multiplier is not None:
            return self.noise_multiplier
        assert self.epsilon is not None
        try:
            with _quiet():
                return float(
                    get_noise_multiplier(
                        target_epsilon=self.epsilon,
                        target_delta=delta,
                        sample_rate=rate,
                        steps=steps,
                        epsilon_tolerance=_TOLERANCE * self.epsilon,
                        alphas=_ORDERS,
                    )
                )
        except ValueError as error:
            raise self.refused(
                "epsilon", f"set it higher: no noise reaches it in {steps} steps at {delta=:.2g}"
            ) from error


class PrivateSteps(Hooks):
    """See `DifferentiallyPrivateSGD`.

    Args:
        denoiser: Whose parameters learn.
        noise_multiplier: See there.
        max_grad_norm: See there.
        rate: Probability that an image is in a batch.
        images: That there are.
        delta: See there.
        generator: Of the noise.
    """

    def __init__(
        self,
        denoiser: nn.Module,
        noise_multiplier: float,
        max_grad_norm: float,
        rate: float,
        images: int,
        delta: float,
        generator: torch.Generator,
    ) -> None:
        self._denoiser, self._generator = denoiser, generator
        self._noise_multiplier, self._max_grad_norm = noise_multiplier, max_grad_norm
        self._rate, self._images, self._delta = rate, images, delta
        self._accountant = RDPAccountant()
        self._steps = 0
        self._optimizer: NoisyOptimizer | None = None
        self._is_empty = False

    def drawn(self, count: int, generator: torch.Generator) -> Tensor:
        """See `Hooks.drawn`: each image with the same probability, independently.

        Where that is none, an image stands in whose gradient is then left out: the step is one of noise alone, which is
        part of what is accounted for.
        """
        found = torch.nonzero(torch.rand(count, generator=generator) < self._rate)[:, 0]
        self._is_empty = not len(found)
        return torch.zeros(1, dtype=torch.long) if self._is_empty else found

    @contextmanager
    def learning(self) -> Iterator[None]:
        """See `Hooks.learning`.

        Raises:
            RuntimeError: If on leaving a selected parameter has not moved, or another one has.
        """
        if self._optimizer is not None:
            self._optimizer.begin()
        steps, before = self._steps, _hashes(self._denoiser)
        with sample_gradients(self._denoiser):
            yield
        if self._steps > steps:
            check_moved(self._denoiser, before)

    def optimizer(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """See `Hooks.optimizer`."""
        self._optimizer = NoisyOptimizer(
            optimizer,
            noise_multiplier=self._noise_multiplier,
            max_grad_norm=self._max_grad_norm,
            expected_batch_size=self._rate * self._images,
            generator=self._generator,
        )
        self._optimizer.is_empty = lambda: self._is_empty
        return self._optimizer

    def stepped(self, parameters: Sequence[nn.Parameter]) -> None:
        """See `Hooks.stepped`."""
        self._steps += 1
        self._accountant.step(noise_multiplier=self._noise_multiplier, sample_rate=self._rate)

    def figures(self) -> dict[str, float]:
        """See `Hooks.figures`."""
        with _quiet():
            epsilon = float(self._accountant.get_epsilon(self._delta, alphas=_ORDERS))
        return {
            "dp_sgd.epsilon": epsilon,
            "dp_sgd.delta": self._delta,
            "dp_sgd.noise_multiplier": self._noise_multiplier,
        }


class NoisyOptimizer(DPOptimizer):  # type: ignore[misc]
    """opacus' own, with noise drawn on the CPU, the same on every device, and batches that nothing is learned from."""

    is_empty: Callable[[], bool] = staticmethod(lambda: False)
    """Whether the batch is to be taken as one of no images."""

    def clip_and_accumulate(self) -> None:
        """The sum of the gradients, each cut to the norm."""
        if self.is_empty():
            for parameter in self.params:
                parameter.grad_sample = parameter.grad_sample[:0]
        super().clip_and_accumulate()

    def add_noise(self) -> None:
        """Adds it to the sum."""
        scale = self.noise_multiplier * self.max_grad_norm
        for parameter in self.params:
            noise = torch.randn(parameter.shape, generator=self.generator) * scale
            parameter.grad = parameter.summed_grad + noise.to(parameter.device, parameter.dtype)

    def begin(self) -> None:
        """Gives what learns the attribute back that it loses whenever the learner pauses."""
        for parameter in self.params:
            parameter.summed_grad = None


def check_moved(denoiser: nn.Module, before: Mapping[str, bytes]) -> None:
    """Whether exactly those parameters that require gradients have changed.

    Args:
        denoiser: After steps.
        before: `_hashes` of it before them.

    Raises:
        RuntimeError: If not.
    """
    after = _hashes(denoiser)
    for name, parameter in denoiser.named_parameters():
        moved = after[name] != before[name]
        if moved != parameter.requires_grad:
            what = "is frozen and has moved" if moved else "was selected and has not moved"
            raise RuntimeError(f"mitigation=dp_sgd: {name} {what}: what was trained is not what was asked for")


def _hashes(denoiser: nn.Module) -> dict[str, bytes]:
    """Of each parameter, to the last bit: copies would double the model's memory."""
    return {name: _sha256(parameter.detach()) for name, parameter in denoiser.named_parameters()}


def _sha256(tensor: Tensor) -> bytes:
    return hashlib.sha256(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()).digest()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without opacus' warning that another order might give a smaller bound: what it gives is a bound all the same."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Optimal order is")
        yield
