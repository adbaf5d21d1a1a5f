"""Mitigations in the long fine-tune: what is prepared, what is refused, and that all others are resumed."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from agents.finetuning.saving import can_fold
from agents.finetuning.settings import EMASettings, TrainingSettings
from agents.finetuning.trainer import Trainer
from agents.finetuning.treatment import LongTreatment, check_schedule, prepare_treatment
from envs.backbones.latent import LatentBackbone
from envs.batches import encode
from envs.course import Training
from envs.datasets import SplitDataset
from envs.generate import Steering
from envs.groups import find_groups
from envs.hooks import Hooks
from envs.methods import find_method
from envs.mitigations import MITIGATIONS, Mitigation, Stage, Treatment, find_mitigations
from envs.mitigations.agc import AntiGradientControl, LossBank
from envs.mitigations.base import Situation
from rewards.errors import InputError
from tests.agents.finetuning.test_hooked_steps import figures, resumed, same_states
from tests.agents.finetuning.test_trainer import INNER, PHASES, SOME, fresh

REFUSED = {"iet", "early_stop", "ema", "dp_sgd"}
"""Mitigations that do not act here."""


class Invented(Mitigation):
    """Does what a test says."""

    name: ClassVar[str] = "invented"
    stage: ClassVar[Stage] = Stage.STEP
    source: ClassVar[str] = "a test"
    gives: ClassVar[Treatment] = Treatment()

    def treatment(self, situation: Situation) -> Treatment:
        return self.gives


def inventing(**parts: Any) -> Mitigation:
    kind: type[Mitigation] = type("Inventing", (Invented,), {"gives": Treatment(**parts)})
    return kind()


class Averaging(Hooks):
    @contextmanager
    def delivered(self, parameters: Sequence[nn.Parameter]) -> Iterator[None]:
        yield

    def optimizer(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        return optimizer


class Optimizing(Hooks):
    def optimizer(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        return optimizer


def other_course(training: Training) -> Mapping[str, float]:
    return {}


@contextmanager
def edit() -> Iterator[Mapping[str, float]]:
    yield {}


def prepared(
    backbone: LatentBackbone,
    clinic: SplitDataset,
    mitigations: Sequence[Mitigation],
    method: str = "full",
    processes: int = 1,
) -> LongTreatment:
    names = frozenset(backbone.denoiser.state_dict())
    attachment = find_method(method)(backbone.denoiser, find_groups(backbone.denoiser, "blocks"))
    budget = dataclasses.replace(INNER, steps=40, batch_size=4)
    return prepare_treatment(
        mitigations,
        backbone,
        attachment,
        method,
        clinic,
        encode(backbone, clinic.train),
        budget,
        0,
        processes=processes,
        foldable=can_fold(backbone.denoiser, attachment, names),
    )


def test_nothing_is_encoded_again_without_mitigations(backbone: LatentBackbone, clinic: SplitDataset) -> None:
    found = prepared(backbone, clinic, ())
    assert (found.mitigations, found.hooks, found.edits, found.steerings) == ((), (), (), ())
    assert torch.equal(found.training_set.latents, encode(backbone, clinic.train).latents)


def test_what_can_act_is_prepared(backbone: LatentBackbone, clinic: SplitDataset) -> None:
    steering = Steering()
    mitigations = (AntiGradientControl(), inventing(edits=(edit,), steerings=(steering,)))
    found = prepared(backbone, clinic, mitigations)
    assert found.mitigations == mitigations
    assert [type(hook) for hook in found.hooks] == [LossBank]
    assert (found.edits, found.steerings) == ((edit,), (steering,))


def test_what_is_trained_on_may_be_other_images(backbone: LatentBackbone, clinic: SplitDataset) -> None:
    class Halving(Invented):
        def prepared(self, images: Any, seed: int) -> Any:
            return images.take(range(3))

        def compared(self, before: Any, after: Any) -> Mapping[str, float]:
            return {"invented.left_out": float(len(before) - len(after))}

    found = prepared(backbone, clinic, [Halving()])
    assert len(found.training_set.latents) == 3
    assert found.figures == {"invented.left_out": 3.0}
    assert len(clinic.train) == 6


@pytest.mark.parametrize(
    ("parts", "named"),
    [
        ({"course": other_course}, "invented trains in a course of its own, .* leave it out"),
        ({"watcher": lambda: None}, r"invented looks at the model .* set stop\.metric"),
        ({"hooks": (lambda number: Averaging(),)}, r"invented ends with other weights .* set ema\.decay"),
        ({"hooks": (lambda number: Optimizing(),)}, "invented brings its own optimizer — .*inner fine-tunes"),
    ],
)
def test_what_cannot_act_is_refused(
    backbone: LatentBackbone, clinic: SplitDataset, parts: dict[str, Any], named: str
) -> None:
    with pytest.raises(InputError, match=f"mitigation={named}") as caught:
        prepared(backbone, clinic, [inventing(**parts), AntiGradientControl()])
    assert "\n" not in str(caught.value)


def test_a_part_of_hooks_that_the_trainer_does_not_know_is_refused(
    backbone: LatentBackbone, clinic: SplitDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Newer(Hooks):
        def later(self) -> None: ...

    monkeypatch.setattr(Hooks, "later", lambda self: None, raising=False)
    assert prepared(backbone, clinic, [inventing(hooks=(lambda number: Hooks(),))]).hooks
    with pytest.raises(InputError, match="mitigation=invented acts where only inner fine-tunes let it"):
        prepared(backbone, clinic, [inventing(hooks=(lambda number: Newer(),))])


def test_hooks_in_several_processes_are_refused(backbone: LatentBackbone, clinic: SplitDataset) -> None:
    steered = inventing(steerings=(Steering(),))
    assert prepared(backbone, clinic, [steered], processes=2).steerings
    with pytest.raises(InputError, match=r"mitigation=agc acts in the steps, and 2 processes .* launch one process"):
        prepared(backbone, clinic, [steered, AntiGradientControl()], processes=2)


def test_edits_of_a_model_of_which_an_adapter_alone_is_saved_are_refused(
    backbone: LatentBackbone, clinic: SplitDataset
) -> None:
    with pytest.raises(InputError, match="mitigation=invented changes the trained model's own weights"):
        prepared(fresh(backbone), clinic, [inventing(edits=(edit,))], method="adapter")
    assert prepared(backbone, clinic, [inventing(edits=(edit,))], method="lora").edits


def test_several_phases_are_refused() -> None:
    check_schedule((), PHASES)
    check_schedule([AntiGradientControl()], SOME)
    with pytest.raises(InputError, match=f"mitigation=agc with the 2 phases of {PHASES.key}"):
        check_schedule([AntiGradientControl()], PHASES)


# Every mitigation there is.


@pytest.mark.parametrize("name", MITIGATIONS)
def test_every_mitigation_is_refused_or_resumed_to_the_last_bit(
    few: LatentBackbone, clinic: SplitDataset, training: TrainingSettings, ema: EMASettings, tmp_path: Path, name: str
) -> None:
    own = {"iet": {"shards": 2}}.get(name, {})
    if name in REFUSED:
        with pytest.raises(InputError, match=f"mitigation={name} "):
            prepared(few, clinic, find_mitigations({name: own}))
        return

    def trained(backbone: LatentBackbone) -> Trainer:
        chosen = prepared(backbone, clinic, find_mitigations({name: own}))
        attachment = find_method("full")(backbone.denoiser, find_groups(backbone.denoiser, "blocks"))
        return Trainer(
            backbone,
            attachment,
            SOME,
            chosen.training_set,
            training.budget(INNER),
            training,
            ema,
            Accelerator(cpu=True),
            3,
            chosen.hooks,
        )

    whole, rest = resumed(trained, few, tmp_path, 6, 4)
    assert same_states(whole, rest)
    assert figures(whole) == figures(rest)
