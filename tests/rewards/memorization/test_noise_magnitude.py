from __future__ import annotations

import pytest
import torch

from rewards.evidence import Evidence, NoiseMagnitudes
from rewards.memorization.noise_magnitude import NoiseMagnitude, noise_magnitude
from rewards.reference import Reference
from rewards.sample import Sample

REFERENCE = Reference(
    torch.zeros(0, 3, 1, 1, dtype=torch.uint8), 0, torch.zeros(0), {}, {}, {}, {}, {}, {"noise_magnitude": None}
)


def sample(train: list[float], heldout: list[float]) -> Sample:
    evidence = Evidence(noise_magnitudes=NoiseMagnitudes(torch.tensor(train), torch.tensor(heldout)))
    return Sample(REFERENCE, torch.zeros(0, 3, 1, 1, dtype=torch.uint8), {}, {}, evidence)


def test_is_the_mean_norm_over_steps_by_root_dimensions() -> None:
    norms = torch.tensor([[2.0, 0.0], [4.0, 6.0]])
    assert noise_magnitude(norms, 9).tolist() == pytest.approx([1.0, 1.0])


def test_size_does_not_matter() -> None:
    """Noise that changes by the same amount in every dimension is the same magnitude in any number of them."""
    found = [noise_magnitude(torch.full((1, d), 0.3).norm(dim=1)[None], d).item() for d in (16, 1024)]
    assert found == pytest.approx([0.3, 0.3])


def test_the_null_is_that_of_heldout_captions() -> None:
    found = NoiseMagnitude().measure(sample([0.5, 1.0, 1.5], [0.25, 0.75]))
    assert (found.value, found.null, found.n, found.higher_is_better) == (1.0, 0.5, 3, False)
    assert found.low is not None
    assert found.high is not None
    assert 0.5 <= found.low < 1 < found.high <= 1.5


def test_without_heldout_captions_there_is_no_null() -> None:
    assert NoiseMagnitude().measure(sample([0.5, 1.0], [])).null is None


def test_too_few_or_none_at_all() -> None:
    one = NoiseMagnitude().measure(sample([0.5], [0.25]))
    assert (one.value, one.null, one.note) == (None, 0.25, "needs 2 generations from training captions, got 1")
    none = NoiseMagnitude().measure(Sample(REFERENCE, torch.zeros(0, 3, 1, 1, dtype=torch.uint8), {}, {}, Evidence()))
    assert (none.value, none.null, none.note) == (None, None, "there are no noise magnitudes")


def test_pieces_do_not_matter() -> None:
    metric = NoiseMagnitude()
    metric.update(torch.tensor([1.0]))
    metric.update(torch.tensor([2.0, 6.0]))
    assert metric.compute() == 3
