"""Which fine-tunes the comparison of mitigations consists of."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

from agents.mitigating.settings import FULL, MitigationsSettings
from agents.study.laboratory import Cell, Laboratory
from envs.mitigations import Stage, prepared_images
from rewards.errors import InputError

ALL, NONE, CHOSEN = "all", "none", "chosen"
"""Names of masks: everything learns, nothing, what was chosen."""


def cells(settings: MitigationsSettings) -> Iterator[Cell]:
    """Anchors, early stops, and every subject with every mitigation and without any, for each seed."""
    for seed in settings.seeds:
        yield cell_of(settings, FULL, NONE, "", seed)
        for steps in settings.early_stops:
            yield Cell(FULL, ALL, steps, settings.learning_rates[FULL], seed)
        for method, mask in subjects(settings):
            for mitigations in ("", *settings.mitigations):
                yield cell_of(settings, method, mask, mitigations, seed)


def inversion_cells(settings: MitigationsSettings) -> Iterator[Cell]:
    """Those whose images are inverted."""
    for seed in settings.inversion_seeds:
        yield cell_of(settings, FULL, NONE, "", seed)
        for method, mask in subjects(settings):
            if method == FULL or settings.inversion_copies:
                for mitigations in ("", *settings.mitigations):
                    yield cell_of(settings, method, mask, mitigations, seed)


def with_same_weights(cell: Cell, laboratory: Laboratory) -> Cell:
    """The cell without those of its mitigations that leave the trained weights as they are.

    Those of the sampler do, and those of the data that change no image. What asks the weights alone has one answer for
    both cells.
    """
    images = laboratory.dataset.train
    acting = set[str]()
    for each in laboratory.mitigations(cell.mitigations):
        prepared = each.prepared(images, cell.seed)
        idle = prepared is images if each.stage is Stage.DATA else each.stage is Stage.SAMPLING
        if not idle:
            acting.add(each.name)
        images = prepared
    return dataclasses.replace(cell, mitigations=",".join(n for n in cell.mitigations.split(",") if n in acting))


def subjects(settings: MitigationsSettings) -> list[tuple[str, str]]:
    """Method and mask of what mitigations are put on."""
    return [(FULL, ALL), *((method, CHOSEN) for method in settings.methods)]


def refusals(settings: MitigationsSettings, laboratory: Laboratory) -> Mapping[tuple[str, str], str]:
    """Method and mitigations that do not go together on this data set, and why; any mitigation, if it is empty."""
    found: dict[tuple[str, str], str] = {}
    for method in settings.methods:
        if not laboratory.trains(method, CHOSEN):
            found[method, ""] = "the method has no parameter in these groups"
            continue
        for mitigations in settings.mitigations:
            try:
                chosen = laboratory.mitigations(mitigations)
                prepared_images(chosen, laboratory.backbone, laboratory.dataset.train, method, settings.seeds[0])
            except InputError as error:
                found[method, mitigations] = error.what
    return found


def cell_of(settings: MitigationsSettings, method: str, mask: str, mitigations: str, seed: int) -> Cell:
    """A fine-tune with the whole budget, at the method's learning rate."""
    return Cell(method, mask, settings.inner.steps, settings.learning_rates[method], seed, mitigations)
