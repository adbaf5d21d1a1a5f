from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from envs.batches import TrainingSet, encode
from envs.finetune import finetune, one_pass
from envs.groups import find_groups
from envs.losses import denoising_losses
from envs.methods import METHODS, find_method
from envs.mitigations import find_mitigations
from envs.mitigations.effective import KINDS, effective_weight, layers_of, zeroed
from envs.mitigations.prune_subspace import SubspacePruning
from envs.seeding import torch_generator
from rewards.errors import InputError
from tests.envs.mitigations.conftest import ALL, MakeWard, Ward, same


def open_any(open_ward: MakeWard, method: str) -> Ward:
    if method != "importance":
        return open_ward(method)
    ward = dataclasses.replace(open_ward("full"), method=method)
    data, denoiser = encode(ward.backbone, ward.dataset.train), ward.backbone.denoiser
    ward.attachment = find_method(method, {"share": 0.2})(
        denoiser, find_groups(denoiser, "blocks"), calibration=lambda: one_pass(ward.backbone, data, 4, 0)
    )
    return ward


def move(ward: Ward) -> None:
    """What a fine-tune might have done to what the method trains."""
    generator = torch_generator(0, "moved")
    for parameters in ward.attachment.parameters:
        for parameter in parameters.values():
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)


def losses_of(ward: Ward, data: TrainingSet) -> Tensor:
    return denoising_losses(ward.backbone, data.latents, data.states, draws=8, seed=0)


@torch.no_grad()
def output(ward: Ward) -> Tensor:
    data = encode(ward.backbone, ward.dataset.heldout)
    return ward.backbone.predict(data.latents, torch.arange(len(data.latents)) * 150, data.states)


@contextmanager
def pruned(ward: Ward, settings: Mapping[str, Any]) -> Iterator[Mapping[str, float]]:
    """The model as it stands, pruned."""
    (edit,) = ward.regimen({"prune_subspace": settings}).treatment.edits
    with edit() as figures:
        yield figures


@pytest.mark.parametrize("method", METHODS)
def test_the_effective_weight_is_what_a_layer_computes_with(open_ward: MakeWard, method: str) -> None:
    ward = open_any(open_ward, method)
    move(ward)
    before = ward.weights()
    for name, layer in layers_of(ward.backbone.denoiser, "all").items():
        weight = effective_weight(layer)
        x = torch.randn(2, weight.shape[1], *((8, 8) if weight.ndim == 4 else ()), generator=torch_generator(0, name))
        if getattr(layer, "groups", 1) > 1:
            continue  # an adapter's own
        with torch.no_grad():
            moved = layer.forward(x) - layer.forward(torch.zeros_like(x))  # adapters hook onto the call
        product = (
            nn.functional.linear(x, weight)
            if weight.ndim == 2
            else nn.functional.conv2d(x, weight, None, *geometry(layer))
        )
        torch.testing.assert_close(moved, product, atol=1e-4, rtol=1e-3)
    assert same(before, ward.weights())


def geometry(layer: Any) -> tuple[Any, Any]:
    base = getattr(layer, "base_layer", layer)
    return base.stride, base.padding


@pytest.mark.parametrize("method", METHODS)
def test_inside_the_entries_are_zero_and_outside_nothing_has_changed(open_ward: MakeWard, method: str) -> None:
    ward = open_any(open_ward, method)
    move(ward)
    denoiser = ward.backbone.denoiser
    before, plain, layers = ward.weights(), output(ward), layers_of(denoiser, "all")
    effective = {name: effective_weight(layer) for name, layer in layers.items()}
    generator = torch_generator(0, "masks")
    masks = {name: torch.rand(weight.shape, generator=generator) < 0.1 for name, weight in effective.items()}
    masks["conv_in"] = torch.zeros_like(masks["conv_in"])
    with zeroed(layers, masks):
        found = {name: effective_weight(layer) for name, layer in layers.items()}
        changed = output(ward)
    for name, weight in found.items():
        assert not weight[masks[name]].any(), name
        torch.testing.assert_close(weight[~masks[name]], effective[name][~masks[name]], atol=1e-6, rtol=1e-5)
    assert (changed - plain).abs().max() > 1e-4
    assert same(ward.weights(), before), "bit by bit"
    assert torch.equal(output(ward), plain)
    assert not any(getattr(layer, "merged", False) for layer in denoiser.modules())


@pytest.mark.parametrize("method", METHODS)
def test_it_prunes_what_a_method_trained(open_ward: MakeWard, method: str) -> None:
    ward = open_any(open_ward, method)
    move(ward)
    before, plain = ward.weights(), output(ward)
    with pruned(ward, {"ratio": 0.1, "layers": "all", "flagged": "all", "timesteps": 2}) as figures:
        changed = output(ward)
    assert 0 < figures["prune_subspace.pruned_share"] <= 0.2
    assert (changed - plain).abs().max() > 1e-4
    assert same(ward.weights(), before)
    assert torch.equal(output(ward), plain)


def test_after_an_error_inside_too(open_ward: MakeWard) -> None:
    ward = open_ward("lora")
    move(ward)
    before = ward.weights()

    def fail() -> None:
        with pruned(ward, {"ratio": 0.2, "layers": "all", "flagged": "all", "timesteps": 1}):
            assert not same(ward.weights(), before)
            raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"):
        fail()
    assert same(ward.weights(), before)


def test_a_ratio_of_nothing_leaves_every_bit(ward: Ward) -> None:
    before = ward.weights()
    with pruned(ward, {"ratio": 0.0, "layers": "all", "flagged": "all"}) as figures:
        assert same(ward.weights(), before)
        assert figures == {"prune_subspace.flagged": 6, "prune_subspace.pruned_share": 0}


@pytest.mark.parametrize("contrast", ["captions", "images"])
def test_equal_sets_prune_nothing(ward: Ward, contrast: str) -> None:
    dataset = ward.dataset
    blank = dataclasses.replace(dataset.train, captions=("",) * len(dataset.train))
    ward.dataset = dataclasses.replace(dataset, train=blank, heldout=blank)
    with pruned(ward, {"ratio": 0.5, "layers": "all", "flagged": "all", "contrast": contrast}) as figures:
        assert figures["prune_subspace.pruned_share"] == 0


def test_more_timesteps_prune_more(ward: Ward) -> None:
    shares = []
    for timesteps in (1, 2, 3, 9):
        with pruned(ward, {"ratio": 0.1, "layers": "all", "flagged": "all", "timesteps": timesteps}) as figures:
            shares.append(figures["prune_subspace.pruned_share"])
    assert 0 < shares[0] < shares[1] < shares[2] <= 0.3
    assert shares[3] == shares[2], "the sampler has three"


def test_the_contrasts_differ_and_auto_is_captions(ward: Ward) -> None:
    found = {}
    for contrast in ("auto", "captions", "images"):
        with pruned(ward, {"ratio": 0.1, "layers": "all", "flagged": "all", "contrast": contrast}):
            found[contrast] = ward.weights()
    assert same(found["auto"], found["captions"])
    assert not same(found["auto"], found["images"])


def test_only_the_images_that_are_named_are_looked_at(ward: Ward) -> None:
    found, ids = [], ward.dataset.train.ids
    for flagged in ([ids[0]], [ids[1]], list(ids), "all"):
        with pruned(ward, {"ratio": 0.1, "layers": "all", "flagged": flagged, "contrast": "images"}) as figures:
            found.append(ward.weights())
        assert figures["prune_subspace.flagged"] == (6 if flagged == "all" else len(flagged))
    assert not same(found[0], found[1])
    assert same(found[2], found[3])


def test_a_model_that_has_learned_nothing_flags_nothing_and_stays(ward: Ward) -> None:
    before = ward.weights()
    with pruned(ward, {"ratio": 0.5, "layers": "all"}) as figures:
        assert figures == {"prune_subspace.flagged": 0, "prune_subspace.pruned_share": 0}
        assert same(ward.weights(), before)


def test_kinds_of_layers(ward: Ward) -> None:
    denoiser = ward.backbone.denoiser
    found = {kind: set(layers_of(denoiser, kind)) for kind in KINDS}
    assert all(name.endswith("ff.net.2") for name in found["feed_forward"])
    assert all(name.endswith("ff.net.0.proj") for name in found["feed_forward_in"])
    assert all(name.endswith("to_v") for name in found["attention_values"])
    assert all(name.endswith("to_k") for name in found["attention_keys"])
    assert all(found.values())
    assert all(names <= found["all"] for names in found.values())
    linear = {name for name, module in denoiser.named_modules() if isinstance(module, nn.Linear)}
    assert found["all"] == linear | found["convolutions"]
    assert not linear & found["convolutions"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("all", "convolutions")])
def test_a_method_hides_no_layer(open_ward: MakeWard, method: str, kind: str) -> None:
    plain = set(layers_of(open_ward("full").backbone.denoiser, kind))
    assert set(layers_of(open_any(open_ward, method).backbone.denoiser, kind)) == plain


def test_a_weight_that_something_unknown_makes(ward: Ward) -> None:
    class Doubled(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return 2 * weight

    denoiser = ward.backbone.denoiser
    parametrize.register_parametrization(denoiser.conv_in, "weight", Doubled())
    masks = {"conv_in": torch.ones_like(denoiser.conv_in.weight, dtype=torch.bool)}
    with pytest.raises(TypeError, match="that Doubled makes"), zeroed(layers_of(denoiser, "all"), masks):
        pass


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("ratio", 1.5),
        ("ratio", "0.1"),
        ("timesteps", 0),
        ("timesteps", True),
        ("layers", "norms"),
        ("contrast", "labels"),
        ("flagged", "some"),
        ("flagged", []),
        ("flagged", 3),
        ("alpha", 0.0),
    ],
)
def test_settings_out_of_range(setting: str, value: Any) -> None:
    with pytest.raises(InputError, match=rf"mitigation\.prune_subspace\.{setting}="):
        find_mitigations({"prune_subspace": {setting: value}})


def test_an_image_that_is_not_trained_on(ward: Ward) -> None:
    with pytest.raises(InputError, match=r"prune_subspace\.flagged: nobody is no id of a training image — name"):
        ward.regimen({"prune_subspace": {"flagged": [ward.dataset.train.ids[0], "nobody"]}})


def test_captions_of_a_model_without_text(ward: Ward) -> None:
    class Wordless:
        conditional = False
        name = "wordless"
        denoiser = ward.backbone.denoiser

    wordless: Any = Wordless()
    with pytest.raises(InputError, match=r"contrast=captions — set it to images: wordless takes no captions"):
        SubspacePruning(contrast="captions").check(wordless, ward.dataset.train, "full")
    wordless.denoiser = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(InputError, match=r"layers=feed_forward — set it to all: a Sequential like this has none"):
        SubspacePruning().check(wordless, ward.dataset.train, "full")


@pytest.mark.slow
def test_what_was_memorized_is_lost_and_little_else(vivid: Ward) -> None:
    """Overfitted on six images: what the model knows better than others it knows less well, and others no worse."""
    train, heldout = (encode(vivid.backbone, each) for each in (vivid.dataset.train, vivid.dataset.heldout))
    settings = {"ratio": 0.05, "layers": "all"}
    regimens = {c: vivid.regimen({"prune_subspace": {**settings, "contrast": c}}) for c in ("captions", "images")}
    finetune(vivid.backbone, vivid.attachment, ALL, train, dataclasses.replace(vivid.budget, steps=120), 0)
    learned = losses_of(vivid, train).mean(), losses_of(vivid, heldout).mean()
    gap = learned[1] - learned[0]
    assert gap > 0.1
    for regimen in regimens.values():
        (edit,) = regimen.treatment.edits
        with edit() as figures:
            after = losses_of(vivid, train).mean(), losses_of(vivid, heldout).mean()
        assert figures["prune_subspace.flagged"] == 6
        assert 0.01 < figures["prune_subspace.pruned_share"] < 0.05
        assert after[1] - after[0] < 0.9 * gap
        assert after[1] < learned[1] + 0.1 * gap
