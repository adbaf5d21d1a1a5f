from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from envs.backbones.latent import LatentBackbone
from envs.batches import encode
from envs.mitigations import find_mitigations
from envs.mitigations.base import Situation
from envs.mitigations.caption_noise import KINDS, CaptionNoise, NoisyCaptions, altered, words_of
from rewards.errors import InputError
from tests.envs.mitigations.conftest import Ward, same

WORDS = ["quartz", "zephyr", "onyx"]
texts = st.lists(st.sampled_from(["a", "red", "nevus", "of", "skin"]), min_size=1, max_size=6).map(" ".join)


@given(caption=texts, kind=st.sampled_from(KINDS), words=st.integers(1, 4), seed=st.integers(0, 99))
def test_what_happens_to_the_words(caption: str, kind: str, words: int, seed: int) -> None:
    found = altered(caption, kind, words, WORDS, torch.Generator().manual_seed(seed)).split()
    own = caption.split()
    foreign = [word for word in found if word in WORDS]
    if kind == "replace":
        assert len(found) == len(own)
        assert len(foreign) == min(words, len(own))
        assert all(new == old for new, old in zip(found, own, strict=True) if new not in WORDS)
        return
    assert len(found) == len(own) + words
    rest = iter(found)
    assert all(word in rest for word in own), "the caption's words are there in their order"
    assert len(foreign) == (words if kind == "add" else 0)
    assert kind == "add" or set(found) == set(own)


def test_random_words_are_words_of_the_tokenizer(backbone: LatentBackbone) -> None:
    words = words_of(backbone)
    assert {"melanoma", "chest", "left"} <= set(words)
    assert words == sorted(set(words))
    for word in words[:20]:
        assert len(backbone.tokenizer(word).input_ids) == 3, "between the first token and the last it is one"


def hook(ward: Ward, number: int = 0, seed: int = 0, **settings: object) -> NoisyCaptions:
    (found,) = find_mitigations({"caption_noise": settings})
    assert isinstance(found, CaptionNoise)
    vocabulary = words_of(ward.backbone)
    return NoisyCaptions(found, situation(ward, seed), vocabulary, number)


def situation(ward: Ward, seed: int = 0) -> Situation:
    train, heldout = ward.dataset.train, ward.dataset.heldout
    sets = train, encode(ward.backbone, train), heldout, encode(ward.backbone, heldout)
    return Situation(ward.backbone, ward.attachment, ward.method, *sets, ward.budget, seed)


def test_only_captions_that_were_altered_change_and_they_differ_from_step_to_step(ward: Ward) -> None:
    states = situation(ward).data.states
    rows = torch.arange(len(states))
    one = hook(ward, probability=0.5, std=0.0, kind="add")
    moved = torch.stack([(one.states(states, rows) != states).flatten(1).any(1) for _ in range(40)])
    assert 0.35 < moved.double().mean() < 0.65
    assert one.figures()["caption_noise.altered_share"] == pytest.approx(float(moved.double().mean()))
    always = hook(ward, probability=1.0, std=0.0, kind="add")
    assert not torch.equal(always.states(states, rows), always.states(states, rows))
    assert torch.equal(states, situation(ward).data.states), "what was given is left as it was"


def test_the_states_are_those_of_the_altered_captions(ward: Ward) -> None:
    """One word twice in a row is the same wherever it is put, so what is encoded can be foretold."""
    captions = ("red",) * 6
    dataset = dataclasses.replace(ward.dataset, train=dataclasses.replace(ward.dataset.train, captions=captions))
    ward = dataclasses.replace(ward, dataset=dataset)
    found = hook(ward, probability=1.0, std=0.0, kind="repeat").states(situation(ward).data.states, torch.arange(6))
    torch.testing.assert_close(found, ward.backbone.encode_captions(["red red red"] * 6))


def test_noise_has_its_deviation_and_spares_empty_captions(ward: Ward) -> None:
    train = ward.dataset.train
    captions = ("", *train.captions[1:])
    dataset = dataclasses.replace(ward.dataset, train=dataclasses.replace(train, captions=captions))
    ward = dataclasses.replace(ward, dataset=dataset)
    states = situation(ward).data.states
    change = hook(ward, probability=0.0, std=0.3).states(states, torch.arange(6)) - states
    assert not change[0].any()
    assert change[1:].std().item() == pytest.approx(0.3, rel=0.05)
    assert not (hook(ward, probability=1.0, std=0.0).states(states, torch.arange(6)) != states)[0].any()


def test_every_learner_draws_its_own_and_the_same_every_time(ward: Ward) -> None:
    states, rows = situation(ward).data.states, torch.arange(6)
    first, again, second, other = (
        hook(ward, number=n, seed=s).states(states, rows) for n, s in ((0, 0), (0, 0), (1, 0), (0, 1))
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    assert not torch.equal(first, other)


def test_a_batch_without_rows(ward: Ward) -> None:
    states = situation(ward).data.states[:0]
    assert not len(hook(ward).states(states, torch.arange(0)))


def test_without_words_and_noise_it_is_plain_training(ward: Ward) -> None:
    assert same(ward.after({"caption_noise": {"probability": 0, "std": 0}}), ward.after({})), "bit by bit"
    assert not same(ward.after({"caption_noise": {}}), ward.after({}))


@pytest.mark.parametrize("settings", [{"kind": "shout"}, {"probability": 1.5}, {"words": 0}, {"std": -1}, {"std": "1"}])
def test_settings_out_of_range(settings: dict[str, object]) -> None:
    (name,) = settings
    with pytest.raises(InputError, match=rf"mitigation\.caption_noise\.{name}="):
        find_mitigations({"caption_noise": settings})


def test_images_without_captions(ward: Ward) -> None:
    train = dataclasses.replace(ward.dataset.train, captions=("",) * 6)
    ward = dataclasses.replace(ward, dataset=dataclasses.replace(ward.dataset, train=train))
    with pytest.raises(InputError, match="caption_noise works on captions, and none of the 6 training images has one"):
        ward.regimen({"caption_noise": {}})
