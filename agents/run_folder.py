"""One run, one folder, one writer."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import secrets
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import yaml
from omegaconf import DictConfig, OmegaConf

from envs.datasets.base import SplitDataset
from envs.evaluators.cached import Served
from rewards.errors import InputError

_log = logging.getLogger(__name__)


class RunFolder:
    """``<run_dir>/<job>/<task>/<UTC time>-<id>`` with the files of the contract; its name is the run's id.

    Use it as a context manager: it holds a lock, so that two processes never write one run.

    Args:
        path: An existing folder, made by `create` or found by `open`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._evaluations: IO[str] | None = None

    @classmethod
    def create(
        cls, run_dir: str | Path, job: str, task: str, config: DictConfig, overrides: Sequence[str]
    ) -> RunFolder:
        """Makes a new folder and writes the configuration into its ``.hydra``.

        Raises:
            InputError: If it cannot be made.
        """
        name = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"
        path = Path(run_dir) / job / task / name
        try:
            (path / ".hydra").mkdir(parents=True)
            OmegaConf.save(config, path / ".hydra" / "config.yaml", resolve=True)
            OmegaConf.save(OmegaConf.create(list(overrides)), path / ".hydra" / "overrides.yaml")
        except OSError as error:
            raise InputError(f"run_dir={run_dir} cannot be written: {error}", "name another run_dir") from error
        return cls(path)

    @classmethod
    def open(cls, path: str | Path, job: str) -> tuple[RunFolder, DictConfig]:
        """A run to go on with, and its configuration.

        Raises:
            InputError: If the folder is not a run of that job.
        """
        folder = Path(path).resolve()
        remedy = f"name a folder like runs/{job}/<task>/<time>-<id>"
        try:
            config = OmegaConf.load(folder / ".hydra" / "config.yaml")
        except (OSError, ValueError, yaml.YAMLError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"resume={path} holds no configuration of a run: {reason}", remedy) from error
        if not isinstance(config, DictConfig) or folder.parent.parent.name != job:
            raise InputError(f"resume={path} is no {job} run", remedy)
        return cls(folder), config

    @classmethod
    def to_resume(cls, path: str | Path, job: str, overrides: Sequence[str]) -> tuple[RunFolder, DictConfig]:
        """What `open` gives, for a command line that says nothing besides ``resume=``.

        Raises:
            InputError: If it does, or the folder is not a run of that job.
        """
        others = [override for override in overrides if not override.startswith("resume=")]
        if others:
            raise InputError(
                f"resume= together with {' '.join(others)}", "drop the rest: a run keeps its configuration"
            )
        return cls.open(path, job)

    @property
    def id(self) -> str:
        """The folder's name."""
        return self.path.name

    def __enter__(self) -> RunFolder:
        with ExitStack() as opened:
            try:
                lock = opened.enter_context((self.path / ".lock").open("w"))
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # A resumed run asks everything again, and the store answers: what is written on the way starts anew.
                shutil.rmtree(self.path / "tensorboard", ignore_errors=True)
                (self.path / "evaluations.jsonl").unlink(missing_ok=True)
                opened.enter_context(_log_kept_in(self.path / "log.txt"))
            except BlockingIOError as error:
                raise InputError(
                    f"{self.path} is being written by another process", "wait for it, or stop it"
                ) from error
            except OSError as error:
                raise InputError(f"{self.path} cannot be written: {error}", "name another run_dir") from error
            self._opened = opened.pop_all()
        _log.info("begun by process %d", os.getpid())
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        _log.info("ended by process %d", os.getpid(), exc_info=error)
        self._opened.close()

    def record(self, served: Served) -> None:
        """Appends an answered request to ``evaluations.jsonl``, store hits marked."""
        if self._evaluations is None:
            path = self.path / "evaluations.jsonl"
            self._evaluations = self._opened.enter_context(path.open("w", encoding="utf-8"))
        fields = served.evaluation.to_json() | {"hit": served.hit}
        self._evaluations.write(json.dumps(fields, allow_nan=False) + "\n")
        self._evaluations.flush()

    def write_json(self, name: str, value: Any) -> Path:
        """Writes a JSON file in one rename; NaN and infinity are refused."""
        path = self.path / name
        partial = path.with_name(f".{name}.partial")
        partial.write_text(json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False) + "\n", encoding="utf-8")
        partial.replace(path)
        return path

    def write_data_check(self, dataset: SplitDataset) -> None:
        """``data.json``: what was left out, how often and why, near-duplicates tied together, the loader's notes."""
        rejects: Iterable[Mapping[str, str]] = ({"id": r.id, "reason": r.reason} for r in dataset.rejects)
        pairs = [list(pair) for pair in dataset.near_duplicates]
        counts = dict(Counter(reject.reason for reject in dataset.rejects).most_common())
        check = {"rejected": counts, "rejects": list(rejects), "near_duplicates": pairs, "notes": dataset.card.notes}
        self.write_json("data.json", check)


@contextmanager
def _log_kept_in(path: Path) -> Iterator[None]:
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()
