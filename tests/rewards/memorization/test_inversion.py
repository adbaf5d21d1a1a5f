from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from rewards.errors import InputError
from rewards.evidence import Evidence, Inversions
from rewards.inversion import (
    InversionResult,
    InversionSettings,
    Similarity,
    calibrated_similarity,
    divergence,
    invert,
    pixel_similarity,
)
from rewards.memorization.inversion import Inversion, InversionSuccess, censored_median, inversion_share
from rewards.reference import Reference
from rewards.sample import Sample

SHAPE = (1, 8, 8)
SETTINGS = InversionSettings(steps=40, check_every=5, batch=4, sampling_steps=8, weight=0.2, seed=3)
"""Between images that share no structure a smaller weight is needed than the default."""
NEAR = Similarity(pixel_similarity, -0.03)


def smooth(n: int, seed: int) -> Tensor:
    """Images ``(n, 1, 8, 8)`` in [-1, 1], each a plane wave of its own."""
    generator = torch.Generator().manual_seed(seed)
    a, b, phase = 2 * math.pi * torch.rand((3, n, 1, 1), generator=generator)
    y, x = torch.meshgrid(torch.linspace(0, 1, 8), torch.linspace(0, 1, 8), indexing="ij")
    return torch.sin(a * x + b * y + phase)[:, None]


class Pixels:
    """What a pixel-space model without text has in common, whatever it knows of images."""

    def __init__(self) -> None:
        self.signal = torch.linspace(1, 0, 51)[1:].square()
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.seen: list[Tensor] = []

    def guess(self, noisy: Tensor, signal: Tensor) -> Tensor:
        raise NotImplementedError

    def clean(self, noisy: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        assert condition is None
        self.seen.append(noisy.detach())
        return self.weight * self.guess(noisy, self.signal[t].view(-1, 1, 1, 1))

    @torch.no_grad()
    def sample(self, noise: Tensor, condition: Tensor | None, steps: int) -> Tensor:
        grid = torch.linspace(len(self.signal) - 1, 0, steps).long().tolist()
        x = guess = noise
        for t, after in zip(grid, [*grid[1:], None], strict=True):
            now = self.signal[t]
            guess = self.weight * self.guess(x, now.view(1, 1, 1, 1))
            if after is not None:
                rest = (x - now.sqrt() * guess) / (1 - now).sqrt()
                x = self.signal[after].sqrt() * guess + (1 - self.signal[after]).sqrt() * rest
        return guess

    def decode(self, clean: Tensor) -> Tensor:
        return ((clean.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).expand(-1, 3, -1, -1)


class Memory(Pixels):
    """The best denoiser of a few images: the mean of them, weighted by how likely each is behind what is seen."""

    def __init__(self, images: Tensor) -> None:
        super().__init__()
        self.images = images

    def guess(self, noisy: Tensor, signal: Tensor) -> Tensor:
        off = (noisy[:, None] - signal[:, None].sqrt() * self.images).square().flatten(2).sum(2)
        likely = (-off / (2 * (1 - signal.view(-1, 1)))).softmax(1)
        return torch.einsum("nk,kchw->nchw", likely, self.images)


class Broad(Pixels):
    """The best denoiser of images whose pixels are independent and normal: it knows no image."""

    def guess(self, noisy: Tensor, signal: Tensor) -> Tensor:
        return signal.sqrt() * noisy * 0.25 / (0.25 * signal + 1 - signal)


class Untrained(Pixels):
    def guess(self, noisy: Tensor, signal: Tensor) -> Tensor:
        return torch.zeros_like(noisy) * noisy


TRAIN, OTHERS = smooth(6, seed=0), smooth(4, seed=1)


def values(results: list[InversionResult]) -> list[float]:
    return [result.value for result in results]


def test_what_is_memorized_comes_back_and_the_rest_does_not() -> None:
    model = Memory(TRAIN)
    members, others = invert(model, TRAIN, NEAR, SETTINGS), invert(model, OTHERS, NEAR, SETTINGS)
    assert all(result.success and result.similarity > -0.03 for result in members)
    assert 0 < min(values(members)) < max(values(members)) < 0.5
    assert {(r.value, r.success, r.steps) for r in others} == {(math.inf, False, SETTINGS.steps)}
    assert max(r.similarity for r in others) < -0.03


def test_one_image_alone_needs_no_special_noise() -> None:
    """A model that knows nothing else gives it back from any noise: the first try succeeds, at little divergence."""
    alone = invert(Memory(TRAIN[:1]), TRAIN[:1], NEAR, SETTINGS)[0]
    among = invert(Memory(TRAIN), TRAIN[:1], NEAR, SETTINGS)[0]
    assert alone.steps == SETTINGS.check_every
    assert alone.value < among.value


@pytest.mark.parametrize("model", [Broad(), Untrained()])
def test_a_model_that_knows_no_image_gives_none(model: Pixels) -> None:
    assert values(invert(model, TRAIN, NEAR, SETTINGS)) == [math.inf] * len(TRAIN)


def test_twice_the_same() -> None:
    first = invert(Memory(TRAIN), TRAIN[:3], NEAR, SETTINGS)
    torch.manual_seed(99)
    assert invert(Memory(TRAIN), TRAIN[:3], NEAR, SETTINGS) == first
    assert values(invert(Memory(TRAIN), TRAIN[:3], NEAR, replace(SETTINGS, seed=4))) != values(first)


@pytest.mark.parametrize("together", [1, 2, 8])
def test_order_and_company_do_not_matter(together: int) -> None:
    model = Memory(TRAIN)
    mixed = torch.cat([TRAIN[:3], OTHERS[:1]])
    expected = [invert(model, image[None], NEAR, SETTINGS)[0] for image in mixed]
    order = [2, 0, 3, 1]
    found = invert(model, mixed[order], NEAR, replace(SETTINGS, together=together))
    assert values(found) == pytest.approx([expected[i].value for i in order], rel=1e-4)
    assert [r.steps for r in found] == [expected[i].steps for i in order]


def test_every_image_sees_the_same_noise() -> None:
    model = Broad()
    invert(model, torch.cat([TRAIN[:1], TRAIN[:1]]), NEAR, replace(SETTINGS, steps=5))
    for batch in model.seen:
        assert torch.equal(batch[: SETTINGS.batch], batch[SETTINGS.batch :])


def test_more_steps_continue_the_same_search() -> None:
    short, long = Broad(), Broad()
    invert(short, TRAIN[:1], NEAR, replace(SETTINGS, steps=5))
    invert(long, TRAIN[:1], NEAR, replace(SETTINGS, steps=10))
    assert all(torch.equal(a, b) for a, b in zip(short.seen, long.seen, strict=False))


def test_the_first_step_is_adams_on_the_written_loss() -> None:
    """Against autograd on the loss spelt out for one image: L_p + w L_r, one Adam step of the learning rate."""
    model, x = Memory(TRAIN), OTHERS[:1]
    one = replace(SETTINGS, steps=1, check_every=1, weight=0.5)
    result = invert(model, x, Similarity(pixel_similarity, -math.inf), one)[0]
    generator = torch.Generator().manual_seed(one.seed)
    torch.randn((one.samples, *SHAPE), generator=generator)
    t = torch.randint(50, (one.batch,), generator=generator)
    z = torch.randn((one.batch, *SHAPE), generator=generator)
    mean, log_variance = (torch.zeros(1, *SHAPE, requires_grad=True) for _ in range(2))
    a = model.signal[t].view(-1, 1, 1, 1)
    noisy = a.sqrt() * x + (1 - a).sqrt() * (mean + (log_variance / 2).exp() * z)
    loss = (model.clean(noisy, t, None) - x).square().mean() + 0.5 * divergence(mean, log_variance).sum()
    loss.backward()
    torch.optim.Adam([mean, log_variance], lr=one.learning_rate).step()
    assert result.value == pytest.approx(float(divergence(mean, log_variance).detach()), rel=1e-4)


def test_the_model_is_left_as_it_was() -> None:
    model = Memory(TRAIN)
    invert(model, TRAIN[:1], NEAR, SETTINGS)
    assert model.weight.grad is None
    assert model.weight.requires_grad
    assert model.weight.item() == 1


def test_all_samples_have_to_be_the_image() -> None:
    """A search that the first sample passes and another does not goes on; a first failure is not looked behind."""
    asked: list[int] = []

    def measure(target: Tensor, samples: Tensor) -> Tensor:
        asked.append(len(samples))
        return torch.tensor([1.0]) if len(samples) == 1 else torch.tensor([1.0] * 6 + [0.0])

    found = invert(Broad(), TRAIN[:1], Similarity(measure, 0.5), replace(SETTINGS, steps=10))
    assert (found[0].success, found[0].similarity) == (False, 0)
    assert asked == [1, 7, 1, 7]
    asked.clear()
    invert(Broad(), TRAIN[:1], Similarity(measure, 1.5), replace(SETTINGS, steps=10))
    assert asked == [1, 1]


def test_progress_is_told() -> None:
    told: list[tuple[int, int]] = []
    quick = replace(SETTINGS, steps=5, together=2)
    invert(Broad(), TRAIN[:3], NEAR, quick, progress=lambda *now: told.append(now))
    assert told == [(2, 3), (3, 3)]
    assert invert(Broad(), TRAIN[:0], NEAR, quick) == []


def test_a_soft_prompt_needs_a_model_with_text() -> None:
    with pytest.raises(InputError, match="takes no text"):
        invert(Broad(), TRAIN, NEAR, replace(SETTINGS, prompt="soft"))


@pytest.mark.parametrize(
    "bad",
    [
        {"steps": 0},
        {"check_every": 0},
        {"check_every": 41},
        {"batch": 0},
        {"samples": 0},
        {"sampling_steps": 0},
        {"window": 0},
        {"together": 0},
        {"learning_rate": 0.0},
        {"learning_rate": math.inf},
        {"temperature": 0.0},
        {"weight": -1.0},
        {"weight_step": math.nan},
        {"improvement": -1e-3},
        {"seed": -1},
        {"prompt": "none"},
    ],
)
def test_bad_settings_are_one_line(bad: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=rf"inversion\.{next(iter(bad))}=") as caught:
        InversionSettings(**{"steps": 40} | bad)
    assert "\n" not in str(caught.value)


def test_divergence_is_torchs() -> None:
    mean, log_variance = torch.randn((2, 3, *SHAPE), generator=torch.Generator().manual_seed(0))
    expected = kl_divergence(Normal(mean, (log_variance / 2).exp()), Normal(0.0, 1.0)).mean((1, 2, 3))
    torch.testing.assert_close(divergence(mean, log_variance), expected)


def test_pixel_similarity_does_not_wrap_around() -> None:
    target = torch.zeros(3, 2, 2, dtype=torch.uint8)
    samples = torch.stack([target, target + 51, target + 255])
    assert pixel_similarity(target, samples).tolist() == pytest.approx([0, -0.2, -1])


def test_the_threshold_keeps_its_rate_on_new_images() -> None:
    generator = torch.Generator().manual_seed(0)
    train, heldout, new = (
        torch.randint(256, (n, 3, 2, 2), generator=generator, dtype=torch.uint8) for n in (5, 99, 2000)
    )
    similarity = calibrated_similarity(train, heldout, 0.1)
    copies = [float(similarity.measure(image, train).max()) > similarity.threshold for image in new]
    assert np.mean(copies) == pytest.approx(0.1, abs=0.06)
    nearest = sorted(float(pixel_similarity(image, train).max()) for image in heldout)
    assert similarity.threshold == nearest[-10]
    with pytest.raises(InputError, match=r"inversion\.rate=1\.0"):
        calibrated_similarity(train, heldout, 1.0)


def test_a_search_that_breaks_finds_nothing() -> None:
    model = Broad()
    model.weight.data.fill_(math.nan)
    always = Similarity(pixel_similarity, -math.inf)
    found = invert(model, TRAIN[:1], always, SETTINGS)[0]
    assert (found.value, found.success) == (math.inf, False)


SHARES = st.lists(st.one_of(st.integers(0, 5).map(float), st.just(math.inf)), min_size=1, max_size=40)


@settings(max_examples=80, deadline=None)
@given(found=SHARES)
def test_the_median_is_numpys_with_infinity_for_the_censored(found: list[float]) -> None:
    estimate = censored_median(torch.tensor(found))
    in_order = sorted(found)
    n = len(in_order)
    expected = in_order[n // 2] if n % 2 else (in_order[n // 2 - 1] + in_order[n // 2]) / 2
    assert (estimate.value, estimate.n) == (expected, n)
    finite = sum(map(math.isfinite, found))
    assert math.isfinite(estimate.value) == (finite > n / 2)
    # Brute force over j: the narrowest pair of order statistics that covers the median often enough.
    covers = [j for j in range(1, n // 2 + 1) if 1 - 2 * stats.binom.cdf(j - 1, n, 0.5) >= 0.95]
    ends = (in_order[max(covers) - 1], in_order[n - max(covers)]) if covers else (math.inf, math.inf)
    assert (estimate.low, estimate.high) == tuple(x if math.isfinite(x) else None for x in ends)


def test_share_is_that_of_finite_values() -> None:
    found = inversion_share(torch.tensor([0.1, math.inf, 0.0, math.inf]))
    assert (found.value, found.n) == (0.5, 4)


NONE = torch.zeros(0, 3, 1, 1, dtype=torch.uint8)
NULLS = {"inversion": None, "inversion_success": None}
REFERENCE = Reference(NONE, 0, torch.zeros(0), {}, {}, {}, {}, {}, NULLS)


def sample(train: list[float], heldout: list[float]) -> Sample:
    evidence = Evidence(inversions=Inversions(torch.tensor(train), torch.tensor(heldout)))
    return Sample(REFERENCE, NONE, {}, {}, evidence)


def test_both_metrics_beside_heldout_images() -> None:
    asked = sample([0.25, 0.5, math.inf], [1.0, math.inf, 2.0, math.inf, 3.0])
    median, share = Inversion().measure(asked), InversionSuccess().measure(asked)
    assert (median.value, median.null, median.low, median.n) == (0.5, 3.0, None, 3)
    assert share.value == pytest.approx(2 / 3)
    assert (share.null, share.n) == (0.6, 3)
    assert median.higher_is_better
    assert not share.higher_is_better


def test_a_censored_median_is_no_value() -> None:
    asked = sample([0.25, math.inf, math.inf, 0.5], [math.inf])
    median, share = Inversion().measure(asked), InversionSuccess().measure(asked)
    assert (median.value, median.null) == (None, None)
    assert median.note == "inverted 2 of 4: the median is beyond the budget"
    assert (share.value, share.null) == (0.5, 0.0)


@pytest.mark.parametrize("metric", [Inversion, InversionSuccess])
def test_without_images_to_ask_about(metric: type[Inversion | InversionSuccess]) -> None:
    assert metric().measure(sample([], [])).note == "no training image was tried"
    assert metric().measure(sample([1.0], [])).null is None
    nothing = metric().measure(Sample(REFERENCE, NONE, {}, {}, Evidence()))
    assert (nothing.value, nothing.null, nothing.note) == (None, None, "there are no inversions")


def test_pieces_do_not_matter() -> None:
    for metric, expected in ((Inversion(), 0.5), (InversionSuccess(), 2 / 3)):
        metric.update(torch.tensor([0.5]))
        metric.update(torch.tensor([math.inf, 0.25]))
        assert float(metric.compute()) == pytest.approx(expected)
