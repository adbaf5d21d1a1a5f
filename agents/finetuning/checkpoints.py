"""Training states on disk: one safetensors file each, replaced in one rename."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from agents.finetuning.trainer import State
from rewards.errors import InputError

_log = logging.getLogger(__name__)


class Checkpoints:
    """The last few states of a run, ``step-00000100.safetensors`` and so on.

    JSON values lie in the file's header, so that tensors and numbers are of one moment, and nothing is unpickled.

    Args:
        folder: Made when the first one is saved.
        keep: How many.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self._folder, self._keep = folder, keep

    def save(self, state: State) -> None:
        """Writes a state, and only then removes those that are one too many."""
        self._folder.mkdir(exist_ok=True)
        path = self._folder / f"step-{state.numbers['step']:08d}.safetensors"
        partial = path.with_suffix(".partial")
        tensors = {name: tensor.contiguous() for name, tensor in state.tensors.items()}
        save_file(tensors, partial, metadata={"numbers": json.dumps(state.numbers, allow_nan=False)})
        with partial.open("rb") as written:
            os.fsync(written.fileno())
        partial.replace(path)
        for old in self._paths()[: -self._keep]:
            old.unlink()

    def last(self) -> State | None:
        """The latest state that is whole; None if none was ever saved.

        A torn one is left out with a warning: the one before it leads to the same weights.

        Raises:
            InputError: If none of those that are there can be read.
        """
        paths = self._paths()
        for path in reversed(paths):
            try:
                with safe_open(path, framework="pt") as file:
                    numbers = json.loads(file.metadata()["numbers"])
                    return State({name: file.get_tensor(name) for name in file.keys()}, numbers)  # noqa: SIM118
            except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
                _log.warning("%s cannot be read and is left out: %s", path, " ".join(str(error).split()))
        if paths:
            raise InputError(f"none of the checkpoints in {self._folder} can be read", "remove them to begin anew")
        return None

    def _paths(self) -> list[Path]:
        return sorted(self._folder.glob("step-*.safetensors"))
