from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import rewards.suite
from rewards.errors import InputError
from rewards.evidence import DenoisingLosses, Evidence, Inversions, NoiseMagnitudes
from rewards.features import PixelEmbedding
from rewards.measurement import Measurement
from rewards.memorization.copy_rate import CopyRate
from rewards.neighbors import Neighbors, nearest_neighbors
from rewards.reference import Reference
from rewards.suite import METRICS, Suite

PIXELS: Mapping[str, Mapping[str, Any]] = {
    "copy_rate": {"distances": ["pixels", "aligned_pixels"], "rate": 0.05},
    "extraction": {"tiles": 2, "clique": 3, "rate": 0.05},
    "data_copying": {"distance": "pixels", "embedding": "pixels", "cells": 1},
    **{name: {"distance": "pixels"} for name in ("average_minimum_distance", "authenticity")},
    **{
        name: {"embedding": "pixels"}
        for name in (
            "kid",
            "fid",
            "precision",
            "recall",
            "density",
            "coverage",
            "feature_likelihood_gap",
        )
    },
}
"""Every metric of images on pixels: the network is not what these tests are about."""

OF_IMAGES = [name for name, metric in METRICS.items() if metric.needs == {"images"}]
NEVER_HERE = {"text_image_alignment"}
"""Needs a model that no test of the suite has; see its own tests."""


def images(n: int, seed: int, size: int = 8) -> Tensor:
    """Coloured gradients with a random direction: unlike one another, of one source."""
    generator = torch.Generator().manual_seed(seed)
    corners = torch.randint(0, 256, (n, 3, 2, 2), generator=generator).float()
    return torch.nn.functional.interpolate(corners, (size, size), mode="bilinear").to(torch.uint8)


@pytest.fixture(scope="module", autouse=True)
def small_pixels() -> Any:
    """Pixels of 2 x 2, so that 12 dimensions leave room for a Frechet distance."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(rewards.features._EMBEDDINGS, "pixels", lambda: PixelEmbedding(2))
        patch.setattr(rewards.suite, "ALIGNMENT_CANDIDATES", ("pixels",))
        rewards.features.embedding.cache_clear()
        yield
    rewards.features.embedding.cache_clear()


@pytest.fixture(scope="module")
def suite(small_pixels: None) -> Suite:
    return Suite(list(METRICS), PIXELS)


@pytest.fixture(scope="module")
def reference(suite: Suite) -> Reference:
    return suite.reference(images(40, 0), images(100, 1))


@pytest.fixture(scope="module")
def evidence() -> Evidence:
    generator = torch.Generator().manual_seed(5)
    base_train, base_heldout, train, heldout = (torch.rand(n, generator=generator) for n in (40, 100, 40, 100))
    return Evidence(
        losses=DenoisingLosses(train - 0.3, heldout, base_train, base_heldout),
        prompts=["a lesion"] * 30 + ["an X-ray"] * 30,
        noise_magnitudes=NoiseMagnitudes(torch.rand(9, generator=generator) + 1, torch.rand(9, generator=generator)),
        inversions=Inversions(torch.rand(9, generator=generator), torch.rand(9, generator=generator) + 1),
    )


def test_every_metric_gives_its_value_between_its_interval_beside_its_null(
    suite: Suite, reference: Reference, evidence: Evidence
) -> None:
    measured = suite.measure(reference, images(60, 2), evidence)
    assert list(measured) == list(METRICS)
    for name in set(METRICS) - NEVER_HERE:
        m = measured[name]
        assert m.value is not None, m.note
        assert m.null is not None
        assert m.note == ""
        assert m.n > 0
        assert m.higher_is_better is METRICS[name].higher_is_better
        assert (m.low is None) == (m.high is None) == (name == "fid")
        if m.low is not None and m.high is not None:
            assert m.low <= m.value <= m.high


def test_copies_heldout_images_and_noise(suite: Suite, reference: Reference) -> None:
    def values(generated: Tensor) -> dict[str, float]:
        return {n: m.value for n, m in suite.measure(reference, generated).items() if m.value is not None}

    copies, heldout = values(images(40, 0)), values(images(60, 2))
    far = values((images(60, 3) // 64 + 235).to(torch.uint8))
    assert copies["copy_rate"] == 1
    assert copies["average_minimum_distance"] == copies["authenticity"] == copies["normalized_l2"] == 0
    assert copies["nearest_ratio"] == 1
    assert copies["data_copying"] < heldout["data_copying"] < far["data_copying"]
    assert copies["feature_likelihood_gap"] < heldout["feature_likelihood_gap"]
    assert heldout["copy_rate"] < 0.2
    assert far["copy_rate"] == 0
    null = reference.nulls["average_minimum_distance"]
    assert heldout["average_minimum_distance"] == pytest.approx(null, rel=0.2)
    assert far["average_minimum_distance"] > heldout["average_minimum_distance"]
    for better in ("precision", "recall", "density", "coverage"):
        assert far[better] < heldout[better]
    for worse in ("kid", "fid"):
        assert far[worse] > heldout[worse]


def test_mirrored_training_images_are_copies(suite: Suite, reference: Reference) -> None:
    measured = suite.measure(reference, images(40, 0).flip(-1))
    assert measured["copy_rate"].value == measured["nearest_ratio"].value == 1
    assert measured["authenticity"].value == 0
    assert measured["average_minimum_distance"].value == 0


def test_quality_is_measured_against_the_judge_and_not_against_train() -> None:
    suite = Suite(["kid", "fid", "precision", "recall", "density", "coverage"], PIXELS)
    one = suite.reference(images(40, 0), images(100, 1))
    other = suite.reference(images(30, 7), images(100, 1))
    assert suite.measure(one, images(60, 2)) == suite.measure(other, images(60, 2))


def test_nulls_are_the_same_formulas_on_real_images(suite: Suite, reference: Reference) -> None:
    measured = suite.measure(reference, images(100, 1))
    assert measured["average_minimum_distance"].value == pytest.approx(measured["average_minimum_distance"].null)
    assert measured["copy_rate"].null == pytest.approx(5 / 101)
    assert measured["copy_rate"].value == pytest.approx(0.05, abs=0.02)
    half = {name: reference.nulls[name] for name in ("precision", "recall", "kid", "fid")}
    other_source = (images(100, 3) // 2).to(torch.uint8)
    unlike = suite.measure(reference, other_source)
    for name, null in half.items():
        value = unlike[name].value
        assert value is not None
        assert null is not None
        assert (value < null) == METRICS[name].higher_is_better


def test_a_metric_that_lacks_something_says_so_and_the_others_go_on(
    suite: Suite, reference: Reference, evidence: Evidence
) -> None:
    without_images = suite.measure(reference, None, evidence)
    without_evidence = suite.measure(reference, images(60, 2))
    one_prompt = Evidence(losses=evidence.losses, prompts=["a lesion"])
    few = suite.measure(reference, images(1, 2), one_prompt)
    for name, metric in METRICS.items():
        assert bool(without_images[name].note) == (without_images[name].value is None) == ("images" in metric.needs)
        assert bool(without_evidence[name].note) == (without_evidence[name].value is None) == (name not in OF_IMAGES)
    assert without_images["extraction"].note == "no image was generated"
    assert without_evidence["extraction"].note == "there are no prompts"
    assert without_evidence["membership"].note == "there are no denoising losses"
    assert few["inversion"].note == "there are no inversions"
    assert few["fid"].note == "needs 13 generated and 13 real images, got 1 and 100"
    assert few["kid"].note == "needs 3 generated and 3 real images, got 1 and 100"
    assert few["recall"].note == "needs 4 generated and 4 real images, got 1 and 100"
    assert few["average_minimum_distance"].note == "needs 2 generated images, got 1"
    assert few["copy_rate"].value == 0
    assert Measurement.from_json(few["fid"].to_json()) == few["fid"]


def test_one_image_a_set_is_no_error(suite: Suite) -> None:
    one = suite.reference(images(1, 0), images(1, 1))
    single = Evidence(
        DenoisingLosses(*(torch.zeros(1) for _ in range(4))),
        ["a lesion"],
        NoiseMagnitudes(torch.zeros(1), torch.zeros(0)),
        Inversions(torch.zeros(0), torch.zeros(0)),
    )
    measured = suite.measure(one, images(1, 2), single)
    assert {name for name, m in measured.items() if m.value is not None} == set()
    assert all(m.note for m in measured.values())


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000))
def test_the_order_of_generated_images_does_not_matter(suite: Suite, reference: Reference, seed: int) -> None:
    generated = images(60, 2)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(seed))
    measured, shuffled = suite.measure(reference, generated), suite.measure(reference, generated[order])
    for name, m in measured.items():
        numbers, again = ([each.value, each.low, each.high] for each in (m, shuffled[name]))
        assert [x is None for x in again] == [x is None for x in numbers]
        assert [x for x in again if x is not None] == pytest.approx([x for x in numbers if x is not None], abs=1e-9)


def test_the_same_call_gives_the_same_numbers(suite: Suite, reference: Reference, evidence: Evidence) -> None:
    assert suite.measure(reference, images(60, 2), evidence) == suite.measure(reference, images(60, 2), evidence)


def test_the_metric_classes_compute_what_the_suite_measures(
    suite: Suite, reference: Reference, evidence: Evidence
) -> None:
    generated = images(60, 2)
    sample = suite.sample(reference, generated, evidence)
    measured = suite.measure(reference, generated, evidence)
    assert evidence.losses is not None
    assert evidence.noise_magnitudes is not None
    assert evidence.inversions is not None
    features, real = sample.features["pixels"], reference.judge["pixels"]
    near = sample.neighbors["pixels"]
    nearest, aligned = near.distances[:, :1], sample.neighbors["aligned_pixels"].distances
    nulls = torch.stack([reference.null_distances(name) for name in ("pixels", "aligned_pixels")], dim=1)
    spacing = reference.train_neighbors["pixels"].distances[near.indices[:, 0], 0]
    changes = [(evidence.losses.train_change, False), (evidence.losses.heldout_change, True)]
    sets = [(features, False), (real, True)]
    given: dict[str, list[tuple[Any, ...]]] = {
        "average_minimum_distance": [(nearest[:, 0],)],
        "copy_rate": [(torch.cat([nearest, aligned], dim=1), False), (nulls, True)],
        "nearest_ratio": [(near.distances,)],
        "normalized_l2": [(near.distances[:, : METRICS["normalized_l2"]().neighbors(reference.distinct)],)],
        "authenticity": [(nearest[:, 0], spacing)],
        "membership": list(changes),
        "membership_tpr": list(changes),
        "noise_magnitude": [(evidence.noise_magnitudes.train,)],
        "inversion": [(evidence.inversions.train,)],
        "inversion_success": [(evidence.inversions.train,)],
        "feature_likelihood_gap": [(features, "generated"), (reference.train["pixels"], "train"), (real, "judge")],
        **{name: list(sets) for name in ("kid", "fid", "precision", "recall", "density", "coverage")},
    }
    # What these two are given is more than a table can show; their own tests compare both ways.
    assert set(given) | NEVER_HERE | {"extraction", "data_copying"} == set(METRICS)
    for name, pieces in given.items():
        metric = METRICS[name](**PIXELS.get(name, {}))
        for piece in pieces:
            metric.update(*piece)
        assert float(metric.compute()) == pytest.approx(measured[name].value, rel=1e-5), name
        figure, axes = metric.plot()
        assert axes.lines or axes.collections
        figure.clear()
        metric.reset()
        assert all(len(state) == 0 for state in metric.metric_state.values())


def test_every_image_is_embedded_once(monkeypatch: pytest.MonkeyPatch, reference: Reference) -> None:
    seen: list[int] = []
    embed = PixelEmbedding.__call__

    def counted(self: PixelEmbedding, batch: Tensor) -> Tensor:
        seen.append(len(batch))
        return embed(self, batch)

    monkeypatch.setattr(PixelEmbedding, "__call__", counted)
    suite = Suite(list(METRICS), PIXELS)
    suite.reference(images(40, 0), images(100, 1))
    assert seen == [40, 40, 100]
    suite.measure(reference, images(60, 2))
    assert seen[3:] == [60]


def test_neighbours_are_searched_once(monkeypatch: pytest.MonkeyPatch) -> None:
    searches: list[int] = []

    def counted(queries: Tensor, *args: Any, **kwargs: Any) -> Neighbors:
        searches.append(len(queries))
        return nearest_neighbors(queries, *args, **kwargs)

    monkeypatch.setattr(rewards.suite, "nearest_neighbors", counted)
    memorization = ["copy_rate", "average_minimum_distance", "nearest_ratio", "normalized_l2", "authenticity"]
    suite = Suite(memorization, PIXELS)
    reference = suite.reference(images(40, 0), images(100, 1))
    assert searches == [100, 40]
    suite.measure(reference, images(60, 2))
    assert searches[2:] == [60]


def test_near_duplicates_in_the_training_set_hide_no_copy(suite: Suite) -> None:
    train = images(40, 0)
    twins = (train.int() + 1).clamp(0, 255).to(torch.uint8)
    reference = suite.reference(torch.cat([train, twins]), images(100, 1))
    assert (reference.train_size, reference.distinct) == (80, 40)
    measured = suite.measure(reference, train)
    assert measured["nearest_ratio"].value == 1
    assert measured["authenticity"].value == 0


def test_needs_are_those_of_the_metrics(suite: Suite) -> None:
    assert suite.needs == {"images", "losses", "prompts", "noise_magnitudes", "inversions"}
    assert Suite(["kid", "membership"], PIXELS).needs == {"images", "losses"}


def test_losses_alone_need_no_embedding(monkeypatch: pytest.MonkeyPatch, evidence: Evidence) -> None:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} was asked for")

    monkeypatch.setattr(rewards.suite, "embedding", refuse)
    suite = Suite(["membership"])
    assert suite.measure(suite.reference(images(4, 0), images(4, 1)), None, evidence)["membership"].value is not None


def test_settings_reach_their_metric(reference: Reference) -> None:
    suite = Suite(["copy_rate"], {"copy_rate": {"distances": ["pixels"], "rate": 0.2}})
    assert suite.reference(images(40, 0), images(100, 1)).nulls["copy_rate"] == pytest.approx(20 / 101)
    metric = suite.metrics["copy_rate"]
    assert isinstance(metric, CopyRate)
    assert metric.rate == 0.2


@pytest.mark.parametrize(
    ("names", "given", "message"),
    [
        (["kid", "beauty"], {}, r"'beauty'.*kid, fid"),
        ([], {}, r"\[\].*choose among"),
        (["kid"], {"beauty": {}}, "'beauty'"),
        (["kid"], {"kid": {"subsets": 3}}, "subsets"),
        (["kid"], {"kid": {"embedding": "inception"}}, "inception"),
        (["copy_rate"], {"copy_rate": {"rate": 2}}, "rate=2"),
    ],
)
def test_what_is_unknown_is_refused(names: list[str], given: Mapping[str, Mapping[str, Any]], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Suite(names, given)


def test_an_empty_set_of_real_images_is_refused(suite: Suite) -> None:
    with pytest.raises(InputError, match="0 training and 3 held-out"):
        suite.reference(images(0, 0), images(3, 1))


def test_a_reference_can_be_sent_to_a_worker(suite: Suite, reference: Reference, tmp_path: Any) -> None:
    torch.save(reference, tmp_path / "reference.pt")
    there = torch.load(tmp_path / "reference.pt", weights_only=False)
    assert suite.measure(there, images(60, 2)) == suite.measure(reference, images(60, 2))
