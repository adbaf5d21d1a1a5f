"""``python -m agents.methods`` (``make methods``): compares every adaptation method, and writes ``docs/methods.md``."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from agents.callbacks import search_progress
from agents.capacity.document import write_document
from agents.capacity.runs import best_rates, table_cells, tuning_cells
from agents.capacity.settings import MethodsSettings
from agents.capacity.timing import step_times
from agents.entry import entry_point
from agents.parts import Parts, Record
from agents.settings import read_settings
from agents.study.laboratory import Laboratory, from_json, to_json
from envs.task import CODE_VERSION


@entry_point("methods")
def main(config: DictConfig) -> None:
    """Chooses learning rates, measures every method with every mask, times training steps, and writes the page."""
    settings = read_settings(config, MethodsSettings)
    envs = dict.fromkeys([settings.tuning.env, *settings.envs])
    laboratories = {env: Laboratory(settings, env, settings.masks, "methods") for env in envs}
    parts = Parts(Path(settings.run_dir) / "methods")
    records = compute(settings, laboratories, parts)
    print(f"wrote {write_document(Path(settings.docs), settings, records)}")


def compute(settings: MethodsSettings, laboratories: dict[str, Laboratory], parts: Parts) -> dict[str, Record]:
    """The records of the parts ``tuning``, ``timing`` and of each data set; known ones cost nothing."""
    tuning = tuning_cells(settings)
    tables = len(settings.envs) * len(list(table_cells(settings, dict.fromkeys(settings.methods, 1.0))))
    with search_progress({"learning rates": len(tuning), "tables": tables}) as show:
        laboratory = laboratories[settings.tuning.env]
        records = {
            "tuning": parts.obtain(
                "tuning",
                _identity(settings, laboratory) | {"tuning": dataclasses.asdict(settings.tuning)},
                lambda: to_json(laboratory.evaluate(tuning, "heldout", "learning rates", show)),
            )
        }
        rates = best_rates(settings, from_json(records["tuning"]["result"]))
        done = 0
        for env in settings.envs:
            laboratory, cells = laboratories[env], list(table_cells(settings, rates))
            records[env] = parts.obtain(
                f"table-{env}",
                _identity(settings, laboratory)
                | {"cells": [dataclasses.asdict(cell) for cell in cells], "masks": settings.masks},
                lambda lab=laboratory, cells=cells, done=done: to_json(  # type: ignore[misc]
                    lab.evaluate(cells, "test", "tables", lambda what, n: show(what, done + n))
                ),
            )
            done += len(cells)
            show("tables", done)
    records["timing"] = parts.obtain(
        "timing",
        _identity(settings, laboratories[settings.envs[0]])
        | {"timing": dataclasses.asdict(settings.timing), "masks": settings.masks},
        lambda: step_times(settings),
    )
    return records


def _identity(settings: MethodsSettings, laboratory: Laboratory) -> dict[str, Any]:
    """What decides every part's numbers, besides what it is a part of."""
    return {
        "env": laboratory.env,
        "split": laboratory.dataset.split_sha256,
        "backbone": laboratory.backbone.sha256,
        "methods": settings.methods,
        "method_options": settings.method_options,
        "groups": settings.groups,
        "inner": dataclasses.asdict(settings.inner),
        "metrics": settings.metrics,
        "threads": settings.threads,
        "code": CODE_VERSION,
    }


if __name__ == "__main__":
    main()
