"""What the comparison of mitigations says in words, of invented rows."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from agents.mitigating.analysis import EnvAnalysis, gain, key_of
from agents.mitigating.conclusions import conclusions
from agents.study.rows import Interval, Row
from rewards.measurement import Measurement

SEEDS = np.asarray([-0.01, 0.0, 0.01])


def row(method: str, mask: str, mitigations: str, quality: float, privacy: float, copies: float) -> Row:
    metrics = {"membership": 0.8 - 0.3 * privacy + SEEDS, "copy_rate": copies + SEEDS}
    return Row(method, mask, 0.25, quality + SEEDS, privacy + SEEDS, metrics, 1.0, mitigations)


FULL = row("full", "all", "", 1.0, 0.0, 0.3)
MASK = row("full", "chosen", "", 0.8, 0.7, 0.05)


def success(value: float, null: float, wide: float = 0.1) -> list[dict[str, Measurement]]:
    low, high = max(value - wide, 0.0), min(value + wide, 1.0)
    return [{"inversion_success": Measurement(value, null, low, high, 16, higher_is_better=False)}]


def analysis(
    *more: Row,
    beyond_early: float = 0.0,
    inverted: bool = True,
    got: Mapping[tuple[str, str, str], float] | None = None,
) -> EnvAnalysis:
    """Differences are exact: the seeds are paired. ``got`` is how much inversion got back, besides 25 and 0 %."""

    rows = (FULL, MASK, *more)
    plain = {(each.method, each.mask): each for each in rows if not each.mitigations}
    shares = {("full", "all", ""): 0.25, ("full", "chosen", ""): 0.0, **(got or {})}
    found = {key: success(value, 0.125) for key, value in shares.items()}
    return EnvAnalysis(
        rows,
        early=(),
        nulls={},
        gains={key_of(each): gain(each, plain[each.method, each.mask]) for each in more if each.mitigations},
        copied={each.method: gain(each, MASK) for each in more if each.method != "full" and not each.mitigations},
        against_early={key_of(each): Interval.over(beyond_early + SEEDS) for each in rows},
        inverted=found if inverted else {},
    )


def said(
    *more: Row,
    beyond_early: float = 0.0,
    inverted: bool = True,
    got: Mapping[tuple[str, str, str], float] | None = None,
) -> list[str]:
    return list(conclusions(analysis(*more, beyond_early=beyond_early, inverted=inverted, got=got)))


def test_the_mask_beside_mitigations_alone() -> None:
    private = row("full", "all", "dp_sgd", 0.1, 0.9, 0.0)
    better = row("full", "all", "iet,agc", 0.9, 0.75, 0.1)
    assert "Alone, no mitigation had means as good as the mask's on both axes." in said()
    assert (
        "Alone, no mitigation had means as good as the mask's on both axes; dp_sgd keeps more private, at less quality."
        in said(private)
    )
    assert "Alone, iet+agc had means no worse than the mask's on both axes." in said(private, better)


def test_copies_of_the_mask() -> None:
    found = said(
        row("svdiff", "chosen", "", 0.1, 0.7, 0.1),
        row("lora", "chosen", "", 0.9, 0.5, 0.1),
        row("dora", "chosen", "", 0.8, 0.75, 0.1),
        row("adapter", "chosen", "", 0.8, 0.7, 0.1),
    )
    assert (
        "Copied to other methods, beyond the seeds' interval it has less quality with svdiff -0.70 [-0.70, -0.70]; "
        "more quality with lora 0.10 [0.10, 0.10]; less privacy with lora -0.20 [-0.20, -0.20]; more privacy with dora "
        "0.05 [0.05, 0.05]." in found
    )
    assert "Copied to adapter, neither axis is shown to change." in found
    assert not any(sentence.startswith("Copied") for sentence in said())


def test_privacy_at_equal_steps_moves_either_way() -> None:
    found = said(
        row("full", "all", "ema", 1.0, 0.2, 0.3),
        row("full", "all", "augment", 1.0, -0.2, 0.3),
        row("full", "chosen", "agc", 0.8, 0.8, 0.05),
    )
    assert "At equal steps, ema raises the privacy of full fine-tuning beyond the seeds' interval." in found
    assert "At equal steps, augment lowers the privacy of full fine-tuning beyond the seeds' interval." in found
    assert "On top of the mask, agc raises privacy further." in found
    assert not any(sentence.startswith("Of ema") for sentence in found)


def test_mitigations_on_top_of_copies() -> None:
    copies = [row("lora", "chosen", "", 0.8, 0.6, 0.1), row("dora", "chosen", "", 0.8, 0.6, 0.1)]
    idle = row("lora", "chosen", "agc", 0.8, 0.6, 0.1)
    raised = [row("lora", "chosen", "ema", 0.8, 0.7, 0.1), row("lora", "chosen", "iet", 0.8, 0.8, 0.1)]
    elsewhere = row("dora", "chosen", "iet,agc", 0.8, 0.7, 0.1)
    assert "On top of its copies, none is shown to raise privacy further." in said(*copies, idle)
    assert "On top of its copies privacy is raised further with ema, iet on lora; iet+agc on dora." in said(
        *copies, idle, *raised, elsewhere
    )
    assert not any(sentence.startswith("On top of its copies") for sentence in said(*copies))


def test_how_many_luck_alone_would_move() -> None:
    alone = row("full", "all", "ema", 1.0, 0.2, 0.3)
    copies = [row("lora", "chosen", "", 0.8, 0.6, 0.1)]
    copies += [row("lora", "chosen", name, 0.8, 0.6, 0.1) for name in ("ema", "iet", "agc", "augment")]
    assert "(By luck alone, 0.0 of 1 mitigations are to be expected beyond either end.)" in said(alone)
    assert (
        "(By luck alone, 0.0 of 1 mitigations are to be expected beyond either end, and 0.1 of 4 on copies.)"
        in said(alone, *copies)
    )


def test_what_changed_nothing() -> None:
    found = said(row("full", "all", "deduplicate", 1.0, 0.0, 0.3))
    assert "Of deduplicate every number is that of full fine-tuning alone: there was nothing for it to act on." in found
    assert "At equal steps, none is shown to raise the privacy of full fine-tuning." in found


@pytest.mark.parametrize(
    ("beyond", "sentence"),
    [
        (0.3, "At equal quality, ema keeps full fine-tuning more private than stopping early does."),
        (0.0, "At equal quality, none alone is shown to keep more private than stopping early does."),
    ],
)
def test_equal_quality(beyond: float, sentence: str) -> None:
    found = said(row("full", "all", "ema", 1.0, 0.2, 0.3), beyond_early=beyond)
    assert sentence in found
    mean = f"{beyond:.2f} [{beyond - 0.02:.2f}, {beyond + 0.02:.2f}]"
    assert f"The mask alone is {mean} more private than that." in found


def test_the_copy_rate_judges_what_acts_on_the_sampler() -> None:
    found = said(row("full", "all", "guidance", 1.0, 0.0, 0.1), row("full", "all", "ema", 1.0, 0.2, 0.3))
    falls = "The copy rate of full fine-tuning falls beyond the seeds' interval with guidance -0.200 [-0.200, -0.200]."
    assert falls in found
    (sampler,) = (sentence for sentence in found if sentence.startswith("What acts on the sampler alone"))
    assert sampler.endswith("which it moves by: guidance -0.200 [-0.200, -0.200].")
    assert not any(sentence.startswith("What acts on the sampler") for sentence in said())


def test_named_images() -> None:
    sentence = (
        "Of 16 named training images inversion gets 25% (of test images 12%) back from full fine-tuning, and 0% (of "
        "test images 12%) from the mask."
    )
    assert sentence in said()
    assert not any("named training images" in each for each in said(inverted=False))


def test_named_images_of_what_is_mitigated() -> None:
    rows = [row("full", "all", name, 1.0, 0.2, 0.3) for name in ("ema", "iet", "agc")]
    ema, iet, agc = map(key_of, rows)
    near = said(*rows, got={ema: 0.125, iet: 0.25, agc: 0.125})
    assert (
        "From full fine-tuning with a mitigation it is not shown to get fewer; the fewest come back with ema, agc, 12%."
        in near
    )
    far = said(*rows, got={ema: 0.0, iet: 0.25})
    assert "Beyond the intervals over the images, fewer come back from full fine-tuning with ema." in far
    nothing_back = said(*rows, got={("full", "all", ""): 0.0, ema: 0.0})
    assert not any("fewe" in sentence for sentence in (*nothing_back, *said(*rows)))


def test_named_images_of_copies() -> None:
    rows = [row(method, "chosen", name, 0.8, 0.7, 0.1) for method in ("lora", "dora") for name in ("", "ema")]
    none = dict.fromkeys(map(key_of, rows), 0.0)
    assert "From the mask's copies, mitigated or not, it gets none." in said(*rows, got=none)
    some = said(*rows, got=none | {("lora", "chosen", "ema"): 0.0625})
    assert "From the mask's copies, mitigated or not, it gets 6% at most (lora)." in some
    assert not any(sentence.startswith("From the mask's copies") for sentence in said(*rows))
