"""``python -m agents.compare`` (``make compare``): searchers against each other, and ``docs/comparison.md``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from agents.callbacks import search_progress
from agents.comparison.document import write_document
from agents.comparison.runs import compute, result_files, targets_of
from agents.comparison.scores import Scores
from agents.comparison.settings import CompareSettings
from agents.entry import entry_point
from agents.search import SEARCHERS, VARIANTS, find_searcher
from agents.settings import read_settings
from agents.tables import table_files
from rewards.errors import InputError


@entry_point("compare")
def main(config: DictConfig) -> None:
    """Makes the runs that are missing, then writes the page from the files of all of them."""
    settings = read_settings(config, CompareSettings)
    names = settings.names(list(SEARCHERS), list(VARIANTS))
    targets = targets_of(settings, table_files(settings.tables))
    if settings.searchers is None and not all(target.sources for target in targets):
        names, left_out = _without_sources(names)
        print(f"without {', '.join(left_out)}: there is no other data source to learn from")
    files = result_files(settings, names, targets, find_searcher)
    runs = len(targets) * settings.seeds * len(settings.preferences)
    try:
        with search_progress(dict.fromkeys(names, runs)) as show:
            compute(settings, targets, files, find_searcher, show)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("every finished run is kept; the same command goes on") from None
    scores = Scores.of(settings, {target.name: target.env for target in targets}, files)
    print(f"wrote {write_document(Path(settings.docs), scores)}")


def _without_sources(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Those that begin from nothing, and those that have to learn from other tasks."""
    able, unable = [], []
    for name in names:
        try:
            find_searcher(name)
            able.append(name)
        except InputError:
            unable.append(name)
    return able, unable


if __name__ == "__main__":
    main()
