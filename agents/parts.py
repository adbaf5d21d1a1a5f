"""Finished parts, each in a file of its own that is named by what decides its content."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from agents.result import git_state, hardware, versions
from envs.task import content_hash
from rewards.errors import InputError

Record = dict[str, Any]
"""``result`` of a part, and when, where and by what it was computed."""


class Parts:
    """The folder of finished parts.

    Args:
        folder: Created if missing.

    Raises:
        InputError: If it cannot be.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{folder} cannot be written: {error}", "name another run_dir") from error

    def read(self, name: str, identity: Mapping[str, Any]) -> Record | None:
        """What is known under this name with exactly these settings."""
        path = self._path(name, identity)
        if not path.is_file():
            return None
        try:
            record: Record = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"{path} cannot be read: {error}", "delete it; it will be computed again") from error
        return record

    def obtain(self, name: str, identity: Mapping[str, Any], compute: Callable[[], Any]) -> Record:
        """The same, computed and kept if it is not known."""
        path, known = self._path(name, identity), self.read(name, identity)
        if known is not None:
            print(f"{name}: known, {path}", flush=True)
            return known
        started = time.perf_counter()
        result = compute()
        record = {
            "name": name,
            "identity": dict(identity),
            "result": result,
            "seconds": time.perf_counter() - started,
            "date": f"{datetime.now(UTC):%Y-%m-%d}",
            "git": git_state(),
            "hardware": hardware(),
            "versions": versions(),
        }
        partial = path.with_name(f".{path.name}.partial")
        partial.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        partial.replace(path)
        print(f"{name}: {record['seconds']:.0f} s, {path}", flush=True)
        return record

    def _path(self, name: str, identity: Mapping[str, Any]) -> Path:
        return self._folder / f"{name}-{content_hash(identity)[:16]}.json"
