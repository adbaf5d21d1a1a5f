"""``python -m agents.merge``: brings evaluations from other stores and files, and writes them for others."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import DictConfig

from agents.entry import entry_point
from agents.settings import StoreSettings, read_settings
from envs.exchange import SUFFIXES, Record, is_exchange_file, read_records, write_records
from envs.store import EvaluationStore
from rewards.errors import InputError


@dataclass(frozen=True, kw_only=True)
class MergeSettings:
    """What goes where.

    Attributes:
        store: Takes over what the sources have.
        sources: Stores, and files that ``export`` wrote.
        export: A file for everything that the store has then; None for none.
    """

    store: StoreSettings
    run_dir: str
    sources: list[str] = field(default_factory=list)
    export: str | None = None


@entry_point("merge")
def main(config: DictConfig) -> None:
    """Reads every source before it writes anything, so that a broken one changes nothing."""
    settings = read_settings(config, MergeSettings)
    _check(settings)
    found = [(source, _records(Path(source))) for source in settings.sources]
    with closing(EvaluationStore(settings.store.path)) as store:
        for source, records in found:
            print(_merged(store, source, records))
        if settings.export is not None:
            print(f"wrote {write_records(settings.export, store.records())} evaluations to {settings.export}")


def _check(settings: MergeSettings) -> None:
    if not settings.sources and settings.export is None:
        raise InputError("neither sources nor export is set", "name what to read, what to write, or both")
    if settings.export is not None and not is_exchange_file(settings.export):
        raise InputError(f"export={settings.export}", f"end its name in {' or '.join(SUFFIXES)}")
    if not settings.sources and not Path(settings.store.path).is_file():
        raise InputError(f"there is no evaluation store {settings.store.path}", "set store.path, or name sources")
    own = Path(settings.store.path).resolve()
    if any(Path(source).resolve() == own for source in settings.sources):
        raise InputError(f"{settings.store.path} is among the sources and is the store", "set another store.path")


def _records(path: Path) -> list[Record]:
    if not path.is_file():
        raise InputError(f"there is no file {path}", "name an evaluation store, or a file that export= wrote")
    if is_exchange_file(path):
        return read_records(path)
    with closing(EvaluationStore(path)) as store:
        return store.records()


def _merged(store: EvaluationStore, source: str, records: Sequence[Record]) -> str:
    merged = store.merge(records)
    line = f"{source}: {merged.new} new, {merged.known} known"
    if merged.differing:
        line += f", {merged.differing} of them with other numbers here, which stay"
    return line


if __name__ == "__main__":
    main()
