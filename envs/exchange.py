"""Evaluations in a file that is given to others: JSON lines, one evaluation each, with what decided its numbers."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NoReturn

from envs.evaluators.base import Evaluation
from envs.task import content_hash
from rewards.errors import InputError

SUFFIXES = (".jsonl", ".jsonl.gz")
"""Of files of evaluations, plain and compressed."""

_REMEDY = "name a file that python -m agents.merge export=<file> wrote"


@dataclass(frozen=True)
class Record:
    """An evaluation with its task.

    Attributes:
        task: See `SelectionTask.identity`.
        evaluation: Final: see `is_final`.
        run: The id of the run that paid for it.
        created: When, in UTC, ISO 8601.
    """

    task: Mapping[str, Any]
    evaluation: Evaluation
    run: str
    created: str

    @property
    def task_id(self) -> str:
        """See `SelectionTask.id`."""
        return content_hash(self.task)[:16]

    @property
    def key(self) -> str:
        """See `SelectionTask.evaluation_key`."""
        return content_hash({"task": self.task, "schedule": self.evaluation.schedule.key})


def is_exchange_file(path: str | Path) -> bool:
    """Whether a file of this name holds such lines."""
    return str(path).endswith(SUFFIXES)


def write_records(path: str | Path, records: Iterable[Record]) -> int:
    """Writes the file in one rename; the same records give the same bytes.

    Args:
        path: Ends in one of `SUFFIXES`; its folders are made if missing.
        records: In the order of the lines.

    Returns:
        How many there are.

    Raises:
        InputError: If the file cannot be written.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.partial")
    count = 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file, _written(file, compress=path.name.endswith(".gz")) as write:
            for record in records:
                fields = {
                    "task": record.task,
                    "evaluation": record.evaluation.to_json(),
                    "run": record.run,
                    "created": record.created,
                }
                write(json.dumps(fields, sort_keys=True, allow_nan=False).encode() + b"\n")
                count += 1
        partial.replace(path)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error}", "name a file in a folder that can be written") from error
    finally:
        with suppress(OSError):
            partial.unlink()
    return count


def read_records(path: str | Path) -> list[Record]:
    """The inverse of `write_records`.

    Raises:
        InputError: If there is no such file, or a line is no evaluation.
    """
    path = Path(path)
    try:
        with gzip.open(path, "rb") if path.name.endswith(".gz") else path.open("rb") as file:
            return [_parsed(line, f"line {number} of {path}") for number, line in enumerate(file, 1)]
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} cannot be read: {error}", _REMEDY) from error


def _parsed(line: bytes, place: str) -> Record:
    try:
        fields = json.loads(line, parse_constant=_refused)
        task, run, created = fields["task"], fields["run"], fields["created"]
        if not (isinstance(task, dict) and isinstance(run, str) and isinstance(created, str)):
            raise TypeError("task is an object, run and created are texts")
        return Record(task, Evaluation.from_json(fields["evaluation"]), run, created)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{place} is no evaluation ({type(error).__name__}: {error})", _REMEDY) from error


def _refused(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number of JSON")


@contextmanager
def _written(file: IO[bytes], *, compress: bool) -> Iterator[Callable[[bytes], int]]:
    if not compress:
        yield file.write
        return
    # Neither name nor time in its header: the same evaluations, the same file.
    with gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) as packed:
        yield packed.write
