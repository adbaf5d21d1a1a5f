"""``python -m agents.compare`` (``make compare``): searchers against each other, and ``docs/comparison.md``."""

from __future__ import annotations

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


@entry_point("compare")
def main(config: DictConfig) -> None:
    """Makes the runs that are missing, then writes the page from the files of all of them."""
    settings = read_settings(config, CompareSettings)
    names = settings.names(list(SEARCHERS), list(VARIANTS))
    targets = targets_of(settings, table_files(settings.tables))
    files = result_files(settings, names, targets, find_searcher)
    runs = len(targets) * settings.seeds * len(settings.preferences)
    try:
        with search_progress(dict.fromkeys(names, runs)) as show:
            compute(settings, targets, files, find_searcher, show)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("every finished run is kept; the same command goes on") from None
    scores = Scores.of(settings, {target.name: target.env for target in targets}, files)
    print(f"wrote {write_document(Path(settings.docs), scores)}")


if __name__ == "__main__":
    main()
