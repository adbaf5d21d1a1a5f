"""A tiny clinic: six private images, as many held-out ones, and a fine-tune of a few steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from envs.backbones import EMBEDDED
from envs.backbones.base import Backbone
from envs.backbones.latent import LatentBackbone
from envs.backbones.load import load_backbone
from envs.batches import encode
from envs.datasets import SplitDataset, prepare_dataset
from envs.finetune import Trained, finetune, one_pass
from envs.groups import find_groups
from envs.losses import denoising_losses
from envs.methods import Attachment, find_method
from envs.mitigations import Regimen, find_mitigations, prepare_regimen
from envs.seeding import torch_generator
from envs.task import InnerBudget, Schedule

ALL = Schedule.from_key("11111111")
BUDGET = InnerBudget(steps=8, batch_size=4, learning_rate=1e-2, images=4, sampling_steps=3, loss_draws=2)


@pytest.fixture(scope="session")
def clinic() -> SplitDataset:
    options = {"identities": 24, "kinds": ["lesion"]}
    dataset = prepare_dataset(
        "phantom", root=None, size=32, train=6, heldout=6, test=6, seed=0, radius=0.01, options=options
    )
    # Two classes, of four and of two images.
    return dataclasses.replace(dataset, train=dataclasses.replace(dataset.train, labels=np.array([0, 0, 1, 0, 1, 0])))


@dataclass
class Ward:
    """A backbone with a method attached, and what can be done with it.

    Attributes:
        backbone: Its denoiser is changed by what is done.
        attachment: Of the method.
        method: Its name.
        dataset: The images.
        budget: Of a fine-tune.
    """

    backbone: Backbone
    attachment: Attachment
    method: str
    dataset: SplitDataset
    budget: InnerBudget = BUDGET

    def regimen(self, chosen: Mapping[str, Mapping[str, Any]], seed: int = 0) -> Regimen:
        """What these mitigations prepare."""
        train, heldout = self.dataset.train, self.dataset.heldout
        mitigations = find_mitigations(chosen)
        return prepare_regimen(
            mitigations, self.backbone, self.attachment, self.method, train, heldout, self.budget, seed
        )

    def treat(self, chosen: Mapping[str, Mapping[str, Any]], schedule: Schedule = ALL, seed: int = 0) -> Trained:
        """Fine-tunes with these mitigations, and leaves the model so."""
        regimen = self.regimen(chosen, seed)
        manner, data = regimen.treatment.manner, regimen.training_set
        return finetune(self.backbone, self.attachment, schedule, data, self.budget, seed, manner)

    def weights(self) -> dict[str, Tensor]:
        """A copy of the denoiser's parameters."""
        return {name: p.detach().clone() for name, p in self.backbone.denoiser.named_parameters()}

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Takes back what `weights` gave."""
        with torch.no_grad():
            for name, parameter in self.backbone.denoiser.named_parameters():
                parameter.copy_(weights[name])

    def after(self, chosen: Mapping[str, Mapping[str, Any]], **more: Any) -> dict[str, Tensor]:
        """The weights that a treated fine-tune leads to; the model is put back."""
        base = self.weights()
        self.treat(chosen, **more)
        found = self.weights()
        self.load(base)
        return found

    def of(self, **changes: Any) -> Ward:
        """The same with another budget."""
        return dataclasses.replace(self, budget=dataclasses.replace(self.budget, **changes))


MakeWard = Callable[..., Ward]


@pytest.fixture
def open_ward(backbone: LatentBackbone, clinic: SplitDataset) -> MakeWard:
    """Makes the ward of a method, once a test."""

    def make(method: str = "full") -> Ward:
        data = encode(backbone, clinic.train)
        attachment = find_method(method)(
            backbone.denoiser,
            find_groups(backbone.denoiser, "blocks"),
            calibration=lambda: one_pass(backbone, data, BUDGET.batch_size, 0),
        )
        return Ward(backbone, attachment, method, clinic)

    return make


@pytest.fixture
def ward(open_ward: MakeWard) -> Ward:
    """Of full fine-tuning."""
    return open_ward()


@pytest.fixture(scope="session")
def overfitting() -> Ward:
    """The embedded backbone, four private images, and a rate and steps that make it know them by heart."""
    options = {"identities": 48, "kinds": ["lesion"]}
    dataset = prepare_dataset(
        "phantom", root=None, size=64, train=4, heldout=16, test=4, seed=0, radius=0.01, options=options
    )
    backbone = load_backbone(EMBEDDED, name="embedded", device=torch.device("cpu"))
    attachment = find_method("full")(backbone.denoiser, find_groups(backbone.denoiser, "blocks"))
    budget = dataclasses.replace(BUDGET, steps=40, learning_rate=2e-3)
    return Ward(backbone, attachment, "full", dataset, budget)


def losses_after(ward: Ward, chosen: Mapping[str, Mapping[str, Any]]) -> tuple[Tensor, Tensor]:
    """Denoising losses of each held-out image, and of each training image, after a fine-tune; the model is put back."""
    base = ward.weights()
    ward.treat(chosen)
    sets = [encode(ward.backbone, images) for images in (ward.dataset.heldout, ward.dataset.train)]
    heldout, train = (denoising_losses(ward.backbone, d.latents, d.states, draws=8, seed=0) for d in sets)
    ward.load(base)
    return heldout, train


@pytest.fixture(scope="session")
def by_heart(overfitting: Ward) -> tuple[float, float]:
    """Mean losses of held-out and training images after plain training."""
    heldout, train = losses_after(overfitting, {})
    return heldout.mean().item(), train.mean().item()


@pytest.fixture
def vivid(ward: Ward) -> Ward:
    """Trains long enough to memorize images that are nothing like each other.

    An untrained autoencoder makes nearly the same latent of all that it is given.
    """

    def encode_images(images: NDArray[np.uint8]) -> Tensor:
        shape = ward.backbone.latent_shape
        return torch.stack([torch.randn(shape, generator=torch_generator(int(i.sum()), "latent")) for i in images])

    ward.backbone.encode_images = encode_images  # type: ignore[method-assign]
    return ward.of(steps=60, batch_size=6, learning_rate=3e-3, caption_dropout=0.0)


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Bit by bit."""
    assert one.keys() == other.keys()
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())
