"""``python -m agents.tables`` (``make tables``): draws every table's landscape, and writes ``docs/tables.md``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from agents.entry import entry_point
from agents.landscape.document import write_document
from agents.landscape.settings import TablesSettings
from agents.landscape.surface import Surface
from agents.lookup import read_table
from agents.settings import read_settings
from envs.tables import SHIPPED
from rewards.errors import InputError
from rewards.objective import Objective


@entry_point("tables")
def main(config: DictConfig) -> None:
    """Reads the tables and writes the page; nothing is measured."""
    settings = read_settings(config, TablesSettings)
    reward = settings.reward
    objective = Objective(tuple(reward.quality), tuple(reward.privacy), reward.scalarization, reward.rho)
    surfaces = [Surface.of(path.stem, read_table(path), objective) for path in table_files(settings.tables)]
    print(f"wrote {write_document(Path(settings.docs), settings, surfaces)}")


def table_files(named: Sequence[str] | None) -> list[Path]:
    """Files of tables: the named ones, or those that ship.

    Raises:
        InputError: If there are none, or two have the same name, by which pages and results tell them apart.
    """
    paths = sorted(SHIPPED.glob("*.parquet")) if named is None else [Path(name) for name in named]
    if not paths:
        what = "no table of evaluations ships with this version" if named is None else "tables= is empty"
        raise InputError(what, "name files with tables=[...]; python -m agents.tabulate makes them")
    twice = [stem for stem, count in Counter(path.stem for path in paths).items() if count > 1]
    if twice:
        raise InputError(f"tables= names {twice[0]} twice", "give every table a file name of its own")
    return paths


if __name__ == "__main__":
    main()
