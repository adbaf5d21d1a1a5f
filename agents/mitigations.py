"""``python -m agents.mitigations`` (``make mitigations``): compares mitigations, and writes ``docs/mitigations.md``."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from agents.callbacks import search_progress
from agents.entry import entry_point
from agents.mitigating.choice import Choice, check_given, choose
from agents.mitigating.document import write_document
from agents.mitigating.plan import ALL, CHOSEN, NONE, cells, inversion_cells, refusals, with_same_weights
from agents.mitigating.settings import MitigationsSettings
from agents.parts import Parts, Record
from agents.search.versions import version_of
from agents.settings import read_settings
from agents.study.laboratory import Cell, Laboratory, Show, to_json
from envs.task import CODE_VERSION, mitigation_versions

_INVERSION = ("inversion", "inversion_success")


@entry_point("mitigations")
def main(config: DictConfig) -> None:
    """Chooses a mask a data set, fine-tunes with every mitigation, inverts named images, and writes the page."""
    settings = read_settings(config, MitigationsSettings)
    parts = Parts(Path(settings.run_dir) / "mitigations")
    records = compute(settings, parts)
    print(f"wrote {write_document(Path(settings.docs), settings, records)}")


def compute(settings: MitigationsSettings, parts: Parts) -> dict[str, Record]:
    """The records of each data set; known ones cost nothing, and no evaluation in the store is paid for again."""
    laboratories = {env: _laboratory(settings, env) for env in settings.envs}  # what is wrong with any is said now
    records: dict[str, Record] = {}
    # Of the other parts, each says how many there are once the mask is known: it decides what can be combined.
    totals = {f"{env} search": settings.choice_evaluations + 2 for env in settings.envs}
    with search_progress(totals) as show:
        for env, laboratory in laboratories.items():
            identity = _identity(settings, laboratory)
            chosen = parts.obtain(
                f"{env}-choice",
                identity | _search(settings, env),
                lambda each=laboratory: dataclasses.asdict(  # type: ignore[misc]
                    choose(settings, each, f"{each.env} search", show)
                ),
            )
            choice = Choice.from_json(chosen["result"])
            masks = {ALL: "all", NONE: "none", CHOSEN: ",".join(choice.groups)}
            records |= {f"{env}-choice": chosen} | _of_env(settings, env, masks, identity, parts, totals, show)
    return records


def _laboratory(settings: MitigationsSettings, env: str) -> Laboratory:
    given = {CHOSEN: settings.masks[env]} if env in settings.masks else {}
    laboratory = Laboratory(settings, env, {ALL: "all", NONE: "none", **given}, "mitigations")
    check_given(laboratory)
    return laboratory


def _of_env(
    settings: MitigationsSettings,
    env: str,
    masks: dict[str, str],
    identity: dict[str, Any],
    parts: Parts,
    totals: dict[str, int],
    show: Show,
) -> dict[str, Record]:
    laboratory = Laboratory(settings, env, masks, "mitigations")
    refused = refusals(settings, laboratory)

    def possible(each: Cell) -> bool:
        return not {(each.method, ""), (each.method, each.mitigations)} & refused.keys()

    def measured() -> dict[str, Any]:
        wanted = [each for each in cells(settings) if possible(each)]
        totals[env] = len(wanted)
        found = laboratory.evaluate(wanted, "test", env, show)
        return {"cells": to_json(found), "refused": [[*pair, reason] for pair, reason in refused.items()]}

    def inverted() -> list[dict[str, Any]]:
        own = dataclasses.replace(settings, metrics=[*settings.metrics, *_INVERSION])
        wanted = {each: with_same_weights(each, laboratory) for each in inversion_cells(settings) if possible(each)}
        unlike = list(dict.fromkeys(wanted.values()))
        totals[what := f"{env} inverted"] = len(unlike)
        found = Laboratory(own, env, masks, "mitigations").evaluate(unlike, "test", what, show)
        return to_json({each: found[same] for each, same in wanted.items()})

    plan = {"cells": [dataclasses.asdict(each) for each in cells(settings)], "mask": masks[CHOSEN]}
    named = {"cells": [dataclasses.asdict(each) for each in inversion_cells(settings)], "mask": masks[CHOSEN]}
    return {
        env: parts.obtain(env, identity | plan, measured),
        f"{env}-inversion": parts.obtain(f"{env}-inversion", identity | named, inverted),
    }


def _identity(settings: MitigationsSettings, laboratory: Laboratory) -> dict[str, Any]:
    """What decides every part's numbers, besides what it is a part of."""
    return {
        "env": laboratory.env,
        "split": laboratory.dataset.split_sha256,
        "backbone": laboratory.backbone.sha256,
        "method_options": settings.method_options,
        "mitigation_options": settings.mitigation_options,
        "learning_rates": settings.learning_rates,
        "groups": settings.groups,
        "inner": dataclasses.asdict(settings.inner),
        "metrics": settings.metrics,
        "threads": settings.threads,
        "code": CODE_VERSION,
        "mitigation_code": mitigation_versions(name for each in settings.mitigations for name in each.split(",")),
    }


def _search(settings: MitigationsSettings, env: str) -> dict[str, Any]:
    """What decides the mask, besides that."""
    reward = settings.reward
    return {
        "mask": settings.masks.get(env),
        "preference": settings.preference,
        "evaluations": settings.choice_evaluations,
        "seed": settings.choice_seed,
        "objective": [reward.quality, reward.privacy, reward.scalarization, reward.rho],
        "policy": version_of("policy"),
    }


if __name__ == "__main__":
    main()
