"""``python -m agents.audit``: what generated images, or a model, give away of the images that were trained on."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from hydra.core.hydra_config import HydraConfig
from numpy.typing import NDArray
from omegaconf import DictConfig
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from torch import Tensor

from agents.auditing.images import check_same_size, image_hashes, read_real_images, set_hash
from agents.auditing.model import Answers, Show, ask, is_pipeline, load_pipeline, named_images
from agents.auditing.outcome import Outcome, summarize
from agents.auditing.report import write_report
from agents.auditing.settings import AuditSettings
from agents.auditing.thresholds import Thresholds, read_thresholds
from agents.entry import NOT_MET, entry_point
from agents.run_folder import RunFolder
from agents.settings import read_settings
from envs.datasets.loose import read_image_set
from envs.task import content_hash
from rewards.duplicates import NEAR_DUPLICATE_RADIUS
from rewards.evidence import Evidence
from rewards.features import cached_embedding
from rewards.memorization.copy_rate import CopyRate
from rewards.suite import Suite


@entry_point("audit")
def main(config: DictConfig) -> None:
    """Audits ``generated=`` against ``train=`` and ``heldout=``."""
    settings = read_settings(config, AuditSettings)
    thresholds = read_thresholds(settings.policy)
    with audit_progress() as show:
        outcome = audit(settings, thresholds, show)
    task = f"{Path(settings.generated).stem or 'generated'}-{outcome.id[:8]}"
    with RunFolder.create(settings.run_dir, "audit", task, config, HydraConfig.get().overrides.task) as folder:
        summary = summarize(settings, thresholds, outcome)
        report = write_report(folder.path, summary, outcome, images=settings.report.images)
        folder.write_json("result.json", summary)
    for check in summary["verdict"]["checks"]:
        if check["passed"] is False:
            print(f"not met: {check['metric']} {check['rule']}: {check['note'] or check['value']}")
    passed = summary["verdict"]["passed"]
    print(f"{'passed' if passed else 'NOT PASSED'}: {summary['verdict']['words']}\nreport {report}")
    if not passed:
        sys.exit(NOT_MET)


def audit(settings: AuditSettings, thresholds: Thresholds, show: Show) -> Outcome:
    """Reads, samples and measures; writes nothing.

    Raises:
        InputError: If an image, a set, the pipeline, a metric or its settings cannot be used.
    """
    started = time.monotonic()
    radius = NEAR_DUPLICATE_RADIUS if settings.duplicate_radius is None else settings.duplicate_radius
    cache = None if settings.cache is None else Path(settings.cache)
    suite = Suite(
        settings.metrics,
        settings.settings,
        duplicate_radius=radius,
        embed=lambda name: cached_embedding(name, cache),
    )
    show("reading", 0, 1)
    model = load_pipeline(settings.generated) if is_pipeline(settings.generated) else None
    size = settings.size if model is None else model.image_size
    real = read_real_images(settings.train, settings.heldout, size, radius)
    if model is None:
        given = read_image_set(settings.generated, size)
        check_same_size({"generated": given, "train": real.train})
        prompts = given.captions if all(given.captions) else None
        answers = Answers(given.images, Evidence(prompts=prompts), {}, ())
    else:
        named_images(settings, real)
        answers = ask(settings, model, real, suite.needs, show)
    show("embedding real images", 0, 1)
    reference = suite.reference(as_tensor(real.train.images), as_tensor(real.heldout.images))
    show("embedding generated images", 0, 1)
    sample = suite.sample(reference, as_tensor(answers.images), answers.evidence)
    measurements = {}
    for done, (name, metric) in enumerate(suite.metrics.items()):
        show(f"measuring {name}", done, len(suite.metrics))
        measurements[name] = metric.measure(sample)
    hashes = {
        name: image_hashes(images)
        for name, images in (
            ("generated", answers.images),
            ("train", real.train.images),
            ("heldout", real.heldout.images),
        )
    }
    identity = {
        "sets": {name: set_hash(each) for name, each in hashes.items()},
        "model": None if model is None else model.sha256,
        "metrics": settings.metrics,
        "settings": settings.settings,
        "radius": radius,
        "seed": settings.seed,
    }
    detector = suite.metrics.get(CopyRate.name)
    return Outcome(
        id=content_hash(identity)[:16],
        detector=detector if isinstance(detector, CopyRate) else CopyRate(),
        real=real,
        answers=answers,
        sample=sample,
        measurements=measurements,
        checks=thresholds.check(measurements),
        hashes=hashes,
        model_sha256=None if model is None else model.sha256,
        seconds=time.monotonic() - started,
    )


def as_tensor(images: NDArray[np.uint8]) -> Tensor:
    """``(n, h, w, 3)`` to ``(n, 3, h, w)``, still uint8."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


@contextmanager
def audit_progress() -> Iterator[Show]:
    """A bar on stderr that says what is being done."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar: TaskID = progress.add_task("reading", total=None)

        def show(what: str, done: int, total: int) -> None:
            progress.update(bar, description=what, completed=done, total=None if total < 2 else total)

        yield show


if __name__ == "__main__":
    main()
