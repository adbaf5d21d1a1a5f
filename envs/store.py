"""Every evaluation that was ever paid for, on disk: memo, provenance and what a run resumes from."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from envs.evaluators.base import Evaluation
from envs.evaluators.failure import is_final
from envs.exchange import Record
from envs.task import SelectionTask
from rewards.errors import InputError

_IDENTITY = (0x4D656D43, 1)
"""SQLite's application id ("MemC") and the schema's version."""

_SCHEMA = (
    "CREATE TABLE tasks (id TEXT PRIMARY KEY, identity TEXT NOT NULL)",
    "CREATE TABLE evaluations (id INTEGER PRIMARY KEY, key TEXT NOT NULL, task TEXT NOT NULL, schedule TEXT NOT NULL, "
    "evaluation TEXT NOT NULL, run TEXT NOT NULL, created TEXT NOT NULL, final INTEGER NOT NULL)",
    "CREATE UNIQUE INDEX first_final_wins ON evaluations (key) WHERE final",
    "CREATE INDEX evaluations_by_key ON evaluations (key)",
    "CREATE INDEX evaluations_by_task ON evaluations (task)",
    f"PRAGMA application_id = {_IDENTITY[0]}",
    f"PRAGMA user_version = {_IDENTITY[1]}",
)


@dataclass(frozen=True)
class StoredEvaluation:
    """An evaluation and the id of the run that paid for it."""

    evaluation: Evaluation
    run: str


@dataclass(frozen=True)
class Merged:
    """What became of evaluations of others: ``new`` ones, ``known`` ones, and of these ``differing`` in numbers."""

    new: int
    known: int
    differing: int


class EvaluationStore:
    """Append-only SQLite file keyed by `SelectionTask.evaluation_key`.

    The first success, or failure that another attempt would meet again (`is_final`), stands for ever. Failures that are
    not final are kept too, and stand until there is a final evaluation. What `put` has returned survives a ``kill -9``.
    Any number of processes and threads may use one file on a local disk; each process opens its own store, after a fork
    anew.

    Args:
        path: The file; it and its folders are made if missing.

    Raises:
        InputError: If the file cannot be written or is not a store of this version; it is left as it was. Every method
            raises it too, if the file is damaged or the disk full.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._lock = threading.Lock()
        with self._errors_reported():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(self.path, timeout=60, isolation_level=None, check_same_thread=False)
            try:
                self._open()
            except BaseException:
                self._database.close()
                raise

    def get(self, key: str, run: str = "") -> StoredEvaluation | None:
        """What stands under a key: what ``run`` itself paid for, else the final evaluation, else the last failure.

        The run's own comes first so that a resumed run meets its own past, failures included.
        """
        with self._errors_reported(), self._lock:
            return self._get(key, run)

    def put(self, task: SelectionTask, evaluation: Evaluation, run: str) -> StoredEvaluation:
        """Appends an evaluation that ``run`` paid for, on disk before this returns; never overwrites.

        Returns:
            What `get` now gives to ``run``: another run's evaluation if that was stored first.
        """
        key = task.evaluation_key(evaluation.schedule)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        with self._errors_reported(), self._lock, self._transaction():
            self._insert(key, task.id, task.identity(), evaluation, run, now)
            stored = self._get(key, run)
            assert stored is not None
            return stored

    def evaluations(self, task_id: str) -> Iterator[StoredEvaluation]:
        """What stands under each key of a task, in the order in which it was stored."""
        with self._errors_reported(), self._lock:
            rows = self._database.execute(
                "SELECT evaluation, run FROM evaluations AS e WHERE task = ? AND id = "
                "(SELECT id FROM evaluations WHERE key = e.key ORDER BY final DESC, id DESC LIMIT 1) ORDER BY id",
                (task_id,),
            ).fetchall()
            stored = [_parsed(*row) for row in rows]
        yield from stored

    def records(self) -> list[Record]:
        """Every final evaluation, in the order in which it was stored."""
        with self._errors_reported(), self._lock:
            rows = self._database.execute(
                "SELECT identity, evaluation, run, created FROM evaluations JOIN tasks ON tasks.id = task "
                "WHERE final ORDER BY evaluations.id"
            ).fetchall()
            return [
                Record(json.loads(task), _parsed(fields, run).evaluation, run, at) for task, fields, run, at in rows
            ]

    def merge(self, records: Iterable[Record]) -> Merged:
        """Takes over final evaluations of another store, all or nothing; what stands under a key stays.

        Failures that are not final are left out: they tell of another machine's troubles.
        """
        new = known = differing = 0
        with self._errors_reported(), self._lock, self._transaction():
            for record in records:
                evaluation = record.evaluation
                if not is_final(evaluation.failure):
                    continue
                standing = self._database.execute(
                    "SELECT evaluation, run FROM evaluations WHERE key = ? AND final", (record.key,)
                ).fetchone()
                if standing is None:
                    self._insert(record.key, record.task_id, record.task, evaluation, record.run, record.created)
                    new += 1
                else:
                    known += 1
                    differing += not _parsed(*standing).evaluation.same_numbers(evaluation)
        return Merged(new, known, differing)

    def close(self) -> None:
        """Lets go of the file; safe to call twice."""
        with self._lock:
            self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _open(self) -> None:
        with self._transaction():
            identity = tuple(self._value(f"PRAGMA {name}") for name in ("application_id", "user_version"))
            if identity == (0, 0) and not self._value("SELECT count(*) FROM sqlite_master"):
                for statement in _SCHEMA:
                    self._database.execute(statement)
            elif identity != _IDENTITY:
                raise InputError(
                    f"{self.path} is not an evaluation store of version {_IDENTITY[1]} (it says {identity[1]})",
                    "name another file, or move this one away",
                )
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("PRAGMA synchronous = FULL")

    def _value(self, query: str) -> Any:
        return self._database.execute(query).fetchone()[0]

    def _get(self, key: str, run: str) -> StoredEvaluation | None:
        row = self._database.execute(
            "SELECT evaluation, run FROM evaluations WHERE key = ? ORDER BY run = ? DESC, final DESC, id DESC LIMIT 1",
            (key, run),
        ).fetchone()
        return None if row is None else _parsed(*row)

    def _insert(
        self, key: str, task_id: str, task: Mapping[str, Any], evaluation: Evaluation, run: str, created: str
    ) -> None:
        identity = json.dumps(task, sort_keys=True, allow_nan=False)
        fields = json.dumps(evaluation.to_json(), allow_nan=False)
        self._database.execute("INSERT INTO tasks VALUES (?, ?) ON CONFLICT DO NOTHING", (task_id, identity))
        self._database.execute(
            "INSERT INTO evaluations (key, task, schedule, evaluation, run, created, final) "
            "VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
            (key, task_id, evaluation.schedule.key, fields, run, created, is_final(evaluation.failure)),
        )

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """All or nothing. IMMEDIATE: two writers queue for the lock at once, where the time-out applies."""
        try:
            self._database.execute("BEGIN IMMEDIATE")
            yield
            self._database.execute("COMMIT")
        except BaseException:
            if self._database.in_transaction:
                self._database.execute("ROLLBACK")
            raise

    @contextmanager
    def _errors_reported(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.ProgrammingError:
            raise
        except (sqlite3.DatabaseError, OSError) as error:
            raise InputError(
                f"the evaluation store {self.path} cannot be used: {error}",
                "name another file in a folder that can be written, or move this one away",
            ) from error


def _parsed(fields: str, run: str) -> StoredEvaluation:
    try:
        return StoredEvaluation(Evaluation.from_json(json.loads(fields)), run)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise sqlite3.DatabaseError(f"an entry is no evaluation ({type(error).__name__}: {error})") from error
