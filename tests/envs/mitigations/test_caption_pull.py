from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from envs.batches import TrainingSet
from envs.finetune import Trained, finetune
from envs.mitigations import find_mitigations
from envs.mitigations.base import Situation, combined
from envs.mitigations.caption_pull import caption_pull, caption_pulls, check_captions, heldout_rows, usual_limit
from envs.mitigations.threshold_sampling import Descent
from envs.seeding import torch_generator
from rewards.errors import InputError
from tests.envs.mitigations.conftest import ALL, MakeWard, Ward
from tests.envs.mitigations.test_caption_noise import situation


def test_the_pull_is_the_norm_of_the_difference_per_dimension() -> None:
    one, other = torch.zeros(2, 4, 3, 3), torch.zeros(2, 4, 3, 3)
    other[1] = 0.5
    torch.testing.assert_close(caption_pull(one, other), torch.tensor([0.0, 0.5]))


def test_the_pull_of_a_caption_is_what_the_denoiser_says_of_it(ward: Ward) -> None:
    data = situation(ward).data
    noisy = torch.randn(data.latents[:3].shape, generator=torch.Generator().manual_seed(0))
    t, states = torch.tensor([100, 500, 900]), data.states[:3].clone()
    states[1] = data.empty_state
    found = caption_pulls(ward.backbone, noisy, t, states, data.empty_state)
    for i in range(3):
        row = slice(i, i + 1)
        with torch.no_grad():
            one, other = (ward.backbone.predict(noisy[row], t[row], each) for each in (states[row], data.empty_state))
        torch.testing.assert_close(found[i], (one - other).square().mean().sqrt(), rtol=1e-4, atol=1e-6)
    assert found[1] < 1e-6 < found[0]


def test_a_limit_is_exceeded_by_few_of_what_it_is_calibrated_on() -> None:
    pulls = torch.arange(1.0, 100.0)
    assert usual_limit(pulls, 0.95) == 95
    assert usual_limit(pulls[:3], 0.95) == 3, "of few it is the largest"


def test_heldout_images_with_captions_come_in_turn(ward: Ward) -> None:
    case = situation(ward)
    captions = ("", *case.heldout.captions[1:4], " ", case.heldout.captions[5])
    case = dataclasses.replace(case, heldout=dataclasses.replace(case.heldout, captions=captions))
    rows = heldout_rows("threshold", case, 10, torch_generator(0, "test"))
    assert len(rows) == 10
    assert torch.bincount(rows, minlength=6).tolist()[0::4] == [0, 0]
    assert sorted(torch.bincount(rows).tolist()) == [0, 0, 2, 2, 3, 3]


def test_one_caption_is_enough(ward: Ward) -> None:
    train = ward.dataset.train
    check_captions("threshold", dataclasses.replace(train, captions=("", "", "nevus", "", "", "")))
    with pytest.raises(InputError, match="threshold works on captions, and none of the 6 training images has one"):
        check_captions("threshold", dataclasses.replace(train, captions=(" ",) * 6))


def memorizable(ward: Ward) -> Situation:
    """Two latents of one colour each, whose captions tell them apart."""
    case, backbone = situation(ward), ward.backbone
    captions = "chest radiograph of a child", "melanoma, brown skin"
    colours = torch.randn((2, 4, 1, 1), generator=torch.Generator().manual_seed(0))
    states, empty = backbone.encode_captions(captions), backbone.encode_captions([""])
    data = TrainingSet(colours.expand(2, *backbone.latent_shape).contiguous(), states, empty)
    return dataclasses.replace(case, images=dataclasses.replace(case.images.take([0, 4]), captions=captions), data=data)


def first_pulls(case: Situation, states: Tensor) -> Tensor:
    """At the first step of the sampler, of the model as it is."""
    noise = torch.randn(case.data.latents.shape, generator=torch.Generator().manual_seed(0))
    return caption_pulls(case.backbone, noise, torch.tensor([999, 999]), states, case.data.empty_state)


@pytest.mark.slow
def test_each_lowers_how_much_the_captions_of_an_overfitted_model_pull(ward: Ward) -> None:
    """Two images, learned until their captions alone call them up: each of the three takes a quarter off or more."""
    ward = ward.of(steps=100, caption_dropout=0.2)
    case, base = memorizable(ward), ward.weights()

    def after(chosen: Mapping[str, Mapping[str, Any]]) -> tuple[Trained, float]:
        ward.load(base)
        manner = combined([each.treatment(case) for each in find_mitigations(chosen)]).manner
        trained = finetune(ward.backbone, ward.attachment, ALL, case.data, ward.budget, 0, manner)
        return trained, float(first_pulls(case, case.data.states).mean())

    untrained = float(first_pulls(case, case.data.states).mean())
    _, plain = after({})
    assert plain > 5 * untrained, "it has overfitted"
    noise = torch.randn(case.data.latents.shape, generator=torch.Generator().manual_seed(0))
    descent = Descent(0.0, 0.05, 10, ward.budget.sampling_steps, 2)
    states = descent.states(ward.backbone, case.data.states, case.data.empty_state, noise)
    assert float(first_pulls(case, states).mean()) < 0.75 * plain
    noisy, pull = after({"caption_noise": {"probability": 1.0, "words": 6, "std": 2.0}})
    assert noisy.figures == {"caption_noise.altered_share": 1.0}
    assert pull < 0.75 * plain
    gated, pull = after({"threshold": {"value": 0.1}})
    assert 0.05 < gated.figures["threshold.left_out_share"] < 0.8
    assert pull < 0.75 * plain


def test_they_go_together_and_with_learners_that_share_what_they_learn(ward: Ward) -> None:
    chosen = {
        "caption_noise": {},
        "threshold": {"regions": 2, "draws": 4},
        "iet": {"shards": 2, "rounds": 2},
        "agc": {},
        "threshold_sampling": {"draws": 4},
        "guidance": {},
    }
    trained = ward.treat(chosen)
    names = {"caption_noise.altered_share", "threshold.left_out_share", "iet.sequential_steps", "agc.skipped_share"}
    assert trained.figures.keys() == names
    assert len(ward.regimen(chosen).treatment.steerings) == 2


@pytest.mark.parametrize("method", ["adapter", "attention", "bias_norm", "difffit", "dora", "lora", "svdiff"])
def test_they_go_with_every_method(open_ward: MakeWard, method: str) -> None:
    ward = open_ward(method).of(steps=2)
    base = {name: p.detach().clone() for name, p in ward.attachment.selected((True,) * 8).items()}
    trained = ward.treat({"caption_noise": {}, "threshold": {"value": 10.0}})
    assert trained.steps == 2
    assert any(not torch.equal(p, base[name]) for name, p in ward.attachment.selected((True,) * 8).items())
    case, noise = situation(ward), torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    states = Descent(0.0, 0.05, 2, 3, 2).states(ward.backbone, case.data.states[:2], case.data.empty_state, noise)
    assert (first_pulls(memorizable(ward), states) < first_pulls(memorizable(ward), case.data.states[:2])).all()


@pytest.mark.parametrize("name", ["caption_noise", "threshold", "threshold_sampling"])
def test_a_model_without_text(ward: Ward, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(ward.backbone), "conditional", False)
    with pytest.raises(InputError, match=f"mitigation={name} works on captions, and tiny takes none"):
        ward.regimen({name: {}})
    assert ward.regimen({"guidance": {}}).treatment.steerings
