"""Which fine-tunes the comparison of mitigations consists of, and with which mask."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from agents.export import ExportedPolicy
from agents.lookup import known_tables, read_table
from agents.mitigating.settings import FULL, MitigationsSettings
from agents.probing import seen_by_policy, trainable_counts
from agents.search.experience import experience_of
from agents.source_policy import SourcePolicy
from agents.study.laboratory import Cell, Laboratory
from envs.features import GROUP_FEATURES, TASK_FEATURES
from envs.groups import find_groups
from envs.methods import find_method
from envs.mitigations import find_mitigations, prepared_images
from rewards.errors import InputError
from rewards.objective import Objective

ALL, NONE, CHOSEN = "all", "none", "chosen"
"""Names of masks: everything learns, nothing, what was chosen."""


@dataclass(frozen=True)
class Choice:
    """The mask of one data set.

    Attributes:
        groups: Names of the groups that learn.
        source: Where it comes from, in words.
    """

    groups: tuple[str, ...]
    source: str


def choose(settings: MitigationsSettings, env: str) -> Choice:
    """The mask that was given for a data set, or that of a policy learned on tables of the others.

    Raises:
        InputError: If there is no table of another data set, or nothing would learn.
    """
    laboratory = Laboratory(settings, env, {ALL: "all"}, "mitigations")
    if env in settings.masks:
        mask = Laboratory(settings, env, {CHOSEN: settings.masks[env]}, "mitigations").masks[CHOSEN]
        source = "given in the call"
    else:
        task = laboratory.task(_cell(settings, FULL, ALL, "", 0), "heldout")
        tables = [
            table
            for table in map(read_table, known_tables(settings.run_dir))
            if table.task.env != env
            and table.task.backbone_sha256 == task.backbone_sha256
            and table.task.groups == task.groups
        ]
        if not tables:
            raise InputError(
                f"masks has none of {env}, and there is no table of another data set to learn from",
                f"set +masks.{env}=<mask>, or measure one with python -m agents.tabulate",
            )
        objective = Objective(tuple(settings.reward.quality), tuple(settings.reward.privacy))
        network = SourcePolicy(tuple(experience_of(table, objective) for table in tables)).network(0)
        backbone, method = laboratory.backbone, find_method(FULL)
        groups = find_groups(backbone.denoiser, settings.groups)
        seen = seen_by_policy(
            backbone,
            laboratory.dataset,
            method.toggles(groups),
            trainable_counts(method(copy.deepcopy(backbone.denoiser), groups, calibration=lambda: ())),
            task.inner,
            threads=settings.threads,
            seed=0,
        )
        mask = ExportedPolicy(network, GROUP_FEATURES, TASK_FEATURES).choose(*seen, settings.preference)
        sources = ", ".join(sorted({f"{table.task.env}-{table.task.method}" for table in tables}))
        source = f"of a policy at preference {settings.preference:g} that learned on {sources}"
    groups_on = tuple(name for name, on in zip(laboratory.groups, mask, strict=True) if on)
    if not groups_on:
        raise InputError(f"{env}: the mask {source} trains nothing", f"set +masks.{env}=<mask>")
    return Choice(groups_on, source)


def cells(settings: MitigationsSettings) -> Iterator[Cell]:
    """Anchors, early stops, and every subject with every mitigation and without any, for each seed."""
    for seed in settings.seeds:
        yield _cell(settings, FULL, NONE, "", seed)
        for steps in settings.early_stops:
            yield Cell(FULL, ALL, steps, settings.learning_rates[FULL], seed)
        for method, mask in subjects(settings):
            for mitigations in ("", *settings.mitigations):
                yield _cell(settings, method, mask, mitigations, seed)


def inversion_cells(settings: MitigationsSettings) -> Iterator[Cell]:
    """Those whose images are inverted."""
    for seed in settings.inversion_seeds:
        yield _cell(settings, FULL, NONE, "", seed)
        for method, mask in subjects(settings):
            if method == FULL or settings.inversion_copies:
                for mitigations in ("", *settings.mitigations):
                    yield _cell(settings, method, mask, mitigations, seed)


def subjects(settings: MitigationsSettings) -> list[tuple[str, str]]:
    """Method and mask of what mitigations are put on."""
    return [(FULL, ALL), *((method, CHOSEN) for method in settings.methods)]


def refusals(settings: MitigationsSettings, laboratory: Laboratory) -> Mapping[tuple[str, str], str]:
    """Method and mitigations that do not go together on this data set, and why."""
    found: dict[tuple[str, str], str] = {}
    for method in settings.methods:
        for mitigations in settings.mitigations:
            names = mitigations.split(",")
            try:
                chosen = find_mitigations({name: settings.mitigation_options.get(name, {}) for name in names})
                prepared_images(chosen, laboratory.backbone, laboratory.dataset.train, method, settings.seeds[0])
            except InputError as error:
                found[method, mitigations] = error.what
    return found


def _cell(settings: MitigationsSettings, method: str, mask: str, mitigations: str, seed: int) -> Cell:
    return Cell(method, mask, settings.inner.steps, settings.learning_rates[method], seed, mitigations)
