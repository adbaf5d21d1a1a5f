"""``report.html`` of an audit: one self-contained file, verdict first, private images in it only where asked for."""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from agents.auditing.outcome import PAIRS, Outcome, Pair
from agents.pages import base64_text, number, render
from rewards.measurement import Measurement
from rewards.memorization.copy_rate import copy_threshold
from rewards.suite import METRICS

EXPLANATIONS: Mapping[str, str] = {
    "average_minimum_distance": "How far generated images are, on average, from the training image most like them. "
    "A mean hides a few copies among many other images.",
    "copy_rate": "Share of generated images closer to a training image than almost any real image of another patient "
    "is.",
    "nearest_ratio": "Share of generated images several times closer to one training image than to every other.",
    "normalized_l2": "How close the most similar training image is, measured by how close the next ones are. Low where "
    "one training image stands out.",
    "extraction": "Share of prompts that bring the same picture again and again, where that picture is a training "
    "image.",
    "authenticity": "Share of generated images that are further from the training image most like them than that one "
    "is from its own nearest neighbour. Real images of others do not reach 1 either.",
    "data_copying": "Whether generated images are closer to the training images than real images of other patients "
    "are. Near 0: no closer. Far below 0: copying. Far above 0: unlike real images.",
    "membership": "How well the model's own errors tell whether an image was trained on. 0.5 is guessing, 1 is always "
    "right.",
    "membership_tpr": "Share of the training images that the same attack recognises while it accuses almost no other "
    "image wrongly.",
    "noise_magnitude": "How hard captions of the training set pull at the model. Memorized ones pull hardest.",
    "inversion": "How unusual the starting noise must be to make the model reproduce a given training image (median "
    "of those tried). The lower, the easier the image comes back.",
    "inversion_success": "Share of the training images tried that the model could be made to reproduce.",
    "kid": "How much generated images as a whole differ from real ones that were not trained on. 0 is no difference; a "
    "little below 0 is luck.",
    "fid": "Another measure of how much both sets differ. It falls with the number of images: compare it at equal "
    "sizes only.",
    "precision": "Share of generated images that look like real ones.",
    "recall": "Share of the real images whose like is generated too.",
    "density": "How much generated images lie where real ones do. About 1 is like real images; above 1 they crowd in "
    "the middle.",
    "coverage": "Share of the real images that have a generated one close by.",
    "feature_likelihood_gap": "Whether the generated images resemble the training images more than they resemble other "
    "real ones. Far below its null: they do.",
    "text_image_alignment": "How well generated images show what their captions say, as judged by a model that reads "
    "both. 1 is best.",
}
"""What each metric asks, for readers who know no statistics."""

_DISTANCES: Mapping[str, str] = {
    "pixels": "pixel by pixel",
    "aligned_pixels": "pixel by pixel after moving one image a little",
    "efficientnet_lite0": "features of the images (EfficientNet-Lite0)",
}

# Okabe and Ito's blue and vermillion: told apart by the colour-blind, and by their shapes in print.
_GENERATED, _HELDOUT, _INK = "#0072B2", "#C04A00", "#444444"

_LARGEST = 256
"""Pixels along a side of an image in the gallery."""


@dataclass(frozen=True)
class _Detector:
    """What takes an image for a copy, see `Outcome.pairs`.

    Attributes:
        rate: Expected share of images that copy nothing and are flagged all the same.
        limits: The distance below which it flags an image, by name of the distance.
    """

    rate: float
    limits: Mapping[str, float]


def write_report(folder: Path, summary: dict[str, Any], outcome: Outcome, *, images: bool) -> Path:
    """Writes ``report.html``, and its figures once more into ``figures/``.

    Args:
        folder: Of the run.
        summary: What goes into ``result.json``.
        outcome: Of the audit.
        images: True puts the closest pairs' images into the page, and nowhere else.
    """
    figures = folder / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    pairs, detector = outcome.pairs(), _detector(outcome)
    page = render(
        "audit.html",
        run=summary,
        state=_state(summary),
        counts=Counter(check["passed"] for check in summary["verdict"]["checks"]),
        copies=_copies(summary, detector, searched=bool(pairs)),
        groups=_groups(outcome.measurements, figures),
        unmeasured=[
            {"name": name, "about": _about(name), "note": note} for name, note in summary["not_measured"].items()
        ],
        distances=_distances(outcome, pairs, detector, figures),
        pairs=[_row(pair, outcome, images) for pair in pairs[:PAIRS]],
        flagged=sum(pair.flagged for pair in pairs),
        images=images,
        size=outcome.answers.images.shape[1:3],
        seldom=_seldom(summary["data"]["generated"]),
    )
    report = folder / "report.html"
    report.write_text(page, encoding="utf-8")
    return report


def _state(summary: Mapping[str, Any]) -> str:
    """``broken``, ``kept``, or ``unchecked`` where no limit was looked at, so that none could be broken."""
    if summary["verdict"]["passed"]:
        return "kept"
    return "broken" if any(check["passed"] is False for check in summary["verdict"]["checks"]) else "unchecked"


def _detector(outcome: Outcome) -> _Detector | None:
    metric, reference = outcome.detector, outcome.sample.reference
    names = [name for name in metric.distances if name in outcome.sample.neighbors]
    if not names or reference.judge_size < 2:
        return None
    nulls = torch.stack([reference.null_distances(name) for name in names], dim=1)
    limit = copy_threshold(nulls, metric.rate)
    # The inverse of `null_quantiles`: where in this distance the score is the detector's limit.
    knots = np.concatenate([np.zeros((1, len(names))), np.sort(nulls.double().numpy(), axis=0)])
    scores = np.arange(len(knots)) / len(knots)
    return _Detector(
        limit.rate, {name: float(np.interp(limit.value, scores, knots[:, i])) for i, name in enumerate(names)}
    )


def _copies(summary: Mapping[str, Any], detector: _Detector | None, *, searched: bool) -> str:
    if detector is None or not searched:
        return "Copies were not looked for: no metric of this audit measured a distance that the copy detector knows."
    copied, n = summary["copied"], summary["data"]["generated"]
    if not copied["generated"]:
        found = f"None of {n} generated images looks like a copy of a training image."
    else:
        patients = copied["patients"]
        of = f"{copied['train']} training image{'s' * (copied['train'] != 1)}"
        whose = "patients unknown" if patients is None else f"{patients} patient{'s' * (patients != 1)}"
        verb = "looks like a copy" if copied["generated"] == 1 else "look like copies"
        found = f"{copied['generated']} of {n} generated images {verb}, of {of} ({whose})."
        if copied["most_often"] > 1 and copied["train"] > 1:
            found += f" The training image copied most often comes back {copied['most_often']} times."
    chance = detector.rate * n
    about = "less than one" if chance < 0.95 else f"about {chance:.2g}"
    return f"{found} Of {n} images that copy nothing, chance alone would make {about} look like a copy."


def _seldom(n: int) -> int:
    """One in how many images a copy must be to be seen at least once among n with a probability of 95 %."""
    return int(1 / (1 - 0.05 ** (1 / n))) if n else 0


def _about(name: str) -> str:
    return EXPLANATIONS.get(name, "")


def _groups(measurements: Mapping[str, Measurement], figures: Path) -> list[dict[str, Any]]:
    """Memorization and quality: a row for every metric that has a value."""
    groups: dict[str, list[dict[str, Any]]] = {"Memorization": [], "Quality": []}
    for name, measured in measurements.items():
        if measured.value is None:
            continue
        memorization = METRICS[name].__module__.startswith("rewards.memorization")
        groups["Memorization" if memorization else "Quality"].append(
            {
                "name": name,
                "about": _about(name),
                "measured": measured,
                # Quality's nulls are of half as many images, so that a verdict on them would be unfair.
                "reading": _reading(measured) if memorization else "",
                "figure": _save(_strip(measured), figures / f"{name}.svg"),
                "alt": _strip_words(name, measured),
            }
        )
    return [{"title": title, "rows": rows} for title, rows in groups.items()]


def _reading(measured: Measurement) -> str:
    low, high, null = measured.low, measured.high, measured.null
    if low is None or high is None or null is None:
        return ""
    above, below = low > null, high < null
    if not above and not below:
        return "like null"
    return "better than null" if above == measured.higher_is_better else "worse than null"


def _strip_words(name: str, measured: Measurement) -> str:
    words = f"{name} is {number(measured.value)}"
    if measured.low is not None or measured.high is not None:
        low, high = ("unknown" if end is None else number(end) for end in (measured.low, measured.high))
        words += f", 95 % interval {low} to {high}"
    words += ", no null" if measured.null is None else f", null {number(measured.null)}"
    return f"{words}; {'higher' if measured.higher_is_better else 'lower'} is better"


def _strip(measured: Measurement) -> Figure:
    """One row: dot and interval over the null, on an axis of the metric's own."""
    value, null = measured.value, measured.null
    assert value is not None
    seen = [each for each in (value, null, measured.low, measured.high) if each is not None]
    least, most = min(seen), max(seen)
    margin = 0.14 * (most - least) or 0.2 * abs(value) or 0.1
    ends = least - margin, most + margin
    figure = Figure(figsize=(3.2, 0.8))
    # Room beside the axis for half a label.
    axis = figure.add_axes((0.05, 0.34, 0.9, 0.64))
    axis.set(xlim=ends, ylim=(-1, 2), yticks=[])
    axis.spines[["left", "right", "top"]].set_visible(False)
    axis.spines["bottom"].set_color("#999999")
    axis.tick_params(labelsize=8, colors=_INK, length=2.5, pad=2)
    axis.locator_params(axis="x", nbins=4)
    if null is not None:
        axis.plot([null, null], [-1, 0.8], color=_HELDOUT, linewidth=1.2, linestyle=(0, (3, 2)))
        axis.plot([null], [0.8], marker="v", color=_HELDOUT, markersize=5)
    if measured.low is not None or measured.high is not None:
        # An end that is missing lies beyond what was looked at.
        low, high = (
            end if known is None else known for end, known in zip(ends, (measured.low, measured.high), strict=True)
        )
        axis.plot([low, high], [-0.2, -0.2], color=_GENERATED, linewidth=3, alpha=0.55, solid_capstyle="butt")
    axis.plot([value], [-0.2], marker="o", color=_GENERATED, markersize=7)
    right = measured.higher_is_better
    axis.annotate(
        "better →" if right else "← better",
        (1 if right else 0, 1),
        xycoords="axes fraction",
        ha="right" if right else "left",
        va="top",
        fontsize=7.5,
        color=_INK,
    )
    return figure


def _distances(
    outcome: Outcome, pairs: Sequence[Pair], detector: _Detector | None, figures: Path
) -> list[dict[str, Any]]:
    """A histogram for every distance to the training set that was measured."""
    found = []
    for place, (name, neighbors) in enumerate(outcome.sample.neighbors.items()):
        generated = neighbors.distances[:, 0].double().numpy()
        heldout = outcome.sample.reference.null_distances(name).double().numpy()
        limit = detector.limits.get(name) if detector else None
        # Names of embeddings can be paths.
        file = f"distances_{place}_{re.sub(r'[^A-Za-z0-9_]+', '_', name)[-40:]}.svg"
        below = [int((values < limit).sum()) if limit is not None else None for values in (generated, heldout)]
        found.append(
            {
                "name": name,
                "about": _DISTANCES.get(name, name),
                "medians": (float(np.median(generated)), float(np.median(heldout))),
                "sizes": (len(generated), len(heldout)),
                "limit": limit,
                "below": below,
                "figure": _save(_histogram(generated, heldout, limit), figures / file),
            }
        )
    return found


def _histogram(generated: NDArray[np.float64], heldout: NDArray[np.float64], limit: float | None) -> Figure:
    """Both sets' distances to the training set, as shares of each set; whatever lies below the limit is marked."""
    figure = Figure(figsize=(5.2, 3.0), layout="constrained")
    axis = figure.add_subplot()
    most = max(float(generated.max()), float(heldout.max())) or 1.0
    bins = np.linspace(0, 1.02 * most, 36)
    for values, colour, label, fill in (
        (heldout, _HELDOUT, f"held-out real images ({len(heldout)})", False),
        (generated, _GENERATED, f"generated images ({len(generated)})", True),
    ):
        axis.hist(
            values,
            bins=bins.tolist(),
            weights=np.full(len(values), 100 / len(values)),
            histtype="stepfilled" if fill else "step",
            color=colour,
            alpha=0.5 if fill else 1,
            linewidth=1.6,
            linestyle="-",
            label=label,
        )
    if limit is not None:
        axis.axvline(limit, color="black", linestyle=(0, (4, 2)), linewidth=1.2, label="limit: copies lie left of it")
        caught = generated[generated < limit]
        if len(caught):
            base = axis.get_xaxis_transform()
            axis.plot(caught, np.full(len(caught), 0.03), "x", color="black", transform=base, label="taken for a copy")
    axis.set(xlim=(-0.015 * most, 1.02 * most), xlabel="distance to the nearest training image", ylabel="% of its set")
    axis.spines[["right", "top"]].set_visible(False)
    figure.legend(loc="outside upper left", ncols=2, fontsize=8, frameon=False)
    return figure


def _save(figure: Figure, path: Path) -> str:
    """Writes an SVG that holds no date and no random name, and returns it in base64."""
    with matplotlib.rc_context({"svg.hashsalt": "memcontrol", "svg.fonttype": "path"}):
        figure.savefig(path, format="svg", metadata={"Date": None})
    return base64_text(path.read_bytes())


def _row(pair: Pair, outcome: Outcome, images: bool) -> dict[str, Any]:
    shown = {
        "generated": outcome.answers.images[pair.generated],
        "train": outcome.real.train.images[pair.train],
    }
    return {
        "pair": pair,
        "generated": outcome.hashes["generated"][pair.generated],
        "train": outcome.hashes["train"][pair.train],
        "images": {side: base64_text(_png(pixels)) for side, pixels in shown.items()} if images else None,
    }


def _png(pixels: NDArray[np.uint8]) -> bytes:
    image = Image.fromarray(pixels)
    image.thumbnail((_LARGEST, _LARGEST))
    stream = io.BytesIO()
    image.save(stream, format="png")
    return stream.getvalue()
