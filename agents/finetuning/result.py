"""The end of a long fine-tune: the model folded, measured on the test split, saved, and described."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

from agents.finetuning.card import EMBEDDED, model_card, worse_in
from agents.finetuning.fit import Books
from agents.finetuning.saving import fold, save_adapter, save_pipeline, takes_captions
from agents.finetuning.settings import FinetuneSettings
from agents.finetuning.workplace import Workplace
from agents.result import SCHEMA, git_state, hardware, named, versions
from agents.run_folder import RunFolder
from agents.workbench import described
from envs.mitigations import Stage
from rewards.measurement import Measurement


def finish(
    settings: FinetuneSettings, place: Workplace, folder: RunFolder, books: Books, *, ended: bool, started: float
) -> dict[str, Any]:
    """Writes ``adapter/``, ``pipeline/``, ``README.md`` and, last, ``result.json``.

    What is measured is the folded model, the one that others load, with the edits of mitigations in its weights, and,
    unlike there, with their steerings of the sampler.

    Args:
        settings: Of the run.
        place: With its trainer at the end.
        folder: Of the run.
        books: Of the run.
        ended: Whether the rule ended the training.
        started: When the run began, by ``time.monotonic``.

    Returns:
        What ``result.json`` holds.
    """
    assert place.test is not None
    place.trainer.finish(books.within if books.rule.metric is not None else None)
    saved_step = place.trainer.step if books.within_step is None else books.within_step
    schedule, denoiser = place.choice.schedule, place.backbone.denoiser
    names = {"name": place.task.method, "options": dict(place.task.method_settings), "scheme": place.task.scheme}
    adapter = folder.path / "adapter"
    # What is saved after nothing was learned is the base model, and that stays what it is.
    edits = place.treatment.edits if saved_step else ()
    if place.attachment.peft is not None and not edits:
        save_adapter(adapter, place.attachment, place.backbone, place.toggles, schedule, names)
    foldable = fold(denoiser, place.attachment, place.base_names)
    if not foldable:
        save_adapter(adapter, place.attachment, place.backbone, place.toggles, schedule, names)
    figures = dict(place.treatment.figures)
    for hook in place.trainer.hooks:
        figures |= hook.figures()
    began = time.monotonic()
    with ExitStack() as stack:
        for edit in edits:
            figures |= stack.enter_context(edit())
        metrics = place.test.measure(place.test.generate(place.treatment.steerings), place.test.evidence())
        measured = time.monotonic() - began
        if foldable:
            save_pipeline(place.base, denoiser, folder.path / "pipeline")
    validations = books.curves.history["validation"]
    on = tuple(any(bits) for bits in zip(*schedule.phases, strict=True))
    trainable = sum(parameter.numel() for parameter in place.trainer.parameters.values())
    summary = {
        "schema": SCHEMA,
        "job": "finetune",
        "status": "done",
        "task": {
            "id": place.task.id,
            "env": place.task.env,
            "backbone": place.task.backbone,
            "backbone_sha256": place.task.backbone_sha256,
            "method": place.task.method,
            "method_options": dict(place.task.method_settings),
            "groups": list(place.task.groups),
        },
        "data": described(place.dataset),
        "selected": {
            "mask": [int(bit) for bit in schedule.phases[-1]],
            "schedule": schedule.key,
            "groups": named(on, place.task.groups),
            "source": place.choice.source,
            "trainable_parameters": trainable,
            "trainable_share": trainable / place.total_parameters,
        },
        "training": dataclasses.asdict(settings.training)
        | {
            "ema_decay": settings.ema.decay,
            "precision": settings.backbone.precision,
            "steps_taken": place.trainer.step,
            "saved_step": saved_step,
            "final_images": settings.final.images,
        },
        "mitigations": {"chosen": _chosen(place), "figures": figures},
        "sampling": {"steps": settings.inner.sampling_steps, "guidance_scale": settings.inner.guidance_scale},
        "stop": {"rule": books.rule.words, "ended": ended, "words": _stop_words(place, books, ended)},
        "metrics": {name: measurement.to_json() for name, measurement in metrics.items()},
        "validations": validations,
        "axes": None,
        "anchors": None,
        "pipeline": "pipeline" if foldable else None,
        "adapter": "adapter" if adapter.is_dir() else None,
        "adapter_note": _adapter_note(place) if edits else "",
        "evaluations": {
            "distinct": len(validations) + 1,
            "cached": 0,
            "failed": 0,
            "seconds": books.curves.history["seconds"] + measured,
        },
        "seed": settings.seed,
        "seconds": time.monotonic() - started,
        "versions": versions(),
        "git": git_state(),
        "hardware": hardware(),
    }
    base = settings.backbone.path or EMBEDDED
    card = model_card(summary, base=base, conditional=takes_captions(place.base))
    (folder.path / "README.md").write_text(card, encoding="utf-8")
    folder.write_json("result.json", summary)
    return summary


def above_null(metrics: Mapping[str, Any]) -> list[str]:
    """Of the ``metrics`` of a ``result.json``, those of memorization that are worse than their null."""
    return worse_in({name: Measurement.from_json(fields) for name, fields in metrics.items()})


def _chosen(place: Workplace) -> dict[str, Any]:
    """The mitigations by name: settings, paper, and whether what they do is in the files."""
    steered = bool(place.treatment.steerings)
    return {
        each.name: {
            "settings": dict(each.settings),
            "source": each.source,
            "saved": not (steered and each.stage == Stage.SAMPLING),
        }
        for each in place.treatment.mitigations
    }


def _adapter_note(place: Workplace) -> str:
    """Why a method's adapter is not saved, if that is so where there are edits."""
    if place.attachment.peft is None:
        return ""
    names = [each.name for each in place.treatment.mitigations if each.stage == Stage.WEIGHTS]
    return f"There is no adapter: alone it would not carry {' and '.join(names)}."


def _stop_words(place: Workplace, books: Books, ended: bool) -> str:
    """What the rule did."""
    taken = place.trainer.step
    if books.rule.metric is None:
        return f"It was trained for {taken} steps."
    if not ended:
        return f"It was trained for {taken} steps, and no validation was beyond the limit."
    if books.within_step == 0:
        return f"After {taken} steps, at the first validation, the limit was broken: what is saved is the base model."
    return f"After {taken} steps the limit was broken: what is saved is the model after {books.within_step} steps."
