from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from agents.auditing.images import RealImages, image_hashes
from agents.auditing.model import Answers
from agents.auditing.outcome import PAIRS, Outcome, summarize
from agents.auditing.report import EXPLANATIONS, write_report
from agents.auditing.settings import AuditSettings, NamedImages, SamplingSettings
from agents.auditing.thresholds import Limits, Thresholds
from agents.pages import number
from agents.settings import ReportSettings
from envs.datasets.base import ImageSet
from rewards.evidence import Evidence
from rewards.inversion import InversionResult, InversionSettings
from rewards.measurement import Measurement
from rewards.memorization.copy_rate import CopyRate
from rewards.suite import METRICS, Suite

SETTINGS: Mapping[str, dict[str, Any]] = {
    "copy_rate": {"distances": ["pixels"]},
    "average_minimum_distance": {"distance": "pixels"},
    "kid": {"embedding": "pixels"},
}
COPIES = 4


@dataclass
class Case:
    summary: dict[str, Any]
    outcome: Outcome

    def page(self, folder: Path, *, images: bool = False) -> str:
        return write_report(folder, self.summary, self.outcome, images=images).read_text(encoding="utf-8")


def some_images(n: int, seed: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (n, 8, 8, 3), dtype=np.uint8)


def image_set(images: NDArray[np.uint8], groups: str = "patient") -> ImageSet:
    names = tuple(f"{groups}{i}" for i in range(len(images))) if groups else ("",) * len(images)
    return ImageSet(images, names, names, ("",) * len(images), np.zeros(len(images), dtype=np.int64))


def as_tensor(images: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


def make(
    *names: str,
    limits: Mapping[str, Limits] | None = None,
    copies: int = COPIES,
    source: str = "generated",
    inversions: Mapping[str, InversionResult] | None = None,
    groups: str = "patient",
    seconds: float = 1.0,
) -> Case:
    train, heldout = image_set(some_images(12, 0), groups), image_set(some_images(40, 1), "other")
    generated = np.concatenate([train.images[:copies], some_images(30 - copies, 2)])
    suite = Suite(names, {name: SETTINGS[name] for name in names if name in SETTINGS})
    reference = suite.reference(as_tensor(train.images), as_tensor(heldout.images))
    sample = suite.sample(reference, as_tensor(generated), Evidence())
    measurements = {name: metric.measure(sample) for name, metric in suite.metrics.items()}
    thresholds = Thresholds(Path("policy.yaml"), "0" * 64, limits or {"copy_rate": Limits(max=0.05)})
    sets = {"generated": generated, "train": train.images, "heldout": heldout.images}
    outcome = Outcome(
        id="0" * 16,
        detector=CopyRate(),
        real=RealImages(train, heldout, 3),
        answers=Answers(generated, Evidence(), dict(inversions or {}), ("a note <i>to read</i>",)),
        sample=sample,
        measurements=measurements,
        checks=thresholds.check(measurements),
        hashes={name: image_hashes(images) for name, images in sets.items()},
        model_sha256=None,
        seconds=seconds,
    )
    settings = AuditSettings(
        generated=source,
        train="train.npz",
        heldout="heldout.npz",
        base=None,
        policy=None,
        size=None,
        metrics=list(names),
        settings={},
        duplicate_radius=None,
        cache=None,
        sampling=SamplingSettings(images=8, steps=2, guidance_scale=1.0, per_prompt=2),
        loss_draws=1,
        inversion=NamedImages(images=0, named=[], rate=0.01, search=InversionSettings()),
        report=ReportSettings(),
        seed=0,
        run_dir="runs",
    )
    return Case(summarize(settings, thresholds, outcome), outcome)


@pytest.fixture(scope="module")
def usual() -> Case:
    return make("copy_rate", "average_minimum_distance", "kid", "membership")


class Reader(HTMLParser):
    """What a browser would see."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.open: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in ("td", "th", "dd", "small"):
            self.words += " "
        if tag not in ("meta", "img", "br", "path", "circle"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("meta", "img", "br", "path", "circle"):
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words += data

    @property
    def text(self) -> str:
        return " ".join(self.words.split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def read(case: Case, folder: Path, *, images: bool = False) -> Reader:
    reader = Reader(case.page(folder, images=images))
    assert not reader.open
    return reader


def test_every_metric_has_an_explanation() -> None:
    assert EXPLANATIONS.keys() == METRICS.keys()
    assert all(len(words) > 20 and words.endswith(".") for words in EXPLANATIONS.values())


def test_the_page_needs_nothing_from_outside(usual: Case, tmp_path: Path) -> None:
    page = read(usual, tmp_path, images=True)
    links = [value for _, tag in page.tags for key, value in tag.items() if key in ("src", "href", "srcset", "action")]
    assert links
    assert all(link and link.startswith("data:image/") for link in links)
    assert not {"script", "link", "iframe", "object", "base"} & {tag for tag, _ in page.tags}
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"https?://|@import|url\(", text)


def test_reads_aloud_and_in_tables(usual: Case, tmp_path: Path) -> None:
    page = read(usual, tmp_path, images=True)
    assert page.all("html") == [{"lang": "en"}]
    assert all(image["alt"] for image in page.all("img"))
    assert all("scope" in cell for cell in page.all("th"))


def test_says_first_whether_it_passed_and_what_was_found(usual: Case, tmp_path: Path) -> None:
    text = read(usual, tmp_path).text
    assert "NOT PASSED" in text
    assert "1 of 1 limits is broken" in text
    assert f"{COPIES} of 30 generated images look like copies, of {COPIES} training images ({COPIES} patients)." in text
    assert "chance alone would make less than one look like a copy" in text
    assert text.index("NOT PASSED") < text.index("look like copies") < text.index("at most 0.05")
    assert "✗ broken" in text


def test_a_copy_of_nobody_known(tmp_path: Path) -> None:
    text = read(make("copy_rate", copies=1, groups=""), tmp_path).text
    assert "1 of 30 generated images looks like a copy, of 1 training image (patients unknown)." in text


def test_passes_in_words_that_promise_little(tmp_path: Path) -> None:
    limits = {"copy_rate": Limits(max=0.5), "membership": Limits(max=0.6)}
    text = read(make("copy_rate", "membership", limits=limits, copies=0), tmp_path).text
    assert "✓ PASSED" in text
    assert "NOT PASSED" not in text
    assert "Every limit that could be looked at was kept (1 of 2)." in text
    assert "1 of 2 limits was not looked at" in text
    assert "not looked at there are no denoising losses" in text
    assert "None of 30 generated images looks like a copy" in text
    assert "A copy that comes up less often than once in about 10 images may have been missed." in text


def test_nothing_checked_is_not_passed(tmp_path: Path) -> None:
    case = make("copy_rate", limits={"membership": Limits(max=0.6)})
    text = read(case, tmp_path).text
    assert case.summary["verdict"]["passed"] is False
    assert "NOTHING WAS CHECKED" in text
    assert "✓" not in text


def test_a_required_metric_without_a_value_is_broken_and_says_why(tmp_path: Path) -> None:
    case = make("membership", limits={"membership": Limits(max=0.6, required=True)})
    text = read(case, tmp_path).text
    assert "✗ broken required, but not measured: there are no denoising losses" in text


def test_shows_value_interval_null_and_size_of_every_metric(usual: Case, tmp_path: Path) -> None:
    page = read(usual, tmp_path)
    for name, measured in usual.outcome.measurements.items():
        assert EXPLANATIONS[name] in page.text
        if measured.value is not None:
            assert f"{number(measured.value)} [{number(measured.low)}, {number(measured.high)}]" in page.text
            assert (tmp_path / "figures" / f"{name}.svg").is_file()
            alt = next(str(image["alt"]) for image in page.all("img") if str(image["alt"]).startswith(f"{name} is"))
            assert f"null {number(measured.null)}" in alt
    assert "worse than null" in page.text
    assert "membership" in page.text.split("What was not measured")[1]


@pytest.mark.parametrize(
    ("low", "high", "null", "higher", "words"),
    [
        (0.2, 0.4, 0.1, False, "worse than null"),
        (0.2, 0.4, 0.1, True, "better than null"),
        (0.2, 0.4, 0.3, True, "like null"),
        (0.2, 0.4, 0.5, False, "better than null"),
        (0.2, 0.4, 0.5, True, "worse than null"),
        (None, None, 0.5, True, ""),
        (0.2, None, 0.1, True, ""),
        (0.2, 0.4, None, True, ""),
    ],
)
def test_reads_an_interval_beside_its_null(
    low: float | None, high: float | None, null: float | None, higher: bool, words: str, usual: Case, tmp_path: Path
) -> None:
    outcome = replace(usual.outcome, measurements={"copy_rate": Measurement(0.3, null, low, high, 9, higher)})
    text = read(Case(usual.summary, outcome), tmp_path).text.split("Memorization")[1].split("Quality")[0]
    for reading in ("worse than null", "better than null", "like null"):
        assert (reading in text) == (reading == words)


def test_marks_the_detectors_limit_where_pairs_are_flagged(usual: Case, tmp_path: Path) -> None:
    text = read(usual, tmp_path).text
    flagged = sum(pair.flagged for pair in usual.outcome.pairs())
    assert flagged >= COPIES
    assert f": {flagged} of 30 generated, " in text


def test_names_pairs_by_their_hashes(usual: Case, tmp_path: Path) -> None:
    page = usual.page(tmp_path)
    for pair in usual.outcome.pairs()[:PAIRS]:
        assert usual.outcome.hashes["generated"][pair.generated][:12] in page
        assert usual.outcome.hashes["train"][pair.train][:12] in page
    assert "patient0" not in page


def png_images(page: Reader) -> list[NDArray[np.uint8]]:
    start = "data:image/png;base64,"
    found = [str(image["src"]) for image in page.all("img")]
    return [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(each.removeprefix(start)))))
        for each in found
        if each.startswith(start)
    ]


def test_no_image_leaves_without_being_asked_for(usual: Case, tmp_path: Path) -> None:
    page = read(usual, tmp_path)
    assert not png_images(page)
    assert all(str(image["src"]).startswith("data:image/svg+xml;base64,") for image in page.all("img"))
    for image in page.all("img"):
        assert b"<image" not in base64.b64decode(str(image["src"]).split(",")[1])


def test_images_stand_in_the_page_only(usual: Case, tmp_path: Path) -> None:
    without, asked = tmp_path / "without", tmp_path / "asked"
    usual.page(without)
    shown = png_images(read(usual, asked, images=True))
    pairs = usual.outcome.pairs()[:PAIRS]
    expected = [
        image
        for pair in pairs
        for image in (usual.outcome.answers.images[pair.generated], usual.outcome.real.train.images[pair.train])
    ]
    assert len(shown) == len(expected)
    assert all(np.array_equal(a, b) for a, b in zip(shown, expected, strict=True))
    files = {path.relative_to(asked): path.read_bytes() for path in asked.rglob("*") if path.is_file()}
    assert files.keys() == {path.relative_to(without) for path in without.rglob("*") if path.is_file()}
    for path, content in files.items():
        if path != Path("report.html"):
            assert path.suffix == ".svg"
            assert content == (without / path).read_bytes()
            assert b"<image" not in content


def test_large_images_are_shown_smaller(usual: Case, tmp_path: Path) -> None:
    answers = replace(usual.outcome.answers, images=np.zeros((30, 300, 600, 3), dtype=np.uint8))
    outcome = replace(usual.outcome, answers=answers)
    page = read(Case(usual.summary, outcome), tmp_path, images=True)
    assert png_images(page)[0].shape == (128, 256, 3)
    assert "All are 600 x 300 pixels." in page.text


def test_markup_in_names_is_text(tmp_path: Path) -> None:
    evil = '"><script>alert(1)</script><img src=x onerror=alert(2)>'
    case = make("copy_rate", source=evil)
    case.summary["verdict"]["policy"]["path"] = evil
    case.summary["versions"]["torch"] = evil
    case.summary["not_measured"] = {evil: evil}
    case.summary["verdict"]["checks"][0]["note"] = evil
    page = read(case, tmp_path)
    assert not page.all("script")
    assert all("onerror" not in image for image in page.all("img"))
    assert page.text.count(evil) == 9
    assert "a note <i>to read</i>" in page.text


def test_named_images(tmp_path: Path) -> None:
    results = {
        "patient0": InversionResult(0.25, True, 40, 1.0),
        "patient1": InversionResult(float("inf"), False, 99, 0.1),
    }
    case = make("copy_rate", inversions=results)
    text = read(case, tmp_path).text
    hashes = case.outcome.hashes["train"]
    assert f"{hashes[0][:12]} ✗ found 0.25 40" in text
    assert f"{hashes[1][:12]} not found beyond the budget 99" in text
    assert "Named images that were tried" not in read(make("kid"), tmp_path).text


def test_nothing_measured(tmp_path: Path) -> None:
    text = read(make("membership"), tmp_path).text
    assert "Copies were not looked for" in text
    assert "No pairs" in text
    assert "No distance to the training images was measured." in text
    assert text.count("Nothing of this kind was measured.") == 2


def test_no_limit_and_no_metric(usual: Case, tmp_path: Path) -> None:
    summary = usual.summary | {
        "not_measured": {},
        "verdict": usual.summary["verdict"] | {"checks": [], "passed": False},
    }
    text = read(Case(summary, replace(usual.outcome, measurements={}, checks=[])), tmp_path).text
    assert "NOTHING WAS CHECKED" in text
    assert "Every metric of this audit has a value." in text


def test_one_metric_that_knows_no_copies(tmp_path: Path) -> None:
    text = read(make("kid"), tmp_path).text
    assert "Copies were not looked for" in text
    assert "Nothing of this kind was measured." in text.split("Memorization")[1].split("Quality")[0]


@pytest.mark.parametrize("value", [0.0, -3.0, 1e6, 1e-9])
def test_a_value_alone(value: float, usual: Case, tmp_path: Path) -> None:
    measured = {"fid": Measurement(value, None, None, None, 30, False)}
    page = read(Case(usual.summary, replace(usual.outcome, measurements=measured)), tmp_path)
    assert f"{number(value)} no interval none 30" in page.text


def test_an_interval_with_one_end(usual: Case, tmp_path: Path) -> None:
    measured = {"inversion": Measurement(0.25, None, 0.125, None, 6, True)}
    page = read(Case(usual.summary, replace(usual.outcome, measurements=measured)), tmp_path)
    assert "0.25 [0.125, ?] none 6" in page.text


def test_tells_where_the_data_came_from_and_how_it_was_made(usual: Case, tmp_path: Path) -> None:
    text = read(usual, tmp_path).text
    assert "3 held-out images were left out" in text
    for words in ("train.npz", "heldout.npz", "12 distinct", "licence is not known", "policy.yaml", "0" * 64):
        assert words in text
    assert all(f"{name} {version}" in text for name, version in usual.summary["versions"].items())


def test_the_same_outcome_makes_the_same_bytes(tmp_path: Path) -> None:
    pages = [make("copy_rate", "kid").page(tmp_path / each, images=True) for each in ("a", "b")]
    assert pages[0] == pages[1]
    later = make("copy_rate", "kid", seconds=70.0).page(tmp_path / "c", images=True)
    assert later.replace("0, 70 s", "0, 1 s") == pages[0]
