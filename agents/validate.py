"""``python -m agents.validate`` (``make proof``): puts the measurements to the proof, and writes what came of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from agents.entry import entry_point
from agents.parts import Parts
from agents.settings import read_settings
from agents.validation.cost import cost
from agents.validation.document import write_document
from agents.validation.false_positives import false_positives
from agents.validation.identity import identity_of
from agents.validation.models import models
from agents.validation.objective import depends_on, objective
from agents.validation.planted import planted
from agents.validation.settings import PARTS, Part, ValidateSettings

_COMPUTE: dict[Part, Callable[[ValidateSettings, Parts], dict[str, Any]]] = {
    "planted": planted,
    "false_positives": false_positives,
    "models": models,
    "objective": objective,
    "cost": cost,
}


@entry_point("validate")
def main(config: DictConfig) -> None:
    """Computes the parts that ``only=`` names, all by default, and writes the document of all that are known."""
    settings = read_settings(config, ValidateSettings)
    torch.set_num_threads(1)  # another number rounds differently, and the cost is that of one
    results = Parts(Path(settings.run_dir) / "validate")
    for part in settings.parts:
        results.obtain(part, _identity(part, settings, results), lambda part=part: _COMPUTE[part](settings, results))  # type: ignore[misc]
    known = {part: results.read(part, _identity(part, settings, results)) for part in PARTS}
    path = write_document(Path(settings.docs), {part: record for part, record in known.items() if record is not None})
    print(f"wrote {path}")


def _identity(part: Part, settings: ValidateSettings, results: Parts) -> dict[str, Any]:
    identity = identity_of(part, settings)
    return identity | depends_on(settings, results) if part == "objective" else identity


if __name__ == "__main__":
    main()
