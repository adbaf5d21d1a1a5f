"""The file of a searcher's runs on one table: it grows run by run, and a killed comparison goes on from it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from agents.comparison.trace import Trace
from rewards.errors import InputError

Record = dict[str, Any]


class ResultFile:
    """One JSON object a line: first what the runs have in common, then each run.

    Args:
        path: Named by what decides the runs.

    Raises:
        InputError: If a file of that name is no file of runs.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.head: Record | None = None
        self.traces: dict[tuple[int, float | None], Trace] = {}
        if path.is_file():
            self._read()

    def append(self, head: Mapping[str, Any], traces: Iterable[Trace]) -> None:
        """Adds runs; they are on the disk's side of this process when it returns.

        Args:
            head: Written first, if the file is new.
            traces: Runs that the file does not have.

        Raises:
            InputError: If the file cannot be written.
        """
        new = list(traces)
        lines = [json.dumps(trace.to_json(), allow_nan=False) for trace in new]
        if self.head is None:
            self.head = dict(head)
            lines.insert(0, json.dumps(self.head, allow_nan=False))
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write("".join(f"{line}\n" for line in lines))
        except OSError as error:
            raise InputError(f"{self.path} cannot be written: {error}", "name another run_dir") from error
        self.traces |= {trace.key: trace for trace in new}

    def _read(self) -> None:
        try:
            content = self.path.read_bytes()
            # A call that was killed while it wrote leaves half a line at the end; that run is computed again.
            whole = content[: content.rfind(b"\n") + 1]
            if len(whole) < len(content):
                with self.path.open("r+b") as file:
                    file.truncate(len(whole))
            head, *runs = [json.loads(line) for line in whole.splitlines()] or [None]
            self.head = head
            traces = [Trace.from_json(run) for run in runs]
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise InputError(f"{self.path} cannot be read: {error}", "delete it; its runs are made again") from error
        self.traces = {trace.key: trace for trace in traces}
